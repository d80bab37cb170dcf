//! `tidegate exec`: the command is started, watched, started again, and ends with tidegate.

use super::*;

#[test]
fn exec_runs_gunicorn_and_ctrl_c_stops_all_of_it_with_0() {
    let mut tidegate = exec_gunicorn(&["--workers", "2"]).start();
    assert_eq!(tidegate.get("/").text(), "hello\n");
    assert_eq!(tidegate.admin_get("/readyz").status, 200);
    let family = family_of(&tidegate, 3);
    let mut client = tidegate.client();
    client.ask("/sleep?ms=2000");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    tidegate.process.signal(Signal::INT);
    assert_eq!(client.response().text(), "slept\n", "before gunicorn ends");
    assert_eq!(tidegate.process.exit_code(), 0, "{}", tidegate.log());
    until_gone(&family);
}

#[test]
fn exec_tells_the_command_where_to_listen() {
    let script = "echo \"seen: $PORT $TIDEGATE_BACKEND {port} {addr}\"; exec sleep 600";
    let mut tidegate = Tidegate::exec(["sh", "-c", script]).launch();
    let seen = tidegate.process.logged("the command's output", |log| {
        log.lines()
            .find_map(|line| line.strip_prefix("seen: ").map(str::to_owned))
    });
    let words: Vec<&str> = seen.split(' ').collect();
    let port: u16 = words[0].parse().expect("a port");
    let address = format!("127.0.0.1:{port}");
    assert_eq!(words, [words[0], &address, words[0], &address]);
    // It never listens; a signal ends the wait all the same.
    let family = descendants(tidegate.pid());
    tidegate.stop();
    until_gone(&family);
}

#[test]
fn exec_says_that_its_command_does_not_listen_where_it_should() {
    let mut tidegate = Tidegate::exec(["sleep", "600"]).launch();
    let told = tidegate.process.logged("the warning", |log| {
        let line = log.lines().find(|line| line.contains("nothing listens"))?;
        Some(line.to_owned())
    });
    assert!(
        told.contains("does it use {addr}, {port} or $PORT?"),
        "{told}"
    );
    assert!(!tidegate.log().contains("tidegate is ready"));
    tidegate.stop();
}

#[test]
fn exec_uses_the_address_that_backend_names() {
    let (listener, address) = common::raw::reserved_port();
    drop(listener);
    let mut tidegate = exec_gunicorn(&[]).backend(&address).start();
    assert_eq!(tidegate.get("/").text(), "hello\n");
    assert_eq!(common::get(&address, "/").text(), "hello\n");
    assert_eq!(tidegate.stop(), 0);
}

#[test]
fn exec_goes_on_from_what_was_learned_although_its_command_listens_elsewhere_each_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("state.json");
    let said = |endpoint: &str, what: &str| {
        let known = serde_json::json!({
            "slots": 1, "limit": 3, "scale": 0.02, "cost": 1.0, "latency": 0.02, "bins": [],
        });
        let state = serde_json::json!({ "version": 1, "endpoints": { endpoint: known } });
        fs::write(&file, state.to_string()).expect("it is written");
        let tidegate = exec_gunicorn(&["--workers", "1"])
            .set(format!("limit.state_file={}", file.display()))
            .start();
        assert_eq!(tidegate.get("/").status, 200);
        tidegate.events(what).len()
    };
    assert_eq!(said("exec", "goes on from limit.state_file"), 1);
    assert_eq!(said("127.0.0.1:1", "knows none of the endpoints"), 1);
}

/// tidegate raises its own for its clients, and an application may use `select(2)`.
#[test]
fn exec_gives_its_command_the_limit_of_open_files_that_it_was_started_with() {
    let tidegate = tidegate_command();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -Sn 300; exec \"$0\" \"$@\""]);
    command.arg(tidegate.get_program());
    command.args(["exec", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let script = "echo \"files: $(ulimit -Sn), tidegate: $(grep 'open files' /proc/$PPID/limits)\"";
    command.args(["--", "sh", "-c", &format!("{script}; exec sleep 600")]);
    for (unwanted, _) in tidegate.get_envs() {
        command.env_remove(unwanted);
    }
    let mut process = common::Process::start("tidegate", &mut command);
    let files = process.logged("the command's limit", |log| {
        log.lines()
            .find_map(|line| line.strip_prefix("files: ").map(str::to_owned))
    });
    let (command, tidegate) = files.split_once(", tidegate: ").expect("both");
    assert_eq!(command, "300");
    let raised = tidegate.split_whitespace().nth(3).expect("a limit");
    assert!(raised.parse::<u64>().expect("a number") > 300, "{tidegate}");
}

/// A server that was forgotten there would be taken for the command.
#[test]
fn exec_says_that_somebody_else_listens_where_its_command_should() {
    let stranger = Held::start();
    let tidegate = Tidegate::exec(["sleep", "600"])
        .backend(stranger.address())
        .start();
    let told = tidegate.events("before the command is started");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].to_string().contains(stranger.address()), "{told:?}");
}

/// As while a new version of it is put in its place.
#[test]
fn exec_goes_on_trying_where_its_command_is_away_for_a_while() {
    let dir = tempfile::tempdir().expect("a directory");
    let shell = dir.path().join("shell");
    let script = "test -e been && echo 'here again' && exec sleep 600; touch been; rm shell";
    let script = format!("cd {}; {script}; exit 3", dir.path().display());
    let put = || std::os::unix::fs::symlink("/bin/sh", &shell).expect("a link");
    put();
    let mut tidegate = Tidegate::exec([shell.to_str().expect("text"), "-c", &script])
        .set("process.restart=on-failure")
        .launch();
    let said = |log: &str, what: &str| log.contains(what).then_some(());
    let process = &mut tidegate.process;
    process.logged("a start in vain", |log| said(log, "there is no such file"));
    put();
    process.logged("a start", |log| said(log, "here again"));
    tidegate.stop();
}

#[test]
fn exec_ends_with_its_commands_exit_code() {
    let mut quick = Tidegate::exec(["sh", "-c", "exit 7"]).launch();
    assert_eq!(quick.process.exit_code(), 7);
    let mut missing = Tidegate::exec(["no-such-command-anywhere"]).launch();
    assert_eq!(missing.process.exit_code(), 1);
    assert!(missing.log().contains("no-such-command-anywhere"));

    let mut tidegate = exec_gunicorn(&[]).start();
    let family = descendants(tidegate.pid());
    let master = master(&tidegate);
    kill(master, Signal::KILL);
    assert_eq!(tidegate.process.exit_code(), 137, "{}", tidegate.log());
    until_gone(&family);
}

#[test]
fn exec_delivers_what_it_has_when_its_command_ends() {
    let mut tidegate = exec_gunicorn(&[])
        .set("buffers.response=16MiB")
        .set("drain.delay=10m")
        .start();
    let mut client = tidegate.client();
    client.ask("/size?n=12000000");
    until("the backend is done with it", || {
        let bytes = tidegate.metric("tidegate_buffered_bytes", &[("direction", "response")]);
        bytes > 0.0 && tidegate.metric(FLIGHT, &[]) == 0.0
    });
    kill(master(&tidegate), Signal::TERM);
    tidegate.process.logged("the drain", |log| {
        log.contains("as the backend has ended").then_some(())
    });
    // It has said so a moment before.
    until("it refuses", || {
        try_get(tidegate.address(), "/").is_ok_and(|answer| answer.status == 503)
    });
    assert_eq!(client.response().body.len(), 12_000_000);
    assert_eq!(tidegate.process.exit_code(), 0, "{}", tidegate.log());
}

/// The pid of the backend that was started last.
fn master(tidegate: &Tidegate) -> u32 {
    let events = tidegate.events("started the backend");
    let last = events.last().expect("a start");
    u32::try_from(last["pid"].as_u64().expect("a pid")).expect("a pid")
}

#[test]
fn exec_starts_a_command_that_failed_again() {
    let mut tidegate = exec_gunicorn(&[]).set("process.restart=on-failure").start();
    assert_eq!(tidegate.get("/").status, 200);
    let first = master(&tidegate);
    kill(first, Signal::KILL);
    until("another is started", || master(&tidegate) != first);
    let answer = common::until_some("it serves again", || {
        let answer = try_get(tidegate.address(), "/").ok()?;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.text(), "hello\n");
    let family = descendants(tidegate.pid());
    assert_eq!(tidegate.stop(), 0);
    until_gone(&family);

    // An end without failure is an end.
    let mut done = Tidegate::exec(["sh", "-c", "exit 0"])
        .set("process.restart=on-failure")
        .launch();
    assert_eq!(done.process.exit_code(), 0);
}

#[test]
fn signals_do_not_keep_exec_from_starting_its_command_again() {
    let mut tidegate = Tidegate::exec(["sh", "-c", "exit 3"])
        .set("process.restart=on-failure")
        .launch();
    tidegate.process.logged("the first start", |log| {
        log.contains("started the backend").then_some(())
    });
    // Each of them interrupts the pause before the next start.
    until("there were four starts", || {
        tidegate.process.signal(Signal::USR1);
        tidegate.events("started the backend").len() >= 4
    });
    let ends = tidegate.events("the backend exited").len();
    let starts = tidegate.events("started the backend").len();
    assert!(ends <= starts, "each end is told once: {}", tidegate.log());
    tidegate.stop();
}

#[test]
fn a_signal_while_the_command_starts_ends_both() {
    let mut tidegate = Tidegate::exec([
        "sh",
        "-c",
        "trap 'exit 5' TERM; while :; do sleep 0.05; done",
    ])
    .launch();
    tidegate.process.logged("the start", |log| {
        log.contains("started the backend").then_some(())
    });
    let family = descendants(tidegate.pid());
    assert!(!family.is_empty());
    // A shell that has not set its trap yet is killed by the signal itself.
    let code = tidegate.stop();
    assert!([5, 143].contains(&code), "{code}");
    until_gone(&family);
}

/// It is the drain's promise, whether there is anything to drain or not.
#[test]
fn a_second_signal_ends_a_command_that_does_not_get_ready_and_ignores_the_first() {
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 0.05; done";
    let mut tidegate = Tidegate::exec(["sh", "-c", deaf]).launch();
    tidegate.process.logged("that it hears nothing", |log| {
        log.lines().any(|line| line == "deaf").then_some(())
    });
    let family = descendants(tidegate.pid());
    tidegate.process.signal(Signal::TERM);
    tidegate.process.logged("the first signal", |log| {
        log.contains("a second signal ends this").then_some(())
    });
    // Late enough to be another one.
    std::thread::sleep(Duration::from_millis(150));
    tidegate.process.signal(Signal::INT);
    assert_eq!(tidegate.process.exit_code(), 1, "{}", tidegate.log());
    assert!(tidegate.log().contains("ended by a second signal"));
    until_gone(&family);
}

#[test]
fn a_killed_tidegate_takes_its_command_along() {
    let mut tidegate = exec_gunicorn(&["--workers", "2"]).start();
    let family = family_of(&tidegate, 3);
    tidegate.process.signal(Signal::KILL);
    assert_eq!(tidegate.process.exit_code(), 128 + 9);
    until_gone(&family);
}

//! Start, drain, signals and the child process, end to end.

mod common;

#[path = "lifecycle/exec.rs"]
mod exec;
#[path = "lifecycle/ready.rs"]
mod ready;

use std::{fs, process::Stdio, time::Duration};

use common::{
    Client, Gunicorn, Held, PATIENCE, Raw, Tidegate, alive, app::gunicorn_command, descendants,
    since, tidegate, tidegate_command, try_get, until,
};
use rustix::process::{Pid, Signal, kill_process};
use tidegate::clock;

const FLIGHT: &str = "tidegate_in_flight_requests";
const QUEUED: &str = "tidegate_queued_requests";

/// `tidegate exec` with the tests' application under gunicorn.
fn exec_gunicorn(args: &[&str]) -> common::Setup {
    let mut all = vec!["--bind", "{addr}"];
    all.extend(args);
    Tidegate::exec(gunicorn_command(&all))
}

fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(pid, signal).expect("a signal");
}

/// All its descendants, once there are so many: gunicorn listens before it forks its workers.
fn family_of(tidegate: &Tidegate, least: usize) -> Vec<u32> {
    common::until_some("the whole family is there", || {
        Some(descendants(tidegate.pid())).filter(|family| family.len() >= least)
    })
}

fn until_gone(pids: &[u32]) {
    until("no process is left", || !pids.iter().any(|&pid| alive(pid)));
}

#[test]
fn term_under_load_loses_nothing_in_flight_or_queued_and_exits_0() {
    let backend = Held::start();
    backend.release(1);
    let mut tidegate = Tidegate::to(backend.address())
        .limit(4)
        .set("queue.max_wait=20s")
        .start();
    let mut idle = tidegate.client();
    assert_eq!(idle.get("/").status, 200);
    let mut unused = tidegate.client();
    let mut clients: Vec<Client> = (0..12).map(|_| tidegate.client()).collect();
    for client in &mut clients {
        client.ask("/held");
    }
    tidegate.until_metric(FLIGHT, &[], 4.0);
    tidegate.until_metric(QUEUED, &[], 8.0);
    tidegate.process.signal(Signal::TERM);
    tidegate.until_metric("tidegate_draining", &[], 1.0);
    assert_eq!(tidegate.metric("tidegate_ready", &[]), 0.0);

    // Who has a connection and asks nothing is let go before a request of theirs has to be refused, while the others'
    // are still answered.
    assert!(idle.is_closed());
    assert!(unused.is_closed());
    let refused = tidegate.get("/");
    assert_eq!((refused.status, refused.reason()), (503, "draining".into()));
    assert_eq!(refused.header("connection").as_deref(), Some("close"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.json()["reason"], "draining");
    backend.release(12);
    for client in &mut clients {
        let answer = client.response();
        assert_eq!(answer.text(), "ok");
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
    }
    assert_eq!(tidegate.process.exit_code(), 0);
    assert_eq!(backend.requests().len(), 1 + 12);
    assert!(try_get(tidegate.address(), "/").is_err());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let backend = Held::start();
    let mut tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.ask("/");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    tidegate.process.signal(Signal::TERM);
    tidegate.until_metric("tidegate_draining", &[], 1.0);
    // What comes at once is the same one again: `timeout` signals its child, and then the group that it is in.
    std::thread::sleep(Duration::from_millis(150));
    let start = clock::now();
    tidegate.process.signal(Signal::INT);
    assert_ne!(tidegate.process.exit_code(), 0, "a request was cut off");
    assert!(since(start) < Duration::from_secs(3));
}

#[test]
fn the_same_signal_twice_at_once_is_one() {
    for _ in 0..20 {
        let backend = Held::start();
        let mut tidegate = Tidegate::to(backend.address()).start();
        let mut client = tidegate.client();
        client.ask("/");
        tidegate.until_metric(FLIGHT, &[], 1.0);
        let start = clock::now();
        // Two different ones, because the kernel makes one of the same two itself.
        tidegate.process.signal(Signal::TERM);
        tidegate.process.signal(Signal::INT);
        if since(start) > Duration::from_millis(10) {
            // On a busy machine that was not at once.
            continue;
        }
        tidegate.until_metric("tidegate_draining", &[], 1.0);
        backend.release(1);
        assert_eq!(client.response().status, 200);
        assert_eq!(tidegate.process.exit_code(), 0, "{}", tidegate.log());
        return;
    }
    panic!("two signals were never sent at once");
}

/// As process 1, where the kernel drops a signal that nobody handles, it would be lost.
#[test]
fn a_signal_while_the_configuration_is_read_ends_it_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("config.toml");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    // Somebody is there to write to it, and takes his time.
    let _writer = fs::File::options().read(true).write(true).open(&pipe);
    let mut command = tidegate_command();
    command.arg("run").arg("--config").arg(&pipe);
    let mut process = common::Process::start("tidegate", &mut command);
    let pid = process.pid();
    until("it handles TERM", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|mask| mask >> (15 - 1) & 1 == 1)
    });
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), 0);
}

#[test]
fn the_drains_delay_keeps_serving_while_readyz_says_no() {
    let backend = Raw::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    let mut tidegate = Tidegate::to(backend.address())
        .set("drain.delay=3s")
        .start();
    let start = clock::now();
    tidegate.process.signal(Signal::TERM);
    until("it is not ready", || {
        tidegate.admin_get("/readyz").status == 503
    });
    let mut served = 0;
    while since(start) < Duration::from_millis(600) {
        let answer = tidegate.get("/");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
        served += 1;
    }
    assert!(served > 0);
    assert_eq!(tidegate.process.exit_code(), 0);
    assert!(since(start) >= Duration::from_secs(3));
}

#[test]
fn the_drains_timeout_bounds_it() {
    let backend = Held::start();
    let mut tidegate = Tidegate::to(backend.address())
        .set("drain.timeout=400ms")
        .start();
    let mut client = tidegate.client();
    client.ask("/");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    let start = clock::now();
    tidegate.stop();
    let took = since(start);
    assert!(took >= Duration::from_millis(400), "{took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(tidegate.events("drain.timeout is over").len(), 1);
}

#[test]
fn an_upload_that_is_under_way_is_still_answered() {
    let backend = Held::start();
    backend.release(10);
    let mut tidegate = Tidegate::to(backend.address()).start();
    let mut upload = tidegate.client();
    upload.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 8\r\n\r\nhalf");
    tidegate.until_metric("tidegate_client_connections", &[("state", "active")], 1.0);
    tidegate.process.signal(Signal::TERM);
    tidegate.until_metric("tidegate_draining", &[], 1.0);
    upload.send("half");
    let answer = upload.response_to("POST");
    assert_eq!((answer.status, answer.reason()), (503, "draining".into()));
    assert_eq!(tidegate.process.exit_code(), 0);
}

#[test]
fn an_answer_that_is_still_being_read_arrives_whole() {
    let app = Gunicorn::gthread(4);
    let dir = tempfile::tempdir().expect("a directory");
    // A Unix socket takes some 200 KB: of some of these answers a last part stays in tidegate when
    // the backend and the queue are long done. Each has a tidegate of its own to wait for it.
    let mut all: Vec<(usize, Tidegate, Client)> = (160_000..320_000)
        .step_by(20_000)
        .map(|size| {
            let socket = format!("unix:{}", dir.path().join(size.to_string()).display());
            let tidegate = Tidegate::to(app.address()).listen(&socket).start();
            let mut client = tidegate.client();
            client.ask(&format!("/size?n={size}"));
            (size, tidegate, client)
        })
        .collect();
    for (_, tidegate, _) in &mut all {
        tidegate.until_metric("tidegate_requests_total", &[("code", "200")], 1.0);
        tidegate.until_idle();
        tidegate.process.signal(Signal::TERM);
    }
    // The clients take their time.
    std::thread::sleep(Duration::from_millis(1200));
    let arrived: Vec<(usize, Option<usize>)> = all
        .iter_mut()
        .map(|(size, _, client)| {
            let answer = client.try_response("GET");
            (*size, answer.ok().map(|answer| answer.body.len()))
        })
        .collect();
    assert!(
        arrived.iter().all(|(size, got)| Some(*size) == *got),
        "{arrived:?}"
    );
    for (_, tidegate, _) in &mut all {
        assert_eq!(tidegate.process.exit_code(), 0);
    }
}

/// A pre-stop hook, which begins a drain and waits for its end.
fn waits_for_the_drain(tidegate: &Tidegate) -> Client {
    let mut hook = Client::connect(tidegate.admin());
    hook.send("GET /drain/wait HTTP/1.1\r\nHost: localhost\r\n\r\n");
    tidegate.until_metric("tidegate_draining", &[], 1.0);
    hook
}

#[test]
fn a_pre_stop_hook_waits_for_the_drain_and_an_undrain_ends_it() {
    let backend = Held::start();
    let mut tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.ask("/");
    tidegate.until_metric(FLIGHT, &[], 1.0);

    let mut hook = waits_for_the_drain(&tidegate);
    assert_eq!(tidegate.get("/").reason(), "draining");
    hook.set_timeout(Duration::from_millis(100));
    assert!(hook.read_some().is_err(), "it still waits");
    hook.set_timeout(PATIENCE);
    backend.release(1);
    assert_eq!(client.response().status, 200);
    assert_eq!(hook.response().status, 200);
    assert_eq!(tidegate.admin_get("/readyz").status, 503);

    assert_eq!(tidegate.admin_post("/undrain", "").status, 200);
    backend.release(1);
    assert_eq!(tidegate.get("/").status, 200);
    assert_eq!(tidegate.admin_get("/readyz").status, 200);
    assert_eq!(tidegate.metric("tidegate_draining", &[]), 0.0);
    assert_eq!(tidegate.stop(), 0);
}

#[test]
fn who_waits_for_a_drain_hears_that_it_was_undone() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.ask("/");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    let mut hook = waits_for_the_drain(&tidegate);
    assert_eq!(tidegate.admin_post("/undrain", "").status, 200);
    let told = hook.response();
    assert_eq!(told.status, 409);
    assert!(told.text().contains("was undone"), "{}", told.text());
    // What is in flight is none the worse for it.
    backend.release(2);
    assert_eq!(client.response().status, 200);
    assert_eq!(tidegate.get("/").status, 200);

    let by_hand = tidegate.admin_post("/limit", "3");
    assert_eq!(by_hand.status, 200);
    until("it is logged", || {
        let events = tidegate.events("the limit was set by hand");
        events.last().is_some_and(|event| event["limit"] == 3)
    });
}

#[test]
fn a_pre_stop_hook_without_a_shutdown_is_forgotten() {
    let mut app = Gunicorn::sync(1);
    let address = app.address().to_owned();
    let tidegate = Tidegate::to(&address).start();
    assert_eq!(tidegate.admin_get("/drain/wait").status, 200);
    assert_eq!(tidegate.get("/").reason(), "draining");
    // An application that is only restarted runs its hook too.
    assert_eq!(app.process.stop(), 0);
    assert_eq!(tidegate.get("/").reason(), "draining");
    until("it is seen to be down", || {
        tidegate.metric("tidegate_backend_up", &[]) == 0.0
    });
    let _app = Gunicorn::bound(&address, &[]);
    tidegate.until_metric("tidegate_draining", &[], 0.0);
    assert_eq!(tidegate.get("/").status, 200);
}

#[test]
fn a_drain_by_hand_outlasts_a_pre_stop_hooks() {
    let mut app = Gunicorn::sync(1);
    let address = app.address().to_owned();
    let tidegate = Tidegate::to(&address).start();
    assert_eq!(tidegate.admin_get("/drain/wait").status, 200);
    assert_eq!(tidegate.admin_post("/drain", "").status, 200);
    assert_eq!(app.process.stop(), 0);
    let _app = Gunicorn::bound(&address, &[]);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(tidegate.get("/").reason(), "draining");
    assert_eq!(tidegate.admin_post("/undrain", "").status, 200);
    assert_eq!(tidegate.get("/").status, 200);
}

/// The sidecar of an application that has ended before it.
#[test]
fn nobody_serves_on_without_a_backend() {
    let mut app = Gunicorn::sync(1);
    let mut tidegate = Tidegate::to(app.address()).set("drain.delay=10m").start();
    assert_eq!(tidegate.get("/").status, 200);
    assert_eq!(app.process.stop(), 0);
    assert_eq!(tidegate.stop(), 0);
}

#[test]
fn a_pre_stop_hook_and_then_term_lose_nothing() {
    let backend = Held::start();
    let mut tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.ask("/");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    let _hook = waits_for_the_drain(&tidegate);
    tidegate.process.signal(Signal::TERM);
    tidegate.process.logged("the second drain", |log| {
        log.contains("draining; a second signal").then_some(())
    });
    assert_eq!(
        tidegate.admin_post("/undrain", "").status,
        409,
        "there is no way back any more"
    );
    backend.release(1);
    assert_eq!(client.response().status, 200);
    assert_eq!(tidegate.process.exit_code(), 0);
}

#[test]
fn the_commands_for_operators_tell_and_change_the_state() {
    let backend = Held::start();
    let mut front = Tidegate::to(backend.address()).limit(3).start();
    let admin = front.admin().to_owned();
    let code = |args: &[&str]| tidegate(args).0;
    assert_eq!(code(&["healthcheck", "--admin", &admin]), 0);
    assert_eq!(code(&["healthcheck", "--admin", &admin, "--ready"]), 0);

    let (status, text, _) = tidegate(&["status", "--admin", &admin]);
    assert_eq!(status, 0);
    assert!(text.contains('3'), "{text}");
    let (status, json, _) = tidegate(&["status", "--admin", &admin, "--format", "json"]);
    assert_eq!(status, 0);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["limit"], 3);
    assert_eq!(json["bound_by"], "configured");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));

    let mut client = front.client();
    client.ask("/");
    front.until_metric(FLIGHT, &[], 1.0);
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| tidegate(&["drain", "--wait", "--admin", &admin]));
        front.until_metric("tidegate_draining", &[], 1.0);
        assert_eq!(code(&["healthcheck", "--admin", &admin]), 0);
        assert_eq!(code(&["healthcheck", "--admin", &admin, "--ready"]), 1);
        assert!(!drain.is_finished());
        backend.release(1);
        assert_eq!(client.response().status, 200);
        let (code, _, stderr) = drain.join().expect("no panic");
        assert_eq!(code, 0, "{stderr}");
    });
    assert_eq!(front.get("/").reason(), "draining");
    assert_eq!(front.admin_post("/undrain", "").status, 200);
    for said in [
        "draining, as asked for by hand",
        "serving again, as asked for by hand",
    ] {
        until("it is logged", || !front.events(said).is_empty());
        let told = front.events(said);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].to_string().contains("127.0.0.1"), "{told:?}");
    }
    assert_eq!(code(&["drain", "--admin", &admin]), 0);
    front.until_metric("tidegate_draining", &[], 1.0);
    assert_eq!(front.stop(), 0);

    for command in [&["healthcheck"][..], &["status"], &["drain"]] {
        let mut args = command.to_vec();
        args.extend(["--admin", &admin]);
        let (code, _, stderr) = tidegate(&args);
        assert_eq!(code, 1, "{command:?}");
        assert!(stderr.contains(&admin), "{stderr}");
    }
}

#[test]
fn what_cannot_be_printed_is_1_unless_nobody_reads_on() {
    let tidegate = Tidegate::to("127.0.0.1:9").start();
    let code = |args: &[&str], out: Stdio| {
        let mut command = tidegate_command();
        let status = command
            .args(args)
            .stdout(out)
            .stderr(Stdio::null())
            .status();
        status.expect("it runs").code()
    };
    let status = ["status", "--admin", tidegate.admin()];
    let json = ["status", "--format", "json", "--admin", tidegate.admin()];
    for args in [&["config"][..], &["completions", "bash"], &status, &json] {
        let full = fs::File::options().write(true).open("/dev/full");
        assert_eq!(
            code(args, full.expect("a device").into()),
            Some(1),
            "{args:?}"
        );
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        assert_eq!(code(args, writer.into()), Some(0), "{args:?}");
    }
}

#[test]
fn mutations_can_be_turned_off() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .set("admin.mutations=off")
        .start();
    for path in ["/drain", "/undrain", "/limit", "/reload"] {
        assert_eq!(tidegate.admin_post(path, "{\"limit\": 1}").status, 403);
    }
    assert_eq!(tidegate.metric("tidegate_draining", &[]), 0.0);
}

#[test]
fn usr1_and_usr2_do_their_work_and_nothing_else() {
    let backend = Held::start();
    backend.release(1);
    let mut tidegate = Tidegate::to(backend.address()).limit(2).start();
    tidegate.process.signal(Signal::USR2);
    let state = tidegate.process.logged("the state", |log| {
        log.lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find_map(|event| event["state"].as_str().map(str::to_owned))
    });
    let state: serde_json::Value = serde_json::from_str(&state).expect("the status as JSON");
    assert_eq!(state["limit"], 2);
    tidegate.process.signal(Signal::USR1);
    tidegate.process.logged("an answer to USR1", |log| {
        log.contains("reopen").then_some(())
    });
    assert_eq!(tidegate.get("/").status, 200);
    assert_eq!(tidegate.stop(), 0);
}

#[test]
fn a_socket_that_a_killed_tidegate_left_behind_is_replaced() {
    let backend = Held::start();
    backend.release(2);
    let dir = tempfile::tempdir().expect("a directory");
    let socket = format!("unix:{}", dir.path().join("front.sock").display());
    let mut first = Tidegate::to(backend.address()).listen(&socket).start();
    assert_eq!(first.get("/").status, 200);
    // One that is alive keeps it.
    let mut second = Tidegate::to(backend.address()).listen(&socket).launch();
    assert_eq!(second.process.exit_code(), 3, "{}", second.log());
    first.process.signal(Signal::KILL);
    first.process.wait();
    assert!(fs::exists(dir.path().join("front.sock")).expect("a look"));
    let mut next = Tidegate::to(backend.address()).listen(&socket).start();
    assert_eq!(next.get("/").status, 200);
    assert_eq!(next.stop(), 0);
}

#[test]
fn a_file_in_the_place_of_a_socket_stays_and_is_told_of() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("precious.txt");
    fs::write(&file, "words").expect("written");
    let mut tidegate = Tidegate::to("127.0.0.1:1")
        .listen(&format!("unix:{}", file.display()))
        .launch();
    assert_eq!(tidegate.process.exit_code(), 3, "{}", tidegate.log());
    let log = tidegate.log();
    assert!(log.contains("is no socket; remove it, or choose"), "{log}");
    assert_eq!(fs::read_to_string(&file).expect("it stays"), "words");
}

#[test]
fn a_spool_that_cannot_be_written_to_is_told_of_at_the_start() {
    let tidegate = Tidegate::to("127.0.0.1:1")
        .set("buffers.spool_dir=/nonexistent")
        .start();
    let log = tidegate.log();
    assert!(
        log.contains("buffers.spool_dir cannot be written to"),
        "{log}"
    );
}

#[test]
fn a_state_file_that_cannot_be_written_is_told_of_at_the_start() {
    let tidegate = Tidegate::to("127.0.0.1:1")
        .set("limit.state_file=/nonexistent/state.json")
        .start();
    let log = tidegate.log();
    let told = "the directory of limit.state_file cannot be written to";
    assert!(log.contains(told), "{log}");
}

#[test]
fn a_trace_that_cannot_be_written_is_1_with_a_remedy() {
    let mut tidegate = Tidegate::to("127.0.0.1:1")
        .set("trace.file=/nonexistent/trace")
        .launch();
    assert_eq!(tidegate.process.exit_code(), 1);
    let log = tidegate.log();
    assert!(
        log.contains("/nonexistent/trace") && log.contains("make its directory"),
        "{log}"
    );
}

fn file_with(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("bad.toml");
    fs::write(&file, text).expect("a file");
    let path = file.to_str().expect("text").to_owned();
    (dir, path)
}

#[test]
fn a_bad_configuration_is_2_with_file_line_and_column() {
    let (_dir, file) = file_with("[queue]\nmax_wiat = \"1s\"\ncapacity = -1\n");
    for command in ["check", "run", "exec", "config"] {
        let mut args = vec![command, "-c", &file];
        if command == "exec" {
            args.extend(["--", "true"]);
        }
        let (code, out, err) = tidegate(&args);
        let text = out + &err;
        assert_eq!(code, 2, "{command}: {text}");
        assert!(text.contains(&format!("{file}:2:1: ")), "{command}: {text}");
        assert!(text.contains("max_wait"), "did you mean: {text}");
        assert!(
            text.contains(&format!("{file}:3:12: ")),
            "every problem: {text}"
        );
    }
    let (code, _, err) = tidegate(&["run", "-c", "no-such-file.toml"]);
    assert_eq!(code, 2);
    assert!(err.contains("no-such-file.toml"), "{err}");
    assert_eq!(tidegate(&["run", "--no-such-flag"]).0, 2);
    assert_eq!(tidegate(&["run", "--set", "queue.max_wait=soon"]).0, 2);
    assert_eq!(tidegate(&["exec"]).0, 2, "without a command");
    let (_dir, good) = file_with("[queue]\nmax_wait = \"1s\"\n");
    let (code, out, err) = tidegate(&["check", "-c", &good]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn a_taken_port_is_3_and_one_sentence() {
    let backend = Held::start();
    for (flag, other) in [("--listen", "--admin"), ("--admin", "--listen")] {
        let (code, _, err) = tidegate(&[
            "run",
            "--backend",
            "127.0.0.1:1",
            flag,
            backend.address(),
            other,
            "127.0.0.1:0",
        ]);
        assert_eq!(code, 3, "{err}");
        let said = err
            .lines()
            .find(|line| line.starts_with("tidegate: "))
            .unwrap_or_else(|| panic!("{err}"));
        assert!(
            said.contains(backend.address()) && said.contains(flag),
            "{said}"
        );
        assert!(!err.contains("panicked"), "{err}");
    }
}

/// `tidegate config`: the value of a key and where it is from.
fn effective(args: &[&str], env: &[(&str, &str)], key: &str) -> (serde_json::Value, String) {
    let output = common::tidegate_command()
        .args(["config", "--format", "json"])
        .args(args)
        .envs(env.iter().copied())
        .output()
        .expect("tidegate starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let document: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{:?}", output.stderr));
    let mut at = &document;
    for part in key.split('.') {
        at = at.get(part).unwrap_or_else(|| panic!("no {key} in {text}"));
    }
    (at["value"].clone(), at["origin"].to_string())
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default() {
    let (_dir, file) =
        file_with("[limit]\ninitial = 3\n[backend]\nendpoints = [\"127.0.0.1:3\"]\n");
    let value = |args: &[&str], env: &[(&str, &str)], key: &str| effective(args, env, key).0;
    let initial = "limit.initial";
    let env = [("TIDEGATE_LIMIT__INITIAL", "5")];
    assert_eq!(value(&[], &[], initial), 0);
    assert_eq!(value(&["-c", &file], &[], initial), 3);
    assert_eq!(value(&["-c", &file], &env, initial), 5);
    assert_eq!(value(&["-c", &file, "--limit", "7"], &env, initial), 7);
    assert_eq!(
        value(
            &["-c", &file, "--limit", "7", "--set", "limit.initial=9"],
            &env,
            initial
        ),
        9
    );
    assert_eq!(value(&[], &[("TIDEGATE_CONFIG", &file)], initial), 3);
    let short = [("TIDEGATE_BACKEND", "127.0.0.1:5,127.0.0.1:6")];
    let endpoints = "backend.endpoints";
    assert_eq!(
        value(&["-c", &file], &short, endpoints),
        serde_json::json!(["127.0.0.1:5", "127.0.0.1:6"])
    );
    assert_eq!(
        value(
            &["-c", &file, "--backend", "127.0.0.1:7"],
            &short,
            endpoints
        ),
        serde_json::json!(["127.0.0.1:7"])
    );
    let (_, origin) = effective(&["-c", &file], &env, initial);
    assert!(origin.contains("TIDEGATE_LIMIT__INITIAL"), "{origin}");
    let (_, origin) = effective(&["-c", &file], &[], initial);
    assert!(origin.contains(&file), "{origin}");
}

#[test]
fn the_environment_alone_is_enough_to_run() {
    let backend = Held::start();
    backend.release(1);
    let mut tidegate = Tidegate::run()
        .env("TIDEGATE_BACKEND", backend.address())
        .env("TIDEGATE_LIMIT__ALGORITHM", "fixed")
        .env("TIDEGATE_LIMIT__INITIAL", "6")
        .env("TIDEGATE_REJECT__STATUS", "429")
        .start();
    assert_eq!(tidegate.get("/").status, 200);
    assert_eq!(tidegate.status()["limit"], 6);
    let config = tidegate.admin_get("/config").text();
    assert!(config.contains("429"), "{config}");
    assert_eq!(tidegate.stop(), 0);
}

//! What befalls the process itself: a log that nobody reads, a processor that is taken away, signals
//! at the wrong time.

#![allow(clippy::print_stdout)] // says what it leaves out, and why

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

use common::{Client, Held, Raw, Tidegate, tidegate_command, try_get, until};
use rustix::{
    io::ioctl_fionread,
    process::{Pid, Signal, kill_process},
};

fn ok() -> Raw {
    Raw::answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into())
}

/// Ends with its value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it and reads its log up to the line that says it is ready.
fn ready(command: &mut Command) -> (Killed, BufReader<ChildStderr>, String) {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut child = Killed(child);
    let mut log = BufReader::new(child.0.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("tidegate is ready") {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "it has ended");
    }
    (child, log, line)
}

/// As in a container, where both have one environment.
#[test]
fn a_health_check_asks_where_the_file_has_the_admin_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("tidegate.toml");
    let admin = dir.path().join("admin.sock");
    let text = format!(
        "server.listen = [\"127.0.0.1:0\"]\nadmin.listen = \"unix:{}\"\nlog.format = \"json\"\n",
        admin.display()
    );
    std::fs::write(&file, &text).expect("it is written");
    let backend = ok();
    let command = |args: &[&str]| {
        let mut command = tidegate_command();
        command.args(args).env("TIDEGATE_CONFIG", &file);
        command
    };
    let (_child, _log, _) = ready(&mut command(&["run", "--backend", backend.address()]));
    let code = |args: &[&str]| command(args).output().expect("it ends").status.code();
    assert_eq!(code(&["healthcheck", "--ready"]), Some(0));
    assert_eq!(code(&["status"]), Some(0));
    // What tidegate has not taken over does not hide it.
    std::fs::write(&file, format!("{text}limit.min = 0\n")).expect("it is written");
    assert_eq!(code(&["healthcheck"]), Some(0));
    assert_eq!(code(&["healthcheck", "--admin", "127.0.0.1:1"]), Some(1));
    assert_eq!(code(&["drain", "--wait"]), Some(0));
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    let backends: Vec<Raw> = (0..8).map(|_| ok()).collect();
    let mut command = tidegate_command();
    command
        .args(["run", "--listen", "127.0.0.1:0"])
        .args(backends.iter().flat_map(|one| ["--backend", one.address()]))
        .args(["--admin", "127.0.0.1:0", "--log-format", "json"])
        .args(["--set", "log.access=all"]);
    let (mut child, mut log, mut line) = ready(&mut command);
    let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let address = ready["listen"].as_str().expect("an address");
    // Lines that a pipe takes in parts fill it, so that the last of them is cut.
    let mut client = Client::connect(address);
    let pid = Pid::from_child(&child.0);
    // A short one first: states alone might fit exactly.
    assert_eq!(client.get("/").status, 200);
    until("the pipe is full", || {
        kill_process(pid, Signal::USR2).expect("it runs");
        ioctl_fionread(log.get_ref()).is_ok_and(|held| held > 45_000)
    });
    // Far more than a pipe holds.
    let path = format!("/{}", "p".repeat(900));
    for _ in 0..300 {
        assert_eq!(client.get(&path).status, 200);
    }
    // Who reads again is told what is missing, between whole lines.
    let mut told = false;
    for _ in 0..400 {
        line.clear();
        // Of a line that was cut it is only the next event that tells where it ends.
        if !log.buffer().contains(&b'\n') {
            assert_eq!(client.get("/after").status, 200);
        }
        log.read_line(&mut line).expect("text");
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else {
            // One that was cut: nothing else is in its line.
            assert_eq!(line.matches("\"message\":").count(), 1, "{line}");
            continue;
        };
        if event["message"] == "nobody read the log, lines were lost" {
            assert!(event["lines"].as_u64() > Some(50), "{event}");
            told = true;
            break;
        }
    }
    assert!(told);
    // Nor does one that is closed.
    drop(log);
    for _ in 0..50 {
        assert_eq!(client.get(&path).status, 200);
    }
    assert!(try_get(address, "/").is_ok_and(|answer| answer.status == 200));
    assert!(child.0.try_wait().expect("a status").is_none(), "it runs");
}

#[test]
fn long_lines_of_one_thread_are_not_mixed_with_those_of_another() {
    let backends: Vec<Raw> = (0..8).map(|_| ok()).collect();
    let addresses: Vec<&str> = backends.iter().map(Raw::address).collect();
    // So many make the state of USR2 a line of more than a pipe takes at once.
    let mut tidegate = Tidegate::run()
        .set(format!("backend.endpoints={}", addresses.join(",")))
        .set("log.access=all")
        .start();
    let mut client = tidegate.client();
    for _ in 0..300 {
        tidegate.process.signal(Signal::USR2);
        for _ in 0..4 {
            assert_eq!(client.get("/").status, 200);
        }
    }
    tidegate.stop();
    for line in tidegate.log().lines() {
        let event = serde_json::from_str::<serde_json::Value>(line);
        assert!(event.is_ok(), "{line}");
    }
}

/// Everybody's time has passed when it wakes up; what is there already counts all the same.
#[test]
fn a_process_that_was_stopped_wakes_up_without_a_storm_of_timeouts() {
    const CLIENTS: usize = 8;
    let backend = Held::start();
    let mut gate = Tidegate::to(backend.address())
        .limit(CLIENTS as u32)
        .set("backend.response_timeout=1s")
        .set("server.body_timeout=1s")
        .start();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| gate.client()).collect();
    for client in &mut clients {
        client.ask("/");
    }
    gate.until_metric("tidegate_in_flight_requests", &[], CLIENTS as f64);
    gate.process.signal(Signal::STOP);
    backend.release(CLIENTS);
    std::thread::sleep(Duration::from_millis(1500));
    gate.process.signal(Signal::CONT);
    for client in &mut clients {
        let answer = client.response();
        assert_eq!((answer.status, &*answer.text()), (200, "ok"));
    }
    gate.until_idle();
    assert_eq!(gate.metric("tidegate_backend_errors_total", &[]), 0.0);
}

/// What clients and the backend were given a second for, they had no second for.
#[test]
fn the_time_in_which_a_process_is_stopped_does_not_count() {
    const STOPPED: Duration = Duration::from_secs(3);
    /// Every time-out would have passed by now.
    const LATER: Duration = Duration::from_millis(250);
    let backend = Raw::start(|mut conn| {
        while let Some(request) = conn.request() {
            if !request.line().contains("slow") {
                conn.ok("ok");
                continue;
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ");
            std::thread::sleep(STOPPED + LATER + Duration::from_millis(300));
            conn.send("whole");
        }
    });
    let mut gate = Tidegate::to(backend.address())
        .limit(10)
        .set("server.header_timeout=1s")
        .set("server.body_timeout=1s")
        .set("server.body_min_rate=1MB")
        .set("backend.read_timeout=1s")
        .start();
    let mut head = gate.client();
    head.send("GET / HTTP/1.1\r\nHost: a");
    let mut body = gate.client();
    body.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhalf ");
    let mut slow = gate.client();
    slow.ask("/slow");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    gate.process.signal(Signal::STOP);
    std::thread::sleep(STOPPED);
    gate.process.signal(Signal::CONT);
    std::thread::sleep(LATER);
    head.send("pp\r\n\r\n");
    body.send("whole");
    for (client, text) in [
        (&mut head, "ok"),
        (&mut body, "ok"),
        (&mut slow, "half whole"),
    ] {
        let answer = client.response();
        assert_eq!((answer.status, &*answer.text()), (200, text));
    }
    gate.until_idle();
    // It counts again.
    let mut late = gate.client();
    late.send("GET / HTTP/1.1\r\nHost: a");
    assert_eq!(late.response().status, 408);
}

#[test]
fn signals_during_a_drain_neither_undo_nor_hasten_it() {
    let backend = Held::start();
    let mut gate = Tidegate::to(backend.address())
        .limit(2)
        .toml("[queue]\nmax_wait = \"3s\"\n[drain]\ntimeout = \"20s\"")
        .start();
    let mut client = gate.client();
    client.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    gate.process.signal(Signal::TERM);
    gate.until_metric("tidegate_draining", &[], 1.0);
    // They mean what they always do.
    std::fs::write(gate.file(), "[queue]\nmax_wait = \"7s\"\n").expect("it can be written");
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::PIPE] {
        gate.process.signal(signal);
    }
    until("the new configuration is in force", || {
        gate.admin_get("/config")
            .text()
            .contains("max_wait = \"7s\"")
    });
    for what in ["no file to reopen", "\"state\""] {
        gate.process
            .logged(what, |log| log.contains(what).then_some(()));
    }
    std::fs::write(gate.file(), "nonsense").expect("it can be written");
    gate.process.signal(Signal::HUP);
    gate.until_metric("tidegate_config_reload_success", &[], 0.0);
    assert_eq!(gate.metric("tidegate_draining", &[]), 1.0);
    assert!(gate.process.ended().is_none());
    backend.release(1);
    assert_eq!(client.response().status, 200);
    assert_eq!(gate.process.exit_code(), 0);
}

/// Where Debian and others have it.
fn faketime() -> Option<std::path::PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let dirs = libraries.map(|entry| entry.path().join("faketime"));
    dirs.chain(["/usr/lib/faketime".into(), "/usr/local/lib/faketime".into()])
        .map(|dir| dir.join("libfaketimeMT.so.1"))
        .find(|library| library.exists())
}

/// The wall clock is for dates in headers and in the log. No timer and no sample goes by it.
#[test]
fn a_wall_clock_that_jumps_moves_nothing_but_dates() {
    const DAY: i32 = 24 * 60 * 60;
    let Some(library) = faketime() else {
        println!("skipped: libfaketime is not installed");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("offset");
    let set = |offset: i32| std::fs::write(&file, format!("{offset:+}\n")).expect("it is written");
    set(0);
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=60s")
        .env("LD_PRELOAD", &library.to_string_lossy())
        .env("FAKETIME_TIMESTAMP_FILE", &file.to_string_lossy())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start();
    let mut idle = gate.client();
    backend.release(1);
    assert_eq!(idle.get("/").status, 200);
    let (mut busy, mut queued) = (gate.client(), gate.client());
    busy.ask("/busy");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    queued.ask("/queued");
    gate.until_metric("tidegate_queued_requests", &[], 1.0);
    let mut head = gate.client();
    head.send("GET /head HTTP/1.1\r\nHost: a");
    let mut body = gate.client();
    body.send("POST /body HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhalf ");
    let connections = || gate.metric("tidegate_client_connections", &[]);
    until("all are there", || connections() == 5.0);
    let mut dates = Vec::new();
    for offset in [DAY, -DAY, 3600, -3600, 0] {
        set(offset);
        let mut bad = gate.client();
        bad.send("bad\r\n\r\n");
        let date = bad.response().header("date").expect("a date");
        dates.push(date[..16].to_owned());
        drop(bad);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 1.0);
        assert_eq!(gate.metric("tidegate_queued_requests", &[]), 1.0);
        until("none but the bad one is gone", || connections() == 5.0);
    }
    assert_ne!(dates[0], dates[1], "the clock jumps");
    head.send("pp\r\n\r\n");
    body.send("whole");
    idle.ask("/");
    backend.release(5);
    for client in [&mut busy, &mut queued, &mut head, &mut body, &mut idle] {
        assert_eq!(client.response().status, 200);
    }
    gate.until_idle();
    for (name, labels, value) in gate.metrics().samples() {
        let is_time = name.ends_with("_seconds_sum") || name.ends_with("_seconds_total");
        let fine = !is_time || (0.0..600.0).contains(value);
        assert!(fine, "{name}{labels:?} {value}");
    }
}

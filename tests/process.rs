//! What befalls the process itself: a log that nobody reads, a processor that is taken away, signals
//! at the wrong time.

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    time::Duration,
};

use common::{Client, Held, Raw, Tidegate, tidegate_command, try_get};
use rustix::process::Signal;

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

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    let backend = ok();
    let child = tidegate_command()
        .args([
            "run",
            "--backend",
            backend.address(),
            "--listen",
            "127.0.0.1:0",
        ])
        .args(["--admin", "127.0.0.1:0", "--log-format", "json"])
        .args(["--set", "log.access=all"])
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
    let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let address = ready["listen"].as_str().expect("an address");
    // Far more than a pipe holds.
    let mut client = Client::connect(address);
    let path = format!("/{}", "p".repeat(900));
    for _ in 0..300 {
        assert_eq!(client.get(&path).status, 200);
    }
    // Who reads again is told what is missing, between whole lines.
    let mut told = false;
    for _ in 0..400 {
        line.clear();
        if log.buffer().is_empty() {
            assert_eq!(client.get("/after").status, 200);
        }
        log.read_line(&mut line).expect("text");
        let event: serde_json::Value = serde_json::from_str(&line).expect("whole lines");
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

#[test]
fn signals_during_a_drain_neither_undo_nor_hasten_it() {
    let backend = Held::start();
    let mut gate = Tidegate::to(backend.address())
        .toml("[queue]\nmax_wait = \"3s\"\n[drain]\ntimeout = \"20s\"")
        .start();
    let mut client = gate.client();
    client.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    gate.process.signal(Signal::TERM);
    gate.until_metric("tidegate_draining", &[], 1.0);
    gate.process.signal(Signal::HUP);
    gate.process.signal(Signal::USR1);
    gate.process.signal(Signal::USR2);
    gate.process.signal(Signal::PIPE);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(gate.metric("tidegate_draining", &[]), 1.0);
    assert!(gate.process.ended().is_none());
    backend.release(1);
    assert_eq!(client.response().status, 200);
    assert_eq!(gate.process.exit_code(), 0);
}

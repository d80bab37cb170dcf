//! Upgrades: WebSockets between a real client and a real Flask application, and tunnels byte by byte.

mod common;

#[path = "upgrade/bytes.rs"]
mod bytes;
mod peers;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use common::{
    Client, Gunicorn, Raw, Setup, Tidegate, children, memory, request, since, until, venv::venv,
};
use peers::Peer;
use rustix::process::{Pid, Signal, kill_process};
use tidegate::clock;

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const ASK: &str = "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n";

/// `tests/apps/ws_client.py`, which is a real client.
struct WebSocket {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl WebSocket {
    /// Connected and accepted.
    #[track_caller]
    fn open(gate: &Tidegate, scenario: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps/ws_client.py");
        let mut child = Command::new(venv().join("python"))
            .args([script, gate.address(), scenario])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let mut client = Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
        };
        assert_eq!(client.says(), "open");
        client
    }

    /// Its next line; empty at its end.
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("text");
        line.trim().to_owned()
    }

    /// What it sends comes back.
    #[track_caller]
    fn echoes(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("it is open");
        writeln!(stdin, "{text}").expect("it reads");
        assert_eq!(self.says(), text);
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What must hold when no tunnel is left.
#[track_caller]
fn nothing_is_left(gate: &Tidegate) {
    gate.until_idle();
    gate.until_metric("tidegate_orphaned_requests", &[], 0.0);
    gate.until_metric("tidegate_streaming_requests", &[], 0.0);
    gate.until_metric("tidegate_client_connections", &[("state", "active")], 0.0);
    assert!(!gate.log().contains("panic"), "{}", gate.log());
}

#[track_caller]
fn is_streaming(gate: &Tidegate, count: f64) {
    gate.until_metric("tidegate_streaming_requests", &[], count);
    gate.until_metric("tidegate_in_flight_requests", &[], count);
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    let _ = kill_process(pid, Signal::KILL);
}

// --- a Flask application ---

#[test]
fn a_websocket_echoes_and_either_side_closes_it() {
    let app = Gunicorn::gthread(4);
    let gate = Tidegate::to(app.address()).set("log.access=all").start();
    let mut client = WebSocket::open(&gate, "echo");
    // Whether the application answers the client's Close is up to it.
    assert_eq!(client.says(), "echoed");
    let mut client = WebSocket::open(&gate, "closed_by_app");
    assert_eq!(client.says(), "closed 1000", "the application closes");
    nothing_is_left(&gate);
    let code = [("code", "101"), ("source", "backend")];
    assert_eq!(gate.metric("tidegate_requests_total", &code), 2.0);
    assert_eq!(gate.metric("tidegate_canceled_requests_total", &[]), 0.0);
    let logged = common::until_some("what was echoed is in the log", || {
        let mut lines = gate.events("\"/ws\"").into_iter();
        lines.find(|line| line["bytes"].as_u64() > Some(5_000))
    });
    assert_eq!(logged["status"], 101, "{logged}");
}

#[test]
fn a_tunnel_holds_its_permit_and_gives_no_sample() {
    let app = Gunicorn::gthread(4);
    let gate = Tidegate::to(app.address())
        .toml("[limit]\ninitial = 1\nmax = 1\n[queue]\nmax_wait = \"50ms\"")
        .start();
    let mut client = WebSocket::open(&gate, "stay");
    is_streaming(&gate, 1.0);
    client.echoes("one");
    let refused = gate.get("/");
    assert_eq!((refused.status, &*refused.reason()), (503, "queue_timeout"));
    client.echoes("two");
    drop(client.stdin.take());
    assert!(client.child.wait().expect("it ends").success());
    nothing_is_left(&gate);
    assert_eq!(gate.get("/").status, 200, "the permit is back");
}

#[test]
fn a_client_that_is_killed_frees_the_worker_and_its_permit() {
    let app = Gunicorn::gthread(1);
    let gate = Tidegate::to(app.address()).limit(1).start();
    let mut client = WebSocket::open(&gate, "stay");
    client.echoes("hello");
    drop(client);
    nothing_is_left(&gate);
    assert_eq!(gate.get("/").status, 200, "and the only thread is free");
}

#[test]
fn a_worker_that_is_killed_ends_its_tunnels() {
    let app = Gunicorn::gthread(4);
    let gate = Tidegate::to(app.address()).start();
    let mut clients: Vec<_> = (0..3).map(|_| WebSocket::open(&gate, "wait")).collect();
    is_streaming(&gate, 3.0);
    for worker in children(app.process.pid()) {
        kill(worker);
    }
    for client in &mut clients {
        assert_eq!(client.says(), "broken");
    }
    nothing_is_left(&gate);
    until("the next worker serves", || gate.get("/").status == 200);
}

#[test]
fn tunnels_outlive_reloads() {
    let app = Gunicorn::gthread(4);
    let mut gate = Tidegate::run()
        .toml(&format!("[backend]\nendpoints = [\"{}\"]", app.address()))
        .start();
    let mut clients: Vec<_> = (0..2).map(|_| WebSocket::open(&gate, "stay")).collect();
    let reloads = [("result", "ok")];
    for reload in 1..=20 {
        gate.process.signal(Signal::HUP);
        gate.until_metric("tidegate_config_reloads_total", &reloads, f64::from(reload));
        for client in &mut clients {
            client.echoes(&format!("after {reload}"));
        }
    }
    is_streaming(&gate, 2.0);
    drop(clients);
    nothing_is_left(&gate);
}

#[test]
fn a_drain_waits_for_tunnels_and_no_longer_than_its_timeout() {
    let app = Gunicorn::gthread(4);
    let start = |timeout: &str| {
        Tidegate::to(app.address())
            .set(format!("drain.timeout={timeout}"))
            .start()
    };
    let mut gate = start("20s");
    let mut client = WebSocket::open(&gate, "stay");
    gate.process.signal(Signal::TERM);
    gate.until_metric("tidegate_draining", &[], 1.0);
    client.echoes("still here");
    drop(client);
    let began = clock::now();
    assert_eq!(gate.process.exit_code(), 0);
    assert!(
        since(began) < Duration::from_secs(10),
        "it waits for nobody"
    );

    let mut gate = start("700ms");
    let mut client = WebSocket::open(&gate, "wait");
    let began = clock::now();
    gate.process.signal(Signal::TERM);
    assert_eq!(client.says(), "broken", "the client is told by the end");
    assert!(
        since(began) >= Duration::from_millis(650),
        "{:?}",
        since(began)
    );
    assert_eq!(gate.process.exit_code(), 0);
}

#[test]
fn server_sent_events_hold_their_permit_and_give_no_sample() {
    let app = Gunicorn::gthread(4);
    let gate = Tidegate::to(app.address())
        .toml("[limit]\ninitial = 1\nmax = 1\n[queue]\nmax_wait = \"50ms\"")
        .start();
    let mut client = gate.client();
    client.ask("/stream?n=3&ms=700");
    client.try_head().expect("a head");
    assert_eq!(client.take_chunk().expect("a chunk"), b"data: 0\n\n");
    is_streaming(&gate, 1.0);
    assert_eq!(gate.get("/").reason(), "queue_timeout");
    assert_eq!(client.take_chunk().expect("a chunk"), b"data: 1\n\n");
    assert_eq!(client.take_chunk().expect("a chunk"), b"data: 2\n\n");
    assert!(client.take_chunk().expect("the end").is_empty());
    nothing_is_left(&gate);
    assert_eq!(gate.get("/").status, 200);
}

//! Clients that leave, that do nothing, and that are too many.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    Fin,
    Rst,
}

fn leave(stream: TcpStream, how: Leave) {
    let _ = match how {
        Leave::Fin => stream.shutdown(Shutdown::Both),
        Leave::Rst => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
    };
    drop(stream);
}

/// A connection that has sent `bytes`.
fn sent(gate: &Tidegate, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gate.address()).expect("it accepts");
    stream.write_all(bytes.as_bytes()).expect("it reads");
    stream
}

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";
const TIMES: usize = 100;

/// It is counted a moment after all else is over.
#[track_caller]
fn until_canceled(gate: &Tidegate, phase: &str, count: usize) {
    let labels = [("phase", phase)];
    gate.until_metric("tidegate_canceled_requests_total", &labels, count as f64);
}

#[test]
fn clients_leave_before_their_request_is_complete() {
    let peer = Peer::start(peers::closes::at_once);
    peer.heal();
    let gate = Tidegate::to(&peer.address()).start();
    let before = Before::of(&gate);
    let parts = [
        "",
        "GET / HT",
        "GET / HTTP/1.1\r\nHost: ap",
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nhalf",
        "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ];
    for part in parts {
        for how in [Leave::Fin, Leave::Rst] {
            let clients: Vec<_> = (0..TIMES).map(|_| sent(&gate, part)).collect();
            for client in clients {
                leave(client, how);
            }
        }
    }
    before.holds_again(&gate);
    assert_eq!(peer.accepted(), 0, "the backend saw none of it");
    assert_healthy(&gate, "half requests");
}

#[test]
fn clients_leave_the_queue() {
    let peer = Peer::start(peers::slow::when_healed);
    let gate = Tidegate::to(&peer.address())
        .limit(1)
        .set("queue.capacity=1000")
        .set("queue.max_wait=60s")
        .start();
    let before = Before::of(&gate);
    let mut first = gate.client();
    first.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    for how in [Leave::Fin, Leave::Rst] {
        let clients: Vec<_> = (0..TIMES).map(|_| sent(&gate, GET)).collect();
        gate.until_metric("tidegate_queued_requests", &[], TIMES as f64);
        for client in clients {
            leave(client, how);
        }
        gate.until_metric("tidegate_queued_requests", &[], 0.0);
    }
    until_canceled(&gate, "queued", 2 * TIMES);
    peer.heal();
    assert_eq!(first.response().text(), "good\n");
    drop(first);
    before.holds_again(&gate);
    assert_eq!(peer.accepted(), 1, "who has left is not sent on");
    assert_healthy(&gate, "a queue that everybody left");
}

#[test]
fn clients_leave_while_the_backend_works() {
    let peer = Peer::start(peers::slow::when_healed);
    let gate = Tidegate::to(&peer.address())
        .limit(200)
        .set("queue.max_wait=60s")
        .set("backend.connect_timeout=30s")
        .start();
    let before = Before::of(&gate);
    let clients: Vec<_> = (0..2 * TIMES).map(|_| sent(&gate, GET)).collect();
    gate.until_metric("tidegate_in_flight_requests", &[], 200.0);
    until("the backend has them all", || peer.asked() == 200);
    for (number, client) in clients.into_iter().enumerate() {
        leave(
            client,
            if number % 2 == 0 {
                Leave::Fin
            } else {
                Leave::Rst
            },
        );
    }
    gate.until_metric("tidegate_orphaned_requests", &[], 200.0);
    assert_eq!(
        gate.metric("tidegate_in_flight_requests", &[]),
        200.0,
        "the backend still works on them"
    );
    until_canceled(&gate, "in_flight", 200);
    peer.heal();
    before.holds_again(&gate);
    assert_healthy(&gate, "orphans");
}

#[test]
fn clients_leave_in_the_middle_of_the_answer() {
    // More than both sockets hold.
    let peer = Peer::start(peers::slow::large(10_000_000));
    let gate = Tidegate::to(&peer.address())
        .limit(20)
        .set("queue.max_wait=60s")
        .start();
    let before = Before::of(&gate);
    for how in [Leave::Fin, Leave::Rst] {
        for _ in 0..TIMES / 10 {
            let mut clients: Vec<_> = (0..10).map(|_| sent(&gate, GET)).collect();
            for client in &mut clients {
                let mut some = [0; 1000];
                client.read_exact(&mut some).expect("the answer has begun");
            }
            for client in clients {
                leave(client, how);
            }
        }
    }
    peer.heal();
    before.holds_again(&gate);
    until_canceled(&gate, "responding", 2 * TIMES);
    assert_healthy(&gate, "answers that nobody read");
}

/// For tests that hold many connections themselves.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Several times, of which the machine may spoil all but one.
#[track_caller]
fn prompt(served: impl Fn()) {
    let took = (0..5).map(|_| {
        let started = clock::now();
        served();
        since(started)
    });
    let quickest = took.min().expect("five");
    assert!(quickest < Duration::from_millis(500), "{quickest:?}");
}

#[test]
fn idle_connections_delay_nobody() {
    allow_many_descriptors();
    let peer = Peer::start(peers::closes::at_once);
    peer.heal();
    let gate = Tidegate::to(&peer.address()).start();
    let before = Before::of(&gate);
    let mut idle: Vec<_> = (0..500).map(|_| sent(&gate, "")).collect();
    idle.extend((0..500).map(|_| {
        let mut client = sent(&gate, GET);
        let mut some = [0; 4096];
        assert!(client.read(&mut some).is_ok_and(|read| read > 0));
        client
    }));
    gate.until_metric("tidegate_client_connections", &[("state", "idle")], 1000.0);
    prompt(|| assert_healthy(&gate, "1000 idle connections"));
    drop(idle);
    before.holds_again(&gate);
}

#[test]
fn slow_heads_delay_nobody_and_are_cut_off() {
    allow_many_descriptors();
    let app = Gunicorn::sync(2);
    let gate = Tidegate::to(app.address())
        .set("server.header_timeout=3s")
        .start();
    let before = Before::of(&gate);
    let mut slow: Vec<_> = (0..200)
        .map(|_| sent(&gate, "GET / HTTP/1.1\r\nHost: app\r\nX-Slow: "))
        .collect();
    prompt(|| assert_eq!(gate.get("/").status, 200));
    gate.until_metric("tidegate_in_flight_requests", &[], 0.0);
    for client in &mut slow {
        let mut answer = String::new();
        client.set_read_timeout(Some(PROMPT)).expect("a timeout");
        client
            .read_to_string(&mut answer)
            .expect("an answer, then the end");
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("request_timeout"), "{answer}");
    }
    drop(slow);
    before.holds_again(&gate);
}

/// A tidegate that may open no more than so many files.
fn with_descriptors(most: u32, backend: &str) -> Process {
    let tidegate = tidegate_command();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {most}; exec \"$@\""), "sh"])
        .arg(tidegate.get_program())
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--log-format", "json", "--backend", backend]);
    for (name, value) in tidegate.get_envs() {
        assert_eq!(value, None);
        command.env_remove(name);
    }
    Process::start("tidegate", &mut command)
}

/// Where it and its admin server listen, as its log says.
fn addresses(log: &str) -> Option<(String, String)> {
    let line = log
        .lines()
        .find(|line| line.contains("tidegate is ready"))?;
    let ready: serde_json::Value = serde_json::from_str(line).ok()?;
    let field = |key: &str| {
        let value = ready.get(key).or_else(|| ready.get("fields")?.get(key));
        value.and_then(|value| value.as_str()).map(str::to_owned)
    };
    Some((field("listen")?, field("admin")?))
}

/// The CPU time that a process has used.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(')').expect("the command's end");
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum();
    // The kernel's user-visible tick is 10 ms.
    Duration::from_millis(ticks * 10)
}

/// With hardly enough of them it does not start; where it does, it does not turn clients away for ever.
#[test]
fn whoever_is_ready_listens_even_without_descriptors() {
    let peer = Peer::start(peers::closes::at_once);
    for most in 13..=20 {
        let mut process = with_descriptors(most, &peer.address());
        until("it is ready, or gives up", || {
            process.ended().is_some() || addresses(&process.log()).is_some()
        });
        let Some((listen, _)) = addresses(&process.log()) else {
            continue;
        };
        for _ in 0..20 {
            let client = TcpStream::connect(&listen);
            assert!(client.is_ok(), "{most}: {client:?}\n{}", process.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn out_of_descriptors_it_waits_and_recovers() {
    let peer = Peer::start(peers::closes::at_once);
    peer.heal();
    let mut process = with_descriptors(64, &peer.address());
    let (listen, admin) = process.logged("its addresses", addresses);
    let metric = |name: &str| {
        let answer = try_get(&admin, "/metrics").expect("the admin server answers");
        common::Metrics::parse(&answer.text()).sum(name, &[])
    };
    let clients: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(&listen).expect("the kernel accepts"))
        .collect();
    until("it has as many as it can", || {
        metric("tidegate_client_connections") >= 15.0
    });
    let (started, used) = (clock::now(), cpu_time(process.pid()));
    std::thread::sleep(Duration::from_secs(1));
    let used = (cpu_time(process.pid()) - used).as_secs_f64() / since(started).as_secs_f64();
    assert!(used < 0.2, "{used} of a core while there is nothing to do");

    // The oldest have made room for the last.
    let mut last = &clients[199];
    last.write_all(GET.as_bytes()).expect("it reads");
    last.set_read_timeout(Some(PROMPT)).expect("a timeout");
    let mut answer = [0; 15];
    last.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let mut first = &clients[0];
    first.set_read_timeout(Some(PROMPT)).expect("a timeout");
    assert_eq!(first.read(&mut answer).expect("an end"), 0);

    drop(clients);
    until("it serves as before", || {
        try_get(&listen, "/").is_ok_and(|answer| answer.status == 200)
    });
    until("nobody is left", || {
        metric("tidegate_client_connections") == 0.0
    });
}

//! What goes wrong on either side of tidegate, and that nothing of it stays: after each fault no
//! request is in flight, queued or buffered, the descriptors are back, and the next request is 200.

mod common;
mod peers;

#[path = "faults/clients.rs"]
mod clients;
#[path = "faults/gunicorn.rs"]
mod gunicorn;

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixListener,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{
    Client, Gunicorn, Process, Response, Setup, Tidegate, children, descriptors, since,
    tidegate_command, try_get, until,
};
use peers::{Conn, Peer};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tidegate::clock;

/// Time-outs that a test can wait for. The limit is left to the law, to see what it makes of faults.
const IMPATIENT: &str = r#"
[backend]
connect_timeout = "300ms"
response_timeout = "1s"
read_timeout = "1s"
orphan_max = "300ms"
[limit]
initial = 4
"#;

/// The same, where nothing but a peer that has no CPU is waited for.
fn patient() -> Setup {
    Tidegate::run()
        .toml(IMPATIENT)
        .set("backend.response_timeout=20s")
        .set("backend.read_timeout=20s")
}

/// The answer to any of these faults is there within this, on a machine with other things to do.
const PROMPT: Duration = Duration::from_secs(15);

/// What the client sees of a fault.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// The backend's answer, whole.
    Answer(u16),
    /// tidegate's: status and reason.
    Refused(u16, &'static str),
    /// An answer that visibly breaks off, or `backend_reset` instead.
    Torn,
    /// The same, because nothing more came for too long.
    GivenUp,
    /// A connection that is reset before anyone could use it: whether it was one at all depends on
    /// when the kernel says so.
    Unusable,
}

const RESET: Want = Want::Refused(502, "backend_reset");
const PROTOCOL: Want = Want::Refused(502, "backend_protocol");
const TIMEOUT: Want = Want::Refused(504, "backend_timeout");

/// One request to a backend with a fault, then what must hold after any fault.
fn meets(
    name: &str,
    fault: impl Fn(&mut Conn) -> io::Result<()> + Send + Sync + 'static,
    body: usize,
    want: Want,
) {
    let setup = match want {
        Want::Refused(504, _) | Want::GivenUp => Tidegate::run().toml(IMPATIENT),
        _ => patient(),
    };
    meets_with(name, setup, fault, body, want);
}

fn meets_with(
    name: &str,
    setup: Setup,
    fault: impl Fn(&mut Conn) -> io::Result<()> + Send + Sync + 'static,
    body: usize,
    want: Want,
) {
    let peer = Peer::start(fault);
    let gate = setup.backend(&peer.address()).start();
    let before = Before::of(&gate);
    let started = clock::now();
    let answer = if body == 0 {
        try_get(gate.address(), "/")
    } else {
        post(gate.address(), body)
    };
    let took = since(started);
    let about = format!("{name}: {answer:?} after {took:?}");
    assert!(took < PROMPT, "{about}");
    match (want, &answer) {
        (Want::Answer(status), Ok(answer)) => {
            assert_eq!((answer.status, &*answer.reason()), (status, ""), "{about}");
        }
        (Want::Refused(status, reason), Ok(answer)) => {
            assert_eq!(
                (answer.status, &*answer.reason()),
                (status, reason),
                "{about}"
            );
            assert_eq!(answer.json()["reason"], reason, "{about}");
            let kind = match reason {
                "backend_unreachable" => "connect",
                other => other.trim_start_matches("backend_"),
            };
            let counted = gate.metric("tidegate_backend_errors_total", &[("kind", kind)]);
            assert_eq!(counted, 1.0, "{about}: counted as {kind}");
            if status == 504 {
                assert!(took >= Duration::from_millis(990), "{about}");
            }
        }
        (Want::Torn | Want::GivenUp, Ok(answer)) => {
            assert_eq!(answer.reason(), "backend_reset", "{about}");
        }
        (Want::Torn | Want::GivenUp, Err(_)) => {}
        (Want::Unusable, Ok(answer)) => {
            let reasons = ["backend_reset", "backend_unreachable"];
            assert!(reasons.contains(&&*answer.reason()), "{about}");
            assert_eq!(answer.status, 502, "{about}");
        }
        _ => panic!("{about}"),
    }
    peer.heal();
    before.holds_again(&gate);
    assert_healthy(&gate, name);
}

#[track_caller]
fn assert_healthy(gate: &Tidegate, name: &str) {
    let answer = gate.get("/");
    assert_eq!(
        (answer.status, &*answer.text()),
        (200, "good\n"),
        "after {name}: {answer:?}"
    );
}

/// A POST whose sender goes on reading when the server has stopped to.
fn post(address: &str, length: usize) -> io::Result<Response> {
    let mut client = Client::try_connect(address)?;
    let mut writer = client.writer();
    let upload = std::thread::spawn(move || {
        let head = format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n");
        let _ = writer.try_send(head);
        let _ = writer.try_send("x".repeat(length));
    });
    let answer = client.try_response("POST");
    drop(client);
    upload.join().expect("no panic");
    answer
}

/// How a tidegate was before the fault.
struct Before {
    descriptors: Vec<String>,
}

impl Before {
    fn of(gate: &Tidegate) -> Self {
        // By the time it answers, what it opens at its start is open. No Host: the backend is spared.
        let mut client = gate.client();
        client.send("GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert_eq!(client.response().status, 400);
        drop(client);
        gate.metrics();
        Self {
            descriptors: descriptors(gate.pid()),
        }
    }

    /// More than those, and than what the sensors keep open from their first look on, which may come later.
    fn has_more_open(&self, gate: &Tidegate) -> bool {
        descriptors(gate.pid()).len() > self.descriptors.len() + 2
    }

    /// What must hold when a fault is over: nothing of it is left, in the gate or in the process.
    #[track_caller]
    fn holds_again(&self, gate: &Tidegate) {
        gate.until_idle();
        gate.until_metric("tidegate_orphaned_requests", &[], 0.0);
        gate.until_metric("tidegate_streaming_requests", &[], 0.0);
        gate.until_metric("tidegate_buffered_bytes", &[], 0.0);
        gate.until_metric("tidegate_client_connections", &[], 0.0);
        let started = clock::now();
        while self.has_more_open(gate) {
            assert!(
                since(started) < PROMPT,
                "open before: {:?}, and now: {:?}",
                self.descriptors,
                descriptors(gate.pid())
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!gate.log().contains("panic"), "{}", gate.log());
    }
}

#[test]
fn a_backend_that_accepts_and_closes() {
    use peers::closes::*;
    meets("closes at once", at_once, 0, RESET);
    meets("closes at once, POST", at_once, 1000, RESET);
    meets("closes after the request", after_the_request, 0, RESET);
    meets("closes after the POST", after_the_request, 1000, RESET);
}

#[test]
fn a_backend_that_never_answers() {
    use peers::silent::*;
    meets("silent", forever, 0, TIMEOUT);
    meets("silent, POST", forever, 1000, TIMEOUT);
}

#[test]
fn a_backend_that_never_reads() {
    use peers::deaf::*;
    meets("deaf", forever, 0, TIMEOUT);
    meets("deaf, a body in memory", forever, 100_000, TIMEOUT);
    meets("deaf, a streamed body", forever, 20_000_000, TIMEOUT);
}

#[test]
fn a_backend_that_answers_half_a_head() {
    use peers::half_head::*;
    meets("half a head, then FIN", then_closes, 0, RESET);
    meets("half a head, then FIN, POST", then_closes, 1000, RESET);
    meets("half a head, then silence", then_silence, 0, TIMEOUT);
}

#[test]
fn a_backend_that_answers_half_a_body() {
    use peers::half_body::*;
    let text = str::to_owned;
    meets("short half", then_closes(text(SHORT)), 0, RESET);
    meets("short half, stalled", then_silence(text(SHORT)), 0, TIMEOUT);
    meets("long half", then_closes(long()), 0, Want::Torn);
    let stalled = then_silence(long());
    meets("long half, stalled", stalled, 0, Want::GivenUp);
    meets("half the chunks", then_closes(text(CHUNKED)), 0, Want::Torn);
    let stalled = then_silence(text(CHUNKED));
    meets("half the chunks, stalled", stalled, 0, Want::GivenUp);
}

#[test]
fn an_answer_that_the_backend_breaks_off_is_no_client_that_left() {
    use peers::half_body::*;
    is_told_of("reset", then_closes(long()));
    is_told_of("timeout", then_silence(CHUNKED.to_owned()));
}

/// The fault is counted as the backend's, and has a line in the log.
fn is_told_of(kind: &str, half: impl Fn(&mut Conn) -> io::Result<()> + Send + Sync + 'static) {
    let peer = Peer::start(half);
    let setup = Tidegate::run().toml(IMPATIENT).backend(&peer.address());
    let mut gate = setup.start();
    let mut client = gate.client();
    client.send("GET /half HTTP/1.1\r\nHost: app\r\n\r\n");
    assert_eq!(client.try_head().expect("the head is there").status, 200);
    // All there is.
    while client.read_some().is_ok_and(|read| read > 0) {}
    gate.until_metric("tidegate_client_connections", &[], 0.0);
    let count = |name, labels: &[_]| gate.metric(name, labels);
    let errors = count("tidegate_backend_errors_total", &[("kind", kind)]);
    assert_eq!(errors, 1.0, "{kind}");
    assert_eq!(count("tidegate_backend_errors_total", &[]), 1.0, "{kind}");
    let canceled = count("tidegate_canceled_requests_total", &[]);
    assert_eq!(canceled, 0.0, "{kind}");
    let reason = format!("\"backend_{kind}\"");
    let line = gate.process.logged("the line of the request", |log| {
        let line = log.lines().find(|line| line.contains("\"/half\""))?;
        Some(line.to_owned())
    });
    assert!(line.contains(&reason), "{line}");
    assert!(line.contains("\"source\":\"backend\""), "{line}");
}

#[test]
fn a_backend_that_answers_a_byte_at_a_time() {
    use peers::trickle::*;
    let (slow, steady) = (Duration::from_millis(150), Duration::from_millis(400));
    meets("a slow head", all(slow), 0, TIMEOUT);
    // Twice the read timeout in all, and never that long between two bytes.
    let setup = || patient().set("backend.read_timeout=2s");
    meets_with("a slow body", setup(), body(steady), 0, Want::Answer(200));
    let fault = chunks(steady);
    meets_with("slow chunks", setup(), fault, 0, Want::Answer(200));
}

#[test]
fn a_backend_that_resets() {
    use peers::resets::*;
    let head = "HTTP/1.1 200 OK\r\nContent-Le";
    let large = peers::half_body::long;
    meets("RST at once", at_once, 0, Want::Unusable);
    meets("RST at once, POST", at_once, 300_000, Want::Unusable);
    meets("RST in the request", in_the_request, 0, RESET);
    meets("RST in the POST", in_the_request, 5_000_000, RESET);
    meets("RST for an answer", after(String::new()), 0, RESET);
    meets("RST in the head", after(head.to_owned()), 0, RESET);
    meets(
        "RST in a short body",
        after(peers::half_body::SHORT.to_owned()),
        0,
        RESET,
    );
    meets("RST in a long body", after(large()), 0, Want::Torn);
    meets(
        "RST in the chunks",
        after(peers::half_body::CHUNKED.to_owned()),
        0,
        Want::Torn,
    );
}

#[test]
fn a_backend_that_says_more_than_its_answer() {
    use peers::garbage_after::*;
    for keepalive in [false, true] {
        let setup = || patient().set(format!("backend.keepalive={keepalive}"));
        meets_with("garbage", setup(), bytes, 0, Want::Answer(200));
        meets_with("garbage, POST", setup(), bytes, 1000, Want::Answer(200));
        meets_with("two answers", setup(), second_answer, 0, Want::Answer(200));
    }
}

#[test]
fn a_backend_that_contradicts_itself() {
    use peers::two_lengths::*;
    meets("two lengths", answer(FIELDS), 0, PROTOCOL);
    meets("a list of lengths", answer(LIST), 0, PROTOCOL);
}

#[test]
fn a_backend_that_does_not_speak_http() {
    for text in peers::not_http::ANSWERS {
        meets(text, peers::not_http::answer(text), 0, PROTOCOL);
    }
}

#[test]
fn a_backend_that_switches_protocols_unasked() {
    meets("101", peers::switches::unasked, 0, PROTOCOL);
    meets("101 to a POST", peers::switches::unasked, 1000, PROTOCOL);
}

#[test]
fn a_backend_that_sends_interim_answers() {
    use peers::informational::*;
    meets("a few", a_few, 0, Want::Answer(200));
    meets("a flood", flood, 0, PROTOCOL);
    meets("a flood, POST", flood, 1000, PROTOCOL);
}

#[test]
fn a_backend_whose_head_does_not_end() {
    use peers::endless_head::*;
    meets("fields", fields, 0, PROTOCOL);
    meets("one field", field, 0, PROTOCOL);
}

#[test]
fn a_backend_that_answers_before_it_has_the_body() {
    use peers::early_answer::*;
    meets("reads on, small", then_reads, 1000, Want::Answer(413));
    meets("reads on, large", then_reads, 5_000_000, Want::Answer(413));
    meets("closes, small", then_closes, 1000, Want::Answer(413));
    meets("closes, large", then_closes, 5_000_000, Want::Answer(413));
}

#[test]
fn a_backend_that_closes_idle_connections_under_the_next_request() {
    use peers::closes_idle::*;
    type Fault = fn(&mut Conn) -> io::Result<()>;
    let faults: [(&str, Fault); 3] = [
        ("FIN", under_the_next),
        ("RST", resets_the_next),
        ("unannounced", right_away),
    ];
    for (name, fault) in faults {
        let peer = Peer::start(fault);
        let gate = patient()
            .backend(&peer.address())
            .set("backend.keepalive=true")
            .start();
        let before = Before::of(&gate);
        for _ in 0..10 {
            assert_healthy(&gate, name);
        }
        // What must not be sent twice is not: it goes over a new connection, or fails.
        std::thread::sleep(Duration::from_millis(300));
        let fresh = post(gate.address(), 10).expect("an answer");
        assert_eq!(fresh.status, 200, "{name}: idle for too long to be trusted");
        peer.heal();
        until("idle connections are closed", || {
            !before.has_more_open(&gate)
        });
        before.holds_again(&gate);
        assert_healthy(&gate, name);
    }
}

#[test]
fn nobody_listens() {
    let peer = Peer::start(peers::closes::at_once);
    let (address, port) = reserved();
    let gate = Tidegate::to(&address).toml(IMPATIENT).start();
    let before = Before::of(&gate);
    for _ in 0..50 {
        let answer = gate.get("/");
        assert_eq!(
            (answer.status, &*answer.reason()),
            (502, "backend_unreachable")
        );
        assert_eq!(answer.header("retry-after"), None);
    }
    assert_eq!(gate.metric("tidegate_concurrency_limit", &[]), 4.0);
    assert_eq!(gate.metric("tidegate_backend_up", &[]), 0.0);
    assert_eq!(gate.admin_get("/readyz").status, 503);
    before.holds_again(&gate);
    drop((peer, port));
}

/// An address that refuses connections for as long as the socket is kept.
fn reserved() -> (String, socket2::Socket) {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).expect("a port");
    let address = socket.local_addr().expect("an address");
    let address = address.as_socket().expect("TCP");
    (address.to_string(), socket)
}

/// Listens with room for hardly anybody, and accepts nobody.
fn full_backlog(socket: &socket2::Socket) {
    socket.listen(1).expect("it listens");
}

/// Connections that the backend never accepts, until the kernel takes no more.
fn fill(address: &str) -> Vec<TcpStream> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    waiting
}

#[test]
fn a_tcp_backlog_that_is_full() {
    let (address, socket) = reserved();
    full_backlog(&socket);
    let waiting = fill(&address);
    let gate = Tidegate::to(&address).toml(IMPATIENT).start();
    let before = Before::of(&gate);
    let started = clock::now();
    let answer = gate.get("/");
    assert_eq!(
        (answer.status, &*answer.reason()),
        (502, "backend_unreachable")
    );
    assert!((Duration::from_millis(290)..PROMPT).contains(&since(started)));
    before.holds_again(&gate);

    drop(waiting);
    let peer = Peer::on(socket.into(), peers::closes::at_once);
    peer.heal();
    until("the backend has worked off its backlog", || {
        gate.get("/").status == 200
    });
    before.holds_again(&gate);
}

/// Of two endpoints the one that accepts nobody would look idle.
#[test]
fn an_endpoint_that_accepts_nobody_comes_last() {
    let (address, socket) = reserved();
    full_backlog(&socket);
    let other = Peer::start(peers::closes::at_once);
    other.heal();
    let gate = patient()
        .set(format!("backend.endpoints={address},{}", other.address()))
        .start();
    // It accepted when tidegate looked at it first.
    let waiting = fill(&address);
    for _ in 0..20 {
        assert_eq!(gate.get("/").status, 200);
    }
    let errors = |endpoint: &str| {
        let labels = [("endpoint", endpoint)];
        gate.metric("tidegate_backend_errors_total", &labels)
    };
    assert!(errors(&address) <= 4.0, "few had to wait");
    assert_eq!(errors(&other.address()), 0.0);

    // It is looked at, and is one of two again.
    drop(waiting);
    let peer = Peer::on(socket.into(), peers::closes::at_once);
    peer.heal();
    until("both are used", || {
        assert_eq!(gate.get("/").status, 200);
        peer.asked() > 0
    });
}

#[test]
fn a_unix_backlog_that_is_full_is_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.sock");
    let socket =
        socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
    let name = socket2::SockAddr::unix(&path).expect("an address");
    socket.bind(&name).expect("it binds");
    full_backlog(&socket);
    let mut waiting = Vec::new();
    loop {
        let one = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
            .expect("a socket");
        one.set_nonblocking(true).expect("it does not block");
        match one.connect(&name) {
            Ok(()) => waiting.push(one),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
    let gate = Tidegate::to(&format!("unix:{}", path.display()))
        .set("backend.connect_timeout=30s")
        .start();
    let before = Before::of(&gate);
    let mut client = gate.client();
    client.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    client.set_timeout(Duration::from_millis(200));
    assert!(
        client.read_some().is_err(),
        "no answer while there is no room"
    );

    client.set_timeout(PROMPT);
    drop(waiting);
    let listener: UnixListener = socket.into();
    let server = std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            if stream.read(&mut head).is_ok_and(|read| read > 0) {
                let _ = stream.write_all(peers::GOOD.as_bytes());
                return;
            }
        }
    });
    let answer = client.response();
    assert_eq!((answer.status, &*answer.text()), (200, "good\n"));
    assert_eq!(gate.metric("tidegate_backend_errors_total", &[]), 0.0);
    server.join().expect("no panic");
    drop(client);
    before.holds_again(&gate);
}

//! What goes wrong on either side of tidegate, and that nothing of it stays: after each fault no
//! request is in flight, queued or buffered, the descriptors are back, and the next request is 200.

mod common;
mod peers;

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
response_timeout = "400ms"
read_timeout = "400ms"
orphan_max = "300ms"
[limit]
initial = 4
"#;

/// The answer to any of these faults is there within this, on a machine with other things to do.
const PROMPT: Duration = Duration::from_secs(5);

// --- the backend ---

/// What the client sees of a fault.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// The backend's answer, whole.
    Answer(u16),
    /// tidegate's: status and reason.
    Refused(u16, &'static str),
    /// An answer that visibly breaks off, or `backend_reset` instead.
    Torn,
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
    meets_with(name, Tidegate::run().toml(IMPATIENT), fault, body, want);
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
                assert!(took >= Duration::from_millis(390), "{about}");
            }
        }
        (Want::Torn, Ok(answer)) => {
            assert_eq!(answer.reason(), "backend_reset", "{about}");
        }
        (Want::Torn, Err(_)) => {}
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

    /// The invariants of RELIABILITY section 10.
    #[track_caller]
    fn holds_again(&self, gate: &Tidegate) {
        gate.until_idle();
        gate.until_metric("tidegate_orphaned_requests", &[], 0.0);
        gate.until_metric("tidegate_streaming_requests", &[], 0.0);
        gate.until_metric("tidegate_buffered_bytes", &[], 0.0);
        gate.until_metric("tidegate_client_connections", &[], 0.0);
        let open = || descriptors(gate.pid());
        let started = clock::now();
        while open().len() > self.descriptors.len() {
            assert!(
                since(started) < PROMPT,
                "open before: {:?}, and now: {:?}",
                self.descriptors,
                open()
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
    meets("long half, stalled", then_silence(long()), 0, Want::Torn);
    meets("half the chunks", then_closes(text(CHUNKED)), 0, Want::Torn);
    let stalled = then_silence(text(CHUNKED));
    meets("half the chunks, stalled", stalled, 0, Want::Torn);
}

#[test]
fn a_backend_that_answers_a_byte_at_a_time() {
    use peers::trickle::*;
    let (slow, steady) = (Duration::from_millis(150), Duration::from_millis(80));
    meets("a slow head", all(slow), 0, TIMEOUT);
    // Twice the read timeout in all, and never that long between two bytes.
    meets("a slow body", body(steady), 0, Want::Answer(200));
    meets("slow chunks", chunks(steady), 0, Want::Answer(200));
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
        let setup = || {
            Tidegate::run()
                .toml(IMPATIENT)
                .set(format!("backend.keepalive={keepalive}"))
        };
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
        let gate = Tidegate::to(&peer.address())
            .toml(IMPATIENT)
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
            descriptors(gate.pid()).len() <= before.descriptors.len()
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

#[test]
fn a_tcp_backlog_that_is_full() {
    let (address, socket) = reserved();
    full_backlog(&socket);
    let addr: SocketAddr = address.parse().expect("an address");
    // Connections that the backend never accepts, until the kernel takes no more.
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        waiting.push(stream);
    }
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

// --- gunicorn ---

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(pid, signal).expect("a signal");
}

/// A request in flight, in a thread of its own.
fn in_the_background(gate: &Tidegate, path: &'static str) -> JoinHandle<Response> {
    let address = gate.address().to_owned();
    std::thread::spawn(move || common::get(&address, path))
}

#[test]
fn a_worker_is_killed() {
    let app = Gunicorn::sync(1);
    let gate = Tidegate::to(app.address()).start();
    let before = Before::of(&gate);
    let request = in_the_background(&gate, "/sleep?ms=30000");
    until("the worker has it", || app.started("/sleep") == 1);
    for worker in children(app.process.pid()) {
        signal(worker, Signal::KILL);
    }
    let answer = request.join().expect("no panic");
    assert_eq!((answer.status, &*answer.reason()), (502, "backend_reset"));
    // The master starts another, and the kernel holds the request until then.
    assert_eq!(gate.get("/").status, 200);
    before.holds_again(&gate);
}

#[test]
fn the_master_and_its_workers_are_killed() {
    // An address of its own, so that nobody else is given the port meanwhile.
    let mut app = Gunicorn::bound("127.77.1.1:0", &["--workers", "2"]);
    let address = app.address().to_owned();
    let gate = Tidegate::to(&address).start();
    let before = Before::of(&gate);
    assert_eq!(gate.get("/").status, 200);
    let request = in_the_background(&gate, "/sleep?ms=30000");
    until("the worker has it", || app.started("/sleep") == 1);
    app.process.kill();
    let answer = request.join().expect("no panic");
    assert_eq!((answer.status, &*answer.reason()), (502, "backend_reset"));
    // A worker that dies a moment later than the others still listened.
    until("nobody listens", || TcpStream::connect(&address).is_err());
    for _ in 0..10 {
        let answer = gate.get("/");
        assert_eq!(
            (answer.status, &*answer.reason()),
            (502, "backend_unreachable")
        );
    }
    before.holds_again(&gate);

    let next = Gunicorn::bound(&address, &["--workers", "2"]);
    let back = clock::now();
    until("it serves again", || gate.get("/").status == 200);
    assert!(since(back) < Duration::from_secs(1), "{:?}", since(back));
    assert_eq!(gate.metric("tidegate_backend_up", &[]), 1.0);
    before.holds_again(&gate);
    drop(next);
}

#[test]
fn a_worker_is_stopped() {
    let app = Gunicorn::sync(1);
    let worker = children(app.process.pid())[0];
    for orphan_max in ["60s", "600ms"] {
        let gate = Tidegate::to(app.address())
            .set("backend.response_timeout=400ms")
            .set(format!("backend.orphan_max={orphan_max}"))
            .start();
        let before = Before::of(&gate);
        signal(worker, Signal::STOP);
        let answer = gate.get("/");
        assert_eq!((answer.status, &*answer.reason()), (504, "backend_timeout"));
        if orphan_max == "60s" {
            gate.until_metric("tidegate_orphaned_requests", &[], 1.0);
            assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 1.0);
            signal(worker, Signal::CONT);
            before.holds_again(&gate);
        } else {
            before.holds_again(&gate);
            signal(worker, Signal::CONT);
        }
        until("the worker works again", || gate.get("/").status == 200);
    }
}

/// GETs by some clients that keep their connections, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<usize>>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    fn start(gate: &Tidegate, clients: usize, path: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let clients = (0..clients)
            .map(|_| {
                let (stop, failures) = (stop.clone(), failures.clone());
                let mut client = gate.client();
                std::thread::spawn(move || {
                    let mut served = 0;
                    while !stop.load(Relaxed) {
                        client.ask(path);
                        match client.try_response("GET") {
                            Ok(answer) if answer.status == 200 => served += 1,
                            other => {
                                failures.lock().expect("whole").push(format!("{other:?}"));
                                return served;
                            }
                        }
                    }
                    served
                })
            })
            .collect();
        Self {
            stop,
            clients,
            failures,
        }
    }

    /// How many were served; fails if one was not.
    #[track_caller]
    fn stop(self) -> usize {
        self.stop.store(true, Relaxed);
        let served = self
            .clients
            .into_iter()
            .map(|it| it.join().expect("no panic"));
        let served = served.sum();
        let failures = self.failures.lock().expect("whole");
        assert!(failures.is_empty(), "{served} served, but: {failures:#?}");
        served
    }
}

#[test]
fn gunicorn_is_told_to_reload_under_load() {
    for class in ["sync", "gthread"] {
        let threads = ["--threads", "2"];
        let mut args = vec!["--workers", "2", "--worker-class", class];
        args.extend(
            (class == "gthread")
                .then_some(threads)
                .into_iter()
                .flatten(),
        );
        let mut app = Gunicorn::start(&args);
        let gate = Tidegate::to(app.address())
            .set("queue.max_wait=30s")
            .set(format!("backend.keepalive={}", class == "gthread"))
            .start();
        let before = Before::of(&gate);
        let load = Load::start(&gate, 4, "/");
        for _ in 0..3 {
            let workers = children(app.process.pid());
            app.process.signal(Signal::HUP);
            until("the old workers are gone", || {
                let now = children(app.process.pid());
                now.len() >= 2 && !workers.iter().any(|old| now.contains(old))
            });
        }
        load.stop();
        until("idle connections are closed", || {
            descriptors(gate.pid()).len() <= before.descriptors.len()
        });
        before.holds_again(&gate);
    }
}

#[test]
fn gunicorn_recycles_its_workers() {
    for keepalive in [false, true] {
        let app = Gunicorn::start(&[
            "--workers",
            "2",
            "--worker-class",
            "gthread",
            "--threads",
            "2",
            "--max-requests",
            "40",
        ]);
        let gate = Tidegate::to(app.address())
            .set("queue.max_wait=30s")
            .set(format!("backend.keepalive={keepalive}"))
            .start();
        let first = children(app.process.pid());
        let load = Load::start(&gate, 4, "/");
        until("every worker was recycled, more than once", || {
            app.started("/") > 250
        });
        load.stop();
        until("other workers run", || {
            let now = children(app.process.pid());
            now.len() == 2 && !first.iter().any(|old| now.contains(old))
        });
        gate.until_idle();
    }
}

#[test]
fn a_unix_socket_comes_late_goes_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.sock");
    let address = format!("unix:{}", path.display());
    let gate = Tidegate::to(&address).start();
    let before = Before::of(&gate);
    for _ in 0..2 {
        let answer = gate.get("/");
        assert_eq!(
            (answer.status, &*answer.reason()),
            (502, "backend_unreachable")
        );
        before.holds_again(&gate);
        let mut app = Gunicorn::bound(&address, &["--workers", "1"]);
        let back = clock::now();
        until("it serves", || gate.get("/").status == 200);
        assert!(since(back) < Duration::from_secs(1));
        app.process.kill();
        let _ = fs::remove_file(&path);
    }
}

// --- clients ---

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

fn canceled(gate: &Tidegate, phase: &str) -> f64 {
    gate.metric("tidegate_canceled_requests_total", &[("phase", phase)])
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
    assert_eq!(canceled(&gate, "queued"), 2.0 * TIMES as f64);
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
    assert_eq!(canceled(&gate, "in_flight"), 200.0);
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
    assert_eq!(canceled(&gate, "responding"), 2.0 * TIMES as f64);
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
    for _ in 0..5 {
        let started = clock::now();
        assert_healthy(&gate, "1000 idle connections");
        assert!(since(started) < Duration::from_millis(500));
    }
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
    for _ in 0..5 {
        let started = clock::now();
        assert_eq!(gate.get("/").status, 200);
        assert!(since(started) < Duration::from_millis(500));
    }
    assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 0.0);
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

/// A tidegate that may open no more than 64 files, and where it listens.
fn with_64_descriptors(backend: &str) -> (Process, String, String) {
    let tidegate = tidegate_command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 64; exec \"$@\"", "sh"])
        .arg(tidegate.get_program())
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--log-format", "json", "--backend", backend]);
    for (name, value) in tidegate.get_envs() {
        assert_eq!(value, None);
        command.env_remove(name);
    }
    let mut process = Process::start("tidegate", &mut command);
    let (listen, admin) = process.logged("its addresses", |log| {
        let line = log
            .lines()
            .find(|line| line.contains("tidegate is ready"))?;
        let ready: serde_json::Value = serde_json::from_str(line).ok()?;
        let field = |key: &str| {
            let value = ready.get(key).or_else(|| ready.get("fields")?.get(key));
            value.and_then(|value| value.as_str()).map(str::to_owned)
        };
        Some((field("listen")?, field("admin")?))
    });
    (process, listen, admin)
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

#[test]
fn out_of_descriptors_it_waits_and_recovers() {
    let peer = Peer::start(peers::closes::at_once);
    peer.heal();
    let (process, listen, admin) = with_64_descriptors(&peer.address());
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

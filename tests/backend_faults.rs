//! Faults of backends beyond single answers: those of the uwsgi protocol, of servers whose limits are
//! not the usual ones, of backends that come and go, and of uploads that nobody takes or completes.
#![allow(missing_docs)]

mod common;
mod peers;
#[path = "backend_faults/uploads.rs"]
mod uploads;

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use common::{Client, PATIENCE, Raw, Tidegate, memory, request, since, until};
use peers::{GOOD, Peer};
use rustix::{
    net::sockopt::set_socket_linger,
    process::{Pid, Resource, Rlimit, getrlimit, prlimit},
};
use tidegate::clock;

/// A uwsgi server on a port of its own: reads a packet and as much body as it announces, then does
/// what it is told with the variables.
struct Uwsgi {
    address: String,
    asked: Arc<AtomicUsize>,
}

type Vars = Vec<(String, String)>;

fn var<'a>(vars: &'a Vars, name: &str) -> &'a str {
    let found = vars.iter().find(|(known, _)| known == name);
    found.map_or("", |(_, value)| value)
}

impl Uwsgi {
    fn start(
        serve: impl Fn(&mut TcpStream, &Vars, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let serve = Arc::new(serve);
        // It ends with the process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (serve, counted) = (serve.clone(), counted.clone());
                std::thread::spawn(move || -> io::Result<()> {
                    let mut header = [0; 4];
                    stream.read_exact(&mut header)?;
                    let mut packet =
                        vec![0; usize::from(u16::from_le_bytes([header[1], header[2]]))];
                    stream.read_exact(&mut packet)?;
                    let vars = vars(&packet);
                    let length = var(&vars, "CONTENT_LENGTH").parse().unwrap_or(0);
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body)?;
                    counted.fetch_add(1, SeqCst);
                    serve(&mut stream, &vars, &body)
                });
            }
        });
        Self { address, asked }
    }
}

fn vars(mut packet: &[u8]) -> Vars {
    let mut next = || {
        let (length, rest) = packet.split_first_chunk::<2>()?;
        let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        packet = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let mut vars = Vec::new();
    while let (Some(name), Some(value)) = (next(), next()) {
        vars.push((name, value));
    }
    vars
}

fn answer(stream: &mut TcpStream, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn to_uwsgi(server: &Uwsgi) -> common::Setup {
    Tidegate::to(&server.address)
        .set("backend.protocol=uwsgi")
        .set("backend.orphan_max=300ms")
}

#[test]
fn a_uwsgi_server_gets_packets_and_bodies_one_on_each_connection() {
    let server = Uwsgi::start(|stream, vars, body| {
        let seen = format!(
            "{} {} {} {}",
            var(vars, "REQUEST_METHOD"),
            var(vars, "PATH_INFO"),
            var(vars, "REMOTE_ADDR"),
            body.len(),
        );
        answer(stream, &seen)?;
        // One request each: whatever else came would be an error of tidegate's.
        let more = stream.read(&mut [0; 16])?;
        assert_eq!(more, 0, "nothing follows");
        Ok(())
    });
    let tidegate = to_uwsgi(&server)
        .set("backend.keepalive=true")
        .set("backend.dechunk=false")
        .set("buffers.request=64KiB")
        .start();
    let mut client = tidegate.client();
    for _ in 0..3 {
        assert_eq!(client.get("/a%20b").text(), "GET /a b 127.0.0.1 0");
        client.send("POST /p HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send("3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
        assert_eq!(client.response().text(), "POST /p 127.0.0.1 6");
        client.send("POST /p HTTP/1.1\r\nHost: app\r\nContent-Length: 200000\r\n\r\n");
        client.send("x".repeat(200_000));
        assert_eq!(client.response().text(), "POST /p 127.0.0.1 200000");
        client.send("HEAD /h HTTP/1.1\r\nHost: app\r\n\r\n");
        let head = client.response_to("HEAD");
        assert_eq!(head.header("content-length").as_deref(), Some("19"));
    }
    let reused = [("reused", "true")];
    let reused = tidegate.metric("tidegate_backend_connections_total", &reused);
    assert_eq!(reused, 0.0);

    // A body that ends somewhere beyond what can be held has no form in this protocol.
    client.send("POST /p HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        let _ = client.try_send(format!("8000\r\n{}\r\n", "y".repeat(0x8000)));
    }
    let refused = client.response();
    assert_eq!(
        (refused.status, &*refused.reason()),
        (413, "body_too_large")
    );
    tidegate.until_idle();
    tidegate.until_metric("tidegate_buffered_bytes", &[], 0.0);
}

/// uWSGI's own WebSockets answer with a 101 over its protocol as over HTTP, and raw bytes follow.
#[test]
fn a_uwsgi_server_switches_protocols() {
    let server = Uwsgi::start(|stream, vars, _| {
        if var(vars, "HTTP_UPGRADE") != "websocket" {
            return answer(stream, "no upgrade");
        }
        assert_eq!(var(vars, "HTTP_CONNECTION"), "upgrade");
        assert_eq!(var(vars, "HTTP_SEC_WEBSOCKET_KEY"), "eA==");
        stream.write_all(
            b"HTTP/1.1 101 Web Socket Protocol Handshake\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
        )?;
        let mut reader = stream.try_clone()?;
        io::copy(&mut reader, stream).map(|_| ())
    });
    let tidegate = to_uwsgi(&server).start();
    let mut client = tidegate.client();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n\r\n",
    );
    assert_eq!(client.try_head().expect("a head").status, 101);
    assert_eq!(client.take_through(b"hello").expect("bytes"), b"hello");
    for _ in 0..3 {
        client.send("there and back.");
        client.take_through(b"there and back.").expect("an echo");
    }
    tidegate.until_metric("tidegate_streaming_requests", &[], 1.0);
    drop(client);
    tidegate.until_idle();
    assert_eq!(tidegate.get("/").text(), "no upgrade");
}

#[test]
fn a_uwsgi_server_that_misbehaves() {
    let server = Uwsgi::start(|stream, vars, _| match var(vars, "PATH_INFO") {
        "/closes" => Ok(()),
        "/resets" => socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)),
        "/half" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        "/silent" => stream.read(&mut [0]).map(|_| ()),
        "/uwsgi" => stream.write_all(b"\0\x05\0\0hello"),
        "/until-close" => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nto the end"),
        _ => answer(stream, "good"),
    });
    let tidegate = to_uwsgi(&server)
        .set("backend.response_timeout=2s")
        .set("backend.read_timeout=2s")
        .start();
    for (path, status, reason) in [
        ("/closes", 502, "backend_reset"),
        ("/resets", 502, "backend_reset"),
        ("/half", 502, "backend_reset"),
        ("/silent", 504, "backend_timeout"),
        ("/uwsgi", 502, "backend_protocol"),
    ] {
        let before = server.asked.load(SeqCst);
        let got = tidegate.get(path);
        assert_eq!((got.status, &*got.reason()), (status, reason), "{path}");
        assert_eq!(server.asked.load(SeqCst), before + 1, "{path}: once");
        assert_eq!(tidegate.get("/").text(), "good", "after {path}");
    }
    assert_eq!(tidegate.get("/until-close").text(), "to the end");
    tidegate.until_idle();
    tidegate.until_metric("tidegate_orphaned_requests", &[], 0.0);
}

/// A server that closes without a word when the variables exceed `limit`.
fn with_buffer_size(limit: usize) -> Uwsgi {
    Uwsgi::start(move |stream, vars, _| {
        let size: usize = vars
            .iter()
            .map(|(name, value)| 4 + name.len() + value.len())
            .sum();
        if size > limit || var(vars, "PATH_INFO") == "/crash" {
            return Ok(());
        }
        answer(stream, "good")
    })
}

fn status_of_large(tidegate: &Tidegate, path: &str) -> (u16, String) {
    let field = "a".repeat(5_000);
    let got = request(tidegate.address(), "GET", path, &[("X-Large", &field)], b"");
    (got.status, got.reason())
}

const TOO_LARGE: (u16, &str) = (431, "headers_too_large");

fn is(got: &(u16, String), expected: (u16, &str)) {
    assert_eq!((got.0, &*got.1), expected);
}

#[test]
fn the_usual_buffer_size_is_learned() {
    let server = with_buffer_size(4096);
    let tidegate = to_uwsgi(&server).start();
    for _ in 0..10 {
        is(&status_of_large(&tidegate, "/"), TOO_LARGE);
        assert_eq!(tidegate.get("/").status, 200);
    }
    assert_eq!(server.asked.load(SeqCst), 10 + 3, "three were enough");
    let errors = tidegate.metric("tidegate_backend_errors_total", &[]);
    assert_eq!(errors, 0.0, "it is not the backend's fault");
}

#[test]
fn a_larger_buffer_size_is_used() {
    let server = with_buffer_size(32 * 1024);
    let tidegate = to_uwsgi(&server).start();
    is(&status_of_large(&tidegate, "/"), (200, ""));
    for _ in 0..5 {
        // It has taken as much before: this is something else.
        is(
            &status_of_large(&tidegate, "/crash"),
            (502, "backend_reset"),
        );
        is(&status_of_large(&tidegate, "/"), (200, ""));
    }
}

#[test]
fn a_server_that_is_named_is_not_bothered_with_what_it_would_not_take() {
    let server = with_buffer_size(32 * 1024);
    let tidegate = to_uwsgi(&server).set("backend.profile=uwsgi").start();
    is(&status_of_large(&tidegate, "/"), TOO_LARGE);
    let target = format!("/?{}", "q".repeat(3_000));
    let got = tidegate.get(&target);
    assert_eq!((got.status, &*got.reason()), (414, "target_too_long"));
    assert_eq!(server.asked.load(SeqCst), 0);
    assert_eq!(tidegate.get("/").status, 200);
}

/// The backend comes and goes; there is never more at it than the limit allows, and when it stays,
/// everybody is served.
#[test]
fn a_backend_that_flaps() {
    let (held, address) = common::raw::reserved_port();
    drop(held);
    let tidegate = Tidegate::to(&address)
        .set("limit.initial=4")
        .set("limit.max=4")
        .start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let status = tidegate.get("/").status;
                    assert!(matches!(status, 200 | 502 | 503), "{status}");
                }
            });
        }
        for _ in 0..6 {
            let peer = Peer::on(bound(&address), |conn| {
                conn.request()?;
                conn.send(GOOD)
            });
            until("it is asked again", || peer.accepted() > 20);
            let in_flight = tidegate.metric("tidegate_in_flight_requests", &[]);
            assert!(in_flight <= 4.0, "{in_flight}");
            drop(peer);
            std::thread::sleep(Duration::from_millis(150));
        }
        stop.store(true, Relaxed);
    });
    let _peer = Peer::on(bound(&address), |conn| {
        conn.request()?;
        conn.send(GOOD)
    });
    let back = clock::now();
    until("it serves", || tidegate.get("/").status == 200);
    stop.store(false, Relaxed);
    std::thread::scope(|scope| {
        // One alone, that comes and goes, has no use for more than it has.
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Relaxed) && since(back) < PATIENCE {
                    let status = tidegate.get("/").status;
                    assert!(matches!(status, 200 | 503), "{status}");
                }
            });
        }
        until("the limit is back", || {
            tidegate.metric("tidegate_concurrency_limit", &[]) >= 2.0
        });
        stop.store(true, Relaxed);
    });
    assert!(since(back) < Duration::from_secs(25), "{:?}", since(back));
    tidegate.until_idle();
}

/// The address may still be in the hands of the connections that ended on it.
fn bound(address: &str) -> TcpListener {
    common::until_some("the port is free", || {
        let address: std::net::SocketAddr = address.parse().expect("an address");
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
        socket.set_reuse_address(true).ok()?;
        socket.bind(&address.into()).ok()?;
        socket.listen(128).ok()?;
        Some(socket.into())
    })
}

/// To a client of HTTP/1.0 the end of the connection is the end of an answer without a length, so a torn one must
/// not end like a whole one.
#[test]
fn a_torn_answer_without_a_length_ends_in_a_reset() {
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let ends = Mutex::new(ends);
    let backend = Raw::start(move |mut conn| {
        let Some(request) = conn.request() else {
            return;
        };
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        let _ = ends.lock().expect("one at a time").recv();
        if request.line().contains("whole") {
            conn.send("0\r\n\r\n");
        }
    });
    let tidegate = Tidegate::to(backend.address()).start();
    for path in ["/whole", "/torn"] {
        let mut client = tidegate.client();
        client.send(format!("GET {path} HTTP/1.0\r\nHost: app\r\n\r\n"));
        let got = client.take_through(b"\r\n\r\nhello").expect("a part");
        assert!(got.starts_with(b"HTTP/1.0 200 OK\r\n"), "{got:?}");
        end.send(()).expect("it waits");
        let read = client.read_some().map_err(|error| error.kind());
        match path {
            "/whole" => assert_eq!(read, Ok(0)),
            _ => assert_eq!(read, Err(io::ErrorKind::ConnectionReset)),
        }
    }
    tidegate.until_idle();
}

// --- our own shortage ---

/// Without a descriptor for a connection to it, nothing is known of the backend.
#[test]
fn a_backend_is_not_down_because_descriptors_are_used_up() {
    let backend = Raw::start(|mut conn| {
        while conn.request().is_some() {
            conn.ok("ok");
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    let pid = Pid::from_raw(gate.pid() as i32);
    let before = getrlimit(Resource::Nofile);
    let allow = |current: Option<u64>| {
        let maximum = before.maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).expect("it is ours");
    };
    let mut client = gate.client();
    assert_eq!(client.get("/").status, 200);
    allow(Some(1));
    let refused = client.get("/");
    allow(before.maximum);
    assert_eq!((refused.status, refused.reason()), (503, "memory".into()));
    assert!(refused.header("retry-after").is_some());
    assert!(refused.text().contains("nothing is left here"));
    assert_eq!(gate.get("/").status, 200);
    assert!(!gate.log().contains("does not accept"), "{}", gate.log());
    assert_eq!(gate.metric("tidegate_backend_errors_total", &[]), 0.0);
    gate.until_idle();
}

/// It is told so at its first write after that: only then is it free for the next request.
#[test]
fn a_worker_whose_streams_client_has_left_is_told_at_once() {
    let (told, tells) = std::sync::mpsc::channel();
    let backend = Raw::start(move |mut conn| {
        let Some(request) = conn.request() else {
            return;
        };
        if request.line().starts_with("GET /events") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 0\n\n");
            let _ = told.send(conn.ends_in_a_reset());
        } else {
            conn.ok("ok");
        }
    });
    let tidegate = Tidegate::to(backend.address()).limit(1).start();
    let mut client = TcpStream::connect(tidegate.address()).expect("a connection");
    write!(client, "GET /events HTTP/1.1\r\nHost: app\r\n\r\n").expect("it is sent");
    let (mut seen, mut part) = (Vec::new(), [0; 4096]);
    while !seen.windows(7).any(|window| window == b"data: 0") {
        let read = client.read(&mut part).expect("an event");
        assert!(read > 0, "{seen:?}");
        seen.extend_from_slice(&part[..read]);
    }
    // Nobody wonders whether it has only closed its sending side.
    set_socket_linger(&client, Some(Duration::ZERO)).expect("a reset");
    drop(client);
    assert!(tells.recv_timeout(PATIENCE).expect("an end"));
    tidegate.until_idle();
    assert_eq!(tidegate.get("/").status, 200);
}

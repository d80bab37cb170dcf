//! Slow and hostile clients: what they cost, and that others do not notice them.

#![allow(clippy::print_stdout)] // the figures are for reports

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{
    Client, Held, Raw, Tidegate,
    frames::{self, frame},
    memory,
    raw::Conn,
    since, until,
};
use tidegate::clock;

/// A healthy request takes no longer, however many others do harm.
const SOON: Duration = Duration::from_secs(2);

fn ok() -> Raw {
    Raw::answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into())
}

/// Answers like this where it is asked for /large, and briefly elsewhere.
fn large_by(answer: impl Fn(&mut Conn) + Send + Sync + 'static) -> Raw {
    Raw::start(move |mut conn| {
        let Some(request) = conn.request() else {
            return;
        };
        if request.line().contains("/large") {
            answer(&mut conn);
        } else {
            conn.ok("ok");
        }
    })
}

/// Answers with so many bytes, of a declared length.
fn large(bytes: usize) -> Raw {
    large_by(move |conn| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
        let _ = conn.send(head) && conn.send(vec![b'x'; bytes]);
    })
}

/// The same in chunks, so that nobody knows how many there will be.
fn large_in_chunks(bytes: usize) -> Raw {
    large_by(move |conn| {
        let mut chunk = b"10000\r\n".to_vec();
        chunk.resize(chunk.len() + 0x10000, b'x');
        chunk.extend_from_slice(b"\r\n");
        let _ = conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            && (0..bytes / 0x10000).all(|_| conn.send(&chunk))
            && conn.send("0\r\n\r\n");
    })
}

#[track_caller]
fn assert_prompt(gate: &Tidegate) {
    let started = clock::now();
    assert_eq!(gate.get("/").status, 200);
    assert!(since(started) < SOON, "it took {:?}", since(started));
}

fn idle(gate: &Tidegate) -> f64 {
    gate.metric("tidegate_client_connections", &[("state", "idle")])
}

#[test]
fn a_half_closed_client_gets_its_answer_and_one_that_has_left_does_not_wait() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=60s")
        .start();
    // One in flight, one in the queue, both with nothing more to say.
    let mut first = gate.client();
    first.ask("/first").shutdown_write();
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    let mut second = gate.client();
    second.ask("/second").shutdown_write();
    gate.until_metric("tidegate_queued_requests", &[], 1.0);
    // One that half-closes first, and leaves then.
    let mut third = gate.client();
    third.ask("/third").shutdown_write();
    gate.until_metric("tidegate_queued_requests", &[], 2.0);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(gate.metric("tidegate_queued_requests", &[]), 2.0);
    drop(third);
    gate.until_metric("tidegate_queued_requests", &[], 1.0);
    backend.release(2);
    for client in [&mut first, &mut second] {
        assert_eq!(client.response().text(), "ok");
        assert!(client.is_closed());
    }
    gate.until_idle();
    let paths: Vec<String> = backend.requests().iter().map(|r| r.line().into()).collect();
    assert_eq!(paths, ["GET /first HTTP/1.1", "GET /second HTTP/1.1"]);
}

#[test]
fn a_half_closed_client_gets_a_large_answer_whole() {
    let backend = large(3_000_000);
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.ask("/large").shutdown_write();
    let answer = client.response();
    assert_eq!((answer.status, answer.body.len()), (200, 3_000_000));
    assert!(client.is_closed());
}

/// To HTTP/1.0 the end of the connection is the end of the body.
#[test]
fn an_answer_that_is_given_up_does_not_look_whole() {
    let backend = large_in_chunks(50_000_000);
    let gate = Tidegate::to(backend.address())
        .set("server.write_timeout=200ms")
        .start();
    let mut client = gate.client();
    client.send("GET /large HTTP/1.0\r\nHost: app\r\n\r\n");
    // It reads nothing.
    gate.until_metric("tidegate_canceled_requests_total", &[], 1.0);
    gate.until_metric("tidegate_client_connections", &[("state", "active")], 0.0);
    let error = loop {
        match client.read_some() {
            Ok(0) => panic!("it looks whole"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn the_oldest_idle_connection_makes_room() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .set("server.max_connections=3")
        .start();
    // The first is busy, the others are idle.
    let mut busy = gate.client();
    busy.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    backend.release(2);
    assert_eq!(busy.response().status, 200);
    let mut older = gate.client();
    assert_eq!(older.get("/").status, 200);
    busy.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    backend.release(1);
    let mut younger = gate.client();
    // It takes the one release that there is, or the busy one does: both get theirs.
    younger.ask("/");
    backend.release(1);
    assert_eq!(younger.response().status, 200);
    assert_eq!(busy.response().status, 200);

    let mut newest = gate.client();
    assert!(older.is_closed(), "it has been idle for the longest");
    backend.release(3);
    for client in [&mut newest, &mut younger, &mut busy] {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn more_slow_heads_than_connections_delay_nobody() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("server.max_connections=50")
        .start();
    let slow: Vec<Client> = (0..200)
        .map(|_| {
            let mut client = gate.client();
            client.send("GET / HTTP/1.1\r\nHost: app\r\nX-Slow");
            client
        })
        .collect();
    for _ in 0..3 {
        assert_prompt(&gate);
    }
    drop(slow);
    gate.until_metric("tidegate_client_connections", &[], 0.0);
}

#[test]
fn heads_that_do_not_end_stay_within_the_budget() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("buffers.total=1MiB")
        .start();
    let head = format!(
        "GET / HTTP/1.1\r\nHost: app\r\nX-Long: {}",
        "x".repeat(60_000)
    );
    let clients: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = gate.client();
            let _ = client.try_send(&head);
            client
        })
        .collect();
    let refused = [("reason", "memory")];
    until("there is no room for all of them", || {
        gate.metric("tidegate_rejected_requests_total", &refused) >= 50.0
    });
    assert!(gate.metric("tidegate_buffered_bytes", &[]) <= 1024.0 * 1024.0);
    assert_prompt(&gate);
    drop(clients);
    gate.until_metric("tidegate_buffered_bytes", &[], 0.0);
}

#[test]
fn idle_connections_cost_little() {
    const COUNT: usize = 1000;
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    for _ in 0..50 {
        assert_eq!(gate.get("/").status, 200);
    }
    let before = memory(gate.pid()).0;
    let clients: Vec<Client> = (0..COUNT)
        .map(|_| {
            let mut client = gate.client();
            assert_eq!(client.get("/").status, 200);
            client
        })
        .collect();
    until("all are idle", || idle(&gate) >= COUNT as f64);
    let each = memory(gate.pid()).0.saturating_sub(before) / COUNT as u64;
    assert!(each < 16 * 1024, "{each} bytes for an idle connection");
    assert_prompt(&gate);
    // They are as good as new.
    for mut client in clients.into_iter().step_by(50) {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn slow_readers_cost_little_and_delay_nobody() {
    slow_readers(&large(10_000_000), 100);
}

/// Of these, some are held in the hope that it was all: the fewer, the more there are.
#[test]
fn slow_readers_of_chunks_cost_little_too() {
    slow_readers(&large_in_chunks(10_000_000), 300);
}

#[test]
fn an_answer_in_chunks_that_fits_costs_no_worker() {
    let backend = large_in_chunks(196_608);
    let gate = Tidegate::to(backend.address()).limit(1).start();
    let mut slow = gate.client();
    slow.ask("/large");
    gate.until_metric("tidegate_backend_connections_total", &[], 1.0);
    // Nobody has read any of it.
    gate.until_idle();
    assert_eq!(slow.response().body.len(), 196_608);
}

fn slow_readers(backend: &Raw, count: usize) {
    let gate = Tidegate::to(backend.address())
        .limit(count as u32 + 10)
        .start();
    for _ in 0..50 {
        assert_eq!(gate.get("/").status, 200);
    }
    let before = memory(gate.pid()).0;
    let clients: Vec<Client> = (0..count)
        .map(|_| {
            let mut client = gate.client();
            client.ask("/large");
            client
        })
        .collect();
    gate.until_metric("tidegate_in_flight_requests", &[], count as f64);
    let held = || gate.metric("tidegate_buffered_bytes", &[("direction", "response")]);
    let mut last = 0.0;
    until("as much as ever will be is held of their answers", || {
        let before = std::mem::replace(&mut last, held());
        std::thread::sleep(Duration::from_millis(200));
        last > 1e6 && last == before
    });
    for _ in 0..10 {
        assert_prompt(&gate);
    }
    let each = memory(gate.pid()).0.saturating_sub(before) / count as u64;
    let counted = held() as u64 / count as u64;
    println!("{count} slow readers: {each} bytes each, {counted} of them counted");
    assert!(
        each < 128 * 1024,
        "{each} bytes for a slow reader, {counted} of them counted"
    );
    drop(clients);
    gate.until_idle();
    gate.until_metric("tidegate_buffered_bytes", &[], 0.0);
}

/// Of a full socket the kernel says that it takes something again when a third of its buffer is free, and a slow client
/// takes longer for so much than it may take for nothing.
#[test]
fn a_client_that_reads_slowly_is_not_given_up() {
    const LENGTH: usize = 24 << 20;
    let backend = large(LENGTH);
    let gate = Tidegate::to(backend.address())
        .set("server.write_timeout=2s")
        .start();
    let open = (1_u32 << 30).to_be_bytes();
    let window = [&frames::INITIAL_WINDOW_SIZE.to_be_bytes()[..], &open].concat();
    let flags = frames::END_STREAM | frames::END_HEADERS;
    let http2 = [
        frames::PREFACE.to_vec(),
        frame(frames::SETTINGS, 0, 0, &window),
        frame(frames::WINDOW_UPDATE, 0, 0, &open),
        frame(frames::HEADERS, flags, 1, &frames::get("/large")),
    ];
    let http1 = b"GET /large HTTP/1.1\r\nHost: app\r\n\r\n";
    let clients = [http1.to_vec(), http2.concat()].map(|request| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        socket.set_recv_buffer_size(64 << 10).expect("an option");
        let address: std::net::SocketAddr = gate.address().parse().expect("an address");
        socket.connect(&address.into()).expect("it accepts");
        std::thread::spawn(move || {
            let mut stream = TcpStream::from(socket);
            stream.write_all(&request).expect("it reads");
            let (start, mut read, mut part) = (clock::now(), 0, vec![0; 64 << 10]);
            while read < LENGTH {
                let slowly = since(start) < Duration::from_secs(6);
                let most = if slowly { 4 << 10 } else { part.len() };
                match stream.read(&mut part[..most]) {
                    Ok(0) | Err(_) => break,
                    Ok(some) => read += some,
                }
                if slowly {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            read
        })
    });
    for client in clients {
        let read = client.join().expect("it reads");
        assert!(read >= LENGTH, "{read} bytes");
    }
    gate.until_idle();
}

#[test]
fn a_hundred_requests_in_one_write() {
    let working = AtomicUsize::new(0);
    let most = Arc::new(AtomicUsize::new(0));
    let backend = Raw::start({
        let most = most.clone();
        move |mut conn| {
            while let Some(request) = conn.request() {
                most.fetch_max(working.fetch_add(1, SeqCst) + 1, SeqCst);
                let path = request.line().to_owned();
                working.fetch_sub(1, SeqCst);
                conn.ok(&path);
            }
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    for body in ["", "hello"] {
        let all: String = (0..100)
            .map(|at| {
                let length = body.len();
                format!("GET /{at} HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n{body}")
            })
            .collect();
        let mut client = gate.client();
        client.send(all);
        for at in 0..100 {
            assert_eq!(client.response().text(), format!("GET /{at} HTTP/1.1"));
        }
    }
    assert_eq!(most.load(SeqCst), 1, "one at a time for each connection");
}

#[test]
fn who_is_refused_amid_an_upload_can_read_why() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("server.max_body_bytes=1000")
        .set("log.access=all")
        .start();
    let upload = vec![b'x'; 700_000];
    for (head, status) in [
        (
            "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 700000\r\n\r\n",
            413,
        ),
        (
            "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\naae60\r\n",
            413,
        ),
        ("POST / HTTP/1.1\r\nHost: app\r\nBad Name: 1\r\n\r\n", 400),
    ] {
        let mut client = gate.client();
        client.send(head);
        let _ = client.try_send(&upload);
        assert_eq!(client.response().status, status, "{head}");
        assert!(client.is_closed());
    }
    until("the access log has the head that could not be read", || {
        gate.events("bad_request").iter().any(|line| {
            line["path"] == "-" && line["status"] == 400 && line["client"] == "127.0.0.1"
        })
    });
    assert!(backend.requests().is_empty());
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", gate.pid())).map_or(0, Iterator::count);
    assert_eq!(gate.get("/").status, 200);
    gate.until_metric("tidegate_client_connections", &[], 0.0);
    let before = descriptors();
    for turn in 0..2000 {
        let mut stream = TcpStream::connect(gate.address()).expect("it accepts");
        match turn % 4 {
            0 => {}
            1 => stream.write_all(b"GET / HT").expect("it reads"),
            2 => stream
                .write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")
                .expect("it reads"),
            _ => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
    assert_prompt(&gate);
    gate.until_idle();
    gate.until_metric("tidegate_client_connections", &[], 0.0);
    until("all descriptors are back", || descriptors() <= before + 2);
}

#[test]
fn tls_and_garbage_are_told_at_once() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"\x00",
        b"\xff\xff\xff\xff",
    ] {
        let mut stream = TcpStream::connect(gate.address()).expect("it accepts");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.write_all(garbage).expect("it reads");
        let mut answer = [0; 12];
        stream
            .read_exact(&mut answer)
            .expect("an answer, without more to read");
        assert_eq!(&answer, b"HTTP/1.1 400");
    }
}

//! What becomes of bodies and connections at the edges: memory that is spent, uploads that are refused or left, ends
//! that must not look like others.

use std::io::{self, Read as _, Write as _};

use super::*;
use common::raw::Held;

const MIB: usize = 1024 * 1024;

#[test]
fn a_body_that_is_here_does_not_wait_for_the_budget() {
    const ALL: usize = 64 * 1024;
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("buffers.request=64KiB")
        .set("buffers.response=64KiB")
        .set("buffers.total=64KiB")
        .set("queue.max_wait=30s")
        .set("server.body_timeout=1s")
        .start();
    let mut first = tidegate.client();
    first.ask("/");
    tidegate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    let mut large = tidegate.client();
    large.send(format!(
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {ALL}\r\n\r\n{}",
        "a".repeat(ALL)
    ));
    tidegate.until_metric("tidegate_queued_requests", &[], 1.0);
    let mut small = tidegate.client();
    small.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\nhi");
    tidegate.until_metric("tidegate_queued_requests", &[], 2.0);
    backend.release(3);
    for client in [&mut first, &mut large, &mut small] {
        assert_eq!(client.response().status, 200);
    }
    tidegate.until_idle();
}

#[test]
fn a_client_that_leaves_amid_a_large_upload_leaves_the_queue() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=60s")
        .start();
    let mut first = tidegate.client();
    first.ask("/");
    tidegate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    for (position, by_reset) in [(1.0, true), (2.0, false)] {
        let stream = std::net::TcpStream::connect(tidegate.address()).expect("it listens");
        // More than is read ahead, and all of it in the kernel's hands when it ends.
        let length = 10 * MIB;
        let part = vec![b'a'; 256 * 1024 + 4096];
        (&stream)
            .write_all(
                format!("POST /left HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n")
                    .as_bytes(),
            )
            .and_then(|()| (&stream).write_all(&part))
            .expect("it is taken");
        tidegate.until_metric("tidegate_queued_requests", &[], 1.0);
        if by_reset {
            let socket = socket2::SockRef::from(&stream);
            socket
                .set_linger(Some(Duration::ZERO))
                .expect("it is one of TCP");
        }
        drop(stream);
        tidegate.until_metric("tidegate_queued_requests", &[], 0.0);
        let left = tidegate.metric("tidegate_canceled_requests_total", &[("phase", "queued")]);
        assert_eq!(left, position);
    }
    backend.release(1);
    assert_eq!(first.response().status, 200);
    tidegate.until_idle();
    assert_eq!(backend.requests().len(), 1, "nothing else was sent");
}

#[test]
fn whoever_sends_all_of_a_refused_upload_reads_why() {
    let backend = echo_backend();
    let mut tidegate = Tidegate::to(backend.address())
        .set("server.max_body_bytes=1MiB")
        .start();
    let length = 24 * MIB;
    for head in [
        format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n"),
        // What is no head at all is refused the same way.
        "POST / HTTP/1.1\r\nHost : app\r\n\r\n".to_owned(),
    ] {
        let mut client = tidegate.client();
        client.send(&head);
        let part = vec![b'a'; MIB];
        for _ in 0..24 {
            client.send(&part);
        }
        let answer = client.response();
        assert!(matches!(answer.status, 413 | 400), "{answer:?}");
    }
    // Who goes on sending does not keep tidegate from ending.
    assert_eq!(tidegate.process.stop(), 0);
}

#[test]
fn a_connection_without_a_word_ends_without_one() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address())
        .set("server.header_timeout=1s")
        .set("log.access=all")
        .start();
    let (mut silent, mut blank, mut begun) =
        (tidegate.client(), tidegate.client(), tidegate.client());
    blank.send("\r\n");
    begun.send("GET / HT");
    assert!(silent.is_closed());
    assert!(blank.is_closed());
    let refused = begun.response();
    assert_eq!(
        (refused.status, refused.reason().as_str()),
        (408, "request_timeout")
    );
    assert_eq!(
        tidegate.metric("tidegate_rejected_requests_total", &[]),
        1.0
    );
}

#[test]
fn half_of_an_answer_that_goes_to_the_end_does_not_look_whole_when_tidegate_ends() {
    let backend = Raw::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\n\r\nhalf");
        conn.sees_end_within(PATIENCE);
    });
    let mut tidegate = Tidegate::to(backend.address())
        .set("drain.timeout=1s")
        .start();
    let mut stream = std::net::TcpStream::connect(tidegate.address()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
        .write_all(b"GET / HTTP/1.0\r\nHost: app\r\n\r\n")
        .expect("it is taken");
    let mut answer = Vec::new();
    while !answer.ends_with(b"half") {
        let mut part = [0; 1024];
        let count = stream.read(&mut part).expect("more of it");
        assert!(count > 0, "it has ended");
        answer.extend_from_slice(&part[..count]);
    }
    tidegate.process.stop();
    let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
}

#[test]
fn a_whole_answer_that_goes_to_the_end_ends_in_order() {
    let backend = Raw::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\n\r\n");
        conn.send("a".repeat(MIB));
    });
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.0\r\nHost: app\r\n\r\n");
    assert_eq!(client.response().body.len(), MIB);
}

#[test]
fn a_proxy_says_since_when_a_request_waits_and_nobody_else() {
    let backend = echo_backend();
    let sent = "GET / HTTP/1.1\r\nHost: app\r\nX-Request-Start: t=5\r\n\r\n";
    for (trusted, request_start, told) in [
        (true, true, Some("t=5")),
        (true, false, Some("t=5")),
        (false, false, None),
    ] {
        let tidegate =
            Tidegate::to(backend.address()).set(format!("headers.request_start={request_start}"));
        let tidegate = match trusted {
            true => tidegate.set("headers.trusted_proxies=127.0.0.0/8"),
            false => tidegate,
        };
        let got = received(&tidegate.start(), &backend, sent);
        assert_eq!(got.header("x-request-start").as_deref(), told);
    }
    let tidegate = Tidegate::to(backend.address()).start();
    let got = received(&tidegate, &backend, sent).header("x-request-start");
    let got = got.expect("it is told");
    assert!(got.starts_with("t=") && got.len() > 10, "{got}");
}

#[test]
fn many_small_chunks_arrive_in_fewer_larger_ones() {
    const COUNT: usize = 20_000;
    let backend = Raw::answering(|_| OK.into());
    let tidegate = Tidegate::to(backend.address())
        .set("buffers.request=1KiB")
        .start();
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("1\r\na\r\n".repeat(COUNT));
    client.send("0\r\n\r\n");
    assert_eq!(client.response().status, 200);
    let wire = backend.requests()[0].body.clone();
    let data = wire.iter().filter(|&&byte| byte == b'a').count();
    // A size may have that digit too.
    assert!((COUNT..COUNT + 100).contains(&data), "{data}");
    assert!(wire.len() < COUNT + COUNT / 10, "{} bytes", wire.len());
}

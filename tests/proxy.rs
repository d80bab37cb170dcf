//! The data path, end to end: the real binary between raw clients and gunicorn or a scripted backend.

mod common;

#[path = "proxy/clients.rs"]
mod clients;
#[path = "proxy/heads.rs"]
mod heads;
#[path = "proxy/kept.rs"]
mod kept;
#[path = "proxy/wire.rs"]
mod wire;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Mutex, mpsc},
    time::Duration,
};

use common::{
    Client, Gunicorn, Held, PATIENCE, Raw, Response, Tidegate, get, raw::Received, since, until,
};
use socket2::{Domain, Socket, Type};
use tidegate::clock;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What the backend got for this request head.
fn received(tidegate: &Tidegate, backend: &Raw, head: &str) -> Received {
    let before = backend.requests().len();
    let mut client = tidegate.client();
    client.send(head);
    assert_eq!(client.response().status, 200, "{}", tidegate.log());
    backend.requests()[before].clone()
}

fn echo_backend() -> Raw {
    Raw::answering(|_| OK.into())
}

/// An answer of tidegate's own, in its full form.
#[track_caller]
fn assert_problem(answer: &Response, status: u16, reason: &str) {
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (status, reason),
        "{answer:?}"
    );
    assert_eq!(
        answer.header("content-type").as_deref(),
        Some("application/problem+json")
    );
    assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
    let document = answer.json();
    assert_eq!(document["status"], status);
    assert_eq!(document["reason"], reason);
    for key in ["type", "title", "detail", "request_id"] {
        assert!(document[key].is_string(), "{key} in {document}");
    }
}

#[test]
fn every_method_and_body_reaches_gunicorn_sync_and_gthread() {
    for app in [Gunicorn::sync(2), Gunicorn::gthread(2)] {
        let tidegate = Tidegate::to(app.address()).start();
        let mut client = tidegate.client();
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let body = if method == "GET" { "" } else { "some bytes" };
            let length = body.len();
            client.send(format!(
                "{method} /echo/a%2Fb?x=1&y=%20 HTTP/1.1\r\nHost: app.example:81\r\nX-One: 1\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            ));
            let answer = client.response();
            assert_eq!(answer.status, 200, "{method}");
            let echo = answer.json();
            assert_eq!(echo["method"], method);
            assert_eq!(echo["raw_uri"], "/echo/a%2Fb?x=1&y=%20");
            assert_eq!(echo["size"], length);
            assert_eq!(echo["headers"]["Host"], "app.example:81");
            assert_eq!(echo["headers"]["X-One"], "1");
            assert_eq!(echo["headers"]["X-Forwarded-For"], "127.0.0.1");
        }
        client.send("HEAD / HTTP/1.1\r\nHost: app\r\n\r\n");
        let answer = client.response_to("HEAD");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-length").as_deref(), Some("6"));
        // Nothing followed the head: the connection still speaks HTTP.
        assert_eq!(client.get("/").text(), "hello\n");
        assert_eq!(client.get("/status?code=204").status, 204);
        assert_eq!(client.get("/status?code=418").status, 418);
        assert_eq!(
            client.get("/chunked?n=3").text(),
            "piece 0\npiece 1\npiece 2\n"
        );
    }
}

#[test]
fn a_chunked_upload_reaches_gunicorn_whole_and_with_a_length() {
    let app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address()).start();
    let mut client = tidegate.client();
    client.send("POST /echo HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in ["5\r\nhello\r\n", "1;ext=1\r\n \r\n", "5\r\nworld\r\n"] {
        client.send(chunk);
    }
    client.send("0\r\nX-Trailer: 1\r\n\r\n");
    let echo = client.response().json();
    assert_eq!(echo["size"], 11);
    assert_eq!(echo["content_length"], "11");
    assert_eq!(echo["transfer_encoding"], serde_json::Value::Null);
    // The digest of "hello world".
    assert_eq!(
        echo["sha256"],
        "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
    );
}

#[test]
fn a_chunked_upload_stays_chunked_without_dechunk() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address())
        .set("backend.dechunk=false")
        .start();
    let got = received(
        &tidegate,
        &backend,
        "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\n",
    );
    assert_eq!(got.header("content-length"), None);
    assert_eq!(got.header("transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(got.body, b"3\r\nabc\r\n0\r\n\r\n");
}

#[test]
fn expect_100_continue_is_answered_here_and_not_passed_on() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client
        .send("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.try_head().expect("an interim answer").status, 100);
    assert_eq!(backend.connections(), 0, "the body is awaited first");
    client.send("body");
    assert_eq!(client.response().status, 200);
    let got = &backend.requests()[0];
    assert_eq!(got.header("expect"), None);
    assert_eq!(got.body, b"body");
}

#[test]
fn a_body_that_does_not_wait_for_its_100_arrives() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    for body in ["b", "body", &"x".repeat(2000)] {
        let length = body.len();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        assert_eq!(client.response().status, 200);
    }
    let bodies: Vec<usize> = backend
        .requests()
        .iter()
        .map(|got| got.body.len())
        .collect();
    assert_eq!(bodies, [1, 4, 2000]);
}

#[test]
fn an_upload_that_would_be_refused_is_refused_before_100_continue() {
    let backend = Raw::start(|mut conn| {
        conn.request();
        conn.sees_end_within(PATIENCE);
    });
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.capacity=1")
        .set("queue.max_wait=20s")
        .start();
    let mut first = tidegate.client();
    first.ask("/");
    tidegate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    let mut second = tidegate.client();
    second.ask("/");
    tidegate.until_metric("tidegate_queued_requests", &[], 1.0);
    let mut upload = tidegate.client();
    upload
        .send("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let head = upload.try_head().expect("an answer");
    assert_eq!((head.status, head.reason()), (503, "queue_full".to_owned()));
}

#[test]
fn twenty_megabytes_up_and_down_arrive_whole_in_bounded_memory() {
    const SIZE: usize = 20 << 20;
    let app = Gunicorn::gthread(2);
    let tidegate = Tidegate::to(app.address())
        .set("buffers.total=16MiB")
        .start();
    let body: Vec<u8> = (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect();
    let post = |address: &str| common::request(address, "POST", "/echo", &[], &body).json();
    let (direct, proxied) = (post(app.address()), post(tidegate.address()));
    assert_eq!(proxied["size"], SIZE);
    assert_eq!(proxied["sha256"], direct["sha256"]);

    // Chunked and of unknown length, it goes through as well.
    let mut client = tidegate.client();
    client.send("PUT /echo HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in body.chunks(100_000) {
        client.send(format!("{:x}\r\n", part.len()));
        client.send(part).send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().json()["sha256"], direct["sha256"]);

    let path = format!("/size?n={SIZE}");
    let answer = tidegate.get(&path);
    assert_eq!(answer.body.len(), SIZE);
    assert!(
        answer
            .body
            .iter()
            .enumerate()
            .all(|(at, &byte)| byte == at as u8),
        "the same bytes in the same order"
    );

    let (_, most) = common::memory(tidegate.pid());
    assert!(most < (64 + 16) << 20, "{} MB at its peak", most >> 20);
    tidegate.until_idle();
    tidegate.until_metric("tidegate_buffered_bytes", &[], 0.0);
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let app = Gunicorn::gthread(4);
    let tidegate = Tidegate::to(app.address()).limit(4).start();
    let mut client = tidegate.client();
    let mut bytes = String::new();
    for i in 0..20 {
        let wait = if i == 0 { 100 } else { 0 };
        bytes.push_str(&format!(
            "GET /echo?i={i} HTTP/1.1\r\nHost: app\r\n\r\nGET /sleep?ms={wait} HTTP/1.1\r\nHost: app\r\n\r\n"
        ));
    }
    client.send(bytes);
    for i in 0..20 {
        assert_eq!(client.response().json()["query"], format!("i={i}"));
        assert_eq!(client.response().text(), "slept\n");
    }
    assert_eq!(app.most_at_once("/sleep"), 1);
    // The same connection is still good.
    assert_eq!(client.get("/").status, 200);
    assert_eq!(
        tidegate.metric("tidegate_requests_total", &[("source", "backend")]),
        41.0
    );
}

#[test]
fn unix_sockets_on_both_sides() {
    let app = Gunicorn::unix(&["--workers", "2"]);
    assert!(app.address().starts_with("unix:/"), "{}", app.address());
    let dir = tempfile::tempdir().expect("a directory");
    let socket = format!("unix:{}", dir.path().join("front.sock").display());
    let mut tidegate = Tidegate::to(app.address())
        .listen(&socket)
        .listen("127.0.0.1:0")
        .start();
    assert_eq!(tidegate.addresses()[0], socket);
    let mut client = Client::connect(&socket);
    let echo = client.get("/echo").json();
    assert_eq!(echo["headers"]["X-Forwarded-Proto"], "http");
    assert_eq!(client.get("/").text(), "hello\n");
    assert_eq!(common::get(&tidegate.addresses()[1], "/").text(), "hello\n");
    drop(client);
    assert_eq!(tidegate.stop(), 0);
    assert!(
        Client::try_connect(&socket).is_err(),
        "the socket is gone with its owner"
    );
}

#[test]
fn an_http_1_0_client_gets_a_close_delimited_answer() {
    let backend = Raw::answering(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
            .to_vec()
    });
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let answer = client.response();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.body, b"abcdef");
    assert!(client.is_closed());
    assert!(
        backend.requests()[0].line().ends_with("HTTP/1.1"),
        "the backend is spoken to in 1.1"
    );
}

#[test]
fn answers_without_a_body_are_framed_so_that_the_next_one_is_found() {
    let backend = Raw::answering(|request| {
        let answer = match request.line().split(' ').nth(1).unwrap_or_default() {
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 1000\r\n\r\n",
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n",
            "/head-chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "/empty" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            _ => OK,
        };
        answer.into()
    });
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    let mut ask = |method: &str, path: &str| -> Response {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
        client.response_to(method)
    };
    assert_eq!(ask("GET", "/204").header("content-length"), None);
    assert_eq!(ask("GET", "/204").header("transfer-encoding"), None);
    let not_modified = ask("GET", "/304");
    assert_eq!(not_modified.header("etag").as_deref(), Some("\"x\""));
    assert_eq!(
        not_modified.header("content-length").as_deref(),
        Some("1000")
    );
    assert_eq!(
        ask("HEAD", "/head").header("content-length").as_deref(),
        Some("12345")
    );
    assert_eq!(ask("HEAD", "/head-chunked").status, 200);
    assert_eq!(ask("GET", "/empty").body, b"");
    assert_eq!(ask("GET", "/").body, b"ok");
    tidegate.until_idle();
}

#[test]
fn server_sent_events_arrive_when_they_are_sent_and_count_as_streaming() {
    let app = Gunicorn::gthread(2);
    let tidegate = Tidegate::to(app.address()).start();
    let mut client = tidegate.client();
    client.ask("/stream?n=3&ms=3000");
    assert_eq!(client.try_head().expect("a head").status, 200);
    assert_eq!(client.take_chunk().expect("an event"), b"data: 0\n\n");
    // Before the second one was even made.
    assert_eq!(tidegate.metric("tidegate_streaming_requests", &[]), 1.0);
    assert_eq!(tidegate.metric("tidegate_in_flight_requests", &[]), 1.0);
    assert_eq!(client.take_chunk().expect("an event"), b"data: 1\n\n");
    // A client that leaves a stream ends it.
    drop(client);
    tidegate.until_idle();
    tidegate.until_metric("tidegate_streaming_requests", &[], 0.0);
}

#[test]
fn a_backend_that_is_down_is_502_and_one_that_is_slow_504() {
    let (listener, address) = common::raw::reserved_port();
    let tidegate = Tidegate::to(&address)
        .set("backend.response_timeout=200ms")
        .set("backend.orphan_max=100ms")
        .start();
    let mut client = tidegate.client();
    client.ask("/");
    // The kernel accepts for the listener; nobody answers.
    assert_problem(&client.response(), 504, "backend_timeout");
    tidegate.until_idle();
    common::raw::refuse(&listener);
    assert_problem(&client.get("/"), 502, "backend_unreachable");
}

#[test]
fn a_length_beside_chunked_is_refused_and_the_last_of_its_connection() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.send(
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_problem(&client.response_to("POST"), 400, "bad_request");
    assert!(client.is_closed(), "nothing after it is answered");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_streamed_upload_that_fails_half_way_says_why() {
    // Beyond `buffers.request` the body is passed on as it comes, so the backend has it by then.
    let backend = Raw::start(|mut conn| {
        conn.request();
    });
    let tidegate = Tidegate::to(backend.address())
        .set("buffers.request=4KiB")
        .set("server.max_body_bytes=100000")
        .set("server.body_timeout=2s")
        .set("server.body_min_rate=1000000")
        .start();
    let begin = |length: usize| {
        let mut client = tidegate.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(format!("{length:x}\r\n"));
        client.send(vec![b'x'; length]).send("\r\n");
        client
    };
    assert_problem(&begin(120_000).response_to("POST"), 413, "body_too_large");
    assert_problem(&begin(20_000).response_to("POST"), 408, "request_timeout");
    let mut malformed = begin(20_000);
    malformed.send("not a size\r\n");
    assert_problem(&malformed.response_to("POST"), 400, "bad_request");
    let before = tidegate.metric("tidegate_requests_total", &[]);
    let cut = begin(20_000);
    tidegate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    drop(cut);
    tidegate.until_metric(
        "tidegate_canceled_requests_total",
        &[("phase", "in_flight")],
        1.0,
    );
    assert_eq!(tidegate.metric("tidegate_requests_total", &[]), before);
    tidegate.until_idle();
    assert_eq!(
        tidegate.metric("tidegate_backend_errors_total", &[]),
        0.0,
        "none of it is the backend's fault"
    );
}

/// A backend that has just been there is being restarted: nothing was sent, so nothing is lost by waiting for it.
#[test]
fn a_backend_that_restarts_is_waited_for() {
    let (held, address) = common::raw::reserved_port();
    let listener = held.try_clone().expect("a handle");
    let backend = Raw::on(listener, |mut conn| {
        while conn.request().is_some() && conn.ok("before") {}
    });
    let mut tidegate = Tidegate::to(&address)
        .set("queue.max_wait=20s")
        .set("limit.algorithm=fixed")
        .set("limit.initial=2")
        .start();
    assert_eq!(tidegate.get("/").text(), "before");
    drop(backend);
    common::raw::refuse(&held);
    let target = tidegate.address().to_owned();
    // More than may go at once: they wait with a permit, or for one.
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let target = target.clone();
            std::thread::spawn(move || get(&target, "/").text())
        })
        .collect();
    tidegate.process.logged("it is seen to be gone", |log| {
        log.contains("does not accept connections").then_some(())
    });
    common::raw::accept(&held);
    let _backend = Raw::on(
        held,
        |mut conn| {
            while conn.request().is_some() && conn.ok("after") {}
        },
    );
    for answer in waiting {
        assert_eq!(answer.join().expect("an answer"), "after");
    }
    until("every permit is back", || {
        tidegate.metric("tidegate_in_flight_requests", &[("endpoint", &address)]) == 0.0
    });
    // However often somebody asked whether it is back.
    let errors = tidegate.metric("tidegate_backend_errors_total", &[("endpoint", &address)]);
    assert!(
        (1.0..=5.0).contains(&errors),
        "{errors} errors for 5 requests"
    );
}

/// One that is started beside tidegate may take longer for that.
#[test]
fn a_backend_that_starts_later_is_waited_for() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("it is bound").to_string();
    let mut tidegate = Tidegate::to(&address).set("queue.max_wait=20s").start();
    let target = tidegate.address().to_owned();
    let first = std::thread::spawn(move || get(&target, "/").text());
    tidegate.process.logged("it is seen to be missing", |log| {
        log.contains("does not accept connections").then_some(())
    });
    rustix::net::listen(&listener, 16).expect("the port is ours");
    let _backend = Raw::on(listener, |mut conn| {
        while conn.request().is_some() && conn.ok("at last") {}
    });
    assert_eq!(first.join().expect("an answer"), "at last");
}

#[test]
fn trailers_pass_also_when_the_answer_comes_in_one_piece() {
    let backend = Raw::answering(|_| {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
            .into()
    });
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: app\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    let answer = client
        .take_through(b"x-sum: 1\r\n\r\n")
        .expect("its trailers");
    let answer = String::from_utf8(answer).expect("ASCII");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    assert_eq!(body, "5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n");
    // Who does not take any is told the length, and the connection stays.
    let answer = client.get("/");
    assert_eq!(answer.header("content-length").as_deref(), Some("5"));
    assert_eq!(answer.text(), "hello");
}

//! HTTP/2 with prior knowledge: a real client, and one that sends its frames by hand, right and wrong.

mod common;

#[path = "http2/limits.rs"]
mod limits;
#[path = "http2/share.rs"]
mod share;

use std::{sync::mpsc, time::Duration};

use common::{
    Gunicorn, Held, PATIENCE, Raw, Tidegate,
    frames::{self, Http2, frame},
    http2::{connect, get, nothing_is_left, request, run, send},
    memory, since, until,
};
use http::{HeaderMap, Request, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tidegate::clock;

/// A backend that answers everything with "ok".
fn ok() -> Raw {
    Raw::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())
}

// --- what a well-behaved client gets ---

#[test]
fn requests_and_bodies_of_all_kinds_reach_gunicorn_over_one_connection() {
    let app = Gunicorn::gthread(8);
    let gate = Tidegate::to(app.address()).limit(8).start();
    run(async {
        let client = connect(gate.address()).await;
        let plain = get(&client, "/").await.expect("an answer");
        assert_eq!((plain.status(), &*plain.text()), (200, "hello\n"));
        assert_eq!(plain.head.headers["via"], "1.1 tidegate");
        assert!(plain.head.headers.contains_key("x-request-id"));
        assert!(!plain.head.headers.contains_key("connection"));

        let head = request("HEAD", "/size?n=1000").body(()).expect("a request");
        let head = send(&client, head, b"").await.expect("an answer");
        assert_eq!(head.head.headers["content-length"], "1000");
        assert!(head.body.is_empty());

        let body: Vec<u8> = (0..200_000_u32).map(|n| (n % 249) as u8).collect();
        for method in ["POST", "PUT", "GET"] {
            let echo = request(method, "/echo").body(()).expect("a request");
            let echo = send(&client, echo, &body).await.expect("an answer").json();
            assert_eq!(echo["method"], method);
            assert_eq!(echo["size"], body.len(), "{method}");
            assert_eq!(echo["transfer_encoding"], Value::Null);
        }
        let big = get(&client, "/size?n=3000000").await.expect("an answer");
        assert_eq!(big.body.len(), 3_000_000);

        let mut all = tokio::task::JoinSet::new();
        for n in 0..30 {
            let client = client.clone();
            all.spawn(async move { get(&client, &format!("/echo/{n}")).await });
        }
        let mut rests: Vec<_> = Vec::new();
        while let Some(answer) = all.join_next().await {
            let answer = answer.expect("no panic").expect("an answer").json();
            rests.push(
                answer["rest"]
                    .as_str()
                    .expect("text")
                    .parse::<u32>()
                    .expect("a number"),
            );
        }
        rests.sort_unstable();
        assert_eq!(rests, (0..30).collect::<Vec<_>>());
    });
    nothing_is_left(&gate);
    assert_eq!(gate.metric("tidegate_canceled_requests_total", &[]), 0.0);
}

#[test]
fn http_1_and_2_share_a_port_and_a_preface_may_come_in_pieces() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    assert_eq!(gate.get("/").text(), "ok");
    let mut client = Http2::silent(gate.address());
    for byte in frames::PREFACE
        .iter()
        .chain(&frame(frames::SETTINGS, 0, 0, &[]))
    {
        client.send([*byte]);
    }
    client.get(1, "/");
    let head = client.next(&[frames::HEADERS]);
    assert_eq!(head.payload[0], 0x88, "200 in HPACK's table");
    assert_eq!(client.next(&[frames::DATA]).payload, b"ok");
    // A method that begins as the preface does.
    let mut other = gate.client();
    for byte in b"PRI /x HTTP/1.1\r\nHost: app\r\n\r\n" {
        other.send([*byte]);
    }
    assert_eq!(other.response().status, 200);
    drop((client, other));
    nothing_is_left(&gate);
}

#[test]
fn a_preface_comes_first_or_not_at_all() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    assert_eq!(client.get("/").status, 200);
    client.send(frames::PREFACE);
    client.send(frame(frames::SETTINGS, 0, 0, &[]));
    assert_eq!(client.response().reason(), "version");
    assert!(client.is_closed());
    // What a load balancer says about its client comes before it.
    let gate = Tidegate::to(backend.address())
        .set("server.proxy_protocol=v1")
        .start();
    let mut client = Http2::silent(gate.address());
    client.send("PROXY TCP4 9.8.7.6 5.6.7.8 1234 443\r\n");
    client.send(frames::PREFACE);
    client.send(frame(frames::SETTINGS, 0, 0, &[]));
    client.get(1, "/");
    assert_eq!(client.next(&[frames::DATA]).payload, b"ok");
    let request = backend.requests().pop().expect("a request");
    assert_eq!(
        request.header("x-forwarded-for").as_deref(),
        Some("9.8.7.6")
    );
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn without_http2_the_preface_is_refused_in_words() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("server.http2=false")
        .start();
    let mut client = gate.client();
    client.send(frames::PREFACE);
    client.send(frame(frames::SETTINGS, 0, 0, &[]));
    let answer = client.response();
    assert_eq!((answer.status, &*answer.reason()), (505, "version"));
    assert!(client.is_closed());
    assert_eq!(backend.connections(), 0);
    assert_eq!(gate.get("/").status, 200);
}

#[test]
fn the_backend_gets_one_plain_http_1_request_for_each_stream() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    run(async {
        let client = connect(gate.address()).await;
        let crumbs = request("GET", "/a?b")
            .header("cookie", "a=1")
            .header("te", "trailers")
            .header("cookie", "b=2")
            .header("x-mine", "1")
            .body(());
        let answer = send(&client, crumbs.expect("a request"), b"").await;
        assert_eq!(answer.expect("an answer").status(), 200);
        // DATA on a GET, of a length that nobody has said.
        let get = request("GET", "/get").body(()).expect("a request");
        let answer = send(&client, get, b"body").await;
        assert_eq!(answer.expect("an answer").status(), 200);
        // Trailers end here.
        let mut sender = client.clone();
        let post = request("POST", "/trailers").header("trailer", "x-end");
        let (response, mut stream) = sender
            .send_request(post.body(()).expect("a request"), false)
            .expect("a stream");
        stream.send_data("data".into(), false).expect("room");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", "1".parse().expect("a value"));
        stream.send_trailers(trailers).expect("room");
        assert_eq!(response.await.expect("an answer").status(), 200);
    });
    let requests = backend.requests();
    let first = &requests[0];
    assert_eq!(first.line(), "GET /a?b HTTP/1.1");
    assert_eq!(first.header("host").as_deref(), Some("app"));
    assert_eq!(first.header("cookie").as_deref(), Some("a=1; b=2"));
    assert_eq!(first.header("via").as_deref(), Some("2.0 tidegate"));
    assert_eq!(first.header("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(first.header("te"), None);
    assert_eq!(first.header("content-length"), None);
    let second = &requests[1];
    assert_eq!(second.header("content-length").as_deref(), Some("4"));
    assert_eq!(second.body, b"body");
    let third = &requests[2];
    assert_eq!(third.header("content-length").as_deref(), Some("4"));
    assert_eq!(
        (third.header("trailer"), third.header("x-end")),
        (None, None)
    );
    nothing_is_left(&gate);
}

#[test]
fn a_head_that_is_not_clear_is_refused_and_the_connection_goes_on() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    run(async {
        let client = connect(gate.address()).await;
        let base = || request("GET", "/");
        let many = (0..101).fold(base(), |request, n| request.header(format!("x-{n}"), "1"));
        let cases = [
            ("another host", base().header("host", "evil"), 400),
            (
                "two hosts",
                base().header("host", "app").header("host", "app"),
                400,
            ),
            ("a user", Request::builder().uri("http://me@app/"), 400),
            (
                "a bad port",
                Request::builder()
                    .uri("http://app:/%")
                    .header("host", "app:1"),
                400,
            ),
            ("padding before", base().header("x-padded", " 1"), 400),
            ("padding after", base().header("x-padded", "1\t"), 400),
            ("101 fields", many, 431),
            ("TRACE", request("TRACE", "/"), 501),
        ];
        for (name, request, status) in cases {
            let Ok(request) = request.body(()) else {
                continue;
            };
            let answer = send(&client, request, b"").await.expect(name);
            assert_eq!(answer.status(), status, "{name}");
        }
        let same = base().header("host", "APP").body(()).expect("a request");
        let answer = send(&client, same, b"").await.expect("an answer");
        assert_eq!(answer.status(), 200, "the same host twice");
    });
    assert_eq!(backend.requests().len(), 1, "the last one");
    // What the real client would not send.
    let head = |extra: &[(&str, &str)]| {
        let mut head = frames::get("/");
        head.extend(frames::fields(extra));
        head
    };
    let refused = |extra: &[(&str, &str)]| {
        let mut client = Http2::connect(gate.address(), &[]);
        let flags = frames::END_HEADERS | frames::END_STREAM;
        client.send(frame(frames::HEADERS, flags, 1, &head(extra)));
        let refused = client.next(&[frames::RST_STREAM, frames::HEADERS, frames::GOAWAY]);
        match refused.kind {
            frames::HEADERS => assert_ne!(refused.payload[0], 0x88, "{extra:?}: not 200"),
            _ => assert_eq!(refused.code(), 1, "{extra:?}: PROTOCOL_ERROR"),
        }
        (client, refused.kind)
    };
    for extra in [
        &[("connection", "close")][..],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "websocket")],
        &[("te", "gzip")],
        &[(":path", "/late")],
        &[("content-length", "0"), ("content-length", "0")],
    ] {
        let (mut client, kind) = refused(extra);
        assert_ne!(kind, frames::GOAWAY, "{extra:?}");
        client.get(3, "/fine");
        let next = client.next(&[frames::HEADERS]);
        assert_eq!((next.stream, next.payload[0]), (3, 0x88), "after {extra:?}");
    }
    // What cannot be a field at all ends the connection.
    for extra in [
        ("X-Upper", "1"),
        ("x", "a\r\nb: c"),
        ("x", "a\0b"),
        ("a b", "1"),
    ] {
        refused(&[extra]);
    }
    assert_eq!(backend.requests().len(), 7, "those that were fine");
    nothing_is_left(&gate);
}

#[test]
fn answers_for_which_the_budget_has_no_room_wait_with_their_worker() {
    let answer = [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"[..],
        &[b'x'; 60_000],
    ];
    let answer = answer.concat();
    let backend = Raw::answering(move |_| answer.clone());
    let gate = Tidegate::to(backend.address())
        .limit(2)
        .set("queue.max_wait=20s")
        .set("buffers.request=64KiB")
        .set("buffers.response=64KiB")
        .set("buffers.total=256KiB")
        .start();
    // One on each connection, or its client would be refused further ones.
    let closed = (frames::INITIAL_WINDOW_SIZE, 0);
    let mut clients: Vec<Http2> = (0..10)
        .map(|_| {
            let mut client = Http2::connect(gate.address(), &[closed]);
            client.get(1, "/");
            client
        })
        .collect();
    // Four are held, and two wait; nobody else is sent to the backend.
    until("six are there", || backend.requests().len() == 6);
    gate.until_metric("tidegate_queued_requests", &[], 4.0);
    assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 2.0);
    let open = [&[0, 4][..], &100_000_u32.to_be_bytes()].concat();
    for client in &mut clients {
        client.send(frame(frames::SETTINGS, 0, 0, &open));
    }
    for client in &mut clients {
        let mut came = 0;
        while came < 60_000 {
            came += client.next(&[frames::DATA]).payload.len();
        }
    }
    drop(clients);
    nothing_is_left(&gate);
}

#[test]
fn what_a_socket_does_not_take_stays_in_the_budget() {
    let answer = [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 65000\r\n\r\n"[..],
        &[b'x'; 65_000],
    ];
    let answer = answer.concat();
    let backend = Raw::answering(move |_| answer.clone());
    let gate = Tidegate::to(backend.address()).limit(100).start();
    let window = (frames::INITIAL_WINDOW_SIZE, 1 << 20);
    let mut client = Http2::connect(gate.address(), &[window]);
    let more = (1_u32 << 30).to_be_bytes();
    client.send(frame(frames::WINDOW_UPDATE, 0, 0, &more));
    // All windows are open, and nothing is read.
    for n in 0..100 {
        client.get(2 * n + 1, "/");
    }
    until("all are answered", || backend.requests().len() == 100);
    gate.until_metric("tidegate_in_flight_requests", &[], 0.0);
    std::thread::sleep(Duration::from_millis(200));
    let held = gate.metric("tidegate_buffered_bytes", &[("direction", "response")]);
    assert!(held >= 650_000.0, "{held}");
    let mut came = 0;
    while came < 6_500_000 {
        came += client.next(&[frames::DATA]).payload.len();
    }
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn a_head_may_be_as_large_as_in_http_1() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("server.max_header_bytes=32KiB")
        .start();
    run(async {
        let client = connect(gate.address()).await;
        let large = |length: usize| request("GET", "/").header("x-large", "x".repeat(length));
        let target = request("GET", &format!("/{}", "x".repeat(33_000)));
        for (request, status, reason) in [
            (large(32_000), 200, None),
            (large(33_000), 431, Some("headers_too_large")),
            (target, 414, Some("target_too_long")),
            // The parser's own.
            (large(60_000), 431, None),
        ] {
            let request = request.body(()).expect("a request");
            let answer = send(&client, request, b"").await.expect("an answer");
            let said = answer.head.headers.get("x-tidegate-reason");
            let said = said.map(|reason| reason.to_str().expect("text"));
            assert_eq!((answer.status(), said), (status, reason));
        }
    });
    let large = backend.requests()[0].header("x-large");
    assert_eq!(large.map(|large| large.len()), Some(32_000));
    nothing_is_left(&gate);
}

#[test]
fn a_length_that_data_does_not_keep_never_reaches_the_backend() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    for (declared, sent) in [("5", "1234"), ("3", "1234")] {
        let mut client = Http2::connect(gate.address(), &[]);
        let head = frames::head("POST", "/", &[("content-length", declared)]);
        client.send(frame(frames::HEADERS, frames::END_HEADERS, 1, &head));
        client.send(frame(frames::DATA, frames::END_STREAM, 1, sent.as_bytes()));
        let reset = client.next(&[frames::RST_STREAM]);
        assert_eq!((reset.stream, reset.code()), (1, 1), "{declared}");
    }
    nothing_is_left(&gate);
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn an_answer_that_breaks_off_is_reset_and_trailers_pass() {
    let backend = Raw::start(|mut conn| {
        while let Some(request) = conn.request() {
            if request.line().contains("/torn") {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nbefore\r\n");
                // Its beginning has been passed on by then.
                std::thread::sleep(Duration::from_secs(1));
                return;
            }
            conn.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-end\r\n\r\n\
                 4\r\ndata\r\n0\r\nx-end: 1\r\n\r\n",
            );
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    run(async {
        let client = connect(gate.address()).await;
        let torn = get(&client, "/torn").await;
        assert!(
            torn.as_ref().is_err_and(|error| error.is_reset()),
            "{torn:?}"
        );
        let whole = get(&client, "/").await.expect("an answer");
        assert_eq!(whole.text(), "data");
        assert_eq!(whole.head.headers.get("content-length"), None);
        assert_eq!(whole.trailers.expect("trailers")["x-end"], "1");
    });
    nothing_is_left(&gate);
}

#[test]
fn server_sent_events_arrive_when_they_are_sent() {
    let app = Gunicorn::gthread(2);
    let gate = Tidegate::to(app.address()).start();
    let mut client = Http2::connect(gate.address(), &[]);
    client.get(1, "/stream?n=2&ms=3000");
    assert_eq!(client.next(&[frames::DATA]).payload, b"data: 0\n\n");
    assert_eq!(gate.metric("tidegate_streaming_requests", &[]), 1.0);
    assert_eq!(client.next(&[frames::DATA]).payload, b"data: 1\n\n");
    drop(client);
    nothing_is_left(&gate);
}

// --- permits ---

#[test]
fn each_stream_takes_a_permit_of_its_own() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .limit(2)
        .set("queue.max_wait=20s")
        .start();
    let mut client = Http2::connect(gate.address(), &[]);
    for stream in [1, 3, 5, 7, 9] {
        client.get(stream, "/");
    }
    gate.until_metric("tidegate_queued_requests", &[], 3.0);
    assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 2.0);
    let active = [("state", "active")];
    assert_eq!(gate.metric("tidegate_client_connections", &active), 1.0);
    backend.release(5);
    let mut answered: Vec<_> = (0..5)
        .map(|_| client.next(&[frames::HEADERS]).stream)
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, [1, 3, 5, 7, 9]);
    gate.until_metric("tidegate_client_connections", &[("state", "idle")], 1.0);
    drop(client);
    nothing_is_left(&gate);
    assert_eq!(backend.connections(), 5);
}

#[test]
fn a_reset_leaves_the_queue_at_once_and_the_backend_never() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut client = Http2::connect(gate.address(), &[]);
    client.get(1, "/working");
    until("the backend has it", || backend.requests().len() == 1);
    client.get(3, "/queued").get(5, "/waits");
    gate.until_metric("tidegate_queued_requests", &[], 2.0);
    let cancel = 8_u32.to_be_bytes();
    client.send(frame(frames::RST_STREAM, 0, 3, &cancel));
    gate.until_metric("tidegate_queued_requests", &[], 1.0);
    client.send(frame(frames::RST_STREAM, 0, 1, &cancel));
    gate.until_metric("tidegate_orphaned_requests", &[], 1.0);
    assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 1.0);
    assert_eq!(gate.metric("tidegate_queued_requests", &[],), 1.0);
    backend.release(2);
    assert_eq!(client.next(&[frames::HEADERS]).stream, 5);
    drop(client);
    nothing_is_left(&gate);
    let lines: Vec<_> = backend
        .requests()
        .iter()
        .map(|r| r.line().to_owned())
        .collect();
    assert_eq!(lines, ["GET /working HTTP/1.1", "GET /waits HTTP/1.1"]);
}

#[test]
fn a_connection_that_breaks_takes_its_queued_streams_along() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .limit(2)
        .set("queue.max_wait=20s")
        .start();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let mut client = Http2::connect(gate.address(), &[]);
            for stream in 0..10 {
                client.get(2 * stream + 1, "/");
            }
            client
        })
        .collect();
    gate.until_metric("tidegate_in_flight_requests", &[], 2.0);
    until("most wait", || {
        gate.metric("tidegate_queued_requests", &[]) >= 18.0
    });
    drop(clients);
    gate.until_metric("tidegate_queued_requests", &[], 0.0);
    gate.until_metric("tidegate_orphaned_requests", &[], 2.0);
    until("the backend has two", || backend.connections() >= 2);
    backend.release(2);
    nothing_is_left(&gate);
    assert_eq!(
        backend.connections(),
        2,
        "nothing is sent for those who left"
    );
}

// --- drain and reload ---

#[test]
fn a_drain_says_goaway_and_lets_streams_end() {
    let backend = Held::start();
    let mut gate = Tidegate::to(backend.address())
        .set("drain.timeout=20s")
        .start();
    let mut idle = Http2::connect(gate.address(), &[]);
    idle.next(&[frames::SETTINGS]);
    let mut client = Http2::connect(gate.address(), &[]);
    client.get(1, "/");
    until("the backend has it", || backend.requests().len() == 1);
    gate.process.signal(Signal::TERM);
    assert_eq!(client.next(&[frames::GOAWAY]).code(), 0, "NO_ERROR");
    let gone = idle.rest();
    assert!(
        gone.iter().any(|frame| frame.kind == frames::GOAWAY),
        "{gone:?}"
    );
    backend.release(1);
    assert_eq!(client.next(&[frames::DATA]).payload, b"ok");
    assert!(
        client
            .rest()
            .iter()
            .all(|frame| frame.kind != frames::RST_STREAM)
    );
    assert_eq!(gate.process.exit_code(), 0);
}

#[test]
fn reloads_lose_no_stream() {
    let backend = ok();
    let mut gate = Tidegate::run()
        .toml(&format!(
            "[backend]\nendpoints = [\"{}\"]",
            backend.address()
        ))
        .start();
    run(async {
        let client = connect(gate.address()).await;
        for reload in 1..=20 {
            gate.process.signal(Signal::HUP);
            let mut answers = 0;
            while gate.metric("tidegate_config_reloads_total", &[("result", "ok")])
                < f64::from(reload)
                || answers == 0
            {
                let answer = get(&client, "/").await.expect("an answer");
                assert_eq!(answer.status(), 200);
                answers += 1;
            }
        }
    });
    nothing_is_left(&gate);
}

//! Interim answers of a backend, RFC 9110 15.2: what of them reaches which client, and when. What they look
//! like is in `tests/conformance/responses.toml`.
#![allow(missing_docs)]

mod common;

use std::{
    process::Command,
    sync::{Mutex, mpsc},
    time::Duration,
};

use common::{
    Gunicorn, Held, Raw, Tidegate,
    frames::{self, Http2, frame},
    http2::{Answer, connect, get, interim, nothing_is_left, request, run},
    memory, until,
};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
const PASSED: &str =
    "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nvia: 1.1 tidegate\r\n\r\n";

/// A backend that hints, and answers each request when it is told to.
fn hinting() -> (Raw, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel();
    let gone = Mutex::new(gone);
    let backend = Raw::start(move |mut conn| {
        while conn.request().is_some() && conn.send(HINTS) {
            let go = gone.lock().map(|gone| gone.recv());
            if !matches!(go, Ok(Ok(()))) || !conn.ok("done") {
                return;
            }
        }
    });
    (backend, go)
}

#[test]
fn they_come_while_the_answer_is_still_to_come() {
    let (backend, go) = hinting();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    for _ in 0..2 {
        client.ask("/");
        assert_eq!(client.try_head().expect("hints").head, PASSED);
        gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
        go.send(()).expect("the backend waits");
        assert_eq!(client.response().text(), "done");
    }
    gate.until_idle();
    let answered = [("code", "200")];
    assert_eq!(gate.metric("tidegate_requests_total", &answered), 2.0);
    assert_eq!(gate.metric("tidegate_requests_total", &[]), 2.0);
}

#[test]
fn http_1_0_knows_none() {
    let backend = Raw::answering(|_| {
        format!("{HINTS}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").into_bytes()
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(answer.interim, [""; 0]);
}

/// A backend that invites every client to send its body, and hints.
fn inviting() -> Raw {
    Raw::answering(|_| {
        let invitation = "HTTP/1.1 100 Continue\r\n\r\n";
        format!("{invitation}{HINTS}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").into_bytes()
    })
}

/// The backend was not asked for a 100: the client gets the one that it has asked us for.
#[test]
fn a_100_that_the_client_asks_for_comes_once() {
    let backend = inviting();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    let head = "POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.send(head);
    let invitation = client.try_head().expect("an invitation");
    assert_eq!(invitation.head, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body");
    let answer = client.response();
    assert_eq!(answer.interim, [PASSED]);
    // It does not wait, and needs none.
    client.send(format!("{head}body"));
    assert_eq!(client.response().interim, [PASSED]);
}

/// Whether such a client has left is asked by the first byte of its answer, of each of them.
#[test]
fn a_half_closed_client_gets_all_of_them() {
    let (backend, go) = hinting();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.ask("/").shutdown_write();
    assert_eq!(client.try_head().expect("hints").head, PASSED);
    // Long enough for the question to be asked again.
    std::thread::sleep(Duration::from_millis(50));
    go.send(()).expect("the backend waits");
    assert_eq!(client.response().text(), "done");
    assert!(client.is_closed());
    gate.until_idle();
}

#[test]
fn a_half_closed_client_is_asked_before_the_first() {
    let backend = Raw::start(|mut conn| {
        conn.request();
        std::thread::sleep(Duration::from_millis(50));
        conn.send(HINTS);
        std::thread::sleep(Duration::from_millis(50));
        conn.ok("done");
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.ask("/").shutdown_write();
    let answer = client.response();
    assert_eq!(answer.interim, [PASSED]);
    assert_eq!(answer.text(), "done");
}

/// Whoever says something on the way has the request, and is at work: it is not sent to another.
#[test]
fn after_them_nothing_is_sent_again() {
    let backend = Raw::start(|mut conn| {
        conn.request();
        conn.ok("first");
        conn.request();
        conn.send(HINTS);
        conn.close();
    });
    let gate = Tidegate::to(backend.address())
        .set("backend.keepalive=true")
        .start();
    let mut client = gate.client();
    assert_eq!(client.get("/").text(), "first");
    let answer = client.get("/");
    assert_eq!((answer.status, answer.interim.len()), (502, 1));
    assert_eq!(answer.reason(), "backend_reset");
    assert_eq!(backend.requests().len(), 2);
    gate.until_idle();
}

/// They are as little a sign of an answer as a silence is.
#[test]
fn they_buy_no_time() {
    let backend = Raw::start(|mut conn| {
        conn.request();
        while conn.send(HINTS) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let gate = Tidegate::to(backend.address())
        .set("backend.response_timeout=300ms")
        .set("backend.orphan_max=100ms")
        .start();
    let mut client = gate.client();
    client.ask("/");
    let answer = client.response();
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (504, "backend_timeout")
    );
    assert!(!answer.interim.is_empty());
    gate.until_idle();
}

/// A client that takes none costs a bounded buffer, and gets whole ones and its answer in the end.
#[test]
fn who_does_not_read_them_gets_the_answer_all_the_same() {
    let many = 200;
    let backend = Raw::start(move |mut conn| {
        while let Some(request) = conn.request() {
            let link = "x".repeat(request.body.len());
            let hints = format!("HTTP/1.1 103 Early Hints\r\nLink: <{link}>\r\n\r\n");
            conn.send(hints.repeat(many));
            conn.ok("done");
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    let body = "y".repeat(2000);
    // Several requests' worth of them, more than sockets hold.
    for _ in 0..8 {
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2000\r\n\r\n{body}"
        ));
    }
    for _ in 0..8 {
        let answer = client.response();
        assert_eq!(answer.text(), "done");
        assert!(answer.interim.len() <= many);
        let link = format!("\r\nlink: <{}>\r\n", "x".repeat(2000));
        assert!(answer.interim.iter().all(|head| head.contains(&link)));
    }
    gate.until_idle();
}

#[test]
fn they_come_before_another_protocol() {
    let backend = Raw::start(|mut conn| {
        conn.request();
        conn.send(HINTS);
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nfirst",
        );
        conn.sees_end_within(common::PATIENCE);
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.send("GET / HTTP/1.1\r\nHost: app\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.try_head().expect("hints").head, PASSED);
    assert_eq!(client.try_head().expect("a switch").status, 101);
    assert_eq!(client.take_through(b"first").expect("a tunnel"), b"first");
    drop(client);
    gate.until_idle();
}

/// gunicorn's `wsgi.early_hints`, and a client that shows what it gets.
#[test]
fn a_flask_application_hints_to_curl() {
    let app = Gunicorn::sync(1);
    let gate = Tidegate::to(app.address()).start();
    let url = format!("http://{}/hints", gate.address());
    let output = Command::new("curl")
        .args(["--silent", "--include", "--max-time", "20", &url])
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with(PASSED), "{text}");
    assert!(text.ends_with("\r\n\r\nhinted\n"), "{text}");
    let (_, answer) = text.split_once("\r\n\r\n").expect("hints");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}

// --- the same over HTTP/2 ---

/// Of an interim answer: its status and its fields.
fn told(interim: &http::Response<()>) -> (u16, Vec<(&str, &str)>) {
    let fields = interim.headers().iter();
    let fields = fields.map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII")));
    (interim.status().as_u16(), fields.collect())
}

/// What [`PASSED`] is there.
fn hints() -> (u16, Vec<(&'static str, &'static str)>) {
    let fields = [
        ("link", "</style.css>; rel=preload"),
        ("via", "1.1 tidegate"),
    ];
    (103, fields.to_vec())
}

#[test]
fn over_http_2_they_come_while_the_answer_is_still_to_come() {
    let (backend, go) = hinting();
    let gate = Tidegate::to(backend.address()).start();
    run(async {
        let mut client = connect(gate.address()).await;
        for _ in 0..2 {
            let asked = request("GET", "/").body(()).expect("a request");
            let (mut response, _) = client.send_request(asked, true).expect("a stream");
            let first = interim(&mut response).await.expect("hints");
            assert_eq!(told(&first), hints());
            gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
            go.send(()).expect("the backend waits");
            let answer = Answer::read(response.await.expect("an answer")).await;
            assert_eq!(answer.expect("an answer").text(), "done");
            client = client.ready().await.expect("room for a stream");
        }
    });
    let answered = [("code", "200")];
    assert_eq!(gate.metric("tidegate_requests_total", &answered), 2.0);
    assert_eq!(gate.metric("tidegate_requests_total", &[]), 2.0);
    nothing_is_left(&gate);
}

#[test]
fn over_http_2_a_100_comes_once_when_the_body_is_wanted() {
    let backend = inviting();
    let gate = Tidegate::to(backend.address()).start();
    run(async {
        let mut client = connect(gate.address()).await;
        let post = request("POST", "/")
            .header("expect", "100-continue")
            .body(());
        let (mut response, mut stream) = client
            .send_request(post.expect("a request"), false)
            .expect("a stream");
        let first = interim(&mut response).await.expect("an invitation");
        assert_eq!(told(&first), (100, vec![]));
        stream.send_data("body".into(), true).expect("room");
        let second = interim(&mut response).await.expect("hints");
        assert_eq!(told(&second), hints());
        assert!(interim(&mut response).await.is_none());
        assert_eq!(response.await.expect("an answer").status(), 200);
        // One that nobody has asked for is the backend's, and passes.
        let plain = request("POST", "/").body(()).expect("a request");
        let (mut response, mut stream) = client.send_request(plain, false).expect("a stream");
        stream.send_data("body".into(), true).expect("room");
        let first = interim(&mut response).await.expect("the backend's");
        assert_eq!(first.status(), 100);
        let second = interim(&mut response).await.expect("hints");
        assert_eq!(told(&second), hints());
    });
    let request = &backend.requests()[0];
    assert_eq!(
        (&*request.body, request.header("expect")),
        (&b"body"[..], None)
    );
    nothing_is_left(&gate);
}

#[test]
fn over_http_2_who_does_not_wait_for_a_100_or_would_wait_in_vain_gets_none() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=0s")
        .start();
    let head = frames::head("POST", "/", &[("expect", "100-continue")]);
    let mut client = Http2::connect(gate.address(), &[]);
    client.send(
        [
            frame(frames::HEADERS, frames::END_HEADERS, 1, &head),
            frame(frames::DATA, frames::END_STREAM, 1, b"body"),
        ]
        .concat(),
    );
    until("the backend has it", || backend.requests().len() == 1);
    // This one would be refused with its body, and is without.
    client.send(frame(frames::HEADERS, frames::END_HEADERS, 3, &head));
    let refused = client.next(&[frames::HEADERS]);
    assert_eq!(refused.stream, 3);
    assert_eq!(gate.metric("tidegate_rejected_requests_total", &[]), 1.0);
    let ended = client.next(&[frames::RST_STREAM]);
    assert_eq!((ended.stream, ended.code()), (3, 0), "NO_ERROR");
    backend.release(1);
    let answered = client.next(&[frames::HEADERS]);
    assert_eq!(
        (answered.stream, answered.payload[0]),
        (1, 0x88),
        "200 at once"
    );
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn over_http_2_many_of_them_come_all_and_in_order() {
    let backend = Raw::answering(|_| many(200).into_bytes());
    let gate = Tidegate::to(backend.address()).start();
    run(async {
        let mut client = connect(gate.address()).await;
        let asked = request("GET", "/").body(()).expect("a request");
        let (mut response, _) = client.send_request(asked, true).expect("a stream");
        for n in 0..200 {
            let next = interim(&mut response).await.expect("hints");
            assert_eq!(next.headers()["link"], link(n));
        }
        assert!(interim(&mut response).await.is_none());
        assert_eq!(response.await.expect("an answer").status(), 200);
    });
    nothing_is_left(&gate);
}

/// A link of a kilobyte: each is another, and of what HPACK does not make smaller.
fn link(n: usize) -> String {
    format!("<{n:|>1000}>")
}

/// An answer behind so many hints.
fn many(hints: usize) -> String {
    let hint = |n| format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", link(n));
    let hints: String = (0..hints).map(hint).collect();
    format!("{hints}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
}

/// A client that takes none costs a bounded buffer, and gets whole ones and its answers in the end.
#[test]
fn over_http_2_who_does_not_read_them_costs_little() {
    const STREAMS: u32 = 100;
    let backend = Raw::answering(|_| many(480).into_bytes());
    let gate = Tidegate::to(backend.address()).limit(100).start();
    assert_eq!(gate.get("/").text(), "done");
    let (before, _) = memory(gate.pid());
    let mut client = Http2::connect(gate.address(), &[]);
    for stream in 0..STREAMS {
        client.get(2 * stream + 1, "/");
    }
    // That is some 50 MB of them; of each connection to the backend little is read ahead.
    let all = STREAMS as usize + 1;
    until("all have been sent", || backend.requests().len() == all);
    gate.until_metric("tidegate_in_flight_requests", &[], 0.0);
    let (_, most) = memory(gate.pid());
    let grown = most.saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    for _ in 0..STREAMS {
        assert_eq!(client.next(&[frames::DATA]).payload, b"done");
    }
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn over_http_2_a_client_that_resets_amid_them_hears_no_more() {
    let (backend, go) = hinting();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = Http2::connect(gate.address(), &[]);
    client.get(1, "/");
    assert_eq!(client.next(&[frames::HEADERS]).stream, 1, "hints");
    client.send(frame(frames::RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    gate.until_metric("tidegate_orphaned_requests", &[], 1.0);
    go.send(()).expect("the backend waits");
    run(async {
        // Another connection is none the worse.
        let client = connect(gate.address()).await;
        go.send(()).expect("the backend waits");
        assert_eq!(get(&client, "/").await.expect("an answer").text(), "done");
    });
    client.send(frame(frames::PING, 0, 0, &[7; 8]));
    let next = client.next(&[frames::HEADERS, frames::DATA, frames::PING]);
    assert_eq!(next.kind, frames::PING, "{next:?}");
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn a_flask_application_hints_to_curl_over_http_2() {
    let app = Gunicorn::sync(1);
    let gate = Tidegate::to(app.address()).start();
    let url = format!("http://{}/hints", gate.address());
    let output = Command::new("curl")
        .args(["--http2-prior-knowledge", "--silent", "--include"])
        .args(["--max-time", "20", &url])
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let hints = "HTTP/2 103 \r\nlink: </style.css>; rel=preload\r\nvia: 1.1 tidegate\r\n\r\n";
    assert!(text.starts_with(hints), "{text}");
    assert!(text.ends_with("\r\n\r\nhinted\n"), "{text}");
}

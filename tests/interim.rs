//! Interim answers of a backend, RFC 9110 15.2: what of them reaches which client, and when. What they look
//! like is in `tests/conformance/responses.toml`.
#![allow(missing_docs)]

mod common;

use std::{
    process::Command,
    sync::{Mutex, mpsc},
    time::Duration,
};

use common::{Gunicorn, Raw, Tidegate};

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

/// The backend was not asked for a 100: the client gets the one that it has asked us for.
#[test]
fn a_100_that_the_client_asks_for_comes_once() {
    let backend = Raw::answering(|_| {
        let invitation = "HTTP/1.1 100 Continue\r\n\r\n";
        format!("{invitation}{HINTS}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").into_bytes()
    });
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

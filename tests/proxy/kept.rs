//! Connections to the backend: when they are closed, and when they are used again.

use super::*;

/// A backend that tells for each answer whether its connection was closed promptly after it.
fn watched() -> (Raw, mpsc::Receiver<bool>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let backend = Raw::start(move |mut conn| {
        while conn.request().is_some() && conn.ok("ok") {
            let ended = conn.sees_end_within(Duration::from_millis(500));
            let _ = tell.lock().expect("no panic").send(ended);
            if ended {
                return;
            }
        }
    });
    (backend, told)
}

#[test]
fn the_backends_connection_is_closed_at_once_without_keepalive() {
    let (backend, told) = watched();
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").status, 200);
        assert!(told.recv_timeout(PATIENCE).expect("a verdict"), "closed");
    }
    assert_eq!(backend.connections(), 3);
    assert_eq!(
        tidegate.metric("tidegate_backend_connections_total", &[("reused", "false")]),
        3.0
    );
}

#[test]
fn the_backends_connection_is_closed_before_the_client_has_read_the_answer() {
    let (backend, told) = watched();
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.ask("/");
    assert!(told.recv_timeout(PATIENCE).expect("a verdict"), "closed");
    assert_eq!(client.response().status, 200);
}

#[test]
fn connections_are_reused_with_keepalive_and_swept_when_idle() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let backend = Raw::start(move |mut conn| {
        while conn.request().is_some() && conn.ok("ok") {}
        let _ = tell.lock().expect("no panic").send(());
    });
    let tidegate = Tidegate::to(backend.address())
        .set("backend.keepalive=true")
        .set("backend.keepalive_idle=3s")
        .start();
    let mut client = tidegate.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(backend.connections(), 1);
    let metrics = tidegate.metrics();
    let reused = |yes| metrics.sum("tidegate_backend_connections_total", &[("reused", yes)]);
    assert_eq!((reused("true"), reused("false")), (4.0, 1.0));
    // Nobody asks any more, and still it is closed.
    told.recv_timeout(PATIENCE)
        .expect("the idle connection is closed");
}

/// Answers once on each connection, then closes it as soon as the next request has arrived: what a
/// server does whose keep-alive time ends just then.
fn closing_under_the_second() -> Raw {
    Raw::start(|mut conn| {
        if conn.request().is_some() && conn.ok("ok") {
            conn.request();
        }
    })
}

#[test]
fn a_get_over_a_connection_that_closes_under_it_is_sent_again() {
    let backend = closing_under_the_second();
    let tidegate = Tidegate::to(backend.address())
        .set("backend.keepalive=true")
        .set("backend.keepalive_idle=20s")
        .start();
    let mut client = tidegate.client();
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.get(path).status, 200, "{path}");
    }
    let seen: Vec<String> = backend
        .requests()
        .iter()
        .map(|request| request.line().split(' ').nth(1).unwrap_or("").to_owned())
        .collect();
    assert_eq!(seen, ["/1", "/2", "/2", "/3", "/3"]);
    tidegate.until_idle();
}

/// With a body, which is gone once it is sent, or without one.
#[test]
fn what_may_do_something_is_never_sent_twice() {
    let backend = closing_under_the_second();
    let tidegate = Tidegate::to(backend.address())
        .set("backend.keepalive=true")
        .start();
    let mut client = tidegate.client();
    for (method, rest) in [
        ("POST", "Content-Length: 3\r\n\r\none"),
        ("POST", "Content-Length: 0\r\n\r\n"),
        ("DELETE", "\r\n"),
        ("PUT", "\r\n"),
    ] {
        until("it meets a connection that closes under it", || {
            let before = backend.requests().len();
            assert_eq!(client.get("/warm").status, 200);
            client.send(format!("{method} /pay HTTP/1.1\r\nHost: app\r\n{rest}"));
            let answer = client.response();
            let requests = backend.requests();
            let lines = requests[before..].iter().map(|request| request.line());
            let paid = lines.filter(|line| line.starts_with(method)).count();
            assert_eq!(paid, 1, "{method}");
            // On a machine that pauses, it was idle for too long to be trusted.
            let fresh = answer.status == 200;
            assert!(fresh || answer.reason() == "backend_reset", "{answer:?}");
            !fresh
        });
    }
    tidegate.until_idle();
}

#[test]
fn an_idle_connection_that_the_backend_has_closed_costs_nobody_an_answer() {
    let backend = Raw::start(|mut conn| {
        if conn.request().is_some() {
            conn.ok("ok");
        }
    });
    let tidegate = Tidegate::to(backend.address())
        .set("backend.keepalive=true")
        .start();
    let mut client = tidegate.client();
    for _ in 0..10 {
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(client.response().status, 200);
        // Lets the FIN arrive: what is shown is that a connection known to be closed is not taken.
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(backend.requests().len(), 10, "none of them twice");
}

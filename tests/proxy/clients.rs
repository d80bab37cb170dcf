//! Clients that leave, are slow, or send what is refused.

use super::*;

#[test]
fn a_client_that_leaves_the_queue_frees_its_place_and_never_reaches_the_backend() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut first = tidegate.client();
    first.ask("/held");
    tidegate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    let leaving: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = tidegate.client();
            client.ask("/leaving");
            client
        })
        .collect();
    tidegate.until_metric("tidegate_queued_requests", &[], 5.0);
    drop(leaving);
    tidegate.until_metric("tidegate_queued_requests", &[], 0.0);
    assert_eq!(
        tidegate.metric("tidegate_in_flight_requests", &[]),
        1.0,
        "while the first is still served"
    );
    backend.release(2);
    assert_eq!(first.response().text(), "ok");
    assert_eq!(tidegate.get("/").status, 200);
    let requests = backend.requests();
    let lines: Vec<&str> = requests.iter().map(|request| request.line()).collect();
    assert_eq!(lines, ["GET /held HTTP/1.1", "GET / HTTP/1.1"]);
    let metrics = tidegate.metrics();
    assert_eq!(
        metrics.sum("tidegate_canceled_requests_total", &[("phase", "queued")]),
        5.0
    );
    assert_eq!(
        metrics.sum(
            "tidegate_queue_wait_seconds_count",
            &[("outcome", "canceled")]
        ),
        5.0
    );
}

#[test]
fn a_client_that_leaves_in_flight_leaves_its_permit_with_the_backend() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut client = tidegate.client();
    client.ask("/held");
    until("the backend has it", || backend.requests().len() == 1);
    drop(client);
    tidegate.until_metric("tidegate_orphaned_requests", &[], 1.0);
    assert_eq!(tidegate.metric("tidegate_in_flight_requests", &[]), 1.0);
    let mut next = tidegate.client();
    next.ask("/");
    tidegate.until_metric("tidegate_queued_requests", &[], 1.0);
    assert_eq!(backend.requests().len(), 1, "it waits for the permit");
    backend.release(2);
    assert_eq!(next.response().text(), "ok");
    assert_eq!(tidegate.metric("tidegate_orphaned_requests", &[]), 0.0);
    assert_eq!(
        tidegate.metric(
            "tidegate_canceled_requests_total",
            &[("phase", "in_flight")]
        ),
        1.0
    );
    tidegate.until_idle();
}

#[test]
fn an_orphan_gives_its_permit_back_after_orphan_max() {
    let backend = Raw::start(|mut conn| {
        let first = conn.number == 0;
        conn.request();
        if first {
            conn.sees_end_within(PATIENCE);
        } else {
            conn.ok("ok");
        }
    });
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .set("backend.orphan_max=2s")
        .start();
    let mut client = tidegate.client();
    client.ask("/");
    until("the backend has it", || backend.requests().len() == 1);
    drop(client);
    tidegate.until_metric("tidegate_orphaned_requests", &[], 1.0);
    assert_eq!(tidegate.get("/").text(), "ok");
}

#[test]
fn a_slow_upload_takes_no_permit_and_ends_in_408() {
    let app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address())
        .limit(1)
        .set("server.body_timeout=700ms")
        .start();
    let mut slow = tidegate.client();
    let start = clock::now();
    slow.send("POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 1000\r\n\r\nhalf");
    for _ in 0..3 {
        assert_eq!(tidegate.get("/").text(), "hello\n");
        assert_eq!(tidegate.metric("tidegate_in_flight_requests", &[]), 0.0);
    }
    let answer = slow.response_to("POST");
    assert_eq!(
        (answer.status, answer.reason()),
        (408, "request_timeout".into())
    );
    assert!(since(start) >= Duration::from_millis(700));
    assert!(since(start) < Duration::from_secs(5));
    assert_eq!(answer.header("connection").as_deref(), Some("close"));
    assert!(slow.is_closed());
    assert_eq!(app.started("/echo"), 0);
}

#[test]
fn an_upload_that_is_cut_off_never_reaches_the_backend() {
    let app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address()).start();
    let mut client = tidegate.client();
    client.send("POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 1000\r\n\r\nhalf");
    tidegate.until_metric("tidegate_client_connections", &[("state", "active")], 1.0);
    drop(client);
    tidegate.until_metric(
        "tidegate_canceled_requests_total",
        &[("phase", "reading")],
        1.0,
    );
    assert_eq!(tidegate.get("/").status, 200);
    assert_eq!(app.started("/echo"), 0);
}

#[test]
fn a_slow_reader_does_not_hold_the_worker() {
    let app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address()).limit(1).start();
    let mut slow = tidegate.client();
    slow.ask("/size?n=200000");
    until("the worker is free again", || {
        app.started("/size") == 1 && tidegate.metric("tidegate_in_flight_requests", &[]) == 0.0
    });
    // The only worker serves others, while not a byte has been read.
    assert_eq!(tidegate.get("/").text(), "hello\n");
    assert_eq!(slow.response().body.len(), 200_000);
}

#[test]
fn a_client_that_stops_reading_is_given_up_after_write_timeout() {
    let app = Gunicorn::gthread(2);
    let tidegate = Tidegate::to(app.address())
        .limit(2)
        .set("server.write_timeout=500ms")
        .start();
    let mut stuck = tidegate.client();
    // More than all the buffers on the way.
    stuck.ask("/size?n=40000000");
    until("it streams", || app.started("/size") == 1);
    tidegate.until_metric(
        "tidegate_canceled_requests_total",
        &[("phase", "responding")],
        1.0,
    );
    tidegate.until_idle();
    tidegate.until_metric("tidegate_buffered_bytes", &[], 0.0);
    drop(stuck);
}

#[test]
fn a_head_that_comes_too_slowly_is_answered_408() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address())
        .set("server.header_timeout=300ms")
        .start();
    let start = clock::now();
    let mut silent = tidegate.client();
    let mut slow = tidegate.client();
    slow.send("GET / HTTP/1.1\r\nHost: a");
    let answer = slow.response();
    assert_problem(&answer, 408, "request_timeout");
    assert!(since(start) >= Duration::from_millis(300));
    assert!(slow.is_closed());
    // Who has not sent a byte is closed too.
    let _ = silent.read_some();
    assert!(since(start) < Duration::from_secs(5));
    // The second head of a connection has its own time.
    let mut second = tidegate.client();
    assert_eq!(second.get("/").status, 200);
    second.send("GET / HTT");
    assert_problem(&second.response(), 408, "request_timeout");
    assert_eq!(backend.connections(), 1);
}

/// Old clients send one after a body, RFC 9112 2.2: it begins no request.
#[test]
fn an_empty_line_leaves_a_connection_idle() {
    let backend = echo_backend();
    let gate = |idle: &str| {
        Tidegate::to(backend.address())
            .set("server.header_timeout=400ms")
            .set(format!("server.idle_timeout={idle}"))
            .start()
    };
    let patient = gate("60s");
    let mut clients: Vec<_> = [&["\r\n"][..], &["\r", "\n"], &["\r"]]
        .iter()
        .map(|pieces| {
            let mut client = patient.client();
            assert_eq!(client.get("/").status, 200);
            for piece in *pieces {
                client.send(piece);
                std::thread::sleep(Duration::from_millis(20));
            }
            (client, *pieces == ["\r"])
        })
        .collect();
    std::thread::sleep(Duration::from_millis(1200));
    let idle = [("state", "idle")];
    assert_eq!(patient.metric("tidegate_client_connections", &idle), 3.0);
    for (client, half) in &mut clients {
        if *half {
            client.send("\n");
        }
        assert_eq!(client.get("/").status, 200);
        // Together with the next request, as before.
        client.send("\r\nGET / HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    let busy = gate("600ms");
    let mut client = busy.client();
    assert_eq!(client.get("/").status, 200);
    client.send("\r\n");
    assert!(client.is_closed(), "without a word, as any idle one");
    let refused = busy.metric("tidegate_rejected_requests_total", &[]);
    assert_eq!(refused, 0.0);
}

#[test]
fn an_idle_connection_is_closed_after_idle_timeout() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address())
        .set("server.idle_timeout=200ms")
        .start();
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    let start = clock::now();
    assert!(client.is_closed());
    assert!(since(start) < Duration::from_secs(5));
}

#[test]
fn what_is_too_large_or_not_http_is_refused_with_its_reason() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address())
        .set("server.max_header_bytes=16KiB")
        .set("server.max_body_bytes=1000")
        .start();
    let ask = |bytes: &str| -> Response {
        let mut client = tidegate.client();
        client.send(bytes);
        let answer = client.response();
        assert!(
            answer.status == 501 || client.is_closed(),
            "{} closes",
            answer.status
        );
        answer
    };
    let long = "x".repeat(20_000);
    let cases = [
        (
            format!("GET / HTTP/1.1\r\nHost: app\r\nX-Long: {long}\r\n\r\n"),
            431,
            "headers_too_large",
        ),
        ("NOT HTTP\r\n\r\n".to_owned(), 400, "bad_request"),
        (
            "GET / HTTP/1.1\r\nHost : app\r\n\r\n".to_owned(),
            400,
            "bad_request",
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
            400,
            "bad_request",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"
                .to_owned(),
            400,
            "bad_request",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
            400,
            "bad_request",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n".to_owned(),
            413,
            "body_too_large",
        ),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n",
                "x".repeat(1001)
            ),
            413,
            "body_too_large",
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(),
            501,
            "not_implemented",
        ),
    ];
    for (bytes, status, reason) in &cases {
        assert_problem(&ask(bytes), *status, reason);
    }
    assert_eq!(backend.connections(), 0, "the backend saw none of it");
    let metrics = tidegate.metrics();
    assert_eq!(
        metrics.sum("tidegate_requests_total", &[("source", "tidegate")]),
        cases.len() as f64
    );
    assert_eq!(
        metrics.sum(
            "tidegate_rejected_requests_total",
            &[("reason", "bad_request")]
        ),
        6.0
    );
}

#[test]
fn a_target_that_is_too_long_is_414() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address())
        .set("server.max_header_bytes=256KiB")
        .start();
    let mut client = tidegate.client();
    client.send(format!(
        "GET /{} HTTP/1.1\r\nHost: app\r\n\r\n",
        "x".repeat(70_000)
    ));
    assert_problem(&client.response(), 414, "target_too_long");
}

//! The data path, end to end: the real binary between raw clients and gunicorn or a scripted backend.

mod common;

use std::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    time::Duration,
};

use common::{
    Client, Gunicorn, PATIENCE, Raw, Response, Tidegate, get, raw::Received, since, until,
};
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
fn hop_by_hop_fields_and_those_that_connection_names_stay_here() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let got = received(
        &tidegate,
        &backend,
        "GET / HTTP/1.1\r\nHost: app\r\nX-First: 1\r\nConnection: keep-alive, X-Hop\r\n\
         X-Hop: gone\r\nKeep-Alive: timeout=5\r\nConnection: x-second-hop\r\nX-Second-Hop: gone\r\n\
         TE: trailers\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: relayed\r\n\
         Proxy: http://evil\r\nUpgrade: websocket\r\nX-Last: 1\r\n\r\n",
    );
    for gone in [
        "x-hop",
        "x-second-hop",
        "keep-alive",
        "te",
        "proxy-connection",
        "proxy",
        "upgrade",
    ] {
        assert_eq!(got.header(gone), None, "{}", got.head);
    }
    let connection = got.header("connection").unwrap_or_default();
    assert!(
        ["", "close"].contains(&connection.as_str()),
        "Connection is our own: {connection}"
    );
    assert_eq!(
        got.header("proxy-authorization").as_deref(),
        Some("relayed"),
        "nobody asked for it here"
    );
    assert_eq!(got.header("x-first").as_deref(), Some("1"));
    assert_eq!(got.header("x-last").as_deref(), Some("1"));
}

#[test]
fn connection_cannot_remove_what_the_backend_relies_on() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let got = received(
        &tidegate,
        &backend,
        "POST / HTTP/1.1\r\nHost: app\r\nAuthorization: Basic eA==\r\nContent-Length: 2\r\n\
         Connection: close, host, content-length, authorization, x-forwarded-for\r\n\r\nhi",
    );
    assert_eq!(got.header("host").as_deref(), Some("app"));
    assert_eq!(got.header("authorization").as_deref(), Some("Basic eA=="));
    assert_eq!(got.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(got.body, b"hi");
}

const SPOOFED: &str = "GET / HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: 6.6.6.6\r\n\
    X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
    X-Forwarded-Ssl: on\r\nX-Forwarded-Protocol: ssl\r\nX-Forwarded-Prefix: /evil\r\n\
    Script-Name: /evil\r\nPath-Info: /evil\r\nRemote-User: root\r\nX_Forwarded_For: 6.6.6.6\r\n\
    REMOTE_USER: root\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Kept: 1\r\n\r\n";

#[test]
fn an_untrusted_peer_cannot_say_who_it_is() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let got = received(&tidegate, &backend, SPOOFED);
    let port = tidegate.address().rsplit_once(':').expect("a port").1;
    assert_eq!(got.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(got.header("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(got.header("x-forwarded-host").as_deref(), Some("app"));
    assert_eq!(got.header("x-forwarded-port").as_deref(), Some(port));
    for dropped in [
        "x-forwarded-ssl",
        "x-forwarded-protocol",
        "x-forwarded-prefix",
        "script-name",
        "path-info",
        "remote-user",
        "x_forwarded_for",
        "remote_user",
        "forwarded",
        "x-real-ip",
    ] {
        assert_eq!(got.header(dropped), None, "{}", got.head);
    }
    assert_eq!(got.header("x-kept").as_deref(), Some("1"));
}

#[test]
fn a_trusted_proxy_is_believed_and_appended_to() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address())
        .toml("[headers]\ntrusted_proxies = [\"127.0.0.0/8\"]\nforwarded = true")
        .start();
    let got = received(&tidegate, &backend, SPOOFED);
    assert_eq!(
        got.header("x-forwarded-for").as_deref(),
        Some("6.6.6.6, 127.0.0.1")
    );
    assert_eq!(got.header("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(got.header("x-forwarded-host").as_deref(), Some("evil"));
    assert_eq!(got.header("x-forwarded-port").as_deref(), Some("1"));
    assert_eq!(got.header("script-name").as_deref(), Some("/evil"));
    assert_eq!(
        got.header("forwarded").as_deref(),
        Some("for=6.6.6.6, for=127.0.0.1;host=\"app\";proto=http")
    );
}

#[test]
fn order_host_target_and_unknown_fields_arrive_as_sent() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let got = received(
        &tidegate,
        &backend,
        "GET /a//b/../c%2F%20?q=%zz&&;x HTTP/1.1\r\nAccept: a\r\nHost: App.Example:8080\r\n\
         Connection: keep-alive\r\nX-B: 1\r\nAccept: b\r\nX-A: caf\u{e9}\r\n\
         traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nCookie: a=1; b=2\r\n\r\n",
    );
    assert_eq!(got.line(), "GET /a//b/../c%2F%20?q=%zz&&;x HTTP/1.1");
    assert_eq!(got.header("host").as_deref(), Some("App.Example:8080"));
    assert_eq!(got.header("accept").as_deref(), Some("a, b"));
    assert_eq!(got.header("x-a").as_deref(), Some("caf\u{e9}"));
    assert_eq!(got.header("cookie").as_deref(), Some("a=1; b=2"));
    assert_eq!(
        got.header("traceparent").as_deref(),
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    );
    let names = got.names();
    let sent = ["accept", "host", "x-b", "x-a", "traceparent", "cookie"];
    let mut order: Vec<&str> = Vec::new();
    for name in names.iter().filter(|name| sent.contains(&name.as_str())) {
        if !order.contains(&name.as_str()) {
            order.push(name);
        }
    }
    assert_eq!(order, sent, "{}", got.head);
}

#[test]
fn an_absolute_target_becomes_a_path_and_its_host_wins() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let got = received(
        &tidegate,
        &backend,
        "GET http://real.example:99/x?y HTTP/1.1\r\nHost: other\r\n\r\n",
    );
    assert_eq!(got.line(), "GET /x?y HTTP/1.1");
    assert_eq!(got.header("host").as_deref(), Some("real.example:99"));
}

#[test]
fn via_request_id_and_request_start_are_added_and_the_client_learns_the_id() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let before = clock::since_epoch().as_micros();
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: app\r\nX-Request-Id: mine-1\r\nVia: 1.1 edge\r\n\r\n");
    let kept = client.response();
    let made = client.get("/");
    let requests = backend.requests();

    assert_eq!(
        requests[0].header("x-request-id").as_deref(),
        Some("mine-1")
    );
    assert_eq!(kept.header("x-request-id").as_deref(), Some("mine-1"));
    assert_eq!(
        requests[0].header("via").as_deref(),
        Some("1.1 edge, 1.1 tidegate")
    );
    assert_eq!(kept.header("via").as_deref(), Some("1.1 tidegate"));

    let id = requests[1].header("x-request-id").expect("an id");
    assert_eq!(id.len(), 32, "{id}");
    assert_eq!(made.header("x-request-id"), Some(id));

    let start = requests[1].header("x-request-start").expect("a time");
    let micros: u128 = start
        .strip_prefix("t=")
        .and_then(|micros| micros.parse().ok())
        .unwrap_or_else(|| panic!("{start}"));
    assert!((before..=clock::since_epoch().as_micros()).contains(&micros));
}

#[test]
fn a_request_id_that_could_break_a_log_is_replaced() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    for bad in ["two words", "caf\u{e9}", &"x".repeat(200)] {
        let got = received(
            &tidegate,
            &backend,
            &format!("GET / HTTP/1.1\r\nHost: app\r\nX-Request-Id: {bad}\r\n\r\n"),
        );
        assert_eq!(got.header("x-request-id").expect("an id").len(), 32);
    }
}

#[test]
fn an_answer_passes_unchanged_but_for_hop_by_hop_fields() {
    let backend = Raw::answering(|_| {
        b"HTTP/1.1 299 Custom Reason\r\nServer: gunicorn\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
          Set-Cookie: a=1\r\nX-Z: 1\r\nConnection: keep-alive, x-hop\r\nX-Hop: gone\r\n\
          Keep-Alive: timeout=2\r\nSet-Cookie: b=2\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nok"
            .to_vec()
    });
    let tidegate = Tidegate::to(backend.address()).start();
    let answer = tidegate.client().get("/");
    assert_eq!(answer.status, 299);
    assert!(answer.head.starts_with("HTTP/1.1 299 Custom Reason\r\n"));
    assert_eq!(answer.header("server").as_deref(), Some("gunicorn"));
    assert_eq!(
        answer.header("date").as_deref(),
        Some("Sun, 06 Nov 1994 08:49:37 GMT")
    );
    assert_eq!(answer.header("set-cookie").as_deref(), Some("a=1, b=2"));
    for gone in ["x-hop", "keep-alive", "connection"] {
        assert_eq!(answer.header(gone), None, "{}", answer.head);
    }
    let place = |name: &str| {
        let mut names = answer.headers.iter().map(|(name, _)| name);
        names.position(|known| known == name).expect("a field")
    };
    assert!(place("server") < place("date") && place("x-z") < place("x-a"));
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
    assert_eq!(tidegate.metric("tidegate_buffered_bytes", &[]), 0.0);
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
    let start = clock::now();
    client.ask("/stream?n=3&ms=1000");
    assert_eq!(client.try_head().expect("a head").status, 200);
    assert_eq!(client.take_chunk().expect("an event"), b"data: 0\n\n");
    assert!(
        since(start) < Duration::from_millis(900),
        "before the second event was even made"
    );
    assert_eq!(tidegate.metric("tidegate_streaming_requests", &[]), 1.0);
    assert_eq!(tidegate.metric("tidegate_in_flight_requests", &[]), 1.0);
    assert_eq!(client.take_chunk().expect("an event"), b"data: 1\n\n");
    assert!(since(start) < Duration::from_millis(1900));
    // A client that leaves a stream ends it.
    drop(client);
    tidegate.until_idle();
    tidegate.until_metric("tidegate_streaming_requests", &[], 0.0);
}

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
        .start();
    let mut client = tidegate.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(backend.connections(), 1);
    let metrics = tidegate.metrics();
    let reused = |yes| metrics.sum("tidegate_backend_connections_total", &[("reused", yes)]);
    assert_eq!((reused("true"), reused("false")), (4.0, 1.0));
    // backend.keepalive_idle is 1 s: nobody asks any more, and still it is closed.
    told.recv_timeout(Duration::from_secs(5))
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

#[test]
fn a_post_is_never_sent_twice() {
    let backend = closing_under_the_second();
    let tidegate = Tidegate::to(backend.address())
        .set("backend.keepalive=true")
        .start();
    let mut client = tidegate.client();
    assert_eq!(client.get("/warm").status, 200);
    client.send("POST /pay HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\none");
    let answer = client.response();
    assert_eq!(
        (answer.status, answer.reason()),
        (502, "backend_reset".into())
    );
    let posts = backend
        .requests()
        .iter()
        .filter(|request| request.line().starts_with("POST"))
        .count();
    assert_eq!(posts, 1);
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

#[test]
fn a_client_that_leaves_the_queue_frees_its_place_and_never_reaches_the_backend() {
    let app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut first = tidegate.client();
    first.ask("/sleep?ms=700");
    tidegate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    let leaving: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = tidegate.client();
            client.ask("/echo");
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
    assert_eq!(first.response().text(), "slept\n");
    assert_eq!(tidegate.get("/").status, 200);
    assert_eq!(app.started("/echo"), 0);
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
    let app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut client = tidegate.client();
    client.ask("/sleep?ms=600");
    until("the view runs", || app.started("/sleep") == 1);
    drop(client);
    tidegate.until_metric("tidegate_orphaned_requests", &[], 1.0);
    assert_eq!(tidegate.metric("tidegate_in_flight_requests", &[]), 1.0);
    let next = tidegate.get("/");
    assert_eq!(next.text(), "hello\n");
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
        .set("backend.orphan_max=300ms")
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
    drop(listener);
    assert_problem(&client.get("/"), 502, "backend_unreachable");
}

#[test]
fn a_length_beside_chunked_is_one_unambiguous_request_and_the_last_of_its_connection() {
    let backend = echo_backend();
    let tidegate = Tidegate::to(backend.address()).start();
    let mut client = tidegate.client();
    client.send(
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    client.response_to("POST");
    let _ = client.read_some();
    assert_eq!(client.taken(), b"", "nothing after it is answered");
    let requests = backend.requests();
    assert!(requests.len() <= 1, "{requests:?}");
    for request in requests {
        assert_eq!(request.header("content-length").as_deref(), Some("3"));
        assert_eq!(request.header("transfer-encoding"), None);
        assert_eq!(request.body, b"abc");
    }
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
        .set("server.body_timeout=300ms")
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
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
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
    let listener = TcpListener::bind(&address).expect("the port is free");
    let _backend = Raw::on(listener, |mut conn| {
        while conn.request().is_some() && conn.ok("after") {}
    });
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

//! What of a head arrives on the other side, and what is added to it.

use super::*;

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

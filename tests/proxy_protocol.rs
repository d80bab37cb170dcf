//! The PROXY protocol: who the client is, in the words of the load balancer before us.

mod common;

use std::time::Duration;

use common::{Client, Raw, Tidegate};

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 9.8.7.6 5.6.7.8 1234 443\r\n";

fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&[9, 8, 7, 6, 5, 6, 7, 8, 4, 210, 1, 187]);
    header
}

fn local() -> Vec<u8> {
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec()
}

fn backend() -> Raw {
    Raw::answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into())
}

/// What the backend is told of the client and its port.
fn told(tidegate: &Tidegate, backend: &Raw, header: &[u8]) -> (String, String) {
    let before = backend.requests().len();
    let mut client = tidegate.client();
    client.send(header).send(GET);
    assert_eq!(client.response().status, 200);
    // Once for a connection: what follows is HTTP.
    client.send(GET);
    assert_eq!(client.response().status, 200);
    let got = &backend.requests()[before + 1];
    let field = |name| got.header(name).unwrap_or_default();
    (field("x-forwarded-for"), field("x-forwarded-port"))
}

#[test]
fn both_versions_name_the_client() {
    let backend = backend();
    for (mode, header) in [
        ("v1", V1.to_vec()),
        ("v2", v2()),
        ("auto", V1.to_vec()),
        ("auto", v2()),
    ] {
        let tidegate = Tidegate::to(backend.address())
            .set(format!("server.proxy_protocol={mode}"))
            .set("log.access=all")
            .start();
        let client = told(&tidegate, &backend, &header);
        assert_eq!(client, ("9.8.7.6".to_owned(), "443".to_owned()), "{mode}");
        common::until("the access log names the client", || {
            tidegate.log().contains("\"client\":\"9.8.7.6\"")
        });
        if mode != "v1" {
            let client = told(&tidegate, &backend, &local());
            assert_eq!(client.0, "127.0.0.1", "the proxy's own connection");
        }
    }
}

#[test]
fn it_comes_in_pieces_and_with_the_request() {
    let backend = backend();
    let tidegate = Tidegate::to(backend.address())
        .set("server.proxy_protocol=auto")
        .start();
    for header in [V1.to_vec(), v2()] {
        let all = [&header[..], GET.as_bytes(), GET.as_bytes()].concat();
        for size in [1, 7, all.len()] {
            let mut client = tidegate.client();
            for piece in all.chunks(size) {
                client.send(piece);
            }
            for _ in 0..2 {
                assert_eq!(client.response().status, 200);
            }
        }
    }
    for request in backend.requests() {
        assert_eq!(
            request.header("x-forwarded-for").as_deref(),
            Some("9.8.7.6")
        );
    }
}

#[test]
fn what_is_not_one_is_refused() {
    let backend = backend();
    let tidegate = Tidegate::to(backend.address())
        .set("server.proxy_protocol=v1")
        .set("server.header_timeout=300ms")
        .start();
    let bad: [&[u8]; 4] = [
        GET.as_bytes(),
        &v2(),
        b"PROXY TCP4 9.8.7.6 5.6.7.8 1234 443 \r\n",
        b"PROXY TCP4 9.8.7.6 5.6.7.8 1234 443\n",
    ];
    for header in bad {
        let mut client = tidegate.client();
        client.send(header).send(GET);
        let answer = client.response();
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (400, "bad_request")
        );
        assert!(client.is_closed());
    }
    // One that is never complete, and none at all.
    for header in [&V1[..20], b""] {
        let mut client = tidegate.client();
        client.send(header);
        assert_eq!(client.response().status, 408);
        assert!(client.is_closed());
    }
    assert!(backend.requests().is_empty());
    let refused = tidegate.metric(
        "tidegate_rejected_requests_total",
        &[("reason", "bad_request")],
    );
    assert_eq!(refused, 4.0);
}

#[test]
fn only_trusted_proxies_are_believed() {
    let backend = backend();
    let trusting = |proxies: &str| {
        Tidegate::to(backend.address())
            .toml(&format!(
                "[server]\nproxy_protocol = \"auto\"\n[headers]\ntrusted_proxies = [\"{proxies}\"]"
            ))
            .start()
    };
    let near = trusting("127.0.0.0/8");
    assert_eq!(told(&near, &backend, V1).0, "9.8.7.6");
    // The client itself is a stranger, whatever it says.
    let mut client = near.client();
    client.send(V1);
    client.send("GET / HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n");
    assert_eq!(client.response().status, 200);
    let got = backend.requests().pop().expect("a request");
    assert_eq!(got.header("x-forwarded-for").as_deref(), Some("9.8.7.6"));

    // From anybody else it is not HTTP, and HTTP needs no header.
    let far = trusting("10.0.0.0/8");
    assert_eq!(told(&far, &backend, b"").0, "127.0.0.1");
    let mut client = far.client();
    client.set_timeout(Duration::from_secs(20));
    client.send(V1).send(GET);
    assert_eq!(client.response().status, 400);
}

#[test]
fn over_a_unix_socket() {
    let backend = backend();
    let dir = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", dir.path().join("in").display());
    let tidegate = Tidegate::to(backend.address())
        .listen(&address)
        .set("server.proxy_protocol=v2")
        .start();
    let mut client = Client::connect(tidegate.address());
    client.send(v2()).send(GET);
    assert_eq!(client.response().status, 200);
    let got = backend.requests().pop().expect("a request");
    assert_eq!(got.header("x-forwarded-for").as_deref(), Some("9.8.7.6"));
}

#[test]
fn whoever_passes_a_client_on_unnamed_says_nothing_of_it() {
    let backend = backend();
    let unspecified = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0".to_vec();
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), unspecified, local()] {
        let tidegate = Tidegate::to(backend.address())
            .set("server.proxy_protocol=auto")
            .set("headers.trusted_proxies=127.0.0.0/8")
            .start();
        let before = backend.requests().len();
        let mut client = tidegate.client();
        client.send(header).send(
            "GET / HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n",
        );
        assert_eq!(client.response().status, 200);
        let got = &backend.requests()[before];
        let field = |name| got.header(name).unwrap_or_default();
        assert_eq!(field("x-forwarded-for"), "127.0.0.1");
        assert_eq!(field("x-forwarded-proto"), "http");
    }
}

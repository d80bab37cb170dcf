//! What a gateway's duties on heads cost a request: the guard that judges its bytes, the checks and the
//! cleaning, the fields that are added.
//!
//! ```sh
//! cargo bench --bench hygiene
//! ```

use divan::{Bencher, black_box};
use http::{HeaderName, HeaderValue, Response};
use tidegate::{config::Config, proxy::head::Heads};

fn main() {
    divan::main();
}

/// As `benches/instructions` sends it.
const SMALL: &str = "GET /small HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
/// From a browser, by way of nobody.
const BROWSER: &str = "GET /api/items?page=2 HTTP/1.1\r\nHost: app.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: application/json\r\n\
    Accept-Encoding: gzip, deflate\r\nAccept-Language: en\r\nCookie: session=0123456789abcdef\r\n\r\n";
/// With fields that end here, and some that only a proxy may send.
const SPOOFED: &str = "GET /api/items?page=2 HTTP/1.1\r\nHost: app.example\r\n\
    Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nX-Forwarded-For: 203.0.113.9\r\n\
    X-Forwarded-Host: evil.example\r\nX_Forwarded_Proto: https\r\nAccept: */*\r\n\r\n";

const HEADS: [(&str, &str); 3] = [("small", SMALL), ("browser", BROWSER), ("spoofed", SPOOFED)];
const NAMES: [&str; 3] = ["small", "browser", "spoofed"];

fn heads() -> Heads {
    Heads::new(
        Config::default(),
        "192.0.2.7:1234".parse().expect("an address"),
    )
}

fn text(name: &str) -> &'static str {
    let mut heads = HEADS.iter();
    heads
        .find(|(known, _)| *known == name)
        .map_or("", |(_, text)| text)
}

/// The bytes of a head, in one piece.
#[divan::bench(args = NAMES)]
fn guard(bencher: Bencher, name: &str) {
    let (heads, text) = (heads(), text(name));
    assert_eq!(heads.guard(text.as_bytes()), text.len(), "it may pass");
    bencher.bench_local(|| heads.guard(black_box(text.as_bytes())));
}

/// Checked, cleaned, and with the forwarding fields. The copy of the head is not counted.
#[divan::bench(args = NAMES)]
fn inbound(bencher: Bencher, name: &str) {
    let heads = heads();
    let request = heads.request(text(name).into()).expect("a request");
    let (now, mut out) = (tidegate::clock::now(), Vec::new());
    let mut inbound = |mut request: Box<_>| {
        out.clear();
        let passed = heads.inbound(&mut request, now, &mut out);
        passed.expect("it may pass");
        request
    };
    inbound(request.clone());
    bencher
        .with_inputs(|| request.clone())
        .bench_local_values(inbound);
}

/// An answer's head.
#[divan::bench]
fn outbound(bencher: Bencher) {
    let heads = heads();
    let mut response = Response::new(());
    for (name, value) in [
        ("server", "gunicorn"),
        ("date", "Tue, 01 Jan 2030 00:00:00 GMT"),
        ("connection", "close"),
        ("content-type", "application/json"),
        ("content-length", "20"),
    ] {
        let name = HeaderName::from_static(name);
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    bencher
        .with_inputs(|| response.clone())
        .bench_local_values(|mut response| {
            heads.outbound(&mut response);
            response
        });
}

//! The guard against a naive reading of the same rules, at any segmentation.

use proptest::prelude::*;

use super::{naive::Rules, *};

const LIMITS: Limits = Limits {
    head: 512,
    fields: 8,
};
const RULES: Rules = Rules {
    head: 512,
    fields: 8,
    extensions: 4096,
    trailers: 8192,
};

/// Gives the bytes in pieces of these sizes, over and over. Where messages end, and whether one was
/// refused.
fn follow(bytes: &[u8], sizes: &[usize]) -> (Vec<usize>, bool) {
    let mut guard = Guard::new(LIMITS);
    let (mut ends, mut held, mut seen, mut turn) = (Vec::new(), BytesMut::new(), 0, 0);
    loop {
        if guard.in_head() {
            match guard.head(&held) {
                Err(_) => return (ends, true),
                Ok(Some(head)) => held.advance(head.length),
                Ok(None) => {}
            }
        }
        loop {
            match guard.body(&mut held) {
                Err(BadBody) => return (ends, true),
                Ok(Some(data)) => assert!(!data.is_empty(), "a part of nothing"),
                Ok(None) => break,
            }
        }
        if guard.is_done() {
            ends.push(seen - held.len());
            guard.next_message();
        } else if seen == bytes.len() {
            return (ends, false);
        } else {
            let more = bytes.len().min(seen + sizes[turn % sizes.len()]);
            held.extend_from_slice(&bytes[seen..more]);
            seen = more;
            turn += 1;
        }
    }
}

/// Pieces of requests: most whole, some that only look like it.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a?b HTTP/1.0\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\n",
        "Content-Length: 3\r\n",
        "Content-Length: 0\r\n",
        "Content-Length : 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding:\tChunked \r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "X: y\r\n",
        " folded\r\n",
        "\r\n",
        "\n",
        "\r",
        "0\r\n",
        "000\r\n",
        "a;x=\"\\\"y\" ; z\r\n0123456789\r\n",
        "3 ;x\r\nabc\r\n",
        "3 \r\nabc\r\n",
        "ffffffffffffffff\r\n",
        "5\r\nhello\r\n",
        "5\r\nhello",
        "X-Trailer: 1\r\n",
        "Host: b\r\n",
        "GET / HTTP/1.2\r\n",
        "GET /# HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
    ]);
    prop_oneof![
        8 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
        1 => "[ -~\\r\\n]{1,12}".prop_map(String::into_bytes),
    ]
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let mutation = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    (
        prop::collection::vec(piece(), 1..7),
        prop::collection::vec(mutation, 0..3),
    )
        .prop_map(|(pieces, mutations)| {
            let mut bytes = pieces.concat();
            for (at, byte, kind) in mutations {
                if bytes.is_empty() {
                    break;
                }
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, byte),
                    _ => bytes.insert(at, b"\r\n \t:;,0"[usize::from(byte & 7)]),
                }
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn it_reads_as_the_naive_one_does(bytes in stream()) {
        prop_assert_eq!(follow(&bytes, &[usize::MAX]), naive::messages(&bytes, RULES));
    }

    #[test]
    fn the_pieces_do_not_matter(
        bytes in stream(),
        sizes in prop::collection::vec(1..9_usize, 1..5),
    ) {
        let whole = follow(&bytes, &[usize::MAX]);
        prop_assert_eq!(&follow(&bytes, &sizes), &whole);
        prop_assert_eq!(follow(&bytes, &[1]), whole);
    }
}

fn head(bytes: &str) -> Result<Option<Head>, BadHead> {
    HeadScanner::default().scan(bytes.as_bytes(), Limits::new(256), &mut Vec::new())
}

#[test]
fn what_is_wrong_has_a_name() {
    let long = "x".repeat(300);
    for (bytes, bad) in [
        ("GET / HTTP/1.2\r\n", BadHead::Version),
        ("GET / HTTP/2.0\r\n", BadHead::Version),
        ("GET / http/1.1\r\n", BadHead::Syntax),
        ("GET /\r\n", BadHead::Syntax),
        ("GET /\tHTTP/1.1\r\n", BadHead::Syntax),
        ("GET /a#b HTTP/1.1\r\n", BadHead::Target),
        ("GET /\u{e4} HTTP/1.1\r\n", BadHead::Target),
        ("G{T / HTTP/1.1\r\n", BadHead::Syntax),
        (" GET / HTTP/1.1\r\n", BadHead::Syntax),
        ("\u{16}\u{3}\u{1}", BadHead::Syntax),
        ("GET / HTTP/1.1\n", BadHead::Syntax),
        ("\r\n\r\nGET", BadHead::Syntax),
        (
            "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1\r\n",
            BadHead::Method,
        ),
        (&format!("GET /{long}"), BadHead::TargetTooLong),
        (
            &format!("GET / HTTP/1.1\r\nA: {long}"),
            BadHead::FieldsTooLarge,
        ),
        (
            &format!("GET / HTTP/1.1\r\n{}", "a:b\r\n".repeat(101)),
            BadHead::FieldsTooLarge,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n", BadHead::Host),
        (
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            BadHead::Framing,
        ),
        (
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            BadHead::Framing,
        ),
        (
            "GET / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n",
            BadHead::Framing,
        ),
    ] {
        assert_eq!(head(bytes), Err(bad), "{bytes:?}");
    }
}

/// Reads a part of a body; how long its data are.
fn read(guard: &mut Guard, bytes: &[u8]) -> Result<usize, BadBody> {
    let (mut bytes, mut length) = (BytesMut::from(bytes), 0);
    while let Some(data) = guard.body(&mut bytes)? {
        length += data.len();
    }
    Ok(length)
}

#[test]
fn a_body_is_handed_over_without_its_coding() {
    let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = b"5;x=y\r\nhello\r\n00000006\r\n world\r\n0\r\nT: x\r\n\r\nGET";
    for size in 1..=body.len() {
        let mut guard = Guard::new(Limits::new(1024));
        guard.head(head.as_bytes()).expect("it is sound");
        let (mut held, mut out) = (BytesMut::new(), Vec::new());
        for part in body.chunks(size) {
            held.extend_from_slice(part);
            while let Some(data) = guard.body(&mut held).expect("it is sound") {
                out.extend_from_slice(&data);
            }
        }
        assert_eq!(out, b"hello world");
        assert!(guard.is_done());
        assert_eq!(&held[..], b"GET", "in pieces of {size}");
    }
}

#[test]
fn floods_of_extensions_and_trailers_end() {
    let start = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (flood, piece) in [
        ("5;", "x".to_owned()),
        ("", format!("1;{}\r\nx\r\n", "y".repeat(100))),
        ("0\r\n", "a: b\r\n".to_owned()),
        ("0\r\na:", "b".to_owned()),
    ] {
        let mut guard = Guard::new(Limits::new(1024));
        let head = guard.head(start.as_bytes()).expect("it is sound");
        assert_eq!(head.map(|head| head.length), Some(start.len()));
        let flood = format!("{flood}{}", piece.repeat(20_000));
        let ended = flood
            .as_bytes()
            .chunks(50)
            .position(|c| read(&mut guard, c).is_err());
        let seen = ended.expect("it ends") * 50;
        assert!(seen < 20_000, "{seen} bytes of {piece:?}");
    }
}

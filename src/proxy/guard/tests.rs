//! The guard against a naive reading of the same rules, at any segmentation.

use proptest::prelude::*;

use super::{head::Head, *};

const LIMITS: Limits = Limits {
    head: 512,
    fields: 8,
};

/// Gives the bytes in pieces of these sizes, over and over. What passed, and how it ended.
fn follow(bytes: &[u8], sizes: &[usize]) -> (Vec<usize>, Option<Bad>) {
    let mut guard = Guard::new(LIMITS);
    let (mut ends, mut passed, mut seen, mut turn) = (Vec::new(), 0, 0, 0);
    loop {
        match guard.advance(&bytes[passed..seen]) {
            Err(bad) => return (ends, Some(bad)),
            Ok(more) => passed += more,
        }
        if guard.is_broken() {
            return (ends, Some(Bad::Body));
        }
        if guard.is_done() {
            ends.push(passed);
            guard.next_message();
        } else if seen == bytes.len() {
            return (ends, None);
        } else {
            seen = bytes.len().min(seen + sizes[turn % sizes.len()]);
            turn += 1;
        }
    }
}

/// The same, with everything at hand and no thought of speed: where the message at the beginning
/// ends; `None` if it is not complete.
fn naive(bytes: &[u8]) -> Result<Option<usize>, ()> {
    let (mut at, mut lines) = (0, Vec::new());
    loop {
        let Some(lf) = bytes[at..].iter().position(|&byte| byte == b'\n') else {
            let text = if lines.is_empty() { at } else { usize::MAX };
            let hopeless = bytes
                .get(text)
                .is_some_and(|b| !token(&[*b]) && *b != b'\r');
            return if bytes.len() >= LIMITS.head || hopeless {
                Err(())
            } else {
                Ok(None)
            };
        };
        if at + lf >= LIMITS.head {
            return Err(());
        }
        let line = bytes[at..at + lf].strip_suffix(b"\r").ok_or(())?;
        let leading = at == 0 && line.is_empty();
        at += lf + 1;
        if leading {
            continue;
        }
        if lines.is_empty() {
            naive_request_line(line)?;
        } else if line.is_empty() {
            break;
        } else {
            naive_field(line)?;
        }
        lines.push(line);
        if lines.len() > LIMITS.fields + 1 {
            return Err(());
        }
        naive_framing(&lines, false)?;
    }
    match naive_framing(&lines, true)? {
        Framing::None => Ok(Some(at)),
        Framing::Length(length) => {
            let end = at as u64 + length;
            Ok((end <= bytes.len() as u64).then_some(end as usize))
        }
        Framing::Chunked => Ok(naive_chunks(&bytes[at..])?.map(|length| at + length)),
    }
}

fn token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == b'\t' || b >= b' ' && b != 0x7f)
}

fn naive_request_line(line: &[u8]) -> Result<(), ()> {
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return Err(());
    };
    let target_is_fine =
        !target.is_empty() && target.iter().all(|b| b.is_ascii_graphic() && *b != b'#');
    let version_is_fine = version == b"HTTP/1.1" || version == b"HTTP/1.0";
    let fine = token(method) && method.len() <= 32 && target_is_fine && version_is_fine;
    fine.then_some(()).ok_or(())
}

fn naive_field(line: &[u8]) -> Result<(), ()> {
    let colon = line.iter().position(|&byte| byte == b':').ok_or(())?;
    (token(&line[..colon]) && text(&line[colon + 1..]))
        .then_some(())
        .ok_or(())
}

fn naive_framing(lines: &[&[u8]], complete: bool) -> Result<Framing, ()> {
    let values = |wanted: &str| -> Vec<String> {
        lines[1..]
            .iter()
            .filter_map(|line| {
                let line = String::from_utf8_lossy(line).into_owned();
                let (name, value) = line.split_once(':')?;
                let value = value.trim_matches([' ', '\t']).to_ascii_lowercase();
                name.eq_ignore_ascii_case(wanted).then_some(value)
            })
            .collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let http10 = lines[0].ends_with(b"0");
    if values("host").len() > 1 || lengths.len() > 1 || codings.len() > 1 {
        return Err(());
    }
    let length = match lengths.first() {
        None => 0,
        Some(length) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            u64::try_from(length.parse::<i64>().map_err(drop)?).map_err(drop)?
        }
        Some(_) => return Err(()),
    };
    match codings.first().map(String::as_str) {
        None if length == 0 => Ok(Framing::None),
        None => Ok(Framing::Length(length)),
        Some("chunked") if complete && (http10 || !lengths.is_empty()) => Err(()),
        Some("chunked") => Ok(Framing::Chunked),
        Some(_) => Err(()),
    }
}

fn naive_chunks(bytes: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    loop {
        let Some(lf) = bytes[at..].iter().position(|&byte| byte == b'\n') else {
            return naive_partial_size(&bytes[at..]).map(|()| None);
        };
        let line = bytes[at..at + lf].strip_suffix(b"\r").ok_or(())?;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        let size = std::str::from_utf8(size).map_err(drop)?;
        if size.len() > 16 || !naive_extension(extension) {
            return Err(());
        }
        let size = i64::from_str_radix(size, 16).map_err(drop)? as u64;
        at += lf + 1;
        if size == 0 {
            break;
        }
        let left = (bytes.len() - at) as u64;
        let end = bytes
            .get(at + size.min(left) as usize..)
            .unwrap_or_default();
        if left < size + 2 {
            let fine = left <= size || end == b"\r";
            return if fine { Ok(None) } else { Err(()) };
        }
        if !end.starts_with(b"\r\n") {
            return Err(());
        }
        at += size as usize + 2;
    }
    for fields in 0.. {
        let rest = &bytes[at..];
        let Some(lf) = rest.iter().position(|&byte| byte == b'\n') else {
            let cr = rest.iter().position(|&byte| byte == b'\r');
            let fine = cr.is_none_or(|cr| cr + 1 == rest.len());
            return if fine { Ok(None) } else { Err(()) };
        };
        let line = rest[..lf].strip_suffix(b"\r").ok_or(())?;
        at += lf + 1;
        if line.is_empty() {
            return Ok(Some(at));
        }
        naive_field(line)?;
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let never = "content-length transfer-encoding host connection trailer";
        if fields == LIMITS.fields || never.split(' ').any(|never| never == name) {
            return Err(());
        }
    }
    Ok(None)
}

/// Whether anything could still become of a line with a size that has no end yet.
fn naive_partial_size(line: &[u8]) -> Result<(), ()> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, rest) = line.split_at(digits);
    let size = std::str::from_utf8(size).map_err(drop)?;
    let too_large = size.len() > 16 || (!size.is_empty() && i64::from_str_radix(size, 16).is_err());
    if too_large || (size.is_empty() && !rest.is_empty()) {
        return Err(());
    }
    // With the shortest end that could be meant.
    let ends = ["", "x", "\"", "x\"", "=x", ";x"];
    let whole = rest.strip_suffix(b"\r").unwrap_or(rest);
    let ends = if whole.len() < rest.len() {
        &ends[..1]
    } else {
        &ends[..]
    };
    ends.iter()
        .any(|end| naive_extension(&[whole, end.as_bytes()].concat()))
        .then_some(())
        .ok_or(())
}

/// `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )`, and BWS behind one.
fn naive_extension(mut rest: &[u8]) -> bool {
    fn blank(rest: &[u8]) -> &[u8] {
        let spaces = rest.iter().take_while(|b| b" \t".contains(b)).count();
        &rest[spaces..]
    }
    fn word(rest: &[u8]) -> Option<&[u8]> {
        let length = rest.iter().take_while(|b| token(&[**b])).count();
        (length > 0).then(|| &rest[length..])
    }
    while !rest.is_empty() {
        let Some(after) = blank(rest).strip_prefix(b";") else {
            return false;
        };
        let Some(after) = word(blank(after)) else {
            return false;
        };
        rest = blank(after);
        if let Some(value) = rest.strip_prefix(b"=") {
            let value = blank(value);
            let Some(mut quoted) = value.strip_prefix(b"\"") else {
                let Some(after) = word(value) else {
                    return false;
                };
                rest = blank(after);
                continue;
            };
            loop {
                let Some((&first, after)) = quoted.split_first() else {
                    return false;
                };
                quoted = after;
                match first {
                    b'"' => break,
                    b'\\' => match quoted.split_first() {
                        Some((&escaped, after)) if text(&[escaped]) => quoted = after,
                        _ => return false,
                    },
                    other if text(&[other]) => {}
                    _ => return false,
                }
            }
            rest = blank(quoted);
        }
    }
    true
}

fn naive_follow(bytes: &[u8]) -> (Vec<usize>, bool) {
    let (mut ends, mut at) = (Vec::new(), 0);
    loop {
        match naive(&bytes[at..]) {
            Err(()) => return (ends, true),
            Ok(None) => return (ends, false),
            Ok(Some(length)) => {
                at += length;
                ends.push(at);
            }
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
        let (ends, bad) = follow(&bytes, &[usize::MAX]);
        prop_assert_eq!((ends, bad.is_some()), naive_follow(&bytes));
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
    HeadScanner::default().scan(bytes.as_bytes(), Limits::new(256))
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
        assert_eq!(guard.advance(start.as_bytes()), Ok(start.len()));
        let flood = format!("{flood}{}", piece.repeat(20_000));
        let ended = flood
            .as_bytes()
            .chunks(50)
            .position(|c| guard.advance(c).is_err());
        let seen = ended.expect("it ends") * 50;
        assert!(seen < 20_000, "{seen} bytes of {piece:?}");
    }
}

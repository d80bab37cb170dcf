use super::*;

/// The head, past all interim answers that are there.
fn next(heads: &mut Heads, bytes: &mut BytesMut) -> Result<Option<Head>, Malformed> {
    loop {
        let head = heads.take(bytes)?;
        if head.is_some() || heads.told().is_none() {
            return Ok(head);
        }
    }
}

fn take(method: &Method, text: &[u8]) -> Result<Option<(Head, BytesMut)>, Malformed> {
    let mut bytes = BytesMut::from(text);
    let head = next(&mut Heads::new(method, false), &mut bytes)?;
    Ok(head.map(|head| (head, bytes)))
}

fn get(text: &[u8]) -> (Head, BytesMut) {
    take(&Method::GET, text)
        .expect("it is HTTP")
        .expect("it is whole")
}

#[test]
fn a_head_is_taken_and_the_body_left() {
    let (head, rest) =
        get(b"HTTP/1.1 201 Made\r\nA: 1\r\nB:  x y \r\na: 2\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(head.response.status(), 201);
    let fields: Vec<_> = head.response.headers().get_all("a").iter().collect();
    assert_eq!(fields, ["1", "2"]);
    assert_eq!(head.response.headers()["b"], "x y");
    let reason = head.response.extensions().get::<ReasonPhrase>();
    assert_eq!(reason.map(ReasonPhrase::as_bytes), Some(&b"Made"[..]));
    assert_eq!(head.body.remaining(), Some(3));
    assert!(head.keep_alive);
    assert_eq!(&rest[..], b"abc");
}

#[test]
fn interim_answers_come_one_by_one_up_to_a_bound() {
    let mut bytes = BytesMut::from(&b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nServer: s\r\nLink: x\r\nConnection: close\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"[..]);
    let mut heads = Heads::new(&Method::GET, false);
    for (status, fields) in [(100, ""), (103, "server: s, link: x")] {
        assert!(heads.take(&mut bytes).expect("HTTP").is_none() && heads.has_told());
        let told = heads.told().expect("an interim answer");
        assert_eq!(told.status(), status);
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("ASCII"))
        };
        let all: Vec<_> = told.headers().iter().map(text).collect();
        assert_eq!(all.join(", "), fields);
    }
    let head = heads.take(&mut bytes).expect("HTTP").expect("whole");
    assert_eq!(head.response.status(), 204);
    assert!(heads.told().is_none());
    let many = |text: &[u8], times| take(&Method::GET, &text.repeat(times));
    let hint = b"HTTP/1.1 103 Early Hints\r\n\r\n";
    assert!(matches!(many(hint, INTERIM_MAX), Ok(None)));
    let long = [&hint[..26], b"A: ", &[b'a'; 4096], b"\r\n\r\n"].concat();
    for (text, times) in [(&hint[..], INTERIM_MAX + 1), (&long, HEAD_MAX / 4096)] {
        assert_eq!(many(text, times).unwrap_err(), Malformed::HeadTooLong);
    }
    let unended = [b"HTTP/1.1 200 OK\r\nA: ", vec![b'a'; HEAD_MAX].as_slice()].concat();
    assert_eq!(
        take(&Method::GET, &unended).unwrap_err(),
        Malformed::HeadTooLong
    );
}

#[test]
fn what_says_where_the_body_ends() {
    let body = |method: &Method, text: &str| {
        let text = format!("HTTP/1.1 {text}\r\n\r\n");
        let (head, _) = take(method, text.as_bytes()).expect("HTTP").expect("whole");
        (head.body.remaining(), head.body.has_an_end())
    };
    let get = Method::GET;
    assert_eq!(body(&get, "200 OK\r\nContent-Length: 5"), (Some(5), true));
    assert_eq!(
        body(&get, "200 OK\r\nTransfer-Encoding: Chunked"),
        (None, true)
    );
    assert_eq!(body(&get, "200 OK"), (None, false));
    assert_eq!(
        body(&get, "204 No Content\r\nContent-Length: 5"),
        (Some(0), true)
    );
    assert_eq!(
        body(&get, "304 Not Modified\r\nContent-Length: 5"),
        (Some(0), true)
    );
    assert_eq!(
        body(&Method::HEAD, "200 OK\r\nContent-Length: 5"),
        (Some(0), true)
    );
    assert_eq!(
        body(&Method::HEAD, "200 OK\r\nTransfer-Encoding: chunked"),
        (Some(0), true)
    );
}

#[test]
fn whether_the_connection_stays_open() {
    for (text, open) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0", true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\nConnection: close",
            false,
        ),
        ("HTTP/1.1 200 OK", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0", false),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive",
            true,
        ),
    ] {
        let (head, _) = get(format!("{text}\r\n\r\n").as_bytes());
        assert_eq!(head.keep_alive, open, "{text}");
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    use Malformed::{Field, Fields, Framing, StatusLine, Unasked};
    let many = format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(FIELDS_MAX + 1));
    for (text, why) in [
        ("\r\nHTTP/1.1 200 OK\r\n", StatusLine),
        ("hello\r\n", StatusLine),
        ("HTTP/2.0 200 OK\r\n", StatusLine),
        ("HTTP/1.1 099 Low\r\n", StatusLine),
        ("HTTP/1.1 1000 High\r\n", StatusLine),
        ("HTTP/1.1 200OK\r\n", StatusLine),
        ("HTTP/1.1 20 OK\r\n", StatusLine),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n",
            Unasked,
        ),
        ("HTTP/1.1 200 OK\nA: b\r\n", Field),
        ("HTTP/1.1 200 OK\r\nA: b\nB: c\r\n", Field),
        ("HTTP/1.1 200 OK\r\nA : b\r\n", Field),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n", Field),
        ("HTTP/1.1 200 OK\r\nA: b\0\r\n", Field),
        ("HTTP/1.1 200 OK\r\nA: b\rc\r\n", Field),
        ("HTTP/1.1 200 OK\r\nA\r\n", Field),
        ("HTTP/1.1 200 OK\r\n: b\r\n", Field),
        (&many, Fields),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
            Framing,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n", Framing),
        ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n", Framing),
        ("HTTP/1.1 200 OK\r\nContent-Length:\r\n", Framing),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n",
            Framing,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            Framing,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Framing,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n",
            Framing,
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n", Framing),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n", Framing),
    ] {
        let told = take(&Method::GET, format!("{text}\r\n").as_bytes());
        assert_eq!(told.err(), Some(why), "{text:?}");
    }
    // Without waiting for the end of a head.
    assert_eq!(take(&Method::GET, b"<html>").unwrap_err(), StatusLine);
    assert_eq!(
        take(&Method::GET, b"HTTP/1.1 200 OK\n\n").unwrap_err(),
        Field
    );
}

#[test]
fn a_101_is_taken_where_it_was_asked_for() {
    let mut bytes =
        BytesMut::from(&b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nfirst"[..]);
    let head = Heads::new(&Method::GET, true)
        .take(&mut bytes)
        .expect("HTTP")
        .expect("whole");
    assert_eq!(head.response.status(), 101);
    assert_eq!(&bytes[..], b"first");
}

proptest::proptest! {
    #[test]
    fn any_segmentation_tells_the_same(cuts in proptest::collection::vec(1..20_usize, 0..40)) {
        let text: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\nab";
        let mut heads = Heads::new(&Method::GET, false);
        let (mut bytes, mut at, mut found) = (BytesMut::new(), 0, None);
        for cut in cuts.into_iter().chain([text.len()]) {
            let to = (at + cut).min(text.len());
            bytes.extend_from_slice(&text[at..to]);
            at = to;
            if found.is_none() {
                found = next(&mut heads, &mut bytes).expect("HTTP");
            }
        }
        let head = found.expect("it is whole");
        proptest::prop_assert_eq!(head.response.status().as_u16(), 200);
        proptest::prop_assert_eq!(&bytes[..], b"ab");
    }

    #[test]
    fn no_bytes_panic(text: Vec<u8>, head: bool) {
        let method = if head { Method::HEAD } else { Method::GET };
        let _ = take(&method, &[b"HTTP/1.1 ", text.as_slice(), b"\r\n\r\n"].concat());
        let _ = take(&method, &text);
    }
}

/// What a head says, but for what frames the message: the version, the status with its reason, and the fields, sorted.
type Told = (u8, u16, Option<Vec<u8>>, Vec<(String, Vec<u8>)>);

fn sorted(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let framing = ["connection", "content-length", "transfer-encoding"];
    let mut fields: Vec<_> = fields
        .filter(|(name, _)| !framing.contains(&&**name))
        .collect();
    fields.sort();
    fields
}

/// As a general parser reads it.
fn general(head: &[u8]) -> Option<Told> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = parsed.parse(head).ok()?;
    assert_eq!(length, httparse::Status::Complete(head.len()));
    let status = StatusCode::from_u16(parsed.code?).ok()?;
    let reason = parsed.reason.unwrap_or_default();
    let reason = (status.canonical_reason() != Some(reason)).then(|| reason.as_bytes().to_vec());
    let field = |field: &httparse::Header<'_>| (field.name.to_lowercase(), field.value.to_vec());
    let fields = sorted(parsed.headers.iter().map(field));
    Some((parsed.version?, status.as_u16(), reason, fields))
}

fn ours(head: &[u8]) -> Option<Told> {
    let head = Bytes::copy_from_slice(head);
    let mut ends = Ends::default();
    memchr::memchr_iter(b'\n', &head).for_each(|at| ends.push(at));
    let mut parsed = parse(&head, &ends, false).ok()?;
    parsed.usual.unfold(parsed.response.headers_mut());
    let response = &parsed.response;
    let reason = response.extensions().get::<ReasonPhrase>();
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), value.as_bytes().to_vec())
    };
    Some((
        u8::from(response.version() == Version::HTTP_11),
        response.status().as_u16(),
        reason.map(|reason| reason.as_bytes().to_vec()),
        sorted(response.headers().iter().map(field)),
    ))
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(2000))]

    /// Whatever is written into a head, between the ends of its lines.
    #[test]
    fn a_head_is_read_as_a_general_parser_reads_it(
        line in 0..7_usize,
        at in 0..40_usize,
        gone in 0..3_usize,
        other in proptest::collection::vec(proptest::prop_oneof![
            proptest::sample::select(&b" \t:-\r\0\x7f\x80_3a"[..]), proptest::num::u8::ANY,
        ], 0..3),
    ) {
        let mut lines = [
            &b"HTTP/1.1 200 OK"[..], b"Server: gunicorn", b"X-Own:a", b"Date: Tue, 1 Jan 2030", b"Vary:  x, y ",
            b"Connection: keep-alive", b"Content-Length: 20", b"", b"",
        ].map(<[u8]>::to_vec);
        let text = &mut lines[line];
        let at = at.min(text.len());
        let to = (at + gone).min(text.len());
        text.splice(at..to, other.into_iter().filter(|&byte| byte != b'\n'));
        // An empty line would be the end.
        proptest::prop_assume!(!text.is_empty());
        let head = lines.join(&b"\r\n"[..]);
        proptest::prop_assert_eq!(ours(&head), general(&head), "{}", head.escape_ascii());
    }
}

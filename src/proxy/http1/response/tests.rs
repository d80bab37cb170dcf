use super::*;

const GET: Asked = Asked {
    head: false,
    http10: false,
    trailers: false,
};
const OLD: Asked = Asked {
    http10: true,
    ..GET
};
const HEAD: Asked = Asked { head: true, ..GET };

fn answer(status: u16, fields: &[(&str, &str)]) -> Response<()> {
    let mut response = Response::builder().status(status).header("date", "now");
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(()).expect("an answer")
}

/// The head without the date, how the body is framed, and whether the connection stays.
fn head(
    response: &Response<()>,
    length: Length,
    asked: Asked,
    keep_alive: bool,
) -> (String, Framing, bool) {
    let mut out = Outgoing::default();
    let (framing, keep_alive) =
        out.push_head(response, &Usual::default(), length, asked, keep_alive);
    let text = String::from_utf8(out.parts().concat()).expect("ASCII");
    (text.replace("date: now\r\n", ""), framing, keep_alive)
}

#[test]
fn a_head_says_how_its_body_is_framed() {
    let length = ("content-length", "3");
    for (status, fields, body, asked, text, framing) in [
        (
            200,
            &[length][..],
            Length::Known(3),
            GET,
            "content-length: 3",
            Framing::Length(3),
        ),
        (
            200,
            &[],
            Length::Known(3),
            GET,
            "content-length: 3",
            Framing::Length(3),
        ),
        (
            200,
            &[length],
            Length::Unknown,
            GET,
            "content-length: 3",
            Framing::Length(3),
        ),
        (
            200,
            &[],
            Length::None,
            GET,
            "content-length: 0",
            Framing::Length(0),
        ),
        (
            200,
            &[length],
            Length::None,
            GET,
            "content-length: 0",
            Framing::Length(0),
        ),
        (
            200,
            &[length],
            Length::None,
            HEAD,
            "content-length: 3",
            Framing::Length(0),
        ),
        (
            200,
            &[],
            Length::Known(3),
            HEAD,
            "content-length: 3",
            Framing::Length(0),
        ),
        (200, &[], Length::None, HEAD, "", Framing::Length(0)),
        (
            200,
            &[],
            Length::Unknown,
            GET,
            "transfer-encoding: chunked",
            Framing::Chunked(Vec::new()),
        ),
        (
            204,
            &[length],
            Length::Known(3),
            GET,
            "",
            Framing::Length(0),
        ),
        (304, &[], Length::Unknown, GET, "", Framing::Length(0)),
        (
            304,
            &[length],
            Length::None,
            GET,
            "content-length: 3",
            Framing::Length(0),
        ),
    ] {
        let (told, by, keep_alive) = head(&answer(status, fields), body, asked, true);
        let fields = told.split_once("\r\n").expect("a line").1;
        assert_eq!(fields.trim_end(), text, "{status} {body:?} {asked:?}");
        assert_eq!(by, framing, "{status} {body:?} {asked:?}");
        assert!(keep_alive && told.ends_with("\r\n\r\n"));
    }
}

#[test]
fn it_says_what_the_version_does_not_take_for_granted() {
    let plain = answer(200, &[]);
    let of = |asked, keep_alive| head(&plain, Length::Known(1), asked, keep_alive);
    assert!(!of(GET, true).0.contains("connection"));
    assert!(of(GET, false).0.contains("\r\nconnection: close\r\n"));
    assert!(of(OLD, true).0.contains("\r\nconnection: keep-alive\r\n"));
    assert!(!of(OLD, false).0.contains("connection"));
    assert!(of(OLD, false).0.starts_with("HTTP/1.0 200 OK\r\n"));
    let closes = answer(503, &[("connection", "close")]);
    let (text, _, keep_alive) = head(&closes, Length::Known(1), GET, true);
    assert_eq!(text.matches("connection: close").count(), 1);
    assert!(!keep_alive);
    let (text, framing, keep_alive) = head(&plain, Length::Unknown, OLD, true);
    assert!(!text.contains("connection") && !keep_alive);
    assert_eq!(framing, Framing::UntilClose, "HTTP/1.0 has no chunks");
    let switch = answer(101, &[("upgrade", "x"), ("connection", "upgrade")]);
    let (text, _, keep_alive) = head(&switch, Length::None, GET, true);
    assert_eq!(
        text,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
    );
    assert!(!keep_alive);
}

#[test]
fn a_date_is_added_where_there_is_none() {
    let mut response = answer(200, &[]);
    response.headers_mut().remove("date");
    let (text, ..) = head(&response, Length::None, GET, true);
    let date = text.split("date: ").nth(1).expect("a date");
    let date = date.split("\r\n").next().expect("a line");
    assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
}

/// The bytes of a body in these parts.
fn body(parts: &[usize], mut framing: Framing, trailers: Option<&HeaderMap>) -> (Vec<u8>, bool) {
    let (mut out, mut wire) = (Outgoing::default(), Vec::new());
    let mut write = |out: &mut Outgoing| {
        // In pieces, as a slow socket takes them.
        while !out.is_empty() {
            let bytes = out.parts().concat();
            let size = bytes.len().min(1000);
            wire.extend_from_slice(&bytes[..size]);
            out.advance(size);
        }
    };
    for &part in parts {
        if !out.has_room() {
            write(&mut out);
        }
        out.push_data(Bytes::from(vec![b'x'; part]), &mut framing);
    }
    if trailers.is_some() {
        write(&mut out);
    }
    let whole = out.end(&framing, trailers);
    write(&mut out);
    (wire, whole)
}

#[test]
fn bodies_go_out_as_they_are_framed() {
    let sizes = [1, COPIED_MAX, COPIED_MAX + 1, 26, 100_000, 0, 3];
    let all: usize = sizes.iter().sum();
    let (wire, whole) = body(&sizes, Framing::Length(all as u64), None);
    assert!(whole && wire == vec![b'x'; all]);
    let (wire, whole) = body(&sizes, Framing::Length(7), None);
    assert!(whole && wire.len() == 7, "no more than was declared");
    let (wire, whole) = body(&sizes, Framing::Length(all as u64 + 1), None);
    assert!(!whole && wire.len() == all);
    let (wire, whole) = body(&sizes, Framing::UntilClose, None);
    assert!(whole && wire.len() == all);
    let (wire, _) = body(&sizes, Framing::Chunked(Vec::new()), None);
    let mut expected = Vec::new();
    for size in sizes.into_iter().filter(|&size| size > 0) {
        expected.extend_from_slice(format!("{size:x}\r\n{}\r\n", "x".repeat(size)).as_bytes());
    }
    expected.extend_from_slice(b"0\r\n\r\n");
    assert!(wire == expected);
    for last in [1, COPIED_MAX + 1] {
        let (wire, _) = body(&[last], Framing::Chunked(Vec::new()), None);
        let text = format!("{last:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(last));
        assert!(wire == text.as_bytes());
    }
}

/// Small parts take no more room than there is for them, however slowly they go.
#[test]
fn small_parts_are_held_in_a_bounded_buffer() {
    for taken in [1, 100, 5000, 30_000] {
        let mut out = Outgoing::default();
        let mut framing = Framing::Chunked(Vec::new());
        for _ in 0..3000 {
            while out.has_room() {
                out.push_data(Bytes::from_static(&[b'x'; 1000]), &mut framing);
            }
            let there = out.len();
            out.advance(taken.min(there));
            assert_eq!(out.len(), there - taken.min(there));
            assert!(out.text.capacity() <= MOST, "{}", out.text.capacity());
        }
    }
}

#[test]
fn trailers_are_those_that_were_announced() {
    let response = answer(
        200,
        &[("trailer", "X-Sum, Content-Length"), ("trailer", "x-two")],
    );
    let asked = Asked {
        trailers: true,
        ..GET
    };
    let (_, framing, _) = head(&response, Length::Unknown, asked, true);
    let mut trailers = HeaderMap::new();
    for name in ["x-sum", "x-other", "content-length", "x-two"] {
        trailers.insert(name, http::HeaderValue::from_static("1"));
    }
    let (wire, _) = body(&[1], framing, Some(&trailers));
    assert_eq!(wire, b"1\r\nx\r\n0\r\nx-sum: 1\r\nx-two: 1\r\n\r\n");
    let (_, framing, _) = head(&response, Length::Unknown, GET, true);
    let (wire, _) = body(&[1], framing, Some(&trailers));
    assert_eq!(wire, b"1\r\nx\r\n0\r\n\r\n", "without TE there are none");
}

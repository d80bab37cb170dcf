//! From an answer to bytes: its head, and its body as the head frames it. RFC 9112 6.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;

use crate::{
    backend::{Usual, can_have_body},
    proxy::date,
};

/// Room for an ordinary head: one allocation.
const HEAD: usize = 1024;
/// A part of a body up to this size is copied behind what is to be written already, bytes.
const COPIED_MAX: usize = 4 * 1024;
/// No more parts are taken when so many bytes are to be written.
const ENOUGH: usize = 16 * 1024;

/// What a request says of its answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// It is for the head alone.
    pub head: bool,
    /// Its client speaks HTTP/1.0.
    pub http10: bool,
    /// Its client takes trailers.
    pub trailers: bool,
}

/// How long an answer's body is, by the body itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Nothing will come.
    None,
    /// So many bytes.
    Known(u64),
    /// Nobody knows.
    Unknown,
}

/// How a body goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes are to come.
    Length(u64),
    /// In chunks, and behind them these trailers if there are any.
    Chunked(Vec<HeaderName>),
    /// Up to the connection's end.
    UntilClose,
}

/// What is to be written, in this order.
#[derive(Debug, Default)]
pub struct Outgoing {
    text: Vec<u8>,
    /// So much of it has been written.
    at: usize,
    data: Bytes,
    tail: &'static [u8],
}

impl Outgoing {
    /// Whether everything has been written.
    pub fn is_empty(&self) -> bool {
        self.at == self.text.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether more may be added before something is written.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty() && self.text.len() - self.at < ENOUGH
    }

    /// The three parts.
    pub fn parts(&self) -> [&[u8]; 3] {
        [&self.text[self.at..], &self.data, self.tail]
    }

    /// Forgets what has been written.
    pub fn advance(&mut self, written: usize) {
        let of_text = written.min(self.text.len() - self.at);
        self.at += of_text;
        let of_data = (written - of_text).min(self.data.len());
        if of_data > 0 {
            drop(self.data.split_to(of_data));
        }
        self.tail = &self.tail[written - of_text - of_data..];
        if self.at == self.text.len() {
            self.text.clear();
            self.at = 0;
        }
    }

    /// Adds bytes that are not a body's.
    pub fn push(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(bytes);
    }

    /// Adds a part of a body, framed. (More than was declared is cut off.)
    pub fn push_data(&mut self, mut data: Bytes, framing: &mut Framing) {
        match framing {
            Framing::Length(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            Framing::Chunked(_) if data.is_empty() => return,
            Framing::Chunked(_) => {
                hexadecimal(data.len(), &mut self.text);
                self.text.extend_from_slice(b"\r\n");
                self.tail = b"\r\n";
            }
            Framing::UntilClose => {}
        }
        if data.len() > COPIED_MAX {
            self.data = data;
        } else {
            self.text.extend_from_slice(&data);
            self.text.extend_from_slice(std::mem::take(&mut self.tail));
        }
    }

    /// Adds the end of a body; false if it is shorter than was declared.
    pub fn end(&mut self, framing: &Framing, trailers: Option<&HeaderMap>) -> bool {
        match framing {
            Framing::Length(left) => *left == 0,
            Framing::UntilClose => true,
            Framing::Chunked(announced) => {
                if !self.tail.is_empty() && trailers.is_none() {
                    self.tail = b"\r\n0\r\n\r\n";
                    return true;
                }
                debug_assert!(self.data.is_empty(), "trailers come alone");
                self.text.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if announced.contains(name) && is_trailer(name) {
                        line(name.as_str(), value.as_bytes(), &mut self.text);
                    }
                }
                self.text.extend_from_slice(b"\r\n");
                true
            }
        }
    }

    /// Adds an answer's head. How its body goes over the wire, and whether the connection may be used
    /// again afterwards, as far as the head says so: `keep_alive` if nothing is against it.
    pub fn push_head<B>(
        &mut self,
        response: &Response<B>,
        usual: &Usual,
        length: Length,
        asked: Asked,
        mut keep_alive: bool,
    ) -> (Framing, bool) {
        let out = &mut self.text;
        out.reserve(HEAD);
        let status = response.status();
        status_line(response, asked, out);
        out.extend_from_slice(usual.lines.as_bytes());
        let has_body = can_have_body(status) && !asked.head;
        let mut declared = None;
        let (mut dated, mut connection) = (usual.dated, false);
        let mut announced = Vec::new();
        for (name, value) in response.headers() {
            match *name {
                header::CONTENT_LENGTH => {
                    if length != Length::None || asked.head {
                        declared = Some(value);
                    }
                    continue;
                }
                // How a body goes over the wire is decided here.
                header::TRANSFER_ENCODING => continue,
                header::TRAILER if asked.http10 || !has_body => continue,
                header::TRAILER if asked.trailers => {
                    let names = value.as_bytes().split(|&byte| byte == b',');
                    announced.extend(
                        names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()),
                    );
                }
                header::DATE => dated = true,
                header::CONNECTION => {
                    connection = true;
                    keep_alive &= !value.as_bytes().eq_ignore_ascii_case(b"close");
                }
                _ => {}
            }
            line(name.as_str(), value.as_bytes(), out);
        }
        let declared = declared.filter(|_| can_have_body(status));
        let framing = match (declared, length) {
            (Some(declared), _) => {
                line("content-length", declared.as_bytes(), out);
                match length {
                    Length::Known(length) => Framing::Length(length),
                    Length::None => Framing::Length(0),
                    Length::Unknown => Framing::Length(decimal(declared.as_bytes())),
                }
            }
            (None, Length::Known(length)) => {
                if can_have_body(status) {
                    content_length(length, out);
                }
                Framing::Length(length)
            }
            (None, Length::None) => {
                if has_body {
                    out.extend_from_slice(b"content-length: 0\r\n");
                }
                Framing::Length(0)
            }
            (None, Length::Unknown) if !has_body => Framing::Length(0),
            (None, Length::Unknown) if asked.http10 => {
                keep_alive = false;
                Framing::UntilClose
            }
            (None, Length::Unknown) => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                Framing::Chunked(announced)
            }
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            keep_alive = false;
        } else if !connection && keep_alive == asked.http10 {
            // What each version takes for granted goes without saying: RFC 9112 9.3.
            out.extend_from_slice(match keep_alive {
                true => b"connection: keep-alive\r\n",
                false => b"connection: close\r\n",
            });
        }
        if !dated {
            line("date", &date::now(), out);
        }
        out.extend_from_slice(b"\r\n");
        match has_body {
            true => (framing, keep_alive),
            false => (Framing::Length(0), keep_alive),
        }
    }
}

fn status_line<B>(response: &Response<B>, asked: Asked, out: &mut Vec<u8>) {
    let status = response.status();
    let reason = response.extensions().get::<ReasonPhrase>();
    if status == StatusCode::OK && reason.is_none() && !asked.http10 {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.extend_from_slice(match asked.http10 {
        true => b"HTTP/1.0 ",
        false => b"HTTP/1.1 ",
    });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(match reason {
        Some(reason) => reason.as_bytes(),
        None => status.canonical_reason().unwrap_or("<none>").as_bytes(),
    });
    out.extend_from_slice(b"\r\n");
}

/// Nothing that says where the message ends or who may see it: RFC 9110 6.5.1.
fn is_trailer(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::AUTHORIZATION
            | header::CACHE_CONTROL
            | header::CONTENT_ENCODING
            | header::CONTENT_LENGTH
            | header::CONTENT_RANGE
            | header::CONTENT_TYPE
            | header::HOST
            | header::MAX_FORWARDS
            | header::SET_COOKIE
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
    )
}

fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn content_length(length: u64, out: &mut Vec<u8>) {
    line(
        "content-length",
        http::HeaderValue::from(length).as_bytes(),
        out,
    );
}

/// A length that the backend's codec has checked.
fn decimal(digits: &[u8]) -> u64 {
    digits.iter().fold(0_u64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(u64::from(digit.wrapping_sub(b'0')))
    })
}

fn hexadecimal(number: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        let digit = (number >> (4 * at)) & 15;
        out.push(b"0123456789abcdef"[digit]);
    }
}

#[cfg(test)]
mod tests {
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
            (304, &[length], Length::None, GET, "", Framing::Length(0)),
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
    fn body(
        parts: &[usize],
        mut framing: Framing,
        trailers: Option<&HeaderMap>,
    ) -> (Vec<u8>, bool) {
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

    proptest::proptest! {
        #[test]
        fn sizes_are_hexadecimal(number: usize) {
            let mut out = Vec::new();
            hexadecimal(number, &mut out);
            proptest::prop_assert_eq!(out, format!("{number:x}").into_bytes());
        }
    }
}

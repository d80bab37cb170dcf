//! A request on its way to bytes.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri, header};

use super::{Name, RequestHead, length};

/// Room for an ordinary head: one allocation.
const HEAD: usize = 1024;

/// Fields that go behind those in a request's map, written when the head is. To put each of them into the
/// map costs several times as much as writing it.
pub trait Added: std::fmt::Debug + Sync {
    /// How much there is of them.
    fn size(&self) -> Size;

    /// Writes them, each with its end. `host` is the request's.
    fn write(&self, host: &[u8], out: &mut Vec<u8>);
}

/// How much there is of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// How many there are.
    pub fields: usize,
    /// The longest of them without its line end, bytes.
    pub longest: usize,
}

impl Size {
    /// With one more field, of a name and a value of so many bytes.
    pub fn and(self, name: usize, value: usize) -> Self {
        Self {
            fields: self.fields + 1,
            longest: self.longest.max(name + ": ".len() + value),
        }
    }
}

/// Fields that are written already.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    text: Vec<u8>,
    /// How much there is of them.
    pub size: Size,
}

impl Lines {
    /// None, with room for `room` bytes.
    pub fn with_room(room: usize) -> Self {
        Self {
            text: Vec::with_capacity(room),
            size: Size::default(),
        }
    }

    /// The lines, each with its end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Adds a field. Both are taken to be as a parser let them through.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        line(name, value, &mut self.text);
        self.size = self.size.and(name.len(), value.len());
    }

    /// The same for one whose line, with its end, is as it would be here but for the case of its name.
    pub fn copy(&mut self, name: &str, line: &[u8]) {
        let at = self.text.len();
        self.text.extend_from_slice(line);
        self.text[at..at + name.len()].copy_from_slice(name.as_bytes());
        let value = line.len() - name.len() - ": \r\n".len();
        self.size = self.size.and(name.len(), value);
    }

    /// The lines, each with its end, for whoever keeps parts of them.
    pub fn into_bytes(self) -> Bytes {
        self.text.into()
    }
}

impl Added for Lines {
    fn size(&self) -> Size {
        self.size
    }

    fn write(&self, _host: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text);
    }
}

/// Writes a field.
pub fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether a field of a request's map goes to the backend. What a client says of its own connection does
/// not; to take it out of the map would mean to build another one, or to change the order.
pub fn is_written(name: &HeaderName, value: &HeaderValue) -> bool {
    *name != header::CONNECTION || value == "upgrade"
}

/// Writes the head. Fields are written as they are, then those that were added: whoever calls this has
/// said by Content-Length or Transfer-Encoding how the body is framed.
pub fn head(request: &RequestHead, added: &dyn Added, out: &mut Vec<u8>) {
    out.reserve(HEAD);
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    match request.uri().path_and_query() {
        Some(target) if !target.as_str().is_empty() => {
            out.extend_from_slice(target.as_str().as_bytes());
        }
        _ => out.push(b'/'),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    request.body().write(out);
    let mut host = request.body().host().unwrap_or_default();
    for (name, value) in request.headers() {
        if *name == header::HOST {
            host = value.as_bytes();
        }
        if is_written(name, value) {
            line(name.as_str(), value.as_bytes(), out);
        }
    }
    added.write(host, out);
    out.extend_from_slice(b"\r\n");
}

/// The length that a request's body has by its head.
pub fn declared(request: &RequestHead) -> Option<u64> {
    let plain = request.body().get(Name::CONTENT_LENGTH);
    let in_map = || request.headers().get(header::CONTENT_LENGTH);
    length(plain.or_else(|| in_map().map(HeaderValue::as_bytes))?)
}

/// Empties a request, whose memory the next may use. Nothing stays of what it holds of its client's buffers.
pub fn empty(request: &mut RequestHead) {
    request.body_mut().clear();
    request.headers_mut().clear();
    request.extensions_mut().clear();
    *request.uri_mut() = Uri::default();
    *request.method_mut() = Method::GET;
}

/// Writes what goes before a chunk of this many bytes; CRLF goes after it. An empty chunk would end
/// the body.
pub fn chunk(length: usize, out: &mut Vec<u8>) {
    debug_assert!(length > 0, "an empty chunk ends the body");
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4);
    for at in (0..digits).rev() {
        let digit = (length >> (4 * at)) & 15;
        out.push(b"0123456789abcdef"[digit]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a chunked body.
pub fn last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::backend::Plain;

    fn written(request: &RequestHead) -> String {
        let mut out = Vec::new();
        head(request, &Lines::default(), &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn a_head_is_written_in_the_order_of_its_fields() {
        let request = Request::builder()
            .method("POST")
            .uri("/a/b?c=d%20e")
            .header("Host", "app")
            .header("Accept", "a")
            .header("Accept", "b")
            .header("Connection", "keep-alive")
            .header("Content-Length", "3")
            .body(Plain::default())
            .expect("a request");
        assert_eq!(
            written(&request),
            "POST /a/b?c=d%20e HTTP/1.1\r\nhost: app\r\naccept: a\r\naccept: b\r\ncontent-length: 3\r\n\r\n"
        );
        let options = Request::builder()
            .method("OPTIONS")
            .uri("*")
            .body(Plain::default())
            .expect("a request");
        assert_eq!(written(&options), "OPTIONS * HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn added_lines_come_last() {
        let request = Request::get("/")
            .header("a", "b")
            .body(Plain::default())
            .expect("a request");
        let mut lines = Lines::default();
        lines.push("c", b"d");
        lines.copy("eee", b"EeE: f g\r\n");
        let longest = "eee: f g".len();
        assert_eq!(lines.size, Size { fields: 2, longest });
        let mut out = Vec::new();
        head(&request, &lines, &mut out);
        assert_eq!(out, b"GET / HTTP/1.1\r\na: b\r\nc: d\r\neee: f g\r\n\r\n");
    }

    #[test]
    fn chunks_have_hexadecimal_sizes() {
        let mut out = Vec::new();
        chunk(26, &mut out);
        last_chunk(&mut out);
        assert_eq!(out, b"1a\r\n0\r\n\r\n");
    }

    proptest::proptest! {
        #[test]
        fn sizes_are_hexadecimal(size in 1_usize..) {
            let mut out = Vec::new();
            chunk(size, &mut out);
            proptest::prop_assert_eq!(out, format!("{size:x}\r\n").into_bytes());
        }
    }
}

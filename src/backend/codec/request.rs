//! A request on its way to bytes.

use std::io::Write as _;

use http::{HeaderName, HeaderValue, Request, header};

/// Room for an ordinary head: one allocation.
const HEAD: usize = 1024;

/// Fields that go behind those in a request's map, written already. To put each of them into the map
/// costs several times as much as writing it.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    text: Vec<u8>,
    /// How many there are.
    pub fields: usize,
    /// The longest of them without its line end, bytes.
    pub longest: usize,
}

impl Lines {
    /// Lines with room for `room` bytes, beginning with these.
    pub fn from(first: &Self, room: usize) -> Self {
        let mut text = Vec::with_capacity(first.text.len() + room);
        text.extend_from_slice(&first.text);
        Self { text, ..*first }
    }

    /// The lines, each with its end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Adds a field. Both are taken to be as a parser let them through.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        let before = self.text.len();
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b": ");
        self.text.extend_from_slice(value);
        self.fields += 1;
        self.longest = self.longest.max(self.text.len() - before);
        self.text.extend_from_slice(b"\r\n");
    }
}

/// Whether a field of a request's map goes to the backend. What a client says of its own connection does
/// not; to take it out of the map would mean to build another one, or to change the order.
pub fn is_written(name: &HeaderName, value: &HeaderValue) -> bool {
    *name != header::CONNECTION || value == "upgrade"
}

/// Writes the head. Fields are written as they are, then those that were added: whoever calls this has
/// said by Content-Length or Transfer-Encoding how the body is framed.
pub fn head<B>(request: &Request<B>, added: &Lines, out: &mut Vec<u8>) {
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
    for (name, value) in request.headers() {
        if !is_written(name, value) {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(&added.text);
    out.extend_from_slice(b"\r\n");
}

/// Writes what goes before a chunk of this many bytes; CRLF goes after it. An empty chunk would end
/// the body.
pub fn chunk(length: usize, out: &mut Vec<u8>) {
    debug_assert!(length > 0, "an empty chunk ends the body");
    // A Vec takes everything.
    let _ = write!(out, "{length:x}\r\n");
}

/// Writes the end of a chunked body.
pub fn last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written<B>(request: &Request<B>) -> String {
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
            .body(())
            .expect("a request");
        assert_eq!(
            written(&request),
            "POST /a/b?c=d%20e HTTP/1.1\r\nhost: app\r\naccept: a\r\naccept: b\r\ncontent-length: 3\r\n\r\n"
        );
        let options = Request::builder()
            .method("OPTIONS")
            .uri("*")
            .body(())
            .expect("a request");
        assert_eq!(written(&options), "OPTIONS * HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn added_lines_come_last() {
        let request = Request::get("/")
            .header("a", "b")
            .body(())
            .expect("a request");
        let mut first = Lines::default();
        first.push("c", b"d");
        let mut lines = Lines::from(&first, 8);
        lines.push("eee", b"f g");
        assert_eq!((lines.fields, lines.longest), (2, "eee: f g".len()));
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
}

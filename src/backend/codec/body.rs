//! A response's body, from the bytes that have come.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Malformed;

/// The longest line that gives a chunk's size, with its extensions, bytes.
const SIZE_LINE_MAX: usize = 256;
/// The longest trailers, bytes.
const TRAILERS_MAX: usize = 16 * 1024;

/// The most fields of trailers.
const TRAILER_FIELDS_MAX: usize = 32;

/// Reads one body.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    /// The lines of the trailers so far.
    lines: Vec<u8>,
    trailers: Option<Box<HeaderMap>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are to come.
    Length(u64),
    /// The line with a chunk's size is next.
    Size,
    /// So many bytes of a chunk are to come.
    Data(u64),
    /// The line end after a chunk's data is next.
    DataEnd,
    /// A line of the trailers, or the empty line that ends them, is next.
    Trailers,
    /// Whatever comes until the connection closes.
    UntilClose,
    Done,
}

/// What the bytes at hand amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A part of the body.
    Data(Bytes),
    /// More bytes are needed.
    More,
    /// That was all.
    Done,
}

impl BodyDecoder {
    /// No body.
    pub fn none() -> Self {
        Self::new(State::Done)
    }

    /// A body of so many bytes.
    pub fn length(length: u64) -> Self {
        Self::new(if length == 0 {
            State::Done
        } else {
            State::Length(length)
        })
    }

    /// A body in chunks.
    pub fn chunked() -> Self {
        Self::new(State::Size)
    }

    /// A body that ends with the connection.
    pub fn until_close() -> Self {
        Self::new(State::UntilClose)
    }

    fn new(state: State) -> Self {
        Self {
            state,
            lines: Vec::new(),
            trailers: None,
        }
    }

    /// Whether it ends by itself, and not with the connection.
    pub fn has_an_end(&self) -> bool {
        self.state != State::UntilClose
    }

    /// Whether all of it has been read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Takes the next part out of the bytes.
    ///
    /// # Errors
    /// [`Malformed::Chunk`].
    pub fn next(&mut self, bytes: &mut BytesMut) -> Result<Step, Malformed> {
        loop {
            match self.state {
                State::Done => return Ok(Step::Done),
                _ if bytes.is_empty() => return Ok(Step::More),
                State::UntilClose => return Ok(Step::Data(bytes.split().freeze())),
                State::Length(left) => {
                    let (data, left) = take(bytes, left);
                    self.state = if left == 0 {
                        State::Done
                    } else {
                        State::Length(left)
                    };
                    return Ok(Step::Data(data));
                }
                State::Data(left) => {
                    let (data, left) = take(bytes, left);
                    self.state = if left == 0 {
                        State::DataEnd
                    } else {
                        State::Data(left)
                    };
                    return Ok(Step::Data(data));
                }
                State::Size => {
                    let Some(line) = line(bytes, SIZE_LINE_MAX)? else {
                        return Ok(Step::More);
                    };
                    self.state = match size(&line)? {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::DataEnd => {
                    if !b"\r\n".starts_with(&bytes[..bytes.len().min(2)]) {
                        return Err(Malformed::Chunk);
                    }
                    if bytes.len() < 2 {
                        return Ok(Step::More);
                    }
                    bytes.advance(2);
                    self.state = State::Size;
                }
                State::Trailers => {
                    let Some(line) = line(bytes, TRAILERS_MAX - self.lines.len())? else {
                        return Ok(Step::More);
                    };
                    if self.lines.len() + line.len() + 2 > TRAILERS_MAX {
                        return Err(Malformed::Chunk);
                    }
                    if line.is_empty() {
                        self.trailers = trailers(&self.lines)?;
                        self.state = State::Done;
                    } else {
                        self.lines.extend_from_slice(&line);
                        self.lines.extend_from_slice(b"\r\n");
                    }
                }
            }
        }
    }

    /// The fields that came after the body, once it is done.
    pub fn take_trailers(&mut self) -> Option<Box<HeaderMap>> {
        self.trailers.take()
    }

    /// The connection has closed, and all bytes have been taken: whether the body is whole.
    pub fn end(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.is_done()
    }
}

/// The fields of these lines, without those that say how a message is framed or routed: those have no
/// place after it (RFC 9110 6.5.1).
fn trailers(lines: &[u8]) -> Result<Option<Box<HeaderMap>>, Malformed> {
    if lines.is_empty() {
        return Ok(None);
    }
    let block = [lines, b"\r\n"].concat();
    let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
    let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(&block, &mut fields)
    else {
        return Err(Malformed::Chunk);
    };
    let mut trailers = Box::new(HeaderMap::with_capacity(parsed.len()));
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Chunk)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| Malformed::Chunk)?;
        let out_of_place = matches!(
            name,
            header::CONTENT_LENGTH
                | header::TRANSFER_ENCODING
                | header::TRAILER
                | header::CONNECTION
                | header::UPGRADE
                | header::TE
                | header::HOST
                | header::SET_COOKIE
                | header::CONTENT_TYPE
                | header::CONTENT_ENCODING
                | header::CONTENT_RANGE
        );
        if !out_of_place {
            trailers.append(name, value);
        }
    }
    Ok((!trailers.is_empty()).then_some(trailers))
}

/// As much as is there, and what is left to come.
fn take(bytes: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let there = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (bytes.split_to(there).freeze(), left - there as u64)
}

/// Takes a line that ends in CRLF, without its end.
fn line(bytes: &mut BytesMut, max: usize) -> Result<Option<BytesMut>, Malformed> {
    let Some(at) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() > max {
            Err(Malformed::Chunk)
        } else {
            Ok(None)
        };
    };
    if at > max || at == 0 || bytes[at - 1] != b'\r' {
        return Err(Malformed::Chunk);
    }
    let mut line = bytes.split_to(at + 1);
    line.truncate(at - 1);
    // A CR anywhere else is a line's end to some.
    if line.contains(&b'\r') {
        return Err(Malformed::Chunk);
    }
    Ok(Some(line))
}

/// A chunk's size: hexadecimal digits, then perhaps extensions, which mean nothing here.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    // 15 digits: a size of which the next computation cannot overflow.
    if digits == 0 || digits > 15 {
        return Err(Malformed::Chunk);
    }
    let extensions = line[digits..].trim_ascii_start();
    let printable = extensions
        .iter()
        .all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
    if !(extensions.is_empty() && digits == line.len() || extensions.starts_with(b";") && printable)
    {
        return Err(Malformed::Chunk);
    }
    Ok(line[..digits].iter().fold(0, |size, byte| {
        size * 16 + u64::from((*byte as char).to_digit(16).unwrap_or(0))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that comes out, and what is left.
    fn read(mut body: BodyDecoder, parts: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), Malformed> {
        let (mut bytes, mut out) = (BytesMut::new(), Vec::new());
        for part in parts {
            bytes.extend_from_slice(part);
            while let Step::Data(data) = body.next(&mut bytes)? {
                assert!(!data.is_empty());
                out.extend_from_slice(&data);
            }
        }
        Ok((out, body.is_done(), bytes.to_vec()))
    }

    #[test]
    fn bodies_end_where_they_say() {
        let all = |body, text: &[u8]| read(body, &[text]).expect("well formed");
        assert_eq!(
            all(BodyDecoder::length(3), b"abcd"),
            (b"abc".to_vec(), true, b"d".to_vec())
        );
        assert_eq!(
            all(BodyDecoder::length(3), b"ab"),
            (b"ab".to_vec(), false, Vec::new())
        );
        assert_eq!(
            all(BodyDecoder::none(), b"x"),
            (Vec::new(), true, b"x".to_vec())
        );
        let chunked = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: x\r\n\r\nrest";
        assert_eq!(
            all(BodyDecoder::chunked(), chunked),
            (b"abc0123456789".to_vec(), true, b"rest".to_vec())
        );
        let mut body = BodyDecoder::until_close();
        assert!(!body.has_an_end());
        let mut bytes = BytesMut::from(&b"abc"[..]);
        assert_eq!(
            body.next(&mut bytes),
            Ok(Step::Data(Bytes::from_static(b"abc")))
        );
        assert!(body.end());
        assert!(!BodyDecoder::length(1).end());
        assert!(!BodyDecoder::chunked().end());
    }

    #[test]
    fn trailers_are_kept_but_for_those_that_would_change_the_message() {
        let mut body = BodyDecoder::chunked();
        let text = b"0\r\nX-Sum: 1\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n";
        assert_eq!(body.next(&mut BytesMut::from(&text[..])), Ok(Step::Done));
        let trailers = body.take_trailers().expect("there are some");
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["x-sum"], "1");
        let mut body = BodyDecoder::chunked();
        let bad = b"0\r\nX Sum: 1\r\n\r\n";
        assert_eq!(
            body.next(&mut BytesMut::from(&bad[..])),
            Err(Malformed::Chunk)
        );
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(SIZE_LINE_MAX));
        let endless = "f".repeat(SIZE_LINE_MAX + 1);
        for text in [
            "0x3\r\nabc\r\n",
            "-3\r\nabc\r\n",
            " 3\r\nabc\r\n",
            "3 x\r\nabc\r\n",
            "\r\nabc\r\n",
            "g\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n0\r\n",
            "3\r\nabcX",
            "3;a\rb\r\nabc\r\n",
            "3;a\0\r\nabc\r\n",
            "ffffffffffffffff\r\n",
            "0\r\nT: x\n\r\n",
            &long,
            &endless,
        ] {
            let told = read(BodyDecoder::chunked(), &[text.as_bytes()]);
            assert_eq!(told, Err(Malformed::Chunk), "{text:?}");
        }
        let trailers = format!("0\r\n{}", "T: x\r\n".repeat(TRAILERS_MAX / 4));
        assert_eq!(
            read(BodyDecoder::chunked(), &[trailers.as_bytes()]),
            Err(Malformed::Chunk)
        );
    }

    proptest::proptest! {
        #[test]
        fn any_segmentation_tells_the_same(cuts in proptest::collection::vec(1..9_usize, 0..40)) {
            let text: &[u8] = b"5\r\nhello\r\n10;ext\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\nnext";
            let mut parts: Vec<&[u8]> = Vec::new();
            let mut rest = text;
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                parts.push(part);
                rest = after;
            }
            parts.push(rest);
            let (out, done, left) = read(BodyDecoder::chunked(), &parts).expect("well formed");
            proptest::prop_assert_eq!(out, b"hello0123456789abcdef");
            proptest::prop_assert!(done);
            proptest::prop_assert_eq!(left, b"next");
        }

        #[test]
        fn no_bytes_panic(text: Vec<u8>) {
            let _ = read(BodyDecoder::chunked(), &[&text]);
        }
    }
}

//! The chunked coding, RFC 9112 7.1, byte by byte where it is not data.

use super::{Limits, head::is_token};

/// Hexadecimal digits of a chunk's size: with more, some servers wrap around.
const DIGITS_MAX: u8 = 16;
/// Chunk extensions of one body, bytes. Nobody uses them.
const EXTENSIONS_MAX: usize = 4 * 1024;
/// Trailers of one body, bytes.
const TRAILERS_MAX: usize = 8 * 1024;

/// The body is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBody;

/// What the bytes at hand are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// So many are sizes, line ends and trailers,
    pub before: usize,
    /// then so many are data. None, if no more is at hand or the body has come to its end.
    pub data: usize,
}

/// Reads a chunked body.
#[derive(Debug)]
pub struct Chunked {
    at: At,
    /// The size of the chunk, as far as it has been read.
    size: u64,
    digits: u8,
    extensions: usize,
    fields: usize,
    fields_max: usize,
    trailers: usize,
    /// A trailer that is not complete.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size,
    /// Space that only an extension may follow.
    SizeSpace,
    /// After a `;`.
    Name,
    InName,
    NameSpace,
    /// After a `=`.
    Value,
    InValue,
    Quoted,
    Escaped,
    ValueSpace,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    Done,
}

impl Chunked {
    /// Before the first chunk.
    pub fn new(limits: Limits) -> Self {
        Self {
            at: At::Size,
            size: 0,
            digits: 0,
            extensions: 0,
            fields: 0,
            fields_max: limits.fields,
            trailers: 0,
            line: Vec::new(),
        }
    }

    /// Goes on up to the next data, or to the end.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Part, BadBody> {
        let mut before = 0;
        while let Some(&byte) = bytes.get(before) {
            if self.at == At::Data {
                let here = usize::try_from(self.size).unwrap_or(usize::MAX);
                let data = here.min(bytes.len() - before);
                self.size -= data as u64;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                return Ok(Part { before, data });
            }
            before += 1;
            self.at = self.step(byte)?;
            if self.at == At::Done {
                break;
            }
        }
        Ok(Part { before, data: 0 })
    }

    /// Whether its end has come.
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    fn step(&mut self, byte: u8) -> Result<At, BadBody> {
        let next = match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.size = self.size << 4 | u64::from(digit);
                if self.digits > DIGITS_MAX || self.size > i64::MAX as u64 {
                    return Err(BadBody);
                }
                return Ok(At::Size);
            }
            (At::Size, _) if self.digits == 0 => return Err(BadBody),
            (At::Size | At::InName | At::NameSpace | At::InValue | At::ValueSpace, b'\r') => {
                return Ok(At::SizeLf);
            }
            (At::SizeLf, b'\n') => return Ok(self.sized()),
            (At::DataCr, b'\r') => return Ok(At::DataLf),
            (At::DataLf, b'\n') => return Ok(At::Size),
            (At::Trailer, _) => return self.trailer(byte),

            (At::Size | At::SizeSpace, b' ' | b'\t') => At::SizeSpace,
            (At::Size | At::SizeSpace, b';') => At::Name,
            (At::Name, b' ' | b'\t') => At::Name,
            (At::Name | At::InName, _) if is_token(byte) => At::InName,
            (At::InName | At::NameSpace, b' ' | b'\t') => At::NameSpace,
            (At::InName | At::NameSpace, b'=') => At::Value,
            (At::InName | At::NameSpace | At::InValue | At::ValueSpace, b';') => At::Name,
            (At::Value, b' ' | b'\t') => At::Value,
            (At::Value, b'"') => At::Quoted,
            (At::Value | At::InValue, _) if is_token(byte) => At::InValue,
            (At::InValue | At::ValueSpace, b' ' | b'\t') => At::ValueSpace,
            (At::Quoted, b'"') => At::ValueSpace,
            (At::Quoted, b'\\') => At::Escaped,
            (At::Quoted | At::Escaped, _) if is_text(byte) => At::Quoted,
            _ => return Err(BadBody),
        };
        self.extensions += 1;
        if self.extensions > EXTENSIONS_MAX {
            return Err(BadBody);
        }
        Ok(next)
    }

    /// The line with the size is complete.
    fn sized(&mut self) -> At {
        self.digits = 0;
        if self.size == 0 {
            At::Trailer
        } else {
            At::Data
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<At, BadBody> {
        self.trailers += 1;
        if self.trailers > TRAILERS_MAX {
            return Err(BadBody);
        }
        if byte != b'\n' {
            // Its CR must be the last but one, and the first of an empty line the very first.
            if self.line.last() == Some(&b'\r') {
                return Err(BadBody);
            }
            self.line.push(byte);
            return Ok(At::Trailer);
        }
        let line = self.line.strip_suffix(b"\r").ok_or(BadBody)?;
        if line.is_empty() {
            return Ok(At::Done);
        }
        self.fields += 1;
        if self.fields > self.fields_max || !is_trailer(line) {
            return Err(BadBody);
        }
        self.line.clear();
        Ok(At::Trailer)
    }
}

/// RFC 9110 5.5: no control character but the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// A field that may come after a body: nothing that says where a message ends or goes, RFC 9110
/// 6.5.1. (All others end here, too.)
fn is_trailer(line: &[u8]) -> bool {
    const NEVER: [&[u8]; 5] = [
        b"content-length",
        b"transfer-encoding",
        b"host",
        b"connection",
        b"trailer",
    ];
    let Some(colon) = line.iter().position(|&byte| !is_token(byte)) else {
        return false;
    };
    let (name, rest) = line.split_at(colon);
    !name.is_empty()
        && rest[0] == b':'
        && rest[1..].iter().all(|&byte| is_text(byte))
        && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
}

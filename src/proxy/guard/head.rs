//! Where a request's head ends, where its body will, and whether both are beyond doubt.

use memchr::memchr;

use super::Limits;
use crate::{
    backend::{Name, colon, has_control, is_plain_option, length},
    proxy::hygiene::{BadHead, is_others},
};

/// A longer method than any that exists, bytes: RFC 9112 3 asks for a 501.
pub const METHOD_MAX: usize = 32;
/// The longest target that the URI type behind us takes, bytes.
const TARGET_MAX: usize = 65_534;
/// No more fields than this that only the application knows are plain, since each is compared with those
/// before it.
const OTHERS_MAX: usize = 16;

/// A complete head, and where its parts are: offsets from its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its bytes, with the empty line at the end.
    pub length: usize,
    /// What follows it.
    pub body: Framing,
    /// Whether it is one of HTTP/1.0, and not of HTTP/1.1.
    pub http10: bool,
    /// The method.
    pub method: Span,
    /// The target.
    pub target: Span,
    /// Whether its fields are plain: with names that are known or that nobody here asks for, each once, and written
    /// as most write them.
    pub plain: bool,
}

/// Where a part of a head begins and ends.
pub type Span = std::ops::Range<usize>;

/// Where a field is, its value without the space around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: Span,
    /// The same, if it can be plain.
    pub known: Option<Name>,
    /// Its value.
    pub value: Span,
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// As the chunks say.
    Chunked,
}

/// Reads a head, in as many pieces as it comes.
#[derive(Debug, Default)]
pub struct HeadScanner {
    /// Where the first line begins that is not complete.
    line: usize,
    /// Up to where no end of that line was found.
    searched: usize,
    blank: bool,
    /// The request line, if it is there.
    line_one: Option<RequestLine>,
    /// The known names that there were.
    seen: u64,
    /// How many others.
    others: usize,
    /// There was a field that is not plain.
    odd: bool,
    length: Option<u64>,
    chunked: bool,
}

/// The parts of a request line, and whether it says HTTP/1.0.
#[derive(Clone, Debug)]
struct RequestLine {
    method: Span,
    target: Span,
    http10: bool,
}

impl HeadScanner {
    /// Looks at all that has come of the head; `None` if it is not complete. The fields that it finds go
    /// into `fields`, which is empty at first.
    ///
    /// # Errors
    /// As soon as it is certain that no other bytes could mend it.
    pub fn scan(
        &mut self,
        bytes: &[u8],
        limits: Limits,
        fields: &mut Vec<Field>,
    ) -> Result<Option<Head>, BadHead> {
        let (before, mut lines) = (self.line, 0);
        while let Some(found) = memchr(b'\n', bytes.get(self.searched..).unwrap_or_default()) {
            let lf = self.searched + found;
            let line = bytes.get(self.line..lf).unwrap_or_default();
            // A bare LF ends a line for some and not for others; so does a bare CR, which is a control character.
            let line = line.strip_suffix(b"\r").ok_or(BadHead::Syntax)?;
            if lf >= limits.head {
                return Err(self.too_large());
            }
            let start = std::mem::replace(&mut self.line, lf + 1);
            self.searched = lf + 1;
            lines += 1;
            let Some(request) = &self.line_one else {
                if line.is_empty() && !self.blank {
                    // Old clients send one too many after a body: RFC 9112 2.2.
                    self.blank = true;
                } else {
                    self.line_one = Some(request_line(line, start)?);
                }
                continue;
            };
            if line.is_empty() {
                if has_control(bytes.get(before..lf + 1).unwrap_or_default(), lines) {
                    return Err(BadHead::Syntax);
                }
                let RequestLine {
                    method,
                    target,
                    http10,
                } = request.clone();
                return Ok(Some(Head {
                    length: lf + 1,
                    body: self.framing(http10)?,
                    http10,
                    method,
                    target,
                    plain: !self.odd && self.seen & Name::HOST.bit() != 0,
                }));
            }
            if fields.len() >= limits.fields {
                return Err(BadHead::FieldsTooLarge);
            }
            fields.push(self.field(line, start, bytes, fields)?);
        }
        if has_control(bytes.get(before..self.line).unwrap_or_default(), lines) {
            return Err(BadHead::Syntax);
        }
        let rest = bytes.get(self.searched..).unwrap_or_default();
        let (rest, searched) = match rest.split_last() {
            Some((b'\r', rest)) => (rest, bytes.len() - 1),
            _ => (rest, bytes.len()),
        };
        if memchr(b'\r', rest).is_some() {
            return Err(BadHead::Syntax);
        }
        self.searched = searched;
        if bytes.len() >= limits.head {
            return Err(self.too_large());
        }
        // What begins like this will not become HTTP; TLS does, for example.
        match bytes.get(self.line) {
            Some(&first) if self.line_one.is_none() && !is_token(first) && first != b'\r' => {
                Err(BadHead::Syntax)
            }
            _ => Ok(None),
        }
    }

    fn too_large(&self) -> BadHead {
        match self.line_one {
            None => BadHead::TargetTooLong,
            Some(_) => BadHead::FieldsTooLarge,
        }
    }

    /// A line of this head, which begins at `start`, as a field. `fields` are those before it.
    fn field(
        &mut self,
        line: &[u8],
        start: usize,
        head: &[u8],
        fields: &[Field],
    ) -> Result<Field, BadHead> {
        let (name, rest) = line.split_at(colon(line).ok_or(BadHead::Syntax)?);
        let as_most = value_as_most(rest);
        let (space, value) = as_most.map_or_else(|| trim(&rest[1..]), |value| (1, value));
        let mut known = Name::find(name);
        let before = self.seen;
        self.seen |= known.map_or(0, Name::bit);
        let again = self.seen == before;
        match known {
            Some(Name::HOST) if again => return Err(BadHead::Host),
            Some(Name::CONTENT_LENGTH) => {
                self.length = Some(length(value).ok_or(BadHead::Framing)?);
                if again {
                    return Err(BadHead::Framing);
                }
            }
            Some(Name::CONNECTION) => self.odd |= !is_plain_option(value),
            Some(_) => {}
            // A folded line begins with a space, which is no token either; nor is a name without a byte one.
            None if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) => {
                return Err(BadHead::Syntax);
            }
            None if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                // No other coding is known, and two of the same are one too many.
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BadHead::Framing);
                }
                self.chunked = true;
            }
            None if self.is_plain_other(name, head, fields) => known = Some(Name::OTHER),
            None => {}
        }
        // (One that is unknown has changed nothing above.)
        let again = again && known != Some(Name::OTHER);
        self.odd |= again || as_most.is_none();
        let at = start + name.len() + 1 + space;
        Ok(Field {
            name: start..start + name.len(),
            known,
            value: at..at + value.len(),
        })
    }

    /// Whether a field that is not known is passed on as it is: nobody here asks for it, and it is the first of its
    /// name.
    fn is_plain_other(&mut self, name: &[u8], head: &[u8], fields: &[Field]) -> bool {
        self.others += 1;
        let mut before = fields.iter().filter(|one| one.known == Some(Name::OTHER));
        !self.odd
            && self.others <= OTHERS_MAX
            && is_others(name)
            && !before.any(|one| head[one.name.clone()].eq_ignore_ascii_case(name))
    }

    fn framing(&self, http10: bool) -> Result<Framing, BadHead> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(BadHead::Framing),
            // HTTP/1.0 has no chunks, and whoever stands before us may not know them: RFC 9112 6.1.
            (true, None) if http10 => Err(BadHead::Framing),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(length)) if length > 0 => Ok(Framing::Length(length)),
            (false, _) => Ok(Framing::None),
        }
    }
}

/// `METHOD SP target SP HTTP/1.x`, with single spaces; it begins at `start`.
fn request_line(line: &[u8], start: usize) -> Result<RequestLine, BadHead> {
    let method_end = line.iter().position(|&byte| !is_token(byte));
    let method_end = method_end.filter(|&at| at > 0 && line[at] == b' ');
    let (method, rest) = line.split_at(method_end.ok_or(BadHead::Syntax)?);
    let rest = &rest[1..];
    let (target, version) = rest.split_at(memchr(b' ', rest).ok_or(BadHead::Syntax)?);
    let http10 = match &version[1..] {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(BadHead::Version);
        }
        _ => return Err(BadHead::Syntax),
    };
    if method.len() > METHOD_MAX {
        return Err(BadHead::Method);
    }
    if target.len() > TARGET_MAX {
        return Err(BadHead::TargetTooLong);
    }
    if target.is_empty() || !is_target(target) {
        return Err(BadHead::Target);
    }
    let at = start + method.len() + 1;
    Ok(RequestLine {
        method: start..start + method.len(),
        target: at..at + target.len(),
        http10,
    })
}

/// Visible ASCII without a fragment. (What kind of target it is, hygiene looks at.)
fn is_target(target: &[u8]) -> bool {
    target.iter().fold(true, |fine, &byte| {
        fine & (byte > b' ') & (byte < 0x7f) & (byte != b'#')
    })
}

/// What follows a name where it is as most write it: `: ` and the value, which is something, and nothing more.
fn value_as_most(rest: &[u8]) -> Option<&[u8]> {
    let value = rest.strip_prefix(b": ")?;
    let ends = [value.first()?, value.last()?];
    (!ends.iter().any(is_space)).then_some(value)
}

fn is_space(byte: &&u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Without the space and tabs around it, and how many were before. (`trim_ascii` would take more than
/// those.)
fn trim(value: &[u8]) -> (usize, &[u8]) {
    let start = value.iter().take_while(is_space).count();
    let value = &value[start..];
    let end = value.iter().rev().take_while(is_space).count();
    (start, &value[..value.len() - end])
}

/// RFC 9110 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            let b = byte as u8;
            table[byte] = b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            byte += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

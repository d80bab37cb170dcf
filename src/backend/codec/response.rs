//! A response's head, from the bytes that have come.

#[cfg(test)]
mod tests;

use std::slice;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use hyper::ext::ReasonPhrase;

use super::{
    BodyDecoder, Lines, Malformed, Signs, colon, has_control, is_plain_option, length, members,
    usual::{Usual, known},
};

/// The most that may come before a head is complete, bytes: the head itself, what is read with it, and
/// the interim answers before it, of which a backend could send any number.
const HEAD_MAX: usize = 512 * 1024;
/// The most interim answers before it.
const INTERIM_MAX: usize = 1000;
/// The most fields of a head.
const FIELDS_MAX: usize = 100;
/// Lines of such a head: before the fields its status, and an empty one after them.
const LINES_MAX: usize = FIELDS_MAX + 2;
/// Room for what is added to the usual fields, bytes.
const ADDED_BYTES: usize = 96;

/// Looks for the head of the response to one request.
#[derive(Debug)]
pub struct Heads {
    /// Whether the response cannot have a body: it is one to HEAD.
    bodiless: bool,
    /// Whether the request asked for another protocol.
    upgrade: bool,
    /// Interim answers so far, and their bytes.
    interim: usize,
    interim_bytes: usize,
    /// Bytes that were looked at already and hold no end of a head.
    searched: usize,
    /// A line ended with LF alone.
    bare: bool,
    /// The last interim answer, until somebody takes it.
    told: Option<Box<Response<()>>>,
}

/// A head, and how what follows is framed.
#[derive(Debug)]
pub struct Head {
    /// Status, version and fields, but for `usual`. Neither says how the body is framed, if there is
    /// one, nor what a plain `Connection` says.
    pub response: Response<()>,
    /// The usual fields.
    pub usual: Usual,
    /// What tells who it is from.
    pub signs: Signs,
    /// Reads the body.
    pub body: BodyDecoder,
    /// Whether the backend keeps the connection open after it.
    pub keep_alive: bool,
}

impl Heads {
    /// For the response to a request like this one.
    pub fn new(method: &Method, upgrade: bool) -> Self {
        Self {
            bodiless: *method == Method::HEAD,
            upgrade,
            interim: 0,
            interim_bytes: 0,
            searched: 0,
            bare: false,
            told: None,
        }
    }

    /// Takes the head out of the bytes, if all of it is there, or an interim answer that comes before it:
    /// see [`Heads::told`].
    ///
    /// # Errors
    /// The backend does not speak HTTP, or leaves doubt about where its answer ends.
    pub fn take(&mut self, bytes: &mut BytesMut) -> Result<Option<Head>, Malformed> {
        self.told = None;
        if bytes.len() == self.searched {
            // Nothing has come since.
            return Ok(None);
        }
        let mut ends = Ends::default();
        let Some(end) = self.end(bytes, &mut ends)? else {
            return Ok(None);
        };
        let head = bytes.split_to(end).freeze();
        if std::mem::take(&mut self.searched) > 0 {
            // It has come in pieces.
            ends = Ends::default();
            memchr::memchr_iter(b'\n', &head).for_each(|at| ends.push(at));
        }
        if self.bare {
            return Err(Malformed::Field);
        }
        let mut parsed = parse(&head, &ends, self.bodiless)?;
        let status = parsed.response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS && !self.upgrade {
            return Err(Malformed::Unasked);
        }
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            self.interim += 1;
            self.interim_bytes += end;
            if self.interim > INTERIM_MAX {
                return Err(Malformed::HeadTooLong);
            }
            parsed.usual.unfold(parsed.response.headers_mut());
            self.told = Some(Box::new(parsed.response));
            return Ok(None);
        }
        let body = self.framing(&parsed)?;
        let keep_alive = parsed.stays_open
            && body.has_an_end()
            && !self.may_have_more(&parsed.response)
            && !self.ends_with_it(&parsed);
        Ok(Some(Head {
            response: parsed.response,
            usual: parsed.usual,
            signs: parsed.signs,
            body,
            keep_alive,
        }))
    }

    /// The interim answer that [`Heads::take`] has found in place of a head, for the first who asks. There may
    /// be more where it was.
    pub fn told(&mut self) -> Option<Box<Response<()>>> {
        self.told.take()
    }

    /// Whether there is one.
    pub fn has_told(&self) -> bool {
        self.told.is_some()
    }

    /// Where the head ends, and those of its lines that were not searched before.
    fn end(&mut self, bytes: &BytesMut, ends: &mut Ends) -> Result<Option<usize>, Malformed> {
        // Not HTTP at all is told at once, without waiting for an end that never comes.
        let start = &bytes.chunk()[..bytes.len().min(5)];
        if !b"HTTP/".starts_with(start) {
            return Err(Malformed::StatusLine);
        }
        // Heads with bare line ends end here, too, and are refused then: nobody waits for what will not
        // come.
        let searched = self.searched.saturating_sub(2);
        for at in memchr::memchr_iter(b'\n', &bytes[searched..]) {
            let at = searched + at;
            self.bare |= at == 0 || bytes[at - 1] != b'\r';
            ends.push(at);
            let end = match &bytes[at + 1..] {
                [b'\n', ..] => {
                    self.bare = true;
                    at + 2
                }
                [b'\r', b'\n', ..] => at + 3,
                _ => continue,
            };
            ends.push(end - 1);
            return if self.interim_bytes + end <= HEAD_MAX {
                Ok(Some(end))
            } else {
                Err(Malformed::HeadTooLong)
            };
        }
        if self.interim_bytes + bytes.len() > HEAD_MAX {
            return Err(Malformed::HeadTooLong);
        }
        self.searched = bytes.len();
        Ok(None)
    }

    /// Whether it declares a body that it cannot have: what follows may be that body. (A 304, and an answer
    /// to HEAD, say what GET would have got.)
    fn may_have_more(&self, response: &Response<()>) -> bool {
        let headers = response.headers();
        let length = headers.get(header::CONTENT_LENGTH);
        response.status() == StatusCode::NO_CONTENT
            && !self.bodiless
            && (headers.contains_key(header::TRANSFER_ENCODING)
                || length.is_some_and(|length| length.as_bytes().iter().any(|&b| b != b'0')))
    }

    /// Whether an answer to HEAD does not say how the body that GET would have got ends, so that only the end
    /// of the connection could have ended it: a server that closes the connection after HEAD as well would do
    /// so under the next request.
    fn ends_with_it(&self, parsed: &Parsed<'_>) -> bool {
        self.bodiless
            && parsed.lengths + parsed.codings == 0
            && can_have_body(parsed.response.status())
    }

    /// How the body is framed: RFC 9112 6.3, without the repairs it allows.
    fn framing(&self, parsed: &Parsed<'_>) -> Result<BodyDecoder, Malformed> {
        let response = &parsed.response;
        if parsed.codings > 1 || parsed.lengths > 1 {
            return Err(Malformed::Framing);
        }
        let coding = parsed.coding;
        let declared = match parsed.length {
            Some(value) => Some(length(value).ok_or(Malformed::Framing)?),
            None => None,
        };
        let bodiless = self.bodiless || !can_have_body(response.status());
        match (coding, declared) {
            (Some(_), Some(_)) => Err(Malformed::Framing),
            (Some(coding), None)
                if response.version() != Version::HTTP_11
                    || !coding.eq_ignore_ascii_case(b"chunked") =>
            {
                Err(Malformed::Framing)
            }
            _ if bodiless => Ok(BodyDecoder::none()),
            (Some(_), None) => Ok(BodyDecoder::chunked()),
            (None, Some(length)) => Ok(BodyDecoder::length(length)),
            (None, None) => Ok(BodyDecoder::until_close()),
        }
    }
}

/// A whole head, and how many fields of a kind it has: looking them up would cost more than to count.
struct Parsed<'a> {
    response: Response<()>,
    usual: Usual,
    signs: Signs,
    codings: usize,
    coding: Option<&'a [u8]>,
    lengths: usize,
    length: Option<&'a [u8]>,
    /// Whether the connection outlives the message.
    stays_open: bool,
}

/// Where the lines of a head have their LF. Those beyond the array's capacity are only counted.
struct Ends {
    at: [u32; LINES_MAX],
    number: usize,
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            at: [0; LINES_MAX],
            number: 0,
        }
    }
}

impl Ends {
    fn push(&mut self, at: usize) {
        if let Some(place) = self.at.get_mut(self.number) {
            *place = at as u32;
        }
        self.number += 1;
    }

    /// The first line of a head, without its end, and the fields.
    fn split<'a, 'b>(&'b self, head: &'a [u8]) -> Result<(&'a [u8], Fields<'a, 'b>), Malformed> {
        // The last is empty.
        let [first, fields @ .., _] = self.at.get(..self.number).ok_or(Malformed::Fields)? else {
            return Err(Malformed::StatusLine);
        };
        let first = *first as usize;
        let fields = Fields {
            head,
            start: first + 1,
            ends: fields.iter(),
        };
        Ok((&head[..first - 1], fields))
    }
}

/// The lines of a head's fields, with their ends.
#[derive(Clone)]
struct Fields<'a, 'b> {
    head: &'a [u8],
    start: usize,
    ends: slice::Iter<'b, u32>,
}

impl<'a> Iterator for Fields<'a, '_> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = *self.ends.next()? as usize;
        let line = &self.head[self.start..=end];
        self.start = end + 1;
        Some(line)
    }
}

impl<'a, 'b> Fields<'a, 'b> {
    /// The values of those that say something of the connection.
    fn connections(self) -> impl Iterator<Item = &'a [u8]> + use<'a, 'b> {
        self.filter_map(|line| {
            let (name, value) = line.split_at_checked(header::CONNECTION.as_str().len())?;
            let value = value.strip_prefix(b":")?;
            is(name, &header::CONNECTION).then(|| value.trim_ascii())
        })
    }
}

/// What the status line says: the version's minor number, the status, and why.
fn status_line(line: &[u8]) -> Option<(u8, StatusCode, &[u8])> {
    let (minor, rest) = match line.strip_prefix(b"HTTP/1.")? {
        [b'0', rest @ ..] => (0, rest),
        [b'1', rest @ ..] => (1, rest),
        _ => return None,
    };
    let (status, reason) = rest.strip_prefix(b" ")?.split_first_chunk::<3>()?;
    let status = StatusCode::from_bytes(status).ok()?;
    let reason = match reason {
        [] => reason,
        reason => reason.strip_prefix(b" ")?,
    };
    Some((minor, status, reason))
}

/// Parses a whole head, whose lines end with CRLF.
fn parse<'a>(head: &'a Bytes, ends: &Ends, bodiless: bool) -> Result<Parsed<'a>, Malformed> {
    let (first, fields) = ends.split(head)?;
    let (minor, status, reason) = status_line(first).ok_or(Malformed::StatusLine)?;
    if has_control(head, ends.number) {
        return Err(match has_control(first, 0) {
            true => Malformed::StatusLine,
            false => Malformed::Field,
        });
    }
    // Else a field may be named there: whoever cleans the head needs all of them.
    let mut plain = status != StatusCode::SWITCHING_PROTOCOLS;
    let mut signs = Signs {
        http10: minor == 0,
        ..Signs::default()
    };
    for value in fields.clone().connections() {
        plain &= is_plain_option(value);
        let closes = || value.eq_ignore_ascii_case(b"close");
        signs.closes.get_or_insert_with(closes);
    }
    let framed = can_have_body(status) && !bodiless;
    let mut usual = Usual::default();
    let mut headers = HeaderMap::new();
    let (mut codings, mut lengths, mut coding, mut length) = (0, 0, None, None);
    for line in fields.clone() {
        let (name, value) = line.split_at(colon(line).ok_or(Malformed::Field)?);
        let value = value[1..].trim_ascii();
        let is_as_written =
            line.len() == name.len() + value.len() + ": \r\n".len() && line[name.len() + 1] == b' ';
        match (name.len(), known(name)) {
            (_, Some(name)) => {
                match name {
                    "server" if signs.server.is_none() => {
                        signs.server = Some(head.slice_ref(value));
                    }
                    "date" => signs.dated = true,
                    "content-type" => signs.events |= value.starts_with(b"text/event-stream"),
                    _ => {}
                }
                if plain {
                    if usual.lines.size.fields == 0 {
                        usual.lines = Lines::with_room(head.len() + ADDED_BYTES);
                    }
                    match is_as_written {
                        true => usual.lines.copy(name, line),
                        false => usual.lines.push(name, value),
                    }
                    continue;
                }
            }
            (14, _) if is(name, &header::CONTENT_LENGTH) => {
                lengths += 1;
                length = Some(value);
                if framed {
                    continue;
                }
            }
            (17, _) if is(name, &header::TRANSFER_ENCODING) => {
                codings += 1;
                coding = Some(value);
                if framed {
                    continue;
                }
            }
            (10, _) if is(name, &header::CONNECTION) => continue,
            _ => {}
        }
        let (name, value) = owned(head, name, value)?;
        headers.append(name, value);
    }
    usual.dated = plain && signs.dated;
    let stays_open = stays_open(fields.clone().connections(), minor);
    if !plain {
        // Put last, where they can be removed without moving another field.
        for value in fields.connections() {
            let (name, value) = owned(head, header::CONNECTION.as_str().as_bytes(), value)?;
            headers.append(name, value);
        }
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if minor == 0 {
        Version::HTTP_10
    } else {
        Version::HTTP_11
    };
    *response.headers_mut() = headers;
    if status.canonical_reason().map(str::as_bytes) != Some(reason) {
        // A phrase that is not ASCII has no defined meaning.
        let reason = if reason.is_ascii() { reason } else { b"" };
        if let Ok(reason) = ReasonPhrase::try_from(reason) {
            response.extensions_mut().insert(reason);
        }
    }
    Ok(Parsed {
        response,
        usual,
        signs,
        codings,
        coding,
        lengths,
        length,
        stays_open,
    })
}

/// A field for a map.
fn owned(head: &Bytes, name: &[u8], value: &[u8]) -> Result<(HeaderName, HeaderValue), Malformed> {
    let name = HeaderName::from_bytes(name).map_err(|_| Malformed::Field)?;
    let value = head.slice_ref(value);
    let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Field)?;
    Ok((name, value))
}

fn is(name: &[u8], known: &HeaderName) -> bool {
    name.eq_ignore_ascii_case(known.as_str().as_bytes())
}

/// Whether an answer with this status has a body, unless it is one to HEAD: RFC 9112 6.3, rules 1 and 2.
pub fn can_have_body(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// RFC 9112 9.3.
fn stays_open<'a>(connections: impl Iterator<Item = &'a [u8]>, minor: u8) -> bool {
    let mut open = minor > 0;
    for option in connections.flat_map(members) {
        if option.eq_ignore_ascii_case(b"close") {
            return false;
        }
        open |= option.eq_ignore_ascii_case(b"keep-alive");
    }
    open
}

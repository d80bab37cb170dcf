//! A response's head, from the bytes that have come.

#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use hyper::ext::ReasonPhrase;

use super::{
    BodyDecoder, Lines, Malformed, Signs, is_plain_option, length, members,
    usual::{Usual, known},
};

/// The most that may come before a head is complete, bytes: the head itself, what is read with it, and
/// the interim answers before it, of which a backend could send any number.
const HEAD_MAX: usize = 512 * 1024;
/// The most interim answers before it.
const INTERIM_MAX: usize = 1000;
/// The most fields of a head.
const FIELDS_MAX: usize = 100;
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
        let Some(end) = self.end(bytes)? else {
            return Ok(None);
        };
        let head = bytes.split_to(end).freeze();
        self.searched = 0;
        if self.bare {
            return Err(Malformed::Field);
        }
        let mut parsed = parse(&head, self.bodiless)?;
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

    /// Where the head ends.
    fn end(&mut self, bytes: &BytesMut) -> Result<Option<usize>, Malformed> {
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
            let end = match &bytes[at + 1..] {
                [b'\n', ..] => {
                    self.bare = true;
                    at + 2
                }
                [b'\r', b'\n', ..] => at + 3,
                _ => continue,
            };
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

    /// Whether it says something of a body that it cannot have: what follows may be that body. (A 304,
    /// and an answer to HEAD, say what GET would have got.)
    fn may_have_more(&self, response: &Response<()>) -> bool {
        let headers = response.headers();
        let length = headers.get(header::CONTENT_LENGTH);
        response.status() == StatusCode::NO_CONTENT
            && !self.bodiless
            && (headers.contains_key(header::TRANSFER_ENCODING)
                || length.is_some_and(|length| length.as_bytes().iter().any(|&b| b != b'0')))
    }

    /// Whether it says nothing of the body that GET would have got, so that only the connection's end could
    /// have been that body's: a server that has it end so for HEAD too would close it under the next request.
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

/// Parses a whole head, whose lines end with CRLF: httparse takes a bare LF as well.
fn parse(head: &Bytes, bodiless: bool) -> Result<Parsed<'_>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let outcome = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        head,
        &mut fields,
    );
    match outcome {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::Status | httparse::Error::Version) => {
            return Err(Malformed::StatusLine);
        }
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::Fields),
        _ => return Err(Malformed::Field),
    }
    let (Some(minor), Some(code)) = (parsed.version, parsed.code) else {
        return Err(Malformed::StatusLine);
    };
    let status = StatusCode::from_u16(code).map_err(|_| Malformed::StatusLine)?;
    let is_connection =
        |name: &str| name.len() == 10 && name.eq_ignore_ascii_case(header::CONNECTION.as_str());
    // Mostly there is one or none: they are looked for once.
    let fields = &parsed.headers[..];
    let first = fields.iter().position(|field| is_connection(field.name));
    let last = fields.iter().rposition(|field| is_connection(field.name));
    let connections = || {
        let all = first
            .zip(last)
            .map_or(&fields[..0], |(first, last)| &fields[first..=last]);
        all.iter().filter(|field| is_connection(field.name))
    };
    // Else a field may be named there: whoever cleans the head needs all of them.
    let plain = status != StatusCode::SWITCHING_PROTOCOLS
        && connections().all(|field| is_plain_option(field.value));
    let framed = can_have_body(status) && !bodiless;
    let mut signs = Signs {
        closes: connections()
            .next()
            .map(|field| field.value.eq_ignore_ascii_case(b"close")),
        http10: minor == 0,
        ..Signs::default()
    };
    let mut usual = Usual::default();
    let mut headers = HeaderMap::new();
    let (mut codings, mut lengths, mut coding, mut length) = (0, 0, None, None);
    for field in fields {
        let value = field.value;
        match (field.name.len(), known(field.name.as_bytes())) {
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
                    usual.lines.push(name, value);
                    continue;
                }
            }
            (14, _) if is(field.name, &header::CONTENT_LENGTH) => {
                lengths += 1;
                length = Some(value);
                if framed {
                    continue;
                }
            }
            (17, _) if is(field.name, &header::TRANSFER_ENCODING) => {
                codings += 1;
                coding = Some(value);
                if framed {
                    continue;
                }
            }
            _ if is_connection(field.name) => continue,
            _ => {}
        }
        let (name, value) = owned(head, field)?;
        headers.append(name, value);
    }
    usual.dated = plain && signs.dated;
    let stays_open = stays_open(connections().map(|field| field.value), minor);
    if !plain {
        // Last, where they can be taken away without moving another.
        for field in connections() {
            let (name, value) = owned(head, field)?;
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
    let reason = parsed.reason.unwrap_or_default();
    if status.canonical_reason() != Some(reason)
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
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
fn owned(
    head: &Bytes,
    field: &httparse::Header<'_>,
) -> Result<(HeaderName, HeaderValue), Malformed> {
    let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed::Field)?;
    let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
        .map_err(|_| Malformed::Field)?;
    Ok((name, value))
}

fn is(name: &str, known: &HeaderName) -> bool {
    name.eq_ignore_ascii_case(known.as_str())
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

//! The duties of a gateway on heads: RFC 9110 section 7 and RFC 9112, plus what keeps a client from
//! writing fields that a WSGI server takes for the proxy's.

mod target;
#[cfg(test)]
mod tests;

use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Version, header};

use self::target::{check_path, is_authority, other_host};
use super::{
    context::Peer,
    forwarded::{self, Appended},
    http2,
    live::Live,
    request_id::RequestId,
};
use crate::backend::{Name, Names, Plain, RequestHead, Usual, is_plain_option, length, members};

/// What is wrong with a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// TRACE, which is not for a gateway in front of an application, or a method of excessive length.
    #[error("the method is not implemented here")]
    Method,
    /// CONNECT, likewise. What its client sends behind it may be meant for the tunnel, and must not be read
    /// as a request.
    #[error("tunnels are not opened here")]
    Connect,
    /// Not HTTP/1.0, HTTP/1.1 or HTTP/2.
    #[error("the HTTP version is not supported")]
    Version,
    /// Missing, repeated or malformed.
    #[error("the Host field is missing, repeated or malformed")]
    Host,
    /// Neither a path nor an absolute http URI.
    #[error("the request target is malformed")]
    Target,
    /// Not HTTP at all.
    #[error("the request's head is malformed")]
    Syntax,
    /// The target alone exceeds what is accepted.
    #[error("the request target is too long")]
    TargetTooLong,
    /// The head exceeds `server.max_header_bytes`, or has too many fields.
    #[error("the request's header fields are too large or too many")]
    FieldsTooLarge,
    /// The budget for buffered bytes was spent when it came.
    #[error("no memory is left to hold the request's head")]
    NoRoom,
    /// Content-Length and Transfer-Encoding leave doubt about where the body ends.
    #[error("the message's length is ambiguous")]
    Framing,
    /// It expects something other than 100-continue.
    #[error("the expectation cannot be met")]
    Expectation,
    /// It has been passed on as often as it may be. Not an error: it ends here.
    #[error("the request was not to be passed on")]
    LastHop,
}

/// The client waits for a 100 before it sends the body.
#[derive(Clone, Copy, Debug)]
pub struct ExpectsContinue;

/// Fields for one connection only, RFC 9110 7.6.1, and those that a server must not take from a
/// client: `Proxy` becomes the environment's HTTP_PROXY. (Not `Proxy-Authorization`: whoever does not
/// ask for it may pass it on to a server that does, RFC 9110 11.7.2.) The shortest first.
static HOP_BY_HOP: Names<10> = Names::new([
    "te",
    "proxy",
    "upgrade",
    "connection",
    "keep-alive",
    "http2-settings",
    "proxy-connection",
    "transfer-encoding",
    "proxy-authenticate",
    "proxy-authentication-info",
]);

/// Fields of a request that end here too, see [`drops`].
static ENDS_HERE: Names<2> = Names::new(["expect", "trailer"]);

/// What else of a request is changed, or looked for in its map alone, beyond the names that [`Name`] knows and those
/// that the configuration has.
static LOOKED_FOR: Names<3> = Names::new(["via", "max-forwards", "x-request-start"]);

/// Whether a field of this name is for one connection only.
fn is_hop_by_hop(name: impl AsRef<[u8]>) -> bool {
    HOP_BY_HOP.find(name.as_ref()).is_some()
}

/// Whether a field that [`Name`] does not know means something to the application alone, unless the configuration names
/// it.
pub fn is_others(name: &[u8]) -> bool {
    !drops(name, false) && LOOKED_FOR.find(name).is_none()
}

/// Fields that are added to a request: room for them is made at once.
const ADDED: usize = 8;
/// Of these, so many have to be there: for whom, by which scheme, and through whom.
const NEEDED: usize = 3;
/// The rest, by how much they are worth: the host, the request's id, the port, the start.
const OPTIONAL: usize = 4;

/// What a `Connection` field must not remove, whatever it says.
fn is_end_to_end(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::HOST
            | header::CONTENT_LENGTH
            | header::AUTHORIZATION
            | header::COOKIE
            | header::FORWARDED
            | header::CACHE_CONTROL
            | header::VIA
    ) || name.as_str().starts_with("x-forwarded-")
}

/// Checks a request's head and makes it fit for the backend.
///
/// What it adds is to be written behind the head's fields, if that is possible (`behind`) and nothing in the
/// head is in its way: that is what it gives back. Else it is in the head's map.
///
/// # Errors
/// Says what is wrong; such a request goes no further.
pub fn inbound(
    request: &mut RequestHead,
    peer: &Peer,
    live: &Live,
    request_id: &RequestId,
    arrived: Instant,
    behind: bool,
    most: usize,
) -> Result<Option<Appended>, BadHead> {
    let headers = &live.config.headers;
    match *request.method() {
        Method::CONNECT => return Err(BadHead::Connect),
        Method::TRACE => return Err(BadHead::Method),
        _ => {}
    }
    let version = request.version();
    match version {
        Version::HTTP_10 | Version::HTTP_11 => {}
        Version::HTTP_2 => http2::normalise(request)?,
        _ => return Err(BadHead::Version),
    }
    let trusted = peer.is_trusted(&headers.trusted_proxies);
    let behind = behind && !headers.forwarded;
    let has_id = |name| request.body().other(name).is_some();
    let to_be_replaced =
        matches!(request_id, RequestId::Made(_)) && live.request_id.as_ref().is_some_and(has_id);
    if !behind || request.uri().authority().is_some() || to_be_replaced {
        Plain::unfold(request);
    }
    if request.body().host().is_some() {
        // The guard has looked at the rest, and there is nothing in the way of what is added.
        check_path(request)?;
        *request.version_mut() = Version::HTTP_11;
        let plain = request.body_mut();
        match &peer.forwarded_for {
            _ if !trusted => plain.remove(forwarded::spoofable()),
            Some(address) => plain.add(Name::FORWARDED_FOR, address),
            None => {}
        }
        let host = plain.host().filter(|host| is_authority(host));
        let host = host.ok_or(BadHead::Host)?;
        let there = plain.there();
        return Ok(Some(Appended::new(
            host, there, version, peer, live, request_id,
        )));
    }
    let survey = Survey::of(request.headers(), trusted, live.request_id.as_ref());
    survey.framing()?;
    let expects = survey.expects_continue()?;
    let (unclean, in_the_way) = (survey.unclean, survey.ours);
    let sent_host = survey.host()?.cloned();
    let host = match sent_host {
        // Mostly there is nothing to be done about it.
        Some(host) if request.uri().authority().is_none() => {
            check_path(request)?;
            is_authority(host.as_bytes())
                .then_some(host)
                .ok_or(BadHead::Host)?
        }
        sent => {
            let host = other_host(request, sent, version)?;
            request.headers_mut().insert(header::HOST, host.clone());
            host
        }
    };
    if *request.method() == Method::OPTIONS {
        take_one_hop(request.headers_mut())?;
    }
    if unclean {
        clean(request.headers_mut(), trusted);
    }
    if expects && version != Version::HTTP_10 {
        request.extensions_mut().insert(ExpectsContinue);
    }

    *request.version_mut() = Version::HTTP_11;
    let room = most.saturating_sub(request.headers().len() + NEEDED);
    if behind && !trusted && !in_the_way && room >= OPTIONAL {
        let appended = Appended::new(host.as_bytes(), 0, version, peer, live, request_id);
        return Ok(Some(appended));
    }
    let fields = request.headers_mut();
    fields.reserve(ADDED);
    forwarded::set(fields, peer, &host, trusted, headers.forwarded, room);
    if headers.via {
        fields.append(header::VIA, HeaderValue::from_static(via(version)));
    }
    if let Some(name) = live.request_id.as_ref().filter(|_| room >= 2) {
        fields.insert(name, request_id.to_value());
    }
    // A trusted proxy got it first.
    let has_start = || trusted && fields.contains_key(forwarded::REQUEST_START);
    if headers.request_start && room >= OPTIONAL && !has_start() {
        forwarded::set_request_start(fields, arrived);
    }
    Ok(None)
}

/// Cleans a response's head for the client. What it adds goes behind the usual fields, where there is a
/// place for them, if nothing in the map is in its way; else into the map.
pub fn outbound<B>(
    response: &mut Response<B>,
    usual: Option<&mut Usual>,
    live: &Live,
    request_id: &RequestId,
) {
    let version = response.version();
    let (mut connection, mut unclean) = (false, false);
    let (mut via_there, mut id_there) = (false, false);
    for (name, value) in response.headers() {
        if *name == header::CONNECTION {
            connection = true;
            unclean |= !is_plain_option(value.as_bytes());
        } else if !is_common(name) {
            unclean |= is_hop_by_hop(name);
            via_there |= *name == header::VIA;
        }
        id_there |= live.request_id.as_ref() == Some(name);
    }
    let fields = response.headers_mut();
    if unclean {
        remove(fields, |name| is_hop_by_hop(name));
    } else if connection {
        // It is the last one, see the codec: none of the others moves.
        fields.remove(header::CONNECTION);
    }
    let mut usual = usual;
    if let (Some(usual), Some(name)) = (&mut usual, &live.request_id)
        && Usual::has(name.as_str())
    {
        usual.unfold(fields);
        id_there = true;
    }
    if live.config.headers.via {
        match &mut usual {
            Some(usual) if !via_there => usual.lines.push("via", via(version).as_bytes()),
            _ => drop(fields.append(header::VIA, HeaderValue::from_static(via(version)))),
        }
    }
    if let Some(name) = &live.request_id {
        match &mut usual {
            Some(usual) if !id_there => usual.lines.push(name.as_str(), request_id.as_bytes()),
            _ => drop(fields.insert(name, request_id.to_value())),
        }
    }
    *response.version_mut() = Version::HTTP_11;
}

/// Cleans an interim answer for the client. It has no body, and says nothing of one: RFC 9110 8.6.
pub fn interim(response: &mut Response<()>, live: &Live) {
    let version = response.version();
    let fields = response.headers_mut();
    remove(fields, |name| {
        is_hop_by_hop(name) || matches!(*name, header::CONTENT_LENGTH | header::TRAILER)
    });
    if live.config.headers.via {
        fields.append(header::VIA, HeaderValue::from_static(via(version)));
    }
}

/// What `Via` says of us, who got the message by this version of HTTP.
pub fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0 tidegate",
        Version::HTTP_2 => "2.0 tidegate",
        _ => "1.1 tidegate",
    }
}

/// Whether all fields are among the most usual, so that looking for any other is in vain.
pub fn is_plain(headers: &HeaderMap) -> bool {
    let mut names = headers.keys();
    names.all(|name| matches!(*name, header::HOST | header::CONNECTION) || is_common(name))
}

/// Whether a request's client waits for a 100.
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(is_continue)
}

/// The one expectation that there is, RFC 9110 10.1.1.
pub fn is_continue(expectation: &HeaderValue) -> bool {
    expectation.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// Whether a field may come behind a message: nothing that says where it ends, who may see it, or what is for
/// one hop only, RFC 9110 6.5.1.
pub fn is_trailer(name: &HeaderName) -> bool {
    !(is_hop_by_hop(name)
        || matches!(
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
                | header::TRAILER
        ))
}

/// What one look at all fields finds; looking up each would cost more.
#[derive(Debug, Default)]
struct Survey<'a> {
    host: Found<'a>,
    length: Found<'a>,
    coding: Found<'a>,
    expectation: Found<'a>,
    /// There is something to be removed.
    unclean: bool,
    /// It has fields that we set, or add to.
    ours: bool,
}

#[derive(Debug, Default)]
enum Found<'a> {
    #[default]
    None,
    One(&'a HeaderValue),
    Several,
}

impl<'a> Found<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        *self = match self {
            Self::None => Self::One(value),
            _ => Self::Several,
        };
    }
}

impl<'a> Survey<'a> {
    fn of(headers: &'a HeaderMap, trusted: bool, request_id: Option<&HeaderName>) -> Self {
        let mut survey = Self::default();
        for (name, value) in headers {
            match *name {
                header::HOST => survey.host.add(value),
                header::CONTENT_LENGTH => survey.length.add(value),
                header::TRANSFER_ENCODING => {
                    survey.coding.add(value);
                    survey.unclean = true;
                }
                // What else it could say, nobody wants from it: see `codec::is_written`.
                header::CONNECTION => survey.unclean |= !is_plain_option(value.as_bytes()),
                header::EXPECT => {
                    survey.expectation.add(value);
                    survey.unclean = true;
                }
                _ if is_common(name) => survey.ours |= Some(name) == request_id,
                _ => {
                    survey.unclean |= drops(name, trusted);
                    survey.ours |= *name == header::VIA
                        || *name == forwarded::REQUEST_START
                        || Some(name) == request_id;
                }
            }
        }
        survey
    }

    /// Refuses what two servers could read as two different messages. (Of HTTP/1 the guard has
    /// refused more.)
    fn framing(&self) -> Result<(), BadHead> {
        let plain = match (&self.coding, &self.length) {
            (Found::None, Found::None) => true,
            (Found::One(coding), Found::None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
            (Found::None, Found::One(declared)) => length(declared.as_bytes()).is_some(),
            _ => false,
        };
        plain.then_some(()).ok_or(BadHead::Framing)
    }

    /// Whether the client waits for a 100. There is no other expectation, RFC 9110 10.1.1.
    fn expects_continue(&self) -> Result<bool, BadHead> {
        match &self.expectation {
            Found::None => Ok(false),
            Found::One(one) if is_continue(one) => Ok(true),
            _ => Err(BadHead::Expectation),
        }
    }

    fn host(&self) -> Result<Option<&'a HeaderValue>, BadHead> {
        match self.host {
            Found::None => Ok(None),
            Found::One(host) => Ok(Some(host)),
            Found::Several => Err(BadHead::Host),
        }
    }
}

/// Fields that most requests and responses have, and that stay: known at a glance, which the test
/// for what goes is not.
pub fn is_common(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::ACCEPT
            | header::ACCEPT_ENCODING
            | header::ACCEPT_LANGUAGE
            | header::ACCEPT_RANGES
            | header::AUTHORIZATION
            | header::CACHE_CONTROL
            | header::CONTENT_ENCODING
            | header::CONTENT_LENGTH
            | header::CONTENT_TYPE
            | header::COOKIE
            | header::DATE
            | header::ETAG
            | header::IF_MODIFIED_SINCE
            | header::IF_NONE_MATCH
            | header::LAST_MODIFIED
            | header::LOCATION
            | header::ORIGIN
            | header::PRAGMA
            | header::REFERER
            | header::SERVER
            | header::SET_COOKIE
            | header::UPGRADE_INSECURE_REQUESTS
            | header::USER_AGENT
            | header::VARY
    )
}

/// Counts this hop, RFC 9110 7.6.2.
fn take_one_hop(headers: &mut HeaderMap) -> Result<(), BadHead> {
    let Some(value) = headers.get_mut(header::MAX_FORWARDS) else {
        return Ok(());
    };
    let left: Option<u64> = value.to_str().ok().and_then(|value| value.parse().ok());
    match left {
        Some(0) => return Err(BadHead::LastHop),
        Some(left) => *value = HeaderValue::from(left - 1),
        None => {}
    }
    Ok(())
}

/// Whether a request's field ends here: one for this hop, and from untrusted peers also what only a
/// proxy may say. `Expect` is ours to answer, trailers end here, and nobody may say how long a body
/// is in other words.
fn drops(name: impl AsRef<[u8]>, trusted: bool) -> bool {
    let name = name.as_ref();
    is_hop_by_hop(name)
        || ENDS_HERE.find(name).is_some()
        || matches!(name, b"content_length" | b"transfer_encoding")
        || (!trusted && forwarded::is_spoofable(name))
}

fn clean(headers: &mut HeaderMap, trusted: bool) {
    remove(headers, |name| drops(name, trusted));
}

/// Removes the fields that `drops` and `Connection` name. The others keep their order.
fn remove(headers: &mut HeaderMap, drops: impl Fn(&HeaderName) -> bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| members(value.as_bytes()))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    // `HeaderMap::remove` moves the last field into the gap; a new map keeps the order.
    let mut kept = HeaderMap::with_capacity(headers.len() + ADDED);
    let mut keep = false;
    let mut current = header::CONNECTION;
    for (name, value) in headers.drain() {
        if let Some(name) = name {
            keep = !(drops(&name) || named.contains(&name));
            current = name;
        }
        if keep {
            kept.append(current.clone(), value);
        }
    }
    *headers = kept;
}

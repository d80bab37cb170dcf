//! Who asked, for the backend: `X-Forwarded-*`, `Forwarded` (RFC 7239), `X-Request-Start`.

use std::{net::IpAddr, sync::LazyLock, time::Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use ipnet::IpNet;

use super::{context::Peer, hygiene::via, live::Live, request_id::RequestId};
use crate::{
    backend::{Lines, Name, Names, Size, line},
    clock,
};

/// The addresses that a request came by, the nearest last.
pub const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// When a proxy got the request.
pub const REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");

/// What WSGI servers and frameworks believe when it comes from the proxy's address: the scheme, the
/// path's prefix, the user, the client, since when it waits. The shortest first.
pub(super) static SPOOFABLE: Names<28> = Names::new([
    "x-scheme",
    "client-ip",
    "forwarded",
    "path-info",
    "x-real-ip",
    "remote-addr",
    "remote-user",
    "script-name",
    "x-client-ip",
    "x-url-scheme",
    "x-remote-user",
    "x-rewrite-url",
    "true-client-ip",
    "x-original-url",
    "front-end-https",
    "x-forwarded-for",
    "x-forwarded-ssl",
    "x-request-start",
    "cf-connecting-ip",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-user",
    "x-forwarded-proto",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-cluster-client-ip",
    "x-forwarded-protocol",
]);

/// Whether only a trusted proxy may send it; WSGI knows no difference between `-` and `_`.
pub fn is_spoofable(name: &[u8]) -> bool {
    name.contains(&b'_') || SPOOFABLE.find(name).is_some()
}

impl Peer {
    /// Whether it is one of the trusted proxies. Whoever can open our Unix socket is trusted: that
    /// is what its file permissions are for.
    pub fn is_trusted(&self, proxies: &[IpNet]) -> bool {
        !self.unnamed && self.ip.is_none_or(|ip| is_trusted(ip, proxies))
    }
}

/// Whether that is the address of a trusted proxy.
pub fn is_trusted(ip: IpAddr, proxies: &[IpNet]) -> bool {
    if proxies.is_empty() {
        return false;
    }
    // ::ffff:10.0.0.1 is what a dual-stack listener sees of 10.0.0.1.
    let ip = ip.to_canonical();
    proxies.iter().any(|net| net.contains(&ip))
}

/// Room for what is the same for each request of a connection, bytes: one allocation.
const COMMON_BYTES: usize = 112;

/// The bits of those of the plain fields that only a trusted proxy may send.
pub fn spoofable() -> u64 {
    static BITS: LazyLock<u64> = LazyLock::new(|| {
        let bits = Name::all().map(|name| {
            let only_theirs = is_spoofable(name.as_str().as_bytes());
            if only_theirs { name.bit() } else { 0 }
        });
        bits.sum()
    });
    *BITS
}

/// The fields that are the same for each request of a connection.
fn common<'a>(
    address: Option<&'a HeaderValue>,
    port: &'a HeaderValue,
) -> impl Iterator<Item = (Name, &'a [u8])> {
    let address = address.map(|address| (Name::FORWARDED_FOR, address.as_bytes()));
    address.into_iter().chain([
        (Name::FORWARDED_PROTO, &b"http"[..]),
        (Name::FORWARDED_PORT, port.as_bytes()),
    ])
}

/// The same as lines, for a request that has none of them.
pub fn lines(address: Option<&HeaderValue>, port: &HeaderValue) -> Lines {
    let mut lines = Lines::with_room(COMMON_BYTES);
    for (name, value) in common(address, port) {
        lines.push(name.as_str(), value);
    }
    lines
}

/// What one request is to be given of forwarding fields, in the order in which it is written: those that are
/// the same for each of its connection, the host, `Via`, the id, and when it came. Not before it is sent: one
/// that is refused needs none of it.
#[derive(Debug)]
pub struct Appended {
    version: Version,
    /// The bits of the plain fields that it has.
    there: u64,
    /// How much there is of it.
    pub size: Size,
}

impl Appended {
    /// For a request to that host with these plain fields, which came by this version of HTTP.
    pub fn new(
        host: &[u8],
        there: u64,
        version: Version,
        peer: &Peer,
        live: &Live,
        id: &RequestId,
    ) -> Self {
        let mut appended = Self {
            version,
            there,
            size: Size::default(),
        };
        let mut size = match appended.has_common() {
            true => Size::default(),
            false => peer.lines.size,
        };
        appended.each(host, peer, live, id, &[0; START_MAX], |name, value| {
            size = size.and(name.len(), value.len());
        });
        appended.size = size;
        appended
    }

    /// Writes it for a request to that host.
    pub fn write(
        &self,
        host: &[u8],
        peer: &Peer,
        live: &Live,
        id: &RequestId,
        arrived: Instant,
        out: &mut Vec<u8>,
    ) {
        if !self.has_common() {
            out.extend_from_slice(peer.lines.as_bytes());
        }
        let mut text = [0; START_MAX];
        let start = match live.config.headers.request_start {
            true => request_start(arrived, &mut text),
            false => &[],
        };
        self.each(host, peer, live, id, start, |name, value| {
            line(name, value, out);
        });
    }

    /// Whether a proxy has said something of what is the same for each request.
    fn has_common(&self) -> bool {
        const COMMON: u64 =
            Name::FORWARDED_FOR.bit() | Name::FORWARDED_PROTO.bit() | Name::FORWARDED_PORT.bit();
        self.there & COMMON != 0
    }

    /// Each field that this request does not have in common with others.
    #[inline]
    fn each(
        &self,
        host: &[u8],
        peer: &Peer,
        live: &Live,
        id: &RequestId,
        start: &[u8],
        mut field: impl FnMut(&str, &[u8]),
    ) {
        let lacks = |name: Name| self.there & name.bit() == 0;
        if self.has_common() {
            let common = common(peer.forwarded_for.as_ref(), &peer.forwarded_port);
            for (name, value) in common.filter(|(name, _)| lacks(*name)) {
                field(name.as_str(), value);
            }
        }
        let headers = &live.config.headers;
        if lacks(Name::FORWARDED_HOST) {
            field(HOST.as_str(), host);
        }
        if headers.via {
            field("via", via(self.version).as_bytes());
        }
        // What was sent is there already.
        if let (Some(name), RequestId::Made(_)) = (&live.request_id, id) {
            field(name.as_str(), id.as_bytes());
        }
        if headers.request_start {
            field(REQUEST_START.as_str(), start);
        }
    }
}

/// Sets the forwarding fields. Those of an untrusted peer have been removed already. Where the backend's
/// server takes few more (`room`), it has to do without what it can do without.
pub fn set(
    headers: &mut HeaderMap,
    peer: &Peer,
    host: &HeaderValue,
    trusted: bool,
    forwarded: bool,
    room: usize,
) {
    if let Some(address) = &peer.forwarded_for {
        append_for(headers, address);
    }
    if let (Some(ip), true) = (peer.ip, forwarded) {
        append_forwarded(headers, ip, host);
    }
    let mut default = |name: HeaderName, value: HeaderValue| {
        if !trusted || !headers.contains_key(&name) {
            headers.insert(name, value);
        }
    };
    default(PROTO, HeaderValue::from_static("http"));
    if room >= 3 {
        default(PORT, peer.forwarded_port.clone());
    }
    if room >= 1 {
        default(HOST, host.clone());
    }
}

fn append_for(headers: &mut HeaderMap, address: &HeaderValue) {
    append(headers, FOR, address.as_bytes());
}

fn append_forwarded(headers: &mut HeaderMap, ip: IpAddr, host: &HeaderValue) {
    let node = match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let host = host.to_str().unwrap_or_default();
    let element = format!("for={node};host=\"{host}\";proto=http");
    append(headers, header::FORWARDED, element.as_bytes());
}

/// Adds a member to a list field, whose lines become one. They need not be text: who could make a proxy's list go
/// away by a byte of its own would hide behind it.
fn append(headers: &mut HeaderMap, name: HeaderName, member: &[u8]) {
    let mut list = Vec::new();
    for value in headers.get_all(&name) {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(value.as_bytes());
    }
    if !list.is_empty() {
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(member);
    // Of values and commas alone comes another value.
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(list)) {
        headers.insert(name, value);
    }
}

/// `X-Request-Start`, in the map.
pub fn set_request_start(headers: &mut HeaderMap, arrived: Instant) {
    let mut text = [0; START_MAX];
    if let Ok(value) = HeaderValue::from_bytes(request_start(arrived, &mut text)) {
        headers.insert(REQUEST_START, value);
    }
}

/// Room for `t=` and the longest number.
const START_MAX: usize = 2 + 20;

/// `t=<microseconds since the epoch>`, as New Relic, Heroku and others read it.
fn request_start(arrived: Instant, text: &mut [u8; START_MAX]) -> &[u8] {
    let since_epoch = clock::wall(arrived);
    let micros = since_epoch.as_secs() * 1_000_000 + u64::from(since_epoch.subsec_micros());
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(micros).as_bytes();
    text[..2].copy_from_slice(b"t=");
    text[2..2 + digits.len()].copy_from_slice(digits);
    &text[..2 + digits.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> Peer {
        let metrics = std::sync::Arc::new(crate::observe::Metrics::new());
        let state = super::super::state::State::new(metrics, clock::now());
        let address = std::net::SocketAddr::new(ip.parse().expect("an address"), 1);
        Peer::new(
            Some(address),
            Some(8080),
            std::sync::Arc::new(state),
            std::sync::Arc::default(),
        )
    }

    #[test]
    fn what_is_in_the_list_is_spoofable_in_any_case() {
        for name in SPOOFABLE.all() {
            assert!(is_spoofable(name.as_bytes()), "{name}");
            assert!(is_spoofable(name.to_ascii_uppercase().as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_appended_to() {
        let mut headers = HeaderMap::new();
        headers.insert(FOR, HeaderValue::from_static("9.9.9.9"));
        headers.insert(PROTO, HeaderValue::from_static("https"));
        let host = HeaderValue::from_static("app");
        let peer = peer("::ffff:10.0.0.1");
        assert!(peer.is_trusted(&["10.0.0.0/8".parse().expect("a net")]));
        set(&mut headers, &peer, &host, true, true, usize::MAX);
        assert_eq!(headers[FOR], "9.9.9.9, 10.0.0.1");
        assert_eq!(headers[PROTO], "https");
        assert_eq!(headers[HOST], "app");
        assert_eq!(headers[PORT], "8080");
        assert_eq!(headers["forwarded"], "for=10.0.0.1;host=\"app\";proto=http");
    }

    #[test]
    fn what_is_no_text_does_not_break_a_proxys_list() {
        let mut headers = HeaderMap::new();
        let (host, peer) = (HeaderValue::from_static("a"), peer("10.0.0.1"));
        for name in [FOR, header::FORWARDED] {
            for line in [&b"\xff, 1.2.3.4"[..], b"\xc3\xa9", b"5.6.7.8"] {
                let line = HeaderValue::from_bytes(line).expect("a value");
                headers.append(&name, line);
            }
        }
        set(&mut headers, &peer, &host, true, true, usize::MAX);
        let all = b"\xff, 1.2.3.4, \xc3\xa9, 5.6.7.8, ";
        let told = |name, ours: &[u8]| {
            let lines: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(lines, [&[&all[..], ours].concat()[..]]);
        };
        told(FOR, b"10.0.0.1");
        told(header::FORWARDED, b"for=10.0.0.1;host=\"a\";proto=http");
    }

    #[test]
    fn an_ipv6_node_is_quoted() {
        let mut headers = HeaderMap::new();
        append_forwarded(
            &mut headers,
            "2001:db8::1".parse().expect("an address"),
            &HeaderValue::from_static("a"),
        );
        assert_eq!(
            headers["forwarded"],
            "for=\"[2001:db8::1]\";host=\"a\";proto=http"
        );
    }
}

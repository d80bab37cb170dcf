//! For whom a request is, and for what: its host and its target.

use http::{HeaderValue, Method, Request, Uri, Version, uri::PathAndQuery};

use super::BadHead;

/// Refuses a target that is neither a path nor, for OPTIONS, the server as a whole.
pub(super) fn check_path<B>(request: &Request<B>) -> Result<(), BadHead> {
    // Not `path`, which makes one up where there is a query alone.
    match request.uri().path_and_query().map(PathAndQuery::as_str) {
        Some(target) if target.starts_with('/') => Ok(()),
        Some("*") if *request.method() == Method::OPTIONS => Ok(()),
        _ => Err(BadHead::Target),
    }
}

/// The host of a target in absolute-form, which becomes a path, or of HTTP/1.0 without one.
pub(super) fn other_host<B>(
    request: &mut Request<B>,
    sent: Option<HeaderValue>,
    version: Version,
) -> Result<HeaderValue, BadHead> {
    let Some(authority) = request.uri().authority() else {
        check_path(request)?;
        let old = version == Version::HTTP_10 && sent.is_none();
        return old
            .then(|| HeaderValue::from_static("localhost"))
            .ok_or(BadHead::Host);
    };
    if !matches!(request.uri().scheme_str(), Some("http" | "https")) {
        return Err(BadHead::Target);
    }
    // It also says what the host is, RFC 9112 3.2.2; but a bad Host stays a bad one.
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadHead::Host)?;
    let sent_is_fine = sent.map_or(version != Version::HTTP_11, |sent| {
        is_authority(sent.as_bytes())
    });
    if !sent_is_fine || !is_authority(host.as_bytes()) {
        return Err(BadHead::Host);
    }
    let path = match request.uri().path_and_query() {
        // `http://host?query`: only its `Display` adds the path.
        Some(path) if path.as_str().starts_with('?') => path.to_string().parse().ok(),
        path => path.cloned(),
    };
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Ok(host)
}

/// Whether a byte may be as it is in a host that is no IPv6 address. A table, since every request has one.
const IN_HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut at = 0;
    while at < table.len() {
        let byte = at as u8;
        table[at] = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~');
        at += 1;
    }
    table
};

/// What follows the bytes that may be in a host as they are.
fn after_host(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| !IN_HOST[usize::from(byte)]);
    bytes.get(end.unwrap_or(bytes.len())..).unwrap_or_default()
}

/// `host` or `host:port`. Narrower than RFC 3986 allows: what is between brackets must be an IPv6
/// address, and a comma is two Hosts that somebody has merged.
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let rest = if let Some(bracketed) = bytes.strip_prefix(b"[") {
        let Some(end) = bracketed.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let address = std::str::from_utf8(&bracketed[..end]);
        if !address.is_ok_and(|it| it.parse::<std::net::Ipv6Addr>().is_ok()) {
            return false;
        }
        &bracketed[end + 1..]
    } else {
        let mut rest = after_host(bytes);
        while let [b'%', encoded @ ..] = rest {
            match encoded {
                [a, b, behind @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                    rest = after_host(behind);
                }
                _ => return false,
            }
        }
        if rest.len() == bytes.len() {
            return false;
        }
        rest
    };
    match rest {
        // An empty port is allowed, RFC 3986 3.2.3.
        [] => true,
        [b':', port @ ..] => {
            let number = port.iter().try_fold(0_u32, |number, &byte| {
                let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
                (number <= u32::from(u16::MAX)).then_some(10 * number + digit)
            });
            number.is_some_and(|number| number <= u32::from(u16::MAX))
        }
        _ => false,
    }
}

//! The uwsgi protocol: a packet of variables in place of HTTP's head, then the body as it is. The
//! answer is HTTP's own, and ends the connection.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, header};
use http_body::Body;

use super::codec::is_written;

/// The length of all variables is a 16-bit number, bytes.
pub const VARS_MAX: usize = u16::MAX as usize;
/// Modifier, length of the variables, modifier.
const HEADER: usize = 4;
/// What is said besides the fields, with the lengths before each, bytes: room is made for it at once.
const USUAL: usize = 320;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Why a request has no form in this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unencodable {
    /// The variables exceed [`VARS_MAX`].
    #[error("the request's head does not fit a uwsgi packet")]
    TooLarge,
    /// The body's length is not known before it is sent.
    #[error("the request's body has no length")]
    NoLength,
}

/// The packet for a request whose forwarding fields are set: the client's address, the port and the
/// scheme are taken from them.
///
/// # Errors
/// See [`Unencodable`].
pub fn encode<B>(request: &Request<B>, body: &impl Body) -> Result<Bytes, Unencodable> {
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        return Err(Unencodable::NoLength);
    }
    let size = |(name, value): (&HeaderName, &http::HeaderValue)| {
        HEADER + "HTTP_".len() + name.as_str().len() + value.len()
    };
    let fields: usize = request.headers().iter().map(size).sum();
    let target = 2 * request
        .uri()
        .path_and_query()
        .map_or(1, |it| it.as_str().len());
    let mut packet = Vec::with_capacity(HEADER + USUAL + fields + target);
    packet.extend([0; HEADER]);
    each_var(request, |name, value| {
        put(&mut packet, name)?;
        put(&mut packet, value)
    })?;
    let length = u16::try_from(packet.len() - HEADER).map_err(|_| Unencodable::TooLarge)?;
    packet[1..3].copy_from_slice(&length.to_le_bytes());
    Ok(packet.into())
}

/// The length of a request's variables as uWSGI counts it against its `buffer-size`, bytes; the same
/// whether they came as a packet or were made by uWSGI from HTTP.
pub fn vars_len<B>(request: &Request<B>) -> usize {
    let mut length = 0;
    let counted: Result<(), Unencodable> = each_var(request, |name, value| {
        length += HEADER + name.len() + value.len();
        Ok(())
    });
    debug_assert!(counted.is_ok());
    length
}

fn put(packet: &mut Vec<u8>, text: &[u8]) -> Result<(), Unencodable> {
    let length = u16::try_from(text.len()).map_err(|_| Unencodable::TooLarge)?;
    packet.extend(length.to_le_bytes());
    packet.extend(text);
    Ok(())
}

/// The variables, in order: the CGI ones, then the fields.
fn each_var<B, E>(
    request: &Request<B>,
    mut var: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let uri = request.uri();
    let headers = request.headers();
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let field = |name: &HeaderName| headers.get(name).map_or(&b""[..], |value| value.as_bytes());

    var(b"REQUEST_METHOD", request.method().as_str().as_bytes())?;
    var(b"REQUEST_URI", target.as_bytes())?;
    var(b"PATH_INFO", &percent_decoded(uri.path()))?;
    var(b"QUERY_STRING", uri.query().unwrap_or_default().as_bytes())?;
    var(b"SCRIPT_NAME", b"")?;
    var(b"SERVER_PROTOCOL", b"HTTP/1.1")?;
    var(b"SERVER_NAME", host_name(field(&header::HOST)))?;
    let port = field(&FORWARDED_PORT);
    var(b"SERVER_PORT", if port.is_empty() { b"80" } else { port })?;
    var(b"REMOTE_ADDR", last_of(headers, &FORWARDED_FOR))?;
    if field(&FORWARDED_PROTO).eq_ignore_ascii_case(b"https") {
        var(b"HTTPS", b"on")?;
    }
    if let Some(length) = headers.get(header::CONTENT_LENGTH) {
        var(b"CONTENT_LENGTH", length.as_bytes())?;
    }
    if let Some(media_type) = headers.get(header::CONTENT_TYPE) {
        var(b"CONTENT_TYPE", media_type.as_bytes())?;
    }

    let mut variable = Vec::with_capacity(64);
    for name in headers.keys() {
        if is_said_otherwise(name, headers) {
            continue;
        }
        variable.clear();
        variable.extend(b"HTTP_");
        variable.extend(name.as_str().bytes().map(|byte| match byte {
            b'-' => b'_',
            other => other.to_ascii_uppercase(),
        }));
        let mut values = headers.get_all(name).iter();
        let first = values.next().map_or(&b""[..], |value| value.as_bytes());
        match values.next() {
            None => var(&variable, first)?,
            Some(second) => {
                // One variable for each name: of two, the server would see the last.
                let separator: &[u8] = if *name == header::COOKIE {
                    b"; "
                } else {
                    b", "
                };
                let mut joined = first.to_vec();
                for value in std::iter::once(second).chain(values) {
                    joined.extend(separator);
                    joined.extend(value.as_bytes());
                }
                var(&variable, &joined)?;
            }
        }
    }
    Ok(())
}

/// Whether a field is no variable of its own: because it is one of CGI's, because it is about a
/// connection, or because it would hide one that differs from it in `-` and `_` only.
fn is_said_otherwise(name: &HeaderName, headers: &HeaderMap) -> bool {
    matches!(
        *name,
        header::CONTENT_LENGTH | header::CONTENT_TYPE | header::TRANSFER_ENCODING
    ) || (*name == header::CONNECTION
        && headers
            .get(name)
            .is_some_and(|value| !is_written(name, value)))
        || (name.as_str().contains('_')
            && headers.keys().any(|other| {
                other.as_str() < name.as_str() && same_variable(other.as_str(), name.as_str())
            }))
}

fn same_variable(one: &str, other: &str) -> bool {
    let fold = |byte| if byte == b'-' { b'_' } else { byte };
    one.len() == other.len() && one.bytes().map(fold).eq(other.bytes().map(fold))
}

/// The name in `name:port`; an IPv6 address keeps its brackets.
fn host_name(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|&byte| byte == b':' || byte == b']') {
        Some(at) if host[at] == b':' => &host[..at],
        _ => host,
    }
}

/// The last element of a list field: of `X-Forwarded-For` it is the one that was added here.
fn last_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a [u8] {
    let last = headers.get_all(name).iter().next_back();
    last.map_or(&b""[..], |value| {
        let value = value.as_bytes();
        let from = value.iter().rposition(|&byte| byte == b',');
        value[from.map_or(0, |comma| comma + 1)..].trim_ascii()
    })
}

/// `%41` is `A`; what is not a valid triplet stays as it is.
fn percent_decoded(path: &str) -> std::borrow::Cow<'_, [u8]> {
    let bytes = path.as_bytes();
    if !bytes.contains(&b'%') {
        return bytes.into();
    }
    let digit = |at: usize| bytes.get(at).and_then(|&byte| (byte as char).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http_body_util::{Empty, Full};
    use proptest::prelude::*;

    use super::*;

    /// An independent reading of a packet, as the server does it.
    fn decode(packet: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        assert_eq!((packet[0], packet[3]), (0, 0), "the modifiers of WSGI");
        let length = usize::from(u16::from_le_bytes([packet[1], packet[2]]));
        assert_eq!(packet.len(), 4 + length, "the length is that of the rest");
        let mut rest = &packet[4..];
        let mut next = || {
            (!rest.is_empty()).then(|| {
                let length = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
                let (text, after) = rest[2..].split_at(length);
                rest = after;
                text.to_vec()
            })
        };
        let mut vars = Vec::new();
        while let Some(name) = next() {
            vars.push((name, next().expect("a value for each name")));
        }
        vars
    }

    fn vars<B: Body>(request: &Request<B>) -> BTreeMap<String, String> {
        let packet = encode(request, request.body()).expect("a packet");
        let list = decode(&packet);
        let map: BTreeMap<_, _> = list
            .iter()
            .map(|(name, value)| {
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                (text(name), text(value))
            })
            .collect();
        assert_eq!(map.len(), list.len(), "each variable once: {list:?}");
        assert_eq!(vars_len(request), packet.len() - HEADER);
        map
    }

    #[test]
    fn a_request_as_cgi_says_it() {
        let request = Request::post("/caf%C3%A9/a%2Fb?q=%20&x")
            .header("host", "app.example:8443")
            .header("content-type", "text/plain")
            .header("content-length", "5")
            .header("x-forwarded-for", "9.9.9.9, 10.0.0.7")
            .header("x-forwarded-port", "8443")
            .header("x-forwarded-proto", "https")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("accept", "text/html")
            .header("accept", "*/*")
            .header("x-a_b", "hidden")
            .header("x-a-b", "shown")
            .body(Full::new(Bytes::from_static(b"12345")))
            .expect("a request");
        let vars = vars(&request);
        let expected = [
            ("CONTENT_LENGTH", "5"),
            ("CONTENT_TYPE", "text/plain"),
            ("HTTPS", "on"),
            ("HTTP_ACCEPT", "text/html, */*"),
            ("HTTP_COOKIE", "a=1; b=2"),
            ("HTTP_HOST", "app.example:8443"),
            ("HTTP_X_A_B", "shown"),
            ("HTTP_X_FORWARDED_FOR", "9.9.9.9, 10.0.0.7"),
            ("HTTP_X_FORWARDED_PORT", "8443"),
            ("HTTP_X_FORWARDED_PROTO", "https"),
            ("PATH_INFO", "/café/a/b"),
            ("QUERY_STRING", "q=%20&x"),
            ("REMOTE_ADDR", "10.0.0.7"),
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/caf%C3%A9/a%2Fb?q=%20&x"),
            ("SCRIPT_NAME", ""),
            ("SERVER_NAME", "app.example"),
            ("SERVER_PORT", "8443"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
        ];
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert_eq!(vars, expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let request = |length: usize| {
            Request::get("/")
                .header("x", "a".repeat(length))
                .body(Empty::<Bytes>::new())
                .expect("a request")
        };
        let fixed = vars_len(&request(0));
        let encoded = |bytes| {
            let request = request(bytes);
            encode(&request, request.body())
        };
        assert!(encoded(VARS_MAX - fixed).is_ok());
        for more in [1, 70_000] {
            let too_large = encoded(VARS_MAX - fixed + more);
            assert_eq!(too_large, Err(Unencodable::TooLarge));
        }
        let request = Request::post("/").body(OfUnknownLength).expect("a request");
        assert_eq!(encode(&request, request.body()), Err(Unencodable::NoLength));
    }

    struct OfUnknownLength;

    impl Body for OfUnknownLength {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Pending
        }
    }

    #[test]
    fn hosts_lose_their_port() {
        for (host, name) in [
            ("a", "a"),
            ("a:1", "a"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(host_name(host.as_bytes()), name.as_bytes());
        }
    }

    #[test]
    fn only_triplets_are_decoded() {
        for (path, decoded) in [
            ("/a", &b"/a"[..]),
            ("/%41%2f%00", b"/A/\0"),
            ("/%4", b"/%4"),
            ("/%", b"/%"),
            ("/%zz%%41", b"/%zz%A"),
        ] {
            assert_eq!(&*percent_decoded(path), decoded, "{path}");
        }
    }

    proptest! {
        /// Whatever the fields: a packet that can be read back, each variable once, every value in it.
        #[test]
        fn every_packet_can_be_read(
            path in "/[a-z%0-9/]{0,40}(\\?[a-z=&%]{0,20})?",
            fields in proptest::collection::vec(("[a-z][a-z0-9_-]{0,12}", "[ -~]{0,60}"), 0..20),
        ) {
            let mut builder = Request::get(&path);
            for (name, value) in &fields {
                builder = builder.header(name, value);
            }
            // What can be no URI is no request either.
            let Ok(request) = builder.body(Empty::<Bytes>::new()) else { return Ok(()) };
            let vars = vars(&request);
            prop_assert_eq!(&vars["REQUEST_URI"], &path);
            for (name, value) in &fields {
                let name = name.to_ascii_uppercase().replace('-', "_");
                let known = vars
                    .get(&format!("HTTP_{name}"))
                    .or_else(|| vars.get(&name))
                    .or_else(|| (name == "TRANSFER_ENCODING").then_some(value));
                let twice = fields
                    .iter()
                    .filter(|(other, _)| same_variable(&name.to_ascii_lowercase(), other))
                    .count()
                    > 1;
                prop_assert!(
                    known.is_some_and(|known| twice || known == value),
                    "{} is {:?}", name, known
                );
            }
        }
    }
}

//! From a head whose bytes the guard has judged to a request.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, uri::PathAndQuery};
use memchr::memmem;

use crate::{
    backend::{Name, Plain, RequestHead, has_member},
    proxy::{
        guard::{Field, Head},
        hygiene::{BadHead, is_continue},
    },
};

/// A request's head, and what it says of the connection.
#[derive(Debug)]
pub struct Parsed {
    /// The head.
    pub request: Box<RequestHead>,
    /// Whether its client wants to keep the connection: RFC 9112 9.3.
    pub keep_alive: bool,
    /// Whether its client waits for a 100 before it sends the body.
    pub expects: bool,
    /// Whether its client takes trailers: RFC 9110 6.5.1.
    pub trailers: bool,
}

/// Makes a request of a head and its fields. `request` is an empty one that has been used before, with
/// its memory.
///
/// # Errors
/// If its target is none, in a way that the guard does not look at.
pub fn parse(
    bytes: &Bytes,
    head: &Head,
    fields: &[Field],
    mut request: Box<RequestHead>,
) -> Result<Parsed, BadHead> {
    let method = Method::from_bytes(&bytes[head.method.clone()]).map_err(|_| BadHead::Method)?;
    let target = bytes.slice(head.target.clone());
    let mut uri = Uri::from_maybe_shared(target.clone()).map_err(|_| BadHead::Syntax)?;
    if method == Method::OPTIONS && uri.authority().is_some() && has_no_path(&target) {
        let mut parts = uri.into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static("*"));
        uri = Uri::from_parts(parts).map_err(|_| BadHead::Target)?;
    }
    let said = match head.plain {
        true => keep(bytes, fields, request.body_mut()),
        false => put(bytes, fields, request.headers_mut())?,
    };
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = match head.http10 {
        true => Version::HTTP_10,
        false => Version::HTTP_11,
    };
    Ok(Parsed {
        request,
        keep_alive: !said.closes && (said.keeps || !head.http10),
        expects: said.expects && !head.http10,
        trailers: said.trailers,
    })
}

/// What fields say of the connection, and of what their client waits for.
#[derive(Default)]
struct Said {
    closes: bool,
    keeps: bool,
    expects: bool,
    trailers: bool,
}

/// Keeps plain fields as they are.
fn keep(bytes: &Bytes, fields: &[Field], plain: &mut Plain) -> Said {
    let mut said = Said::default();
    plain.begin(bytes.clone());
    for Field { name, known, value } in fields {
        match known {
            Some(Name::CONNECTION) => {
                said.closes = bytes[value.clone()].eq_ignore_ascii_case(b"close");
                said.keeps = !said.closes;
            }
            Some(known) => plain.push(*known, name.start, value.end),
            None => debug_assert!(false, "it is not plain"),
        }
    }
    said
}

/// Puts fields into a map.
fn put(bytes: &Bytes, fields: &[Field], map: &mut HeaderMap) -> Result<Said, BadHead> {
    let mut said = Said::default();
    map.reserve(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(&bytes[field.name.clone()])
            .map_err(|_| BadHead::FieldsTooLarge)?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(field.value.clone()))
            .map_err(|_| BadHead::Syntax)?;
        match name {
            header::CONNECTION => {
                said.closes |= has_member(value.as_bytes(), b"close");
                said.keeps |= has_member(value.as_bytes(), b"keep-alive");
            }
            header::EXPECT => said.expects = is_continue(&value),
            header::TE => said.trailers |= has_member(value.as_bytes(), b"trailers"),
            _ => {}
        }
        map.append(name, value);
    }
    Ok(said)
}

/// Whether an absolute URI ends with its authority. To OPTIONS that is the server as a whole, RFC 9112
/// 3.2.4; [`Uri`] knows no difference to the path `/`.
fn has_no_path(target: &[u8]) -> bool {
    let after = memmem::find(target, b"://").map(|at| &target[at + 3..]);
    after.is_some_and(|rest| !rest.iter().any(|byte| b"/?".contains(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::guard::{Guard, Limits};

    fn parsed(text: &str) -> Result<Parsed, BadHead> {
        let mut guard = Guard::new(Limits::new(4096));
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let head = guard.head(&bytes)?.expect("it is complete");
        parse(&bytes, &head, guard.fields(), Box::default())
    }

    #[test]
    fn a_head_becomes_a_request() {
        let text =
            "\r\nPOST /a?b=%20 HTTP/1.1\r\nHost: app\r\nX-A: \t b c \t\r\nx-a:d\r\nEmpty:\r\n\r\n";
        let Parsed { request, .. } = parsed(text).expect("a request");
        assert_eq!(*request.method(), Method::POST);
        assert_eq!(request.uri(), "/a?b=%20");
        assert_eq!(request.version(), Version::HTTP_11);
        let fields: Vec<_> = request.headers().iter().collect();
        let text = |name: &str, value: &str| format!("{name}: {value}");
        let fields: Vec<_> = fields
            .into_iter()
            .map(|(name, value)| text(name.as_str(), value.to_str().expect("ASCII")))
            .collect();
        assert_eq!(fields, ["host: app", "x-a: b c", "x-a: d", "empty: "]);
    }

    #[test]
    fn what_it_says_of_the_connection() {
        for (version, fields, keep_alive) in [
            ("1.1", "", true),
            ("1.0", "", false),
            ("1.0", "Connection: x, Keep-Alive\r\n", true),
            (
                "1.0",
                "Connection: keep-alive\r\nConnection: close\r\n",
                false,
            ),
            (
                "1.1",
                "Connection: x ,\tClose\r\nConnection: keep-alive\r\n",
                false,
            ),
            ("1.1", "Connection: closed\r\n", true),
        ] {
            let text = format!("GET / HTTP/{version}\r\n{fields}\r\n");
            assert_eq!(
                parsed(&text).expect("a request").keep_alive,
                keep_alive,
                "{text:?}"
            );
        }
        let expects = "Expect: 100-Continue\r\nTE: deflate, Trailers\r\n";
        let one = parsed(&format!("POST / HTTP/1.1\r\n{expects}\r\n")).expect("a request");
        assert!(one.expects && one.trailers);
        let old = parsed(&format!("POST / HTTP/1.0\r\n{expects}\r\n")).expect("a request");
        assert!(!old.expects, "HTTP/1.0 knows no 100");
    }

    #[test]
    fn a_target_that_is_none() {
        assert_eq!(
            parsed("GET http:// HTTP/1.1\r\n\r\n").err(),
            Some(BadHead::Syntax)
        );
    }
}

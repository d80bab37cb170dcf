//! A request's head from HTTP/2, as HTTP/1 understands it: RFC 9113 sections 8.2 and 8.3. The parser
//! has refused what it knows to be malformed; here is the rest.

use http::{HeaderMap, HeaderValue, Method, Request, header};

use crate::proxy::{guard::METHOD_MAX, hygiene::BadHead};

/// The most fields; gunicorn and the HTTP/1 parser take as many.
const FIELDS_MAX: usize = 100;

/// How long the head is as HTTP/1 has it, bytes.
pub fn size<B>(request: &Request<B>) -> usize {
    let authority = request.uri().authority().map_or("", |it| it.as_str());
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    line_size(request) + "Host: \r\n\r\n".len() + authority.len() + fields.sum::<usize>()
}

/// The same of the line with the target.
fn line_size<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or("", |it| it.as_str());
    request.method().as_str().len() + target.len() + "  HTTP/1.1\r\n".len()
}

/// What of a head is too large that is longer than `most`.
pub fn excess<B>(request: &Request<B>, most: usize) -> BadHead {
    match line_size(request) > most {
        true => BadHead::TargetTooLong,
        false => BadHead::FieldsTooLarge,
    }
}

/// Checks the head, and joins what HTTP/2 splits.
///
/// # Errors
/// Says what is wrong.
pub fn normalise<B>(request: &mut Request<B>) -> Result<(), BadHead> {
    if request.headers().values().any(is_padded) {
        return Err(BadHead::Syntax);
    }
    // However many crumbs there are, they are one field.
    join_cookies(request.headers_mut())?;
    let headers = request.headers();
    if headers.len() > FIELDS_MAX {
        return Err(BadHead::FieldsTooLarge);
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    if let (Some(authority), Some(host)) = (request.uri().authority(), hosts.next()) {
        // Two answers to where a request goes: who routes by one must not be passed by the other.
        let host = host.as_bytes();
        if !host.eq_ignore_ascii_case(authority.as_str().as_bytes()) {
            return Err(BadHead::Host);
        }
    }
    if request.method().as_str().len() > METHOD_MAX {
        return Err(BadHead::Method);
    }
    let target = request.uri().path_and_query();
    if target.is_some_and(|target| !target.as_str().is_ascii()) {
        // The URI type takes UTF-8, which is no URI, and in HTTP/1 no target.
        return Err(BadHead::Target);
    }
    // Not `path`, which makes one up where there is a query alone.
    let target = target.map_or("", |target| target.as_str());
    let asterisk = target == "*" && *request.method() == Method::OPTIONS;
    if !(target.starts_with('/') || asterisk || *request.method() == Method::CONNECT) {
        return Err(BadHead::Target);
    }
    Ok(())
}

/// RFC 9113 8.2.1: no white space around a value. HTTP/1 would trim it, and others would not.
fn is_padded(value: &HeaderValue) -> bool {
    let padding = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    padding(bytes.first()) || padding(bytes.last())
}

/// RFC 9113 8.2.3. WSGI would join the crumbs with a comma, which breaks them.
fn join_cookies(headers: &mut HeaderMap) -> Result<(), BadHead> {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return Ok(());
    };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    let joined = HeaderValue::from_bytes(&joined).map_err(|_| BadHead::Syntax)?;
    headers.insert(header::COOKIE, joined);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::get(uri).body(()).expect("a request");
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().expect("a name");
            let value = HeaderValue::from_str(value).expect("a value");
            request.headers_mut().append(name, value);
        }
        request
    }

    #[test]
    fn crumbs_become_one_cookie_in_its_place() {
        let mut request = request(
            "http://app/",
            &[
                ("cookie", "a=1"),
                ("x", "1"),
                ("cookie", "b=2; c=3"),
                ("cookie", "d=4"),
            ],
        );
        assert_eq!(normalise(&mut request), Ok(()));
        let cookies: Vec<_> = request.headers().get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d=4"]);
        let names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["cookie", "x"]);
    }

    #[test]
    fn crumbs_count_as_one_field() {
        let many = vec![("cookie", "a=1"); FIELDS_MAX + 50];
        assert_eq!(normalise(&mut request("http://app/", &many)), Ok(()));
    }

    #[test]
    fn a_host_says_what_the_authority_says() {
        let check = |uri: &str, hosts: &[(&str, &str)]| normalise(&mut request(uri, hosts));
        assert_eq!(check("http://app/", &[]), Ok(()));
        assert_eq!(check("http://App/", &[("host", "aPP")]), Ok(()));
        assert_eq!(check("/", &[("host", "app")]), Ok(()));
        let other = [("host", "evil")];
        assert_eq!(check("http://app/", &other), Err(BadHead::Host));
        let port = [("host", "app:81")];
        assert_eq!(check("http://app:80/", &port), Err(BadHead::Host));
    }

    #[test]
    fn values_have_no_white_space_around_them() {
        for padded in [" a", "a ", "\ta", "a\t", " "] {
            let mut request = request("http://app/", &[("x", padded)]);
            assert_eq!(normalise(&mut request), Err(BadHead::Syntax), "{padded:?}");
        }
        let mut fine = request("http://app/", &[("x", "a b"), ("y", "")]);
        assert_eq!(normalise(&mut fine), Ok(()));
    }

    #[test]
    fn targets_and_methods_are_those_of_http_1() {
        for target in ["http://app/\u{e9}", "http://app/?q=\u{e9}"] {
            let mut request = request(target, &[]);
            assert_eq!(normalise(&mut request), Err(BadHead::Target), "{target}");
        }
        for uri in ["/", "http://app/"] {
            let mut request = request(uri, &[("host", "app")]);
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some("?q=1".parse().expect("a target"));
            *request.uri_mut() = http::Uri::from_parts(parts).expect("a target");
            assert_eq!(normalise(&mut request), Err(BadHead::Target), "{uri}");
        }
        let mut long = request("http://app/", &[]);
        *long.method_mut() = Method::from_bytes(&[b'A'; METHOD_MAX + 1]).expect("a method");
        assert_eq!(normalise(&mut long), Err(BadHead::Method));
    }

    #[test]
    fn a_head_is_as_long_as_that_of_http_1() {
        let wire = "GET /a?b HTTP/1.1\r\nHost: app\r\nx: y\r\n\r\n";
        let request = request("http://app/a?b", &[("x", "y")]);
        assert_eq!(size(&request), wire.len());
        let line = "GET /a?b HTTP/1.1\r\n".len();
        assert_eq!(excess(&request, line), BadHead::FieldsTooLarge);
        assert_eq!(excess(&request, line - 1), BadHead::TargetTooLong);
    }

    #[test]
    fn a_hundred_fields_are_enough() {
        let mut request = request("http://app/", &[]);
        for _ in 0..=FIELDS_MAX {
            request
                .headers_mut()
                .append("x", HeaderValue::from_static("1"));
        }
        assert_eq!(normalise(&mut request), Err(BadHead::FieldsTooLarge));
    }
}

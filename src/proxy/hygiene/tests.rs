use http::Request;

use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            HeaderValue::from_str(value).expect("a value"),
        );
    }
    headers
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    headers.keys().map(HeaderName::as_str).collect()
}

#[test]
fn every_connection_line_counts_and_order_is_kept() {
    let mut headers = map(&[
        ("host", "a"),
        ("connection", "close, X-One"),
        ("x-one", "1"),
        ("accept", "*/*"),
        ("connection", "x-two , Host, content-length"),
        ("x-two", "2"),
        ("content-length", "3"),
        ("x-last", "4"),
        ("keep-alive", "timeout=5"),
    ]);
    clean(&mut headers, true);
    assert_eq!(
        names(&headers),
        ["host", "accept", "content-length", "x-last"]
    );
}

/// Of HTTP/1 the guard lets none pass; of HTTP/2 the parser does.
#[test]
fn several_hosts_are_refused_though_they_agree() {
    let host = |fields| {
        Survey::of(&map(fields), true, None)
            .host()
            .map(|host| host.is_some())
    };
    assert_eq!(host(&[]), Ok(false));
    assert_eq!(host(&[("host", "a")]), Ok(true));
    assert_eq!(host(&[("host", "a"), ("host", "a")]), Err(BadHead::Host));
}

proptest::proptest! {
    /// Whatever `Connection` names, what is left is what a plain filter leaves, in its order.
    #[test]
    fn what_is_left_is_what_a_filter_leaves(
        fields in proptest::collection::vec((0..NAMES.len(), proptest::collection::vec(0..NAMES.len(), 0..4)), 0..12),
        trusted: bool,
    ) {
        let fields: Vec<(&str, String)> = fields
            .into_iter()
            .map(|(name, named)| {
                let named: Vec<&str> = named.into_iter().map(|at| NAMES[at]).collect();
                (NAMES[name], named.join(", "))
            })
            .collect();
        let named = |name: &str| {
            let mut lines = fields.iter().filter(|(name, _)| *name == "connection");
            lines.any(|(_, value)| value.split(", ").any(|one| one == name))
        };
        let stays = |name: &str| {
            let end_to_end = ["host", "content-length", "authorization", "x-forwarded-for"];
            let never = ["connection", "te", "transfer-encoding", "keep-alive", "upgrade", "expect",
                "trailer", "transfer_encoding"];
            let spoofed = !trusted && ["x-forwarded-for", "x_a"].contains(&name);
            !never.contains(&name) && !spoofed && (end_to_end.contains(&name) || !named(name))
        };
        let borrowed: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut cleaned = map(&borrowed);
        if Survey::of(&cleaned.clone(), trusted, None).unclean {
            clean(&mut cleaned, trusted);
        }
        let left: Vec<(&str, &str)> =
            borrowed.into_iter().filter(|(name, _)| stays(name)).collect();
        let left = map(&left);
        // One that says nothing but whether to stay is left where nothing else is to be removed: the codec does
        // not write it.
        let written = |(name, value): &(&HeaderName, &HeaderValue)| {
            **name != header::CONNECTION || !is_plain_option(value.as_bytes())
        };
        let one: Vec<_> = cleaned.iter().filter(written).collect();
        let other: Vec<_> = left.iter().collect();
        proptest::prop_assert_eq!(one, other);
    }
}

const NAMES: [&str; 17] = [
    "accept",
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "transfer_encoding",
    "upgrade",
    "x-a",
    "x-b",
    "x-forwarded-for",
    "x_a",
    "cookie2",
];

#[test]
fn an_untrusted_client_speaks_for_itself_only() {
    let spoofed = [
        ("host", "a"),
        ("x_forwarded_for", "1.2.3.4"),
        ("script-name", "/x"),
        ("x-forwarded-ssl", "on"),
        ("remote-user", "root"),
        ("proxy", "http://evil"),
        ("x-custom", "kept"),
    ];
    let mut headers = map(&spoofed);
    clean(&mut headers, false);
    assert_eq!(names(&headers), ["host", "x-custom"]);
    let mut headers = map(&spoofed);
    clean(&mut headers, true);
    assert!(headers.contains_key("script-name"));
    assert!(!headers.contains_key("proxy"), "from nobody");
}

/// What the rest of the proxy asks for is here.
#[test]
fn what_is_ours_is_no_others() {
    let asked = [
        "via",
        "max-forwards",
        "upgrade",
        "x-request-start",
        "TE",
        "Trailer",
        "x_own",
    ];
    for name in asked {
        assert!(!is_others(name.as_bytes()), "{name}");
    }
    let hop_by_hop = [
        "connection",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    for name in forwarded::SPOOFABLE.all().chain(hop_by_hop) {
        let known = Name::find(name.as_bytes()).is_some();
        assert!(drops(name, false), "{name}");
        assert!(known || !is_others(name.as_bytes()), "{name}");
    }
    for name in [
        "x-own",
        "x-api-version",
        "proxy-authorization",
        "hx-request",
        "te2",
        "t",
    ] {
        assert!(is_others(name.as_bytes()), "{name}");
        assert!(!drops(name, false), "{name}");
    }
}

fn framing(fields: &[(&str, &str)]) -> Result<(), BadHead> {
    Survey::of(&map(fields), true, None).framing()
}

#[test]
fn ambiguous_lengths_are_refused() {
    for bad in [
        &[("content-length", "5"), ("transfer-encoding", "chunked")][..],
        &[("content-length", "5"), ("content-length", "5")],
        &[("content-length", "+5")],
        &[("content-length", "5, 5")],
        &[
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ],
        &[("transfer-encoding", "gzip, chunked")],
    ] {
        assert_eq!(framing(bad), Err(BadHead::Framing), "{bad:?}");
    }
    assert_eq!(framing(&[("transfer-encoding", "Chunked")]), Ok(()));
    assert_eq!(framing(&[("content-length", "5")]), Ok(()));
    assert_eq!(framing(&[]), Ok(()));
}

#[test]
fn hosts() {
    for good in [
        "a",
        "a:80",
        "a.b-c.example:8080",
        "127.0.0.1",
        "[::1]",
        "[::1]:80",
    ] {
        assert!(is_authority(good.as_bytes()), "{good}");
    }
    for bad in [
        "", "a b", "a@b", "a,b", "a/b", "a:port", "a:99999", ":80", "[::1", "[x]", "[::1]80",
        "a:1:2",
    ] {
        assert!(!is_authority(bad.as_bytes()), "{bad:?}");
    }
}

#[test]
fn an_absolute_target_names_the_host() {
    let mut request = Request::get("http://right.example/p?q=1")
        .header("host", "wrong.example")
        .body(())
        .expect("a request");
    let sent = Some(HeaderValue::from_static("wrong.example"));
    let host = other_host(&mut request, sent, Version::HTTP_11);
    assert_eq!(host, Ok(HeaderValue::from_static("right.example")));
    assert_eq!(request.uri(), "/p?q=1");
}

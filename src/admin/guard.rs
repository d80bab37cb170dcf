//! Who may change something.
//!
//! A POST is for people and scripts on this machine: over loopback or a Unix socket, and only with
//! `mutations = "loopback"`. Being on loopback proves little when a browser or a proxy on this
//! machine acts for somebody else, hence the other checks.
//!
//! `GET /drain/wait` is for kubelets and scripts anywhere, but for no browser: any page can make one
//! send a GET, as for an image, and nothing tells such a GET from one that a person asked for.

use std::{fmt, net::IpAddr};

use http::{HeaderMap, Uri, header, request::Parts};

use crate::config::Mutations;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A TCP connection from this address.
    Ip(IpAddr),
    /// A Unix socket: file permissions have decided already.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Ip(address) => address.to_canonical().fmt(f),
            Peer::Unix => f.write_str("a Unix socket"),
        }
    }
}

impl Peer {
    fn is_local(self) -> bool {
        match self {
            Peer::Ip(address) => address.to_canonical().is_loopback(),
            Peer::Unix => true,
        }
    }
}

/// Whether this POST may do its work; why not, in words.
///
/// # Errors
/// The sentence for the 403.
pub fn may_mutate(mutations: Mutations, peer: Peer, request: &Parts) -> Result<(), &'static str> {
    if mutations == Mutations::Off {
        return Err("Changes over the admin address are switched off (admin.mutations = \"off\").");
    }
    if !peer.is_local() {
        return Err("Changes are accepted over loopback or a Unix socket only (admin.mutations).");
    }
    if request.headers.contains_key("x-forwarded-for")
        || request.headers.contains_key(header::FORWARDED)
    {
        return Err("Changes are not accepted through a proxy.");
    }
    is_same_site(request)
}

/// Refuses what shows itself to be a browser.
///
/// # Errors
/// The sentence for the 403.
pub fn is_no_browser(request: &Parts) -> Result<(), &'static str> {
    const REFUSAL: &str = "This is for kubelets and scripts, not for browsers.";
    let headers = &request.headers;
    let agent = headers.get(header::USER_AGENT);
    if [header::ORIGIN, header::REFERER, header::COOKIE]
        .iter()
        .any(|name| headers.contains_key(name))
        || headers
            .keys()
            .any(|name| name.as_str().starts_with("sec-fetch-"))
        || agent.is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"))
    {
        return Err(REFUSAL);
    }
    // A page may hide the rest, but not the name that it was loaded from (DNS rebinding).
    let host = match request.uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => match headers.get(header::HOST) {
            Some(host) => Some(host.as_bytes().try_into().map_err(|_| REFUSAL)?),
            None => None,
        },
    };
    match host {
        Some(host) if !is_own_name(host.host()) && host.host().contains('.') => Err(
            "This name may be a foreign one: ask at an IP address, localhost or a name without dots.",
        ),
        _ => Ok(()),
    }
}

/// Refuses what a page of another site makes a browser send.
fn is_same_site(request: &Parts) -> Result<(), &'static str> {
    const REFUSAL: &str = "This request comes from a page of another site.";
    let headers = &request.headers;
    if let Some(site) = text(headers, "sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return Err(REFUSAL);
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    // "null", which sandboxed pages and files send, has no authority and is refused with the rest.
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.parse::<Uri>().ok());
    let origin = origin.as_ref().and_then(Uri::authority).ok_or(REFUSAL)?;
    let host = request
        .uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| text(headers, header::HOST.as_str()))
        .ok_or(REFUSAL)?;
    if !origin.as_str().eq_ignore_ascii_case(host) {
        return Err(REFUSAL);
    }
    // A name of the attacker's may resolve to 127.0.0.1 (DNS rebinding); origin and host agree then.
    if is_own_name(origin.host()) {
        Ok(())
    } else {
        Err(REFUSAL)
    }
}

/// Names that no foreign DNS server decides on.
fn is_own_name(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    bare.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOCAL: Peer = Peer::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::post("/drain").header("host", "127.0.0.1:9180");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_local_peers_may_change_something() {
        let request = parts(&[]);
        let allowed = |peer| may_mutate(Mutations::Loopback, peer, &request).is_ok();
        assert!(allowed(LOCAL));
        assert!(allowed(Peer::Unix));
        assert!(allowed(Peer::Ip("::1".parse().unwrap())));
        assert!(allowed(Peer::Ip("::ffff:127.0.0.1".parse().unwrap())));
        assert!(!allowed(Peer::Ip("10.0.0.1".parse().unwrap())));
        assert!(may_mutate(Mutations::Off, Peer::Unix, &request).is_err());
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        for (headers, allowed) in [
            (&[("origin", "http://127.0.0.1:9180")][..], true),
            (&[("origin", "http://127.0.0.1:8080")], false),
            (&[("origin", "http://evil.example")], false),
            (&[("origin", "null")], false),
            (&[("origin", "")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "none")], true),
            (
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("origin", "http://127.0.0.1:9180"),
                ],
                true,
            ),
            (&[("x-forwarded-for", "10.0.0.1")], false),
        ] {
            let verdict = may_mutate(Mutations::Loopback, LOCAL, &parts(headers));
            assert_eq!(verdict.is_ok(), allowed, "{headers:?}");
        }
    }

    #[test]
    fn a_get_that_changes_something_is_not_for_browsers() {
        let verdict = |headers: &[(&str, &str)]| {
            let mut request = http::Request::get("/drain/wait");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_no_browser(&request.body(()).unwrap().into_parts().0).is_ok()
        };
        for host in [
            "10.0.0.5:9180",
            "[fd00::5]:9180",
            "localhost:9180",
            "tidegate:9180",
        ] {
            for agent in ["kube-lifecycle/1.31", "curl/8.5.0", "tidegate"] {
                assert!(verdict(&[("host", host), ("user-agent", agent)]), "{host}");
            }
            for (name, value) in [
                ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
                ("origin", "http://10.0.0.5:9180"),
                ("referer", "http://evil.example/"),
                ("cookie", "a=1"),
                ("sec-fetch-site", "none"),
                ("sec-fetch-dest", "image"),
            ] {
                assert!(!verdict(&[("host", host), (name, value)]), "{name}");
            }
        }
        assert!(verdict(&[]), "HTTP/1.0");
        for host in ["evil.example:9180", "10.0.0.5.evil.example", "a b", ""] {
            assert!(!verdict(&[("host", host)]), "{host:?}");
        }
    }

    #[test]
    fn a_rebound_name_is_refused() {
        let with_host = |host: &str| {
            let request = http::Request::post("/drain")
                .header("host", host)
                .header("origin", format!("http://{host}"));
            is_same_site(&request.body(()).unwrap().into_parts().0).is_ok()
        };
        assert!(!with_host("evil.example:9180"));
        assert!(with_host("localhost:9180"));
        assert!(with_host("[::1]:9180"));
    }
}

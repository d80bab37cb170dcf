//! What is measured: a URL that names a server of this machine or of a private network.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs},
};

use crate::config::Address;

/// A URL, with the address that it resolved to once and for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub address: Address,
    /// For the `Host` field.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// Why a URL is not measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a URL that tidegate can use, with what to write instead.
    #[error("{0}")]
    Url(String),
    /// The name has no address.
    #[error("{host} cannot be resolved: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// Somebody else's server, perhaps.
    #[error(
        "{} is neither this machine nor in a private network: a probe is a load test; add --yes-remote if \
         the server is yours",
        named(.host, *.ip)
    )]
    Remote {
        /// As it was typed.
        host: String,
        /// What it resolved to.
        ip: IpAddr,
    },
}

/// A name and its address; an address is its own name.
fn named(host: &str, ip: IpAddr) -> String {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(own) if ip == own => ip.to_string(),
        _ => format!("{host}, which is {ip},"),
    }
}

impl Target {
    /// Reads `http://host[:port][/path]`, `host:port[/path]` or `unix:/socket[:/path]` and resolves the
    /// name. Of several addresses the first is used, and none may be remote unless `remote`.
    ///
    /// # Errors
    /// When it is not such a URL, the name has no address, or the address is remote.
    pub fn resolve(url: &str, remote: bool) -> Result<Self, TargetError> {
        let (address, authority, path) = parse(url)?;
        let Address::Tcp { host, port } = &address else {
            return Ok(Self {
                address,
                authority,
                path,
            });
        };
        let failed = |why: String| TargetError::Resolve {
            host: host.clone(),
            why,
        };
        let found: Vec<SocketAddr> = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|error| failed(error.to_string()))?
            .collect();
        let foreign = found.iter().find(|one| !is_near(one.ip()));
        if let (Some(ip), false) = (foreign.map(SocketAddr::ip), remote) {
            return Err(TargetError::Remote {
                host: host.clone(),
                ip,
            });
        }
        // The servers that tidegate fronts listen on IPv4 more often than not.
        let first = found
            .iter()
            .find(|one| one.is_ipv4())
            .or(found.first())
            .ok_or_else(|| failed("it has no address".to_owned()))?;
        Ok(Self {
            address: Address::Tcp {
                host: first.ip().to_string(),
                port: *port,
            },
            authority,
            path,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(socket) => write!(f, "unix:{}:{}", socket.display(), self.path),
            _ => write!(f, "http://{}{}", self.authority, self.path),
        }
    }
}

fn parse(url: &str) -> Result<(Address, String, String), TargetError> {
    let bad = |why: &dyn fmt::Display| TargetError::Url(why.to_string());
    let text = url.trim();
    if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(bad(&format_args!(
            "{url:?} is not a URL: it has spaces or control characters"
        )));
    }
    if let Some(rest) = text.strip_prefix("unix:") {
        let (socket, path) = match rest.split_once(":/") {
            Some((socket, path)) => (socket, format!("/{path}")),
            None => (rest, "/".to_owned()),
        };
        let address = Address::connect(&format!("unix:{socket}")).map_err(|e| bad(&e))?;
        return Ok((address, "localhost".to_owned(), path));
    }
    if text.starts_with("https://") {
        return Err(bad(&format_args!(
            "{url:?}: the probe speaks plain HTTP, as tidegate does to its backend; write http://host:port/path"
        )));
    }
    let rest = text.strip_prefix("http://").unwrap_or(text);
    if rest.contains("://") {
        return Err(bad(&format_args!(
            "{url:?}: write http://host:port/path or unix:/socket:/path"
        )));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let address = Address::connect(&format!("http://{authority}")).map_err(|e| bad(&e))?;
    let authority = match &address {
        Address::Tcp { port: 80, .. } => authority.trim_end_matches(":80").to_owned(),
        _ => authority.to_owned(),
    };
    Ok((address, authority, path))
}

/// This machine, or a network that is not the Internet.
fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified()
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(mapped) => is_near(IpAddr::V4(mapped)),
            None => {
                ip.is_loopback()
                    || ip == Ipv6Addr::UNSPECIFIED
                    || ip.is_unique_local()
                    || ip.is_unicast_link_local()
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> (String, String, String) {
        let (address, authority, path) = parse(url).unwrap();
        (address.to_string(), authority, path)
    }

    #[test]
    fn urls_are_read_in_every_usual_form() {
        for (url, address, authority, path) in [
            (
                "http://127.0.0.1:8000/a?b=c#d",
                "127.0.0.1:8000",
                "127.0.0.1:8000",
                "/a?b=c",
            ),
            ("http://app", "app:80", "app", "/"),
            ("http://app:80/x", "app:80", "app", "/x"),
            ("localhost:8000", "localhost:8000", "localhost:8000", "/"),
            ("http://[::1]:8000?q", "[::1]:8000", "[::1]:8000", "/?q"),
            ("unix:/run/app.sock", "unix:/run/app.sock", "localhost", "/"),
            (
                "unix:/run/app.sock:/x?y",
                "unix:/run/app.sock",
                "localhost",
                "/x?y",
            ),
        ] {
            let expected = (address.to_owned(), authority.to_owned(), path.to_owned());
            assert_eq!(parts(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_with_a_reason() {
        for url in [
            "https://a/",
            "ftp://a/",
            "http://",
            "",
            "http://a b/",
            "http://a:0/",
            "unix:",
        ] {
            assert!(matches!(parse(url), Err(TargetError::Url(_))), "{url}");
        }
    }

    #[test]
    fn only_near_servers_are_measured_unless_one_insists() {
        for near in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.9",
            "172.16.0.1",
            "[::1]",
            "[fd00::1]",
        ] {
            assert!(
                Target::resolve(&format!("http://{near}:8000"), false).is_ok(),
                "{near}"
            );
        }
        for far in ["8.8.8.8", "172.32.0.1", "[2001:db8::1]", "[::ffff:8.8.8.8]"] {
            let url = format!("http://{far}:8000");
            let refused = Target::resolve(&url, false);
            assert!(
                matches!(refused, Err(TargetError::Remote { .. })),
                "{far}: {refused:?}"
            );
            assert!(Target::resolve(&url, true).is_ok(), "{far}");
        }
    }
}

//! Where to listen and where to connect.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

/// An address to listen on or to connect to.
///
/// [`Display`](fmt::Display) writes it so that [`FromStr`] reads the same address back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`; the host may be a name, resolved when connecting.
    Tcp {
        /// A name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// 0 = any free port (listening only).
        port: u16,
    },
    /// `unix:/path`
    Unix(PathBuf),
    /// `fd:NAME`, a socket that systemd passed (listening only).
    Fd(String),
}

/// Why a text is not an address, with what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(String);

/// The kernel's `sun_path` holds 108 bytes, the last of them 0.
const UNIX_PATH_MAX: usize = 107;

impl Address {
    /// Reads an address to listen on, or the name of a passed socket; `:8080` is port 8080 of every interface.
    ///
    /// # Errors
    /// When the text is not an address.
    pub fn listen(text: &str) -> Result<Self, AddressError> {
        parse(text, "0.0.0.0")
    }

    /// Reads an address to listen on that is not a passed socket.
    ///
    /// # Errors
    /// When the text is not an address, or is `fd:NAME`.
    pub fn bind(text: &str) -> Result<Self, AddressError> {
        // What other programs switch their admin server off with.
        if ["", "off", "false", "none", "no"].contains(&&*text.trim().to_ascii_lowercase()) {
            return err(format!(
                "{text:?} is not an address, and the admin server cannot be switched off; write host:port or unix:/path"
            ));
        }
        match Self::listen(text)? {
            Address::Fd(_) => err(format!(
                "{text:?}: only server.listen takes a socket that is passed; write host:port or unix:/path"
            )),
            address => Ok(address),
        }
    }

    /// Reads an address to connect to; `:8000` is port 8000 of this machine.
    ///
    /// # Errors
    /// When the text is not an address, or is one that can only be listened on (port 0, `fd:`).
    pub fn connect(text: &str) -> Result<Self, AddressError> {
        let address = parse(text, "127.0.0.1")?;
        match address {
            Address::Fd(_) => err(format!(
                "{text:?} can only be listened on; write host:port or unix:/path"
            )),
            Address::Tcp { port: 0, .. } => err(format!("{text:?}: nothing can connect to port 0")),
            _ => Ok(address),
        }
    }

    /// Any free port of this machine: what a backend gets that has not been told its address yet.
    pub fn any() -> Self {
        Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        }
    }

    /// Would connecting to `target` end at a socket that listens on `self`? Names are not resolved,
    /// but for `localhost`.
    pub fn reaches(&self, target: &Address) -> bool {
        match (self, target) {
            (
                Address::Tcp { host, port },
                Address::Tcp {
                    host: to,
                    port: to_port,
                },
            ) => {
                let any = matches!(host.as_str(), "0.0.0.0" | "::");
                let local = host == to
                    || (any && is_loopback(to))
                    || (to == "localhost" && is_loopback(host));
                port == to_port && *port != 0 && local
            }
            _ => self == target,
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<Ipv4Addr>()
            .is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
        || host
            .parse::<Ipv6Addr>()
            .is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

impl FromStr for Address {
    type Err = AddressError;

    /// Any form; `:port` is read as for [`Address::connect`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text, "127.0.0.1")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Fd(name) => write!(f, "fd:{name}"),
        }
    }
}

fn err<T>(message: impl Into<String>) -> Result<T, AddressError> {
    Err(AddressError(message.into()))
}

fn parse(given: &str, no_host: &str) -> Result<Address, AddressError> {
    let text = given.trim();
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(given, path);
    }
    if let Some(name) = text.strip_prefix("fd:") {
        let fits = (1..=255).contains(&name.len());
        return if fits && name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            Ok(Address::Fd(name.to_owned()))
        } else {
            err(format!(
                "{given:?} names no socket; write fd:NAME as in FileDescriptorName= of the socket unit"
            ))
        };
    }
    if text.starts_with("https://") {
        return err(format!(
            "{given:?}: tidegate speaks plain HTTP; write http://host:port"
        ));
    }
    let (text, from_url) = match text.strip_prefix("http://") {
        Some(rest) => (rest.strip_suffix('/').unwrap_or(rest), true),
        None => (text, false),
    };
    if text.contains('/') {
        return err(if from_url {
            format!("{given:?} has a path; write http://host:port")
        } else {
            format!("{given:?} is not an address; write host:port, or unix:/path for a socket file")
        });
    }
    tcp(given, text, from_url, no_host)
}

fn unix(given: &str, path: &str) -> Result<Address, AddressError> {
    // unix:///path is written by those who think of URLs.
    let path = match path.strip_prefix("//") {
        Some(rest) => format!("/{}", rest.trim_start_matches('/')),
        None => path.to_owned(),
    };
    if path.is_empty() || path == "/" || path.chars().any(char::is_control) {
        return err(format!("{given:?} names no socket file; write unix:/path"));
    }
    // What others write for a name without a file would be a file of that name, wherever tidegate was started.
    if path.starts_with('@') {
        return err(format!(
            "{given:?} is an abstract socket, which tidegate does not know; write unix:/path"
        ));
    }
    if path.len() > UNIX_PATH_MAX {
        return err(format!(
            "{given:?} is too long for a socket file: {} bytes, at most {UNIX_PATH_MAX}",
            path.len()
        ));
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn tcp(given: &str, text: &str, from_url: bool, no_host: &str) -> Result<Address, AddressError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return err(format!("{given:?} lacks a \"]\"; write [address]:port"));
        };
        let Ok(ip) = host.parse::<Ipv6Addr>() else {
            return err(format!("{given:?}: {host:?} is not an IPv6 address"));
        };
        let port = rest
            .strip_prefix(':')
            .or_else(|| rest.is_empty().then_some(""));
        let Some(port) = port else {
            return err(format!("{given:?} is not an address; write [address]:port"));
        };
        (ip.to_string(), port)
    } else {
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        if text.contains(',') {
            return err(format!(
                "{given:?} is more than one address; write each by itself"
            ));
        }
        if host.contains(':') {
            return err(format!(
                "{given:?}: write an IPv6 address in brackets, as [::1]:8000"
            ));
        }
        match host {
            "" if from_url || port.is_empty() => {
                return err(format!("{given:?} is not an address; write host:port"));
            }
            "" => (no_host.to_owned(), port),
            _ => (check_host(given, host)?, port),
        }
    };
    if port.is_empty() {
        if from_url {
            return Ok(Address::Tcp { host, port: 80 });
        }
        if !text.contains(':') && text.bytes().all(|b| b.is_ascii_digit()) {
            return err(format!(
                "{given:?} has no host; write :{text} or host:{text}"
            ));
        }
        return err(format!(
            "{given:?} has no port; write host:port, as {:?}",
            format!("{text}:8000")
        ));
    }
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(port) if digits => Ok(Address::Tcp { host, port }),
        _ => err(format!(
            "{given:?}: {port:?} is not a port; write a number from 0 to 65535"
        )),
    }
}

fn check_host(given: &str, host: &str) -> Result<String, AddressError> {
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.len() > 253 || !host.bytes().all(known) {
        return err(format!("{given:?}: {host:?} is not a host name"));
    }
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if numeric && host.contains('.') && host.parse::<Ipv4Addr>().is_err() {
        return err(format!("{given:?}: {host:?} is not an IPv4 address"));
    }
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn every_form_of_the_contract_is_read() {
        let cases = [
            ("127.0.0.1:8000", tcp("127.0.0.1", 8000)),
            ("localhost:8000", tcp("localhost", 8000)),
            ("my_app:8000", tcp("my_app", 8000)),
            ("http://app:8000", tcp("app", 8000)),
            ("http://app:8000/", tcp("app", 8000)),
            ("http://app", tcp("app", 80)),
            ("[::1]:80", tcp("::1", 80)),
            ("http://[::1]:80", tcp("::1", 80)),
            ("unix:/run/app.sock", Address::Unix("/run/app.sock".into())),
            (
                "unix:///run/app.sock",
                Address::Unix("/run/app.sock".into()),
            ),
            ("unix:app.sock", Address::Unix("app.sock".into())),
            ("unix:./@app", Address::Unix("./@app".into())),
        ];
        for (text, address) in cases {
            assert_eq!(Address::listen(text).as_ref(), Ok(&address), "{text}");
            assert_eq!(Address::connect(text).as_ref(), Ok(&address), "{text}");
        }
        assert_eq!(Address::listen(":80"), Ok(tcp("0.0.0.0", 80)));
        assert_eq!(Address::connect(":80"), Ok(tcp("127.0.0.1", 80)));
        assert_eq!(Address::listen("fd:web"), Ok(Address::Fd("web".into())));
        assert_eq!(Address::listen("127.0.0.1:0"), Ok(tcp("127.0.0.1", 0)));
    }

    #[test]
    fn what_is_no_address_says_what_to_write() {
        let cases = [
            (
                "localhost",
                "\"localhost\" has no port; write host:port, as \"localhost:8000\"",
            ),
            ("8080", "\"8080\" has no host; write :8080 or host:8080"),
            (
                "::1:80",
                "\"::1:80\": write an IPv6 address in brackets, as [::1]:8000",
            ),
            (
                "a:b",
                "\"a:b\": \"b\" is not a port; write a number from 0 to 65535",
            ),
            (
                "a:65536",
                "\"a:65536\": \"65536\" is not a port; write a number from 0 to 65535",
            ),
            (
                "a:+1",
                "\"a:+1\": \"+1\" is not a port; write a number from 0 to 65535",
            ),
            (
                "300.0.0.1:80",
                "\"300.0.0.1:80\": \"300.0.0.1\" is not an IPv4 address",
            ),
            (
                "https://a:1",
                "\"https://a:1\": tidegate speaks plain HTTP; write http://host:port",
            ),
            (
                "http://a:1/x",
                "\"http://a:1/x\" has a path; write http://host:port",
            ),
            (
                "/run/a.sock",
                "\"/run/a.sock\" is not an address; write host:port, or unix:/path for a socket file",
            ),
            ("unix:", "\"unix:\" names no socket file; write unix:/path"),
            (
                "unix:@app",
                "\"unix:@app\" is an abstract socket, which tidegate does not know; write unix:/path",
            ),
            (
                "a:1,b:2",
                "\"a:1,b:2\" is more than one address; write each by itself",
            ),
            (
                "fd:web",
                "\"fd:web\" can only be listened on; write host:port or unix:/path",
            ),
            ("a:0", "\"a:0\": nothing can connect to port 0"),
            ("", "\"\" is not an address; write host:port"),
            (":", "\":\" is not an address; write host:port"),
            ("[::1", "\"[::1\" lacks a \"]\"; write [address]:port"),
        ];
        for (text, message) in cases {
            assert_eq!(
                Address::connect(text).map_err(|e| e.to_string()),
                Err(message.to_owned())
            );
        }
        assert!(Address::connect(&format!("unix:/{}", "x".repeat(107))).is_err());
        assert_eq!(Address::bind(":1"), Address::listen(":1"));
        for off in ["", " ", "off", "False", "none"] {
            let error = Address::bind(off).expect_err("it is none").to_string();
            assert!(error.contains("cannot be switched off"), "{error}");
        }
        let passed = Address::bind("fd:web").map_err(|error| error.to_string());
        assert!(passed.is_err_and(|said| said.contains("only server.listen")));
    }

    #[test]
    fn a_loop_is_seen() {
        let all = Address::listen(":8080").unwrap();
        assert!(all.reaches(&tcp("localhost", 8080)));
        assert!(all.reaches(&tcp("127.0.0.1", 8080)));
        assert!(tcp("127.0.0.1", 80).reaches(&tcp("localhost", 80)));
        assert!(!all.reaches(&tcp("127.0.0.1", 8000)));
        assert!(!all.reaches(&tcp("10.0.0.1", 8080)));
        assert!(!tcp("10.0.0.1", 80).reaches(&tcp("127.0.0.1", 80)));
    }

    fn addresses() -> impl Strategy<Value = Address> {
        prop_oneof![
            ("[a-z0-9][a-z0-9_-]{0,20}", any::<u16>()).prop_map(|(h, p)| tcp(&h, p)),
            (any::<Ipv4Addr>(), any::<u16>()).prop_map(|(h, p)| tcp(&h.to_string(), p)),
            (any::<Ipv6Addr>(), any::<u16>()).prop_map(|(h, p)| tcp(&h.to_string(), p)),
            "/[a-z][a-z0-9/. _-]{0,40}[a-z]".prop_map(|p| Address::Unix(p.into())),
            "[a-z0-9._-]{1,20}".prop_map(Address::Fd),
        ]
    }

    proptest! {
        #[test]
        fn an_address_survives_the_round_trip(address in addresses()) {
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn what_was_read_is_read_again(text in "(http://|unix:|fd:)?[\\[\\]a-c0-9:./ ]{0,12}") {
            if let Ok(address) = Address::listen(&text) {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = Address::listen(&text);
            let _ = Address::connect(&text);
        }
    }
}

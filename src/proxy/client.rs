//! Whose request it is, as far as fairness goes: the key that the queue tells clients apart by, and
//! whether it is a retry of one that failed.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::LazyLock,
};

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::{context::Peer, forwarded};
use crate::{
    admission::{Class, ClientKey},
    backend::{Name, Plain, RequestHead},
    config::ClientKeySource,
};

/// What counts retries, and how many attempts before this one it says there were at 0 retries.
/// (`X-Envoy-Attempt-Count` counts the first attempt too.)
const ATTEMPTS: [(HeaderName, u32); 3] = [
    (HeaderName::from_static("x-retry-count"), 0),
    (HeaderName::from_static("retry-attempt"), 0),
    (HeaderName::from_static("x-envoy-attempt-count"), 1),
];

/// Keys are random for each process, so that nobody can make theirs equal to another's.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// `queue.client_key`, ready to read.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// All clients alike.
    Off,
    /// The client's address.
    Ip,
    /// A field's value.
    Header(HeaderName),
}

impl From<&ClientKeySource> for KeySource {
    fn from(source: &ClientKeySource) -> Self {
        match source {
            ClientKeySource::Off => Self::Off,
            ClientKeySource::Ip => Self::Ip,
            ClientKeySource::Header(name) => name.parse().map_or(Self::Off, Self::Header),
        }
    }
}

impl KeySource {
    /// The field that it is read from.
    pub fn field(&self) -> Option<&HeaderName> {
        match self {
            Self::Off | Self::Ip => None,
            Self::Header(name) => Some(name),
        }
    }

    /// The key of a request whose head has been cleaned. Without an address or the field there is
    /// none, and the request counts for nobody.
    pub fn key(&self, head: &RequestHead, peer: &Peer, proxies: &[IpNet]) -> Option<ClientKey> {
        match self {
            Self::Off => None,
            Self::Ip => {
                let address = address(head, peer, proxies)?;
                Some(ClientKey(KEYS.hash_one(network(address))))
            }
            Self::Header(name) => {
                Plain::find(head, name).map(|value| ClientKey(KEYS.hash_one(value.as_bytes())))
            }
        }
    }
}

/// The client's address: the last in `X-Forwarded-For` that is not a trusted proxy's.
fn address(head: &RequestHead, peer: &Peer, proxies: &[IpNet]) -> Option<IpAddr> {
    if !peer.is_trusted(proxies) {
        return peer.ip;
    }
    let in_map = head.headers().get_all(&forwarded::FOR).iter();
    let plain = head.body().get(Name::FORWARDED_FOR);
    let chain = in_map.map(HeaderValue::as_bytes).chain(plain);
    let mut nearest = peer.ip;
    for value in chain.rev() {
        for element in value.rsplit(|&byte| byte == b',') {
            // What a client has written further off need be neither an address nor text.
            let address = std::str::from_utf8(element).ok();
            let address = address.and_then(|text| text.trim().parse::<IpAddr>().ok());
            let Some(address) = address else {
                return nearest;
            };
            let address = address.to_canonical();
            nearest = Some(address);
            if !proxies.iter().any(|net| net.contains(&address)) {
                return nearest;
            }
        }
    }
    nearest
}

/// One client has 2^64 addresses of IPv6: the network is what tells it from another.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// The class a request waits in. A retry goes behind those that ask for the first time: it has had
/// its turn, and in a storm of retries the new ones are the useful ones. Nothing promotes.
pub fn class(of_route: Class, head: &RequestHead) -> Class {
    let lower = match of_route {
        Class::High => Class::Normal,
        Class::Normal => Class::Low,
        Class::Protected | Class::Low | Class::Stream => return of_route,
    };
    if is_retry(head) { lower } else { of_route }
}

fn is_retry(head: &RequestHead) -> bool {
    ATTEMPTS.iter().any(|(name, first)| {
        let count = Plain::find(head, name);
        let count = count.as_ref().and_then(|value| value.to_str().ok());
        count.is_some_and(|count| {
            // More digits than fit are many retries; anything else is nobody's count.
            let count = count.trim();
            let digits = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
            digits && count.parse::<u32>().unwrap_or(u32::MAX) > *first
        })
    })
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use http::HeaderMap;

    use super::*;
    use crate::{clock, observe::Metrics, proxy::state::State};

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in pairs {
            fields.append(*name, value.parse().expect("a value"));
        }
        fields
    }

    fn head(pairs: &[(&'static str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        *head.headers_mut() = fields(pairs);
        head
    }

    fn peer(address: Option<&str>) -> Peer {
        let address = address.map(|ip| SocketAddr::new(ip.parse().expect("an address"), 1));
        let state = State::new(Arc::new(Metrics::new()), clock::now());
        Peer::new(address, None, Arc::new(state), Arc::default())
    }

    #[test]
    fn a_retry_goes_one_class_down_and_nothing_goes_up() {
        let cases = [
            (Class::High, "x-retry-count", "1", Class::Normal),
            (Class::Normal, "x-retry-count", "1", Class::Low),
            (Class::Normal, "x-retry-count", "0", Class::Normal),
            (Class::Normal, "x-retry-count", "-1", Class::Normal),
            (Class::Normal, "x-retry-count", "many", Class::Normal),
            (Class::Normal, "x-retry-count", "99999999999", Class::Low),
            (Class::Normal, "retry-attempt", "2", Class::Low),
            (Class::Normal, "x-envoy-attempt-count", "1", Class::Normal),
            (Class::Normal, "x-envoy-attempt-count", "2", Class::Low),
            (Class::Low, "x-retry-count", "1", Class::Low),
            (Class::Protected, "x-retry-count", "1", Class::Protected),
            (Class::Stream, "x-retry-count", "1", Class::Stream),
        ];
        for (from, name, value, to) in cases {
            assert_eq!(class(from, &head(&[(name, value)])), to, "{name}: {value}");
        }
        assert_eq!(class(Class::High, &head(&[])), Class::High);
    }

    #[test]
    fn the_address_is_the_last_that_is_not_a_trusted_proxys() {
        let proxies: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
        let told = |from: Option<&str>, chain: &[&str]| {
            let pairs: Vec<_> = chain.iter().map(|v| ("x-forwarded-for", *v)).collect();
            address(&head(&pairs), &peer(from), &proxies).map(|ip| ip.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told(Some("192.0.2.1"), &["192.0.2.1"]), some("192.0.2.1"));
        assert_eq!(
            told(Some("192.0.2.1"), &["198.51.100.7, 192.0.2.1"]),
            some("192.0.2.1")
        );
        assert_eq!(
            told(Some("10.0.0.1"), &["198.51.100.7, 10.0.0.9, 10.0.0.1"]),
            some("198.51.100.7")
        );
        assert_eq!(
            told(Some("10.0.0.1"), &["203.0.113.5, 198.51.100.7", "10.0.0.1"]),
            some("198.51.100.7")
        );
        assert_eq!(
            told(Some("10.0.0.1"), &["nonsense, 10.0.0.1"]),
            some("10.0.0.1")
        );
        assert_eq!(told(None, &["198.51.100.7"]), some("198.51.100.7"));
        assert_eq!(told(None, &[]), None);
    }

    #[test]
    fn an_address_is_found_behind_what_is_no_text() {
        let proxies: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
        let mut head = head(&[]);
        for line in [&b"\xff"[..], b"\xff, 198.51.100.7, 10.0.0.1"] {
            let line = HeaderValue::from_bytes(line).expect("a value");
            head.headers_mut().append(forwarded::FOR, line);
        }
        let told = address(&head, &peer(Some("10.0.0.1")), &proxies);
        assert_eq!(told, Some(IpAddr::from([198, 51, 100, 7])));
    }

    #[test]
    fn one_client_has_one_key() {
        let key = |source: &KeySource, ip: &str, pairs: &[(&'static str, &str)]| {
            source.key(&head(pairs), &peer(Some(ip)), &[])
        };
        let ip = KeySource::Ip;
        assert_eq!(
            key(&ip, "192.0.2.1", &[]),
            key(&ip, "::ffff:192.0.2.1", &[])
        );
        assert_ne!(key(&ip, "192.0.2.1", &[]), key(&ip, "192.0.2.2", &[]));
        assert_eq!(key(&ip, "2001:db8::1", &[]), key(&ip, "2001:db8::2", &[]));
        assert_ne!(
            key(&ip, "2001:db8::1", &[]),
            key(&ip, "2001:db8:0:1::1", &[])
        );
        let field = KeySource::from(&ClientKeySource::Header("X-Tenant".to_owned()));
        assert_eq!(key(&field, "192.0.2.1", &[]), None);
        assert_eq!(
            key(&field, "192.0.2.1", &[("x-tenant", "a")]),
            key(&field, "192.0.2.2", &[("x-tenant", "a")])
        );
        assert_eq!(key(&KeySource::Off, "192.0.2.1", &[]), None);
    }
}

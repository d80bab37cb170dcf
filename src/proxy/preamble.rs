//! The PROXY protocol, versions 1 and 2: what a load balancer that passes bytes on says of the client
//! before the first of them.
//!
//! A header that is expected must be there: whoever guesses can be lied to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ProxyProtocol;

/// The longest header of version 1, with its CRLF, bytes: section 2.1 of the specification.
const V1_MAX: usize = 107;
/// How version 2 begins: section 2.2.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest that is accepted of version 2, behind its first 16 bytes. Addresses take 36; the rest
/// are extensions, which nobody here reads.
const V2_MAX: usize = 4096;

/// The header is missing or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPreamble;

/// The client, and where it connected to. `None` if the connection is the proxy's own.
pub type Told = Option<(SocketAddr, SocketAddr)>;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// Its bytes.
    pub length: usize,
    /// What it says.
    pub told: Told,
}

/// Reads the header at the beginning of a connection; `None` if it is not complete.
///
/// # Errors
/// As soon as it is certain that this will not become one.
pub fn parse(bytes: &[u8], protocol: ProxyProtocol) -> Result<Option<Preamble>, BadPreamble> {
    let v1 = matches!(protocol, ProxyProtocol::V1 | ProxyProtocol::Auto);
    let v2 = matches!(protocol, ProxyProtocol::V2 | ProxyProtocol::Auto);
    match bytes.first() {
        None => Ok(None),
        Some(b'P') if v1 => parse_v1(bytes),
        Some(b'\r') if v2 => parse_v2(bytes),
        Some(_) => Err(BadPreamble),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Preamble>, BadPreamble> {
    let start = &bytes[..bytes.len().min(V1_MAX)];
    let begins = b"PROXY ".iter().zip(start).all(|(one, other)| one == other);
    let end = start.windows(2).position(|two| two == b"\r\n");
    let (true, Some(end)) = (begins, end) else {
        return if begins && bytes.len() < V1_MAX {
            Ok(None)
        } else {
            Err(BadPreamble)
        };
    };
    let line = std::str::from_utf8(&bytes[..end]).map_err(|_| BadPreamble)?;
    let words: Vec<&str> = line.split(' ').collect();
    let told = match words[..] {
        // Whatever follows is to be ignored.
        ["PROXY", "UNKNOWN", ..] => None,
        [
            "PROXY",
            family @ ("TCP4" | "TCP6"),
            from,
            to,
            from_port,
            to_port,
        ] => {
            let address = |ip: &str, port: &str| -> Option<SocketAddr> {
                let ip: IpAddr = match family {
                    "TCP4" => ip.parse::<Ipv4Addr>().ok()?.into(),
                    _ => ip.parse::<Ipv6Addr>().ok()?.into(),
                };
                Some(SocketAddr::new(ip, decimal(port)?))
            };
            let from = address(from, from_port).ok_or(BadPreamble)?;
            Some((from, address(to, to_port).ok_or(BadPreamble)?))
        }
        _ => return Err(BadPreamble),
    };
    let length = end + 2;
    Ok(Some(Preamble { length, told }))
}

/// Digits only, without a leading zero.
fn decimal(port: &str) -> Option<u16> {
    let plain = port.bytes().all(|byte| byte.is_ascii_digit());
    let zero = port.len() > 1 && port.starts_with('0');
    (plain && !zero).then(|| port.parse().ok())?
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Preamble>, BadPreamble> {
    let mut begins = V2_SIGNATURE.iter().zip(bytes);
    if !begins.all(|(one, other)| one == other) {
        return Err(BadPreamble);
    }
    let Some(&[command, family, high, low]) = bytes.get(12..).and_then(<[u8]>::first_chunk) else {
        return Ok(None);
    };
    let size = usize::from(u16::from_be_bytes([high, low]));
    if size > V2_MAX {
        return Err(BadPreamble);
    }
    let length = 16 + size;
    let told = match (command, family) {
        // LOCAL: a health check of the proxy's.
        (0x20, _) => None,
        // PROXY, of a family that has no address to speak of: unspecified, and Unix sockets.
        (0x21, 0x00 | 0x31) => None,
        (0x21, 0x11) if size >= 12 => Some(4),
        (0x21, 0x21) if size >= 36 => Some(16),
        _ => return Err(BadPreamble),
    };
    let Some(rest) = bytes.get(16..length) else {
        return Ok(None);
    };
    let told = told.map(|width| {
        let ip = |bytes: &[u8]| -> IpAddr {
            match <[u8; 4]>::try_from(bytes) {
                Ok(v4) => Ipv4Addr::from(v4).into(),
                Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()).into(),
            }
        };
        let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        let (from, to) = (ip(&rest[..width]), ip(&rest[width..2 * width]));
        let (from_port, to_port) = (port(2 * width), port(2 * width + 2));
        (
            SocketAddr::new(from, from_port),
            SocketAddr::new(to, to_port),
        )
    });
    Ok(Some(Preamble { length, told }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let size = u16::try_from(rest.len()).expect("a size").to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &size, rest].concat()
    }

    fn told(bytes: &[u8]) -> Result<Option<(String, String)>, BadPreamble> {
        let preamble = parse(bytes, ProxyProtocol::Auto)?.expect("it is complete");
        assert_eq!(preamble.length, bytes.len());
        let text = |(from, to): (SocketAddr, SocketAddr)| (from.to_string(), to.to_string());
        Ok(preamble.told.map(text))
    }

    #[test]
    fn good_ones() {
        for (bytes, from) in [
            (
                &b"PROXY TCP4 9.8.7.6 5.6.7.8 1234 80\r\n"[..],
                "9.8.7.6:1234",
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 65535 0\r\n",
                "[2001:db8::1]:65535",
            ),
            (
                &v2(0x21, 0x11, &[9, 8, 7, 6, 5, 6, 7, 8, 4, 210, 0, 80]),
                "9.8.7.6:1234",
            ),
            // With an extension behind.
            (
                &v2(
                    0x21,
                    0x11,
                    &[9, 8, 7, 6, 5, 6, 7, 8, 4, 210, 0, 80, 4, 0, 1, 0],
                ),
                "9.8.7.6:1234",
            ),
            (&v2(0x21, 0x21, &[0; 36]), "[::]:0"),
        ] {
            assert_eq!(told(bytes).expect("a header").expect("an address").0, from);
        }
        for bytes in [
            &b"PROXY UNKNOWN\r\n"[..],
            b"PROXY UNKNOWN what ever\r\n",
            &v2(0x20, 0x00, &[]),
            &v2(0x20, 0x11, &[1; 12]),
            &v2(0x21, 0x00, &[1; 5]),
            &v2(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(told(bytes), Ok(None));
        }
    }

    #[test]
    fn bad_ones() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 9.8.7.6 5.6.7.8 1234\r\n",
            b"PROXY TCP4 9.8.7.6 5.6.7.8 1234 80 1\r\n",
            b"PROXY TCP4  9.8.7.6 5.6.7.8 1234 80\r\n",
            b"PROXY TCP4 9.8.7.6 5.6.7.8 01234 80\r\n",
            b"PROXY TCP4 9.8.7.6 5.6.7.8 +1234 80\r\n",
            b"PROXY TCP4 9.8.7.6 5.6.7.8 65536 80\r\n",
            b"PROXY TCP4 09.8.7.6 5.6.7.8 1 80\r\n",
            b"PROXY TCP4 ::1 ::1 1 80\r\n",
            b"PROXY TCP6 9.8.7.6 5.6.7.8 1 80\r\n",
            b"PROXY UDP4 9.8.7.6 5.6.7.8 1 80\r\n",
            b"PROXY TCP4 9.8.7.6 5.6.7.8 1 80\n\r\n",
            b"proxy TCP4 9.8.7.6 5.6.7.8 1 80\r\n",
            b"PROXX",
            b"\r\n\r\n\0\r\nQUIT\r",
            long.as_bytes(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x12, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x11, &[0; 5000]),
        ] {
            let told = parse(bytes, ProxyProtocol::Auto);
            assert_eq!(told, Err(BadPreamble), "{}", bytes.escape_ascii());
        }
        let v1 = b"PROXY UNKNOWN\r\n";
        assert_eq!(parse(v1, ProxyProtocol::V2), Err(BadPreamble));
        assert_eq!(
            parse(&v2(0x20, 0, &[]), ProxyProtocol::V1),
            Err(BadPreamble)
        );
    }

    proptest! {
        #[test]
        fn it_waits_for_the_end_and_no_longer(
            from in any::<(IpAddr, u16)>(),
            to in any::<(IpAddr, u16)>(),
            extension in prop::collection::vec(any::<u8>(), 0..20),
            behind in prop::collection::vec(any::<u8>(), 0..20),
            second: bool,
        ) {
            let expected = (from.0.is_ipv4() == to.0.is_ipv4())
                .then(|| (SocketAddr::from(from), SocketAddr::from(to)));
            let Some((one, other)) = expected else {
                return Ok(());
            };
            let mut bytes = match (one.ip(), other.ip(), second) {
                (IpAddr::V4(a), IpAddr::V4(b), true) => {
                    let rest = [&a.octets()[..], &b.octets(), &one.port().to_be_bytes(), &other.port().to_be_bytes(), &extension].concat();
                    v2(0x21, 0x11, &rest)
                }
                (IpAddr::V6(a), IpAddr::V6(b), true) => {
                    let rest = [&a.octets()[..], &b.octets(), &one.port().to_be_bytes(), &other.port().to_be_bytes(), &extension].concat();
                    v2(0x21, 0x21, &rest)
                }
                (a, b, _) => {
                    let family = if a.is_ipv4() { "TCP4" } else { "TCP6" };
                    format!("PROXY {family} {a} {b} {} {}\r\n", one.port(), other.port()).into_bytes()
                }
            };
            let length = bytes.len();
            for cut in 0..length {
                prop_assert_eq!(parse(&bytes[..cut], ProxyProtocol::Auto), Ok(None));
            }
            bytes.extend_from_slice(&behind);
            let preamble = Preamble { length, told: expected };
            prop_assert_eq!(parse(&bytes, ProxyProtocol::Auto), Ok(Some(preamble)));
        }

        #[test]
        fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..40_usize) {
            let _ = parse(&bytes, ProxyProtocol::Auto);
            let mut almost = v2(0x21, 0x11, &[0; 12]);
            almost.truncate(at);
            almost.extend_from_slice(&bytes);
            let _ = parse(&almost, ProxyProtocol::Auto);
        }
    }
}

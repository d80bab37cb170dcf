//! The fields that most answers have. Nobody here changes them, so they are written as they are read: to
//! put each into a map, and to take it out again, costs several times as much.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Lines, colon, names::Names};

/// Values of a map have memory in common up to this, bytes.
const SHARED_MAX: usize = 1024;

/// See the module's documentation. They go before those in the answer's map.
#[derive(Clone, Debug, Default)]
pub struct Usual {
    /// The fields.
    pub lines: Lines,
    /// Whether `Date` is among them.
    pub dated: bool,
}

/// What of an answer tells who gave it.
#[derive(Debug, Default)]
pub struct Signs {
    /// Its `Server`.
    pub server: Option<Bytes>,
    /// Whether it has a `Date`.
    pub dated: bool,
    /// Whether its `Connection` says `close`, if it has one.
    pub closes: Option<bool>,
    /// Whether it is one of HTTP/1.0.
    pub http10: bool,
    /// Whether it is a stream of events.
    pub events: bool,
}

impl Usual {
    /// Whether fields of this name are here, where there are any. In lower case.
    pub fn has(name: &str) -> bool {
        known(name.as_bytes()).is_some()
    }

    /// Moves them into a map, before what is there already. Whoever keeps one of its values keeps no more than a small
    /// head with it.
    pub fn unfold(&mut self, map: &mut HeaderMap) {
        let usual = std::mem::take(self);
        detach(map);
        if usual.lines.size.fields == 0 {
            return;
        }
        let mut all = HeaderMap::with_capacity(usual.lines.size.fields + map.len() + 2);
        // Their memory is shared by all values, if it is not much.
        let text = usual.lines.into_bytes();
        let shared = text.len() <= SHARED_MAX;
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &text) {
            let line = &text[start..end];
            start = end + 1;
            let Some((name, value)) = colon(line).map(|at| line.split_at(at)) else {
                continue;
            };
            let value = value[1..].trim_ascii();
            let value = match shared {
                true => HeaderValue::from_maybe_shared(text.slice_ref(value)),
                false => HeaderValue::from_bytes(value),
            };
            if let (Some(name), Ok(value)) = (header_name(name), value) {
                all.append(name, value);
            }
        }
        for (name, value) in map.iter() {
            all.append(name, value.clone());
        }
        *map = all;
    }
}

/// Makes each value one of its own, without what it was read with: HPACK's table keeps it for as long as the connection
/// of a client lasts.
pub fn detach(map: &mut HeaderMap) {
    for value in map.values_mut() {
        if let Ok(own) = HeaderValue::from_bytes(value.as_bytes()) {
            *value = own;
        }
    }
}

/// The shortest first, and of those of a length the most usual.
static NAMES: Names<38> = Names::new([
    "date",
    "vary",
    "etag",
    "link",
    "allow",
    "server",
    "pragma",
    "expires",
    "location",
    "set-cookie",
    "content-type",
    "cache-control",
    "last-modified",
    "accept-ranges",
    "content-range",
    "x-frame-options",
    "referrer-policy",
    "content-encoding",
    "content-language",
    "x-xss-protection",
    "www-authenticate",
    "x-ratelimit-limit",
    "x-ratelimit-reset",
    "permissions-policy",
    "content-disposition",
    "x-ratelimit-remaining",
    "x-content-type-options",
    "access-control-max-age",
    "content-security-policy",
    "strict-transport-security",
    "cross-origin-opener-policy",
    "access-control-allow-origin",
    "cross-origin-resource-policy",
    "cross-origin-embedder-policy",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-expose-headers",
    "access-control-allow-credentials",
]);

/// A name for a map. Those that are known are there already: to parse one costs several times as much.
fn header_name(name: &[u8]) -> Option<HeaderName> {
    static KNOWN: LazyLock<Vec<HeaderName>> =
        LazyLock::new(|| NAMES.all().map(HeaderName::from_static).collect());
    match NAMES.find(name) {
        Some(place) => KNOWN.get(usize::from(place)).cloned(),
        None => HeaderName::from_bytes(name).ok(),
    }
}

/// The name in lower case, if it is one of these.
pub(super) fn known(name: &[u8]) -> Option<&'static str> {
    Some(NAMES.at(NAMES.find(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_before_the_others_in_a_map() {
        let mut usual = Usual::default();
        usual.lines.push("set-cookie", b"a=1; b: c");
        usual.lines.push("date", b"now");
        usual.lines.push("set-cookie", b"d=\xff");
        let mut map = HeaderMap::new();
        map.insert("x-own", HeaderValue::from_static("1"));
        usual.unfold(&mut map);
        let fields: Vec<_> = map
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let expected: [(&str, &[u8]); 4] = [
            ("set-cookie", b"a=1; b: c"),
            ("set-cookie", b"d=\xff"),
            ("date", b"now"),
            ("x-own", b"1"),
        ];
        assert_eq!(fields, expected);
        assert_eq!(usual.lines.size.fields, 0);
    }

    #[test]
    fn a_value_in_a_map_keeps_little_else() {
        let read = Bytes::from(vec![b'a'; 64 * 1024]);
        let value = HeaderValue::from_maybe_shared(read.slice(..2)).expect("a value");
        let mut map = HeaderMap::from_iter([(HeaderName::from_static("x-own"), value)]);
        for room in [16, 2 * SHARED_MAX] {
            let mut usual = Usual::default();
            let long = "b".repeat(room);
            usual.lines.push("etag", long.as_bytes());
            usual.unfold(&mut map);
            assert_eq!(map["etag"], long);
            map.remove("etag");
        }
        assert_eq!(map["x-own"], "aa");
        assert!(read.is_unique(), "nothing of it is kept");
    }

    #[test]
    fn names_are_known_in_any_case() {
        assert_eq!(known(b"Content-TYPE"), Some("content-type"));
        assert_eq!(known(b"Vary"), Some("vary"));
        assert_eq!(known(b"connection"), None);
        assert_eq!(known(b"x-request-id"), None);
        assert!(Usual::has("set-cookie") && !Usual::has("via"));
    }
}

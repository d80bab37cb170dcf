//! The fields that most requests have, and those that mean something to the application alone. They go to the
//! backend as they are, or not at all, so a request that has no others keeps its head as it was read, and knows
//! where in it the fields are: to put each into a map, and to take it out again, costs several times as much.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use memchr::memchr;

use super::{Size, names::Names};

/// A request's head. Its fields are in the map or, if all of them are plain, in what takes the place of a
/// body here; never in both.
pub type RequestHead = Request<Plain>;

/// The names, the shortest first, and of those of a length the most usual. What is for one hop only does not
/// belong here, nor what is looked for in a request.
static NAMES: Names<57> = Names::new([
    "dnt",
    "host",
    "range",
    "accept",
    "cookie",
    "origin",
    "pragma",
    "cf-ray",
    "referer",
    "if-match",
    "if-range",
    "priority",
    "cdn-loop",
    "x-scheme",
    "save-data",
    "sec-ch-ua",
    "x-api-key",
    "x-real-ip",
    "user-agent",
    "connection",
    "tracestate",
    "cf-visitor",
    "traceparent",
    "x-csrftoken",
    "sec-purpose",
    "content-type",
    "x-csrf-token",
    "cf-ipcountry",
    "cache-control",
    "if-none-match",
    "authorization",
    "content-length",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-dest",
    "sec-fetch-user",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "x-amzn-trace-id",
    "x-forwarded-for",
    "x-forwarded-ssl",
    "content-encoding",
    "content-language",
    "sec-ch-ua-mobile",
    "x-requested-with",
    "x-forwarded-host",
    "x-forwarded-port",
    "cf-connecting-ip",
    "if-modified-since",
    "x-forwarded-proto",
    "sec-ch-ua-platform",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "if-unmodified-since",
    "upgrade-insecure-requests",
]);

/// Between the members of a list.
const SEPARATOR: &[u8] = b", ";

/// The name of a plain field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(u8);

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Plain {
    /// The bytes of the head.
    head: Bytes,
    /// Where in them the fields are.
    lines: Vec<Line>,
    host: Line,
    /// Their names.
    there: u64,
    /// Where a field ends that has one more member than in the head, and that member.
    more: Option<(usize, HeaderValue)>,
    /// How much there is of them.
    size: Size,
}

/// `Name: value`, in a head.
#[derive(Clone, Copy, Debug)]
struct Line {
    name: Name,
    start: usize,
    /// Before the line end.
    end: usize,
}

impl Name {
    /// `Host`.
    pub const HOST: Self = Self(NAMES.place("host"));
    /// `Content-Length`.
    pub const CONTENT_LENGTH: Self = Self(NAMES.place("content-length"));
    /// `Connection`, which is known, but not passed on.
    pub const CONNECTION: Self = Self(NAMES.place("connection"));
    /// One that the application alone knows.
    pub const OTHER: Self = Self(u64::BITS as u8 - 1);

    /// `X-Forwarded-For`.
    pub const FORWARDED_FOR: Self = Self(NAMES.place("x-forwarded-for"));
    /// `X-Forwarded-Host`.
    pub const FORWARDED_HOST: Self = Self(NAMES.place("x-forwarded-host"));
    /// `X-Forwarded-Port`.
    pub const FORWARDED_PORT: Self = Self(NAMES.place("x-forwarded-port"));
    /// `X-Forwarded-Proto`.
    pub const FORWARDED_PROTO: Self = Self(NAMES.place("x-forwarded-proto"));

    /// All that are known.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..NAMES.len()).map(Self)
    }

    /// The name that these bytes of a line are, in whatever case, if it is one of those.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        NAMES.find(bytes).map(Self)
    }

    /// In lower case.
    ///
    /// # Panics
    /// Of [`OTHER`](Self::OTHER), which is none.
    pub fn as_str(self) -> &'static str {
        NAMES.at(self.0)
    }

    /// One bit for each.
    pub const fn bit(self) -> u64 {
        1 << self.0
    }
}

impl Plain {
    /// Whether there are none: then all fields are in the map.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How much there is of them.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Begins with the fields of this head, without their line ends.
    pub fn begin(&mut self, head: Bytes) {
        self.head = head;
    }

    /// Adds a field, which is `Name: value` from `start` to `end`.
    pub fn push(&mut self, name: Name, start: usize, end: usize) {
        let line = Line { name, start, end };
        if name == Name::HOST {
            self.host = line;
        }
        self.there |= name.bit();
        self.size.fields += 1;
        self.size.longest = self.size.longest.max(end - start);
        self.lines.push(line);
    }

    /// The bits of the names that are there.
    pub fn there(&self) -> u64 {
        self.there
    }

    /// Removes the fields whose names have one of these bits.
    pub fn remove(&mut self, bits: u64) {
        if self.there & bits == 0 {
            return;
        }
        self.there &= !bits;
        self.lines.retain(|line| line.name.bit() & bits == 0);
        self.size.fields = self.lines.len();
        let lengths = self.lines.iter().map(|line| line.end - line.start);
        self.size.longest = lengths.max().unwrap_or_default();
    }

    /// Adds a member to a field that is a list, if it is there. One field alone may have more.
    pub fn add(&mut self, name: Name, member: &HeaderValue) {
        let Some(line) = self.lines.iter().find(|line| line.name == name) else {
            return;
        };
        let length = line.end - line.start + SEPARATOR.len() + member.len();
        self.size.longest = self.size.longest.max(length);
        self.more = Some((line.end, member.clone()));
    }

    /// Forgets them, but keeps the memory for the next request.
    pub fn clear(&mut self) {
        self.head = Bytes::new();
        self.lines.clear();
        self.host = Line::default();
        self.there = 0;
        self.more = None;
        self.size = Size::default();
    }

    /// The value of `Host`; `None` if all fields are in the map.
    pub fn host(&self) -> Option<&[u8]> {
        (!self.is_empty()).then(|| self.value(self.host))
    }

    /// A field's value, as its client sent it.
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        let line = self.lines.iter().find(|line| line.name == name)?;
        Some(self.value(*line))
    }

    fn value(&self, line: Line) -> &[u8] {
        &self.head[line.value(&self.head)..line.end]
    }

    /// Whether there are fields whose names are not known.
    pub fn has_others(&self) -> bool {
        self.there & Name::OTHER.bit() != 0
    }

    /// Their names, as they came.
    pub fn others(&self) -> impl Iterator<Item = &[u8]> {
        let others = self.lines.iter().filter(|line| line.name == Name::OTHER);
        others.map(|line| line.name(&self.head))
    }

    /// The value of a field that is not known, in the map or out of it; of several the first.
    pub fn find(head: &RequestHead, name: &HeaderName) -> Option<HeaderValue> {
        match head.body().is_empty() {
            true => head.headers().get(name).cloned(),
            false => head.body().other(name),
        }
    }

    /// The same out of the map.
    pub fn other(&self, name: &HeaderName) -> Option<HeaderValue> {
        if !self.has_others() {
            return None;
        }
        let name = name.as_str().as_bytes();
        let mut others = self.lines.iter().filter(|line| line.name == Name::OTHER);
        let line = others.find(|line| {
            let parts = self.head[line.start..line.end].split_at_checked(name.len());
            parts.is_some_and(|(other, rest)| {
                rest.starts_with(b":") && other.eq_ignore_ascii_case(name)
            })
        })?;
        let value = line.start + name.len() + ": ".len()..line.end;
        HeaderValue::from_maybe_shared(self.head.slice(value)).ok()
    }

    /// Writes them, each with its end.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let more = self.more.as_ref().map(|(end, more)| (*end, more));
        let mut lines = &self.lines[..];
        while let Some(&Line { start, mut end, .. }) = lines.first() {
            // What is in one piece is copied in one piece.
            let following = lines[1..].iter().take_while(|line| {
                let next = line.start == end + 2 && more.is_none_or(|(at, _)| at != end);
                end = if next { line.end } else { end };
                next
            });
            let (piece, rest) = lines.split_at(1 + following.count());
            let at = out.len();
            out.extend_from_slice(&self.head[start..end]);
            for line in piece {
                let at = at + line.start - start;
                if line.name == Name::OTHER {
                    let length = line.name(&self.head).len();
                    out[at..at + length].make_ascii_lowercase();
                } else {
                    let name = line.name.as_str().as_bytes();
                    out[at..at + name.len()].copy_from_slice(name);
                }
            }
            if let Some((_, more)) = more.filter(|(at, _)| *at == end) {
                out.extend_from_slice(SEPARATOR);
                out.extend_from_slice(more.as_bytes());
            }
            out.extend_from_slice(b"\r\n");
            lines = rest;
        }
    }

    /// Moves them into the map of their request, which is empty.
    pub fn unfold(request: &mut RequestHead) {
        if request.body().is_empty() {
            return;
        }
        let mut plain = std::mem::take(request.body_mut());
        let map: &mut HeaderMap = request.headers_mut();
        map.reserve(plain.lines.len());
        for &line in &plain.lines {
            let name = match line.name {
                Name::OTHER => HeaderName::from_bytes(line.name(&plain.head)),
                known => Ok(HeaderName::from_static(known.as_str())),
            };
            let mut value = plain.head.slice(line.value(&plain.head)..line.end);
            if let Some((_, more)) = plain.more.as_ref().filter(|(end, _)| *end == line.end) {
                value = [&value, SEPARATOR, more.as_bytes()].concat().into();
            }
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) {
                map.append(name, value);
            }
        }
        plain.clear();
        *request.body_mut() = plain;
    }
}

impl Line {
    /// Its name, as it is in this head.
    fn name(self, head: &[u8]) -> &[u8] {
        let line = &head[self.start..self.end];
        let length = match self.name {
            Name::OTHER => memchr(b':', line).unwrap_or_default(),
            known => known.as_str().len(),
        };
        &line[..length]
    }

    /// Where its value begins.
    fn value(self, head: &[u8]) -> usize {
        self.start + self.name(head).len() + ": ".len()
    }
}

impl Default for Line {
    fn default() -> Self {
        Self {
            name: Name::HOST,
            start: 0,
            end: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(head: &'static str) -> RequestHead {
        let mut request = RequestHead::default();
        let fields = request.body_mut();
        fields.begin(Bytes::from_static(head.as_bytes()));
        let mut at = 0;
        for line in head.split("\r\n") {
            let name = line.split_once(": ").map_or("connection", |(name, _)| name);
            let known = Name::find(name.as_bytes()).unwrap_or(Name::OTHER);
            if known != Name::CONNECTION {
                fields.push(known, at, at + line.len());
            }
            at += line.len() + 2;
        }
        request
    }

    #[test]
    fn what_is_not_plain_is_not_known() {
        for plain in [
            "Host",
            "content-length",
            "CONNECTION",
            "Cookie",
            "user-agent",
        ] {
            assert!(Name::find(plain.as_bytes()).is_some(), "{plain}");
        }
        for other in [
            "te",
            "via",
            "expect",
            "upgrade",
            "trailer",
            "keep-alive",
            "max-forwards",
            "forwarded",
            "x-request-id",
            "x-request-start",
            "x-retry-count",
            "transfer-encoding",
        ] {
            assert_eq!(Name::find(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn they_are_written_in_their_order_in_lower_case() {
        let request = plain(
            "GET / HTTP/1.1\r\nHOST: a\r\nAccept: A/B\r\nConnection: close\r\nUser-Agent: C: d\r\nX-OWN: E\r\n\r\n",
        );
        let fields = request.body();
        assert_eq!(fields.host(), Some(&b"a"[..]));
        assert_eq!(fields.get(Name::CONTENT_LENGTH), None);
        let longest = "User-Agent: C: d".len();
        assert_eq!(fields.size(), Size { fields: 4, longest });
        let mut out = b"x\r\n".to_vec();
        fields.write(&mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "x\r\nhost: a\r\naccept: A/B\r\nuser-agent: C: d\r\nx-own: E\r\n"
        );
    }

    #[test]
    fn they_can_be_put_into_the_map() {
        let mut request = plain(
            "GET / HTTP/1.1\r\nCookie: a=1\r\nHost: b\r\nX-Own: c\r\nContent-Length: 007\r\n\r\n",
        );
        let other = |name| request.body().other(&HeaderName::from_static(name));
        assert_eq!(other("x-own"), Some(HeaderValue::from_static("c")));
        assert_eq!((other("x-ow"), other("host")), (None, None));
        Plain::unfold(&mut request);
        assert!(request.body().is_empty() && request.body().host().is_none());
        assert_eq!(request.body().size(), Size::default());
        let fields: Vec<_> = request.headers().iter().collect();
        let fields: Vec<_> = fields
            .into_iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let expected: [(&str, &[u8]); 4] = [
            ("cookie", b"a=1"),
            ("host", b"b"),
            ("x-own", b"c"),
            ("content-length", b"007"),
        ];
        assert_eq!(fields, expected);
        Plain::unfold(&mut request);
        assert_eq!(request.headers().len(), 4, "there is nothing more");
    }

    #[test]
    fn they_can_be_removed_and_a_list_can_have_more() {
        let head = "GET / HTTP/1.1\r\nX-Real-IP: 192.0.2.1\r\nHost: a\r\nX-Forwarded-For: b\r\nCookie: c\r\n\r\n";
        let mut request = plain(head);
        let fields = request.body_mut();
        let real_ip = Name::find(b"x-real-ip").expect("it is known");
        fields.remove(real_ip.bit());
        let longest = "X-Forwarded-For: b".len();
        assert_eq!(fields.size(), Size { fields: 3, longest });
        fields.add(Name::FORWARDED_FOR, &HeaderValue::from_static("192.0.2.2"));
        let longest = longest + ", 192.0.2.2".len();
        assert_eq!(fields.size(), Size { fields: 3, longest });
        let mut out = Vec::new();
        fields.write(&mut out);
        let written = "host: a\r\nx-forwarded-for: b, 192.0.2.2\r\ncookie: c\r\n";
        assert_eq!(String::from_utf8_lossy(&out), written);
        Plain::unfold(&mut request);
        assert_eq!(request.headers()["x-forwarded-for"], "b, 192.0.2.2");
        assert_eq!(request.headers().len(), 3);
    }
}

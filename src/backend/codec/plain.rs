//! The fields that most requests have. Nobody here changes them, so a request that has no others keeps its
//! head as it was read, and knows where in it the fields are: to put each into a map, and to take it out
//! again, costs several times as much.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use super::{Size, names::Names};

/// A request's head. Its fields are in the map or, if all of them are plain, in what takes the place of a
/// body here; never in both.
pub type RequestHead = Request<Plain>;

/// The names, the shortest first, and of those of a length the most usual. What is for one hop only, what tells who a client is, and what a server
/// may take for a proxy's word does not belong here.
static NAMES: Names<40> = Names::new([
    "dnt",
    "host",
    "range",
    "accept",
    "cookie",
    "origin",
    "pragma",
    "referer",
    "if-match",
    "if-range",
    "priority",
    "save-data",
    "sec-ch-ua",
    "user-agent",
    "connection",
    "tracestate",
    "traceparent",
    "x-csrftoken",
    "sec-purpose",
    "content-type",
    "x-csrf-token",
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
    "content-encoding",
    "content-language",
    "sec-ch-ua-mobile",
    "x-requested-with",
    "if-modified-since",
    "sec-ch-ua-platform",
    "if-unmodified-since",
    "upgrade-insecure-requests",
]);

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

    /// The name that these bytes of a line are, in whatever case, if it is one of those.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        NAMES.find(bytes).map(Self)
    }

    /// In lower case.
    pub fn as_str(self) -> &'static str {
        NAMES.at(self.0)
    }

    /// One bit for each.
    pub fn bit(self) -> u64 {
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

    /// Adds a field, which is `Name: value` at this place.
    pub fn push(&mut self, name: Name, start: usize, end: usize) {
        let line = Line { name, start, end };
        if name == Name::HOST {
            self.host = line;
        }
        self.size.fields += 1;
        self.size.longest = self.size.longest.max(end - start);
        self.lines.push(line);
    }

    /// Forgets them, but not the memory for the next.
    pub fn clear(&mut self) {
        self.head = Bytes::new();
        self.lines.clear();
        self.host = Line::default();
        self.size = Size::default();
    }

    /// The value of `Host`; `None` if all fields are in the map.
    pub fn host(&self) -> Option<&[u8]> {
        (!self.is_empty()).then(|| self.value(self.host))
    }

    /// A field's value.
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        let line = self.lines.iter().find(|line| line.name == name)?;
        Some(self.value(*line))
    }

    fn value(&self, line: Line) -> &[u8] {
        &self.head[line.value()..line.end]
    }

    /// Writes them, each with its end.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut lines = &self.lines[..];
        while let Some(&Line { start, mut end, .. }) = lines.first() {
            // What is in one piece is copied in one piece.
            let more = lines[1..].iter().take_while(|line| {
                let next = line.start == end + 2;
                end = if next { line.end } else { end };
                next
            });
            let (piece, rest) = lines.split_at(1 + more.count());
            let at = out.len();
            out.extend_from_slice(&self.head[start..end + 2]);
            for line in piece {
                let name = line.name.as_str().as_bytes();
                let at = at + line.start - start;
                out[at..at + name.len()].copy_from_slice(name);
            }
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
            let name = HeaderName::from_static(line.name.as_str());
            let value = plain.head.slice(line.value()..line.end);
            if let Ok(value) = HeaderValue::from_maybe_shared(value) {
                map.append(name, value);
            }
        }
        plain.clear();
        *request.body_mut() = plain;
    }
}

impl Line {
    /// Where its value begins.
    fn value(self) -> usize {
        self.start + self.name.as_str().len() + ": ".len()
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
            let name = line
                .split_once(": ")
                .and_then(|(name, _)| Name::find(name.as_bytes()));
            if let Some(name) = name.filter(|name| *name != Name::CONNECTION) {
                fields.push(name, at, at + line.len());
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
            "x-request-id",
            "x-forwarded-for",
            "transfer-encoding",
        ] {
            assert_eq!(Name::find(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn they_are_written_in_their_order_in_lower_case() {
        let request = plain(
            "GET / HTTP/1.1\r\nHOST: a\r\nAccept: A/B\r\nConnection: close\r\nUser-Agent: C: d\r\nCookie: e\r\n\r\n",
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
            "x\r\nhost: a\r\naccept: A/B\r\nuser-agent: C: d\r\ncookie: e\r\n"
        );
    }

    #[test]
    fn they_can_be_put_into_the_map() {
        let mut request =
            plain("GET / HTTP/1.1\r\nCookie: a=1\r\nHost: b\r\nContent-Length: 007\r\n\r\n");
        Plain::unfold(&mut request);
        assert!(request.body().is_empty() && request.body().host().is_none());
        assert_eq!(request.body().size(), Size::default());
        let fields: Vec<_> = request.headers().iter().collect();
        let fields: Vec<_> = fields
            .into_iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let expected: [(&str, &[u8]); 3] = [
            ("cookie", b"a=1"),
            ("host", b"b"),
            ("content-length", b"007"),
        ];
        assert_eq!(fields, expected);
        Plain::unfold(&mut request);
        assert_eq!(request.headers().len(), 3, "there is nothing more");
    }
}

//! What is done to a head, without a connection around it: for `benches/hygiene.rs`.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::Response;

use super::{
    context::Peer,
    forwarded::Appended,
    guard::{Guard, Limits},
    http1,
    hygiene::{self, BadHead},
    live::{Live, Shared, queue_settings},
    request_id::RequestId,
    state::State,
};
use crate::{
    admission::Limiter,
    backend::{self, Added, Plain, RequestHead, Size},
    clock,
    config::Config,
    observe::Metrics,
};

/// A client's connection, as far as heads go.
#[derive(Debug)]
pub struct Heads {
    live: Arc<Live>,
    peer: Peer,
    id: RequestId,
}

impl Heads {
    /// From a peer at this address, by this configuration.
    pub fn new(config: Config, peer: SocketAddr) -> Self {
        let (metrics, now) = (Arc::new(Metrics::new()), clock::now());
        let limiter = Limiter::new(queue_settings(&config), None, now);
        let shared = Shared::new(Arc::new(config), limiter, metrics.clone());
        let state = Arc::new(State::new(metrics, now));
        Self {
            live: shared.live(),
            peer: Peer::new(Some(peer), Some(peer.port()), state, Arc::default()),
            id: RequestId::new(),
        }
    }

    /// Judges the bytes of a head: how many of them may pass, 0 if none may.
    pub fn guard(&self, bytes: &[u8]) -> usize {
        let mut guard = Guard::new(Limits::new(self.live.config.server.max_header_bytes));
        let head = guard.head(bytes).ok().flatten();
        head.map_or(0, |head| head.length)
    }

    /// Makes a request of the bytes of a head; `None` if they are none.
    pub fn request(&self, bytes: Bytes) -> Option<Box<RequestHead>> {
        let mut guard = Guard::new(Limits::new(self.live.config.server.max_header_bytes));
        let head = guard.head(&bytes).ok()??;
        let parsed = http1::parse(&bytes, &head, guard.fields(), Box::default());
        Some(parsed.ok()?.request)
    }

    /// Checks and cleans a request's head, and writes it with what a gateway adds.
    ///
    /// # Errors
    /// It may not pass.
    pub fn inbound(
        &self,
        request: &mut RequestHead,
        arrived: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), BadHead> {
        self.pass(request, arrived, true, out)
    }

    /// The same. What is added is not in the head's map, if that is possible and it may go `behind`.
    fn pass(
        &self,
        request: &mut RequestHead,
        arrived: Instant,
        behind: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), BadHead> {
        let (peer, live) = (&self.peer, &self.live);
        let most = usize::MAX;
        if live.reads(request) {
            Plain::unfold(request);
        }
        let id = match RequestId::of(Some(request), live) {
            RequestId::Made(_) => self.id.clone(),
            sent => sent,
        };
        let appended = hygiene::inbound(request, peer, live, &id, arrived, behind, most)?;
        let added = Behind {
            heads: self,
            id: &id,
            appended,
            arrived,
        };
        backend::head(request, &added, out);
        Ok(())
    }

    /// The same for the head of an answer, which always may.
    pub fn outbound(&self, response: &mut Response<()>) {
        hygiene::outbound(response, None, &self.live, &self.id);
    }
}

/// What goes behind a head's fields.
#[derive(Debug)]
struct Behind<'a> {
    heads: &'a Heads,
    id: &'a RequestId,
    appended: Option<Appended>,
    arrived: Instant,
}

impl Added for Behind<'_> {
    fn size(&self) -> Size {
        self.appended
            .as_ref()
            .map_or_else(Size::default, |it| it.size)
    }

    fn write(&self, host: &[u8], out: &mut Vec<u8>) {
        let Heads { live, peer, .. } = self.heads;
        if let Some(appended) = &self.appended {
            appended.write(host, peer, live, self.id, self.arrived, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        admission::Class,
        backend::Lines,
        proxy::client::{self, KeySource},
    };

    fn heads(forwarded: bool, trusted: bool, unix: bool) -> Heads {
        let mut config = Config::default();
        config.headers.forwarded = forwarded;
        if trusted {
            config.headers.trusted_proxies = vec!["192.0.2.0/24".parse().expect("a network")];
        }
        let mut heads = Heads::new(config, "192.0.2.7:1234".parse().expect("an address"));
        if unix {
            heads.peer = Peer::new(None, None, heads.peer.state, heads.peer.timers);
        }
        heads
    }

    /// What the backend gets of a head, and what it says of the connection.
    fn sent(
        heads: &Heads,
        now: Instant,
        text: &str,
        plain: bool,
        behind: bool,
    ) -> Result<String, BadHead> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let mut guard = Guard::new(Limits::new(4096));
        let mut head = guard.head(&bytes)?.expect("it is complete");
        head.plain &= plain;
        let mut parsed = http1::parse(&bytes, &head, guard.fields(), Box::default())?;
        assert_eq!(head.plain, !parsed.request.body().is_empty());
        let mut out = Vec::new();
        heads.pass(&mut parsed.request, now, behind, &mut out)?;
        let proxies = &heads.live.config.headers.trusted_proxies;
        let client = KeySource::Ip.key(&parsed.request, &heads.peer, proxies);
        let said = (parsed.keep_alive, parsed.expects, parsed.trailers, client);
        let key = KeySource::Header(HeaderName::from_static("x-other"));
        let key = key.key(&parsed.request, &heads.peer, proxies);
        let asked = (key, client::class(Class::Normal, &parsed.request));
        // A map may be needed later.
        let mut again = Vec::new();
        Plain::unfold(&mut parsed.request);
        backend::head(&parsed.request, &Lines::default(), &mut again);
        assert_eq!(out.get(..again.len() - 2), again.get(..again.len() - 2));
        let text = String::from_utf8_lossy(&out);
        // The time of day is taken anew now and then, and need not agree to the microsecond.
        let lines = text.split("\r\n").map(|line| match line.split_once("t=") {
            Some((name @ "x-request-start: ", _)) => name,
            _ => line,
        });
        Ok(format!(
            "{said:?} {asked:?}\n{:?}",
            lines.collect::<Vec<_>>()
        ))
    }

    const NAMES: [&str; 28] = [
        "Host",
        "host",
        "User-Agent",
        "ACCEPT",
        "accept-encoding",
        "Cookie",
        "Content-Length",
        "Connection",
        "Sec-Fetch-Mode",
        "If-Modified-Since",
        "Upgrade-Insecure-Requests",
        "X-Own",
        "TE",
        "Expect",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "x-forwarded-host",
        "X-Forwarded-Port",
        "X-Real-IP",
        "X-Request-Id",
        "X-OTHER",
        "x-other",
        "Proxy-Authorization",
        "X_Own",
        "Via",
        "X-Request-Start",
        "Remote-User",
        "X-Retry-Count",
    ];
    const VALUES: [&str; 12] = [
        "2",
        "\u{e9}, 198.51.100.7",
        "198.51.100.7, 10.0.0.1",
        "\u{e9}",
        "a",
        "keep-alive",
        "Close",
        "100-continue",
        "007",
        "",
        "x: y, Z ",
        "trailers",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// A head whose fields are in no map is checked, and goes out, as one whose fields are in one.
        #[test]
        fn plain_or_not_makes_no_difference(
            line in prop::sample::select(vec![
                "GET /a?b HTTP/1.1", "GET / HTTP/1.0", "OPTIONS * HTTP/1.1", "POST http://b/c HTTP/1.1", "GET a HTTP/1.1",
            ]),
            hosted: bool,
            fields in prop::collection::vec((0..NAMES.len(), 0..4_usize, 0..VALUES.len()), 0..5),
            behind: bool,
            forwarded: bool,
            trusted: bool,
            unix: bool,
        ) {
            let mut text = format!("{line}\r\n{}", if hosted { "Host: a.b:80\r\n" } else { "" });
            for (name, separator, value) in fields {
                let separator = [": ", ": ", ":", ":\t"][separator];
                text += &format!("{}{separator}{}\r\n", NAMES[name], VALUES[value]);
            }
            text += "\r\n";
            let (heads, now) = (heads(forwarded, trusted, unix), clock::now());
            let sent = |plain| sent(&heads, now, &text, plain, behind);
            let (kept, put) = (sent(true), sent(false));
            prop_assert_eq!(kept, put, "{:?}", text);
        }
    }
}

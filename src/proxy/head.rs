//! What is done to a head, without a connection around it: for `benches/hygiene.rs`.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::Response;

use super::{
    context::Peer,
    guard::{Guard, Limits},
    http1, hygiene,
    live::{Live, Shared, queue_settings},
    request_id::RequestId,
    state::State,
};
use crate::{
    admission::Limiter,
    backend::{RequestHead, host},
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

    /// Checks and cleans a request's head, and adds what a gateway adds; what of that is not in the head goes
    /// to `out`. Whether it may pass.
    pub fn inbound(&self, request: &mut RequestHead, arrived: Instant, out: &mut Vec<u8>) -> bool {
        let (peer, live, id) = (&self.peer, &self.live, &self.id);
        let inbound = hygiene::inbound(request, peer, live, id, arrived, true, usize::MAX);
        if let Ok(Some(appended)) = &inbound {
            appended.write(host(request), peer, live, id, arrived, out);
        }
        inbound.is_ok()
    }

    /// The same for the head of an answer, which always may.
    pub fn outbound(&self, response: &mut Response<()>) {
        hygiene::outbound(response, None, &self.live, &self.id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::{Lines, head as write_head};

    fn heads(forwarded: bool, trusted: bool) -> Heads {
        let mut config = Config::default();
        config.headers.forwarded = forwarded;
        if trusted {
            config.headers.trusted_proxies = vec!["192.0.2.0/24".parse().expect("a network")];
        }
        Heads::new(config, "192.0.2.7:1234".parse().expect("an address"))
    }

    /// What the backend gets of a head, or why it gets nothing.
    fn sent(
        heads: &Heads,
        now: Instant,
        text: &str,
        plain: bool,
        lines: bool,
    ) -> Result<String, String> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let mut guard = Guard::new(Limits::new(4096));
        let head = guard.head(&bytes).map_err(|bad| bad.to_string())?;
        let mut head = head.expect("it is complete");
        head.plain &= plain;
        let parsed = http1::parse(&bytes, &head, guard.fields(), Box::default());
        let parsed = parsed.map_err(|bad| bad.to_string())?;
        let mut request = parsed.request;
        assert_eq!(head.plain, !request.body().is_empty());
        let (peer, live, id) = (&heads.peer, &heads.live, &heads.id);
        let inbound = hygiene::inbound(&mut request, peer, live, id, now, lines, usize::MAX);
        let appended = inbound.map_err(|bad| bad.to_string())?;
        let mut out = Vec::new();
        write_head(&request, &Lines::default(), &mut out);
        if let Some(appended) = appended {
            appended.write(host(&request), peer, live, id, now, &mut out);
        }
        let said = (parsed.keep_alive, parsed.expects, parsed.trailers);
        Ok(format!("{said:?}\n{}", String::from_utf8_lossy(&out)))
    }

    const NAMES: [&str; 16] = [
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
        "X-Request-Id",
    ];
    const VALUES: [&str; 8] = [
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
            lines: bool,
            forwarded: bool,
            trusted: bool,
        ) {
            let mut text = format!("{line}\r\n{}", if hosted { "Host: a.b:80\r\n" } else { "" });
            for (name, separator, value) in fields {
                let separator = [": ", ": ", ":", ":\t"][separator];
                text += &format!("{}{separator}{}\r\n", NAMES[name], VALUES[value]);
            }
            text += "\r\n";
            let (heads, now) = (heads(forwarded, trusted), clock::now());
            let sent = |plain| sent(&heads, now, &text, plain, lines);
            let (kept, put) = (sent(true), sent(false));
            prop_assert_eq!(kept, put, "{:?}", text);
        }
    }
}

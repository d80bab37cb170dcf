//! What is done to a head, without a connection around it: for `benches/hygiene.rs`.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use http::{Request, Response};

use super::{
    context::Peer,
    guard::{Guard, Limits},
    hygiene,
    live::{Live, Shared, queue_settings},
    request_id::RequestId,
    state::State,
};
use crate::{admission::Limiter, clock, config::Config, observe::Metrics};

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

    /// Checks and cleans a request's head, and adds what a gateway adds; what of that is not in the head goes
    /// to `out`. Whether it may pass.
    pub fn inbound(&self, request: &mut Request<()>, arrived: Instant, out: &mut Vec<u8>) -> bool {
        let (peer, live, id) = (&self.peer, &self.live, &self.id);
        let inbound = hygiene::inbound(request, peer, live, id, arrived, true, usize::MAX);
        if let Ok(Some(appended)) = &inbound {
            appended.write(peer, live, id, arrived, out);
        }
        inbound.is_ok()
    }

    /// The same for the head of an answer, which always may.
    pub fn outbound(&self, response: &mut Response<()>) {
        hygiene::outbound(response, None, &self.live, &self.id);
    }
}

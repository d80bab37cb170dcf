//! Connections that wait for their next request.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;

use super::{link::Link, steering::Steering};

/// Idle connections to one endpoint, the latest used first, so that few are kept warm and the rest
/// age out; or, where it is known whose they are, one of the worker with the least to do.
#[derive(Debug, Default)]
pub(super) struct Pool {
    #[allow(clippy::vec_box)] // They come boxed and go boxed.
    idle: Vec<Box<Link>>,
    /// Buffers of closed connections. The one that was used last may still be held by whoever reads that
    /// answer, so they are taken first in, first out.
    buffers: VecDeque<BytesMut>,
    /// What knows which worker has which of them.
    steering: Option<Arc<Steering>>,
}

/// The most buffers kept for an endpoint; each is as large as a first read.
const BUFFERS_MAX: usize = 16;
/// The most idle connections kept for an endpoint.
const POOL_MAX: usize = 256;

impl Pool {
    /// A connection that has been idle for less than `max_idle` and still seems alive, for a request that may
    /// be sent again (`replayable`) or not. One that is registered with this thread is preferred, unless it
    /// matters more which worker has it. `None`, too, if a new one is better.
    pub(super) fn take(
        &mut self,
        max_idle: Duration,
        replayable: bool,
        now: Instant,
    ) -> Option<Box<Link>> {
        loop {
            // The last is the freshest: if it is too old, so are the others.
            let links = self.idle.iter().rev();
            let mut fresh = links
                .take_while(|link| link.idle_for(now) < max_idle)
                .peekable();
            fresh.peek()?;
            let back = match &self.steering {
                None => fresh.position(|link| link.is_at_home()).unwrap_or(0),
                Some(steering) => steering.choose(fresh.map(|link| link.seat()), now)?,
            };
            let mut link = self.idle.remove(self.idle.len() - 1 - back);
            if link.is_still_quiet(replayable, now) {
                if let Some(seat) = link.seat() {
                    seat.take(now);
                }
                return Some(link);
            }
        }
    }

    pub(super) fn put(&mut self, mut link: Box<Link>, max_idle: Duration, now: Instant) {
        link.park(now);
        let stalest = self.idle.first();
        if self.idle.len() >= POOL_MAX || stalest.is_some_and(|l| l.idle_for(now) >= max_idle) {
            self.idle.remove(0);
        }
        self.idle.push(link);
    }

    /// From now on, or no longer.
    pub(super) fn steer(&mut self, steering: Option<Arc<Steering>>) {
        self.steering = steering;
    }

    /// What knows which worker has which connection.
    pub(super) fn steering(&self) -> Option<&Arc<Steering>> {
        self.steering.as_ref()
    }

    /// An empty buffer, perhaps with memory.
    pub(super) fn take_buffer(&mut self) -> BytesMut {
        self.buffers.pop_front().unwrap_or_default()
    }

    pub(super) fn put_buffer(&mut self, buffer: BytesMut) {
        if self.buffers.len() < BUFFERS_MAX {
            self.buffers.push_back(buffer);
        }
    }

    /// Closes what has been idle for too long.
    pub(super) fn sweep(&mut self, max_idle: Duration, now: Instant) {
        self.idle.retain(|link| link.idle_for(now) < max_idle);
    }
}

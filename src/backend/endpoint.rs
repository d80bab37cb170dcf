//! One address of the backend.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    connect,
    link::{Link, Pool},
};
use crate::{
    config::Address,
    observe::EndpointMetrics,
    sync::{Mutex, lock},
};

/// Where requests go, and the connections to it.
#[derive(Debug)]
pub struct Endpoint {
    /// The number of its lane in the gate.
    pub id: u32,
    /// Its address.
    pub address: Address,
    /// Its figures.
    pub metrics: Arc<EndpointMetrics>,
    pool: Mutex<Pool>,
    up: AtomicBool,
    /// When it was last seen to accept, milliseconds after `born`.
    seen_up: AtomicU64,
    born: Instant,
}

impl Endpoint {
    /// An endpoint that is taken to be up until it shows otherwise.
    pub fn new(id: u32, address: Address, metrics: Arc<EndpointMetrics>, now: Instant) -> Self {
        metrics.set_up(true);
        Self {
            id,
            address,
            metrics,
            pool: Mutex::new(Pool::default()),
            up: AtomicBool::new(true),
            seen_up: AtomicU64::new(0),
            born: now,
        }
    }

    /// Whether it accepted the last connection.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Notes whether it accepts connections. True if that is news.
    pub fn set_up(&self, up: bool, now: Instant) -> bool {
        if up {
            let millis = now.saturating_duration_since(self.born).as_millis() as u64;
            self.seen_up.store(millis.max(1), Relaxed);
        }
        let news = self.up.load(Relaxed) != up && self.up.swap(up, Relaxed) != up;
        if news {
            self.metrics.set_up(up);
        }
        news
    }

    /// Whether it accepted a connection within the last `age`.
    pub fn seen_up_within(&self, age: Duration, now: Instant) -> bool {
        let millis = self.seen_up.load(Relaxed);
        millis > 0
            && self.is_up()
            && now.saturating_duration_since(self.born + Duration::from_millis(millis)) <= age
    }

    /// Connects and hangs up: does it accept?
    pub async fn probe(&self, timeout: Duration) -> bool {
        connect(&self.address, timeout).await.is_ok()
    }

    /// Closes connections that have been idle for longer than `max_idle`.
    pub fn sweep(&self, max_idle: Duration, now: Instant) {
        lock(&self.pool).sweep(max_idle, now);
    }

    pub(super) fn take_link(&self, max_idle: Duration, now: Instant) -> Option<Box<Link>> {
        lock(&self.pool).take(max_idle, now)
    }

    pub(super) fn put_link(&self, link: Box<Link>, max_idle: Duration, now: Instant) {
        lock(&self.pool).put(link, max_idle, now);
    }
}

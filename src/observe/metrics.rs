//! Every metric that tidegate exports.
//!
//! The data path holds an [`Arc<RouteMetrics>`] and an [`Arc<EndpointMetrics>`], looked up when a
//! configuration is loaded, and adds to their atomics. What has a value at any moment (the limit,
//! the queue) is not tracked here: it comes as a [`Snapshot`] with the scrape.

mod endpoint;
mod render;
mod route;
mod snapshot;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use endpoint::EndpointMetrics;
pub use route::RouteMetrics;
pub use snapshot::{EndpointSnapshot, Sight, Signals, Snapshot, SteeringSnapshot, WorkerSnapshot};

use super::{
    exposition::Format,
    histogram::{Histogram, Reading},
    labels::{Phase, Reason, Source, WaitOutcome},
    traffic::Counts,
};
use crate::{
    clock,
    config::{Class, UNROUTED},
};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision of the source, when the build was told of it.
pub const REVISION: &str = match option_env!("TIDEGATE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// One less.
    pub fn decrement(&self) {
        self.add(-1);
    }

    /// This many more, or fewer when negative.
    pub fn add(&self, difference: i64) {
        self.0.fetch_add(difference, Relaxed);
    }

    /// Exactly this many.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// How the loading of configurations went.
#[derive(Debug)]
struct Reloads {
    ok: AtomicU64,
    error: AtomicU64,
    last_was_ok: AtomicBool,
    /// Since the Unix epoch, in milliseconds.
    last_ok_at: AtomicU64,
}

/// The metrics of one tidegate. Cheap to share: everything is behind `&self`.
#[derive(Debug)]
pub struct Metrics {
    routes: Mutex<BTreeMap<String, Arc<RouteMetrics>>>,
    endpoints: Mutex<BTreeMap<String, Arc<EndpointMetrics>>>,
    canceled: [AtomicU64; 4],
    queue_wait: [[Histogram; 3]; 5],
    reloads: Reloads,
    /// Client connections with a request in progress.
    pub connections_active: Gauge,
    /// Client connections between requests.
    pub connections_idle: Gauge,
    /// Bytes of request bodies in memory.
    pub buffered_request_bytes: Gauge,
    /// Bytes of responses in memory.
    pub buffered_response_bytes: Gauge,
    /// Requests that the backend still works on although their client has left or was answered.
    pub orphaned: Gauge,
    /// Streams and upgraded connections in flight.
    pub streaming: Gauge,
    ready: AtomicBool,
    draining: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Everything at 0, and the route `default` in place. The configuration that the process
    /// starts with counts as loaded successfully, now.
    pub fn new() -> Self {
        let metrics = Metrics {
            routes: Mutex::default(),
            endpoints: Mutex::default(),
            canceled: Default::default(),
            queue_wait: Default::default(),
            reloads: Reloads {
                ok: AtomicU64::new(0),
                error: AtomicU64::new(0),
                last_was_ok: AtomicBool::new(true),
                last_ok_at: AtomicU64::new(epoch_millis()),
            },
            connections_active: Gauge::default(),
            connections_idle: Gauge::default(),
            buffered_request_bytes: Gauge::default(),
            buffered_response_bytes: Gauge::default(),
            orphaned: Gauge::default(),
            streaming: Gauge::default(),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        };
        metrics.route(UNROUTED);
        metrics
    }

    /// The handles of a route; the same ones for the same name. Takes a lock: call it when a
    /// configuration is loaded, not per request. Routes that a reload retires stay exported, since
    /// a counter that vanishes breaks `rate()`.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        get_or_insert(&self.routes, name, RouteMetrics::default)
    }

    /// The handles of an endpoint; the same ones for the same label. Takes a lock, as
    /// [`Metrics::route`] does.
    pub fn endpoint(&self, label: &str) -> Arc<EndpointMetrics> {
        get_or_insert(&self.endpoints, label, EndpointMetrics::default)
    }

    /// A client left before it had its whole answer.
    pub fn canceled(&self, phase: Phase) {
        self.canceled[phase as usize].fetch_add(1, Relaxed);
    }

    /// A wait in the queue ended. A request that passed without queueing is
    /// `(Admitted, Duration::ZERO)`, so that the histogram tells the share of those that waited.
    pub fn queue_wait(&self, class: Class, outcome: WaitOutcome, waited: Duration) {
        self.queue_wait[class as usize][outcome as usize].observe(waited);
    }

    /// Whether `/readyz` answers 200.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Relaxed);
    }

    /// Whether a drain is under way.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
    }

    /// A reload was tried.
    pub fn config_reload(&self, ok: bool) {
        if ok {
            self.reloads.ok.fetch_add(1, Relaxed);
            self.reloads.last_ok_at.store(epoch_millis(), Relaxed);
        } else {
            self.reloads.error.fetch_add(1, Relaxed);
        }
        self.reloads.last_was_ok.store(ok, Relaxed);
    }

    /// The sums over all routes, for the status document.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (_, route) in list(&self.routes) {
            totals.backend += route.answered(Source::Backend);
            totals.tidegate += route.answered(Source::Tidegate);
            totals.refused += route.refused();
            totals.would_refuse += route.would_refuse();
        }
        totals.canceled = self.canceled.iter().map(|count| count.load(Relaxed)).sum();
        totals
    }

    /// All counts over all routes, for rates.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            totals: self.totals(),
            reasons: [0; Reason::ALL.len()],
            request_seconds: Reading::default(),
            backend_seconds: Reading::default(),
        };
        for (_, route) in list(&self.routes) {
            for (reason, count) in route.rejections() {
                counts.reasons[reason as usize] += count;
            }
            counts.request_seconds.add(&route.request_seconds.read());
            counts.backend_seconds.add(&route.backend_seconds.read());
        }
        counts
    }

    /// The whole exposition, those of the process included.
    pub fn render(&self, snapshot: &Snapshot, format: Format) -> String {
        render::render(self, snapshot, format)
    }
}

/// Counts over all routes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that the backend answered.
    pub backend: u64,
    /// Requests that tidegate answered.
    pub tidegate: u64,
    /// Requests refused to shed load.
    pub refused: u64,
    /// Requests that a dry run would have refused.
    pub would_refuse: u64,
    /// Requests whose client left.
    pub canceled: u64,
}

fn epoch_millis() -> u64 {
    u64::try_from(clock::since_epoch().as_millis()).unwrap_or(u64::MAX)
}

type Registry<T> = Mutex<BTreeMap<String, Arc<T>>>;

fn get_or_insert<T>(registry: &Registry<T>, name: &str, new: impl FnOnce() -> T) -> Arc<T> {
    // The map is never left half changed, so a panic elsewhere does not spoil it.
    let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = registry.get(name) {
        return Arc::clone(known);
    }
    let added = Arc::new(new());
    registry.insert(name.to_owned(), Arc::clone(&added));
    added
}

/// A copy of the registry, so that the lock is not held while text is written.
fn list<T>(registry: &Registry<T>) -> Vec<(String, Arc<T>)> {
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    registry
        .iter()
        .map(|(name, handles)| (name.clone(), Arc::clone(handles)))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;

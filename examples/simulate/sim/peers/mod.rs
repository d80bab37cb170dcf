//! The laws of other limiters, written anew from their published rules, for comparison.
//!
//! Each is its project's rule at its defaults, with these changes: where a minimum of 20 would keep
//! a law from ever reaching the knee of a small backend, the minimum is 1; a time-out that stands
//! for a drop is 1 s. A law that its project runs behind a filter which answers 503 at once is run
//! so, and once more with tidegate's queue in front.

mod brpc;
mod envoy;
mod netflix;
mod vector;

use std::time::{Duration, Instant};

use tidegate::limit::{
    Algorithm, Controller, Decision, Outcome, Readings, Sample, Settings, Usage,
};

use super::law::Law;

/// One finished request, as a peer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Seconds since the start at which it ended.
    pub at: f64,
    /// Seconds since the start at which it was let in.
    pub started: f64,
    /// Seconds that it took.
    pub rtt: f64,
    /// In flight when it was let in, itself included.
    pub in_flight: u32,
    /// A sign of overload.
    pub dropped: bool,
    /// Its client had left before it ended.
    pub abandoned: bool,
}

/// A rule that turns samples into a limit.
pub trait Rule: Send {
    /// The limit in force, not rounded.
    fn limit(&self) -> f64;

    /// A request is finished.
    fn observe(&mut self, seen: &Seen);

    /// Time passes, whether anything finishes or not.
    fn tick(&mut self, _at: f64) {}

    /// Whether a permit comes back as soon as the client leaves.
    fn frees_abandoned(&self) -> bool {
        false
    }
}

/// A peer that can be run.
#[derive(Clone, Copy)]
pub struct Peer {
    pub name: &'static str,
    pub rule: fn() -> Box<dyn Rule>,
}

/// All of them.
pub const PEERS: &[Peer] = &[
    Peer {
        name: "Netflix Vegas",
        rule: || Box::new(netflix::Vegas::new()),
    },
    Peer {
        name: "Netflix Vegas, windowed",
        rule: || Box::new(netflix::Windowed::new(netflix::Vegas::new())),
    },
    Peer {
        name: "Netflix Gradient2, windowed",
        rule: || Box::new(netflix::Windowed::new(netflix::Gradient2::new())),
    },
    Peer {
        name: "Netflix AIMD",
        rule: || Box::new(netflix::Aimd::new()),
    },
    Peer {
        name: "Envoy gradient",
        rule: || Box::new(envoy::Gradient::new()),
    },
    Peer {
        name: "Vector ARC",
        rule: || Box::new(vector::Arc::new()),
    },
    Peer {
        name: "brpc auto",
        rule: || Box::new(brpc::Auto::new()),
    },
];

/// A rule in the simulator. tidegate's controller runs beside it, held at the rule's limit: it
/// measures the backend's own time for a request, which the queue needs.
pub struct Adapted {
    base: Instant,
    rule: Box<dyn Rule>,
    measuring: Controller,
}

impl Adapted {
    pub fn new(rule: Box<dyn Rule>, now: Instant) -> Self {
        let settings = Settings {
            algorithm: Algorithm::Fixed,
            ..Settings::default()
        };
        Adapted {
            base: now,
            measuring: Controller::new(settings, now),
            rule,
        }
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.base).as_secs_f64()
    }
}

impl Law for Adapted {
    fn limit(&self) -> u32 {
        (self.rule.limit() as u32).max(1)
    }

    fn observe(&mut self, sample: &Sample, abandoned: bool) {
        self.measuring.observe(sample);
        let dropped = sample.outcome == Outcome::Overload;
        // What says nothing of load says nothing to peers either, but for clients that left: where
        // the permit stays, the filter sees the answer all the same.
        if !(dropped || abandoned || sample.outcome == Outcome::Success) {
            return;
        }
        let (at, started) = (self.seconds(sample.finished), self.seconds(sample.started));
        self.rule.observe(&Seen {
            at,
            started,
            rtt: (at - started).max(1e-6),
            in_flight: sample.in_flight,
            dropped,
            abandoned,
        });
    }

    fn due(&self, now: Instant) -> bool {
        self.measuring.due(now)
    }

    fn tick(&mut self, now: Instant, usage: &Usage, readings: &Readings) -> Option<Decision> {
        self.rule.tick(self.seconds(now));
        let limit = self.limit();
        if self.measuring.limit() != limit {
            self.measuring.pin(Some(limit), now);
        }
        self.measuring.tick(now, usage, readings);
        None
    }

    fn service_time(&self) -> Option<Duration> {
        self.measuring.baseline().or(self.measuring.service_time())
    }

    fn frees_abandoned(&self) -> bool {
        self.rule.frees_abandoned()
    }
}

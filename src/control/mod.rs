//! The control laws, pure: no I/O, no async, no clock, no atomics, and nothing of HTTP.
//!
//! A [`Controller`] is told of every finished request ([`Sample`]) and is asked now and then
//! ([`Controller::tick`]) what the limit should be; it answers with a [`Decision`] that carries its
//! evidence.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

/// How a request ended, as far as a control law is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered: its latency says how busy the backend is.
    Success,
    /// A sign of overload: a timeout, a reset before the first byte, or the backend's own 429, 502, 503 or 504.
    Overload,
    /// Finished, but says nothing of load: other 5xx, an aborted client, a backend that is down.
    Neutral,
    /// Not a sample at all: a stream or an upgraded connection.
    Excluded,
}

/// One finished request.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When the permit was taken.
    pub started: Instant,
    /// When the backend was done.
    pub finished: Instant,
    /// Requests in flight at `started`, this one included.
    pub in_flight: u32,
    /// The route it belongs to; routes differ in cost.
    pub route: u16,
    /// How it ended.
    pub outcome: Outcome,
}

/// How the limit was used, as integrals that only ever grow: the law looks at differences.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// In flight now.
    pub in_flight: u32,
    /// The limit in force now.
    pub limit: u32,
    /// Waiting for this endpoint or for any.
    pub queued: u32,
    /// Integral of in-flight over time, slot-seconds.
    pub busy_seconds: f64,
    /// Integral of the limit over time, slot-seconds.
    pub limit_seconds: f64,
    /// Seconds in which in-flight was at the limit or requests were queued.
    pub saturated_seconds: f64,
    /// Start of the oldest request still in flight, when known.
    pub oldest_start: Option<Instant>,
}

/// What the sensors say of the backend; every field is optional.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings {
    /// Requests the backend can run in parallel (workers x threads), configured or discovered.
    pub slots: Option<u32>,
}

/// Which law computes the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Aimd,
    Fixed,
}

/// The settings of a [`Controller`]; `[limit]` in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub algorithm: Algorithm,
    /// Where the limit starts.
    pub initial: u32,
    pub min: u32,
    pub max: u32,
    /// Additive increase a window, in requests.
    pub increase: f64,
    /// Factor on a drop.
    pub decrease: f64,
    /// Latency stretch above which the limit falls.
    pub tolerance: f64,
}

/// What holds the limit where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BoundBy {
    Workers,
    Cpu,
    Memory,
    Latency,
    AcceptQueue,
    Errors,
    Configured,
    Idle,
}

/// The figures a decision rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    pub samples: u32,
    pub drops: u32,
    /// Window latency over the unloaded latency of the same mix of routes.
    pub stretch: f64,
    /// Standard error of `stretch`.
    pub noise: f64,
    /// Work completed, in unloaded seconds a second.
    pub throughput: f64,
    /// Share of the window in which the limit was reached.
    pub limited_share: f64,
    pub mean_latency: Duration,
}

/// One closed window and what followed from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub at: Instant,
    pub from: u32,
    pub limit: u32,
    pub bound_by: BoundBy,
    /// Why, as one word: a metric label and a line in `/status`.
    pub reason: &'static str,
    pub evidence: Evidence,
}

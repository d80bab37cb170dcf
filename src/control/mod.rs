//! The control laws, pure: no I/O, no async, no clock, no atomics, and nothing of HTTP.
//!
//! A [`Controller`] is told of every finished request ([`Sample`]) and is asked now and then
//! ([`Controller::tick`]) what the limit should be; it answers with a [`Decision`] that carries its
//! evidence.
//!
//! The way of a sample: `pause` takes stop-the-world pauses out of its latency, `routes` knows what its route costs
//! (`kinds` tells apart those that have none), `curve` learns latency over concurrency, `window` gathers. When a window
//! closes, the `law` in force decides: `aimd` with the paired tests of `elastic` and `trials`,
//! `gradient` or `vegas`; others may decide beside it, in its `shadows`. `ceilings` holds what the sensors say of
//! workers, accept queue, CPU and memory; `controller` holds it all together. [`usl`] fits the
//! Universal Scalability Law to [`Controller::curve`].

mod aimd;
mod ceilings;
mod controller;
mod curve;
mod elastic;
mod gradient;
mod kinds;
mod law;
mod memory;
mod pause;
mod quickest;
pub mod reason;
mod routes;
mod shadows;
mod trials;
pub mod usl;
mod vegas;
mod window;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use controller::Controller;
pub use curve::CurvePoint;
pub use memory::{Remembered, RememberedBin};
pub use reason::explain;

/// Latencies below this are flat, whatever their stretch: such a wait inside the backend harms nobody, is mostly the
/// scheduler's, and handing every request over one by one would cost more than it saves. (Seen: a backend that answers
/// in 0.1 ms, where any limit low enough for a stretch of 1.35, or for an empty listen backlog, made the proxy's own
/// queue the bottleneck.)
pub const NEGLIGIBLE: Duration = Duration::from_millis(5);

/// How a request ended, as far as a control law is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered: its latency says how busy the backend is.
    Success,
    /// Answered, after its client had left: its latency is as true as any other's, and it was in vain.
    InVain,
    /// A sign of overload: a timeout, a reset before the first byte, or the backend's own 429, 502, 503 or 504.
    Overload,
    /// Finished, but says nothing of load: other 5xx, an aborted client, a backend that is down.
    Neutral,
    /// Not a sample at all: a stream or an upgraded connection.
    Excluded,
}

/// Requests that are expected to cost about the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Those of one route.
    Route(u16),
    /// Those without a route that ask for the same, by a hash of it. Most hashes tell nothing of the cost; which do
    /// has to be learned.
    Path(u16),
}

impl Default for Group {
    fn default() -> Self {
        Group::Route(0)
    }
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
    /// Which requests it costs about as much as; groups differ.
    pub group: Group,
    /// How it ended.
    pub outcome: Outcome,
}

/// How the limit was used, as integrals that only ever grow: the law looks at differences.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// In flight now.
    pub in_flight: u32,
    /// Of those, streams and upgraded connections: they last as long as somebody likes, and give no sample.
    pub streams: u32,
    /// The limit in force now.
    pub limit: u32,
    /// Waiting for this endpoint or for any.
    pub queued: u32,
    /// Integral of in-flight over time, slot-seconds.
    pub busy_seconds: f64,
    /// Integral of the limit over time, slot-seconds.
    pub limit_seconds: f64,
    /// Seconds in which in-flight was at the limit or requests waited for room.
    pub saturated_seconds: f64,
}

/// What the sensors say of the backend; every field is optional.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Readings {
    /// Requests the backend can run in parallel (workers x threads), configured or discovered.
    pub slots: Option<u32>,
    /// Connections in the backend's listen backlog that no worker has accepted yet.
    pub accept_queue: Option<u32>,
    /// What its CPU does.
    pub cpu: Option<CpuReading>,
    /// What its memory does.
    pub memory: Option<MemoryReading>,
}

/// The CPU of the backend over the last second or so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuReading {
    /// CPU in use over the CPU it may use (quota or cores), 0 to 1 and a little more.
    pub utilisation: f64,
    /// Cores it may use: the quota, or the machine's.
    pub cores: f64,
    /// Share of the enforcement periods in which the quota was used up, 0 to 1.
    pub throttled: f64,
    /// Time spent runnable without a core over time spent running; 0 when unknown.
    pub run_delay: f64,
    /// Threads that were runnable without a core, a mean; 0 when unknown.
    pub waiting: f64,
    /// Share of the time in which some task waited for CPU (PSI `some`), 0 to 1; 0 when unknown.
    pub pressure: f64,
    /// Processes that keep one core busy all by themselves: with Python, those held by the GIL.
    pub pinned: u32,
}

/// The memory of the backend now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryReading {
    /// The working set, bytes: what cannot be reclaimed.
    pub used: u64,
    /// What it may use, bytes.
    pub limit: u64,
    /// Share of the time in which every task waited for memory (PSI `full`), 0 to 1; 0 when unknown.
    pub pressure: f64,
    /// How often it ran into its limit (`memory.events` high, max; `failcnt`), ever: only its growth counts.
    pub hits: u64,
    /// How many of its processes were killed for want of memory (`oom_kill`), ever: only its growth counts.
    pub kills: u64,
}

/// Which law computes the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Stretch-AIMD, the default: additive growth while latency is flat, a cut when it is stretched.
    Aimd,
    /// The limit follows the ratio of the usual latency to the present one.
    Gradient,
    /// The queue inside the backend is kept between two bounds.
    Vegas,
    /// The limit is `initial`.
    Fixed,
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 4] = [
        Algorithm::Aimd,
        Algorithm::Gradient,
        Algorithm::Vegas,
        Algorithm::Fixed,
    ];

    /// Its word in the configuration, in metrics and in `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Aimd => "aimd",
            Algorithm::Gradient => "gradient",
            Algorithm::Vegas => "vegas",
            Algorithm::Fixed => "fixed",
        }
    }
}

/// How far the backend's resources bound the limit; `[limit.resources]` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resources {
    /// Whether its CPU does.
    pub cpu: bool,
    /// The share of the CPU above which the limit does not grow, 0 to 1.
    pub cpu_high: f64,
    /// Whether its memory does.
    pub memory: bool,
    /// The share of the memory limit above which the limit does not grow, 0 to 1.
    pub memory_high: f64,
    /// The share of the memory limit above which the limit falls, 0 to 1.
    pub memory_max: f64,
}

impl Default for Resources {
    fn default() -> Self {
        Resources {
            cpu: true,
            cpu_high: 0.90,
            memory: true,
            memory_high: 0.85,
            memory_max: 0.92,
        }
    }
}

/// The settings of a [`Controller`]; `[limit]` in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The law.
    pub algorithm: Algorithm,
    /// Where the limit starts, requests in flight.
    pub initial: u32,
    /// The limit never falls below this; 0 counts as 1.
    pub min: u32,
    /// The limit never rises above this; less than `min` counts as `min`.
    pub max: u32,
    /// Scales the additive increase a window: 1 = half a request, or 3 % of the limit if that is more.
    pub increase: f64,
    /// Factor on a drop.
    pub decrease: f64,
    /// Latency stretch above which the limit falls.
    pub tolerance: f64,
    /// How far the backend's resources count.
    pub resources: Resources,
    /// Laws that are computed on the same windows and only looked at.
    pub shadow: Vec<Algorithm>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            algorithm: Algorithm::Aimd,
            initial: 4,
            min: 1,
            max: 1000,
            increase: 1.0,
            decrease: 0.7,
            tolerance: 1.35,
            resources: Resources::default(),
            shadow: Vec::new(),
        }
    }
}

impl Settings {
    /// `min` and `max`, made consistent.
    fn bounds(&self) -> (u32, u32) {
        let min = self.min.max(1);
        (min, self.max.max(min))
    }

    fn clamp(&self, limit: u32) -> u32 {
        let (min, max) = self.bounds();
        limit.clamp(min, max)
    }
}

/// What holds the limit where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BoundBy {
    /// The backend has no more workers.
    Workers,
    /// The backend has no more CPU.
    Cpu,
    /// The backend has no more memory.
    Memory,
    /// More requests at once only make each of them slower.
    Latency,
    /// Requests wait in the kernel for a worker to accept them.
    AcceptQueue,
    /// The backend answers with errors of overload, or not at all.
    Errors,
    /// `min`, `max`, a fixed limit or the operator.
    Configured,
    /// Nothing: traffic seldom reaches the limit.
    Idle,
}

/// Who holds a limit that is [`BoundBy::Configured`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The operator.
    Hand,
    /// The law [`Algorithm::Fixed`].
    Fixed,
    /// `max`.
    Max,
    /// `min`.
    Min,
}

/// The figures a decision rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Answers and drops in the window.
    pub samples: u32,
    /// Signs of overload among them.
    pub drops: u32,
    /// Window latency over the unloaded latency of the same mix of routes; 1 while that is unknown.
    pub stretch: f64,
    /// Standard error of `stretch`.
    pub noise: f64,
    /// Work completed, in unloaded seconds a second.
    pub throughput: f64,
    /// Share of the window in which the limit was reached.
    pub limited_share: f64,
    /// Mean latency of the window's answers.
    pub mean_latency: Duration,
    /// Mean requests in flight.
    pub in_flight: f64,
    /// What the law alone wanted.
    pub law_limit: u32,
    /// What workers, accept queue, memory and `max` allowed.
    pub ceiling: u32,
    /// What the sensors said.
    pub readings: Readings,
}

/// One closed window and what followed from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// When it was taken.
    pub at: Instant,
    /// The limit before.
    pub from: u32,
    /// The limit from now on, requests in flight.
    pub limit: u32,
    /// What holds it there.
    pub bound_by: BoundBy,
    /// Why, as one word: a metric label, and by [`explain`] a line in `/status`.
    pub reason: &'static str,
    /// The figures of the last window.
    pub evidence: Evidence,
}

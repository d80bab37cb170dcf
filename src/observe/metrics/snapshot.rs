//! What the gate and the tuner know at the moment of a scrape.

use crate::{
    config::Class,
    control::{BoundBy, CurvePoint, Setting, usl::Usl},
    observe::labels::{CLASSES, class},
};

/// The state of the whole, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The endpoints of the configuration in force.
    pub endpoints: Vec<EndpointSnapshot>,
    /// How many requests may be in flight at once, at the endpoints that are sent any.
    pub limit: u32,
    /// Requests in the queue, by class (`class as usize`).
    pub queued: [u32; 5],
    /// Places in the queue.
    pub queue_capacity: u32,
    /// Slots that the traffic asked for, in flight, queued and refused: the mean of 15 s.
    pub demand_slots: f64,
    /// Share of the time in which the limit was reached: the mean of 15 s, 0 to 1.
    pub saturation_ratio: f64,
    /// Integral of in-flight over time, slot-seconds.
    pub busy_slot_seconds: f64,
    /// Integral of the limit over time, slot-seconds.
    pub limit_slot_seconds: f64,
    /// Seconds in which in-flight was at the limit or requests waited for room.
    pub saturated_seconds: f64,
    /// `reject.status`: exported as 0 from the start. 0 stands for the default, 503.
    pub reject_status: u16,
}

/// The state of one endpoint, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSnapshot {
    /// `host:port` or `unix:/path`: the same label that [`super::Metrics::endpoint`] was asked for.
    pub label: String,
    /// Permits taken.
    pub in_flight: u32,
    /// The limit in force.
    pub limit: u32,
    /// What holds the limit.
    pub bound_by: BoundBy,
    /// Who holds it, if it is the configuration.
    pub configured_by: Option<Setting>,
    /// The latency of an unloaded backend in seconds, once it is known.
    pub baseline_seconds: Option<f64>,
    /// Latency over the unloaded latency, once it is known.
    pub stretch_ratio: Option<f64>,
    /// Requests that the backend can run at once, and who says so (`configured`, …).
    pub slots: Option<(u32, &'static str)>,
    /// Where requests are steered to the workers with the least to do.
    pub steering: Option<SteeringSnapshot>,
    /// What else is seen of it from outside.
    pub sight: Sight,
    /// What was learned of latency and throughput by concurrency.
    pub curve: Vec<CurvePoint>,
    /// The law of scalability that fits the curve.
    pub capacity: Option<Usl>,
    /// The law in force.
    pub law: &'static str,
    /// What other laws would set, on the same traffic.
    pub shadows: Vec<(&'static str, u32)>,
    /// Whether the backend's memory grows while its requests do not.
    pub leaking: bool,
}

impl Snapshot {
    /// Requests in the queue, of all classes.
    pub fn queued_total(&self) -> u32 {
        self.queued.iter().sum()
    }

    /// Requests in the queue by class, with the name of the class.
    pub fn queued_by_class(&self) -> impl Iterator<Item = (&'static str, u32)> {
        CLASSES
            .iter()
            .map(|known: &Class| (class(*known), self.queued[*known as usize]))
    }
}

/// Whose the connections to one endpoint are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteeringSnapshot {
    /// Its worker processes.
    pub workers: Vec<WorkerSnapshot>,
    /// New connections of which it was asked whose they are before anything was sent.
    pub looked: u64,
    /// Those of them that were not used, since their worker was busy and another was not.
    pub turned_away: u64,
}

/// One worker process, as far as its connections tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerSnapshot {
    /// Its number.
    pub pid: u32,
    /// Requests on its connections.
    pub in_flight: u32,
    /// Its connections, in use or kept.
    pub connections: u32,
}

/// What the sensors see of one endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// Which signals there are.
    pub signals: Signals,
    /// Connections that the backend has not accepted yet.
    pub accept_queue: Option<u32>,
    /// CPU in use over the CPU that may be used.
    pub cpu_ratio: Option<f64>,
    /// Memory in use, bytes.
    pub memory_bytes: Option<u64>,
    /// Memory that may be used, bytes.
    pub memory_limit_bytes: Option<u64>,
    /// All of it, with where it is from or why it is missing, for `/status`.
    pub document: serde_json::Value,
}

/// Which signals of the backend are of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The accept queue, of a server that accepts only what it can work on.
    pub accept_queue: bool,
    /// CPU.
    pub cpu: bool,
    /// Memory against a limit.
    pub memory: bool,
    /// The kernel's stall times.
    pub psi: bool,
    /// How many requests it can run in parallel.
    pub slots: bool,
}

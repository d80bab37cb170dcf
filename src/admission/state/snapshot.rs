//! What the gate looks like from outside.

use std::time::Duration;

use super::{CLASSES, LaneId};

/// A lane's integrals over time; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LaneUsage {
    /// Of in-flight requests, slot-seconds.
    pub busy_seconds: f64,
    /// Of the limit, slot-seconds.
    pub limit_seconds: f64,
    /// Time in which the limit was reached or somebody waited.
    pub saturated_seconds: f64,
}

/// What one lane looks like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LaneSnapshot {
    /// Which.
    pub id: LaneId,
    /// Its limit.
    pub limit: u32,
    /// Whether requests are sent there: it is not on its way out, and healthy if any is.
    pub used: bool,
    /// Permits out.
    pub in_flight: u32,
    /// Its integrals up to now.
    pub usage: LaneUsage,
}

/// What the gate looks like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Each endpoint's lane, retired ones included until they are empty.
    pub lanes: Vec<LaneSnapshot>,
    /// The integrals of all lanes together, those that are gone included. The limit, and the saturation (a
    /// mean over lanes), cover only the lanes in use.
    pub usage: LaneUsage,
    /// Waiting, by class (in the order of [`Class`](crate::config::Class)).
    pub queued: [u32; CLASSES],
    /// The most that may wait now.
    pub capacity: usize,
    /// Whether the queue has stood for so long that the short bound applies.
    pub standing: bool,
    /// Whether new requests are refused because of a drain.
    pub closed: bool,
    /// Integral of the queue's length, request-seconds.
    pub queue_seconds: f64,
    /// The backend's unloaded time for a request; zero while it is unknown.
    pub service_time: Duration,
}

impl Snapshot {
    /// Permits out, on all lanes.
    pub fn in_flight(&self) -> u32 {
        sum(self.lanes.iter().map(|lane| lane.in_flight))
    }

    /// The sum of the limits of the lanes in use.
    pub fn limit(&self) -> u32 {
        sum(self.in_use().map(|lane| lane.limit))
    }

    /// Whether no lane in use has room.
    pub fn is_full(&self) -> bool {
        self.in_use().all(|lane| lane.in_flight >= lane.limit)
    }

    fn in_use(&self) -> impl Iterator<Item = &LaneSnapshot> {
        self.lanes.iter().filter(|lane| lane.used)
    }

    /// Waiting, in all classes.
    pub fn queued(&self) -> u32 {
        self.queued.iter().sum()
    }
}

pub(super) fn sum(counts: impl Iterator<Item = u32>) -> u32 {
    counts.fold(0, u32::saturating_add)
}

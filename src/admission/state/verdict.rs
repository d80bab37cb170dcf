//! What the gate decides.

use std::time::Instant;

use super::{LaneId, Seq};
use crate::admission::{Reason, Refusal};

/// What became of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It may go now.
    Admitted(Admitted),
    /// It waits, at most until the time given.
    Queued {
        /// Its place.
        seq: Seq,
        /// Its patience.
        expires: Instant,
    },
    /// It may not.
    Refused(Refusal),
}

/// A permit, as the state sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// The endpoint it is for.
    pub lane: LaneId,
    /// In flight there, this one included.
    pub in_flight: u32,
    /// Dry run: why it would have been refused.
    pub would_refuse: Option<Reason>,
}

/// The decision about somebody who waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go.
    Admitted(Admitted),
    /// Evicted for someone more important, or out of time.
    Refused(Refusal),
}

/// Decisions about waiters, in the order in which they were made.
pub type Verdicts = Vec<(u32, Verdict)>;

//! What a controller has learned, in a form that can be written down.

use serde::{Deserialize, Serialize};

/// What was learned of one backend endpoint; see [`Controller::remember`](super::Controller::remember).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// The slots that were known: with others, the rest is of no use.
    pub slots: Option<u32>,
    /// The law's limit, requests in flight.
    pub limit: u32,
    /// The unloaded latency of one unit of cost.
    pub scale: f64,
    /// The mean cost of a request.
    pub cost: f64,
    /// The mean latency of a request, seconds.
    pub latency: f64,
    /// The capacity curve.
    pub bins: Vec<RememberedBin>,
}

/// One bin of the capacity curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RememberedBin {
    /// Mean requests in flight.
    pub in_flight: f64,
    /// Mean latency, seconds.
    pub latency: f64,
    /// Mean cost.
    pub cost: f64,
    /// Mean squared cost.
    pub cost_squared: f64,
    /// Samples behind it, discounted.
    pub weight: f64,
}

impl Remembered {
    /// Whether every figure is one that could have been learned.
    pub(super) fn makes_sense(&self) -> bool {
        let positive = |v: f64| v.is_finite() && v > 0.0 && v < 1e9;
        self.limit > 0
            && self.bins.len() <= 64
            && [self.scale, self.cost, self.latency]
                .into_iter()
                .all(positive)
            && self.bins.iter().all(|bin| {
                [
                    bin.in_flight,
                    bin.latency,
                    bin.cost,
                    bin.cost_squared,
                    bin.weight,
                ]
                .into_iter()
                .all(positive)
            })
    }
}

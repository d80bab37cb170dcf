//! Vegas: the queue inside the backend, estimated from latency, is kept between two bounds.
//!
//! The idea is TCP Vegas's (L. Brakmo and L. Peterson, 1995), the bounds by the limit's logarithm are
//! those of Netflix's concurrency-limits, from its published description. What is added: windows
//! instead of single samples, slow start ends at the first queue, it grows only while traffic reaches
//! the limit, and the unloaded latency is the measured one.

use super::law::{LIMITED, Measured, overloaded};
use super::{BoundBy, Settings, reason};

/// The queue below which the limit grows, in logarithms of the limit.
const FEW: f64 = 1.0;
/// The queue above which it falls, in the same unit.
const MANY: f64 = 2.0;
/// Growth in slow start, a factor a window.
const SLOW_START: f64 = 1.5;

/// The state of the law.
#[derive(Clone, Debug)]
pub(super) struct Vegas {
    pub(super) limit: f64,
    pub(super) cause: BoundBy,
    slow_start: bool,
    /// The lowest latency of one unit of cost seen, for as long as none was measured at low load.
    lowest: f64,
}

impl Vegas {
    pub(super) fn new(limit: u32) -> Self {
        Vegas {
            limit: f64::from(limit),
            cause: BoundBy::Latency,
            slow_start: true,
            lowest: f64::INFINITY,
        }
    }

    pub(super) fn shrink(&mut self, to: f64) {
        self.slow_start = false;
        self.limit = self.limit.min(to);
    }

    /// What requests cost has been found out anew.
    pub(super) fn forget(&mut self) {
        self.lowest = f64::INFINITY;
    }

    pub(super) fn decide(&mut self, m: &Measured, settings: &Settings) -> &'static str {
        let step = self.limit.log10().floor().max(1.0);
        if overloaded(m) {
            self.cause = BoundBy::Errors;
            self.shrink(self.limit * settings.decrease.clamp(0.05, 0.99));
            return reason::DROPS;
        }
        let Some(ratio) = m.ratio.filter(|ratio| *ratio > 0.0) else {
            return reason::IDLE;
        };
        self.lowest = self.lowest.min(ratio);
        if m.limited < LIMITED {
            return reason::IDLE;
        }
        let unloaded = if m.known { m.scale } else { self.lowest };
        let queue = f64::from(m.point.limit) * (1.0 - unloaded / ratio).max(0.0);
        self.cause = BoundBy::Latency;
        if queue > MANY * step {
            self.slow_start = false;
            self.limit = (self.limit - step.max(0.5 * (queue - MANY * step))).max(1.0);
            return reason::LATENCY;
        }
        if queue > FEW * step {
            self.slow_start = false;
            return reason::HOLD;
        }
        if let Some(by) = m.veto {
            self.cause = by;
            return reason::vetoed(by);
        }
        if self.limit >= f64::from(m.ceiling) {
            return reason::HOLD;
        }
        let (grown, reason) = if self.slow_start {
            (SLOW_START * self.limit, reason::SLOW_START)
        } else {
            (self.limit + step, reason::INCREASE)
        };
        self.limit = grown.min(f64::from(m.ceiling)).max(self.limit);
        reason
    }
}

//! A gradient law: the limit follows the ratio of the usual latency to the present one, and may hold a
//! queue of the limit's square root beyond it.
//!
//! The rule is Gradient2's of Netflix's concurrency-limits, from its published description. What is
//! added: drops count; it grows only while traffic reaches the limit; and the long-term mean, which
//! follows congestion when left alone, is never taken for higher than the unloaded latency measured.

use super::law::{LIMITED, Measured, overloaded};
use super::{BoundBy, Settings, reason};

/// Windows over which the usual latency is averaged.
const MEMORY: f64 = 600.0;
/// Latency may be so many times the usual before the limit falls.
const TOLERANCE: f64 = 1.5;
/// The least gradient: at worst the limit halves, before smoothing.
const LEAST: f64 = 0.5;
/// The share of a window's verdict that is taken.
const SMOOTHING: f64 = 0.2;
/// When the usual latency is so many times the present one...
const TOO_HIGH: f64 = 2.0;
/// ... it falls by this factor a window.
const DECAY: f64 = 0.95;

/// The state of the law.
#[derive(Clone, Debug)]
pub(super) struct Gradient {
    pub(super) limit: f64,
    pub(super) cause: BoundBy,
    /// The usual latency of one unit of cost.
    usual: f64,
    windows: f64,
}

impl Gradient {
    pub(super) fn new(limit: u32) -> Self {
        Gradient {
            limit: f64::from(limit),
            cause: BoundBy::Latency,
            usual: 0.0,
            windows: 0.0,
        }
    }

    /// What requests cost has been found out anew.
    pub(super) fn forget(&mut self) {
        self.windows = 0.0;
    }

    pub(super) fn decide(&mut self, m: &Measured, settings: &Settings) -> &'static str {
        if overloaded(m) {
            self.cause = BoundBy::Errors;
            self.limit *= settings.decrease.clamp(0.05, 0.99);
            return reason::DROPS;
        }
        let Some(ratio) = m.ratio.filter(|ratio| *ratio > 0.0) else {
            return reason::IDLE;
        };
        self.windows = (self.windows + 1.0).min(MEMORY);
        self.usual += (ratio - self.usual) / self.windows;
        if self.usual > TOO_HIGH * ratio {
            self.usual *= DECAY;
        }
        if m.limited < LIMITED {
            return reason::IDLE;
        }
        let unloaded = if m.known {
            self.usual.min(m.scale)
        } else {
            self.usual
        };
        let gradient = (TOLERANCE * unloaded / ratio).clamp(LEAST, 1.0);
        // Not latency moves it there.
        self.limit = self.limit.min(f64::from(m.ceiling));
        let before = self.limit;
        let target = (gradient * before + before.sqrt()).min(f64::from(m.ceiling));
        let wanted = before + SMOOTHING * (target - before);
        if wanted > before
            && let Some(by) = m.veto
        {
            self.cause = by;
            return reason::vetoed(by);
        }
        self.limit = wanted;
        self.cause = BoundBy::Latency;
        match wanted - before {
            change if change > 0.05 => reason::INCREASE,
            change if change < -0.05 => reason::LATENCY,
            _ => reason::HOLD,
        }
    }
}

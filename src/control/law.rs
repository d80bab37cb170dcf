//! The laws behind one interface: a closed window in, a limit and a reason out.
//!
//! To add one: a file with its state and `decide`, a variant here, and its word in
//! [`Algorithm`](super::Algorithm).

use super::aimd::Aimd;
use super::curve::Curve;
use super::elastic::Point;
use super::gradient::Gradient;
use super::vegas::Vegas;
use super::window::Pace;
use super::{Algorithm, BoundBy, NEGLIGIBLE, Settings, reason};

/// Growth needs the limit to be reached for this share of the window.
pub(super) const LIMITED: f64 = 0.30;
/// Least share of drops in a window that counts as overload.
const DROP_SHARE: f64 = 0.10;
/// And their least number.
const DROPS: u32 = 2;

/// A baseline is sure when its own standard error is no more than this part of it.
const SURE: f64 = 0.2;

/// A closed window as a law sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) point: Point,
    pub(super) samples: u32,
    pub(super) drops: u32,
    /// Whether there is a baseline; without one the stretch is 1.
    pub(super) known: bool,
    /// The baseline: unloaded latency of one unit of cost.
    pub(super) scale: f64,
    /// The window's latency of one unit of cost; none without a success.
    pub(super) ratio: Option<f64>,
    /// Standard error of the stretch, baseline included.
    pub(super) sigma: f64,
    /// Share of the window at the limit.
    pub(super) limited: f64,
    /// Mean latency, seconds.
    pub(super) latency: f64,
    /// Whether all that the backend did of late was for clients who had left.
    pub(super) in_vain: bool,
    /// The most that makes sense: slots, memory or `max`.
    pub(super) ceiling: u32,
    /// Fewer than this would only idle workers, as far as the sensors can tell.
    pub(super) floor: Option<u32>,
    /// The resource that forbids growth.
    pub(super) veto: Option<BoundBy>,
    /// Whether a CPU that is short has room for more nevertheless, if that is known.
    pub(super) cpu_room: Option<bool>,
}

impl Measured {
    /// Whether nobody minds such a latency, whatever its stretch: see [`NEGLIGIBLE`]. Without a success there is none.
    pub(super) fn is_negligible(&self) -> bool {
        self.ratio.is_some() && self.latency < NEGLIGIBLE.as_secs_f64()
    }

    /// Whether the baseline rests on enough to hold against what a later one says.
    pub(super) fn is_sure(&self) -> bool {
        self.known && self.sigma.powi(2) - self.point.noise.powi(2) <= SURE.powi(2)
    }

    /// Moves the baseline by a factor.
    pub(super) fn rebase(&mut self, factor: f64, curve: &mut Curve) {
        self.scale *= factor;
        self.point.stretch /= factor;
        curve.rebase(self.scale, factor, self.point.in_flight, self.point.at);
    }
}

/// Whether the window holds so many drops that the limit has to fall.
pub(super) fn overloaded(m: &Measured) -> bool {
    m.drops >= DROPS && m.point.drops >= DROP_SHARE
}

/// A law and its state.
#[derive(Clone, Debug)]
pub(super) enum Law {
    Aimd(Box<Aimd>),
    Gradient(Gradient),
    Vegas(Vegas),
    Fixed,
}

impl Law {
    pub(super) fn new(algorithm: Algorithm, limit: u32) -> Self {
        match algorithm {
            Algorithm::Aimd => Law::Aimd(Box::new(Aimd::new(limit))),
            Algorithm::Gradient => Law::Gradient(Gradient::new(limit)),
            Algorithm::Vegas => Law::Vegas(Vegas::new(limit)),
            Algorithm::Fixed => Law::Fixed,
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Law::Aimd(_) => Algorithm::Aimd,
            Law::Gradient(_) => Algorithm::Gradient,
            Law::Vegas(_) => Algorithm::Vegas,
            Law::Fixed => Algorithm::Fixed,
        }
    }

    /// The limit that it wants, in whole requests; `initial` when fixed.
    pub(super) fn limit(&self, settings: &Settings) -> u32 {
        match self {
            Law::Aimd(aimd) => aimd.limit(),
            Law::Gradient(gradient) => whole(gradient.limit),
            Law::Vegas(vegas) => whole(vegas.limit),
            Law::Fixed => settings.initial,
        }
    }

    /// The same without the trial that it may be in.
    pub(super) fn settled_limit(&self, settings: &Settings) -> u32 {
        match self {
            Law::Aimd(aimd) => aimd.settled_limit(),
            _ => self.limit(settings),
        }
    }

    /// What last stopped the limit from growing.
    pub(super) fn cause(&self) -> BoundBy {
        match self {
            Law::Aimd(aimd) => aimd.cause(),
            Law::Gradient(gradient) => gradient.cause,
            Law::Vegas(vegas) => vegas.cause,
            Law::Fixed => BoundBy::Configured,
        }
    }

    /// What requests cost has been found out anew: nothing compares with what was measured before.
    pub(super) fn forget(&mut self) {
        match self {
            Law::Aimd(aimd) => aimd.forget(),
            Law::Gradient(gradient) => gradient.forget(),
            Law::Vegas(vegas) => vegas.forget(),
            Law::Fixed => {}
        }
    }

    /// How long the current window is to be.
    pub(super) fn pace(&self) -> Pace {
        match self {
            Law::Aimd(aimd) => aimd.pace(),
            _ => Pace::Usual,
        }
    }

    /// Keeps the limit within changed bounds.
    pub(super) fn clamp(&mut self, min: u32, max: u32) {
        let clamp = |limit: &mut f64| *limit = limit.clamp(f64::from(min), f64::from(max));
        match self {
            Law::Aimd(aimd) => aimd.clamp(min, max),
            Law::Gradient(gradient) => clamp(&mut gradient.limit),
            Law::Vegas(vegas) => clamp(&mut vegas.limit),
            Law::Fixed => {}
        }
    }

    /// A resource is short: the limit falls to this.
    pub(super) fn shrink(&mut self, to: f64) {
        match self {
            Law::Aimd(aimd) => aimd.shrink(to),
            Law::Gradient(gradient) => gradient.limit = gradient.limit.min(to),
            Law::Vegas(vegas) => vegas.shrink(to),
            Law::Fixed => {}
        }
    }

    /// What held the limit is gone: it rises to this.
    pub(super) fn raise(&mut self, to: f64) {
        match self {
            Law::Aimd(aimd) => aimd.raise(to),
            Law::Gradient(gradient) => gradient.limit = gradient.limit.max(to),
            Law::Vegas(vegas) => vegas.limit = vegas.limit.max(to),
            Law::Fixed => {}
        }
    }

    /// Takes a closed window, moves the limit, and says why.
    pub(super) fn decide(
        &mut self,
        m: &Measured,
        curve: &mut Curve,
        settings: &Settings,
    ) -> &'static str {
        let reason = match self {
            Law::Aimd(aimd) => aimd.decide(m, curve, settings),
            Law::Gradient(gradient) => gradient.decide(m, settings),
            Law::Vegas(vegas) => vegas.decide(m, settings),
            Law::Fixed => reason::CONFIGURED,
        };
        let (min, max) = settings.bounds();
        self.clamp(min, max);
        reason
    }
}

/// A limit in whole requests; at least 1.
pub(super) fn whole(limit: f64) -> u32 {
    ((limit + 1e-9) as u32).max(1)
}

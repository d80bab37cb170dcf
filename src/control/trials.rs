//! Looking around: a short dip measures the unloaded latency again, an up-probe looks for capacity that
//! latency does not show. Both are paired tests, seldom, and at times of their own for each of several
//! tidegates before one backend.

use std::time::{Duration, Instant};

use super::curve::{Curve, LOW_SHARE};
use super::elastic::{Decreases, Point, Steady, Verdict};
use super::law::{LIMITED, Measured};
use super::reason;
use super::window::Pace;

/// Least time between dips.
const DIP_EVERY: Duration = Duration::from_secs(15);
/// The same in mean latencies.
const DIP_EVERY_LATENCIES: f64 = 100.0;
/// Each dip that finds what was known doubles the time to the next, so often at most.
const DIP_PATIENCE: u32 = 2;
/// Least time between them while the baseline is known to be too high: it may be anything below.
const DIP_SUSPECT: Duration = Duration::from_secs(2);
/// A dip needs the limit to be reached for this share of the window: below capacity, low load comes by
/// itself.
const DIP_LIMITED: f64 = 0.6;
/// A dip alone raises the baseline by no more than this factor.
const HIGHER: f64 = 1.05;
/// An up-probe raises the limit by this factor.
const PROBE: f64 = 1.25;
/// And by this factor far below the recent high: the larger the step, the sooner it is told from
/// chance.
const PROBE_FAR: f64 = 1.6;
/// Below this part of the recent high, a probe is more likely to win.
const PROBE_BELOW: f64 = 0.6;
/// It wins when throughput follows more than this part of the rise. With 0.6, one of three that share a
/// full backend wins by taking from the others.
const PROBE_GAIN: f64 = 0.8;
/// The standard error by which it must be more or less than that...
const PROBE_ERRORS: f64 = 1.0;
/// ... until so many windows have been seen.
const PROBE_WINDOWS: f64 = 6.0;
/// Windows that it takes at least.
const PROBE_WINDOWS_LEAST: f64 = 2.0;
/// Least time between up-probes below the recent high.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// The same elsewhere; it doubles with each lost one...
const PROBE_SELDOM: Duration = Duration::from_secs(10);
/// ... so many times at most.
const PROBE_PATIENCE: u32 = 3;
/// Weak proof raises the baseline to no more than so many times the lowest of late: each of several
/// tidegates before one backend sees some by chance now and then, and believing all of it would raise
/// their limits for ever.
const RAISED_MOST: f64 = 2.0;
/// That is the lowest of this time, at least, and of twice as long at most: a backend that gets slower by
/// a tenth a minute under a standing overload is still followed.
const LOWEST_OVER: Duration = Duration::from_secs(200);
/// What a lost up-probe leaves of the recent high.
const LOST: f64 = 0.8;
/// Half-life of the recent high.
const HIGH_HALF_LIFE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trial {
    /// The limit is low to measure the baseline; then back to this.
    Dip {
        before: Option<Point>,
        back: f64,
        /// The baseline, if it was known for sure.
        known: Option<f64>,
    },
    /// The limit is high to look for capacity.
    Probe {
        before: Steady,
        back: f64,
        during: Option<Steady>,
    },
}

/// What a trial sets the limit to, and why.
pub(super) type Move = (f64, &'static str);

/// The trial under way, and what earlier ones came to.
#[derive(Clone, Debug)]
pub(super) struct Trials {
    trial: Option<Trial>,
    /// The highest limit of late.
    high: f64,
    last_dip: Option<Instant>,
    /// Dips in a row that found what was known.
    dips_alike: u32,
    /// A busy backend was faster than the baseline: there may be a lower one yet.
    suspect: bool,
    /// The last up-probe, or where there has been none, when one was first thought of.
    last_probe: Option<Instant>,
    /// Up-probes in a row that found nothing.
    probes_lost: u32,
    lowest: Lowest,
}

/// The lowest baseline of late.
#[derive(Clone, Copy, Debug)]
struct Lowest {
    /// Of this stretch of time, and of the one before.
    now: f64,
    before: f64,
    since: Option<Instant>,
}

impl Lowest {
    fn new() -> Self {
        Lowest {
            now: f64::INFINITY,
            before: f64::INFINITY,
            since: None,
        }
    }

    /// The highest baseline that weak proof is good for, over this one.
    fn room(&self, scale: f64) -> f64 {
        RAISED_MOST * self.now.min(self.before) / scale
    }

    fn note(&mut self, scale: f64, at: Instant) {
        let since = *self.since.get_or_insert(at);
        if at.saturating_duration_since(since) >= LOWEST_OVER {
            self.before = std::mem::replace(&mut self.now, f64::INFINITY);
            self.since = Some(at);
        }
        self.now = self.now.min(scale);
    }
}

impl Trials {
    pub(super) fn new(limit: f64) -> Self {
        Trials {
            trial: None,
            high: limit,
            last_dip: None,
            dips_alike: 0,
            suspect: false,
            last_probe: None,
            probes_lost: 0,
            lowest: Lowest::new(),
        }
    }

    /// Whether the baseline was only inferred and is to be measured.
    pub(super) fn suspects(&self) -> bool {
        self.suspect
    }

    /// How long the current window is to be.
    pub(super) fn pace(&self) -> Pace {
        match self.trial {
            Some(Trial::Dip { .. }) => Pace::Dip,
            _ => Pace::Usual,
        }
    }

    /// Keeps where to return to within changed bounds.
    pub(super) fn clamp(&mut self, min: f64, max: f64) {
        if let Some(Trial::Dip { back, .. } | Trial::Probe { back, .. }) = &mut self.trial {
            *back = back.clamp(min, max);
        }
    }

    /// The limit is too high as it is: without an up-probe it is this. (A dip has a lower one, and goes on.)
    pub(super) fn stop_probing(&mut self, limit: f64) -> f64 {
        let Some(Trial::Probe { back, .. }) = self.trial else {
            return limit;
        };
        self.abandon();
        limit.min(back)
    }

    /// Where the limit is when the trial under way, if there is one, is over.
    pub(super) fn back(&self) -> Option<f64> {
        match self.trial? {
            Trial::Dip { back, .. } | Trial::Probe { back, .. } => Some(back),
        }
    }

    /// What requests cost has been found out anew: nothing compares with what was measured before. The limit is then
    /// this.
    pub(super) fn forget(&mut self, limit: f64) -> f64 {
        if let Some(Trial::Dip { before, .. }) = &mut self.trial {
            *before = None;
        }
        self.lowest = Lowest::new();
        self.stop_probing(limit)
    }

    /// The limit is moved for another reason.
    pub(super) fn abandon(&mut self) {
        self.trial = None;
    }

    /// Notes the baseline in this window. Low traffic measures it as well as a dip does, and so ends a
    /// suspicion.
    pub(super) fn note(&mut self, m: &Measured, curve: &Curve) {
        if m.is_sure() {
            self.lowest.note(m.scale, m.point.at);
        }
        if m.limited < LIMITED && !curve.stale(m.point.limit, m.point.at) {
            self.suspect = false;
        }
    }

    /// As much of a rise of the baseline as weak proof is good for, if any.
    pub(super) fn believed(&self, m: &Measured, rise: f64) -> Option<f64> {
        let room = self.lowest.room(m.scale);
        (room > 1.0).then(|| rise.min(room))
    }

    /// There is strong proof that the backend became slower.
    pub(super) fn proven_slower(&mut self) {
        self.lowest = Lowest::new();
    }

    /// The recent high fades.
    pub(super) fn fade(&mut self, passed: Duration) {
        self.high *= 0.5_f64.powf(passed.as_secs_f64() / HIGH_HALF_LIFE.as_secs_f64());
    }

    /// The limit is this now.
    pub(super) fn reached(&mut self, limit: f64) {
        self.high = self.high.max(limit);
    }

    /// The baseline has just been inferred from a busy backend: a dip is to measure it.
    pub(super) fn doubt(&mut self, m: &Measured, curve: &mut Curve) {
        curve.doubt(m.point.limit);
        self.suspect = m.point.limit > 1;
    }

    /// A window of the trial under way, if there is one; the limit is `limit`. Drops beyond the usual end an up-probe
    /// at once.
    pub(super) fn take(
        &mut self,
        m: &mut Measured,
        limit: f64,
        dropping: bool,
        curve: &mut Curve,
    ) -> Option<Move> {
        match self.trial.take()? {
            Trial::Dip {
                before,
                back,
                known,
            } => {
                self.last_dip = Some(m.point.at);
                let known = known.filter(|_| before.is_some() && m.known && !self.suspect);
                let alike = known.is_some() && (m.point.stretch - 1.0).abs() <= 0.1 + m.sigma;
                self.dips_alike = if alike { self.dips_alike + 1 } else { 0 };
                self.suspect = false;
                Some((back, self.dipped(m, before, known, curve)))
            }
            Trial::Probe { back, .. } if dropping => {
                self.last_probe = Some(m.point.at);
                Some(self.lost(back))
            }
            Trial::Probe {
                before,
                back,
                during,
            } => {
                let during = Steady::with(during, &m.point);
                Some(self.probed(m, limit, before, back, during, curve))
            }
        }
    }

    /// Neither flat nor stretched: is the baseline old, or is there more to be had?
    pub(super) fn look_around(
        &mut self,
        m: &Measured,
        limit: f64,
        steady: Option<Steady>,
        curve: &Curve,
    ) -> Option<Move> {
        let now = m.point.at;
        let since = |at: Instant| now.saturating_duration_since(at);
        let patience = DIP_EVERY * (1 << self.dips_alike.min(DIP_PATIENCE));
        let suspect = self.suspect || curve.unmeasured(m.point.limit);
        let jitter = jitter(&m.point);
        let pause = if suspect {
            DIP_SUSPECT.as_secs_f64()
        } else {
            jitter * (patience.as_secs_f64()).max(DIP_EVERY_LATENCIES * m.latency)
        };
        if m.point.limit > 1
            && m.limited >= DIP_LIMITED
            && (suspect || curve.stale(m.point.limit, now))
            && self
                .last_dip
                .is_none_or(|at| since(at).as_secs_f64() > pause)
        {
            self.trial = Some(Trial::Dip {
                before: m.known.then_some(m.point),
                back: limit,
                known: m.is_sure().then_some(m.scale),
            });
            self.last_dip = Some(now);
            let low = (LOW_SHARE * f64::from(m.point.limit)).floor().max(1.0);
            return Some((low, reason::PROBE_DOWN));
        }
        let far = limit < PROBE_BELOW * self.high;
        let every = if far {
            PROBE_EVERY
        } else {
            PROBE_SELDOM.mul_f64(jitter) * (1 << self.probes_lost.min(PROBE_PATIENCE))
        };
        let last_probe = *self.last_probe.get_or_insert(now);
        if let Some(before) = steady
            && before.windows >= PROBE_WINDOWS_LEAST
            && m.point.limit < m.ceiling
            && m.veto.is_none()
            && since(last_probe) > every
        {
            self.trial = Some(Trial::Probe {
                before,
                back: limit,
                during: None,
            });
            self.last_probe = Some(now);
            let in_force = f64::from(m.point.limit);
            let factor = if far { PROBE_FAR } else { PROBE };
            let high = (factor * in_force)
                .max(in_force + 1.0)
                .min(f64::from(m.ceiling));
            return Some((high, reason::PROBE_UP));
        }
        None
    }

    /// A window of an up-probe: did throughput follow?
    fn probed(
        &mut self,
        m: &mut Measured,
        limit: f64,
        before: Steady,
        back: f64,
        during: Steady,
        curve: &mut Curve,
    ) -> Move {
        self.last_probe = Some(m.point.at);
        let load = during.in_flight / before.in_flight - 1.0;
        let gain = (during.work / before.work - 1.0) / load;
        let error = PROBE_ERRORS * during.noise().hypot(before.noise()) / load;
        let undecided = during.windows < PROBE_WINDOWS
            && (during.windows < PROBE_WINDOWS_LEAST || (gain - PROBE_GAIN).abs() < error);
        if load > 0.05 && undecided {
            self.trial = Some(Trial::Probe {
                before,
                back,
                during: Some(during),
            });
            return (limit, reason::PROBE_UP);
        }
        if load > 0.05
            && gain >= PROBE_GAIN
            && let Some(rise) = self.believed(m, before.stretch.max(1.0))
        {
            // More throughput for more load: it was not queueing that stretched latency.
            m.rebase(rise, curve);
            self.doubt(m, curve);
            self.probes_lost = 0;
            return (limit, reason::REBASE);
        }
        self.lost(back)
    }

    fn lost(&mut self, back: f64) -> Move {
        self.high *= LOST;
        self.probes_lost += 1;
        (back, reason::RESTORE)
    }

    /// The end of a dip. Its samples are in the curve already; as a paired test it tells whether the
    /// backend itself got slower. Without that proof a higher baseline than the one that was `known` is
    /// not believed: somebody else may keep the backend busy, and believing it would be a ratchet.
    fn dipped(
        &self,
        m: &mut Measured,
        before: Option<Point>,
        known: Option<f64>,
        curve: &mut Curve,
    ) -> &'static str {
        let Some(before) = before.filter(|_| m.known) else {
            return reason::RESTORE;
        };
        let mut test = Decreases::default();
        test.push(before, true);
        if matches!(
            test.judge(&m.point),
            Verdict::Slower(_) | Verdict::SeemsSlower
        ) {
            // Few samples: half the way.
            if m.point.stretch > 1.0 + 2.0 * m.sigma
                && let Some(rise) = self.believed(m, m.point.stretch.sqrt())
            {
                m.rebase(rise, curve);
                return reason::REBASE;
            }
            return reason::RESTORE;
        }
        let room = self.lowest.room(m.scale);
        let most = known.map_or(room, |known| room.min(HIGHER * known / m.scale));
        if most < 1.0 {
            m.rebase(most, curve);
        }
        reason::RESTORE
    }
}

/// A factor between 0.8 and 1.2, from what was measured and so different for each of several that share
/// a backend: they should not look around at the same time.
fn jitter(point: &Point) -> f64 {
    let mixed =
        (point.work.to_bits() ^ point.in_flight.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    0.8 + 0.4 * (mixed >> 40) as f64 / f64::from(1_u32 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_proof_raises_the_baseline_only_so_far_and_the_past_is_forgotten() {
        let at = crate::clock::now();
        let mut lowest = Lowest::new();
        assert_eq!(lowest.room(1.0), f64::INFINITY, "nothing is known yet");
        lowest.note(0.05, at);
        lowest.note(0.06, at + Duration::from_secs(1));
        assert!((lowest.room(0.06) - 0.05 * RAISED_MOST / 0.06).abs() < 1e-9);
        assert!(lowest.room(0.12) < 1.0, "as high as is believed");
        lowest.note(0.12, at + LOWEST_OVER);
        assert!(lowest.room(0.12) < 1.0, "the stretch before still counts");
        lowest.note(0.12, at + 2 * LOWEST_OVER);
        assert!((lowest.room(0.12) - RAISED_MOST).abs() < 1e-9);
    }
}

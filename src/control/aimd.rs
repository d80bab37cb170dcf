//! Stretch-AIMD, the default law: grow additively while latency is flat and the limit is reached, fall
//! multiplicatively when latency is stretched or the backend drops requests, and let paired tests
//! decide what the baseline is.

use std::time::{Duration, Instant};

use super::curve::Curve;
use super::elastic::{Decreases, Point, SPARE, Steady, Verdict, busy};
use super::law::{LIMITED, Measured, overloaded, whole};
use super::trials::Trials;
use super::window::Pace;
use super::{BoundBy, Settings, reason};

/// Growth stops at this part of the tolerated stretch: 1.12 of 1.35.
const FLAT_PART: f64 = 0.343;
/// A decrease aims at this part of the tolerated stretch: 1.20 of 1.35.
const AIM_PART: f64 = 0.571;
/// The deepest decrease by latency, a factor.
const DEEPEST: f64 = 0.70;
/// The lightest.
const LIGHTEST: f64 = 0.95;
/// At a stretch of this many tolerances a deeper cut is safe: if it was wrong, a rebase undoes it.
const FAR: f64 = 3.0;
/// That cut, a factor.
const DEEPEST_FAR: f64 = 0.50;
/// Throughput is kept when at least this share of the best in the run of decreases remains: then
/// the higher limits were no good.
const KEPT_WORK: f64 = 0.85;
/// Growth a window in slow start, as TCP's.
const SLOW_START: f64 = 2.0;
/// Slow start ends when throughput follows less than this part of the growth.
const SLOW_START_GAIN: f64 = 0.25;
/// Where slow start steps back to, of the limit before.
const STEP_BACK: f64 = 1.1;
/// The additive step a window, in requests.
const STEP: f64 = 0.5;
/// Or this share of the limit, if that is more.
const STEP_SHARE: f64 = 0.03;
/// After so many growths in a row each step is twice the last...
const PATIENT_STEPS: u32 = 1;
/// ... up to this share of the limit.
const STEP_MOST: f64 = 0.25;
/// Latency stretched by no more than this is that of an idle backend.
const IDLE_STRETCH: f64 = 1.06;
/// The share of a limit that failed which is remembered as good.
const GOOD: f64 = 0.9;
/// A limit that latency has just refused is not tried again for this long.
const REFUSED: Duration = Duration::from_secs(2);
/// The limit grows while no more requests seem to wait than this times the square root of the limit: that
/// many have to wait so that workers which come free at random do not idle, however many there are (the
/// square-root rule; Halfin and Whitt 1981, <https://doi.org/10.1287/opre.29.3.567>).
const ROOM: f64 = 0.5;
/// If after this many windows at one limit it is still not clear what the last cut has brought, more windows
/// will not tell; a deeper cut will.
const UNSURE_WINDOWS: f64 = 5.0;
/// Shrinkage a window while traffic does not reach a limit at which latency is stretched.
const UNREACHED: f64 = 0.95;
/// With fewer in flight than this, in the mean, requests seldom meet: no limit makes them faster.
const ALONE: f64 = 1.0;
/// Gain of the share of drops that are not ours, a window.
const DROP_GAIN: f64 = 0.05;
/// Standard errors above that share that count as overload.
const DROP_ERRORS: f64 = 3.0;

/// Whether no more wait than are needed. By Little's law, those in flight beyond the ones worked on wait.
fn has_room(point: &Point) -> bool {
    let limit = f64::from(point.limit);
    limit * (1.0 - 1.0 / point.stretch.max(1.0)) <= ROOM * limit.sqrt()
}

/// The state of the law.
#[derive(Clone, Debug)]
pub(super) struct Aimd {
    limit: f64,
    slow_start: bool,
    /// The last limit that worked, once there was a decrease.
    good: Option<f64>,
    refused: Option<(u32, Instant)>,
    growths: u32,
    decreases: Decreases,
    last: Option<Point>,
    /// The windows at the limit in force.
    steady: Option<Steady>,
    /// Whether the last window was one in which the backend changed.
    surprised: bool,
    /// The current window follows a deep cut.
    testing: bool,
    trials: Trials,
    /// Share of drops that no limit prevents, and what it was when found.
    failing: f64,
    failing_most: f64,
    cause: BoundBy,
}

impl Aimd {
    pub(super) fn new(limit: u32) -> Self {
        let limit = f64::from(limit);
        Aimd {
            limit,
            slow_start: true,
            good: None,
            refused: None,
            growths: 0,
            decreases: Decreases::default(),
            last: None,
            steady: None,
            surprised: false,
            testing: false,
            trials: Trials::new(limit),
            failing: 0.0,
            failing_most: 0.0,
            cause: BoundBy::Latency,
        }
    }

    /// The limit in whole requests.
    pub(super) fn limit(&self) -> u32 {
        whole(self.limit)
    }

    /// The same when the trial under way is over.
    pub(super) fn settled_limit(&self) -> u32 {
        whole(self.trials.back().unwrap_or(self.limit))
    }

    /// What last stopped the limit from growing.
    pub(super) fn cause(&self) -> BoundBy {
        self.cause
    }

    /// What requests cost has been found out anew: nothing compares with what was measured before.
    pub(super) fn forget(&mut self) {
        self.limit = self.trials.forget(self.limit);
        self.decreases.clear();
        self.steady = None;
        self.last = None;
    }

    /// How long the current window is to be.
    pub(super) fn pace(&self) -> Pace {
        match self.trials.pace() {
            Pace::Usual if self.testing => Pace::Test,
            pace => pace,
        }
    }

    /// Keeps the limit within changed bounds.
    pub(super) fn clamp(&mut self, min: u32, max: u32) {
        self.limit = self.limit.clamp(f64::from(min), f64::from(max));
        self.trials.clamp(f64::from(min), f64::from(max));
    }

    /// A resource is short: the limit falls to this.
    pub(super) fn shrink(&mut self, to: f64) {
        self.slow_start = false;
        self.growths = 0;
        self.limit = self.trials.stop_probing(self.limit).min(to);
        self.trials.abandon();
    }

    /// What held the limit is gone: it rises to this.
    pub(super) fn raise(&mut self, to: f64) {
        self.trials.abandon();
        self.decreases.clear();
        self.refused = None;
        self.limit = self.limit.max(to);
    }

    /// Takes a closed window, moves the limit, and says why.
    pub(super) fn decide(
        &mut self,
        m: &Measured,
        curve: &mut Curve,
        settings: &Settings,
    ) -> &'static str {
        let mut m = *m;
        let passed = self
            .last
            .map_or(Duration::ZERO, |last| m.point.at.duration_since(last.at));
        self.trials.fade(passed);
        self.trials.note(&m, curve);
        self.steady = Some(Steady::with(self.steady, &m.point));
        let scale = m.scale;
        let reason = self.judge(&mut m, curve, settings);
        if m.scale != scale {
            // What those windows say is in terms of the baseline before.
            self.steady = None;
        }
        self.trials.reached(self.limit);
        self.clamp(settings.min.max(1), settings.max.max(settings.min.max(1)));
        self.last = Some(m.point);
        reason
    }

    fn judge(&mut self, m: &mut Measured, curve: &mut Curve, settings: &Settings) -> &'static str {
        self.testing = false;
        let dropping = self.dropping(m);
        if m.in_vain {
            self.limit = self.trials.stop_probing(self.limit);
        }
        if let Some((limit, reason)) = self.trials.take(m, self.limit, dropping, curve) {
            self.limit = limit;
            if reason == reason::REBASE {
                self.decreases.clear();
            }
            return reason;
        }
        let excess = settings.tolerance.max(1.01) - 1.0;
        let flat = 1.0 + FLAT_PART * excess;
        let aim = 1.0 + AIM_PART * excess;
        let limited = m.limited >= LIMITED;

        // A busy backend is no faster than an idle one: the baseline is stale. (What is measured at low load goes into
        // the baseline itself.)
        let low = m.point.in_flight <= f64::from(Curve::low(m.point.limit));
        if m.known && !low && m.point.stretch + 2.0 * m.sigma + 0.05 < 1.0 {
            let factor = (m.point.stretch + m.sigma).min(1.0);
            m.rebase(factor, curve);
            self.trials.doubt(m, curve);
        }
        let negligible = m.is_negligible();
        // It takes stronger evidence to go below the number of workers while it is not the CPU that requests
        // wait for.
        let held = m
            .floor
            .filter(|_| m.point.stretch <= FAR * settings.tolerance);
        let below = |limit: u32| held.is_some_and(|floor| limit < floor);
        let stretched = m.known
            && !negligible
            && m.point.stretch > settings.tolerance.max(1.01) + m.sigma
            && !below(m.point.limit.saturating_sub(1));
        // While latency is flat the limit grows whatever the baseline: a dip can wait until it is not.
        let suspect = self.trials.suspects() && m.point.stretch > flat;
        if limited
            && !dropping
            && (suspect || !(m.known || self.slow_start))
            && let Some(reason) = self.look_around(m, curve)
        {
            return reason;
        }
        // A window that ended early because clients had left proves nothing by its latencies.
        if limited
            && (!m.in_vain || m.point.limit == 1)
            && let Some(reason) = self.rebase(m, curve, dropping, stretched)
        {
            return reason;
        }
        if dropping {
            self.cause = BoundBy::Errors;
            self.decrease(m, settings.decrease.clamp(0.05, 0.99), 1.0, limited);
            return reason::DROPS;
        }
        if m.ratio.is_none() {
            // Nothing was answered: that is no room.
            self.growths = 0;
            return reason::HOLD;
        }
        if stretched && (limited || m.point.in_flight >= ALONE) {
            self.cause = BoundBy::Latency;
            let is_surprise = || self.last.is_some_and(|last| m.point.surprises(&last));
            if limited && !m.in_vain && is_surprise() {
                // The backend has changed within this window: the next one tells by how much.
                self.decreases.surprised(m.point);
                self.surprised = true;
                self.steady = None;
                return reason::HOLD;
            }
            // After a surprise, one deep cut tells a slow backend from a full one at once.
            let surprised = std::mem::take(&mut self.surprised);
            let far = surprised || m.in_vain || m.point.stretch > FAR * settings.tolerance;
            let deepest = if m.in_vain {
                0.0 // nobody has anything to lose
            } else if far {
                DEEPEST_FAR
            } else {
                DEEPEST
            };
            let factor = (aim / m.point.stretch).clamp(deepest, LIGHTEST);
            // A lower limit would idle a worker.
            let least = busy(m.point.worked(), m.point.stretch).max(held.map_or(1.0, f64::from));
            if least < f64::from(m.point.limit) {
                self.decrease(m, factor, least, limited);
                self.testing = far;
                return reason::LATENCY;
            }
        }
        if !limited {
            return reason::IDLE;
        }
        if !stretched {
            self.decreases.calm(m.point.limit);
        }
        // Where the CPU is short and few threads wait for it, latency is not too high: the baseline is too
        // low.
        let fed = m.veto == Some(BoundBy::Cpu) && self.cpu_room(m) == Some(true);
        let roomy = m.point.stretch <= flat + 0.5 * m.sigma
            || has_room(&m.point)
            || fed
            || below(m.point.limit);
        if negligible || (roomy && !stretched) {
            return self.grow(m, settings.increase.max(0.0));
        }
        self.surprised = false;
        self.cause = BoundBy::Latency;
        self.slow_start = false;
        if !below(m.point.limit.saturating_sub(1))
            && let Some(reason) = self.look_around(m, curve)
        {
            return reason;
        }
        self.growths = 0;
        reason::HOLD
    }

    /// Whether a CPU that is short has room for more, if that is known. In slow start a yes does not count:
    /// it is a mean over a time in which the limit doubles.
    fn cpu_room(&self, m: &Measured) -> Option<bool> {
        m.cpu_room.filter(|room| !(*room && self.slow_start))
    }

    /// Whether drops exceed what no limit prevents.
    fn dropping(&mut self, m: &Measured) -> bool {
        let n = f64::from(m.samples.max(1));
        let usual = self.failing + DROP_ERRORS * (self.failing * (1.0 - self.failing) / n).sqrt();
        let dropping = overloaded(m) && m.point.drops >= usual;
        if !dropping && self.failing > 0.0 {
            self.failing += DROP_GAIN * (m.point.drops - self.failing);
            self.failing = self.failing.min(self.failing_most);
        }
        dropping
    }

    /// Were the decreases in vain? Then the latency or the drops that they reacted to are the backend's own.
    fn rebase(
        &mut self,
        m: &mut Measured,
        curve: &mut Curve,
        dropping: bool,
        stretched: bool,
    ) -> Option<&'static str> {
        // Alone at the backend, a request waits for nobody.
        let alone = m.point.worked() == 1;
        let verdict = self.decreases.judge(&self.together(m.point));
        let highest = self.decreases.highest().unwrap_or(1);
        let back = match verdict {
            Verdict::Knee { in_flight, .. } => highest.min((in_flight + SPARE).ceil() as u32),
            _ => highest,
        };
        if dropping && (alone || verdict == Verdict::Failing) {
            self.failing = m.point.drops.min(0.9);
            self.failing_most = self.failing;
        } else if stretched && let Some(rise) = self.slowdown(m, verdict, alone) {
            m.rebase(rise, curve);
            if curve.unmeasured(back) {
                self.trials.doubt(m, curve);
            }
        } else if stretched
            && verdict == Verdict::Unsure
            && self
                .steady
                .is_none_or(|steady| steady.windows < UNSURE_WINDOWS)
        {
            // So far the cut seems to have brought nothing: no deeper one until that is clear.
            return Some(reason::HOLD);
        } else {
            return None;
        }
        self.limit = self.limit.max(f64::from(back)).min(f64::from(m.ceiling));
        self.decreases.clear();
        self.refused = None;
        Some(reason::REBASE)
    }

    /// All windows at the limit in force together: one may be chance.
    fn together(&self, last: Point) -> Point {
        self.steady.map_or(last, |steady| Point {
            in_flight: steady.in_flight,
            work: steady.work,
            stretch: steady.stretch,
            noise: steady.noise(),
            ..last
        })
    }

    /// By how much the backend itself became slower, if the verdict says so.
    fn slowdown(&mut self, m: &Measured, verdict: Verdict, alone: bool) -> Option<f64> {
        let proven = match verdict {
            _ if alone => m.point.stretch,
            Verdict::Slower(stretch) | Verdict::Knee { stretch, .. } => stretch,
            Verdict::SeemsSlower => return self.trials.believed(m, m.point.stretch),
            _ => return None,
        };
        self.trials.proven_slower();
        Some(proven)
    }

    fn look_around(&mut self, m: &Measured, curve: &Curve) -> Option<&'static str> {
        let (limit, reason) = self.trials.look_around(m, self.limit, self.steady, curve)?;
        self.limit = limit;
        Some(reason)
    }

    fn decrease(&mut self, m: &Measured, factor: f64, least: f64, limited: bool) {
        let now = m.point.at;
        self.slow_start = false;
        self.growths = 0;
        if !limited {
            // Lower it to where traffic reaches it; there the law can judge.
            let reached = m.point.in_flight.ceil() + 1.0;
            self.limit = self
                .limit
                .min((self.limit * factor.min(UNREACHED)).max(reached));
            return;
        }
        if m.point.work >= KEPT_WORK * self.decreases.most_work() {
            self.good = Some(GOOD * self.limit);
        }
        let clean = !m.in_vain && self.last.is_some_and(|last| !m.point.surprises(&last));
        self.decreases.push(self.together(m.point), clean);
        let from = self.limit.min(f64::from(m.point.limit) + 0.99);
        self.limit = self.limit.min((from * factor).max(least));
        if self.limit() < m.point.limit {
            self.refused = Some((m.point.limit, now + REFUSED));
        }
    }

    fn grow(&mut self, m: &Measured, increase: f64) -> &'static str {
        if let Some(by) = m.veto {
            // A busy CPU is no shortage while few threads wait for it (by the kernel's count, or else by
            // latency), or while latency is negligible. Going back to a limit that worked is not growth,
            // unless too many wait there.
            let by_latency = m.known && (m.point.stretch <= IDLE_STRETCH || has_room(&m.point));
            let worked = self.good.is_some_and(|good| self.limit + 1.0 <= good);
            let room = self.cpu_room(m).unwrap_or(by_latency || worked);
            if by != BoundBy::Cpu || !(room || m.is_negligible()) {
                self.cause = by;
                return reason::vetoed(by);
            }
        }
        let in_force = f64::from(m.point.limit);
        if self.limit() >= m.ceiling {
            self.limit = self.limit.min(f64::from(m.ceiling) + 0.99);
            return reason::HOLD;
        }
        if self.slow_start {
            if let Some(last) = self.last
                && !m.is_negligible()
                && last.in_flight < 0.9 * m.point.in_flight
                && m.samples >= 20
                && m.point.gain(&last) < SLOW_START_GAIN
            {
                self.slow_start = false;
                self.cause = BoundBy::Latency;
                self.limit = self.limit.min((STEP_BACK * last.in_flight).max(1.0));
                return reason::SATURATED;
            }
            self.limit = (in_force + 1.0)
                .max(SLOW_START * in_force)
                .min(f64::from(m.ceiling));
            return reason::SLOW_START;
        }
        let mut step = increase * STEP.max(STEP_SHARE * self.limit);
        if self.growths >= PATIENT_STEPS {
            let doubled = step * f64::from(1_u32 << (self.growths + 1 - PATIENT_STEPS).min(10));
            let most = (STEP_MOST * self.limit).max(self.limit.sqrt());
            step = step.max(doubled.min(most));
        }
        let mut reason = reason::INCREASE;
        if let Some(good) = self.good.filter(|good| self.limit < GOOD * good) {
            step = step.max(0.5 * (good - self.limit));
            reason = reason::RECOVER;
        }
        let mut target = (self.limit + step).min(f64::from(m.ceiling));
        if let Some((refused, until)) = self.refused
            && m.point.at < until
            && target >= f64::from(refused)
        {
            target = (f64::from(refused) - 0.01).min(target);
            reason = reason::HOLD;
            self.cause = BoundBy::Latency;
        }
        self.growths += 1;
        if target > self.limit {
            self.limit = target;
        }
        reason
    }
}

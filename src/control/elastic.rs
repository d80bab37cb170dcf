//! Paired tests of elasticity: what did latency and throughput do when the load changed?
//!
//! Past the knee, less in flight means less latency and the same throughput. Below it, less in
//! flight means the same latency and less throughput: then it is the backend that became slow, not
//! we who overload it.

use std::time::{Duration, Instant};

/// The load must have fallen by this share for a verdict.
const FELL: f64 = 0.20;
/// Latency is inelastic when it fell by less than this part of the load's fall. With 0.35
/// one that began well past the knee is missed.
const LATENCY_PART: f64 = 0.65;
/// The same near the baseline, where a fall that goes too far costs little, and where a third of a
/// shared backend's load, taken away, lets latency fall by a third of what it would alone.
const LATENCY_PART_NEAR: f64 = 0.25;
/// And by more than this many standard errors: past the knee it would have stayed. Far from the
/// baseline haste pays; near it a wrong verdict costs more than a late one.
const ERRORS_FAR: f64 = 2.5;
/// The same near the baseline.
const ERRORS_NEAR: f64 = 3.0;
/// The stretch that is far.
const FAR: f64 = 2.0;
/// Latency may not have risen by more than this, and so many standard errors: then the backend has changed in between.
const RISEN: f64 = 0.20;
/// See [`RISEN`].
const RISEN_ERRORS: f64 = 2.0;
/// If the latency that is left exceeds what would be left if all of it had been waiting, by so many standard
/// errors, it is the backend's own. A wrong guess either way costs about the same.
const KNEE_ERRORS: f64 = 1.0;
/// And throughput must have fallen by more than this part of it.
const THROUGHPUT_PART: f64 = 0.40;
/// Drops are inelastic when at least this share of them remains.
const DROPS_PART: f64 = 0.50;
/// References with fewer drops than this have nothing to say of drops.
const DROPS_KEPT: f64 = 0.10;
/// References remembered: a limit at 0.7 a step falls to a quarter in four.
const KEPT: usize = 4;
/// References older than this compare with another day.
const OLD: Duration = Duration::from_secs(30);

/// The law leaves this many in flight beyond those that the backend seems to work on, so that a worker
/// finds its next request waiting: the hand-over costs as much as a short request.
pub(super) const SPARE: f64 = 1.0;

/// How many of `limit` requests in flight the backend really works on, in whole requests. By Little's law it is only a
/// part while latency is stretched; the others wait.
pub(super) fn worked_on(limit: u32, stretch: f64) -> f64 {
    (f64::from(limit) / stretch.max(1.0) - 0.25).ceil()
}

/// The least limit that idles nobody.
pub(super) fn busy(limit: u32, stretch: f64) -> f64 {
    worked_on(limit, stretch) + SPARE
}

/// A window as a point to compare with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) at: Instant,
    /// The limit in force.
    pub(super) limit: u32,
    /// Mean requests in flight.
    pub(super) in_flight: f64,
    pub(super) stretch: f64,
    /// Relative standard error of the stretch.
    pub(super) noise: f64,
    /// Cost completed a second.
    pub(super) work: f64,
    /// Share of drops.
    pub(super) drops: f64,
}

impl Point {
    /// How many are at the backend when it is busy, in whole requests: as many as the limit lets in, or more where it
    /// holds nobody back (a dry run) or has just been lowered.
    pub(super) fn worked(&self) -> u32 {
        self.limit.max(self.in_flight.round() as u32)
    }

    /// What part of the rise in load, from `before` to here, throughput has followed; 1 = all of it.
    pub(super) fn gain(&self, before: &Point) -> f64 {
        let load = (self.in_flight - before.in_flight) / before.in_flight.max(0.1);
        let work = (self.work - before.work) / before.work.max(1e-9);
        if load > 0.05 { work / load } else { 1.0 }
    }

    /// The mean stretch of two windows, each by its certainty.
    fn stretch_with(&self, other: &Point) -> f64 {
        let weight = |point: &Point| 1.0 / (point.noise * point.noise).max(1e-6);
        let (mine, its) = (weight(self), weight(other));
        (mine * self.stretch + its * other.stretch) / (mine + its)
    }

    /// Whether latency jumped against the window before, more than load and noise explain:
    /// then the backend changed within this window, which makes it useless to compare with.
    pub(super) fn surprises(&self, before: &Point) -> bool {
        let load = (self.in_flight / before.in_flight.max(0.1)).max(1.0);
        self.stretch > before.stretch * load * (1.1 + 2.0 * (self.noise + before.noise))
    }
}

/// Windows at the same limit, taken together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Steady {
    limit: u32,
    pub(super) windows: f64,
    pub(super) in_flight: f64,
    pub(super) work: f64,
    pub(super) stretch: f64,
    /// Sum of the windows' squared relative errors.
    squares: f64,
}

impl Steady {
    /// Windows remembered.
    const MEMORY: f64 = 8.0;

    pub(super) fn with(known: Option<Steady>, point: &Point) -> Steady {
        let mut all = known
            .filter(|known| known.limit == point.limit)
            .unwrap_or(Steady {
                limit: point.limit,
                windows: 0.0,
                in_flight: 0.0,
                work: 0.0,
                stretch: 0.0,
                squares: 0.0,
            });
        if all.windows >= Self::MEMORY {
            all.squares *= (Self::MEMORY - 1.0) / all.windows;
            all.windows = Self::MEMORY - 1.0;
        }
        all.windows += 1.0;
        all.squares += point.noise * point.noise;
        let gain = 1.0 / all.windows;
        all.in_flight += gain * (point.in_flight - all.in_flight);
        all.work += gain * (point.work - all.work);
        all.stretch += gain * (point.stretch - all.stretch);
        all
    }

    /// The relative standard error of the means.
    pub(super) fn noise(&self) -> f64 {
        self.squares.sqrt() / self.windows
    }
}

/// What a run of decreases has taught.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Latency followed the load, or nothing can be said yet.
    Elastic,
    /// Latency stayed and throughput fell: the backend is slower by itself, by this stretch.
    Slower(f64),
    /// The same near the baseline, where it also looks like that when others share a full backend.
    SeemsSlower,
    /// Latency fell, but by less than the load did: the backend was too full, and is slower by itself as well.
    Knee {
        /// By this stretch.
        stretch: f64,
        /// It works on so many at once.
        in_flight: f64,
    },
    /// It looks so, but may be chance.
    Unsure,
    /// The drops stayed and throughput fell: the drops are not ours.
    Failing,
}

/// The decreases since the last growth.
#[derive(Clone, Debug, Default)]
pub(super) struct Decreases {
    points: [Option<(Point, bool)>; KEPT],
    next: usize,
    /// Whether the backend has changed suddenly in the run.
    sudden: bool,
}

impl Decreases {
    /// Remembers the window that led to a decrease; `clean` unless the backend changed within it.
    pub(super) fn push(&mut self, point: Point, clean: bool) {
        self.points[self.next] = Some((point, clean));
        self.next = (self.next + 1) % KEPT;
    }

    /// The backend has changed within this window, or began to in one before: what was seen until now
    /// was another backend.
    pub(super) fn surprised(&mut self, point: Point) {
        for (_, clean) in self.points.iter_mut().flatten() {
            *clean = false;
        }
        self.sudden = true;
        self.push(point, false);
    }

    /// Latency is fine at this limit: the run is over, except that drops, which come and go, still
    /// compare with those before until the limit is back.
    pub(super) fn calm(&mut self, limit: u32) {
        let regained = self.highest().is_some_and(|highest| limit >= highest);
        for slot in &mut self.points {
            if regained || slot.is_some_and(|(point, _)| point.drops < DROPS_KEPT) {
                *slot = None;
            } else if let Some((_, clean)) = slot {
                *clean = false;
            }
        }
        self.sudden &= self.points.iter().any(Option::is_some);
    }

    /// The run of decreases is over.
    pub(super) fn clear(&mut self) {
        *self = Decreases::default();
    }

    /// The highest limit of the run: where to return to if the decreases were in vain.
    pub(super) fn highest(&self) -> Option<u32> {
        self.points
            .iter()
            .flatten()
            .map(|(point, _)| point.limit)
            .max()
    }

    /// The most work done in the run, cost a second.
    pub(super) fn most_work(&self) -> f64 {
        self.points
            .iter()
            .flatten()
            .map(|(point, _)| point.work)
            .fold(0.0, f64::max)
    }

    /// Compares a window with those before the decreases.
    pub(super) fn judge(&mut self, now: &Point) -> Verdict {
        for slot in &mut self.points {
            if slot.is_some_and(|(point, _)| now.at.saturating_duration_since(point.at) > OLD) {
                *slot = None;
            }
        }
        let mut verdict = Verdict::Elastic;
        for (point, clean) in self.points.iter().flatten() {
            match self.compare(point, *clean, now) {
                Verdict::Elastic => {}
                Verdict::Unsure => verdict = Verdict::Unsure,
                knee @ Verdict::Knee { .. } if verdict == Verdict::Elastic => verdict = knee,
                Verdict::Knee { .. } => {}
                certain => return certain,
            }
        }
        verdict
    }

    fn compare(&self, point: &Point, clean: bool, now: &Point) -> Verdict {
        let far = now.stretch > FAR;
        let (errors, part) = if far {
            (ERRORS_FAR, LATENCY_PART)
        } else {
            (ERRORS_NEAR, LATENCY_PART_NEAR)
        };
        let load = (point.in_flight - now.in_flight) / point.in_flight.max(1e-9);
        let work = (point.work - now.work) / point.work.max(1e-9);
        if load <= FELL || work <= THROUGHPUT_PART * load {
            return Verdict::Elastic;
        }
        if point.drops > 0.0 && now.drops >= DROPS_PART * point.drops {
            return Verdict::Failing;
        }
        if !clean || point.stretch <= 1.0 {
            return Verdict::Elastic;
        }
        let left = now.stretch / point.stretch;
        // By Little's law latency and throughput are one measurement: it has to be significant.
        let error = point.noise.hypot(now.noise);
        if 1.0 - left < -RISEN - RISEN_ERRORS * error {
            return Verdict::Elastic;
        }
        if 1.0 - left < part * load {
            return match work > errors * error {
                false => Verdict::Unsure,
                true if !far => Verdict::SeemsSlower,
                // If latency has risen since, the slowdown was only beginning then.
                true if left > 1.0 => Verdict::Slower(now.stretch),
                // Both saw the same backend, and each has its error.
                true => Verdict::Slower(now.stretch_with(point)),
            };
        }
        // A gradual change may come from others who share a full backend, or be chance if it is tested often
        // enough.
        if (far || self.sudden) && left - (1.0 - load) > KNEE_ERRORS * left * error {
            return Verdict::Knee {
                stretch: now.stretch,
                in_flight: point.in_flight * left,
            };
        }
        Verdict::Elastic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: Instant, in_flight: f64, stretch: f64, work: f64, drops: f64) -> Point {
        Point {
            at,
            limit: in_flight as u32,
            in_flight,
            stretch,
            noise: 0.05,
            work,
            drops,
        }
    }

    #[test]
    fn tells_a_slow_backend_from_a_full_one() {
        let at = crate::clock::now();
        let mut full = Decreases::default();
        full.push(point(at, 16.0, 2.0, 8.0, 0.0), true);
        assert_eq!(
            full.judge(&point(at, 11.0, 1.4, 8.0, 0.0)),
            Verdict::Elastic
        );
        let mut slow = Decreases::default();
        slow.push(point(at, 16.0, 3.0, 5.3, 0.0), true);
        for (stretch, slower) in [(2.8, 2.9), (3.2, 3.2)] {
            let verdict = slow.judge(&point(at, 9.0, stretch, 9.0 / stretch, 0.0));
            assert!(matches!(verdict, Verdict::Slower(by) if (by - slower).abs() < 1e-9));
        }
        let mut near = Decreases::default();
        near.push(point(at, 16.0, 1.5, 10.6, 0.0), true);
        assert_eq!(
            near.judge(&point(at, 10.0, 1.5, 6.6, 0.0)),
            Verdict::SeemsSlower
        );
        let mut both = Decreases::default();
        both.push(point(at, 16.0, 1.8, 8.9, 0.0), true);
        let now = point(at, 8.0, 1.35, 5.9, 0.0);
        assert_eq!(both.judge(&now), Verdict::Elastic, "it came slowly");
        both.surprised(point(at, 16.0, 1.2, 13.3, 0.0));
        both.push(point(at, 16.0, 1.8, 8.9, 0.0), true);
        let knee = Verdict::Knee {
            stretch: 1.35,
            in_flight: 12.0,
        };
        assert_eq!(both.judge(&now), knee);
        assert_eq!(
            slow.judge(&point(at, 14.0, 3.0, 4.7, 0.0)),
            Verdict::Elastic,
            "too near"
        );
        assert_eq!(
            slow.judge(&point(at + OLD * 2, 11.0, 3.0, 3.7, 0.0)),
            Verdict::Elastic
        );
        let mut failing = Decreases::default();
        failing.push(point(at, 16.0, 1.0, 16.0, 0.2), true);
        assert_eq!(
            failing.judge(&point(at, 11.0, 1.0, 11.0, 0.2)),
            Verdict::Failing
        );
    }
}

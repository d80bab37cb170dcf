//! The backend's memory: growth stops at `memory_high`, the limit shrinks at `memory_max`, and what a
//! request needs is learned, so that the limit stops before it hurts. Memory that grows by itself is a
//! leak: it is reported, and the limit is left alone, for no limit would stop it.

use std::time::{Duration, Instant};

use super::{
    frontier::Frontier,
    hold::{Hold, Look},
};
use crate::control::{MemoryReading, Resources};

/// Looks closer together than this see the same.
const EVERY: Duration = Duration::from_millis(200);
/// Time in which a look counts for half, in the regression of memory on requests in flight.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// Looks without which nothing is said of the memory of a request.
const LEAST: f64 = 8.0;
/// ... nor unless memory and requests in flight go together this closely.
const CORRELATION: f64 = 0.7;
/// ... and a request needs at least this share of the limit: less is noise.
const WORTH_IT: f64 = 1e-4;
/// Weight of the newest look in what is in flight and in use of late.
const NEWEST: f64 = 0.3;
/// How far the ceiling goes towards what a look suggests.
const TOWARDS: f64 = 0.3;
/// By the regression alone, no more than this many requests beyond those in flight are believed to fit.
const STEP: f64 = 2.0;
/// From the brink it comes back to this share of the limit at first.
const AFTER_BRINK: f64 = 0.7;
/// Share of the time in which everything waits for memory (PSI `full`) that is alarming.
const PRESSED: f64 = 0.05;
/// Between two points of the long view.
const VIEW_EVERY: Duration = Duration::from_secs(10);
/// Points of the long view.
const VIEW: usize = 12;
/// A base that grew by this share of the limit over the long view, at nearly every step, leaks...
const LEAK: f64 = 0.05;
/// ... if in its second half no more were in flight than so many times those of the first, and so many.
const FLAT: f64 = 1.1;
const FLAT_BY: f64 = 0.5;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    at: Option<Instant>,
    fit: Fit,
    frontier: Frontier,
    hold: Hold,
    veto: bool,
    /// What a request needs, bytes, once it has been seen.
    each: Option<f64>,
    ceiling: Option<f64>,
    /// The most that have been in flight while there was room left.
    proven: f64,
    /// What is in use without any request, and requests in flight.
    view: Vec<(f64, f64)>,
    viewed: Option<Instant>,
    leaking: bool,
    hits: u64,
    kills: u64,
}

impl Memory {
    /// Takes a reading; `in_flight` is a mean of the last moments, `limit` is in force.
    pub(super) fn note(
        &mut self,
        now: Instant,
        reading: Option<&MemoryReading>,
        in_flight: f64,
        limit: u32,
        resources: &Resources,
    ) {
        let Some(reading) = reading.filter(|reading| reading.limit > 0) else {
            *self = Memory::default();
            return;
        };
        let (used, most) = (reading.used as f64, reading.limit as f64);
        let room = resources.memory_high * most;
        self.frontier.note(now, in_flight, used, room);
        let age = self
            .at
            .map_or(EVERY, |at| now.saturating_duration_since(at));
        if age < EVERY {
            return;
        }
        let hit = self.at.is_some() && reading.hits > self.hits;
        let killed = self.at.is_some() && reading.kills > self.kills;
        self.at = Some(now);
        (self.hits, self.kills) = (reading.hits, reading.kills);
        // While memory is being brought down, what is in use is not that of the requests in flight.
        if !self.hold.is_lowering() || used < room {
            self.fit.add(in_flight, used, age);
        }
        self.look_back(now, most);
        self.veto = used >= room;
        let each = self.fit.slope().filter(|each| *each >= WORTH_IT * most);
        self.each = each.or(self.each);
        let look = Look {
            in_flight,
            used,
            most,
            room,
            limit: f64::from(limit),
            base: self.frontier.base(),
            each: self.each,
            // A hit alone is no alarm: a page cache that fills free memory hits the limit as well, and harms
            // nobody.
            alarming: used >= resources.memory_max * most
                || used >= room && (hit || reading.pressure >= PRESSED),
        };
        if self.leaking {
            self.hold = Hold::default();
            return;
        }
        let most = AFTER_BRINK * f64::from(limit);
        if self.hold.note(now, &look) {
            self.fit = Fit::default();
            self.each = None;
            self.ceiling = self.ceiling.map(|ceiling| ceiling.min(most));
        }
        if killed {
            // It went over the brink between two looks: so many do not fit any more, whatever fitted once.
            self.proven = self.proven.min(most);
            self.ceiling = self.ceiling.map(|ceiling| ceiling.min(most));
        }
        self.learn(room);
    }

    /// Moves the ceiling towards what fits: from what is in flight and in use of late as far as there is room. While
    /// nothing is known any more, what was known still holds, and so does what has been seen to fit: an allocator keeps
    /// what is freed, and a quiet backend that uses as much as a busy one has no less room for requests.
    fn learn(&mut self, room: f64) {
        if self.hold.is_lowering() {
            let held = self.hold.ceiling().unwrap_or(f64::INFINITY);
            self.proven = self.proven.min(held);
            return;
        }
        let (in_flight, used) = self.fit.recent;
        if used < room {
            self.proven = self.proven.max((in_flight + 0.5).floor());
        }
        let Some(each) = self.each.filter(|_| in_flight >= 1.0) else {
            return;
        };
        let by_slope = in_flight + (room - used) / each;
        // Freed memory that the allocator keeps hides what more requests need, until it is used up; so all
        // that is in use beyond the start is attributed to those in flight. The more there are, the less that
        // overestimates.
        let all = (used - self.frontier.base()) / in_flight;
        let sure = in_flight + (room - used) / each.max(all);
        let fits = sure.max(by_slope.min(in_flight + STEP));
        let known = self.ceiling.unwrap_or(fits);
        let ceiling = known + TOWARDS * (fits - known);
        self.ceiling = Some(ceiling.max(self.proven).clamp(1.0, 1e6));
    }

    /// The most that fits below `memory_high`, by what a request needs once that is known, and by what is sure
    /// until then; less, while memory is short.
    pub(super) fn ceiling(&self) -> Option<u32> {
        let sure = self.frontier.reach().filter(|_| !self.leaking);
        let ceilings = [self.ceiling.or(sure), self.hold.ceiling()];
        let lowest = ceilings.into_iter().flatten().reduce(f64::min);
        lowest.map(|ceiling| ceiling as u32)
    }

    /// Whether it forbids growth.
    pub(super) fn veto(&self) -> bool {
        self.veto && !self.leaking
    }

    pub(super) fn leaking(&self) -> bool {
        self.leaking
    }

    /// The long view: does what is in use without any request grow and grow?
    fn look_back(&mut self, now: Instant, limit: f64) {
        if self
            .viewed
            .is_some_and(|at| now.saturating_duration_since(at) < VIEW_EVERY)
        {
            return;
        }
        self.viewed = Some(now);
        if self.view.len() == VIEW {
            self.view.remove(0);
        }
        self.view.push((self.fit.base(), self.fit.recent.0));
        self.leaking = self.view.len() == VIEW && self.grows_by_itself(LEAK * limit);
        if self.leaking {
            self.ceiling = None;
        }
    }

    /// Whether the base has grown by that much and at nearly every step, but not the requests in flight: where what one
    /// of them needs is not known, all that is in use is the base.
    fn grows_by_itself(&self, least: f64) -> bool {
        let (Some(first), Some(last)) = (self.view.first(), self.view.last()) else {
            return false;
        };
        let up = self.view.windows(2).filter(|pair| pair[1].0 > pair[0].0);
        let in_flight = |half: &[(f64, f64)]| half.iter().map(|point| point.1).sum::<f64>();
        let (early, late) = self.view.split_at(VIEW / 2);
        up.count() >= VIEW - 2
            && last.0 - first.0 >= least
            && in_flight(late) <= FLAT * in_flight(early) + FLAT_BY * early.len() as f64
    }
}

/// Memory over requests in flight: a line through what was seen, which forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    weight: f64,
    n: f64,
    m: f64,
    nn: f64,
    nm: f64,
    mm: f64,
    /// Of the last looks only.
    recent: (f64, f64),
}

impl Fit {
    fn add(&mut self, in_flight: f64, used: f64, age: Duration) {
        if !in_flight.is_finite() {
            return;
        }
        let kept = 0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64());
        let gain = if self.weight == 0.0 { 1.0 } else { NEWEST };
        self.recent.0 += gain * (in_flight - self.recent.0);
        self.recent.1 += gain * (used - self.recent.1);
        self.weight = self.weight * kept + 1.0;
        let gain = 1.0 / self.weight;
        let (dn, dm) = (in_flight - self.n, used - self.m);
        self.n += gain * dn;
        self.m += gain * dm;
        // Variances around the moving mean.
        self.nn = (1.0 - gain) * (self.nn + gain * dn * dn);
        self.nm = (1.0 - gain) * (self.nm + gain * dn * dm);
        self.mm = (1.0 - gain) * (self.mm + gain * dm * dm);
    }

    fn slope(&self) -> Option<f64> {
        let correlation = self.nm / (self.nn * self.mm).sqrt();
        (self.weight >= LEAST && self.nn > 0.25 && correlation >= CORRELATION)
            // The reduced major axis: both figures are off now and then (a request that has not allocated yet, one
            // that has just freed), and least squares would take that for less memory a request.
            .then(|| (self.mm / self.nn).sqrt())
    }

    /// What is in use now beyond what the requests in flight account for.
    fn base(&self) -> f64 {
        self.recent.1 - self.slope().unwrap_or(0.0) * self.recent.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    struct Bench {
        memory: Memory,
        now: Instant,
        resources: Resources,
    }

    impl Bench {
        fn new() -> Self {
            Bench {
                memory: Memory::default(),
                now: crate::clock::now(),
                resources: Resources::default(),
            }
        }

        fn look(&mut self, in_flight: f64, used: f64) {
            self.now += Duration::from_millis(250);
            let reading = MemoryReading {
                used: used as u64,
                limit: (600.0 * MB) as u64,
                ..MemoryReading::default()
            };
            let memory = &mut self.memory;
            memory.note(self.now, Some(&reading), in_flight, 20, &self.resources);
        }
    }

    #[test]
    fn learns_what_a_request_needs_and_stops_in_time() {
        let mut bench = Bench::new();
        for i in 0..40 {
            let n = f64::from(1 + i % 10);
            bench.look(n, 60.0 * MB + n * 30.0 * MB);
        }
        // 0.85 x 600 = 510, less 60, at 30 each.
        assert!((14..=15).contains(&bench.memory.ceiling().expect("it is learned")));
        assert!(!bench.memory.veto());
    }

    #[test]
    fn requests_that_have_not_allocated_yet_do_not_hide_what_they_need() {
        let mut bench = Bench::new();
        let mut random = fastrand::Rng::with_seed(2);
        for i in 0..200 {
            let n = f64::from(i % 10);
            // Each look is off by a request, now and then, one way or the other.
            let held = (n + f64::from(random.u32(0..3)) - 1.0).max(0.0);
            bench.look(n, 60.0 * MB + held * 30.0 * MB);
        }
        let ceiling = bench.memory.ceiling().expect("they go together");
        assert!((13..=16).contains(&ceiling), "{ceiling}");
        // At the brink it goes down to the ground, and up again when there is room.
        bench.look(18.0, 600.0 * MB);
        assert_eq!(bench.memory.ceiling(), Some(1));
        for _ in 0..20 {
            bench.look(1.0, 90.0 * MB);
        }
        let ceiling = bench.memory.ceiling().expect("it is still known");
        assert!((12..=14).contains(&ceiling), "{ceiling}");
    }

    #[test]
    fn what_an_allocator_keeps_does_not_make_requests_cheap() {
        let mut bench = Bench::new();
        bench.look(0.0, 60.0 * MB);
        let mut kept = 0.0_f64;
        for i in 0..80 {
            // Calm traffic: one to five in flight, with a part of what four others have left behind.
            let n = f64::from(1 + i % 5);
            kept = kept.max(n + 2.0);
            bench.look(n, 60.0 * MB + 30.0 * MB * kept.max(n + 4.0));
        }
        let calm = bench.memory.ceiling().expect("it is learned");
        assert!((5..=9).contains(&calm), "{calm}");
        // More come, and what is kept is used: the rest is seen as it is approached.
        for _ in 0..100 {
            let n = f64::from(bench.memory.ceiling().expect("it is known"));
            bench.look(n, 60.0 * MB + 30.0 * MB * (n + 4.0));
        }
        let busy = bench.memory.ceiling().expect("it is known");
        assert!((10..=11).contains(&busy), "{busy}");
        // It is quiet, and nothing is given back.
        for _ in 0..400 {
            bench.look(1.0, 480.0 * MB);
        }
        assert!(bench.memory.ceiling() >= Some(busy - 1));
    }

    #[test]
    fn memory_that_is_not_the_requests_says_nothing_of_them() {
        let mut bench = Bench::new();
        let mut random = fastrand::Rng::with_seed(1);
        for i in 0..200 {
            let noise = random.f64() * 40.0 * MB;
            bench.look(f64::from(i % 8), 200.0 * MB + noise);
        }
        assert_eq!(bench.memory.ceiling, None);
        // ... but that there was room for 6 at once for a while.
        assert!(bench.memory.ceiling() >= Some(7));
    }

    #[test]
    fn a_leak_is_told_from_load() {
        let mut bench = Bench::new();
        for i in 0..800 {
            let n = f64::from(4 + i % 3);
            bench.look(n, 100.0 * MB + n * 10.0 * MB + 0.5 * MB * f64::from(i));
        }
        assert!(bench.memory.leaking());
        assert_eq!(bench.memory.ceiling(), None);
        assert!(!bench.memory.veto());
        // More and more requests for minutes are none, nor are those that an allocator hides.
        for spread in [1.0, 40.0] {
            let (mut bench, mut random) = (Bench::new(), fastrand::Rng::with_seed(3));
            for i in 0..800 {
                let n = f64::from(i) / 100.0 + 2.0;
                let noise = spread * MB * random.f64();
                bench.look(n, 100.0 * MB + n * 10.0 * MB + noise);
            }
            assert!(!bench.memory.leaking(), "{spread}");
        }
        let mut bench = Bench::new();
        for i in 0..800 {
            let n = f64::from(i) / 40.0 + f64::from(i % 3);
            bench.look(n, 100.0 * MB + n * 10.0 * MB);
        }
        assert!(!bench.memory.leaking());
    }
}

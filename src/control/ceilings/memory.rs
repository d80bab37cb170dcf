//! The backend's memory: growth stops at `memory_high`, the limit shrinks at `memory_max`, and what a
//! request needs is learned, so that the limit stops before it hurts. Memory that grows by itself is a
//! leak: it is reported, and the limit is left alone, for no limit would stop it.

use std::time::{Duration, Instant};

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
/// How far the ceiling goes towards what a look suggests, up and down. When many come at once they are in flight
/// before they have allocated anything: for that moment requests seem to need less.
const RISE: f64 = 0.03;
const FALL: f64 = 0.3;
/// A cut, a factor. CONTROL §4.4.
const CUT: f64 = 0.7;
/// From this share of the limit on, the next allocation may be the last: down to `min`. CONTROL §4.4.
const BRINK: f64 = 0.97;
/// ... until there is room again; then so much more at each look, up to so many.
const LET_GO: f64 = 1.25;
const LET_GO_AT: u32 = 1000;
/// Share of the time in which everything waits for memory (PSI `full`) that cuts. CONTROL §4.4.
const PRESSED: f64 = 0.05;
/// A cut that has not lowered memory by this share of the limit in `PATIENCE` was in vain...
const FREED: f64 = 0.01;
/// ... namely this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two points of the long view.
const VIEW_EVERY: Duration = Duration::from_secs(10);
/// Points of the long view.
const VIEW: usize = 12;
/// A base that grew by this share of the limit over the long view, at nearly every step, leaks.
const LEAK: f64 = 0.05;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    at: Option<Instant>,
    seen: MemoryReading,
    fit: Fit,
    veto: bool,
    wants_cut: Option<f64>,
    /// The last cut, and what was in use then.
    last_cut: Option<(Instant, f64)>,
    /// Cuts did not help: memory is not the requests'.
    in_vain: bool,
    ceiling: Option<f64>,
    /// After the brink: no more than this.
    hold: Option<f64>,
    view: Vec<f64>,
    viewed: Option<Instant>,
    leaking: bool,
}

impl Memory {
    pub(super) fn note(
        &mut self,
        now: Instant,
        reading: Option<&MemoryReading>,
        in_flight: f64,
        resources: &Resources,
    ) {
        let Some(reading) = reading.filter(|reading| reading.limit > 0) else {
            *self = Memory::default();
            return;
        };
        let age = self
            .at
            .map_or(EVERY, |at| now.saturating_duration_since(at));
        if age < EVERY {
            return;
        }
        // Both at this moment: at a low load requests come and go between two looks.
        let (used, limit) = (reading.used as f64, reading.limit as f64);
        let share = used / limit;
        // While too much is being freed, what is in use is not of those in flight.
        if self.hold.is_none() || share < resources.memory_high {
            self.fit.add(in_flight, used, age);
        }
        let hit = self.at.is_some() && reading.hits > self.seen.hits;
        self.at = Some(now);
        self.seen = *reading;
        self.look_back(now, limit);
        self.veto = share >= resources.memory_high;
        if share < resources.memory_high {
            self.in_vain = false;
        }
        if let Some((at, before)) = self.last_cut
            && now.saturating_duration_since(at) >= PATIENCE
        {
            self.in_vain |= share > before - FREED;
            self.last_cut = None;
        }
        self.wants_cut = if self.leaking || self.in_vain {
            None
        } else if share >= BRINK {
            // Held at once and let go step by step: what the law knows of latency stays.
            if self.hold.replace(1.0).is_none() {
                self.fit = Fit::default();
            }
            None
        } else if self.hold.is_some() {
            None
        } else if share >= resources.memory_max || hit || reading.pressure >= PRESSED {
            Some(CUT)
        } else {
            None
        };
        if let Some(hold) = &mut self.hold
            && share < resources.memory_high
        {
            *hold *= LET_GO;
            if *hold > f64::from(LET_GO_AT) {
                self.hold = None;
            }
        }
        // While nothing is known any more, what was known still holds.
        if let Some((base, each)) = self.fit.of_a_request(limit) {
            let room = (resources.memory_high * limit - base) / each;
            let room = room.clamp(1.0, 1e6);
            let towards = match self.ceiling {
                Some(known) if room > known => known + RISE * (room - known),
                Some(known) => known + FALL * (room - known),
                None => room,
            };
            self.ceiling = (!self.leaking).then_some(towards);
        }
    }

    /// The most that fits below `memory_high`, once it is known what a request needs.
    pub(super) fn ceiling(&self) -> Option<u32> {
        let lowest = match (self.ceiling, self.hold) {
            (Some(ceiling), Some(hold)) => Some(ceiling.min(hold)),
            (ceiling, hold) => ceiling.or(hold),
        };
        lowest.map(|ceiling| ceiling as u32)
    }

    /// Whether it forbids growth.
    pub(super) fn veto(&self) -> bool {
        self.veto && !self.leaking
    }

    /// The factor that it cuts by now.
    pub(super) fn cut(&mut self, now: Instant) -> Option<f64> {
        let factor = self.wants_cut.take()?;
        let share = self.seen.used as f64 / self.seen.limit.max(1) as f64;
        if self.last_cut.is_none() {
            self.last_cut = Some((now, share));
        }
        Some(factor)
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
        self.view.push(self.fit.base());
        let steps = self.view.windows(2);
        let up = steps.filter(|pair| pair[1] > pair[0]).count();
        let grown = self.view.last().unwrap_or(&0.0) - self.view.first().unwrap_or(&0.0);
        self.leaking = self.view.len() == VIEW && up >= VIEW - 2 && grown >= LEAK * limit;
        if self.leaking {
            self.ceiling = None;
        }
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
        let gain = if self.weight == 0.0 { 1.0 } else { 0.2 };
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

    /// What is in use without a request, and what each one adds, bytes.
    fn of_a_request(&self, limit: f64) -> Option<(f64, f64)> {
        let each = self.slope().filter(|each| *each >= WORTH_IT * limit)?;
        Some(((self.m - each * self.n).max(0.0), each))
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
            self.memory
                .note(self.now, Some(&reading), in_flight, &self.resources);
        }
    }

    #[test]
    fn learns_what_a_request_needs_and_stops_in_time() {
        let mut bench = Bench::new();
        for i in 0..40 {
            let n = f64::from(1 + i % 8);
            bench.look(n, 60.0 * MB + n * 30.0 * MB);
        }
        // 0.85 x 600 = 510, less 60, at 30 each.
        assert_eq!(bench.memory.ceiling(), Some(15));
        assert!(!bench.memory.veto() && bench.memory.cut(bench.now).is_none());
    }

    #[test]
    fn requests_that_have_not_allocated_yet_do_not_hide_what_they_need() {
        let mut bench = Bench::new();
        let mut random = fastrand::Rng::with_seed(2);
        for i in 0..200 {
            let n = f64::from(i % 8);
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
        assert!((12..=16).contains(&ceiling), "{ceiling}");
    }

    #[test]
    fn memory_that_is_not_the_requests_says_nothing_of_them() {
        let mut bench = Bench::new();
        let mut random = fastrand::Rng::with_seed(1);
        for i in 0..200 {
            let noise = random.f64() * 40.0 * MB;
            bench.look(f64::from(i % 8), 200.0 * MB + noise);
        }
        assert_eq!(bench.memory.ceiling(), None);
    }

    #[test]
    fn shrinks_at_the_maximum_until_it_is_seen_to_be_in_vain() {
        let mut bench = Bench::new();
        bench.look(4.0, 520.0 * MB);
        assert!(bench.memory.veto());
        assert_eq!(bench.memory.cut(bench.now), None);
        bench.look(4.0, 560.0 * MB);
        assert_eq!(bench.memory.cut(bench.now), Some(CUT));
        for _ in 0..40 {
            bench.look(1.0, 560.0 * MB);
        }
        assert_eq!(bench.memory.cut(bench.now), None, "it did not help");
        bench.look(1.0, 400.0 * MB);
        bench.look(4.0, 560.0 * MB);
        assert_eq!(bench.memory.cut(bench.now), Some(CUT));
    }

    #[test]
    fn a_leak_is_told_from_load() {
        let mut bench = Bench::new();
        for i in 0..800 {
            let n = f64::from(4 + i % 3);
            bench.look(n, 100.0 * MB + n * 10.0 * MB + 0.5 * MB * f64::from(i));
        }
        assert!(bench.memory.leaking());
        assert_eq!(bench.memory.cut(bench.now), None);
        assert!(!bench.memory.veto());
        // More and more requests for minutes are none.
        let mut bench = Bench::new();
        for i in 0..800 {
            let n = f64::from(i) / 40.0 + f64::from(i % 3);
            bench.look(n, 100.0 * MB + n * 10.0 * MB);
        }
        assert!(!bench.memory.leaking());
    }
}

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
/// How far the ceiling goes towards what a look suggests, up and down. When many come at once they are in flight
/// before they have allocated anything: for that moment requests seem to need less.
const RISE: f64 = 0.03;
const FALL: f64 = 0.3;
/// Share of the time in which everything waits for memory (PSI `full`) that is alarming. CONTROL §4.4.
const PRESSED: f64 = 0.05;
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
    fit: Fit,
    frontier: Frontier,
    hold: Hold,
    veto: bool,
    ceiling: Option<f64>,
    view: Vec<f64>,
    viewed: Option<Instant>,
    leaking: bool,
    hits: u64,
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
        self.at = Some(now);
        self.hits = reading.hits;
        // While it is being brought down, what is in use is not of those in flight.
        if !self.hold.is_lowering() || used < room {
            self.fit.add(in_flight, used, age);
        }
        self.look_back(now, most);
        self.veto = used >= room;
        let look = Look {
            in_flight,
            used,
            most,
            limit: f64::from(limit),
            base: self.frontier.base(),
            roomy: used < room,
            // A limit is hit, too, by a page cache that fills what is free: that costs nobody anything.
            alarming: used >= resources.memory_max * most
                || used >= room && (hit || reading.pressure >= PRESSED),
        };
        if self.leaking {
            self.hold = Hold::default();
        } else if self.hold.note(now, &look) {
            self.fit = Fit::default();
        }
        // While nothing is known any more, what was known still holds.
        if let Some((base, each)) = self.fit.of_a_request(most) {
            let fits = ((room - base) / each).clamp(1.0, 1e6);
            let towards = match self.ceiling {
                Some(known) if fits > known => known + RISE * (fits - known),
                Some(known) => known + FALL * (fits - known),
                None => fits,
            };
            self.ceiling = (!self.leaking).then_some(towards);
        }
    }

    /// The most that fits below `memory_high`, by what a request needs once that is known, and by what is sure
    /// until then; less, while there is too little.
    pub(super) fn ceiling(&self) -> Option<u32> {
        let sure = match self.ceiling {
            Some(_) => self.frontier.reach_of_a_figure(),
            None => self.frontier.reach(),
        };
        let sure = sure.filter(|_| !self.leaking);
        let ceilings = [self.ceiling, self.hold.ceiling(), sure];
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
        // More and more requests for minutes are none.
        let mut bench = Bench::new();
        for i in 0..800 {
            let n = f64::from(i) / 40.0 + f64::from(i % 3);
            bench.look(n, 100.0 * MB + n * 10.0 * MB);
        }
        assert!(!bench.memory.leaking());
    }
}

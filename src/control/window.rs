//! One window of samples: long enough to mean something, short enough to act on.

use std::time::{Duration, Instant};

use super::Usage;
use super::routes::{PLACES, Routes};

/// Samples that close a window of a busy backend.
const FULL: u32 = 30;
/// And their effective number: of a hundred short requests and a long one, the long one decides.
const EFFECTIVE: f64 = 12.0;
/// Its least length.
const FULL_TIME: Duration = Duration::from_millis(100);
/// Its least length in size-biased mean latencies.
const FULL_LATENCIES: f64 = 2.0;
/// Samples that close a window at low traffic.
const SPARSE: u32 = 8;
/// Its least length.
const SPARSE_TIME: Duration = Duration::from_secs(1);
/// Its least length in size-biased mean latencies.
const SPARSE_LATENCIES: f64 = 3.0;
/// Samples that close a dip: fewer, because it costs throughput.
const DIP: u32 = 12;
/// Least length of a dip in size-biased mean latencies.
const DIP_LATENCIES: f64 = 1.0;
/// A dip that finds too few samples ends after this...
const DIP_TIME: Duration = Duration::from_secs(1);
/// ... and this many size-biased mean latencies.
const DIP_LATENCIES_MOST: f64 = 4.0;
/// Samples that close the window after a deep cut.
const TEST: u32 = 16;
/// Its least length in size-biased mean latencies.
const TEST_LATENCIES: f64 = 1.0;
/// When so many answers in a row find their clients gone, a lower limit costs nobody anything.
const IN_VAIN: u32 = 8;
/// A window that has gathered next to nothing for so long says nothing of now...
const TOO_OLD: Duration = Duration::from_secs(30);
/// ... unless requests take so long that it could not have: as many mean latencies as would do for one at a time,
/// and as many again.
const TOO_OLD_LATENCIES: f64 = 2.0 * SPARSE as f64;

/// How long a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// As long as it takes to be sure.
    Usual,
    /// Short: it costs throughput.
    Dip,
    /// Short: it follows a deep cut, whose effect is large if there is one.
    Test,
}

/// What a window gathers. Only requests started since the last change of the limit count,
/// except in `work`.
#[derive(Clone, Debug)]
pub(super) struct Window {
    start: Instant,
    usage: Option<Usage>,
    successes: u32,
    drops: u32,
    /// Successes by route: their costs are taken when the window closes, when more is known.
    count: [u32; PLACES],
    latency: f64,
    latency_squared: f64,
    /// Latency over cost, and squared: the noise.
    ratio: f64,
    ratio_squared: f64,
    /// Cost of every success that ended in the window, whenever it was started.
    work: f64,
    paused: f64,
    in_vain: InVain,
}

/// Answers in a row whose clients had left.
#[derive(Clone, Copy, Debug, Default)]
struct InVain {
    number: u32,
    /// When the first of them came.
    since: Option<Instant>,
    /// Whether one of them was started only after that. Requests whose clients a single pause of the backend
    /// has driven away were all started before.
    goes_on: bool,
}

/// A closed window, in plain figures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Summary {
    pub(super) samples: u32,
    pub(super) drops: u32,
    /// Latency per unit of cost; none without a success.
    pub(super) ratio: Option<f64>,
    /// Coefficient of variation of latency over cost, one request's.
    pub(super) variation: f64,
    /// `sqrt(Σb²)/Σb`: what remains of one request's variation in the window's mean.
    pub(super) averaging: f64,
    /// Cost completed a second.
    pub(super) work: f64,
    /// Mean requests in flight.
    pub(super) in_flight: f64,
    /// Share of time at the limit or with a queue.
    pub(super) limited: f64,
    /// Mean latency, seconds.
    pub(super) latency: f64,
    /// Whether the backend works for clients who have left, and for nobody else.
    pub(super) in_vain: bool,
}

impl Window {
    pub(super) fn new(start: Instant, usage: Option<Usage>) -> Self {
        Window {
            start,
            usage,
            successes: 0,
            drops: 0,
            count: [0; PLACES],
            latency: 0.0,
            latency_squared: 0.0,
            ratio: 0.0,
            ratio_squared: 0.0,
            work: 0.0,
            paused: 0.0,
            in_vain: InVain::default(),
        }
    }

    /// A success of this window.
    pub(super) fn success(&mut self, route: usize, latency: f64, cost: f64) {
        self.successes += 1;
        self.count[route] += 1;
        self.latency += latency;
        self.latency_squared += latency * latency;
        let ratio = latency / cost;
        self.ratio += ratio;
        self.ratio_squared += ratio * ratio;
    }

    /// Whether its client was still there.
    pub(super) fn heard(&mut self, was_heard: bool, started: Instant, finished: Instant) {
        if was_heard {
            self.in_vain = InVain::default();
            return;
        }
        let run = &mut self.in_vain;
        run.number += 1;
        let since = *run.since.get_or_insert(finished);
        run.goes_on |= started >= since;
    }

    /// Whether the backend works for clients who have left, and for nobody else.
    fn is_in_vain(&self) -> bool {
        self.in_vain.goes_on && self.in_vain.number >= IN_VAIN
    }

    /// A sign of overload.
    pub(super) fn drop(&mut self) {
        self.drops += 1;
    }

    /// Work that ended within the window, whenever it started.
    pub(super) fn worked(&mut self, cost: f64) {
        self.work += cost;
    }

    /// A pause of the backend ended, which may have begun before the window did.
    pub(super) fn paused(&mut self, from: Instant, to: Instant) {
        let within = to.saturating_duration_since(from.max(self.start));
        self.paused += within.as_secs_f64();
    }

    pub(super) fn samples(&self) -> u32 {
        self.successes + self.drops
    }

    /// Size-biased mean latency: what a request that is seen in flight takes. None until 8 samples.
    pub(super) fn size_biased(&self) -> Option<f64> {
        (self.successes >= SPARSE && self.latency > 0.0)
            .then(|| self.latency_squared / self.latency)
    }

    /// A cheap first look: whether there are samples enough.
    pub(super) fn may_close(&self, pace: Pace) -> bool {
        pace == Pace::Dip || self.samples() >= SPARSE
    }

    /// Whether the window is long enough; `size_biased` is the mean latency by which to judge.
    pub(super) fn closes(&self, now: Instant, size_biased: f64, pace: Pace) -> bool {
        let age = now.saturating_duration_since(self.start).as_secs_f64();
        let lasted = |least: Duration, latencies: f64| {
            age >= least.as_secs_f64() && age >= latencies * size_biased
        };
        let n = self.samples();
        if pace != Pace::Dip && self.is_in_vain() {
            return true;
        }
        if pace == Pace::Test && n >= TEST && lasted(Duration::ZERO, TEST_LATENCIES) {
            return true;
        }
        if pace == Pace::Dip {
            return (n >= DIP && lasted(Duration::ZERO, DIP_LATENCIES))
                || lasted(DIP_TIME, DIP_LATENCIES_MOST);
        }
        let effective = self.latency * self.latency >= EFFECTIVE * self.latency_squared;
        (n >= FULL && effective && lasted(FULL_TIME, FULL_LATENCIES))
            || (n >= SPARSE && lasted(SPARSE_TIME, SPARSE_LATENCIES))
    }

    /// Whether to start over, because it has gathered nothing, or too little for too long; `latency` is a mean, in
    /// seconds, 0 while it is unknown.
    pub(super) fn is_stale(&self, now: Instant, usage: &Usage, latency: f64) -> bool {
        let n = self.samples();
        let age = now.saturating_duration_since(self.start).as_secs_f64();
        (n == 0 && usage.in_flight == 0 && usage.queued == 0)
            || (n < SPARSE && age > TOO_OLD.as_secs_f64().max(TOO_OLD_LATENCIES * latency))
    }

    /// The share of its time at the limit or with a queue.
    pub(super) fn saturation(&self, now: Instant, usage: &Usage) -> f64 {
        let age = now.saturating_duration_since(self.start).as_secs_f64();
        let since = self.usage.unwrap_or(*usage);
        (usage.saturated_seconds - since.saturated_seconds) / age.max(1e-6)
    }

    /// The first reading of usage, when there was none at the start.
    pub(super) fn anchor(&mut self, now: Instant, usage: &Usage) {
        if self.usage.is_none() {
            self.start = now;
            self.usage = Some(*usage);
        }
    }

    /// The window in figures.
    pub(super) fn summary(&self, now: Instant, usage: &Usage, routes: &Routes) -> Summary {
        let age = now.saturating_duration_since(self.start).as_secs_f64();
        let active = (age - self.paused).max(0.1 * age).max(1e-6);
        let since = self.usage.unwrap_or(*usage);
        let grown = |a: f64, b: f64| {
            let d = b - a;
            if d.is_finite() { d.max(0.0) } else { 0.0 }
        };
        let saturated = grown(since.saturated_seconds, usage.saturated_seconds);
        let (mut cost, mut squares) = (0.0, 0.0);
        for (i, &n) in self.count.iter().enumerate().filter(|(_, n)| **n > 0) {
            let b = routes.cost(i);
            cost += f64::from(n) * b;
            squares += f64::from(n) * b * b;
        }
        let n = f64::from(self.successes.max(1));
        let mean = self.ratio / n;
        let variance = (self.ratio_squared / n - mean * mean).max(0.0);
        Summary {
            samples: self.samples(),
            drops: self.drops,
            ratio: (cost > 0.0 && self.latency > 0.0).then(|| self.latency / cost),
            variation: if mean > 0.0 {
                variance.sqrt() / mean
            } else {
                0.0
            },
            averaging: if cost > 0.0 {
                squares.sqrt() / cost
            } else {
                1.0
            },
            work: self.work / active,
            in_flight: grown(since.busy_seconds, usage.busy_seconds) / age.max(1e-6),
            limited: ((saturated - self.paused) / active).clamp(0.0, 1.0),
            latency: self.latency / n,
            in_vain: self.is_in_vain(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_by_count_and_time() {
        let start = crate::clock::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut window = Window::new(start, None);
        for _ in 0..8 {
            window.success(0, 0.02, 0.02);
        }
        assert!(!window.closes(after(999), 0.02, Pace::Usual));
        assert!(window.closes(after(1000), 0.02, Pace::Usual));
        assert!(
            !window.closes(after(1000), 0.4, Pace::Usual),
            "three latencies at least"
        );
        for _ in 0..22 {
            window.success(0, 0.02, 0.02);
        }
        assert!(!window.closes(after(99), 0.02, Pace::Usual));
        assert!(window.closes(after(100), 0.02, Pace::Usual));
        assert!(window.closes(after(20), 0.02, Pace::Dip), "a dip is short");
    }

    #[test]
    fn closes_when_nobody_hears_the_answers() {
        let start = crate::clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let closes = |answers: &[(u64, u64, bool)]| {
            let mut window = Window::new(start, None);
            for &(started, finished, was_heard) in answers {
                window.success(0, 0.3, 0.05);
                window.heard(was_heard, at(started), at(finished));
            }
            window.closes(at(600), 0.3, Pace::Usual)
        };
        let vain = |n: u64| (0..n).map(|i| (i * 30, 300 + i * 30, false));
        assert!(closes(&vain(11).collect::<Vec<_>>()));
        assert!(!closes(&vain(7).collect::<Vec<_>>()), "too few");
        let heard = vain(10).chain([(290, 590, true)]);
        assert!(!closes(&heard.collect::<Vec<_>>()), "one was heard");
        // A pause of the backend has driven away all who were there.
        let together = [(0, 500, false); 12];
        assert!(!closes(&together));
    }

    #[test]
    fn of_a_pause_only_what_is_within_the_window_is_taken_out() {
        let start = crate::clock::now() + Duration::from_secs(1);
        let mut window = Window::new(start, Some(Usage::default()));
        window.worked(1.0);
        window.paused(
            start - Duration::from_millis(300),
            start + Duration::from_millis(200),
        );
        let end = start + Duration::from_millis(700);
        let summary = window.summary(end, &Usage::default(), &Routes::new());
        assert!((summary.work - 2.0).abs() < 1e-9, "{}", summary.work);
    }

    #[test]
    fn too_little_for_too_long_is_thrown_away_unless_requests_take_that_long() {
        let start = crate::clock::now();
        let mut window = Window::new(start, None);
        window.success(0, 10.0, 10.0);
        let busy = Usage {
            in_flight: 1,
            ..Usage::default()
        };
        let is_stale = |seconds, latency| {
            let now = start + Duration::from_secs(seconds);
            window.is_stale(now, &busy, latency)
        };
        assert!(!is_stale(30, 0.1));
        assert!(is_stale(31, 0.1));
        assert!(!is_stale(90, 10.0), "one at a time, eight would take 80 s");
        assert!(is_stale(161, 10.0));
    }

    #[test]
    fn stretch_ignores_the_mix() {
        let start = crate::clock::now();
        let mut routes = Routes::new();
        for _ in 0..50 {
            routes.learn(0, 0.02, true);
            routes.learn(1, 0.4, true);
        }
        for slow in [1, 10, 30] {
            let mut window = Window::new(start, None);
            for i in 0..40 {
                let (route, cost) = if i < slow { (1, 0.4) } else { (0, 0.02) };
                window.success(route, 1.5 * cost, cost);
            }
            let summary =
                window.summary(start + Duration::from_secs(1), &Usage::default(), &routes);
            assert!((summary.ratio.unwrap() - 1.5).abs() < 1e-9);
        }
    }
}

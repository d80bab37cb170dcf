//! Envoy's adaptive concurrency filter: the median of a window over a minimum that is measured now
//! and then with the limit held at 3.

use fastrand::Rng;

use super::{Rule, Seen};

/// Between two changes, seconds.
const INTERVAL: f64 = 0.1;
/// Between two measurements of the minimum, seconds, and up to 15 % more.
const REMEASURE: f64 = 60.0;
/// Samples of such a measurement.
const SAMPLES: usize = 50;
/// The limit during one, and the least at any time.
const LEAST: f64 = 3.0;
/// The most.
const MOST: f64 = 1000.0;
/// How much latency above the minimum is fine.
const BUFFER: f64 = 0.25;
/// So many windows at the least limit, and the minimum is measured again.
const STUCK: u32 = 5;

/// See the module's documentation.
pub struct Gradient {
    limit: f64,
    /// Seconds since the start of the measurement under way.
    measuring: Option<f64>,
    minimum: f64,
    samples: Vec<f64>,
    window: f64,
    remeasure: f64,
    stuck: u32,
    rng: Rng,
}

impl Gradient {
    pub fn new() -> Self {
        Gradient {
            limit: LEAST,
            measuring: Some(0.0),
            minimum: 0.0,
            samples: Vec::new(),
            window: INTERVAL,
            remeasure: f64::INFINITY,
            stuck: 0,
            rng: Rng::with_seed(1),
        }
    }

    fn measure(&mut self, at: f64) {
        self.measuring = Some(at);
        self.samples.clear();
        self.stuck = 0;
    }

    fn median(&mut self) -> f64 {
        let half = self.samples.len() / 2;
        let (_, median, _) = self.samples.select_nth_unstable_by(half, f64::total_cmp);
        *median
    }
}

impl Rule for Gradient {
    fn limit(&self) -> f64 {
        match self.measuring {
            Some(_) => LEAST,
            None => self.limit,
        }
    }

    fn observe(&mut self, seen: &Seen) {
        // A reset stream gives no sample, nor does one that was let in before the measurement.
        let too_old = self.measuring.is_some_and(|since| seen.started < since);
        if seen.abandoned || seen.dropped || too_old {
            return;
        }
        self.samples.push(seen.rtt);
        if self.measuring.is_some() && self.samples.len() >= SAMPLES {
            self.minimum = self.median();
            self.samples.clear();
            self.measuring = None;
            self.window = seen.at + INTERVAL;
            self.remeasure = seen.at + REMEASURE * (1.0 + 0.15 * self.rng.f64());
        }
    }

    fn tick(&mut self, at: f64) {
        if self.measuring.is_some() {
            return;
        }
        if at >= self.remeasure {
            self.measure(at);
            return;
        }
        if at < self.window {
            return;
        }
        self.window = at + INTERVAL;
        if self.samples.is_empty() {
            return;
        }
        let gradient = ((1.0 + BUFFER) * self.minimum / self.median()).clamp(0.5, 2.0);
        self.samples.clear();
        let scaled = self.limit * gradient;
        self.limit = (scaled + scaled.sqrt()).floor().clamp(LEAST, MOST);
        self.stuck = if self.limit <= LEAST {
            self.stuck + 1
        } else {
            0
        };
        if self.stuck >= STUCK {
            self.measure(at);
        }
    }

    fn frees_abandoned(&self) -> bool {
        true
    }
}

//! brpc's "auto" limiter: Little's law on the least latency and the greatest rate seen, with a margin
//! to explore.

use super::{Rule, Seen};

/// A window is so long, seconds, or so many samples; with fewer than the least it is thrown away.
const WINDOW: f64 = 1.0;
const WINDOW_MOST: u32 = 200;
const WINDOW_LEAST: u32 = 100;
/// Gain of the least latency, downward only.
const GAIN: f64 = 0.1;
/// Gain of the greatest rate, downward only.
const RATE_GAIN: f64 = 0.01;
/// The margin to explore, and its step.
const EXPLORE: (f64, f64) = (0.06, 0.3);
const EXPLORE_STEP: f64 = 0.02;
/// Seconds between two measurements of the least latency; the middle of 25 to 50.
const REMEASURE: f64 = 37.5;
/// The limit during one, over what Little's law says.
const REDUCED: f64 = 0.9;

/// See the module's documentation.
pub struct Auto {
    limit: f64,
    least: Option<f64>,
    rate: f64,
    explore: f64,
    window: f64,
    succeeded: u32,
    failed: u32,
    sum: f64,
    failed_sum: f64,
    remeasure: f64,
    /// Until when the limit is reduced.
    reduced: Option<f64>,
}

impl Auto {
    pub fn new() -> Self {
        Auto {
            limit: 40.0,
            least: None,
            rate: 0.0,
            explore: EXPLORE.1,
            window: 0.0,
            succeeded: 0,
            failed: 0,
            sum: 0.0,
            failed_sum: 0.0,
            remeasure: REMEASURE,
            reduced: None,
        }
    }

    fn restart(&mut self, at: f64) {
        self.window = at;
        (self.succeeded, self.failed) = (0, 0);
        (self.sum, self.failed_sum) = (0.0, 0.0);
    }

    fn close(&mut self, at: f64) {
        if self.succeeded == 0 {
            self.limit = (self.limit / 2.0).max(1.0);
            return;
        }
        let latency = (self.sum + self.failed_sum) / f64::from(self.succeeded);
        let rate = f64::from(self.succeeded) / (at - self.window);
        let least = match self.least {
            None => latency,
            Some(least) if latency < least => least + GAIN * (latency - least),
            Some(least) => least,
        };
        self.least = Some(least);
        self.rate = if rate >= self.rate {
            rate
        } else {
            self.rate + RATE_GAIN * (rate - self.rate)
        };
        if at >= self.remeasure {
            self.limit = (REDUCED * least * self.rate).ceil().max(1.0);
            self.reduced = Some(at + 2.0 * latency);
            self.remeasure = at + REMEASURE;
            return;
        }
        let margin = 1.0 + EXPLORE.0;
        self.explore += if latency <= least * margin || rate <= self.rate / margin {
            EXPLORE_STEP
        } else {
            -EXPLORE_STEP
        };
        self.explore = self.explore.clamp(EXPLORE.0, EXPLORE.1);
        self.limit = (least * self.rate * (1.0 + self.explore)).ceil().max(1.0);
    }
}

impl Rule for Auto {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn observe(&mut self, seen: &Seen) {
        if let Some(until) = self.reduced {
            if seen.at < until {
                return;
            }
            self.reduced = None;
            self.least = None;
            self.restart(seen.at);
            return;
        }
        if seen.dropped {
            self.failed += 1;
            self.failed_sum += seen.rtt;
        } else {
            self.succeeded += 1;
            self.sum += seen.rtt;
        }
        let samples = self.succeeded + self.failed;
        if seen.at - self.window < WINDOW && samples < WINDOW_MOST {
            return;
        }
        if samples >= WINDOW_LEAST {
            self.close(seen.at);
        }
        self.restart(seen.at);
    }
}

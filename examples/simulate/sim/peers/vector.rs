//! Vector's adaptive request concurrency: one more while the window's mean latency is not above its
//! moving average, a tenth less when it is far above or the service pushes back.

use super::{Rule, Seen};

/// Gain of the moving average.
const GAIN: f64 = 0.4;
/// Standard deviations above the average that are too many.
const DEVIATIONS: f64 = 2.5;
/// The most.
const MOST: f64 = 200.0;

/// See the module's documentation.
pub struct Arc {
    limit: f64,
    /// Moving average of latency, and its variance.
    past: Option<(f64, f64)>,
    sum: f64,
    samples: u32,
    reached: bool,
    pushed_back: bool,
    until: f64,
}

impl Arc {
    pub fn new() -> Self {
        Arc {
            limit: 1.0,
            past: None,
            sum: 0.0,
            samples: 0,
            reached: false,
            pushed_back: false,
            until: 0.0,
        }
    }
}

impl Rule for Arc {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn observe(&mut self, seen: &Seen) {
        // To this client a time-out is a push back, like an error that may be tried again.
        if seen.dropped || seen.abandoned {
            self.pushed_back = true;
        } else {
            self.sum += seen.rtt;
            self.samples += 1;
        }
        self.reached |= f64::from(seen.in_flight) >= self.limit.floor();
        if seen.at < self.until {
            return;
        }
        let current = (self.samples > 0).then(|| self.sum / f64::from(self.samples));
        if let (Some(current), Some((mean, variance))) = (current, self.past) {
            let far = mean + DEVIATIONS * variance.sqrt();
            if self.pushed_back || current >= far && variance > 0.0 {
                self.limit = (0.9 * self.limit).floor().max(1.0);
            } else if self.reached && current <= mean {
                self.limit = (self.limit + 1.0).min(MOST);
            }
        } else if self.pushed_back {
            self.limit = (0.9 * self.limit).floor().max(1.0);
        }
        if let Some(current) = current {
            self.past = Some(match self.past {
                None => (current, 0.0),
                Some((mean, variance)) => {
                    let change = current - mean;
                    let mean = mean + GAIN * change;
                    (mean, (1.0 - GAIN) * (variance + GAIN * change * change))
                }
            });
        }
        self.until = seen.at + self.past.map_or(0.0, |(mean, _)| mean);
        (self.sum, self.samples) = (0.0, 0);
        (self.reached, self.pushed_back) = (false, false);
    }
}

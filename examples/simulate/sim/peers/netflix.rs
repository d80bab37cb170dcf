//! concurrency-limits: AIMD, Vegas and Gradient2, and the window of one second around them.

use fastrand::Rng;

use super::{Rule, Seen};

/// Where all of them start.
const INITIAL: f64 = 20.0;
/// The least limit; the project's default of 20 is above the knee of a small backend.
const LEAST: f64 = 1.0;
/// An answer later than this counts as a drop in AIMD. The project's default is 5 s, longer than the
/// simulated clients wait.
const DROP_AFTER: f64 = 1.0;

/// One more for each success while the limit is in use, a tenth less for each drop.
pub struct Aimd {
    limit: f64,
}

impl Aimd {
    pub fn new() -> Self {
        Aimd { limit: INITIAL }
    }
}

impl Rule for Aimd {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn observe(&mut self, seen: &Seen) {
        if seen.dropped || seen.rtt > DROP_AFTER {
            self.limit = (0.9 * self.limit).floor();
        } else if 2.0 * f64::from(seen.in_flight) >= self.limit {
            self.limit += 1.0;
        }
        self.limit = self.limit.clamp(LEAST, 200.0);
    }
}

/// Estimates the queue from the latency over the least latency ever seen, which it forgets now and
/// then for the latest one.
pub struct Vegas {
    limit: f64,
    least: Option<f64>,
    samples: f64,
    rng: Rng,
    jitter: f64,
}

impl Vegas {
    pub fn new() -> Self {
        let mut rng = Rng::with_seed(1);
        let jitter = 0.5 + 0.5 * rng.f64();
        Vegas {
            limit: INITIAL,
            least: None,
            samples: 0.0,
            rng,
            jitter,
        }
    }
}

impl Rule for Vegas {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn observe(&mut self, seen: &Seen) {
        self.samples += 1.0;
        if self.samples >= self.jitter * 30.0 * self.limit {
            self.samples = 0.0;
            self.jitter = 0.5 + 0.5 * self.rng.f64();
            self.least = Some(seen.rtt);
            return;
        }
        let least = match self.least {
            Some(least) if least <= seen.rtt => least,
            _ => {
                self.least = Some(seen.rtt);
                return;
            }
        };
        let step = self.limit.log10().floor().max(1.0);
        let queue = (self.limit * (1.0 - least / seen.rtt)).ceil();
        if seen.dropped {
            self.limit -= step;
        } else if 2.0 * f64::from(seen.in_flight) < self.limit {
            return;
        } else if queue <= step {
            self.limit += 6.0 * step;
        } else if queue < 3.0 * step {
            self.limit += step;
        } else if queue > 6.0 * step {
            self.limit -= step;
        }
        self.limit = self.limit.clamp(LEAST, 1000.0);
    }
}

/// The latency over a long average of it.
pub struct Gradient2 {
    limit: f64,
    average: f64,
    windows: u32,
}

impl Gradient2 {
    pub fn new() -> Self {
        Gradient2 {
            limit: INITIAL,
            average: 0.0,
            windows: 0,
        }
    }
}

impl Rule for Gradient2 {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn observe(&mut self, seen: &Seen) {
        self.windows += 1;
        let gain = if self.windows <= 10 {
            1.0 / f64::from(self.windows)
        } else {
            2.0 / 601.0
        };
        self.average += gain * (seen.rtt - self.average);
        if self.average / seen.rtt > 2.0 {
            self.average *= 0.95;
        }
        if f64::from(seen.in_flight) < self.limit / 2.0 {
            return;
        }
        let gradient = (1.5 * self.average / seen.rtt).clamp(0.5, 1.0);
        let next = gradient * self.limit + 4.0;
        self.limit = (0.8 * self.limit + 0.2 * next).clamp(LEAST, 200.0);
    }
}

/// One sample a second for the rule inside: the mean latency, the most in flight, whether anything
/// was dropped. A window of fewer than ten is thrown away.
pub struct Windowed<R> {
    rule: R,
    until: f64,
    samples: u32,
    sum: f64,
    most: u32,
    dropped: bool,
}

impl<R: Rule> Windowed<R> {
    pub fn new(rule: R) -> Self {
        Windowed {
            rule,
            until: 1.0,
            samples: 0,
            sum: 0.0,
            most: 0,
            dropped: false,
        }
    }
}

impl<R: Rule> Rule for Windowed<R> {
    fn limit(&self) -> f64 {
        self.rule.limit()
    }

    fn observe(&mut self, seen: &Seen) {
        self.samples += 1;
        self.sum += seen.rtt;
        self.most = self.most.max(seen.in_flight);
        self.dropped |= seen.dropped;
        if seen.at < self.until {
            return;
        }
        if self.samples >= 10 {
            self.rule.observe(&Seen {
                rtt: self.sum / f64::from(self.samples),
                in_flight: self.most,
                dropped: self.dropped,
                ..*seen
            });
        }
        (self.samples, self.sum, self.most, self.dropped) = (0, 0.0, 0, false);
        self.until = seen.at + 1.0;
    }
}

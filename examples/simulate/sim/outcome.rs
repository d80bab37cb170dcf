//! What a phase came to.

use std::collections::BTreeMap;

use tidegate::limit::BoundBy;

/// One phase of one run. A request counts in the phase in which it arrives; what becomes of it after
/// that phase is not counted, so that no backlog makes a phase look better than it was.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub seconds: f64,
    /// Requests that clients meant.
    pub offered: u32,
    /// Answered within the client's deadline, at any attempt.
    pub good: u32,
    /// Refused, at the last attempt.
    pub refused: u32,
    /// Given up by the client, at the last attempt.
    pub late: u32,
    /// Answered with an error, lost with a backend that went down, or sent to one that was.
    pub failed: u32,
    /// Still under way when the phase ended.
    pub open: u32,
    /// Attempts beyond the first.
    pub retries: u32,
    /// Attempts that the backend completed after the client gave up.
    pub wasted: u32,
    /// The same by class: offered, good.
    pub classes: Vec<(u32, u32)>,
    /// Good by tidegate.
    pub by_proxy: Vec<u32>,
    /// Seconds from arrival to answer, of attempts that got a permit; those who gave up count with
    /// their time-out. Sorted once the run is over.
    pub latencies: Vec<f32>,
    /// The same by class.
    pub class_latencies: Vec<Vec<f32>>,
    /// Limits and in-flight, all tidegates together.
    pub limit: Level,
    pub in_flight: Level,
    /// The most that was in flight beyond the limit when a request was let in; 0 by design.
    pub over_limit: u32,
    /// How often the backend ran out of memory.
    pub killed: u32,
    /// Decisions by reason.
    pub reasons: BTreeMap<&'static str, u32>,
    /// Seconds by what bound the limit, all tidegates together.
    pub bound_by: Vec<(BoundBy, f64)>,
}

/// A figure over time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Level {
    seconds: f64,
    area: f64,
    squares: f64,
    /// At the end.
    pub last: u32,
    pub least: u32,
    pub most: u32,
}

impl Level {
    pub fn add(&mut self, value: u32, seconds: f64) {
        if seconds <= 0.0 {
            return;
        }
        self.least = if self.seconds == 0.0 {
            value
        } else {
            self.least.min(value)
        };
        self.most = self.most.max(value);
        self.last = value;
        self.seconds += seconds;
        self.area += seconds * f64::from(value);
        self.squares += seconds * f64::from(value).powi(2);
    }

    pub fn mean(&self) -> f64 {
        self.area / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Standard deviation over time.
    pub fn deviation(&self) -> f64 {
        let mean = self.mean();
        let variance = self.squares / self.seconds.max(f64::MIN_POSITIVE) - mean * mean;
        variance.max(0.0).sqrt()
    }
}

impl Outcome {
    pub fn new(seconds: f64, classes: usize, proxies: usize) -> Self {
        Outcome {
            seconds,
            classes: vec![(0, 0); classes],
            by_proxy: vec![0; proxies],
            class_latencies: vec![Vec::new(); classes],
            ..Outcome::default()
        }
    }

    /// The limit was bound by this for so many seconds more.
    pub fn bound(&mut self, by: BoundBy, seconds: f64) {
        match self.bound_by.iter_mut().find(|(other, _)| *other == by) {
            Some((_, sum)) => *sum += seconds,
            None => self.bound_by.push((by, seconds)),
        }
    }

    /// Requests a second.
    pub fn goodput(&self) -> f64 {
        f64::from(self.good) / self.seconds
    }

    /// `count` as a share of what was offered.
    pub fn share(&self, count: u32) -> f64 {
        f64::from(count) / f64::from(self.offered.max(1))
    }

    /// Milliseconds.
    pub fn latency(&self, quantile: f64) -> f64 {
        percentile(&self.latencies, quantile)
    }

    /// Share of a class's requests that were answered in time.
    pub fn class_success(&self, class: usize) -> f64 {
        let (offered, good) = self.classes[class];
        f64::from(good) / f64::from(offered.max(1))
    }

    /// Jain's index of the tidegates' shares: 1 = equal.
    pub fn fairness(&self) -> f64 {
        let sum: f64 = self.by_proxy.iter().map(|&good| f64::from(good)).sum();
        let squares: f64 = (self.by_proxy.iter())
            .map(|&good| f64::from(good).powi(2))
            .sum();
        if squares == 0.0 {
            return 1.0;
        }
        sum * sum / (self.by_proxy.len() as f64 * squares)
    }

    /// To be called once, when nothing is added any more.
    pub fn close(&mut self) {
        self.open = self.offered - self.good - self.refused - self.late - self.failed;
        self.latencies.sort_unstable_by(f32::total_cmp);
        for latencies in &mut self.class_latencies {
            latencies.sort_unstable_by(f32::total_cmp);
        }
    }
}

/// Of sorted seconds, in milliseconds; 0 of nothing.
pub fn percentile(sorted: &[f32], quantile: f64) -> f64 {
    let at = (quantile * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted
        .get(at)
        .map_or(0.0, |&seconds| f64::from(seconds) * 1e3)
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (n, half) = (values.len(), values.len() / 2);
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[half],
        _ => (values[half - 1] + values[half]) / 2.0,
    }
}

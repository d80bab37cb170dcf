//! What the traffic was like lately: rates and latencies over the last seconds, for people.
//!
//! Prometheus computes these from the counters; `/status`, the dashboard and `tidegate status` have
//! no Prometheus to ask.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    histogram::{BOUNDS, Reading},
    labels::Reason,
    metrics::{Metrics, Totals},
};

/// How far back it looks.
pub const WINDOW: Duration = Duration::from_secs(15);

/// All counts over all routes at one moment; they only ever grow.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Requests by how they ended.
    pub totals: Totals,
    /// Answers of tidegate's own, by `reason as usize`.
    pub reasons: [u64; Reason::ALL.len()],
    /// From the request's head to the last byte of its answer.
    pub request_seconds: Reading,
    /// From the permit to the end of the backend's work.
    pub backend_seconds: Reading,
}

/// A ring of counts.
#[derive(Debug, Default)]
pub struct Traffic {
    history: VecDeque<(Instant, Counts)>,
}

impl Traffic {
    /// Takes the counts of now; to be called about once a second.
    pub fn note(&mut self, now: Instant, metrics: &Metrics) {
        self.history.push_back((now, metrics.counts()));
        // The oldest one is the first that is at least a window old.
        while self.history.len() > 1 && now.saturating_duration_since(self.history[1].0) >= WINDOW {
            self.history.pop_front();
        }
    }

    /// Requests that were refused for want of slots, so far.
    pub fn refused_for_load(&self) -> u64 {
        let of = |counts: &Counts| {
            let reasons = [Reason::QueueFull, Reason::QueueTimeout, Reason::Deadline];
            reasons
                .map(|reason| counts.reasons[reason as usize])
                .iter()
                .sum()
        };
        self.history.back().map_or(0, |(_, counts)| of(counts))
    }

    /// What happened between the oldest counts and the latest ones; `None` before there are two.
    pub fn rates(&self) -> Option<Rates> {
        let ((from, old), (to, new)) = (self.history.front()?, self.history.back()?);
        let seconds = to.saturating_duration_since(*from).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let rate = |of: fn(&Totals) -> u64| {
            of(&new.totals).saturating_sub(of(&old.totals)) as f64 / seconds
        };
        Some(Rates {
            seconds,
            requests: rate(|totals| totals.backend + totals.tidegate),
            answered: rate(|totals| totals.backend),
            refused: rate(|totals| totals.refused),
            would_refuse: rate(|totals| totals.would_refuse),
            canceled: rate(|totals| totals.canceled),
            request_seconds: Latency::between(&old.request_seconds, &new.request_seconds),
            backend_seconds: Latency::between(&old.backend_seconds, &new.backend_seconds),
        })
    }
}

/// Means over the last seconds; rates are per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Over how many seconds.
    pub seconds: f64,
    /// Requests that got an answer, whoever gave it.
    pub requests: f64,
    /// Requests that the backend answered.
    pub answered: f64,
    /// Requests refused to shed load.
    pub refused: f64,
    /// Requests that a dry run would have refused.
    pub would_refuse: f64,
    /// Requests whose client left.
    pub canceled: f64,
    /// From the request's head to the last byte of its answer; `None` without requests.
    pub request_seconds: Option<Latency>,
    /// From the permit to the end of the backend's work; `None` without requests.
    pub backend_seconds: Option<Latency>,
}

/// Latencies in seconds. The quantiles are read off the histogram's buckets, within which they are
/// interpolated, as Prometheus' `histogram_quantile` does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 95 of 100 took no longer.
    pub p95: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
}

impl Latency {
    fn between(old: &Reading, new: &Reading) -> Option<Self> {
        let mut cumulative = new.cumulative;
        for (count, before) in cumulative.iter_mut().zip(&old.cumulative) {
            *count = count.saturating_sub(*before);
        }
        let count = cumulative[BOUNDS.len()];
        (count > 0).then(|| Latency {
            mean: (new.sum_seconds - old.sum_seconds).max(0.0) / count as f64,
            p50: quantile(&cumulative, 0.5),
            p95: quantile(&cumulative, 0.95),
            p99: quantile(&cumulative, 0.99),
        })
    }
}

/// The quantile `q` of what the cumulative buckets hold; beyond the last bound it is that bound.
fn quantile(cumulative: &[u64; BOUNDS.len() + 1], q: f64) -> f64 {
    let rank = q * cumulative[BOUNDS.len()] as f64;
    let bucket = cumulative.partition_point(|count| (*count as f64) < rank);
    let Some(upper) = BOUNDS.get(bucket) else {
        return BOUNDS[BOUNDS.len() - 1];
    };
    let (lower, below) = match bucket.checked_sub(1) {
        Some(previous) => (BOUNDS[previous], cumulative[previous] as f64),
        None => (0.0, 0.0),
    };
    let within = (cumulative[bucket] as f64 - below).max(1.0);
    lower + (upper - lower) * ((rank - below) / within).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, observe::labels::Source};

    #[test]
    fn rates_are_of_the_last_window_only() {
        let metrics = Metrics::new();
        let route = metrics.route("api");
        let mut traffic = Traffic::default();
        let start = clock::now();
        assert_eq!(traffic.rates(), None);
        for second in 0..=40_u64 {
            traffic.note(start + Duration::from_secs(second), &metrics);
            // Ten a second at first, then one a second.
            for _ in 0..(if second < 20 { 10 } else { 1 }) {
                route.request(200, Source::Backend);
                route.request_seconds(Duration::from_millis(40));
            }
            if second >= 20 {
                route.rejected(Reason::QueueFull);
            }
        }
        let rates = traffic.rates().unwrap();
        assert_eq!(rates.seconds, 15.0);
        assert_eq!(rates.answered, 1.0);
        assert_eq!(rates.refused, 1.0);
        let latency = rates.request_seconds.unwrap();
        assert!((latency.mean - 0.04).abs() < 1e-9);
        assert!(latency.p50 > 0.025 && latency.p99 <= 0.05, "{latency:?}");
        assert_eq!(rates.backend_seconds, None);
    }

    #[test]
    fn a_quantile_beyond_the_last_bound_is_that_bound() {
        let mut cumulative = [0; BOUNDS.len() + 1];
        cumulative[BOUNDS.len()] = 3;
        assert_eq!(quantile(&cumulative, 0.99), 60.0);
    }

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        // Ten between 50 ms and 100 ms.
        let mut cumulative = [0; BOUNDS.len() + 1];
        cumulative[6..].fill(10);
        assert!((quantile(&cumulative, 0.5) - 0.075).abs() < 1e-12);
        // And as many below.
        cumulative[5] = 10;
        cumulative[6..].fill(20);
        assert!((quantile(&cumulative, 0.75) - 0.075).abs() < 1e-12);
    }
}

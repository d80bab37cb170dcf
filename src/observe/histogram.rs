//! A histogram of durations: fixed buckets, no lock, two atomic additions an observation.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The upper bounds of the buckets in nanoseconds, the last one (+Inf) left out.
const BOUNDS_NANOS: [u64; 15] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// The upper bounds of the buckets in seconds, the last one (+Inf) left out.
pub const BOUNDS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Durations, counted by bucket.
///
/// There is no count of its own: it is the sum of the buckets, so that a scrape never sees the two
/// disagree.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        // 2^64 ns are 584 years.
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NANOS.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Reading {
        let mut cumulative = [0; BOUNDS.len() + 1];
        let mut count = 0;
        for (total, bucket) in cumulative.iter_mut().zip(&self.buckets) {
            count += bucket.load(Relaxed);
            *total = count;
        }
        let sum_seconds = Duration::from_nanos(self.sum_nanos.load(Relaxed)).as_secs_f64();
        Reading {
            cumulative,
            sum_seconds,
        }
    }
}

/// A histogram at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// How many were at most as long as each of [`BOUNDS`]; the last is the count of all.
    pub cumulative: [u64; BOUNDS.len() + 1],
    /// Their sum, in seconds.
    pub sum_seconds: f64,
}

impl Reading {
    /// Both together.
    pub(super) fn add(&mut self, other: &Reading) {
        for (count, more) in self.cumulative.iter_mut().zip(&other.cumulative) {
            *count += more;
        }
        self.sum_seconds += other.sum_seconds;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.cumulative[BOUNDS.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_tables_of_bounds_agree() {
        for (seconds, nanos) in BOUNDS.iter().zip(BOUNDS_NANOS) {
            assert_eq!(
                Duration::from_secs_f64(*seconds),
                Duration::from_nanos(nanos)
            );
        }
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::default();
        histogram.observe(Duration::ZERO);
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_nanos(1_000_001));
        histogram.observe(Duration::from_secs(60));
        histogram.observe(Duration::from_secs(61));
        let reading = histogram.read();
        assert_eq!(reading.cumulative[0], 2);
        assert_eq!(reading.cumulative[1], 3);
        assert_eq!(reading.cumulative[14], 4);
        assert_eq!(reading.count(), 5);
        assert!((reading.sum_seconds - 121.002_000_001).abs() < 1e-9);
    }

    #[test]
    fn an_absurd_duration_is_counted_and_does_not_panic() {
        let histogram = Histogram::default();
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.read().count(), 1);
    }
}

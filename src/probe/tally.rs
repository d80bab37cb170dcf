//! From finished requests to the figures of one step. Pure.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// How a request of the probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx or 3xx.
    Success,
    /// 4xx: an answer, if not the one that was wanted.
    ClientError,
    /// 5xx, but for 503.
    ServerError,
    /// 429 or 503: "not now".
    Refused,
    /// No connection.
    Unreachable,
    /// A connection that broke, or an answer that is not HTTP.
    Broken,
    /// No whole answer in time.
    Timeout,
}

impl Outcome {
    /// Whether the server did the work that was asked of it.
    pub fn answered(self) -> bool {
        matches!(self, Self::Success | Self::ClientError)
    }
}

/// One request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// When its client began to connect.
    pub started: Instant,
    /// When its response was complete.
    pub ended: Instant,
    /// How it ended.
    pub outcome: Outcome,
}

/// How often each kind of failure was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// 5xx, but for 503.
    pub server: u64,
    /// 429 or 503.
    pub refused: u64,
    /// No connection.
    pub unreachable: u64,
    /// Connections that broke.
    pub broken: u64,
    /// No answer in time.
    pub timeout: u64,
}

impl Errors {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.server + self.refused + self.unreachable + self.broken + self.timeout
    }

    /// Each kind with its name.
    pub fn kinds(&self) -> [(&'static str, u64); 5] {
        [
            ("server", self.server),
            ("refused", self.refused),
            ("unreachable", self.unreachable),
            ("broken", self.broken),
            ("timeout", self.timeout),
        ]
    }
}

/// Latencies, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 95 % are faster.
    pub p95: f64,
    /// 99 % are faster.
    pub p99: f64,
    /// The mean.
    pub mean: f64,
}

/// What the clients saw in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Answered requests a second.
    pub throughput: f64,
    /// Requests answered within the window.
    pub answered: u64,
    /// 4xx among them.
    pub client_errors: u64,
    /// Requests that failed within the window.
    pub errors: Errors,
    /// Of those answered; None when there were none.
    pub latency: Option<Latency>,
}

impl Tally {
    /// The share of failures, 0 to 1.
    pub fn error_share(&self) -> f64 {
        let all = self.answered + self.errors.total();
        if all == 0 {
            0.0
        } else {
            self.errors.total() as f64 / all as f64
        }
    }
}

/// Counts what happened between `from` and `to`.
///
/// A request that lies partly in the window counts as the part of it that does; one that is still running at
/// the end is taken to last as long as the others. So the throughput of few, slow requests does not depend on
/// where the window happened to begin. That is so only where enough others have ended, as
/// [`enough`](super::step::enough) says: while a queue still fills up, what runs takes longer than what has ended.
pub fn tally(records: &[Record], running: &[Instant], from: Instant, to: Instant) -> Tally {
    let window = to.saturating_duration_since(from).as_secs_f64();
    let mut tally = Tally::default();
    // Three digits, up to an hour.
    let Ok(mut histogram) = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3) else {
        return tally;
    };
    let (mut work, mut total, mut ended, mut seconds) = (0.0, 0_u64, 0_u64, 0.0);
    for record in records.iter().filter(|record| record.ended > from) {
        let lasted = record.ended.saturating_duration_since(record.started);
        let inside = record
            .ended
            .min(to)
            .saturating_duration_since(record.started.max(from));
        total += 1;
        if record.outcome.answered() {
            let share = inside.as_secs_f64() / lasted.as_secs_f64().max(1e-9);
            work += share.clamp(0.0, 1.0);
            ended += 1;
            seconds += lasted.as_secs_f64();
        }
        if record.ended > to {
            continue;
        }
        match record.outcome {
            Outcome::Success => tally.answered += 1,
            Outcome::ClientError => {
                tally.answered += 1;
                tally.client_errors += 1;
            }
            Outcome::ServerError => tally.errors.server += 1,
            Outcome::Refused => tally.errors.refused += 1,
            Outcome::Unreachable => tally.errors.unreachable += 1,
            Outcome::Broken => tally.errors.broken += 1,
            Outcome::Timeout => tally.errors.timeout += 1,
        }
        if record.outcome.answered() {
            histogram.saturating_record(micros(lasted));
        }
    }
    if ended > 0 {
        let mean = seconds / ended as f64;
        let answered = ended as f64 / total as f64;
        for &started in running {
            let so_far = to.saturating_duration_since(started).as_secs_f64();
            let inside = to
                .saturating_duration_since(started.max(from))
                .as_secs_f64();
            work += answered * inside / mean.max(so_far).max(1e-9);
        }
    }
    if window > 0.0 {
        tally.throughput = work / window;
    }
    if !histogram.is_empty() {
        let at = |share| histogram.value_at_quantile(share) as f64 / 1e6;
        tally.latency = Some(Latency {
            p50: at(0.50),
            p95: at(0.95),
            p99: at(0.99),
            mean: histogram.mean() / 1e6,
        });
    }
    tally
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    /// Clients that each send requests of `lasts` ms without a pause, the first at `offset` ms.
    fn closed_loop(
        base: Instant,
        offsets: &[u64],
        lasts: u64,
        until: u64,
    ) -> (Vec<Record>, Vec<Instant>) {
        let at = |ms| base + Duration::from_millis(ms);
        let (mut records, mut running) = (Vec::new(), Vec::new());
        for &offset in offsets {
            let mut start = offset;
            while start + lasts <= until {
                records.push(Record {
                    started: at(start),
                    ended: at(start + lasts),
                    outcome: Outcome::Success,
                });
                start += lasts;
            }
            running.push(at(start));
        }
        (records, running)
    }

    #[test]
    fn throughput_does_not_depend_on_where_the_window_lies() {
        let base = clock::now();
        let at = |ms| base + Duration::from_millis(ms);
        for begin in [1000, 1050, 1130, 1299] {
            let (records, running) = closed_loop(base, &[0, 10, 170], 300, begin + 1000);
            let tally = tally(&records, &running, at(begin), at(begin + 1000));
            // Three clients at 300 ms each.
            assert!((tally.throughput - 10.0).abs() < 1e-6, "{begin}: {tally:?}");
            let latency = tally.latency.unwrap();
            assert!((latency.p50 - 0.3).abs() < 0.001 && (latency.mean - 0.3).abs() < 0.001);
        }
    }

    #[test]
    fn requests_longer_than_the_window_still_give_a_throughput() {
        let base = clock::now();
        let at = |ms| base + Duration::from_millis(ms);
        let (records, running) = closed_loop(base, &[0, 900], 2000, 4000);
        let tally = tally(&records, &running, at(3000), at(4000));
        assert!((tally.throughput - 1.0).abs() < 1e-6, "{tally:?}");
    }

    #[test]
    fn failures_are_counted_by_kind_and_are_no_throughput() {
        let base = clock::now();
        let at = |ms| base + Duration::from_millis(ms);
        let record = |outcome, ended| Record {
            started: at(ended - 10),
            ended: at(ended),
            outcome,
        };
        let records = [
            record(Outcome::Success, 500),
            record(Outcome::ClientError, 600),
            record(Outcome::ServerError, 700),
            record(Outcome::Refused, 710),
            record(Outcome::Timeout, 720),
            // Before the window.
            record(Outcome::Broken, 90),
        ];
        let tally = tally(&records, &[], at(100), at(1100));
        assert!((tally.throughput - 2.0).abs() < 1e-9);
        assert_eq!((tally.answered, tally.client_errors), (2, 1));
        assert_eq!(
            (
                tally.errors.server,
                tally.errors.refused,
                tally.errors.timeout
            ),
            (1, 1, 1)
        );
        assert_eq!((tally.errors.broken, tally.errors.total()), (0, 3));
        assert!((tally.error_share() - 0.6).abs() < 1e-9);
        assert_eq!(super::tally(&[], &[], at(0), at(0)), Tally::default());
    }
}

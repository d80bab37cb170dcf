//! One step of the sweep, and what the backend's processes did in it. Pure.

use std::time::Duration;

use super::{tally::Tally, watch::Snapshot};

/// A process that uses less than this share of the busiest one's CPU does not count as one that works.
const WORKS: f64 = 0.05;
/// A process that has started others that work does not count below this share either: it looks after them. A
/// short step with slow requests costs a worker of gunicorn no more than ten times what that costs its
/// master.
const WORKS_TOO: f64 = 0.5;

/// Steps are so many times as long at most, when requests take longer than a step.
const STRETCHED: u32 = 30;
/// Answers for each client, without which a step says little: those at its beginning and end count in part only, by
/// what the others took.
const ANSWERS: u64 = 2;

/// How long a step is measured at most.
pub fn longest(step: Duration) -> Duration {
    step.saturating_mul(STRETCHED)
}

/// How long a step is measured, when requests take so long; for longer if there are too few answers by then.
pub fn window(step: Duration, latency: Duration) -> Duration {
    let wanted = latency.saturating_mul(ANSWERS as u32);
    step.max(wanted).min(longest(step))
}

/// Answers that a step with so many clients needs.
pub fn enough(clients: u32) -> u64 {
    ANSWERS * u64::from(clients)
}

/// A step that holds requests of this length also when twice as many clients as there is room for make them wait.
pub fn long_enough(step: Duration, latency: Duration) -> Duration {
    let needed = latency.saturating_mul(3 * ANSWERS as u32) / STRETCHED;
    let seconds = needed.max(step * 2).as_secs_f64().ceil();
    Duration::from_secs_f64(seconds)
}

/// So many clients, for so long, and what came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Requests in flight all the time.
    pub clients: u32,
    /// Seconds that were measured.
    pub seconds: f64,
    /// What the clients saw.
    pub tally: Tally,
    /// What the backend's processes did, when they can be seen.
    pub usage: Option<Usage>,
    /// Connections that no worker had accepted, on the average; None when it cannot be seen.
    pub accept_queue: Option<f64>,
    /// The most memory that was in use, bytes.
    pub memory: Option<u64>,
    /// Cores that the probe itself used.
    pub own_cores: f64,
}

impl Step {
    /// Answered requests a second.
    pub fn throughput(&self) -> f64 {
        self.tally.throughput
    }

    /// Whether too few requests ended to say anything of so many clients.
    pub fn is_thin(&self) -> bool {
        self.tally.answered + self.tally.errors.total() < enough(self.clients)
    }
}

/// The backend's processes during one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Cores used by all of them.
    pub cores: f64,
    /// Cores that they used or waited for.
    pub wanted: f64,
    /// Processes that did the work: masters and helpers have little to do.
    pub workers: u32,
    /// Cores that the busiest half of those used or waited for, each.
    pub per_worker: f64,
    /// The most threads that one of them had.
    pub threads: u32,
}

/// What happened between two looks; None when the processes cannot be seen.
pub fn usage(before: &Snapshot, after: &Snapshot) -> Option<Usage> {
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    if seconds <= 0.0 || after.processes.is_empty() {
        return None;
    }
    let mut each: Vec<Used> = after
        .processes
        .iter()
        .map(|(pid, now)| {
            // A process that is new began with nothing.
            let was = before.processes.get(pid).copied().unwrap_or_default();
            let cpu = (now.cpu - was.cpu).max(0.0) / seconds;
            // Threads that have ended took their share with them.
            let delay = (now.waited - was.waited).max(0.0) / seconds;
            Used {
                pid: *pid,
                parent: now.parent,
                cores: cpu,
                wanted: cpu + delay,
                threads: now.threads,
            }
        })
        .collect();
    each.sort_by(|a, b| b.cores.total_cmp(&a.cores));
    let most = each.first()?.cores;
    let mut working = each.clone();
    working.retain(|one| one.cores >= WORKS * most && one.cores > 0.0);
    let parents: Vec<u32> = working.iter().map(|one| one.parent).collect();
    working.retain(|one| one.cores >= WORKS_TOO * most || !parents.contains(&one.pid));
    let half = working.len().div_ceil(2);
    let busiest: f64 = working.iter().take(half).map(|one| one.wanted).sum();
    Some(Usage {
        cores: each.iter().map(|one| one.cores).sum(),
        wanted: each.iter().map(|one| one.wanted).sum(),
        workers: working.len() as u32,
        per_worker: if half > 0 { busiest / half as f64 } else { 0.0 },
        threads: working.iter().map(|one| one.threads).max().unwrap_or(0),
    })
}

/// What one process did.
#[derive(Clone, Copy, Debug)]
struct Used {
    pid: u32,
    parent: u32,
    /// Cores that it used.
    cores: f64,
    /// Cores that it used or waited for.
    wanted: f64,
    threads: u32,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{clock, probe::tally::Errors, sense::ProcessTimes};

    #[test]
    fn a_step_is_as_long_as_its_requests_need_but_not_endless() {
        let ms = Duration::from_millis;
        assert_eq!(window(ms(200), ms(20)), ms(200));
        assert_eq!(window(ms(200), ms(1200)), ms(2400));
        assert_eq!(window(ms(200), ms(60_000)), longest(ms(200)));
        for (step, latency) in [(ms(50), ms(900)), (ms(2000), ms(31_000))] {
            let better = long_enough(step, latency);
            assert!(window(better, latency * 3) >= latency * 6, "{better:?}");
        }
    }

    #[test]
    fn a_step_needs_two_answers_for_each_client() {
        let step = |answered| Step {
            clients: 4,
            tally: Tally {
                answered,
                errors: Errors {
                    server: 2,
                    ..Errors::default()
                },
                ..Tally::default()
            },
            ..Step::default()
        };
        assert!(step(5).is_thin());
        assert!(!step(6).is_thin());
    }

    #[test]
    fn masters_are_not_workers_and_waiting_for_a_core_counts_as_wanting_one() {
        let at = clock::now();
        let sample = |cpu, waited, threads| ProcessTimes {
            cpu,
            waited,
            threads,
            parent: 1,
        };
        let snapshot = |after: f64, processes: [(u32, ProcessTimes); 3]| Snapshot {
            at: at + Duration::from_secs_f64(after),
            processes: processes.into(),
            memory: None,
        };
        let before = snapshot(
            0.0,
            [
                (1, sample(5.0, 1.0, 1)),
                (2, sample(7.0, 3.0, 5)),
                (3, sample(9.0, 0.0, 5)),
            ],
        );
        let after = snapshot(
            2.0,
            [
                (1, sample(5.0, 1.0, 1)),
                (2, sample(8.0, 4.0, 5)),
                (4, sample(1.0, 0.5, 4)),
            ],
        );
        let usage = usage(&before, &after).unwrap();
        assert_eq!((usage.workers, usage.threads), (2, 5));
        assert!((usage.cores - 1.0).abs() < 1e-9 && (usage.wanted - 1.75).abs() < 1e-9);
        assert!((usage.per_worker - 1.0).abs() < 1e-9);
        assert_eq!(super::usage(&after, &after), None);
    }

    #[test]
    fn who_looks_after_workers_is_none_and_who_works_beside_its_children_is_one() {
        let at = clock::now();
        let used = |master: f64| {
            let times = |cpu, parent| ProcessTimes {
                cpu,
                threads: 1,
                parent,
                ..ProcessTimes::default()
            };
            let before = Snapshot {
                at,
                processes: BTreeMap::new(),
                memory: None,
            };
            let after = Snapshot {
                at: at + Duration::from_millis(250),
                processes: [
                    (1, times(master, 0)),
                    (2, times(0.009, 1)),
                    (3, times(0.008, 1)),
                ]
                .into(),
                memory: None,
            };
            usage(&before, &after).unwrap()
        };
        assert_eq!(used(0.001).workers, 2);
        assert!((used(0.001).cores - 0.072).abs() < 1e-9);
        assert_eq!(used(0.009).workers, 3);
    }
}

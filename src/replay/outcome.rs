//! The figures of a run, of the one that did happen and of the one that would have. Pure.

use std::collections::BTreeMap;

use super::{
    lanes::{Lane, begun, is_served, lanes},
    model::Model,
};
use crate::{
    admission::Reason,
    control::Outcome as End,
    observe::trace::{Entry, Fate, Trace},
};

/// Parts of the time, each with its own figures.
pub(super) const PARTS: usize = 10;

/// One part of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// Integral of the limit, and the time.
    limit: f64,
    time: f64,
    /// Requests that arrived in it and were refused.
    pub refused: u64,
}

impl Part {
    /// The mean limit.
    pub fn limit(&self) -> Option<f64> {
        (self.time > 0.0).then(|| self.limit / self.time)
    }
}

/// What came of the requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Seconds from the first arrival to the last.
    pub seconds: f64,
    /// Requests that the backend had.
    pub answered: u64,
    /// Those that the gate refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Those whose clients left the queue.
    pub left: u64,
    /// From arrival to the end of the backend's answer, seconds.
    pub latency: Quantiles,
    /// At the backend, seconds.
    pub service: Quantiles,
    /// In the queue, of those admitted, seconds.
    pub wait: Quantiles,
    /// The lowest and highest limit.
    pub limits: Option<(u32, u32)>,
    /// The most in flight.
    pub most_in_flight: u32,
    /// The most in flight at one endpoint.
    pub most_at_one: u32,
    /// Integral of in-flight, slot-seconds.
    pub busy: f64,
    /// How often the limit was moved, by reason; not known of what happened.
    pub reasons: BTreeMap<&'static str, u64>,
    /// The time in parts.
    pub parts: [Part; PARTS],
}

/// Values, of which quantiles are asked in the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantiles(Vec<f64>);

impl Quantiles {
    /// One more.
    pub fn note(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value that this share of them does not exceed.
    pub fn at(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        sorted.get((share * last as f64).round() as usize).copied()
    }

    /// Their mean.
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }
}

impl Outcome {
    pub(super) fn new(seconds: f64) -> Self {
        Self {
            seconds,
            ..Self::default()
        }
    }

    /// What did happen.
    pub(super) fn of(trace: &Trace) -> Self {
        let arrived = |entry: &Entry| entry.arrived as f64 / 1e6;
        let first = trace.entries.first().map_or(0.0, arrived);
        let last = trace.entries.last().map_or(0.0, arrived);
        let mut outcome = Self::new(last - first);
        let lanes = lanes(&trace.entries);
        let mut limits = Limits::of(&trace.entries, &lanes);
        outcome.most_in_flight = most_at_once(&trace.entries, &lanes);
        let mut before = 0.0;
        for entry in &trace.entries {
            let at = arrived(entry) - first;
            let (waited, took) = (f64::from(entry.waited) / 1e6, f64::from(entry.took) / 1e6);
            match entry.fate {
                Fate::Served(_) => {
                    outcome.answered(waited + took, took);
                    outcome.waited(waited);
                    outcome.busy += took.min(outcome.seconds - at - waited).max(0.0);
                }
                Fate::Refused(reason) => {
                    outcome.part(at).refused += 1;
                    *outcome.refused.entry(reason.as_str()).or_default() += 1;
                }
                Fate::Left => outcome.left += 1,
            }
            outcome.pass(before, (at - before).max(1e-9), limits.at(entry), 0);
            outcome.at_one(entry.in_flight);
            before = at;
        }
        outcome
    }

    fn part(&mut self, at: f64) -> &mut Part {
        let share = at / self.seconds.max(1e-9);
        let index = (share * PARTS as f64).clamp(0.0, (PARTS - 1) as f64) as usize;
        &mut self.parts[index]
    }

    /// Time passes, from `at` on.
    pub(super) fn pass(&mut self, at: f64, seconds: f64, limit: u32, in_flight: u32) {
        if seconds <= 0.0 || at > self.seconds {
            return;
        }
        let part = self.part(at);
        part.limit += f64::from(limit) * seconds;
        part.time += seconds;
        // What comes after the last arrival is not part of the comparison.
        self.busy += f64::from(in_flight) * seconds.min(self.seconds - at);
        self.most_in_flight = self.most_in_flight.max(in_flight);
        let (low, high) = self.limits.unwrap_or((limit, limit));
        self.limits = Some((low.min(limit), high.max(limit)));
    }

    /// So many are in flight at an endpoint.
    pub(super) fn at_one(&mut self, in_flight: u32) {
        self.most_at_one = self.most_at_one.max(in_flight);
        self.most_in_flight = self.most_in_flight.max(in_flight);
    }

    pub(super) fn answered(&mut self, latency: f64, service: f64) {
        self.answered += 1;
        self.latency.note(latency);
        self.service.note(service);
    }

    pub(super) fn waited(&mut self, wait: f64) {
        self.wait.note(wait);
    }

    pub(super) fn refused(&mut self, arrived: f64, reason: Reason) {
        self.part(arrived).refused += 1;
        *self.refused.entry(word(reason)).or_default() += 1;
    }

    /// All that were refused.
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// The mean limit.
    pub fn mean_limit(&self) -> Option<f64> {
        let time: f64 = self.parts.iter().map(|part| part.time).sum();
        let limit: f64 = self.parts.iter().map(|part| part.limit).sum();
        (time > 0.0).then(|| limit / time)
    }

    /// Mean requests in flight.
    pub fn mean_in_flight(&self) -> f64 {
        self.busy / self.seconds.max(1e-9)
    }
}

/// As in the metrics.
fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::QueueFull => "queue_full",
        Reason::QueueTimeout => "queue_timeout",
        Reason::Deadline => "deadline",
        Reason::RouteLimit => "route_limit",
        Reason::Draining => "draining",
    }
}

/// The limits of the endpoints, as the trace goes on.
struct Limits(Vec<(Lane, u32)>);

impl Limits {
    /// Before its first request each has the limit that it had then.
    fn of(entries: &[Entry], lanes: &[Lane]) -> Self {
        let first = |&lane: &Lane| {
            let own = |entry: &&Entry| is_of(entry, lane.id);
            let limit = entries.iter().find(own).map_or(0, |entry| entry.limit);
            (lane, limit)
        };
        Self(lanes.iter().map(first).collect())
    }

    /// That of all of them, when this one came.
    fn at(&mut self, entry: &Entry) -> u32 {
        if !is_served(entry) {
            return entry.limit;
        }
        let own = |(lane, _): &&mut (Lane, u32)| lane.id == entry.lane;
        if let Some((_, limit)) = self.0.iter_mut().find(own) {
            *limit = entry.limit;
        }
        let there = |(lane, _): &&(Lane, u32)| lane.is_there(begun(entry));
        let limits = self.0.iter().filter(there);
        limits.map(|(_, limit)| limit).sum()
    }
}

fn is_of(entry: &Entry, lane: u32) -> bool {
    entry.lane == lane && is_served(entry)
}

/// The most requests that were at the endpoints at once; where one ends as another begins, not both.
fn most_at_once(entries: &[Entry], lanes: &[Lane]) -> u32 {
    let served = entries.iter().filter(|entry| is_served(entry));
    let mut moves: Vec<(u64, i32)> = served
        .flat_map(|entry| {
            let from = begun(entry);
            [(from, 1), (from + u64::from(entry.took), -1)]
        })
        .collect();
    moves.sort_unstable();
    // The gate's own count is the better one: the times are rounded.
    let at_each = lanes.iter().map(|lane| {
        let own = entries.iter().filter(|entry| is_of(entry, lane.id));
        own.map(|entry| entry.in_flight).max().unwrap_or(0)
    });
    let at_each: u32 = at_each.sum();
    let (mut now, mut most) = (0, 0);
    for (_, by) in moves {
        now += by;
        most = most.max(now);
    }
    most.unsigned_abs().min(at_each)
}

/// How many requests of the trace ended in a way that another limit might have prevented.
pub(super) fn overloads(trace: &Trace) -> usize {
    let overload = |entry: &&Entry| entry.fate == Fate::Served(End::Overload);
    trace.entries.iter().filter(overload).count()
}

/// Whether the run went beyond what the trace says something about.
pub(super) fn extrapolates(outcome: &Outcome, model: &Model) -> bool {
    outcome.most_at_one > model.measured()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::served, *};

    #[test]
    fn quantiles_are_values() {
        let mut values = Quantiles::default();
        assert_eq!((values.at(0.5), values.mean()), (None, None));
        for value in (1..=101).rev() {
            values.note(f64::from(value));
        }
        assert_eq!(
            (values.at(0.5), values.at(1.0), values.mean()),
            (Some(51.0), Some(101.0), Some(51.0))
        );
    }

    #[test]
    fn time_falls_into_parts() {
        let mut outcome = Outcome::new(10.0);
        for second in 0..10 {
            outcome.pass(f64::from(second), 1.0, if second < 5 { 4 } else { 8 }, 2);
        }
        outcome.refused(9.99, Reason::QueueFull);
        assert_eq!(outcome.parts[0].limit(), Some(4.0));
        assert_eq!(
            (outcome.parts[9].limit(), outcome.parts[9].refused),
            (Some(8.0), 1)
        );
        assert_eq!(
            (outcome.mean_limit(), outcome.limits),
            (Some(6.0), Some((4, 8)))
        );
        assert!((outcome.mean_in_flight() - 2.0).abs() < 1e-9);
        outcome.pass(10.0, 5.0, 8, 2);
        outcome.pass(11.0, 5.0, 100, 9);
        assert!((outcome.mean_in_flight() - 2.0).abs() < 1e-9);
        assert_eq!(outcome.limits, Some((4, 8)));
    }

    #[test]
    fn only_the_time_between_the_arrivals_counts() {
        let of = |entries: &[Entry]| {
            Outcome::of(&Trace {
                routes: vec!["default".into()],
                entries: entries.to_vec(),
                damaged: 0,
            })
            .mean_in_flight()
        };
        assert_eq!(of(&[served(7, 1, 0.5)]), 0.0);
        let mean = of(&[served(0, 1, 0.5), served(1_000_000, 1, 30.0)]);
        assert!((mean - 0.5).abs() < 1e-9, "{mean}");
    }
}

//! What the backend would have done: how much slower each request gets by those beside it, as the
//! trace itself shows. Pure.
//!
//! A request's *work* is the time that the backend would have taken for it alone: its time, over the
//! stretch at the concurrency that it met. Beyond the highest concurrency in the trace nothing is known,
//! and the throughput is taken to stay what it was there.

use super::lanes::is_served;
use crate::{
    control::Outcome,
    observe::trace::{Entry, Fate, Trace},
};

/// Requests at one concurrency that make it count.
const ENOUGH: usize = 5;

/// Stretch by requests in flight, and the works of each route.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    /// `(in flight, stretch)`, both rising, from `(1, 1)` on.
    points: Vec<(f64, f64)>,
    /// By route: what its requests that tell of the backend would have taken alone, seconds, in the
    /// trace's order.
    works: Vec<Vec<f64>>,
}

impl Model {
    /// None when no request of the trace tells of the backend.
    pub(super) fn of(trace: &Trace) -> Option<Self> {
        let served: Vec<(&Entry, f64)> = trace
            .entries
            .iter()
            .filter_map(|entry| Some((entry, answered(entry)?)))
            .collect();
        let routes = trace
            .entries
            .iter()
            .map(|e| usize::from(e.route) + 1)
            .max()?;
        let baselines: Vec<f64> = (0..routes)
            .map(|route| {
                let of_route = served.iter().filter(|(e, _)| usize::from(e.route) == route);
                baseline(
                    of_route
                        .map(|(entry, took)| (entry.in_flight, *took))
                        .collect(),
                )
            })
            .collect();
        let mut bins: Vec<(u32, Vec<f64>)> = Vec::new();
        for (entry, took) in &served {
            let ratio = took / baselines[usize::from(entry.route)];
            let bin = bin(entry.in_flight);
            match bins.iter_mut().find(|(known, _)| *known == bin) {
                Some((_, ratios)) => ratios.push(ratio),
                None => bins.push((bin, vec![ratio])),
            }
        }
        bins.sort_by_key(|(bin, _)| *bin);
        let mut points = vec![(1.0, 1.0)];
        for (in_flight, ratios) in &mut bins {
            let (last, stretch) = points[points.len() - 1];
            if ratios.len() >= ENOUGH && f64::from(*in_flight) > last {
                // More beside it never makes a request faster, nor the backend do less at a time.
                let most = stretch * f64::from(*in_flight) / last;
                let seen = median(ratios).max(stretch);
                points.push((f64::from(*in_flight), seen.min(most.max(stretch))));
            }
        }
        let mut model = Self {
            points,
            works: vec![Vec::new(); routes],
        };
        for (entry, took) in &served {
            let work = took / model.stretch(entry.in_flight);
            model.works[usize::from(entry.route)].push(work);
        }
        if model.works.iter().all(Vec::is_empty) {
            return None;
        }
        Some(model)
    }

    /// How much longer a request takes with so many in flight, itself included.
    pub(super) fn stretch(&self, in_flight: u32) -> f64 {
        let n = f64::from(in_flight.max(1));
        let above = self.points.partition_point(|point| point.0 < n);
        match (
            self.points.get(above.wrapping_sub(1)),
            self.points.get(above),
        ) {
            (_, Some(&(at, stretch))) if at <= n => stretch,
            (Some(&(from, low)), Some(&(to, high))) => {
                low + (high - low) * (n - from) / (to - from)
            }
            (Some(&(last, stretch)), None) => stretch * n / last,
            (None, _) => 1.0,
        }
    }

    /// The highest concurrency that the trace says something about.
    pub(super) fn measured(&self) -> u32 {
        self.points.last().map_or(1, |point| point.0 as u32)
    }

    /// The work of a request: its own if the backend had it, however it ended, else that of another of
    /// its route, in turn.
    pub(super) fn work(&self, entry: &Entry, turn: usize) -> f64 {
        if is_served(entry)
            && let Some(took) = timed(entry)
        {
            return took / self.stretch(entry.in_flight);
        }
        let route = self.works.get(usize::from(entry.route));
        let works = route
            .filter(|works| !works.is_empty())
            .or_else(|| self.works.iter().find(|works| !works.is_empty()));
        works.map_or(0.0, |works| works[turn % works.len()])
    }
}

/// The time of a request whose time says something of the backend, seconds. One that ended in overload
/// lasted as long as somebody's timeout: it keeps that time itself, but no other is measured by it.
fn answered(entry: &Entry) -> Option<f64> {
    let tells = matches!(
        entry.fate,
        Fate::Served(Outcome::Success | Outcome::InVain | Outcome::Excluded)
    );
    timed(entry).filter(|_| tells)
}

/// The time that a request was at the backend, seconds, where it is known.
fn timed(entry: &Entry) -> Option<f64> {
    (entry.took > 0 && entry.in_flight > 0).then(|| f64::from(entry.took) / 1e6)
}

/// The median time at the lowest concurrencies that together hold enough requests.
fn baseline(mut timed: Vec<(u32, f64)>) -> f64 {
    timed.sort_by_key(|(in_flight, _)| *in_flight);
    let enough = timed.len().min(ENOUGH * 4);
    let Some(&(edge, _)) = timed.get(enough.saturating_sub(1)) else {
        return 1.0;
    };
    let low = timed.iter().take_while(|(in_flight, _)| *in_flight <= edge);
    median(&mut low.map(|(_, took)| *took).collect::<Vec<_>>())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(1.0)
}

/// Up to 8 each count has a bin of its own, from there on each eighth of an octave.
fn bin(in_flight: u32) -> u32 {
    if in_flight <= 8 {
        return in_flight.max(1);
    }
    let step = (1 << in_flight.ilog2()) / 8;
    in_flight / step * step
}

#[cfg(test)]
mod tests {
    use super::{super::tests::served, *};

    fn trace(of: impl Iterator<Item = (u32, f64)>) -> Trace {
        Trace {
            routes: vec!["a".into()],
            entries: of
                .enumerate()
                .map(|(at, (in_flight, took))| served(at as u64 * 1000, in_flight, took))
                .collect(),
            damaged: 0,
        }
    }

    #[test]
    fn four_workers_show_in_the_stretch_and_work_is_what_is_left() {
        let law = |n: u32| 0.05 * f64::from(n.max(4)) / 4.0;
        let trace = trace((0..400).map(|at| 1 + at % 8).map(|n| (n, law(n))));
        let model = Model::of(&trace).unwrap();
        for n in 1..=4 {
            assert!((model.stretch(n) - 1.0).abs() < 1e-6, "{n}");
        }
        assert!((model.stretch(8) - 2.0).abs() < 1e-6);
        assert!((model.stretch(16) - 4.0).abs() < 1e-6, "no more throughput");
        assert_eq!(model.measured(), 8);
        for entry in &trace.entries {
            assert!((model.work(entry, 0) - 0.05).abs() < 1e-5);
        }
    }

    #[test]
    fn the_refused_get_the_work_of_their_like() {
        let mut trace = trace([(1, 0.05), (1, 0.07)].into_iter());
        trace.entries.push(Entry {
            fate: Fate::Left,
            took: 0,
            in_flight: 0,
            ..trace.entries[0]
        });
        let model = Model::of(&trace).unwrap();
        let works: Vec<f64> = (0..3)
            .map(|turn| model.work(&trace.entries[2], turn))
            .collect();
        assert_eq!(works, [0.05, 0.07, 0.05]);
        trace.entries.drain(..2);
        assert_eq!(Model::of(&trace), None);
        trace.entries.clear();
        assert_eq!(Model::of(&trace), None);
    }

    #[test]
    fn what_ended_in_overload_takes_its_own_time_and_moves_nothing_else() {
        let mut trace = trace([(1, 0.05), (1, 0.07)].into_iter());
        let known = Model::of(&trace);
        for outcome in [Outcome::Overload, Outcome::Neutral] {
            trace.entries.push(Entry {
                fate: Fate::Served(outcome),
                ..served(9000, 1, 60.0)
            });
        }
        let model = Model::of(&trace).unwrap();
        assert_eq!(model.work(&trace.entries[2], 0), 60.0);
        assert_eq!(model.work(&trace.entries[3], 0), 60.0);
        assert_eq!(Some(model), known);
    }

    #[test]
    fn bins_rise_with_the_count() {
        let bins: Vec<u32> = (1..200).map(bin).collect();
        assert!(bins.windows(2).all(|two| two[0] <= two[1]));
        assert_eq!((bin(0), bin(8), bin(17), bin(100)), (1, 8, 16, 96));
    }
}

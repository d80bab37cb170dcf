//! tidegate's law and its peers over many scenarios, against the best fixed limit of each phase.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tidegate::admission::state;

use super::{
    oracle::{self, Best, Runs},
    outcome::median,
    peers::{Adapted, PEERS, Peer},
    report,
    scenario::Scenario,
};

/// A phase shorter than this, seconds, is a transition.
const TRANSITION: f64 = 8.0;

/// What a phase asks of a law.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// More than the backend can do.
    Overload,
    /// Less.
    Below,
    /// The first seconds after a change.
    Transition,
}

impl Demand {
    fn of(scenario: &Scenario, phase: usize) -> Demand {
        let phase = &scenario.phases[phase];
        if phase.seconds < TRANSITION {
            return Demand::Transition;
        }
        let mut backend = scenario.backend.clone();
        (backend.slots, backend.cores) = (phase.slots, phase.cores);
        let capacity = Scenario::capacity(&backend, &scenario.classes, &phase.mix) / phase.slowdown;
        // The peak of bursts: they are what the phase is about.
        if phase.rps > capacity {
            Demand::Overload
        } else {
            Demand::Below
        }
    }

    fn word(self) -> &'static str {
        match self {
            Demand::Overload => "overload",
            Demand::Below => "below capacity",
            Demand::Transition => "transition",
        }
    }
}

/// One law's results: by scenario, the runs.
struct Row {
    name: String,
    runs: Vec<Runs>,
}

/// All laws on all scenarios.
pub struct Comparison<'a> {
    scenarios: &'a [Scenario],
    best: Vec<Vec<Best>>,
    rows: Vec<Row>,
}

/// Runs everything.
pub fn compare(scenarios: &[Scenario]) -> Comparison<'_> {
    let run_peer = |peer: &Peer, queue: bool| Row {
        name: format!(
            "{}{}",
            peer.name,
            if queue { " + tidegate's queue" } else { "" }
        ),
        runs: (scenarios.iter())
            .map(|scenario| {
                let mut scenario = scenario.clone();
                if !queue {
                    scenario.queue = state::Settings {
                        max_wait: std::time::Duration::ZERO,
                        ..scenario.queue
                    };
                }
                oracle::all_seeds(&scenario, &|now| Box::new(Adapted::new((peer.rule)(), now)))
            })
            .collect(),
    };
    let mut rows = vec![Row {
        name: "tidegate".to_owned(),
        runs: scenarios.iter().map(oracle::product).collect(),
    }];
    rows.extend(PEERS.iter().map(|peer| run_peer(peer, true)));
    rows.extend(PEERS.iter().map(|peer| run_peer(peer, false)));
    Comparison {
        scenarios,
        best: scenarios.iter().map(oracle::oracle).collect(),
        rows,
    }
}

/// A law on one kind of phase.
struct Summary {
    mean: f64,
    worst: f64,
    p99: f64,
}

impl Comparison<'_> {
    /// Every phase that is of this kind and in which anything could be answered.
    fn phases(&self, demand: Demand) -> impl Iterator<Item = (usize, usize)> {
        let of = |at: usize| (0..self.scenarios[at].phases.len()).map(move |phase| (at, phase));
        (0..self.scenarios.len())
            .flat_map(of)
            .filter(move |&(at, phase)| Demand::of(&self.scenarios[at], phase) == demand)
            .filter(|&(at, phase)| self.best[at][phase].outcomes.iter().any(|o| o.good > 0))
    }

    fn summary(&self, row: &Row, demand: Demand) -> Summary {
        let (mut means, mut worst, mut p99) = (Vec::new(), f64::INFINITY, Vec::new());
        for (at, phase) in self.phases(demand) {
            let (_, least, mean) = report::ratio(&row.runs[at], &self.best[at][phase], phase);
            means.push(mean);
            worst = worst.min(least);
            let of_seeds = row.runs[at].iter().map(|run| run[phase].latency(0.99));
            p99.push(median(of_seeds.collect()));
        }
        Summary {
            mean: means.iter().sum::<f64>() / means.len().max(1) as f64,
            worst,
            p99: median(p99),
        }
    }

    /// Two tables in Markdown: all phases together, and each by itself.
    pub fn text(&self) -> String {
        let mut out = String::from(
            "| law | overload: goodput, mean / worst | p99, median | below capacity: loss, mean / worst | transitions: goodput, mean / worst |\n\
             |---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let overload = self.summary(row, Demand::Overload);
            let below = self.summary(row, Demand::Below);
            let transition = self.summary(row, Demand::Transition);
            let _ = writeln!(
                out,
                "| {} | {:.1} / {:.1} % | {:.0} ms | {:.1} / {:.1} % | {:.1} / {:.1} % |",
                row.name,
                overload.mean * 100.0,
                overload.worst * 100.0,
                overload.p99,
                (1.0 - below.mean) * 100.0,
                (1.0 - below.worst) * 100.0,
                transition.mean * 100.0,
                transition.worst * 100.0,
            );
        }
        let names: Vec<&str> = (self.rows.iter())
            .map(|row| row.name.as_str())
            .filter(|name| !name.contains('+'))
            .collect();
        let _ = writeln!(
            out,
            "\n| scenario | phase | | best fixed limit | {} |\n|---|---|---|---|{}",
            names.join(" | "),
            "---|".repeat(names.len()),
        );
        for (at, scenario) in self.scenarios.iter().enumerate() {
            for phase in 0..scenario.phases.len() {
                let best = &self.best[at][phase];
                let _ = write!(
                    out,
                    "| {} | {phase} | {} | {} |",
                    scenario.name,
                    Demand::of(scenario, phase).word(),
                    best.limit,
                );
                for row in self.rows.iter().filter(|row| !row.name.contains('+')) {
                    let (_, _, mean) = report::ratio(&row.runs[at], best, phase);
                    let _ = write!(out, " {:.1} |", mean * 100.0);
                }
                out.push('\n');
            }
        }
        out
    }

    /// The same for machines.
    pub fn json(&self) -> Value {
        let laws: Vec<Value> = (self.rows.iter())
            .map(|row| {
                let of = |demand| {
                    let Summary { mean, worst, p99 } = self.summary(row, demand);
                    json!({ "goodput_mean": mean, "goodput_worst": worst, "p99_ms": p99 })
                };
                json!({
                    "law": row.name,
                    "overload": of(Demand::Overload),
                    "below_capacity": of(Demand::Below),
                    "transition": of(Demand::Transition),
                })
            })
            .collect();
        json!({ "laws": laws })
    }
}

//! A scenario's result as text and as JSON: each figure as median and worst over the seeds.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{
    oracle::{Best, Runs},
    outcome::{Outcome, median},
    scenario::{RequestClass, Scenario},
};

/// One figure of a phase.
struct Figure {
    name: &'static str,
    of: fn(&Outcome) -> f64,
    /// Whether more is better: the worst is then the least.
    more_is_better: bool,
}

const fn more(name: &'static str, of: fn(&Outcome) -> f64) -> Figure {
    Figure {
        name,
        of,
        more_is_better: true,
    }
}

const fn less(name: &'static str, of: fn(&Outcome) -> f64) -> Figure {
    Figure {
        name,
        of,
        more_is_better: false,
    }
}

/// Shares are of what was offered; latencies are milliseconds of admitted requests.
const FIGURES: &[Figure] = &[
    more("offered_per_s", |o| f64::from(o.offered) / o.seconds),
    more("goodput_per_s", Outcome::goodput),
    less("refused", |o| o.share(o.refused)),
    less("late", |o| o.share(o.late)),
    less("failed", |o| o.share(o.failed)),
    less("open", |o| o.share(o.open)),
    less("wasted", |o| o.share(o.wasted)),
    less("retries", |o| o.share(o.retries)),
    less("p50_ms", |o| o.latency(0.5)),
    less("p99_ms", |o| o.latency(0.99)),
    less("limit_mean", |o| o.limit.mean()),
    less("limit_sd", |o| o.limit.deviation()),
    less("in_flight_mean", |o| o.in_flight.mean()),
    less("in_flight_sd", |o| o.in_flight.deviation()),
    less("killed", |o| f64::from(o.killed)),
    less("over_limit", |o| f64::from(o.over_limit)),
    more("fairness", Outcome::fairness),
];

/// The median and the worst over the seeds of the figure of this name; `None` if there is none.
pub fn figure(name: &str, runs: &Runs, phase: usize) -> Option<(f64, f64)> {
    let figure = FIGURES.iter().find(|figure| figure.name == name)?;
    Some(summary(figure, &outcomes(runs, phase)))
}

/// The median and the worst over the seeds of the share of a class that was answered in time.
pub fn success(class: &str, scenario: &Scenario, runs: &Runs, phase: usize) -> Option<(f64, f64)> {
    let at = scenario.classes.iter().position(|c| c.name == class)?;
    let success: Vec<f64> = runs
        .iter()
        .map(|run| run[phase].class_success(at))
        .collect();
    let worst = success.iter().copied().fold(1.0, f64::min);
    Some((median(success), worst))
}

/// The share of the time, over all seeds, in which the limit was bound by this (in lower case).
pub fn bound(by: &str, runs: &Runs, phase: usize) -> f64 {
    let shares = bound_by(&outcomes(runs, phase));
    shares
        .iter()
        .find(|(name, _)| name == by)
        .map_or(0.0, |(_, share)| *share)
}

/// The median and the worst of a figure over the seeds.
fn summary(figure: &Figure, outcomes: &[&Outcome]) -> (f64, f64) {
    let values: Vec<f64> = outcomes.iter().map(|o| (figure.of)(o)).collect();
    let worst = if figure.more_is_better {
        values.iter().copied().fold(f64::INFINITY, f64::min)
    } else {
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    };
    (median(values), worst)
}

/// Goodput over the oracle's, seed by seed: median, worst and mean.
pub fn ratio(runs: &Runs, best: &Best, phase: usize) -> (f64, f64, f64) {
    let ratios: Vec<f64> = (runs.iter().zip(&best.outcomes))
        .map(|(run, best)| match best.good {
            0 => 1.0,
            good => f64::from(run[phase].good) / f64::from(good),
        })
        .collect();
    let worst = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
    (median(ratios), worst, mean)
}

fn outcomes(runs: &Runs, phase: usize) -> Vec<&Outcome> {
    runs.iter().map(|run| &run[phase]).collect()
}

/// For machines: `{"name", "seeds", "phases": [{"law": {FIGURE: {"median", "worst"}}, "oracle", …}]}`.
pub fn json(scenario: &Scenario, runs: &Runs, oracle: &[Best]) -> Value {
    let figures = |outcomes: &[&Outcome]| -> Map<String, Value> {
        let entry = |figure: &Figure| {
            let (median, worst) = summary(figure, outcomes);
            let value = json!({ "median": rounded(median), "worst": rounded(worst) });
            (figure.name.to_owned(), value)
        };
        FIGURES.iter().map(entry).collect()
    };
    let phases: Vec<Value> = (0..scenario.phases.len())
        .map(|phase| {
            let best = &oracle[phase];
            let (median, worst, mean) = ratio(runs, best, phase);
            let own = outcomes(runs, phase);
            let mut oracle = figures(&best.outcomes.iter().collect::<Vec<_>>());
            oracle.insert("limit".into(), best.limit.into());
            json!({
                "phase": phase,
                "seconds": scenario.phases[phase].seconds,
                "law": figures(&own),
                "oracle": oracle,
                "goodput_ratio": {
                    "median": rounded(median), "worst": rounded(worst), "mean": rounded(mean),
                },
                "classes": classes(scenario, runs, phase),
                "bound_by": bound_by(&own).into_iter()
                    .map(|(by, share)| (by, Value::from(rounded(share))))
                    .collect::<Map<_, _>>(),
                "decisions": decisions(&own),
            })
        })
        .collect();
    json!({ "name": scenario.name, "seeds": scenario.seeds, "phases": phases })
}

fn classes(scenario: &Scenario, runs: &Runs, phase: usize) -> Map<String, Value> {
    let entry = |class: &RequestClass| {
        let (median, worst) = success(&class.name, scenario, runs, phase).unwrap_or_default();
        let value = json!({ "success": { "median": rounded(median), "worst": rounded(worst) } });
        (class.name.clone(), value)
    };
    scenario.classes.iter().map(entry).collect()
}

/// What bound the limit, as shares of the time, the greatest first.
fn bound_by(outcomes: &[&Outcome]) -> Vec<(String, f64)> {
    let mut sums: Vec<(String, f64)> = Vec::new();
    let mut total = 0.0;
    for (by, seconds) in outcomes.iter().flat_map(|o| &o.bound_by) {
        total += seconds;
        let name = format!("{by:?}").to_lowercase();
        match sums.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += seconds,
            None => sums.push((name, *seconds)),
        }
    }
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    sums.into_iter()
        .map(|(name, sum)| (name, sum / total))
        .collect()
}

fn decisions(outcomes: &[&Outcome]) -> Map<String, Value> {
    let mut sums = std::collections::BTreeMap::<&str, u32>::new();
    for (reason, count) in outcomes.iter().flat_map(|o| &o.reasons) {
        *sums.entry(reason).or_default() += count;
    }
    (sums.into_iter())
        .map(|(reason, count)| (reason.to_owned(), count.into()))
        .collect()
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// For people. Two lines a phase: the law, and the oracle below it.
pub fn text(scenario: &Scenario, runs: &Runs, oracle: &[Best]) -> String {
    let mut out = String::new();
    let seeds: Vec<String> = scenario.seeds.iter().map(u64::to_string).collect();
    let _ = writeln!(
        out,
        "{}: median (worst) over seeds {}",
        scenario.name,
        seeds.join(", ")
    );
    for (phase, best) in oracle.iter().enumerate() {
        let settings = &scenario.phases[phase];
        let (median, worst, mean) = ratio(runs, best, phase);
        let own = outcomes(runs, phase);
        let _ = writeln!(
            out,
            "\nphase {phase}, {} s: goodput {median:.3} ({worst:.3}, mean {mean:.3}) of the best fixed limit, {}",
            settings.seconds, best.limit,
        );
        let _ = writeln!(out, "  {:<15}{:>22}{:>22}", "", "law", "oracle");
        let of_best: Vec<&Outcome> = best.outcomes.iter().collect();
        for figure in FIGURES {
            let (own, of_best) = (summary(figure, &own), summary(figure, &of_best));
            if figure.name == "fairness" && scenario.tidegates == 1 {
                continue;
            }
            if [own.0, own.1, of_best.0, of_best.1]
                .iter()
                .all(|x| *x == 0.0)
            {
                continue;
            }
            let pair =
                |(median, worst): (f64, f64)| format!("{} ({})", short(median), short(worst));
            let _ = writeln!(
                out,
                "  {:<15}{:>22}{:>22}",
                figure.name,
                pair(own),
                pair(of_best)
            );
        }
        if scenario.classes.len() > 1 {
            for (name, value) in classes(scenario, runs, phase) {
                let (median, worst) = (&value["success"]["median"], &value["success"]["worst"]);
                let _ = writeln!(out, "  answered in time, {name}: {median} ({worst})");
            }
        }
        let bound: Vec<String> = (bound_by(&own).iter())
            .map(|(by, share)| format!("{by} {:.0} %", share * 100.0))
            .collect();
        if !bound.is_empty() {
            let _ = writeln!(out, "  bound by: {}", bound.join(", "));
        }
    }
    out
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1.0 => format!("{value:.4}"),
        size if size < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

//! The comparison, for people and for programs. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json as object};

use super::{Comparison, Outcome, Quantiles};

/// For people.
pub fn text(comparison: &Comparison) -> String {
    let (was, would) = (&comparison.was, &comparison.would_be);
    let mut out = format!(
        "{} requests in {}\n\n  {:<28} {:>14} {:>14}\n",
        comparison.requests,
        span(was.seconds),
        "",
        "did happen",
        "would have"
    );
    let mut row = |name: &str, of: &dyn Fn(&Outcome) -> String| {
        let _ = writeln!(out, "  {name:<28} {:>14} {:>14}", of(was), of(would));
    };
    row("answered by the backend", &|o| o.answered.to_string());
    row("refused", &|o| o.refusals().to_string());
    let mut reasons: Vec<&str> = was
        .refused
        .keys()
        .chain(would.refused.keys())
        .copied()
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    for reason in reasons {
        row(&format!("  {reason}"), &|o| {
            o.refused.get(reason).copied().unwrap_or(0).to_string()
        });
    }
    row("left the queue", &|o| o.left.to_string());
    for (name, of) in LATENCIES {
        for (label, share) in SHARES {
            row(&format!("{name}, {label}"), &|o| millis(of(o).at(*share)));
        }
    }
    row("limit, mean", &|o| decimals(o.mean_limit()));
    row("limit, lowest to highest", &|o| {
        o.limits
            .map_or("-".to_owned(), |(low, high)| format!("{low} to {high}"))
    });
    row("in flight, mean", &|o| decimals(Some(o.mean_in_flight())));
    row("in flight, most", &|o| o.most_in_flight.to_string());

    let _ = writeln!(
        out,
        "\n  {:>16} {:>14} {:>14} {:>14} {:>14}",
        "seconds", "limit was", "would be", "refused were", "would be"
    );
    let width = was.seconds / was.parts.len() as f64;
    for (at, (was, would)) in was.parts.iter().zip(&would.parts).enumerate() {
        let _ = writeln!(
            out,
            "  {:>16} {:>14} {:>14} {:>14} {:>14}",
            format!("{:.1} to {:.1}", at as f64 * width, (at + 1) as f64 * width),
            decimals(was.limit()),
            decimals(would.limit()),
            was.refused,
            would.refused
        );
    }
    if !would.reasons.is_empty() {
        let reasons: Vec<String> = would
            .reasons
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let _ = writeln!(
            out,
            "\n  the limit would have moved by: {}",
            reasons.join(", ")
        );
    }
    for note in &comparison.notes {
        let _ = writeln!(out, "  note: {note}");
    }
    out
}

type Figure = fn(&Outcome) -> &Quantiles;
const LATENCIES: &[(&str, Figure)] = &[
    ("latency", |o| &o.latency),
    ("wait in the queue", |o| &o.wait),
    ("at the backend", |o| &o.service),
];
const SHARES: &[(&str, f64)] = &[("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];

/// A time for people.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.1} min", s / 60.0),
        s => format!("{s:.1} s"),
    }
}

fn millis(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |s| format!("{:.1} ms", s * 1000.0))
}

fn decimals(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// For programs.
pub fn json(comparison: &Comparison) -> Value {
    object!({
        "requests": comparison.requests,
        "seconds": comparison.was.seconds,
        "did_happen": outcome(&comparison.was),
        "would_have": outcome(&comparison.would_be),
        "notes": comparison.notes,
    })
}

fn outcome(outcome: &Outcome) -> Value {
    let quantiles = |values: &Quantiles| {
        object!({
            "mean": values.mean(),
            "p50": values.at(0.5),
            "p95": values.at(0.95),
            "p99": values.at(0.99),
        })
    };
    let parts: Vec<Value> = outcome
        .parts
        .iter()
        .map(|part| object!({ "limit": part.limit(), "refused": part.refused }))
        .collect();
    object!({
        "answered": outcome.answered,
        "refused": outcome.refusals(),
        "refused_by_reason": outcome.refused,
        "left": outcome.left,
        "latency_seconds": quantiles(&outcome.latency),
        "wait_seconds": quantiles(&outcome.wait),
        "backend_seconds": quantiles(&outcome.service),
        "limit": {
            "mean": outcome.mean_limit(),
            "min": outcome.limits.map(|limits| limits.0),
            "max": outcome.limits.map(|limits| limits.1),
        },
        "in_flight": { "mean": outcome.mean_in_flight(), "max": outcome.most_in_flight },
        "limit_changes": outcome.reasons,
        "parts": parts,
    })
}

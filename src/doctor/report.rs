//! A diagnosis for people and for programs. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json as object};

use super::{Diagnosis, Keep, Refusal};
use crate::{config::format_size, sense::facts::in_one_line};

/// For people.
pub fn text(diagnosis: &Diagnosis) -> String {
    let mut out = format!(
        "{}\n\n{}\n\n",
        diagnosis.endpoint,
        plain(&diagnosis.verdict)
    );
    if diagnosis.is_absent() {
        // Of what is not there, there is nothing to tell.
        if diagnosis.manners.refusal != Some(Refusal::Denied) {
            let _ = writeln!(
                out,
                "Start it, or say where it is: tidegate doctor --backend HOST:PORT, or unix:/PATH"
            );
        }
        return out;
    }
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<14} {}", plain(value));
    };
    match &diagnosis.server {
        Some(server) => row(
            "server",
            &format!("{}, recognised {}", server.name, server.how),
        ),
        None => row("server", "not recognised"),
    }
    row("profile", diagnosis.profile().as_str());
    row("protocol", diagnosis.manners.protocol().as_str());
    match &diagnosis.findings.process {
        Ok(process) => row(
            "process",
            &format!(
                "{} with {}: {}",
                process.pid,
                match process.children.len() {
                    0 => "no children".to_owned(),
                    1 => "1 child".to_owned(),
                    more => format!("{more} children"),
                },
                in_one_line(&process.command)
            ),
        ),
        Err(why) => row("process", why),
    }
    if let Some(backlog) = diagnosis.backlog() {
        row("backlog", &format!("{backlog} connections"));
    }
    row("cpu", &cpu(diagnosis));
    row("memory", &memory(diagnosis));

    let _ = writeln!(out, "\n  what tidegate can read here");
    for signal in &diagnosis.signals {
        let mark = if signal.available { "yes" } else { "no" };
        let _ = writeln!(
            out,
            "  {:<14} {mark:<4} {}",
            signal.name,
            plain(&signal.how)
        );
    }
    if !diagnosis.quirks.is_empty() {
        let _ = writeln!(out, "\n  habits");
        for quirk in &diagnosis.quirks {
            let then = if quirk.then.is_empty() {
                String::new()
            } else {
                format!("; {}", quirk.then)
            };
            let _ = writeln!(out, "  {:<14} {}{then}", quirk.name, plain(&quirk.found));
        }
    }
    if !diagnosis.advice.is_empty() {
        let _ = writeln!(out, "\n  advice");
        for advice in &diagnosis.advice {
            let _ = writeln!(out, "  - {}", plain(advice));
        }
    }
    let _ = writeln!(out, "\n  what it was asked");
    for asked in &diagnosis.manners.asked {
        let _ = writeln!(out, "  {:<58} {}", asked.request, asked.answer);
    }
    let _ = write!(out, "\n{}", diagnosis.toml);
    out
}

fn cpu(diagnosis: &Diagnosis) -> String {
    match diagnosis.gauges.cpu {
        Some(cpu) => format!(
            "{:.1} cores, {:.0} % in use{}",
            cpu.cores,
            cpu.utilisation * 100.0,
            if cpu.throttled > 0.0 {
                ", throttled"
            } else {
                ""
            }
        ),
        None => "cannot be seen".to_owned(),
    }
}

fn memory(diagnosis: &Diagnosis) -> String {
    let size = |bytes: u64| {
        let mib = bytes as f64 / f64::from(1 << 20);
        format!("{mib:.0} MiB")
    };
    match (diagnosis.gauges.memory_used, diagnosis.gauges.memory_limit) {
        (Some(used), Some(limit)) => format!(
            "{} in use of {} ({:.0} %)",
            size(used),
            size(limit),
            used as f64 / (limit as f64).max(1.0) * 100.0
        ),
        (Some(used), None) => format!("{} in use, no limit known", size(used)),
        (None, Some(limit)) => format!("limit {}", format_size(limit)),
        (None, None) => "cannot be seen".to_owned(),
    }
}

/// On one line and without control characters: it came from elsewhere, and goes to a terminal.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// For programs.
pub fn json(diagnosis: &Diagnosis) -> Value {
    let slots = diagnosis.findings.slots();
    let rungs: Vec<Value> = diagnosis
        .findings
        .ladder
        .rungs
        .iter()
        .map(|rung| match &rung.outcome {
            Ok(count) => object!({
                "source": rung.source.as_str(),
                "slots": count.slots,
                "because": count.because,
            }),
            Err(why) => object!({ "source": rung.source.as_str(), "unknown": why }),
        })
        .collect();
    let signals: Vec<Value> = diagnosis
        .signals
        .iter()
        .map(|s| object!({ "signal": s.name, "available": s.available, "how": s.how }))
        .collect();
    let quirks: Vec<Value> = diagnosis
        .quirks
        .iter()
        .map(|q| object!({ "quirk": q.name, "found": q.found, "then": q.then }))
        .collect();
    let asked: Vec<Value> = diagnosis
        .manners
        .asked
        .iter()
        .map(|asked| object!({ "request": asked.request, "answer": asked.answer.to_string() }))
        .collect();
    let manners = &diagnosis.manners;
    let gauges = &diagnosis.gauges;
    object!({
        "endpoint": diagnosis.endpoint.to_string(),
        "answered": diagnosis.answered(),
        "verdict": diagnosis.verdict,
        "server": diagnosis.server.as_ref().map(|server| object!({
            "name": server.name,
            "recognised": server.how,
        })),
        "profile": diagnosis.profile().as_str(),
        "protocol": manners.protocol().as_str(),
        "slots": slots.map(|slots| object!({
            "count": slots.count,
            "source": slots.source.as_str(),
            "because": slots.because,
        })),
        "slots_ladder": rungs,
        "process": diagnosis.findings.process.as_ref().ok().map(|process| object!({
            "pid": process.pid,
            "command": process.command,
            "children": process.children.len(),
        })),
        "backlog": diagnosis.backlog(),
        "cpu": gauges.cpu.map(|cpu| object!({
            "cores": cpu.cores,
            "utilisation": cpu.utilisation,
            "throttled": cpu.throttled,
            "pinned_processes": cpu.pinned,
        })),
        "memory": {
            "used_bytes": gauges.memory_used,
            "limit_bytes": gauges.memory_limit,
        },
        "signals": signals,
        "keep_alive": manners.keep.map(|keep| match keep {
            Keep::Closes => "closes",
            Keep::Keeps(_) => "keeps",
            Keep::Stale => "stale",
        }),
        "lingers": manners.lingers,
        "quirks": quirks,
        "advice": diagnosis.advice,
        "asked": asked,
        "toml": diagnosis.toml,
    })
}

//! `tidegate status`: the status document, on one screen or as it is.

use std::{fmt::Write as _, process::ExitCode, thread, time::Duration};

use serde_json::Value;

use super::admin_client::{FAILURE, PATIENCE, complain, printable, put, request};
use crate::config::Address;

/// Decisions on the screen at most.
const DECISIONS: usize = 5;
/// Points of a capacity curve on the screen at most.
const CURVE: usize = 12;
/// Characters of the longest bar.
const BAR: f64 = 40.0;

/// Prints `/status`: as text, or as JSON when `json`. With `watch`, again each second until it is
/// interrupted or the server is gone.
pub fn run(address: &Address, json: bool, watch: bool) -> ExitCode {
    loop {
        let screen = match fetch(address, json) {
            Ok(screen) => screen,
            Err(why) => {
                complain(&format!(
                    "no status from {address}: {why}; is tidegate running, with that as its --admin address?"
                ));
                return FAILURE;
            }
        };
        // JSON that is watched is a stream of documents; text is drawn over the last screen.
        let clear = if watch && !json {
            "\u{1b}[H\u{1b}[2J"
        } else {
            ""
        };
        if let Err(code) = put(&format!("{clear}{screen}\n")) {
            return code;
        }
        if !watch {
            return ExitCode::SUCCESS;
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn fetch(address: &Address, json: bool) -> Result<String, String> {
    let answer = request(address, "GET", "/status", Some(PATIENCE)).map_err(|e| e.to_string())?;
    if answer.status != 200 {
        return Err(answer.complaint());
    }
    if json {
        return Ok(answer.text());
    }
    let status = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    Ok(screen(&status))
}

/// One readable screen. A figure that is not known is a dash.
fn screen(status: &Value) -> String {
    let mut out = String::new();
    let state = match (status["draining"].as_bool(), status["ready"].as_bool()) {
        (Some(true), _) => "draining",
        (_, Some(true)) if status["dry_run"] == true => "ready (dry run: nothing is refused)",
        (_, Some(true)) => "ready",
        _ => "not ready",
    };
    let uptime = status["uptime_seconds"]
        .as_f64()
        .unwrap_or_default()
        .max(0.0);
    let uptime = Duration::try_from_secs_f64(uptime.floor()).unwrap_or_default();
    let _ = writeln!(
        out,
        "tidegate {}, {state}, up {}",
        plain(&status["version"]),
        humantime::format_duration(uptime)
    );
    let totals = &status["totals"];
    let lines = [
        ("limit", plain(&status["limit"])),
        ("in flight", plain(&status["in_flight"])),
        (
            "queued",
            format!(
                "{} of {}",
                plain(&status["queued"]),
                plain(&status["queue_capacity"])
            ),
        ),
        ("bound by", plain(&status["bound_by"])),
        ("", plain(&status["bound_by_sentence"])),
        (
            "demand",
            format!("{} slots", number(&status["demand_slots"], 1)),
        ),
        (
            "saturated",
            format!("{} of the last 15 s", percent(&status["saturation_ratio"])),
        ),
        (
            "requests",
            format!(
                "{}: {} answered by the backend, {} by tidegate ({} refused), {} canceled",
                plain(&totals["requests"]),
                plain(&totals["answered_by_backend"]),
                plain(&totals["answered_by_tidegate"]),
                plain(&totals["refused"]),
                plain(&totals["canceled"])
            ),
        ),
    ];
    for (name, value) in lines {
        let _ = writeln!(out, "  {name:<10} {value}");
    }
    traffic(&mut out, status);
    let _ = writeln!(out);
    endpoints(&mut out, status);
    seen(&mut out, status);
    curves(&mut out, status);
    decisions(&mut out, status);
    out.truncate(out.trim_end().len());
    out
}

/// Rates and latencies of the last seconds, and what was refused why since the start.
fn traffic(out: &mut String, status: &Value) {
    let traffic = &status["traffic"];
    if traffic.is_object() {
        let _ = writeln!(
            out,
            "  {:<10} {} answered, {} refused, {} canceled a second",
            "traffic",
            number(&traffic["answered_per_second"], 1),
            number(&traffic["refused_per_second"], 1),
            number(&traffic["canceled_per_second"], 1),
        );
        for (name, of) in [
            ("latency", "request_seconds"),
            ("backend", "backend_seconds"),
        ] {
            let latency = &traffic[of];
            if latency.is_object() {
                let _ = writeln!(
                    out,
                    "  {name:<10} p50 {}, p95 {}, p99 {}",
                    millis(&latency["p50"]),
                    millis(&latency["p95"]),
                    millis(&latency["p99"]),
                );
            }
        }
    }
    let refusals: Vec<String> = status["refusals"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() > Some(0))
        .map(|(reason, count)| format!("{} {count}", printable(reason)))
        .collect();
    if !refusals.is_empty() {
        let _ = writeln!(out, "  {:<10} {}", "reasons", refusals.join(", "));
    }
}

/// What each endpoint was measured to do, by requests in flight, as bars.
fn curves(out: &mut String, status: &Value) {
    for endpoint in list(&status["backend"]["endpoints"]) {
        let points = list(&endpoint["capacity_curve"]);
        let most = points
            .iter()
            .filter_map(|point| point["throughput"].as_f64())
            .fold(0.0, f64::max);
        if most <= 0.0 {
            continue;
        }
        let _ = writeln!(
            out,
            "\n  capacity of {}\n  {:>9} {:>12} {:>9}",
            plain(&endpoint["endpoint"]),
            "in flight",
            "throughput",
            "stretch"
        );
        // Thinned out to what a screen holds; the last one is always there.
        let every = points.len().div_ceil(CURVE).max(1);
        let shown = |at: &usize| (points.len() - 1 - at).is_multiple_of(every);
        for point in (0..points.len()).filter(shown).map(|at| &points[at]) {
            let throughput = point["throughput"].as_f64().unwrap_or_default();
            let bar = "#".repeat((throughput / most * BAR).clamp(0.0, BAR) as usize);
            let _ = writeln!(
                out,
                "  {:>9} {throughput:>10.1}/s {:>9}  {bar}",
                number(&point["in_flight"], 0),
                number(&point["stretch"], 2),
            );
        }
    }
}

fn endpoints(out: &mut String, status: &Value) {
    let _ = writeln!(
        out,
        "  {:<28} {:>4} {:>9} {:>6} {:>6} {:>10} {:>9}  bound by",
        "endpoint", "up", "in flight", "limit", "slots", "unloaded", "stretch"
    );
    for endpoint in list(&status["backend"]["endpoints"]) {
        let up = if endpoint["up"] == true { "yes" } else { "no" };
        let unloaded = millis(&endpoint["baseline_seconds"]);
        let _ = writeln!(
            out,
            "  {:<28} {up:>4} {:>9} {:>6} {:>6} {unloaded:>10} {:>9}  {}",
            plain(&endpoint["endpoint"]),
            plain(&endpoint["in_flight"]),
            plain(&endpoint["limit"]),
            plain(&endpoint["slots"]),
            number(&endpoint["stretch_ratio"], 2),
            plain(&endpoint["bound_by"]),
        );
    }
}

/// What is seen of each endpoint from outside, and where it is from.
fn seen(out: &mut String, status: &Value) {
    for endpoint in list(&status["backend"]["endpoints"]) {
        let seen = &endpoint["seen"];
        if !seen.is_object() {
            continue;
        }
        let slots = &seen["slots"];
        let queue = &seen["accept_queue"];
        let (cpu, memory) = (&seen["cpu"], &seen["memory"]);
        let mut lines = Vec::new();
        if seen["server"].is_object() {
            let server = &seen["server"];
            let how = plain(&server["recognised_by"]);
            lines.push((
                "server",
                format!("{}, by its {how}", plain(&server["name"])),
            ));
        }
        if slots.is_object() {
            let (count, source) = (plain(&slots["count"]), plain(&slots["source"]));
            lines.push((
                "slots",
                format!("{count} by {source}: {}", plain(&slots["because"])),
            ));
        }
        if let Some(workers) = endpoint["steering"]["workers"].as_array() {
            let in_flight: Vec<String> = workers.iter().map(|it| plain(&it["in_flight"])).collect();
            lines.push((
                "workers",
                format!("{} with {} in flight", workers.len(), in_flight.join(", ")),
            ));
        }
        if queue["queued"].is_number() {
            let of_use = match queue["telling"] == true {
                true => "",
                false => " (says nothing: this server accepts more than it works on)",
            };
            lines.push(("backlog", format!("{}{of_use}", plain(&queue["queued"]))));
        }
        if cpu["utilisation"].is_number() {
            let used = percent(&cpu["utilisation"]);
            lines.push(("cpu", format!("{used} of {}", plain(&cpu["source"]))));
        }
        if let Some(used) = memory["used_bytes"].as_u64() {
            let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
            let of = memory["limit_bytes"]
                .as_u64()
                .map(|limit| format!(" of {}", mib(limit)));
            let (used, of) = (mib(used), of.unwrap_or_default());
            lines.push((
                "memory",
                format!("{used}{of}, {}", plain(&memory["source"])),
            ));
        }
        if !lines.is_empty() {
            let _ = writeln!(out, "\n  seen of {}", plain(&endpoint["endpoint"]));
        }
        for (name, value) in lines {
            let _ = writeln!(out, "  {name:<10} {value}");
        }
    }
}

fn decisions(out: &mut String, status: &Value) {
    let decisions = list(&status["decisions"]);
    if decisions.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n  latest decisions");
    for decision in decisions.iter().take(DECISIONS) {
        let _ = writeln!(
            out,
            "  {:>6} s ago  {:>4} -> {:<4} {} ({} samples, stretch {}, {} of the window at the limit)",
            number(&decision["age_seconds"], 1),
            plain(&decision["from"]),
            plain(&decision["limit"]),
            plain(&decision["reason"]),
            plain(&decision["evidence"]["samples"]),
            number(&decision["evidence"]["stretch"], 2),
            percent(&decision["evidence"]["limited_share"]),
        );
    }
    // What the words mean, each once.
    let mut told: Vec<&Value> = Vec::new();
    for decision in decisions.iter().take(DECISIONS) {
        let (word, sentence) = (&decision["reason"], &decision["explanation"]);
        if !told.contains(&word) && sentence.as_str().is_some_and(|text| !text.is_empty()) {
            told.push(word);
            let _ = writeln!(out, "  {:>10}: {}", plain(word), plain(sentence));
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

fn number(value: &Value, decimals: usize) -> String {
    value
        .as_f64()
        .map_or_else(|| "-".to_owned(), |number| format!("{number:.decimals$}"))
}

fn millis(seconds: &Value) -> String {
    seconds.as_f64().map_or_else(
        || "-".to_owned(),
        |seconds| format!("{:.1} ms", seconds * 1000.0),
    )
}

fn percent(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::{super::admin_client::tests::serve, *};
    use crate::{
        clock,
        control::{BoundBy, CurvePoint, Decision, Evidence},
        observe::{
            EndpointSnapshot, Metrics, Sight, Snapshot,
            labels::Reason,
            status,
            traffic::{Latency, Rates},
        },
    };

    #[test]
    fn the_document_of_the_server_fits_the_screen() {
        let snapshot = Snapshot {
            limit: 4,
            endpoints: vec![EndpointSnapshot {
                label: "127.0.0.1:8000".into(),
                in_flight: 4,
                limit: 4,
                bound_by: BoundBy::Workers,
                configured_by: None,
                baseline_seconds: Some(0.0123),
                stretch_ratio: None,
                slots: Some((4, "configured")),
                capacity: None,
                law: "aimd",
                shadows: vec![("vegas", 5)],
                leaking: false,
                steering: None,
                sight: Sight::default(),
                curve: [(1, 20.0), (4, 80.0)]
                    .map(|(in_flight, throughput)| CurvePoint {
                        in_flight,
                        stretch: 1.0,
                        throughput,
                        weight: 9.0,
                    })
                    .into(),
            }],
            queued: [0, 0, 7, 0, 0],
            queue_capacity: 40,
            saturation_ratio: 0.5,
            demand_slots: 11.0,
            ..Snapshot::default()
        };
        let now = clock::now();
        let decision = Decision {
            at: now,
            from: 3,
            limit: 4,
            bound_by: BoundBy::Workers,
            reason: "room",
            evidence: Evidence {
                samples: 80,
                stretch: 1.1,
                limited_share: 1.0,
                ..Evidence::default()
            },
        };
        let context = status::Context {
            admin: &Address::Unix("/run/admin".into()),
            now,
            uptime: Duration::from_millis(3_661_500),
            tasks: 3,
            ready: true,
            draining: false,
            dry_run: false,
            traffic: Some(Rates {
                answered: 93.25,
                refused: 80.0,
                request_seconds: Some(Latency {
                    p50: 0.041,
                    p95: 0.06,
                    p99: 0.0745,
                    ..Latency::default()
                }),
                ..Rates::default()
            }),
            decisions: &[("127.0.0.1:8000".to_owned(), decision)],
        };
        let metrics = Metrics::new();
        metrics.endpoint("127.0.0.1:8000").set_up(true);
        metrics.route("api").rejected(Reason::QueueFull);
        let text = screen(&status::document(&metrics, &snapshot, &context));
        let expected = format!(
            "tidegate {}, ready, up 1h 1m 1s\n  \
             limit      4\n  \
             in flight  4\n  \
             queued     7 of 40\n  \
             bound by   workers\n             \
             Every worker is busy: more requests at once would only wait inside the backend.\n  \
             demand     11.0 slots\n  \
             saturated  50 % of the last 15 s\n  \
             requests   0: 0 answered by the backend, 0 by tidegate (1 refused), 0 canceled\n  \
             traffic    93.2 answered, 80.0 refused, 0.0 canceled a second\n  \
             latency    p50 41.0 ms, p95 60.0 ms, p99 74.5 ms\n  \
             reasons    queue_full 1\n\n  \
             endpoint                       up in flight  limit  slots   unloaded   stretch  bound by\n  \
             127.0.0.1:8000                yes         4      4      4    12.3 ms         -  workers\n\n  \
             capacity of 127.0.0.1:8000\n  \
             in flight   throughput   stretch\n          \
             1       20.0/s      1.00  ##########\n          \
             4       80.0/s      1.00  ########################################\n\n  \
             latest decisions\n     \
             0.0 s ago     3 -> 4    room (80 samples, stretch 1.10, 100 % of the window at the limit)",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_seen_is_told_with_its_source() {
        let status = serde_json::json!({ "backend": { "endpoints": [{
            "endpoint": "127.0.0.1:8000",
            "seen": {
                "server": { "name": "gunicorn", "recognised_by": "command line" },
                "slots": { "count": 8, "source": "proc", "because": "2 workers x 4 threads" },
                "accept_queue": { "queued": 0, "telling": false },
                "cpu": { "utilisation": 0.5, "source": "process 7 and its children, on 2 cores" },
                "memory": { "used_bytes": 100 << 20, "limit_bytes": 512 << 20, "source": "cgroup v2 /a" },
            },
        }, { "endpoint": "b", "seen": null }] } });
        let mut text = String::new();
        seen(&mut text, &status);
        assert_eq!(
            text,
            "\n  seen of 127.0.0.1:8000\n  \
             server     gunicorn, by its command line\n  \
             slots      8 by proc: 2 workers x 4 threads\n  \
             backlog    0 (says nothing: this server accepts more than it works on)\n  \
             cpu        50 % of process 7 and its children, on 2 cores\n  \
             memory     100 MiB of 512 MiB, cgroup v2 /a\n"
        );
    }

    #[test]
    fn a_long_curve_and_the_meaning_of_the_words_fit_the_screen() {
        let curve: Vec<Value> = (1..=40)
            .map(|n| serde_json::json!({ "in_flight": n, "throughput": n, "stretch": 1.0 }))
            .collect();
        let decision = serde_json::json!({ "reason": "hold", "explanation": "The limit stays." });
        let text = screen(&serde_json::json!({
            "backend": { "endpoints": [{ "endpoint": "a", "capacity_curve": curve }] },
            "decisions": [decision, decision],
        }));
        let bars: Vec<&str> = text.lines().filter(|line| line.ends_with('#')).collect();
        assert_eq!(bars.len(), 10, "{text}");
        assert!(bars[9].starts_with("         40"), "{text}");
        assert_eq!(
            text.matches("        hold: The limit stays.").count(),
            1,
            "{text}"
        );
        assert!(text.lines().count() <= 40, "{text}");
    }

    #[test]
    fn an_unknown_document_is_a_screen_of_dashes_and_no_panic() {
        let text = screen(&serde_json::json!({ "version": "\u{1b}[2J", "uptime_seconds": -1e300 }));
        assert!(
            text.starts_with("tidegate  [2J, not ready, up 0s"),
            "{text}"
        );
    }

    #[test]
    fn json_is_passed_on_as_it_is() {
        let (address, server) = serve(vec![
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\": 1}\n",
        ]);
        assert_eq!(fetch(&address, true).as_deref(), Ok("{\"a\": 1}"));
        server.join().unwrap();
    }
}

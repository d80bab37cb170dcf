//! Everything that a probe found out, for people and for programs. Pure.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json as object};

use super::{
    advice::{self, rate, seconds, size},
    binds::{self, Binds, OneMore},
    knee::{self, Knee},
    plot::plot,
    step::{self, Step},
    sweep::End,
};
use crate::control::usl::Usl;

/// What was measured, before any conclusion.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) target: String,
    pub(super) keepalive: bool,
    pub(super) server: Option<String>,
    pub(super) first_status: u16,
    /// Where the first answer sent its reader.
    pub(super) location: Option<String>,
    /// Those that share the requests, of which the first is watched.
    pub(super) endpoints: usize,
    pub(super) step: Duration,
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
    pub(super) slots: Option<u32>,
    pub(super) unbounded: bool,
    pub(super) cores: Option<f64>,
    pub(super) memory_limit: Option<u64>,
}

/// What was measured, and what follows from it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The URL.
    pub target: String,
    /// Whether clients kept their connections.
    pub keepalive: bool,
    /// The `Server` field of the first answer.
    pub server: Option<String>,
    /// The status of the first answer.
    pub first_status: u16,
    /// How long a step was to be measured.
    pub step: Duration,
    /// Every step, in order of clients.
    pub steps: Vec<Step>,
    /// Why it ended.
    pub end: End,
    /// Requests in parallel that the backend is known to have room for.
    pub slots: Option<u32>,
    /// Cores that the backend may use, when its processes can be seen.
    pub cores: Option<f64>,
    /// Memory that it may use, bytes.
    pub memory_limit: Option<u64>,
    /// Where more clients stop bringing more.
    pub knee: Option<Knee>,
    /// The fitted curve.
    pub law: Option<Usl>,
    /// Bytes for each request in flight, when it can be seen to grow.
    pub memory_per_request: Option<f64>,
    /// What binds.
    pub binds: Binds,
    /// The answer, in a sentence.
    pub answer: String,
    /// What binds, in a sentence or two.
    pub because: String,
    /// What one more of each would bring.
    pub one_more: OneMore,
    /// What may have spoilt the measurement.
    pub warnings: Vec<String>,
    /// Limits for the configuration.
    pub toml: String,
}

/// Draws the conclusions.
pub(super) fn conclude(measured: Measured) -> Report {
    let Measured {
        target,
        keepalive,
        server,
        first_status,
        location,
        endpoints,
        step,
        mut steps,
        end,
        mut slots,
        mut unbounded,
        mut cores,
        memory_limit,
    } = measured;
    let divided = endpoints > 1;
    if divided {
        // What one of them has and does explains nothing of what all of them do together.
        (slots, unbounded, cores) = (None, false, None);
        for step in &mut steps {
            (step.usage, step.accept_queue) = (None, None);
        }
    }
    let knee = knee::find(&steps);
    let evidence = knee.map(|knee| {
        let allowed = binds::Allowed {
            slots,
            unbounded,
            cores,
            memory: memory_limit,
            endpoints,
        };
        binds::evidence(&steps, knee, end, allowed)
    });
    let binds = evidence.as_ref().map_or(Binds::Unknown, binds::binds);
    let until = knee.map_or(0, |knee| {
        steps.partition_point(|step| step.clients <= knee.clients * 2)
    });
    Report {
        answer: knee.as_ref().map_or_else(
            || "Nothing was measured.".to_owned(),
            |knee| advice::answer(knee, binds),
        ),
        because: evidence
            .as_ref()
            .map_or(String::new(), |evidence| advice::because(binds, evidence)),
        one_more: evidence.as_ref().map_or(OneMore::default(), |evidence| {
            binds::one_more(evidence, binds)
        }),
        toml: knee.filter(|_| !divided).map_or(String::new(), |knee| {
            advice::recommended(&knee, binds, slots, &target)
        }),
        law: knee::law(&steps),
        // Beyond the knee requests wait, and what waits takes little.
        memory_per_request: knee::memory_per_request(&steps[..until]).filter(|_| !divided),
        warnings: first_answer(first_status, location.as_deref())
            .into_iter()
            .chain(divided.then(|| several(endpoints)))
            .chain(warnings(&steps, step, end))
            .collect(),
        target,
        keepalive,
        server,
        first_status,
        step,
        steps,
        end,
        slots,
        cores,
        memory_limit,
        knee,
        binds,
    }
}

/// What is to be said of a first answer that is not the view's own.
fn first_answer(status: u16, location: Option<&str>) -> Option<String> {
    match (status, location) {
        (400.., _) => Some(format!(
            "the first answer was {status}: is it the right URL? An error page is cheaper than the view"
        )),
        (300.., Some(location)) => Some(format!(
            "the first answer was {status}, which leads to {}: that is not followed, and what was measured is the redirect, which is cheaper than the view",
            plain(location)
        )),
        (300.., None) => Some(format!(
            "the first answer was {status}: is it the right URL? What was measured is not the view"
        )),
        _ => None,
    }
}

/// Limits are for each endpoint, and are not known from what all of them do.
fn several(endpoints: usize) -> String {
    format!(
        "{endpoints} endpoints answered together, of which the memory is that of the first; limits are for each: for a configuration measure one by itself, with its own address as --url"
    )
}

fn warnings(steps: &[Step], length: Duration, end: End) -> Vec<String> {
    let mut found = Vec::new();
    if end == End::Interrupted {
        found.push("interrupted: this is what was measured until then".to_owned());
    }
    if end == End::Slow {
        let slowest = steps.iter().rev().find_map(|step| step.tally.latency);
        let latency = Duration::from_secs_f64(slowest.map_or(0.0, |latency| latency.mean));
        found.push(format!(
            "with more clients requests take too long for steps of {}, which last for {} at most: it goes on from there with --step {}, or with a faster view",
            humantime::format_duration(length),
            humantime::format_duration(step::longest(length)),
            humantime::format_duration(step::long_enough(length, latency)),
        ));
    }
    let own = steps.iter().map(|step| step.own_cores).fold(0.0, f64::max);
    if own > 0.8 {
        found.push(format!(
            "the probe itself used {own:.1} cores: it may be what binds; a slower view gives a truer answer"
        ));
    }
    let failed: u64 = steps.iter().map(|step| step.tally.errors.total()).sum();
    if failed > 0 {
        let mut kinds: Vec<(&str, u64)> = Vec::new();
        for step in steps {
            for (at, (name, count)) in step.tally.errors.kinds().into_iter().enumerate() {
                match kinds.get_mut(at) {
                    Some(kind) => kind.1 += count,
                    None => kinds.push((name, count)),
                }
            }
        }
        let kinds: Vec<String> = kinds
            .into_iter()
            .filter(|kind| kind.1 > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        found.push(format!("requests failed: {}", kinds.join(", ")));
    }
    found
}

fn end_word(end: End) -> &'static str {
    match end {
        End::Past => "knee_past",
        End::Bound => "max_concurrency",
        End::Memory => "memory",
        End::Errors => "errors",
        End::Slow => "slow",
        End::Interrupted => "interrupted",
    }
}

/// For people. `width` of the terminal is not asked for: no line is longer than 100 characters but
/// the sentences.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    let connections = if report.keepalive {
        "connections are kept"
    } else {
        "a connection for each request"
    };
    let server = report
        .server
        .as_deref()
        .map_or(String::new(), |server| format!(" ({})", plain(server)));
    let _ = writeln!(
        out,
        "{}{server}, {connections}, steps of {}\n",
        plain(&report.target),
        humantime::format_duration(report.step)
    );
    out += &table(&report.steps);
    let plot = plot(&report.steps, report.knee.as_ref(), report.law.as_ref());
    if !plot.is_empty() {
        let _ = write!(out, "\n{plot}");
    }
    let _ = writeln!(out, "\n{}", report.answer);
    if report.knee.is_some() {
        let _ = writeln!(
            out,
            "  bound by {}: {}",
            report.binds.as_str(),
            report.because
        );
    }
    if let Some(law) = &report.law {
        let most = law.most().map_or_else(
            || "no limit in sight".to_owned(),
            |most| format!("at most {}/s", rate(most)),
        );
        let _ = writeln!(
            out,
            "  Universal Scalability Law: {}/s alone, contention {:.3}, coherency {:.5}; {most}; confidence {:.0} %",
            rate(law.lambda),
            law.sigma,
            law.kappa,
            law.confidence * 100.0
        );
    }
    if let Some(bytes) = report.memory_per_request {
        let _ = writeln!(out, "  memory: {} for each request in flight", size(bytes));
    }
    for line in advice::what_if(&report.one_more) {
        let _ = writeln!(out, "  {line}");
    }
    for warning in &report.warnings {
        let _ = writeln!(out, "  note: {warning}");
    }
    if !report.toml.is_empty() {
        let _ = write!(out, "\n{}", report.toml);
    }
    out
}

fn table(steps: &[Step]) -> String {
    let mut out = format!(
        "  {:>7} {:>11} {:>9} {:>9} {:>9} {:>7} {:>6} {:>10} {:>7}\n",
        "clients", "throughput", "p50", "p95", "p99", "errors", "cores", "memory", "backlog"
    );
    let dash = || "-".to_owned();
    for step in steps {
        let latency = |of: fn(&super::Latency) -> f64| {
            step.tally
                .latency
                .as_ref()
                .map_or_else(dash, |latency| seconds(of(latency)))
        };
        let _ = writeln!(
            out,
            "  {:>7} {:>9}/s {:>9} {:>9} {:>9} {:>7} {:>6} {:>10} {:>7}",
            step.clients,
            rate(step.throughput()),
            latency(|l| l.p50),
            latency(|l| l.p95),
            latency(|l| l.p99),
            step.tally.errors.total(),
            step.usage
                .as_ref()
                .map_or_else(dash, |usage| format!("{:.2}", usage.cores)),
            step.memory.map_or_else(dash, |bytes| size(bytes as f64)),
            step.accept_queue
                .map_or_else(dash, |queue| format!("{queue:.1}")),
        );
    }
    out
}

/// On one line and without control characters: it came over the network.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// For programs.
pub fn json(report: &Report) -> Value {
    let steps: Vec<Value> = report.steps.iter().map(step_json).collect();
    object!({
        "target": report.target,
        "keepalive": report.keepalive,
        "server": report.server,
        "first_status": report.first_status,
        "step_seconds": report.step.as_secs_f64(),
        "end": end_word(report.end),
        "known_slots": report.slots,
        "cores": report.cores,
        "memory_limit_bytes": report.memory_limit,
        "steps": steps,
        "knee": report.knee.map(|knee| object!({
            "concurrency": knee.clients,
            "throughput": knee.throughput,
            "p50_seconds": knee.p50,
            "equivalent_slots": knee.equivalent,
            "max_throughput": knee.most,
            "reached": knee.reached,
        })),
        "usl": report.law.map(|law| object!({
            "lambda": law.lambda,
            "sigma": law.sigma,
            "kappa": law.kappa,
            "peak_concurrency": law.peak(),
            "max_throughput": law.most(),
            "confidence": law.confidence,
        })),
        "memory_per_request_bytes": report.memory_per_request,
        "bound_by": report.binds.as_str(),
        "answer": report.answer,
        "because": report.because,
        "one_more": {
            "worker": report.one_more.worker,
            "thread": report.one_more.thread,
            "core": report.one_more.core,
        },
        "warnings": report.warnings,
        "recommended_toml": report.toml,
    })
}

fn step_json(step: &Step) -> Value {
    let errors: serde_json::Map<String, Value> = step
        .tally
        .errors
        .kinds()
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count.into()))
        .collect();
    object!({
        "concurrency": step.clients,
        "seconds": step.seconds,
        "throughput": step.throughput(),
        "answered": step.tally.answered,
        "client_errors": step.tally.client_errors,
        "errors": errors,
        "latency_seconds": step.tally.latency.map(|latency| object!({
            "mean": latency.mean,
            "p50": latency.p50,
            "p95": latency.p95,
            "p99": latency.p99,
        })),
        "backend_cores": step.usage.as_ref().map(|usage| usage.cores),
        "backend_cores_wanted": step.usage.as_ref().map(|usage| usage.wanted),
        "backend_workers": step.usage.as_ref().map(|usage| usage.workers),
        "backend_threads_per_worker": step.usage.as_ref().map(|usage| usage.threads),
        "memory_bytes": step.memory,
        "accept_queue": step.accept_queue,
        "probe_cores": step.own_cores,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::probe::{
        step::Usage,
        tally::{Latency, Tally},
    };

    /// Four waiting workers.
    pub(in crate::probe) fn report() -> Report {
        conclude(measured())
    }

    fn measured() -> Measured {
        let steps = [1_u32, 2, 3, 4, 6, 8].map(|clients| {
            let slots = f64::from(clients.min(4));
            let wait = 0.05 * f64::from(clients) / slots;
            Step {
                clients,
                seconds: 1.0,
                tally: Tally {
                    throughput: 20.0 * slots,
                    answered: 20 * u64::from(clients.min(4)),
                    latency: Some(Latency {
                        p50: wait,
                        p95: wait * 1.1,
                        p99: wait * 1.2,
                        mean: wait,
                    }),
                    ..Tally::default()
                },
                usage: Some(Usage {
                    cores: 0.02 * slots,
                    wanted: 0.03 * slots,
                    workers: clients.min(4),
                    per_worker: 0.03,
                    threads: 1,
                }),
                accept_queue: Some(f64::from(clients.saturating_sub(4))),
                memory: Some(150 << 20),
                own_cores: 0.05,
            }
        });
        Measured {
            target: "http://127.0.0.1:8000/?a=1&b=<2>".into(),
            keepalive: false,
            server: Some("gunicorn".into()),
            first_status: 200,
            location: None,
            endpoints: 1,
            step: Duration::from_secs(1),
            steps: steps.into(),
            end: End::Past,
            slots: Some(4),
            unbounded: false,
            cores: Some(2.0),
            memory_limit: None,
        }
    }

    #[test]
    fn people_read_the_answer_and_the_reason() {
        let text = text(&report());
        for line in [
            "http://127.0.0.1:8000/?a=1&b=<2> (gunicorn), a connection for each request, steps of 1s",
            "  clients  throughput       p50       p95       p99  errors  cores     memory backlog",
            "        4      80.0/s   50.0 ms   55.0 ms   60.0 ms       0   0.08    150 MiB     0.0",
            "4 requests in parallel, 80.0 requests a second at a median of 50.0 ms; more only wait.",
            "  one more worker: about 20.0 requests a second more",
            "  one more core: nothing",
            "slots = 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("bound by workers: "), "{text}");
        assert!(!text.contains("note:"), "{text}");
    }

    #[test]
    fn several_endpoints_together_say_nothing_of_each() {
        let both = conclude(Measured {
            endpoints: 2,
            ..measured()
        });
        assert_eq!((both.binds, both.slots), (Binds::Unknown, None));
        assert!(both.knee.is_some() && both.toml.is_empty());
        assert!(both.because.contains("2 endpoints"), "{}", both.because);
        let text = text(&both);
        assert!(
            text.contains("note: 2 endpoints answered together"),
            "{text}"
        );
        assert!(!text.contains("one more"), "{text}");
    }

    #[test]
    fn programs_read_figures() {
        let document = json(&report());
        assert_eq!(document["knee"]["concurrency"], 4);
        assert_eq!(document["bound_by"], "workers");
        assert_eq!(document["end"], "knee_past");
        assert_eq!(document["steps"].as_array().map(Vec::len), Some(6));
        assert_eq!(document["steps"][5]["accept_queue"], 4.0);
        assert!(document["usl"]["confidence"].as_f64() > Some(0.5));
    }

    #[test]
    fn where_it_ended_because_requests_are_slow_there_is_a_remedy() {
        let step = Duration::from_millis(200);
        let said = warnings(&report().steps, step, End::Slow);
        let [slow] = said.as_slice() else {
            panic!("{said:?}");
        };
        assert!(
            slow.contains("steps of 200ms, which last for 6s at most"),
            "{slow}"
        );
        assert!(slow.contains("--step 1s"), "{slow}");
    }

    #[test]
    fn an_answer_that_is_not_the_view_is_noticed() {
        assert_eq!(first_answer(200, None), None);
        let led = first_answer(302, Some("/login?next=/\r\n")).unwrap();
        assert!(
            led.starts_with("the first answer was 302, which leads to /login?next=/  :"),
            "{led}"
        );
        let lost = first_answer(304, None).unwrap();
        assert!(lost.starts_with("the first answer was 304: "), "{lost}");
        let error = first_answer(404, Some("/")).unwrap();
        assert!(error.contains("error page"), "{error}");
    }

    #[test]
    fn without_a_step_there_is_no_answer_and_no_panic() {
        let empty = conclude(Measured {
            target: "http://127.0.0.1:8000/".into(),
            keepalive: false,
            server: None,
            first_status: 404,
            location: None,
            endpoints: 1,
            step: Duration::from_secs(1),
            steps: Vec::new(),
            end: End::Interrupted,
            slots: None,
            unbounded: false,
            cores: None,
            memory_limit: None,
        });
        let text = text(&empty);
        assert!(text.contains("Nothing was measured."), "{text}");
        assert!(text.contains("note: the first answer was 404"), "{text}");
        assert!(text.contains("note: interrupted"), "{text}");
        assert_eq!(json(&empty)["knee"], Value::Null);
    }
}

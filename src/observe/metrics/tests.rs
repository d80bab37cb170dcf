use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use super::*;
use crate::{
    control::BoundBy,
    observe::{
        exposition::Exposition,
        labels::{ErrorKind, Reason},
    },
};

fn snapshot() -> Snapshot {
    Snapshot {
        limit: 4,
        endpoints: vec![EndpointSnapshot {
            label: "127.0.0.1:8000".into(),
            in_flight: 3,
            limit: 4,
            bound_by: BoundBy::Workers,
            configured_by: None,
            baseline_seconds: Some(0.012),
            stretch_ratio: Some(1.25),
            slots: Some((4, "configured")),
            steering: None,
            sight: Sight {
                signals: Signals {
                    slots: true,
                    cpu: true,
                    ..Signals::default()
                },
                accept_queue: Some(3),
                cpu_ratio: Some(0.75),
                memory_bytes: Some(300),
                memory_limit_bytes: Some(400),
                document: serde_json::Value::Null,
            },
            curve: Vec::new(),
            capacity: None,
            law: "aimd",
            shadows: vec![("vegas", 5)],
            leaking: false,
        }],
        queued: [0, 0, 2, 0, 0],
        queue_capacity: 40,
        demand_slots: 4.5,
        saturation_ratio: 0.25,
        busy_slot_seconds: 12.5,
        limit_slot_seconds: 40.0,
        saturated_seconds: 2.0,
        reject_status: 503,
    }
}

fn metrics() -> Metrics {
    let metrics = Metrics::new();
    let route = metrics.route("api");
    route.request(200, Source::Backend);
    route.request(404, Source::Backend);
    route.request(503, Source::Tidegate);
    route.rejected(Reason::QueueFull);
    route.backend_seconds(Duration::from_millis(30));
    let endpoint = metrics.endpoint("127.0.0.1:8000");
    endpoint.set_up(true);
    endpoint.error(ErrorKind::Reset);
    endpoint.connection(false);
    endpoint.limit_change(true, "room");
    metrics.queue_wait(Class::Normal, WaitOutcome::Admitted, Duration::ZERO);
    metrics.canceled(Phase::Queued);
    metrics
}

/// All of it, with an example of each series, for the reference.
pub(crate) fn example() -> String {
    metrics().render(&snapshot(), Format::Text)
}

/// The families and series in order, without values and with one line for a histogram's buckets.
fn outline(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = match line.strip_prefix('#') {
            Some(_) if line.starts_with("# HELP") => continue,
            Some(_) => line.to_owned(),
            None => {
                let series = line.rsplit_once(' ').expect("a value").0;
                if series.contains("le=\"0.001\"") {
                    series.replace("le=\"0.001\"", "le=…")
                } else if series.contains("le=\"") {
                    continue;
                } else {
                    series
                        .replace(VERSION, "VERSION")
                        .replace(REVISION, "REVISION")
                }
            }
        };
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

fn golden(format: Format, expected: &str, file: &str) {
    let mut exposition = Exposition::new(format);
    render::write(&metrics(), &snapshot(), &mut exposition);
    let found = outline(&exposition.finish());
    if std::env::var_os("TIDEGATE_UPDATE_GOLDEN").is_some() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src/observe/metrics/golden")
            .join(file);
        std::fs::write(path, &found).expect("the golden file is written");
        return;
    }
    // The names and labels are a contract; rewrite the files with
    // TIDEGATE_UPDATE_GOLDEN=1 when it changes.
    assert!(found == expected, "{file} differs; found:\n{found}");
}

#[test]
fn the_names_and_labels_are_those_of_the_contract_in_text() {
    golden(Format::Text, include_str!("golden/text.txt"), "text.txt");
}

#[test]
fn the_names_and_labels_are_those_of_the_contract_in_open_metrics() {
    golden(
        Format::OpenMetrics,
        include_str!("golden/openmetrics.txt"),
        "openmetrics.txt",
    );
}

#[test]
fn values_arrive_where_they_belong() {
    let text = metrics().render(&snapshot(), Format::Text);
    for line in [
        "tidegate_requests_total{route=\"api\",code=\"404\",source=\"backend\"} 1",
        "tidegate_requests_total{route=\"default\",code=\"200\",source=\"backend\"} 0",
        "tidegate_rejected_requests_total{route=\"api\",reason=\"queue_full\"} 1",
        "tidegate_rejected_requests_total{route=\"api\",reason=\"backend_unreachable\"} 0",
        "tidegate_limit_bound_by{endpoint=\"127.0.0.1:8000\",reason=\"workers\"} 1",
        "tidegate_limit_bound_by{endpoint=\"127.0.0.1:8000\",reason=\"cpu\"} 0",
        "tidegate_backend_seconds_bucket{route=\"api\",le=\"0.025\"} 0",
        "tidegate_backend_seconds_bucket{route=\"api\",le=\"0.05\"} 1",
        "tidegate_backend_seconds_bucket{route=\"api\",le=\"10\"} 1",
        "tidegate_backend_seconds_sum{route=\"api\"} 0.03",
        "tidegate_queue_wait_seconds_count{class=\"normal\",outcome=\"admitted\"} 1",
        "tidegate_queued_requests{class=\"normal\"} 2",
        "tidegate_signal_available{signal=\"slots\"} 1",
        "tidegate_signal_available{signal=\"memory\"} 0",
        "tidegate_backend_accept_queue{endpoint=\"127.0.0.1:8000\"} 3",
        "tidegate_backend_cpu_ratio 0.75",
        "tidegate_backend_memory_bytes 300",
        "tidegate_backend_memory_limit_bytes 400",
        "tidegate_config_reload_success 1",
        "tidegate_backend_up{endpoint=\"127.0.0.1:8000\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    let open = metrics().render(&snapshot(), Format::OpenMetrics);
    assert!(open.contains("le=\"10.0\""));
    assert!(open.ends_with("# EOF\n"));
    assert!(!text.contains("# EOF"));
}

#[test]
fn no_series_is_written_twice() {
    let text = metrics().render(&snapshot(), Format::Text);
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            seen.insert(line.rsplit_once(' ').expect("a value").0),
            "{line}"
        );
    }
}

#[test]
fn handles_are_the_same_for_the_same_name() {
    let metrics = Metrics::new();
    assert!(Arc::ptr_eq(&metrics.route("a"), &metrics.route("a")));
    assert!(Arc::ptr_eq(&metrics.endpoint("e"), &metrics.endpoint("e")));
    assert!(!Arc::ptr_eq(&metrics.route("a"), &metrics.route("b")));
}

#[test]
fn an_endpoint_that_is_gone_keeps_its_counters_but_is_not_up() {
    let text = metrics().render(&Snapshot::default(), Format::Text);
    assert!(!text.contains("tidegate_backend_up{"));
    assert!(text.contains("tidegate_backend_errors_total{endpoint=\"127.0.0.1:8000\""));
}

#[test]
fn a_code_outside_of_http_does_not_panic() {
    let route = Metrics::new().route("x");
    route.request(0, Source::Backend);
    route.request(u16::MAX, Source::Backend);
    assert_eq!(route.answered(Source::Backend), 2);
}

#[test]
fn a_failed_reload_is_seen_and_forgotten() {
    let metrics = Metrics::new();
    let success = |metrics: &Metrics| {
        let text = metrics.render(&Snapshot::default(), Format::Text);
        text.contains("\ntidegate_config_reload_success 1\n")
    };
    let ok_at = || metrics.reloads.last_ok_at.load(Relaxed);
    metrics.reloads.last_ok_at.store(0, Relaxed);
    metrics.config_reload(false);
    assert!(!success(&metrics));
    assert_eq!(ok_at(), 0, "that was none");
    metrics.config_reload(true);
    assert!(success(&metrics));
    assert_ne!(ok_at(), 0);
}

#[test]
fn totals_are_sums_over_routes() {
    let totals = metrics().totals();
    assert_eq!(
        totals,
        Totals {
            backend: 2,
            tidegate: 1,
            refused: 1,
            would_refuse: 0,
            canceled: 1
        }
    );
}

/// `promtool` is Prometheus's own judge; the test passes where it is not installed.
#[test]
fn promtool_finds_nothing_to_complain_about() {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return };
    let text = metrics().render(&snapshot(), Format::Text);
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(text.as_bytes())
        .expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.is_empty() && output.stdout.is_empty(),
        "{said}"
    );
}

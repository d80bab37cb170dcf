//! Writes the exposition: one paragraph a family, in the order of the documentation.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    EndpointMetrics, Metrics, REVISION, RouteMetrics, Sight, Signals, Snapshot, VERSION, list,
};
use crate::observe::{
    exposition::{
        Exposition, Format,
        Kind::{Counter, Gauge, Histogram},
    },
    histogram,
    labels::{BOUNDS, CLASSES, Phase, Reason, Source, WaitOutcome, bound_by, class},
    process,
};

type Named<T> = Vec<(String, Arc<T>)>;

pub(super) fn render(metrics: &Metrics, snapshot: &Snapshot, format: Format) -> String {
    let mut exposition = Exposition::new(format);
    write(metrics, snapshot, &mut exposition);
    process::render(&mut exposition);
    exposition.finish()
}

/// Everything but the metrics of the process, which no test can foresee.
pub(super) fn write(metrics: &Metrics, snapshot: &Snapshot, out: &mut Exposition) {
    let routes = list(&metrics.routes);
    let endpoints = list(&metrics.endpoints);
    limits(out, snapshot, &endpoints);
    load(out, metrics, snapshot);
    requests(out, metrics, snapshot, &routes);
    durations(out, metrics, &routes);
    backend(out, snapshot, &endpoints);
    house(out, metrics);
}

fn limits(out: &mut Exposition, snapshot: &Snapshot, endpoints: &Named<EndpointMetrics>) {
    let mut family = out.family(
        Gauge,
        "tidegate_in_flight_requests",
        "Requests that the backend is working on: permits taken.",
    );
    for endpoint in &snapshot.endpoints {
        family.sample(&[("endpoint", &endpoint.label)], endpoint.in_flight);
    }
    let mut family = out.family(
        Gauge,
        "tidegate_concurrency_limit",
        "Requests that may be in flight at once.",
    );
    for endpoint in &snapshot.endpoints {
        family.sample(&[("endpoint", &endpoint.label)], endpoint.limit);
    }
    let mut family = out.family(
        Gauge,
        "tidegate_limit_bound_by",
        "1 for what holds the limit where it is, 0 for the rest.",
    );
    for endpoint in &snapshot.endpoints {
        for bound in BOUNDS {
            let labels = [("endpoint", &*endpoint.label), ("reason", bound_by(bound))];
            family.sample(&labels, bound == endpoint.bound_by);
        }
    }
    let mut family = out.family(
        Gauge,
        "tidegate_shadow_limit",
        "What the laws of limit.shadow would set, on the same traffic.",
    );
    for endpoint in &snapshot.endpoints {
        for (law, limit) in &endpoint.shadows {
            family.sample(&[("endpoint", &*endpoint.label), ("law", law)], *limit);
        }
    }
    let mut family = out.family(
        Counter,
        "tidegate_limit_changes_total",
        "Changes of the limit, by reason.",
    );
    for (label, endpoint) in endpoints {
        for (up, reason, count) in endpoint.limit_changes() {
            let direction = if up { "up" } else { "down" };
            let labels = [
                ("endpoint", &**label),
                ("direction", direction),
                ("reason", reason),
            ];
            family.sample(&labels, count);
        }
    }
}

fn load(out: &mut Exposition, metrics: &Metrics, snapshot: &Snapshot) {
    let mut family = out.family(
        Gauge,
        "tidegate_queued_requests",
        "Requests that wait for a permit.",
    );
    for (class, queued) in snapshot.queued_by_class() {
        family.sample(&[("class", class)], queued);
    }
    out.family(
        Gauge,
        "tidegate_queue_capacity",
        "Requests that may wait for a permit at once.",
    )
    .sample(&[], snapshot.queue_capacity);
    out.family(
        Gauge,
        "tidegate_orphaned_requests",
        "Requests that the backend still works on although nobody waits for the answer.",
    )
    .sample(&[], metrics.orphaned.get());
    out.family(
        Gauge,
        "tidegate_streaming_requests",
        "Streams and upgraded connections: they hold a permit and are no latency sample.",
    )
    .sample(&[], metrics.streaming.get());
    out.family(
        Counter,
        "tidegate_busy_slot_seconds_total",
        "Requests in flight, integrated over time.",
    )
    .sample(&[], snapshot.busy_slot_seconds);
    out.family(
        Counter,
        "tidegate_limit_slot_seconds_total",
        "The limit, integrated over time.",
    )
    .sample(&[], snapshot.limit_slot_seconds);
    out.family(
        Counter,
        "tidegate_saturated_seconds_total",
        "Time in which the limit was reached or requests waited for it.",
    )
    .sample(&[], snapshot.saturated_seconds);
    out.family(
        Gauge,
        "tidegate_demand_slots",
        "Requests in flight, queued and refused, mean of 15 s: the slots that the traffic asks for.",
    )
    .sample(&[], snapshot.demand_slots);
    out.family(
        Gauge,
        "tidegate_saturation_ratio",
        "Share of the last 15 s in which the limit was reached, 0 to 1.",
    )
    .sample(&[], snapshot.saturation_ratio);
}

fn requests(
    out: &mut Exposition,
    metrics: &Metrics,
    snapshot: &Snapshot,
    routes: &Named<RouteMetrics>,
) {
    // 503 is known whatever `reject.status` says: a drain answers with it.
    let own_codes = [502, 503, 504, snapshot.reject_status];
    let mut family = out.family(
        Counter,
        "tidegate_requests_total",
        "Requests answered, by status code and by who wrote the answer.",
    );
    for (name, route) in routes {
        for source in Source::ALL {
            let known: &[u16] = if *source == Source::Backend {
                &[200]
            } else {
                &own_codes
            };
            for (code, count) in route.codes(*source).exported(known) {
                let code = code.to_string();
                let labels = [
                    ("route", &**name),
                    ("code", &*code),
                    ("source", source.as_str()),
                ];
                family.sample(&labels, count);
            }
        }
    }
    let mut family = out.family(
        Counter,
        "tidegate_rejected_requests_total",
        "Requests that tidegate answered itself, by reason.",
    );
    for (name, route) in routes {
        write_reasons(&mut family, name, route.rejections());
    }
    let mut family = out.family(
        Counter,
        "tidegate_would_reject_requests_total",
        "Requests that would have been refused, had this not been a dry run.",
    );
    for (name, route) in routes {
        write_reasons(&mut family, name, route.would_be_rejections());
    }
    let mut family = out.family(
        Counter,
        "tidegate_canceled_requests_total",
        "Requests whose client left, by where they were.",
    );
    for (phase, count) in Phase::ALL.iter().zip(&metrics.canceled) {
        family.sample(&[("phase", phase.as_str())], count.load(Relaxed));
    }
}

fn write_reasons(
    family: &mut crate::observe::exposition::Family<'_>,
    route: &str,
    counts: impl Iterator<Item = (Reason, u64)>,
) {
    for (reason, count) in counts {
        family.sample(&[("route", route), ("reason", reason.as_str())], count);
    }
}

fn durations(out: &mut Exposition, metrics: &Metrics, routes: &Named<RouteMetrics>) {
    let mut family = out.family(
        Histogram,
        "tidegate_queue_wait_seconds",
        "Time in the queue; 0 for a request that passed at once.",
    );
    for known in CLASSES {
        for outcome in WaitOutcome::ALL {
            let histogram = &metrics.queue_wait[known as usize][*outcome as usize];
            let labels = [("class", class(known)), ("outcome", outcome.as_str())];
            family.histogram(&labels, &histogram.read());
        }
    }
    type Pick = fn(&RouteMetrics) -> &histogram::Histogram;
    let by_route: [(&str, &str, Pick); 3] = [
        (
            "tidegate_backend_seconds",
            "From the permit to the end of the backend's work.",
            |route| &route.backend_seconds,
        ),
        (
            "tidegate_first_byte_seconds",
            "From the request's head to the first byte of its answer.",
            |route| &route.first_byte_seconds,
        ),
        (
            "tidegate_request_seconds",
            "From the request's head to the last byte of its answer.",
            |route| &route.request_seconds,
        ),
    ];
    for (name, help, pick) in by_route {
        let mut family = out.family(Histogram, name, help);
        for (route_name, route) in routes {
            family.histogram(&[("route", route_name)], &pick(route).read());
        }
    }
}

fn backend(out: &mut Exposition, snapshot: &Snapshot, endpoints: &Named<EndpointMetrics>) {
    let mut family = out.family(
        Gauge,
        "tidegate_baseline_seconds",
        "The latency of the backend without load, once it is known.",
    );
    for endpoint in &snapshot.endpoints {
        if let Some(seconds) = endpoint.baseline_seconds {
            family.sample(&[("endpoint", &endpoint.label)], seconds);
        }
    }
    let mut family = out.family(
        Gauge,
        "tidegate_stretch_ratio",
        "Latency over the latency without load, once it is known.",
    );
    for endpoint in &snapshot.endpoints {
        if let Some(ratio) = endpoint.stretch_ratio {
            family.sample(&[("endpoint", &endpoint.label)], ratio);
        }
    }
    let mut family = out.family(
        Gauge,
        "tidegate_backend_slots",
        "Requests that the backend can run at once, and who says so.",
    );
    for endpoint in &snapshot.endpoints {
        if let Some((slots, source)) = endpoint.slots {
            family.sample(&[("endpoint", &endpoint.label), ("source", source)], slots);
        }
    }
    let mut family = out.family(
        Gauge,
        "tidegate_backend_up",
        "1 while the endpoint accepts connections.",
    );
    // An endpoint that a reload took away is neither up nor down; its counters stay.
    for (label, endpoint) in endpoints {
        if snapshot.endpoints.iter().any(|known| known.label == *label) {
            family.sample(&[("endpoint", label)], endpoint.is_up());
        }
    }
    let mut family = out.family(
        Counter,
        "tidegate_backend_errors_total",
        "Failures of the backend, by kind.",
    );
    for (label, endpoint) in endpoints {
        for (kind, count) in endpoint.errors() {
            family.sample(&[("endpoint", label), ("kind", kind.as_str())], count);
        }
    }
    let mut family = out.family(
        Counter,
        "tidegate_backend_connections_total",
        "Connections to the backend that carried a request, new or reused.",
    );
    for (label, endpoint) in endpoints {
        for (reused, count) in endpoint.connections() {
            family.sample(&[("endpoint", label), ("reused", reused)], count);
        }
    }
    sight(out, snapshot);
}

/// What the sensors see.
fn sight(out: &mut Exposition, snapshot: &Snapshot) {
    let mut family = out.family(
        Gauge,
        "tidegate_backend_accept_queue",
        "Connections that the backend has not accepted yet, where the kernel tells.",
    );
    for endpoint in &snapshot.endpoints {
        if let Some(queued) = endpoint.sight.accept_queue {
            family.sample(&[("endpoint", &endpoint.label)], queued);
        }
    }
    // Of several endpoints the one that is nearest to its bound.
    let sights = || snapshot.endpoints.iter().map(|endpoint| &endpoint.sight);
    let cpu = sights()
        .filter_map(|sight| sight.cpu_ratio)
        .max_by(f64::total_cmp);
    let mut family = out.family(
        Gauge,
        "tidegate_backend_cpu_ratio",
        "CPU that the backend uses over the CPU that it may use, a mean of 1 s.",
    );
    if let Some(ratio) = cpu {
        family.sample(&[], ratio);
    }
    let fullest = sights()
        .filter(|sight| sight.memory_bytes.is_some())
        .max_by(|one, other| fullness(one).total_cmp(&fullness(other)));
    let mut family = out.family(
        Gauge,
        "tidegate_backend_memory_bytes",
        "Memory that the backend uses and that cannot be reclaimed.",
    );
    if let Some(bytes) = fullest.and_then(|sight| sight.memory_bytes) {
        family.sample(&[], bytes);
    }
    let mut family = out.family(
        Gauge,
        "tidegate_backend_memory_limit_bytes",
        "Memory that the backend may use.",
    );
    if let Some(bytes) = fullest.and_then(|sight| sight.memory_limit_bytes) {
        family.sample(&[], bytes);
    }
    let mut family = out.family(
        Gauge,
        "tidegate_signal_available",
        "1 for what can be known of the backend from outside.",
    );
    let any = |of: fn(&Signals) -> bool| sights().any(|sight| of(&sight.signals));
    family.sample(&[("signal", "accept_queue")], any(|s| s.accept_queue));
    family.sample(&[("signal", "cpu")], any(|s| s.cpu));
    family.sample(&[("signal", "memory")], any(|s| s.memory));
    family.sample(&[("signal", "psi")], any(|s| s.psi));
    family.sample(&[("signal", "slots")], any(|s| s.slots));
}

fn fullness(sight: &Sight) -> f64 {
    let limit = sight.memory_limit_bytes.filter(|limit| *limit > 0);
    match (sight.memory_bytes, limit) {
        (Some(used), Some(limit)) => used as f64 / limit as f64,
        _ => 0.0,
    }
}

fn house(out: &mut Exposition, metrics: &Metrics) {
    out.family(
        Gauge,
        "tidegate_client_connections",
        "Connections of clients.",
    )
    .sample(&[("state", "active")], metrics.connections_active.get())
    .sample(&[("state", "idle")], metrics.connections_idle.get());
    out.family(
        Gauge,
        "tidegate_buffered_bytes",
        "Bytes of bodies that are held in memory.",
    )
    .sample(
        &[("direction", "request")],
        metrics.buffered_request_bytes.get(),
    )
    .sample(
        &[("direction", "response")],
        metrics.buffered_response_bytes.get(),
    );
    out.family(
        Gauge,
        "tidegate_ready",
        "1 while the readiness check answers 200.",
    )
    .sample(&[], metrics.ready.load(Relaxed));
    out.family(Gauge, "tidegate_draining", "1 during a drain.")
        .sample(&[], metrics.draining.load(Relaxed));
    let reloads = &metrics.reloads;
    out.family(
        Counter,
        "tidegate_config_reloads_total",
        "Reloads of the configuration.",
    )
    .sample(&[("result", "ok")], reloads.ok.load(Relaxed))
    .sample(&[("result", "error")], reloads.error.load(Relaxed));
    out.family(
        Gauge,
        "tidegate_config_reload_success",
        "0 when the last reload failed.",
    )
    .sample(&[], reloads.last_was_ok.load(Relaxed));
    out.family(
        Gauge,
        "tidegate_config_reload_success_timestamp_seconds",
        "When a configuration was last loaded successfully, since the Unix epoch.",
    )
    .sample(
        &[],
        Duration::from_millis(reloads.last_ok_at.load(Relaxed)).as_secs_f64(),
    );
    out.family(
        Gauge,
        "tidegate_build_info",
        "Always 1; what is running is in the labels.",
    )
    .sample(&[("version", VERSION), ("revision", REVISION)], true);
}

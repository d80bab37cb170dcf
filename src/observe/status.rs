//! The status document: what `/status` answers, the dashboard draws and `tidegate status` prints.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    labels::{Bound, Reason, bound_by, setting},
    metrics::{
        EndpointSnapshot, Metrics, REVISION, Snapshot, SteeringSnapshot, VERSION, WorkerSnapshot,
    },
    traffic::{Latency, Rates},
};
use crate::{
    config::Address,
    control::{Decision, explain, usl::Usl},
};

/// What the document says beyond the metrics' [`Snapshot`].
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time of asking.
    pub now: Instant,
    /// The address of the admin server.
    pub admin: &'a Address,
    /// Since the start.
    pub uptime: Duration,
    /// How many tasks there are on the threads that serve clients.
    pub tasks: usize,
    /// Whether `/readyz` answers 200.
    pub ready: bool,
    /// Whether a drain is under way.
    pub draining: bool,
    /// Whether limits are computed but not enforced.
    pub dry_run: bool,
    /// What the traffic was like in the last seconds, when that is known.
    pub traffic: Option<Rates>,
    /// The last decisions of the control law by endpoint label, the newest first.
    pub decisions: &'a [(String, Decision)],
}

/// The status document. Keys are only ever added; times are in seconds.
pub fn document(metrics: &Metrics, snapshot: &Snapshot, context: &Context<'_>) -> Value {
    let endpoints = &snapshot.endpoints;
    let busiest = endpoints
        .iter()
        .max_by(|one, other| load(one).total_cmp(&load(other)));
    // The sum means something only when it is known of every endpoint.
    let slots = endpoints
        .iter()
        .map(|endpoint| endpoint.slots.map(|(slots, _)| slots))
        .sum::<Option<u32>>()
        .filter(|slots| *slots > 0);
    let in_flight = endpoints.iter().map(|endpoint| endpoint.in_flight).sum();
    let of_all = |endpoint: &EndpointSnapshot| Bound {
        in_flight,
        slots,
        endpoints: endpoints.len(),
        up: endpoints
            .iter()
            .any(|other| metrics.endpoint(&other.label).is_up()),
        ..bound(metrics, endpoint, context)
    };
    let counts = metrics.counts();
    let totals = counts.totals;
    json!({
        "version": VERSION,
        "revision": REVISION,
        "uptime_seconds": context.uptime.as_secs_f64(),
        "ready": context.ready,
        "draining": context.draining,
        "dry_run": context.dry_run,
        "limit": snapshot.limit,
        "in_flight": in_flight,
        "queued": snapshot.queued_total(),
        "queued_by_class": snapshot
            .queued_by_class()
            .map(|(class, queued)| (class.to_owned(), queued.into()))
            .collect::<serde_json::Map<_, Value>>(),
        "queue_capacity": snapshot.queue_capacity,
        "bound_by": busiest.map(|endpoint| bound_by(endpoint.bound_by)),
        "bound_by_sentence": busiest.map(|endpoint| of_all(endpoint).sentence()),
        "configured_by": busiest.and_then(|endpoint| endpoint.configured_by).map(setting),
        "demand_slots": snapshot.demand_slots,
        "saturation_ratio": snapshot.saturation_ratio,
        "orphaned": metrics.orphaned.get(),
        "streaming": metrics.streaming.get(),
        "tasks": context.tasks,
        "connections": {
            "active": metrics.connections_active.get(),
            "idle": metrics.connections_idle.get(),
        },
        "backend": {
            "slots": slots,
            "endpoints": endpoints
                .iter()
                .map(|endpoint| endpoint_document(metrics, endpoint, context))
                .collect::<Vec<_>>(),
        },
        "totals": {
            "requests": totals.backend + totals.tidegate,
            "answered_by_backend": totals.backend,
            "answered_by_tidegate": totals.tidegate,
            "refused": totals.refused,
            "would_refuse": totals.would_refuse,
            "canceled": totals.canceled,
        },
        "refusals": Reason::ALL
            .iter()
            .map(|reason| (reason.as_str().to_owned(), counts.reasons[*reason as usize].into()))
            .collect::<serde_json::Map<_, Value>>(),
        "traffic": context.traffic.as_ref().map(traffic_document),
        "decisions": context
            .decisions
            .iter()
            .map(|(endpoint, decision)| decision_document(endpoint, decision, context.now))
            .collect::<Vec<_>>(),
    })
}

fn traffic_document(rates: &Rates) -> Value {
    json!({
        "window_seconds": rates.seconds,
        "requests_per_second": rates.requests,
        "answered_per_second": rates.answered,
        "refused_per_second": rates.refused,
        "would_refuse_per_second": rates.would_refuse,
        "canceled_per_second": rates.canceled,
        "request_seconds": rates.request_seconds.as_ref().map(latency_document),
        "backend_seconds": rates.backend_seconds.as_ref().map(latency_document),
    })
}

fn latency_document(latency: &Latency) -> Value {
    json!({
        "mean": latency.mean,
        "p50": latency.p50,
        "p95": latency.p95,
        "p99": latency.p99,
    })
}

fn load(endpoint: &EndpointSnapshot) -> f64 {
    f64::from(endpoint.in_flight) / f64::from(endpoint.limit.max(1))
}

fn bound<'a>(metrics: &Metrics, endpoint: &EndpointSnapshot, context: &Context<'a>) -> Bound<'a> {
    Bound {
        by: endpoint.bound_by,
        configured_by: endpoint.configured_by,
        in_flight: endpoint.in_flight,
        slots: endpoint.slots.map(|(slots, _)| slots),
        endpoints: 1,
        up: metrics.endpoint(&endpoint.label).is_up(),
        admin: context.admin,
    }
}

fn endpoint_document(
    metrics: &Metrics,
    endpoint: &EndpointSnapshot,
    context: &Context<'_>,
) -> Value {
    let known = metrics.endpoint(&endpoint.label);
    let server = known.server();
    json!({
        "endpoint": endpoint.label,
        "up": known.is_up(),
        "profile": server.map(|(profile, _)| profile),
        "profile_source": server.map(|(_, source)| source),
        "limit": endpoint.limit,
        "in_flight": endpoint.in_flight,
        "bound_by": bound_by(endpoint.bound_by),
        "bound_by_sentence": bound(metrics, endpoint, context).sentence(),
        "configured_by": endpoint.configured_by.map(setting),
        "slots": endpoint.slots.map(|(slots, _)| slots),
        "slots_source": endpoint.slots.map(|(_, source)| source),
        "steering": endpoint.steering.as_ref().map(steering_document),
        "seen": endpoint.sight.document,
        "baseline_seconds": endpoint.baseline_seconds,
        "stretch_ratio": endpoint.stretch_ratio,
        "capacity_curve": endpoint
            .curve
            .iter()
            .map(|point| {
                json!({
                    "in_flight": point.in_flight,
                    "stretch": point.stretch,
                    "throughput": point.throughput,
                    "weight": point.weight,
                })
            })
            .collect::<Vec<_>>(),
        "law": endpoint.law,
        "shadow_limits": endpoint
            .shadows
            .iter()
            .map(|(law, limit)| ((*law).to_owned(), (*limit).into()))
            .collect::<serde_json::Map<_, Value>>(),
        "memory_leak": endpoint.leaking,
        "capacity": endpoint.capacity.as_ref().map(capacity_document),
    })
}

fn steering_document(steering: &SteeringSnapshot) -> Value {
    let worker = |worker: &WorkerSnapshot| {
        json!({
            "pid": worker.pid,
            "in_flight": worker.in_flight,
            "connections": worker.connections,
        })
    };
    json!({
        "looked": steering.looked,
        "turned_away": steering.turned_away,
        "workers": steering.workers.iter().map(worker).collect::<Vec<_>>(),
    })
}

/// The Universal Scalability Law of the curve.
fn capacity_document(usl: &Usl) -> Value {
    json!({
        "lambda": usl.lambda,
        "sigma": usl.sigma,
        "kappa": usl.kappa,
        "peak_in_flight": usl.peak(),
        "peak_throughput": usl.most(),
        "knee_in_flight": usl.knee(),
        "measured_in_flight": usl.measured,
        "confidence": usl.confidence,
    })
}

fn decision_document(endpoint: &str, decision: &Decision, now: Instant) -> Value {
    let evidence = &decision.evidence;
    json!({
        "endpoint": endpoint,
        "age_seconds": now.saturating_duration_since(decision.at).as_secs_f64(),
        "from": decision.from,
        "limit": decision.limit,
        "bound_by": bound_by(decision.bound_by),
        "reason": decision.reason,
        "explanation": explain(decision.reason),
        "evidence": {
            "samples": evidence.samples,
            "drops": evidence.drops,
            "stretch": evidence.stretch,
            "noise": evidence.noise,
            "throughput": evidence.throughput,
            "limited_share": evidence.limited_share,
            "mean_latency_seconds": evidence.mean_latency.as_secs_f64(),
            "in_flight": evidence.in_flight,
            "law_limit": evidence.law_limit,
            "ceiling": evidence.ceiling,
            "slots": evidence.readings.slots,
            "accept_queue": evidence.readings.accept_queue,
            "cpu_ratio": evidence.readings.cpu.map(|cpu| cpu.utilisation),
            "cpu_throttled": evidence.readings.cpu.map(|cpu| cpu.throttled),
            "cpu_run_delay": evidence.readings.cpu.map(|cpu| cpu.run_delay),
            "cpu_waiting": evidence.readings.cpu.map(|cpu| cpu.waiting),
            "memory_ratio": evidence
                .readings
                .memory
                .filter(|memory| memory.limit > 0)
                .map(|memory| memory.used as f64 / memory.limit as f64),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        control::{BoundBy, Evidence},
        observe::{Sight, labels::Source},
    };

    fn endpoint(label: &str, in_flight: u32, limit: u32, bound: BoundBy) -> EndpointSnapshot {
        EndpointSnapshot {
            label: label.into(),
            in_flight,
            limit,
            bound_by: bound,
            configured_by: None,
            baseline_seconds: None,
            stretch_ratio: Some(f64::NAN),
            slots: Some((4, "configured")),
            steering: None,
            sight: Sight::default(),
            curve: Vec::new(),
            capacity: None,
            law: "aimd",
            shadows: vec![("vegas", 5)],
            leaking: false,
        }
    }

    #[test]
    fn the_busiest_endpoint_speaks_for_the_whole() {
        let metrics = Metrics::new();
        metrics.route("api").request(200, Source::Backend);
        let snapshot = Snapshot {
            endpoints: vec![
                endpoint("a", 1, 4, BoundBy::Idle),
                endpoint("b", 4, 4, BoundBy::Workers),
            ],
            limit: 8,
            queued: [0, 1, 2, 0, 0],
            ..Snapshot::default()
        };
        let now = clock::now();
        let decision = Decision {
            at: now,
            from: 3,
            limit: 4,
            bound_by: BoundBy::Workers,
            reason: "room",
            evidence: Evidence::default(),
        };
        let context = Context {
            now: now + Duration::from_secs(2),
            admin: &Address::Unix("/run/admin".into()),
            uptime: Duration::from_secs(9),
            tasks: 3,
            ready: true,
            draining: false,
            dry_run: false,
            traffic: None,
            decisions: &[("b".to_owned(), decision)],
        };
        let status = document(&metrics, &snapshot, &context);
        assert_eq!(status["bound_by"], "workers");
        assert_eq!(status["limit"], 8);
        assert_eq!(status["in_flight"], 5);
        assert_eq!(status["tasks"], 3);
        assert_eq!(status["queued"], 3);
        assert_eq!(status["backend"]["slots"], 8);
        // What it says goes with the figures beside it.
        let sentence = status["bound_by_sentence"].as_str().unwrap();
        assert!(sentence.contains("8 requests at once"), "{sentence}");
        let of_one = &status["backend"]["endpoints"][1]["bound_by_sentence"];
        assert!(of_one.as_str().unwrap().starts_with("Every worker is busy"));
        let down = &status["backend"]["endpoints"][0]["bound_by_sentence"];
        assert!(down.as_str().unwrap().contains("accepts no connections"));
        assert_eq!(status["configured_by"], Value::Null);
        assert_eq!(status["totals"]["requests"], 1);
        assert_eq!(status["decisions"][0]["age_seconds"], 2.0);
        assert_eq!(status["decisions"][0]["evidence"]["cpu_ratio"], Value::Null);
        assert_eq!(
            status["backend"]["endpoints"][0]["shadow_limits"]["vegas"],
            5
        );
        // JSON has no NaN: an unknown figure is null.
        assert_eq!(
            status["backend"]["endpoints"][0]["stretch_ratio"],
            Value::Null
        );
    }
}

//! What the admin server may ask of the running process.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    drain::{Drain, Way},
    pulse::Heart,
    reload::{Cause, Settings},
};
use crate::{
    admin::{Answer, Format, Handle, Readiness},
    buffer::Direction,
    clock,
    config::Address,
    observe::{self, EndpointSnapshot},
    proxy::{Phase, Shared},
    sense::Senses,
    tuner::Means,
};

/// An endpoint that accepted a connection within this time is taken to accept another.
const FRESH: Duration = Duration::from_secs(2);
/// How long an endpoint is given to accept when asked.
const PROBE: Duration = Duration::from_millis(500);

/// The running process.
#[derive(Debug)]
pub struct Running {
    pub shared: Arc<Shared>,
    pub settings: Arc<Settings>,
    pub drain: Drain,
    pub means: Arc<Means>,
    pub senses: Arc<Senses>,
    pub started: Instant,
    /// Where the admin server listens.
    pub admin: Address,
    /// Whether the start is over: the backend of `exec` has been up, and clients are accepted.
    pub serving: Arc<AtomicBool>,
    /// The runtimes of the threads that serve clients, once there are any.
    pub threads: OnceLock<Vec<tokio::runtime::Handle>>,
    /// Whether they run.
    pub heart: Heart,
}

impl Running {
    fn snapshot(&self, now: Instant) -> observe::Snapshot {
        let gate = self.shared.limiter.snapshot(now);
        let (demand_slots, saturation_ratio) = self.means.demand_and_saturation();
        let known = self.shared.endpoints();
        let endpoints = self
            .shared
            .limiter
            .lanes()
            .iter()
            .map(|lane| {
                let state = gate.lanes.iter().find(|state| state.id == lane.id());
                let slots = self.senses.slots(lane.id());
                let sight = self.senses.sight(lane.id()).unwrap_or_default();
                let endpoint = known.iter().find(|endpoint| endpoint.id == lane.id());
                lane.with_controller(|law| EndpointSnapshot {
                    label: lane.label().to_owned(),
                    in_flight: state.map_or(0, |state| state.in_flight),
                    limit: state.map_or_else(|| law.limit(), |state| state.limit),
                    bound_by: law.bound_by(),
                    configured_by: law.configured_by(),
                    baseline_seconds: law.baseline().map(|d| d.as_secs_f64()),
                    stretch_ratio: law.stretch(),
                    slots: slots.map(|slots| (slots.count, slots.source.as_str())),
                    steering: endpoint.and_then(|endpoint| endpoint.steers()),
                    sight,
                    curve: law.curve().collect(),
                    capacity: law.capacity(),
                    law: law.settings().algorithm.as_str(),
                    shadows: law
                        .shadows()
                        .map(|(law, limit)| (law.as_str(), limit))
                        .collect(),
                    leaking: law.leaking(),
                })
            })
            .collect();
        let metrics = &self.shared.metrics;
        let held = |direction| i64::try_from(self.shared.budget.used(direction)).unwrap_or(0);
        metrics.set_ready(self.is_ready());
        metrics.buffered_request_bytes.set(held(Direction::Request));
        metrics
            .buffered_response_bytes
            .set(held(Direction::Response));
        observe::Snapshot {
            endpoints,
            limit: gate.limit(),
            queued: gate.queued,
            queue_capacity: u32::try_from(gate.capacity).unwrap_or(u32::MAX),
            demand_slots,
            saturation_ratio,
            busy_slot_seconds: gate.usage.busy_seconds,
            limit_slot_seconds: gate.usage.limit_seconds,
            saturated_seconds: gate.usage.saturated_seconds,
            reject_status: self.shared.live().config.reject.status,
        }
    }

    /// Whether requests should be sent here, by what is known: of an idle backend that may be some seconds old.
    fn is_ready(&self) -> bool {
        self.serving.load(Relaxed)
            && self.shared.phase() == Phase::Serving
            && !self.drain.is_under_way()
            && self.shared.has_backend()
    }

    /// Looks at all endpoints at once, until one of them is up.
    async fn find_one_up(&self) {
        let mut looks = self.shared.look_at_all(PROBE);
        while let Some(up) = looks.join_next().await {
            if up.is_ok_and(|up| up) {
                break;
            }
        }
    }

    fn threads(&self) -> &[tokio::runtime::Handle] {
        self.threads.get().map(Vec::as_slice).unwrap_or_default()
    }

    fn tasks(&self) -> usize {
        let tasks = self
            .threads()
            .iter()
            .map(|it| it.metrics().num_alive_tasks());
        tasks.sum()
    }

    /// The whole state as one log event: USR2.
    pub fn log_state(&self) {
        observe::log::state(&self.status());
    }
}

impl Handle for Running {
    fn metrics(&self, format: Format) -> String {
        let snapshot = self.snapshot(clock::now());
        self.shared.metrics.render(&snapshot, format)
    }

    fn status(&self) -> serde_json::Value {
        let now = clock::now();
        let snapshot = self.snapshot(now);
        let mut decisions: Vec<_> = self
            .shared
            .limiter
            .lanes()
            .iter()
            .flat_map(|lane| {
                let label = lane.label().to_owned();
                lane.decisions()
                    .into_iter()
                    .map(move |decision| (label.clone(), decision))
            })
            .collect();
        decisions.sort_by_key(|(_, decision)| std::cmp::Reverse(decision.at));
        observe::status::document(
            &self.shared.metrics,
            &snapshot,
            &observe::status::Context {
                now,
                admin: &self.admin,
                uptime: now.saturating_duration_since(self.started),
                tasks: self.tasks(),
                ready: self.is_ready(),
                draining: self.shared.phase() != Phase::Serving,
                dry_run: self.shared.live().config.limit.dry_run,
                traffic: self.means.rates(),
                decisions: &decisions,
            },
        )
    }

    fn config(&self) -> (String, serde_json::Value) {
        let loaded = self.settings.in_force().without_secrets();
        (loaded.render_toml(), loaded.to_json())
    }

    fn alive(&self) -> Answer<'_, Result<(), Duration>> {
        Box::pin(self.heart.look(self.threads()))
    }

    fn ready(&self) -> Answer<'_, Readiness> {
        Box::pin(async move {
            let draining = self.drain.is_under_way();
            let endpoints = self.shared.endpoints();
            let now = clock::now();
            if !endpoints.iter().any(|e| e.seen_up_within(FRESH, now)) {
                self.find_one_up().await;
            }
            let mut checks = Vec::with_capacity(endpoints.len() + 2);
            for endpoint in endpoints.iter() {
                let verdict = match (endpoint.is_up(), endpoint.was_seen()) {
                    (true, true) => Ok(()),
                    (true, false) => Err("has not accepted a connection yet".to_owned()),
                    (false, _) => Err(match endpoint.refusal() {
                        Some(why) => format!("does not accept connections: {why}"),
                        None => "does not accept connections".to_owned(),
                    }),
                };
                checks.push((format!("backend {}", endpoint.address), verdict));
            }
            let ready = self.is_ready();
            if !self.serving.load(Relaxed) {
                let waiting = Err("waits for the backend to start".to_owned());
                checks.push(("start".to_owned(), waiting));
            }
            let drained = if draining {
                Err("a drain is under way".to_owned())
            } else {
                Ok(())
            };
            checks.push(("drain".to_owned(), drained));
            Readiness {
                ready,
                draining,
                checks,
            }
        })
    }

    fn reload(&self) -> Answer<'_, Result<String, String>> {
        // In a task of its own: who has asked may leave, and what has been read by then is not to be forgotten.
        let settings = self.settings.clone();
        let reload =
            tokio::spawn(async move { settings.try_reload(Cause::Asked("asked for")).await });
        Box::pin(async move { reload.await.unwrap_or_else(|error| Err(error.to_string())) })
    }

    fn drain(&self, passing: bool) {
        self.drain
            .start(if passing { Way::Passing } else { Way::Refusing });
    }

    fn undrain(&self) -> Result<(), String> {
        self.drain.undo()
    }

    fn drained(&self) -> Answer<'_, bool> {
        Box::pin(self.drain.done())
    }

    fn set_limit(&self, limit: Option<u32>) -> Result<(), String> {
        let bounds = &self.shared.live().config.limit;
        if let Some(limit) = limit
            && !(bounds.min..=bounds.max).contains(&limit)
        {
            return Err(format!(
                "{limit} is not between limit.min = {} and limit.max = {}",
                bounds.min, bounds.max
            ));
        }
        self.shared.limiter.pin(limit, clock::now());
        match limit {
            Some(limit) => tracing::info!(limit, "the limit was set by hand"),
            None => tracing::info!("the limit was left to the control law by hand"),
        }
        Ok(())
    }
}

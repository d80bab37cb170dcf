//! What all connections share: the parts that a reload replaces, and those that stay.

use std::{
    io::{self, ErrorKind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::HeaderName;
use tokio::{
    sync::{Notify, futures::Notified},
    task::JoinSet,
};

use super::{client::KeySource, hygiene, probes::Probes};
use crate::{
    admission::{
        Cap, Class, Limiter,
        route::{self, Routes},
        state,
    },
    backend::{
        Endpoint, Look, Name, RequestHead, Size,
        profile::{self, Excess, Limits},
    },
    buffer::Budget,
    clock,
    config::{self, Config},
    control::{self, Readings},
    observe::{Metrics, RouteMetrics, trace::Recorder},
};

/// A host that accepts no connection in time for so long, and answers no request, is gone.
const GONE: Duration = Duration::from_secs(10);

/// Even with what is added to them, so many fields are fewer than any known server takes.
const FEW_FIELDS: usize = 80;

/// The configuration in force and what follows from it. A request reads it once.
#[derive(Debug)]
pub struct Live {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its routes.
    pub matcher: Routes,
    /// The same routes, with their figures.
    pub routes: Vec<LiveRoute>,
    /// The field that carries the request's id.
    pub request_id: Option<HeaderName>,
    /// The field by which a client says for how long it waits, milliseconds.
    pub deadline: Option<HeaderName>,
    /// The fields by which it tells routes.
    fields: Vec<HeaderName>,
    /// Whether it names a field that most requests have anyway.
    pub reads_usual: bool,
    /// What tells clients apart in the queue.
    pub client_key: KeySource,
}

/// A route and its figures.
#[derive(Debug)]
pub struct LiveRoute {
    /// Its number for the control law.
    pub id: u16,
    /// Its name.
    pub name: Arc<str>,
    /// The importance of its requests.
    pub class: Class,
    /// Its own cap.
    pub cap: Option<Cap>,
    /// Its figures.
    pub metrics: Arc<RouteMetrics>,
}

impl Live {
    fn new(config: Arc<Config>, before: Option<&Live>, metrics: &Metrics) -> Self {
        let matcher = Routes::new(&config.routes, before.map(|live| &live.matcher));
        let routes = matcher
            .all()
            .iter()
            .map(|route: &route::Route| LiveRoute {
                id: route.id,
                name: route.name.as_str().into(),
                class: route.class,
                cap: route.cap,
                metrics: metrics.route(&route.name),
            })
            .collect();
        let request_id: Option<HeaderName> = config.headers.request_id.parse().ok();
        let deadline: Option<HeaderName> = config.queue.deadline_header.parse().ok();
        let client_key = KeySource::from(&config.queue.client_key);
        let fields: Vec<HeaderName> = matcher.fields().cloned().collect();
        let own = [request_id.as_ref(), deadline.as_ref(), client_key.field()];
        let reads_usual = fields
            .iter()
            .chain(own.into_iter().flatten())
            .any(|name| hygiene::is_common(name) || Name::find(name.as_str().as_bytes()).is_some());
        Self {
            fields,
            reads_usual,
            request_id,
            deadline,
            client_key,
            config,
            matcher,
            routes,
        }
    }

    /// Whether a field of this head is looked for where only its map is looked at.
    pub fn reads(&self, head: &RequestHead) -> bool {
        let is_there = |name| head.body().other(name).is_some();
        self.reads_usual || self.fields.iter().any(is_there)
    }
}

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not at all.
    Serving,
    /// Serving still, but asking clients to go elsewhere: `drain.delay`.
    Leaving,
    /// New requests are refused.
    Draining,
    /// Nothing is left to do: idle connections are closed.
    Closing,
}

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    live: ArcSwap<Live>,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    next_endpoint: AtomicU32,
    phase: AtomicU8,
    phase_changed: Notify,
    /// The gate and its laws.
    pub limiter: Arc<Limiter>,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// For what is buffered.
    pub budget: Arc<Budget>,
    /// The last answers to health checks.
    pub probes: Probes,
    /// The trace, where one is recorded.
    pub trace: OnceLock<Recorder>,
}

/// The backend's endpoints, as they are now.
pub struct EndpointsNow(arc_swap::Guard<Arc<Vec<Arc<Endpoint>>>>);

impl EndpointsNow {
    /// What of a request's head is more than some endpoint is sure to take.
    pub fn excess(&self, request: &RequestHead, added: Size) -> Option<Excess> {
        let mut limits = self.0.iter().filter_map(|endpoint| endpoint.limits());
        limits.find_map(|limits| limits.excess(request, added))
    }

    /// How many fields some endpoint's server may take at most, where there are so many that it matters.
    pub fn most_fields(&self, fields: usize) -> usize {
        if fields < FEW_FIELDS {
            return usize::MAX;
        }
        let limits = self.0.iter().map(|endpoint| &endpoint.facts().limits);
        limits.map(Limits::fields).min().unwrap_or(usize::MAX)
    }

    /// Whether the backend may be sent fields that are not in a request's map.
    pub fn takes_lines(&self, backend: &config::Backend) -> bool {
        let counts_vars = |endpoint: &Arc<Endpoint>| endpoint.facts().limits.count_vars();
        backend.protocol == config::Protocol::Http && !self.0.iter().any(counts_vars)
    }
}

impl Shared {
    /// Everything a proxy needs to serve, by this configuration.
    pub fn new(config: Arc<Config>, limiter: Limiter, metrics: Arc<Metrics>) -> Arc<Self> {
        let live = Live::new(config.clone(), None, &metrics);
        let shared = Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            endpoints: ArcSwap::default(),
            next_endpoint: AtomicU32::new(0),
            phase: AtomicU8::new(Phase::Serving as u8),
            phase_changed: Notify::new(),
            limiter: Arc::new(limiter),
            budget: Budget::new(config.buffers.total),
            probes: Probes::default(),
            trace: OnceLock::new(),
            metrics,
        });
        shared.set_endpoints(&config);
        shared
    }

    /// What is in force now.
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// The backend's endpoints.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// The same for one look at them, which costs less than to own them.
    pub fn endpoints_now(&self) -> EndpointsNow {
        EndpointsNow(self.endpoints.load())
    }

    /// One of them, by its number.
    pub fn endpoint(&self, id: u32) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        endpoints.iter().find(|one| one.id == id).cloned()
    }

    /// Whether a body must have a length before it can be sent to the backend.
    pub fn needs_length(&self, backend: &config::Backend) -> bool {
        backend.protocol == config::Protocol::Uwsgi
            || self.endpoints.load().iter().any(|endpoint| {
                endpoint.profile().1 >= profile::Source::Process && !endpoint.facts().chunked
            })
    }

    /// A body in chunks that does not fit into memory goes on as it comes. Says once of each endpoint whose server may be
    /// one that loses it, where that is not sure enough to refuse it.
    pub fn streams_chunks(&self) {
        for endpoint in self.endpoints.load().iter() {
            let (profile, source) = endpoint.profile();
            if !endpoint.facts().chunked && endpoint.is_first_stream_of_chunks() {
                tracing::warn!(
                    endpoint = %endpoint.address,
                    profile = profile.as_str(),
                    source = source.as_str(),
                    "uploads in chunks beyond buffers.request are passed on in chunks, which this server may lose: set buffers.spool_dir, or name it by backend.profile"
                );
            }
        }
    }

    /// Puts a new configuration in force. Requests that are under way keep the one they began with.
    pub fn apply(&self, config: Arc<Config>) {
        let before = self.live();
        let now = clock::now();
        self.budget.set_total(config.buffers.total);
        self.limiter.gate().change(|state, out| {
            state.configure(queue_settings(&config), now, out);
        });
        if before.config.limit != config.limit || before.config.discovery != config.discovery {
            if before.config.discovery.slots != config.discovery.slots {
                // What is discovered takes its time; what is configured holds at once.
                for lane in self.limiter.lanes() {
                    let slots = readings(&config).slots;
                    lane.set_readings(Readings {
                        slots,
                        ..lane.readings()
                    });
                }
            }
            let settings = control_settings(&config);
            // Where the slots are discovered, the configuration does not tell where the limit starts.
            let discovered = config.limit.initial == 0 && config.discovery.slots == 0;
            self.limiter.reconfigure(
                |law| {
                    let begun = law.begun().filter(|_| discovered);
                    control::Settings {
                        initial: begun.unwrap_or(settings.initial),
                        ..settings.clone()
                    }
                },
                now,
            );
        }
        self.live.store(Arc::new(Live::new(
            config.clone(),
            Some(&before),
            &self.metrics,
        )));
        if before.config.routes != config.routes
            || before.config.backend.endpoints != config.backend.endpoints
        {
            self.probes.forget();
        }
        self.set_endpoints(&config);
    }

    /// Keeps the endpoints that stay, adds new ones, retires the others.
    fn set_endpoints(&self, config: &Config) {
        let now = clock::now();
        let before = self.endpoints();
        let wanted = &config.backend.endpoints;
        let mut endpoints = Vec::with_capacity(wanted.len());
        for address in wanted {
            if let Some(known) = before.iter().find(|e| e.address == *address) {
                endpoints.push(known.clone());
                continue;
            }
            let label = address.to_string();
            let id = self.next_endpoint.fetch_add(1, Relaxed);
            let metrics = self.metrics.endpoint(&label);
            for (reason, _) in control::reason::REASONS {
                metrics.declare_limit_change(true, reason);
                metrics.declare_limit_change(false, reason);
            }
            let endpoint = Endpoint::new(id, address.clone(), &config.backend, metrics, now);
            endpoints.push(Arc::new(endpoint));
        }
        // Known before the gate may send anyone there, and gone only after it no longer does.
        let mut known = endpoints.clone();
        known.extend(before.iter().cloned());
        self.endpoints.store(Arc::new(known));
        for endpoint in &endpoints {
            if !before.iter().any(|e| e.id == endpoint.id) {
                self.limiter.add_lane(
                    endpoint.id,
                    endpoint.address.to_string(),
                    control_settings(config),
                    readings(config),
                    now,
                );
            }
        }
        for gone in before
            .iter()
            .filter(|e| !endpoints.iter().any(|kept| kept.id == e.id))
        {
            self.limiter.retire_lane(gone.id, now);
        }
        self.endpoints.store(Arc::new(endpoints));
    }

    /// Connects to an endpoint and hangs up, notes what that says, and tells whether it is up as far as is known.
    pub async fn look_at(&self, endpoint: &Endpoint, patience: Duration) -> bool {
        match endpoint.probe(patience).await {
            Look::Accepts => self.note_up(endpoint, clock::now()),
            Look::Refuses(error) => self.note_down(endpoint, Some(&error), clock::now()),
            Look::Late => self.note_late(endpoint, clock::now()),
            Look::Nothing => {}
        }
        endpoint.is_seen_up()
    }

    /// The same with all endpoints at once, each in a task of its own; dropping the set ends those that are
    /// still looking.
    pub fn look_at_all(self: &Arc<Self>, patience: Duration) -> JoinSet<bool> {
        let endpoints = self.endpoints();
        let looks = endpoints.iter().map(|endpoint| {
            let (shared, endpoint) = (self.clone(), endpoint.clone());
            async move { shared.look_at(&endpoint, patience).await }
        });
        looks.collect()
    }

    /// Whether any endpoint is known to accept connections.
    pub fn has_backend(&self) -> bool {
        let endpoints = self.endpoints.load();
        endpoints.iter().any(|endpoint| endpoint.is_seen_up())
    }

    /// Notes that a request is over whose connection was made then: the endpoint accepts others as well, if it has
    /// refused none since.
    pub fn note_served(&self, endpoint: &Endpoint, made: Instant, now: Instant) {
        if !endpoint.has_refused_since(made) {
            self.note_up(endpoint, now);
        }
    }

    /// Notes that an endpoint accepts connections, where that is news.
    pub fn note_up(&self, endpoint: &Endpoint, now: Instant) {
        let seen = endpoint.was_seen();
        let was_late = endpoint.note_in_time();
        let news = endpoint.set_up(true, now);
        let address = &endpoint.address;
        match (news, seen) {
            (false, _) if was_late => {
                tracing::debug!(endpoint = %address, "the backend accepts connections in time again");
            }
            (false, _) => return,
            (true, true) => {
                tracing::info!(endpoint = %address, "the backend accepts connections again");
            }
            (true, false) => {
                tracing::info!(endpoint = %address, "the backend accepts connections");
            }
        }
        self.tell_gate(endpoint, now);
    }

    /// Notes that an endpoint accepted no connection in time. Where the backlog is full, workers are busy, not gone: it
    /// is still tried, after others. A host of which nothing is heard for long is gone.
    pub fn note_late(&self, endpoint: &Endpoint, now: Instant) {
        let late = endpoint.note_late(now);
        if late.is_zero() {
            tracing::debug!(endpoint = %endpoint.address, "the backend accepted no connection in time: others come first");
            self.tell_gate(endpoint, now);
        }
        if late >= GONE && !endpoint.is_local() {
            self.note_down(endpoint, Some(&ErrorKind::TimedOut.into()), now);
        }
    }

    /// Notes that an endpoint does not accept connections, and why if that is known, where it is news.
    pub fn note_down(&self, endpoint: &Endpoint, why: Option<&io::Error>, now: Instant) {
        let is_other = why.is_some_and(|why| endpoint.note_refusal(why));
        let news = endpoint.set_up(false, now);
        let address = &endpoint.address;
        let error = why.map(tracing::field::display);
        match (news, endpoint.was_seen()) {
            (false, _) if !is_other => {}
            // No news at the end of a drain: the backend has nothing left to do, and may have been told to
            // stop.
            (_, true) if self.phase() == Phase::Closing => {}
            (false, _) => {
                tracing::warn!(endpoint = %address, error, "the backend does not accept connections, for another reason than before");
            }
            (true, true) => {
                tracing::warn!(endpoint = %address, error, "the backend does not accept connections");
            }
            (true, false) => {
                tracing::warn!(
                    endpoint = %address,
                    error,
                    "the backend does not accept connections yet: requests get 502 until it does"
                );
            }
        }
        if news {
            self.tell_gate(endpoint, now);
        }
    }

    /// Tells the gate what is known by now, not what the news was: of two threads with news, the one with the
    /// later may be the first at the gate.
    fn tell_gate(&self, endpoint: &Endpoint, now: Instant) {
        self.limiter
            .gate()
            .change(|state, out| state.set_healthy(endpoint.id, !endpoint.is_doubtful(), now, out));
    }

    /// How far a shutdown has come.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Serving,
            1 => Phase::Leaving,
            2 => Phase::Draining,
            _ => Phase::Closing,
        }
    }

    /// Ready when the phase has changed after this was first polled.
    pub fn phase_change(&self) -> Notified<'_> {
        self.phase_changed.notified()
    }

    /// Moves to another phase; from [`Phase::Draining`] on, new requests are refused.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        let refuse = matches!(phase, Phase::Draining | Phase::Closing);
        self.limiter.gate().change(|state, _| state.close(refuse));
        self.metrics.set_draining(phase != Phase::Serving);
        self.phase_changed.notify_waiters();
    }
}

/// The gate's settings, by the configuration.
pub fn queue_settings(config: &Config) -> state::Settings {
    state::Settings {
        capacity: config.queue.capacity,
        max_wait: config.queue.max_wait,
        discipline: config.queue.discipline,
        client_max_share: config.queue.client_max_share,
        dry_run: config.limit.dry_run,
    }
}

/// The control law's settings, by the configuration.
pub fn control_settings(config: &Config) -> control::Settings {
    let limit = &config.limit;
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let initial = match (limit.initial, config.discovery.slots) {
        (0, 0) => 2 * cores(),
        (0, slots) => slots,
        (initial, _) => initial,
    };
    control::Settings {
        algorithm: law(limit.algorithm),
        initial: initial.clamp(limit.min, limit.max),
        min: limit.min,
        max: limit.max,
        increase: limit.aimd.increase,
        decrease: limit.aimd.decrease,
        tolerance: limit.aimd.tolerance,
        resources: control::Resources {
            cpu: limit.resources.cpu,
            cpu_high: limit.resources.cpu_high,
            memory: limit.resources.memory,
            memory_high: limit.resources.memory_high,
            memory_max: limit.resources.memory_max,
        },
        shadow: limit.shadow.iter().copied().map(law).collect(),
    }
}

fn law(algorithm: config::Algorithm) -> control::Algorithm {
    match algorithm {
        config::Algorithm::Aimd => control::Algorithm::Aimd,
        config::Algorithm::Gradient => control::Algorithm::Gradient,
        config::Algorithm::Vegas => control::Algorithm::Vegas,
        config::Algorithm::Fixed => control::Algorithm::Fixed,
    }
}

/// What the configuration says of the backend.
pub fn readings(config: &Config) -> Readings {
    Readings {
        slots: (config.discovery.slots > 0).then_some(config.discovery.slots),
        ..Readings::default()
    }
}

/// How long a client may take, by the configuration: read once for each connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientTimeouts {
    /// For the whole head.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For a write that makes no progress.
    pub write: Duration,
}

impl From<&config::Server> for ClientTimeouts {
    fn from(server: &config::Server) -> Self {
        Self {
            header: server.header_timeout,
            idle: server.idle_timeout,
            write: server.write_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, Value, load};

    fn config(flags: &[(&str, &str)]) -> Arc<Config> {
        let flags = flags.iter().map(|(key, value)| {
            let value = Value::Bare((*value).to_owned());
            ((*key).to_owned(), "--set".to_owned(), value)
        });
        let sources = Sources {
            flags: flags.collect(),
            ..Sources::default()
        };
        load(&sources).expect("it is valid").config
    }

    fn shared(config: Arc<Config>) -> Arc<Shared> {
        let limiter = Limiter::new(queue_settings(&config), None, clock::now());
        Shared::new(config, limiter, Arc::default())
    }

    fn limits(shared: &Shared) -> Vec<u32> {
        let lanes = shared.limiter.snapshot(clock::now()).lanes;
        lanes.iter().map(|lane| lane.limit).collect()
    }

    #[test]
    fn a_reload_keeps_the_slots_that_were_discovered() {
        let shared = shared(config(&[("limit.algorithm", "fixed")]));
        // As the sensors tell it.
        let lane = &shared.limiter.lanes()[0];
        lane.with_controller(|law| law.begin(97, clock::now()));
        shared.limiter.tick(clock::now());
        assert_eq!(limits(&shared), [97]);
        let changed = ("limit.aimd.tolerance", "1.4");
        shared.apply(config(&[("limit.algorithm", "fixed"), changed]));
        assert_eq!(limits(&shared), [97]);
        shared.apply(config(&[
            ("limit.algorithm", "fixed"),
            ("limit.initial", "5"),
        ]));
        assert_eq!(limits(&shared), [5]);
        shared.apply(config(&[("limit.algorithm", "fixed")]));
        assert_eq!(limits(&shared), [97]);
    }

    #[test]
    fn a_limit_set_by_hand_holds_for_endpoints_that_a_reload_adds() {
        let one = ("backend.endpoints", "127.0.0.1:1");
        let two = ("backend.endpoints", "127.0.0.1:1,127.0.0.1:2");
        let shared = shared(config(&[one, ("limit.initial", "20")]));
        shared.limiter.pin(Some(3), clock::now());
        shared.apply(config(&[two, ("limit.initial", "20")]));
        assert_eq!(limits(&shared), [3, 3]);
        shared.limiter.pin(None, clock::now());
        assert_eq!(limits(&shared), [20, 20]);
    }
}

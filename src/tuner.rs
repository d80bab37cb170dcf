//! The only periodic loop: ticks the control laws, so that time counts where nothing finishes, watches over
//! the endpoints, and keeps the averages that autoscalers want.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    admission::{Lane, state::Snapshot},
    backend::{Endpoint, profile::Source},
    clock,
    observe::{
        Metrics,
        traffic::{Rates, Traffic},
    },
    proxy::Shared,
    sense::{Answers, News, Senses},
    sync::{Mutex, lock},
};

/// Between two looks at the control laws. While nothing is in flight it is [`idle_look`]: what begins then ends
/// with a look of its own.
const TICK: Duration = Duration::from_millis(50);
/// Between two looks at everything slower.
const SLOW_TICK: Duration = Duration::from_secs(1);
/// Between two attempts to reach an endpoint that is down.
const PROBE: Duration = Duration::from_millis(250);
/// An endpoint that nothing was heard of for so long is looked at, if nothing is in flight there.
const FRESH: Duration = Duration::from_secs(10);
/// The demand and the saturation are means over this many slow ticks.
const MEAN_TICKS: usize = 15;

/// The means over the last 15 s.
#[derive(Debug, Default)]
pub struct Means {
    history: Mutex<VecDeque<Integrals>>,
    traffic: Mutex<Traffic>,
}

#[derive(Clone, Copy, Debug)]
struct Integrals {
    at: Instant,
    busy: f64,
    queue: f64,
    saturated: f64,
    refused: u64,
    /// Slot-seconds that those would have filled.
    lost: f64,
}

impl Means {
    fn note(&self, now: Instant, snapshot: &Snapshot, metrics: &Metrics) {
        let refused = {
            let mut traffic = lock(&self.traffic);
            traffic.note(now, metrics);
            traffic.refused_for_load()
        };
        let mut history = lock(&self.history);
        let last = history.back();
        let new = refused.saturating_sub(last.map_or(refused, |last| last.refused));
        let lost = new as f64 * snapshot.service_time.as_secs_f64();
        let lost = last.map_or(0.0, |last| last.lost) + lost;
        history.push_back(Integrals {
            at: now,
            busy: snapshot.usage.busy_seconds,
            queue: snapshot.queue_seconds,
            saturated: snapshot.usage.saturated_seconds,
            refused,
            lost,
        });
        while history.len() > MEAN_TICKS + 1 {
            history.pop_front();
        }
    }

    /// Rates and latencies of the traffic.
    pub fn rates(&self) -> Option<Rates> {
        lock(&self.traffic).rates()
    }

    /// Slots that the traffic asked for, in flight, queued and refused, and the share of the time in which
    /// the limit was reached. Who was refused counts with the backend's own time for a request: under a lasting overload
    /// the queue is kept short, and would hide how much there is.
    pub fn demand_and_saturation(&self) -> (f64, f64) {
        let history = lock(&self.history);
        let (Some(first), Some(last)) = (history.front(), history.back()) else {
            return (0.0, 0.0);
        };
        let seconds = last.at.saturating_duration_since(first.at).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        let had = last.busy - first.busy + last.queue - first.queue;
        let demand = (had + last.lost - first.lost) / seconds;
        let saturation = (last.saturated - first.saturated) / seconds;
        (demand, saturation.min(1.0))
    }
}

/// The time of the next look while nothing is in flight, about a quarter of a second away. The runtime's
/// timer wheel has slots of 64 ms, counted from its start, `zero`: a timer on the boundary of a slot wakes
/// the runtime once, any other twice, and waking up is most of what an idle tidegate does. A millisecond
/// less, since the runtime rounds up.
fn idle_look(zero: Instant, now: Instant) -> Instant {
    const PERIOD: u32 = 256;
    let millis = |count: u32| Duration::from_millis(u64::from(count));
    let half_ahead = now.saturating_duration_since(zero) + millis(PERIOD / 2);
    let periods = half_ahead.as_millis() / u128::from(PERIOD) + 1;
    let periods = u32::try_from(periods).unwrap_or(u32::MAX);
    zero + millis(PERIOD) * periods - millis(1)
}

/// Runs for ever. `zero` is when the runtime was started, or a moment later.
/// Idle endpoints are looked at once `serving` is true: until then the backend may be starting.
pub async fn run(
    shared: Arc<Shared>,
    means: Arc<Means>,
    senses: Arc<Senses>,
    serving: Arc<AtomicBool>,
    zero: Instant,
) {
    let mut slow = clock::now();
    let mut probe = slow;
    let mut busy = false;
    loop {
        if busy {
            tokio::time::sleep(TICK).await;
        } else {
            tokio::time::sleep_until(idle_look(zero, clock::now()).into()).await;
        }
        let now = clock::now();
        sense(&shared, &senses, now);
        shared.limiter.tick(now);
        let snapshot = shared.limiter.snapshot(now);
        busy = snapshot.in_flight() > 0 || snapshot.queued() > 0;
        if now >= probe {
            probe = now + PROBE;
            look_for_lost_endpoints(&shared);
        }
        if now >= slow {
            slow = now + SLOW_TICK;
            means.note(now, &snapshot, &shared.metrics);
            if serving.load(Relaxed) {
                look_at_idle_endpoints(&shared, &snapshot, now);
            }
            let max_idle = shared.live().config.backend.keepalive_idle;
            for endpoint in shared.endpoints().iter() {
                endpoint.sweep(max_idle, now);
            }
        }
    }
}

/// Looks at the backend from outside, as far as it is time to.
fn sense(shared: &Shared, senses: &Senses, now: Instant) {
    let live = shared.live();
    let in_flight = shared.limiter.snapshot(now).lanes;
    let laws = shared.limiter.lanes();
    let endpoints = shared.endpoints();
    for endpoint in endpoints.iter() {
        let lane = in_flight.iter().find(|lane| lane.id == endpoint.id);
        let law = law_of(endpoint, &laws);
        let answers = Answers {
            answers_as: endpoint.profile().0,
            in_flight: lane.map_or(0, |lane| lane.in_flight),
            took: law.and_then(|lane| lane.with_controller(|law| law.service_time())),
        };
        if let Some(news) = senses.tick(endpoint.id, &endpoint.address, &live.config, answers, now)
        {
            tell(shared, endpoint, law, &news, now);
        }
    }
    senses.retain(|id| endpoints.iter().any(|endpoint| endpoint.id == id));
}

/// The first look at all endpoints, before the first request.
pub async fn first_look(shared: &Shared, senses: &Senses) {
    let live = shared.live();
    let laws = shared.limiter.lanes();
    let endpoints = shared.endpoints();
    let addresses = endpoints
        .iter()
        .map(|endpoint| (endpoint.id, &endpoint.address));
    for (id, news) in senses.first_look(addresses, &live.config).await {
        if let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.id == id) {
            let law = law_of(endpoint, &laws);
            tell(shared, endpoint, law, &news, clock::now());
        }
    }
    shared.limiter.tick(clock::now());
}

fn law_of<'a>(endpoint: &Endpoint, laws: &'a [Arc<Lane>]) -> Option<&'a Lane> {
    let law = laws.iter().find(|lane| lane.id() == endpoint.id);
    law.map(Arc::as_ref)
}

/// Tells an endpoint and its law.
fn tell(shared: &Shared, endpoint: &Endpoint, law: Option<&Lane>, news: &News, now: Instant) {
    if let Some(profile) = news.profile {
        endpoint.learn(profile, Source::Process);
    }
    endpoint.staff(news.crew.as_ref());
    let Some(lane) = law else {
        return;
    };
    lane.set_readings(news.readings);
    if let Some(slots) = news.first_slots
        && shared.live().config.limit.initial == 0
    {
        lane.with_controller(|law| law.begin(slots, now));
    }
}

/// With several endpoints no traffic is sent to one that is down, so it would not notice that the endpoint
/// has come back.
fn look_for_lost_endpoints(shared: &Arc<Shared>) {
    let endpoints = shared.endpoints();
    for endpoint in endpoints.iter() {
        // Where there is only one, the requests that wait for room in its backlog notice when there is some.
        if !endpoint.is_up() || (endpoint.is_doubtful() && endpoints.len() > 1) {
            look_at(shared, endpoint);
        }
    }
}

/// Where nothing is sent to an endpoint, nobody would notice that it has gone.
fn look_at_idle_endpoints(shared: &Arc<Shared>, snapshot: &Snapshot, now: Instant) {
    let is_busy = |endpoint: &Endpoint| {
        let mut lanes = snapshot.lanes.iter();
        lanes.any(|lane| lane.id == endpoint.id && lane.in_flight > 0)
    };
    for endpoint in shared.endpoints().iter() {
        if endpoint.is_up() && !endpoint.seen_up_within(FRESH, now) && !is_busy(endpoint) {
            look_at(shared, endpoint);
        }
    }
}

fn look_at(shared: &Arc<Shared>, endpoint: &Arc<Endpoint>) {
    let patience = if endpoint.is_local() {
        PROBE
    } else {
        // It may be far away, and its name may have to be resolved.
        shared.live().config.backend.connect_timeout
    };
    let (shared, endpoint) = (shared.clone(), endpoint.clone());
    tokio::spawn(async move { shared.look_at(&endpoint, patience).await });
}

/// Whether the endpoints are there at all, before the first request: those that do not say at once can wait.
pub async fn first_visit(shared: &Arc<Shared>) {
    shared.look_at_all(PROBE).join_all().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::labels::Reason;

    #[test]
    fn the_demand_counts_those_who_were_refused_by_what_they_would_have_filled() {
        let (means, metrics, now) = (Means::default(), Metrics::new(), clock::now());
        let mut snapshot = Snapshot {
            service_time: Duration::from_millis(50),
            ..Snapshot::default()
        };
        means.note(now, &snapshot, &metrics);
        // Four slots are busy and two requests wait, all the time.
        (snapshot.usage.busy_seconds, snapshot.queue_seconds) = (4.0, 2.0);
        let route = metrics.route("api");
        for reason in [Reason::QueueTimeout, Reason::RouteLimit, Reason::BadRequest] {
            for _ in 0..100 {
                route.rejected(reason);
            }
        }
        means.note(now + Duration::from_secs(1), &snapshot, &metrics);
        let (demand, _) = means.demand_and_saturation();
        assert!((demand - 11.0).abs() < 1e-9, "{demand}");
    }

    #[test]
    fn idle_looks_fall_on_boundaries_a_quarter_of_a_second_apart() {
        let zero = clock::now();
        let at = |millis| zero + Duration::from_millis(millis);
        assert_eq!(idle_look(zero, at(0)), at(255));
        assert_eq!(idle_look(zero, at(127)), at(255));
        assert_eq!(idle_look(zero, at(128)), at(511), "not too soon");
        // Each follows from the one before, which ends a little late.
        assert_eq!(idle_look(zero, at(256)), at(511));
        assert_eq!(idle_look(zero, at(512)), at(767));
        let day = 86_400_000;
        assert_eq!(idle_look(zero, at(day)), at(day + 255));
    }
}

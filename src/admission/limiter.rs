//! The closed loop: gate → finished permits → control law → gate.
//!
//! A limiter has one lane for each endpoint of the backend, each with a limit and a [`Controller`] of
//! its own, and one queue in front of all of them. It needs no task: windows close when permits come
//! back. The proxy's tuner also calls [`Limiter::tick`], so that time counts when nothing finishes.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::time::Sleep;

use super::{
    Ask, Reason, Refusal,
    gate::{self, Entered, Gate, Ticket},
    state::{self, LaneId, Snapshot},
};
use crate::{
    clock,
    control::{self, Controller, Decision, Outcome, Readings, Sample},
    sync::{Mutex, lock},
};

/// Decisions kept for `/status`.
const DECISIONS: usize = 100;

/// Called with each decision of a lane's controller; must not block.
pub type OnDecision = dyn Fn(&Lane, &Decision) + Send + Sync;

/// The gate and the laws that move it.
pub struct Limiter {
    gate: Gate,
    lanes: ArcSwap<Lanes>,
    /// An operator's limit, which also holds for lanes that are added later. Locked while lanes are added or
    /// the limit changes.
    pinned: Mutex<Option<u32>>,
    on_decision: Option<Box<OnDecision>>,
}

#[derive(Clone, Debug, Default)]
struct Lanes {
    open: Vec<Arc<Lane>>,
    /// Retired, but the gate may have admitted a request to one that has not looked its lane up yet.
    leaving: Vec<Arc<Lane>>,
}

/// One endpoint's place in the limiter.
#[derive(Debug)]
pub struct Lane {
    id: LaneId,
    label: String,
    law: Mutex<Law>,
    /// Streams and upgraded connections in flight.
    streams: AtomicU32,
}

#[derive(Debug)]
struct Law {
    controller: Controller,
    readings: Readings,
    decisions: VecDeque<Decision>,
}

impl Lane {
    /// The lane's number in the gate.
    pub fn id(&self) -> LaneId {
        self.id
    }

    /// The endpoint's name.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Looks at, or changes, the lane's controller.
    pub fn with_controller<T>(&self, f: impl FnOnce(&mut Controller) -> T) -> T {
        f(&mut lock(&self.law).controller)
    }

    /// What the sensors said last.
    pub fn readings(&self) -> Readings {
        lock(&self.law).readings
    }

    /// The sensors say something new; it counts from the next tick on.
    pub fn set_readings(&self, readings: Readings) {
        lock(&self.law).readings = readings;
    }

    /// The latest decisions, oldest first, at most 100.
    pub fn decisions(&self) -> Vec<Decision> {
        lock(&self.law).decisions.iter().cloned().collect()
    }
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter")
            .field("lanes", &self.lanes.load().open)
            .finish_non_exhaustive()
    }
}

impl Limiter {
    /// A limiter without lanes.
    pub fn new(
        settings: state::Settings,
        on_decision: Option<Box<OnDecision>>,
        now: Instant,
    ) -> Self {
        Self {
            gate: Gate::new(settings, now),
            lanes: ArcSwap::from_pointee(Lanes::default()),
            pinned: Mutex::new(None),
            on_decision,
        }
    }

    /// The gate.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The lanes that take requests.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lanes.load().open.clone()
    }

    /// An endpoint comes.
    pub fn add_lane(
        &self,
        id: LaneId,
        label: String,
        settings: control::Settings,
        readings: Readings,
        now: Instant,
    ) -> Arc<Lane> {
        let pinned = lock(&self.pinned);
        let mut controller = Controller::new(settings, now);
        if pinned.is_some() {
            controller.pin(*pinned, now);
        }
        // Ceilings hold from the first request on.
        let decision = controller.tick(now, &control::Usage::default(), &readings);
        let limit = controller.limit();
        let lane = Arc::new(Lane {
            id,
            label,
            law: Mutex::new(Law {
                controller,
                readings,
                decisions: decision.into_iter().collect(),
            }),
            streams: AtomicU32::new(0),
        });
        // Known here before the gate sends anyone there.
        self.change_lanes(now, |lanes| lanes.open.push(lane.clone()));
        self.gate
            .change(|state, out| state.add_lane(id, limit, now, out));
        lane
    }

    /// An endpoint goes; what it has in flight may finish.
    pub fn retire_lane(&self, id: LaneId, now: Instant) {
        self.change_lanes(now, |lanes| {
            let gone = lanes.open.extract_if(.., |lane| lane.id == id);
            lanes.leaving.extend(gone);
        });
        self.gate
            .change(|state, out| state.retire_lane(id, now, out));
    }

    /// Changes the lanes, and forgets those that the gate is done with.
    fn change_lanes(&self, now: Instant, change: impl Fn(&mut Lanes)) {
        self.lanes.rcu(|lanes| {
            let mut lanes = Lanes::clone(lanes);
            let known = self.gate.snapshot(now).lanes;
            lanes
                .leaving
                .retain(|lane| known.iter().any(|l| l.id == lane.id));
            change(&mut lanes);
            lanes
        });
    }

    /// New settings for every lane's law, which may depend on what it knows.
    pub fn reconfigure(&self, settings: impl Fn(&Controller) -> control::Settings, now: Instant) {
        for lane in self.lanes.load().open.iter() {
            lane.with_controller(|law| law.reconfigure(settings(law), now));
            self.tick_lane(lane, now);
        }
    }

    /// An operator's limit for every lane, those to come too, or `None` for the law's.
    pub fn pin(&self, limit: Option<u32>, now: Instant) {
        let mut pinned = lock(&self.pinned);
        *pinned = limit;
        for lane in self.lanes.load().open.iter() {
            lane.with_controller(|controller| controller.pin(limit, now));
            self.tick_lane(lane, now);
        }
    }

    /// Asks for a permit; the future waits in the queue if it must.
    pub fn acquire(self: &Arc<Self>, ask: Ask) -> Acquire {
        self.acquire_at(ask, clock::now())
    }

    /// The same, for a caller that has read the clock already.
    pub fn acquire_at(self: &Arc<Self>, ask: Ask, now: Instant) -> Acquire {
        Acquire {
            limiter: self.clone(),
            step: Step::Ask(ask, now),
        }
    }

    /// Lets time count where nothing finishes: closes windows that are due.
    pub fn tick(&self, now: Instant) {
        for lane in self.lanes.load().open.iter() {
            self.tick_lane(lane, now);
        }
    }

    /// What the gate looks like now.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        self.gate.snapshot(now)
    }

    fn tick_lane(&self, lane: &Arc<Lane>, now: Instant) {
        // All of it under the law's lock: of two ticks the later one sees what the earlier one did,
        // and its limit is the one that stays.
        let mut law = lock(&lane.law);
        let mut usage = self.gate.change(|state, _| state.usage(lane.id, now));
        usage.streams = lane.streams.load(Relaxed);
        let readings = law.readings;
        let decision = law.controller.tick(now, &usage, &readings);
        let limit = law.controller.limit();
        let wakers = self.gate.change_quietly(|state, out| {
            state.note_law(lane.id, &law.controller);
            if limit != usage.limit {
                state.set_limit(lane.id, limit, now, out);
            }
        });
        if let Some(decision) = &decision {
            if law.decisions.len() == DECISIONS {
                law.decisions.pop_front();
            }
            law.decisions.push_back(decision.clone());
        }
        drop(law);
        gate::wake(wakers);
        if let (Some(decision), Some(on_decision)) = (decision, &self.on_decision) {
            on_decision(lane, &decision);
        }
    }

    fn admitted(
        self: &Arc<Self>,
        permit: gate::Permit,
        queued: Option<Instant>,
    ) -> Result<Permit, Refusal> {
        let lanes = self.lanes.load();
        let mut known = lanes.open.iter().chain(&lanes.leaving);
        match known.find(|lane| lane.id == permit.lane()) {
            Some(lane) => Ok(Permit {
                waited: queued.map(|since| permit.started().saturating_duration_since(since)),
                lane: lane.clone(),
                limiter: self.clone(),
                permit: Some(permit),
            }),
            // A lane that was added behind the limiter's back.
            None => Err(Refusal {
                reason: Reason::QueueTimeout,
                drain_time: Duration::ZERO,
                backlog: Duration::ZERO,
            }),
        }
    }
}

/// The right to have one request at the backend. Complete it with an outcome when the backend is
/// done; dropped, it comes back all the same, as [`Outcome::Neutral`].
#[must_use = "a dropped permit is given back at once"]
pub struct Permit {
    limiter: Arc<Limiter>,
    lane: Arc<Lane>,
    permit: Option<gate::Permit>,
    waited: Option<Duration>,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit")
            .field("lane", &self.lane.label)
            .field("waited", &self.waited)
            .finish_non_exhaustive()
    }
}

impl Permit {
    /// The endpoint it is for.
    pub fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// In flight at its endpoint when it was given, itself included.
    pub fn in_flight(&self) -> u32 {
        self.permit.as_ref().map_or(0, gate::Permit::in_flight)
    }

    /// When it was given.
    pub fn started(&self) -> Option<Instant> {
        self.permit.as_ref().map(gate::Permit::started)
    }

    /// How long it waited in the queue; `None` if it did not have to.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// In a dry run: why the request would have been refused.
    pub fn would_refuse(&self) -> Option<Reason> {
        self.permit.as_ref().and_then(gate::Permit::would_refuse)
    }

    /// Its request has become a stream or an upgraded connection, which lasts as long as somebody likes: complete it as
    /// [`Outcome::Excluded`]. Until then the law leaves it out of account, and the limit is higher by one as far as slots
    /// and bounds allow.
    pub fn note_stream(&mut self) {
        if let Some(permit) = &mut self.permit
            && !std::mem::replace(&mut permit.is_stream, true)
        {
            self.lane.streams.fetch_add(1, Relaxed);
        }
    }

    /// The backend is done. Returns how long it had the request.
    pub fn complete(self, outcome: Outcome) -> Duration {
        self.complete_at(outcome, clock::now())
    }

    /// The same, for a caller that has read the clock already.
    pub fn complete_at(mut self, outcome: Outcome, now: Instant) -> Duration {
        self.finish(outcome, now)
    }

    fn finish(&mut self, outcome: Outcome, now: Instant) -> Duration {
        let Some(permit) = self.permit.take() else {
            return Duration::ZERO;
        };
        let sample = Sample {
            started: permit.started(),
            finished: now,
            in_flight: permit.in_flight(),
            group: permit.group(),
            outcome,
        };
        if permit.is_stream {
            self.lane.streams.fetch_sub(1, Relaxed);
        }
        permit.release(now);
        let due = {
            let mut law = lock(&self.lane.law);
            law.controller.observe(&sample);
            law.controller.due(now)
        };
        if due {
            self.limiter.tick_lane(&self.lane, now);
        }
        now.saturating_duration_since(sample.started)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.finish(Outcome::Neutral, clock::now());
        }
    }
}

/// A request on its way through the gate. Dropping it gives the place up.
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Acquire {
    limiter: Arc<Limiter>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Ask(Ask, Instant),
    Wait {
        ticket: Ticket,
        since: Instant,
        expires: Pin<Box<Sleep>>,
    },
    /// Since when it had been waiting, if it had to.
    Done(Option<Instant>),
}

impl Acquire {
    /// Since when it has been waiting in the queue, or had been before it was decided about.
    pub fn queued_since(&self) -> Option<Instant> {
        match self.step {
            Step::Wait { since, .. } => Some(since),
            Step::Done(since) => since,
            Step::Ask(..) => None,
        }
    }
}

impl Future for Acquire {
    type Output = Result<Permit, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Step::Ask(ask, now) = this.step {
            this.step = Step::Done(None);
            match this.limiter.gate.enter(&ask, now) {
                Entered::Admitted(permit) => {
                    return Poll::Ready(this.limiter.admitted(permit, None));
                }
                Entered::Refused(refusal) => return Poll::Ready(Err(refusal)),
                Entered::Queued(ticket, expires) => {
                    this.step = Step::Wait {
                        ticket,
                        since: now,
                        expires: Box::pin(tokio::time::sleep_until(expires.into())),
                    };
                }
            }
        }
        let Step::Wait {
            ticket,
            since,
            expires,
        } = &mut this.step
        else {
            // Polled after it was ready: there is nothing to wait for.
            return Poll::Pending;
        };
        let since = *since;
        let decided = match ticket.poll(cx, clock::now()) {
            Poll::Ready(decided) => decided,
            Poll::Pending => {
                std::task::ready!(expires.as_mut().poll(cx));
                match ticket.expire(clock::now()) {
                    Some(refusal) => Err(refusal),
                    // Decided at the last moment.
                    None => std::task::ready!(ticket.poll(cx, clock::now())),
                }
            }
        };
        this.step = Step::Done(Some(since));
        Poll::Ready(decided.and_then(|permit| this.limiter.admitted(permit, Some(since))))
    }
}

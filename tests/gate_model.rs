//! The gate against a simple model of it: random sequences of everything that can happen to it, and
//! after every step all that must be true of it.
//!
//! The model knows who holds a permit and who waits, and judges each decision by what it finds: who
//! was let in, refused or evicted, and whom that passed over.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tidegate::{
    admission::{
        Ask, Cap, Class, Discipline, Gate, Group, Reason, Refusal,
        gate::{Entered, Permit, Ticket},
        state::{CLASSES, Settings, Snapshot},
    },
    clock,
};

/// By importance, the first the highest.
const BY_IMPORTANCE: [Class; CLASSES] = [
    Class::Protected,
    Class::High,
    Class::Normal,
    Class::Low,
    Class::Stream,
];
/// The caps of routes 0 and 1.
const CAPS: [u32; 2] = [1, 3];
const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
struct Setup {
    limits: Vec<u32>,
    settings: Settings,
}

#[derive(Clone, Debug)]
enum Step {
    Arrive {
        class: usize,
        deadline: Option<u32>,
        cap: Option<usize>,
    },
    Release(usize),
    /// A waiter leaves.
    Cancel(usize),
    /// A permit comes back, and whoever gets it leaves without having looked.
    ReleaseToNobody(usize),
    /// Time passes; `timers` says whether the waiters' own timers have fired already.
    Pass {
        ms: u32,
        timers: bool,
    },
    SetLimit(usize, u32),
    AddLane(u32),
    RetireLane(usize),
    SetHealthy(usize, bool),
    Close(bool),
    Configure(Settings),
    ServiceTime(u32),
}

struct Sequences;

fn settings() -> impl Strategy<Value = Settings> {
    (
        0..7_usize,
        20..200_u64,
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(capacity, max_wait, lifo, dry_run)| Settings {
            capacity,
            max_wait: Duration::from_millis(max_wait),
            discipline: if lifo {
                Discipline::AdaptiveLifo
            } else {
                Discipline::Fifo
            },
            dry_run,
            ..Settings::default()
        })
}

impl ReferenceStateMachine for Sequences {
    type State = Setup;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Setup> {
        (prop::collection::vec(1..5_u32, 0..3), settings())
            .prop_map(|(limits, settings)| Setup { limits, settings })
            .boxed()
    }

    fn transitions(_: &Setup) -> BoxedStrategy<Step> {
        let which = 0..32_usize;
        prop_oneof![
            30 => (
                0..CLASSES,
                prop::option::weighted(0.3, 0..300_u32),
                prop::option::weighted(0.3, 0..CAPS.len()),
            )
                .prop_map(|(class, deadline, cap)| Step::Arrive { class, deadline, cap }),
            18 => which.clone().prop_map(Step::Release),
            4 => which.clone().prop_map(Step::Cancel),
            4 => which.clone().prop_map(Step::ReleaseToNobody),
            12 => (0..60_u32, any::<bool>()).prop_map(|(ms, timers)| Step::Pass { ms, timers }),
            6 => (which.clone(), prop_oneof![0..6_u32, Just(2), Just(20), Just(u32::MAX)])
                .prop_map(|(at, limit)| Step::SetLimit(at, limit)),
            1 => (1..5_u32).prop_map(Step::AddLane),
            1 => which.clone().prop_map(Step::RetireLane),
            2 => (which, any::<bool>()).prop_map(|(at, healthy)| Step::SetHealthy(at, healthy)),
            1 => prop::bool::weighted(0.3).prop_map(Step::Close),
            2 => settings().prop_map(Step::Configure),
            2 => (0..30_u32).prop_map(Step::ServiceTime),
        ]
        .boxed()
    }

    fn apply(setup: Setup, _: &Step) -> Setup {
        setup
    }
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        assert!(!self.0.swap(true, Relaxed), "woken once, for one verdict");
    }
}

/// The shortest wait that a standing queue offers; see `STANDING_WAIT_MIN`.
const SHORTEST_OFFER: Duration = Duration::from_millis(20);

struct Waiter {
    ticket: Ticket,
    woken: Arc<Woken>,
    /// The order of arrival.
    number: u64,
    class: usize,
    cap: Option<Cap>,
    since: Instant,
    expires: Instant,
}

struct Holder {
    permit: Permit,
    cap: Option<Cap>,
}

struct Lane {
    id: u32,
    healthy: bool,
}

/// Somebody whom a step let in or refused.
struct Decided {
    number: u64,
    class: usize,
    cap: Option<Cap>,
    since: Option<Instant>,
    expires: Option<Instant>,
    refused: Option<Refusal>,
}

struct Model {
    gate: Gate,
    now: Instant,
    settings: Settings,
    service_time: Duration,
    closed: bool,
    /// Without the retired ones.
    lanes: Vec<Lane>,
    next_lane: u32,
    arrivals: u64,
    holders: Vec<Holder>,
    waiting: Vec<Waiter>,
    before: Snapshot,
}

impl Model {
    fn new(setup: &Setup) -> Self {
        let now = clock::now();
        let gate = Gate::new(setup.settings.clone(), now);
        let mut model = Self {
            before: gate.snapshot(now),
            gate,
            now,
            settings: setup.settings.clone(),
            service_time: Duration::ZERO,
            closed: false,
            lanes: Vec::new(),
            next_lane: 0,
            arrivals: 0,
            holders: Vec::new(),
            waiting: Vec::new(),
        };
        for &limit in &setup.limits {
            model.add_lane(limit);
        }
        model.before = model.gate.snapshot(now);
        model
    }

    fn add_lane(&mut self, limit: u32) {
        let (id, now) = (self.next_lane, self.now);
        self.next_lane += 1;
        self.lanes.push(Lane { id, healthy: true });
        self.gate
            .change(|state, out| state.add_lane(id, limit, now, out));
    }

    fn lane(&mut self, at: usize) -> Option<u32> {
        (!self.lanes.is_empty()).then(|| self.lanes[at % self.lanes.len()].id)
    }

    fn take_holder(&mut self, at: usize) -> Option<Holder> {
        (!self.holders.is_empty()).then(|| self.holders.swap_remove(at % self.holders.len()))
    }

    /// Does the step, and checks what it decided.
    fn step(&mut self, step: &Step) {
        let was_dry = self.settings.dry_run;
        let mut arrival = None;
        let mut decided = Vec::new();
        let now = self.now;
        match *step {
            Step::Arrive {
                class,
                deadline,
                cap,
            } => {
                let ask = Ask {
                    class: BY_IMPORTANCE[class],
                    deadline: deadline.map(|ms| now + ms * MS),
                    group: Group::default(),
                    cap: cap.map(|id| Cap {
                        id: id as u16,
                        max: CAPS[id],
                    }),
                    client: None,
                };
                arrival = Some(class);
                decided.extend(self.arrive(class, &ask));
            }
            Step::Release(at) => {
                if let Some(holder) = self.take_holder(at) {
                    holder.permit.release(now);
                }
            }
            Step::Cancel(at) => {
                if !self.waiting.is_empty() {
                    let at = at % self.waiting.len();
                    drop(self.waiting.remove(at));
                }
            }
            Step::ReleaseToNobody(at) => {
                if let Some(holder) = self.take_holder(at) {
                    drop(holder.permit);
                    if let Some(at) = self.waiting.iter().position(|w| w.woken.0.load(Relaxed)) {
                        drop(self.waiting.remove(at));
                    }
                }
            }
            Step::Pass { ms, timers } => {
                self.now += ms * MS;
                if timers {
                    self.fire_timers();
                }
            }
            Step::SetLimit(at, limit) => {
                if let Some(lane) = self.lane(at) {
                    self.gate.set_limit(lane, limit, now);
                }
            }
            Step::AddLane(limit) => self.add_lane(limit),
            Step::RetireLane(at) => {
                if let Some(id) = self.lane(at) {
                    self.lanes.retain(|lane| lane.id != id);
                    self.gate
                        .change(|state, out| state.retire_lane(id, now, out));
                }
            }
            Step::SetHealthy(at, healthy) => {
                if let Some(id) = self.lane(at) {
                    for lane in self.lanes.iter_mut().filter(|lane| lane.id == id) {
                        lane.healthy = healthy;
                    }
                    self.gate
                        .change(|state, out| state.set_healthy(id, healthy, now, out));
                }
            }
            Step::Close(closed) => {
                self.closed = closed;
                self.gate.change(|state, _| state.close(closed));
            }
            Step::Configure(ref settings) => {
                self.settings = settings.clone();
                self.gate
                    .change(|state, out| state.configure(settings.clone(), now, out));
            }
            Step::ServiceTime(ms) => {
                self.service_time = ms * MS;
                self.gate.change(|state, _| state.set_service_time(ms * MS));
            }
        }
        decided.extend(self.collect());
        let after = self.gate.snapshot(self.now);
        let dry = was_dry || self.settings.dry_run;
        self.check_counts(&after, dry);
        self.check_nobody_waits_in_vain(&after);
        if !dry {
            self.check_order(&decided);
        }
        self.check_refusals(&decided, arrival);
        self.before = after;
    }

    /// The arrival, if it was decided on at once.
    fn arrive(&mut self, class: usize, ask: &Ask) -> Option<Decided> {
        let now = self.now;
        self.arrivals += 1;
        let number = self.arrivals;
        let foreseen = self.gate.would_refuse(ask, now);
        let decided = Decided {
            number,
            class,
            cap: ask.cap,
            since: None,
            expires: None,
            refused: None,
        };
        match self.gate.enter(ask, now) {
            Entered::Admitted(permit) => {
                assert!(!self.closed, "a closed gate lets nobody in");
                assert!(foreseen.is_none(), "foreseen: {foreseen:?}");
                assert!(self.settings.dry_run || permit.would_refuse().is_none());
                self.holders.push(Holder {
                    permit,
                    cap: ask.cap,
                });
                Some(decided)
            }
            Entered::Refused(refusal) => {
                self.check_refused_on_arrival(class, ask, foreseen, refusal);
                None
            }
            Entered::Queued(mut ticket, expires) => {
                assert!(!self.closed && !self.settings.dry_run && foreseen.is_none());
                assert!(expires > now && expires <= now + self.settings.max_wait);
                if let Some(deadline) = ask.deadline {
                    assert!(expires + self.service_time <= deadline);
                }
                let woken = Arc::<Woken>::default();
                let waker = Waker::from(woken.clone());
                assert!(
                    ticket
                        .poll(&mut Context::from_waker(&waker), now)
                        .is_pending(),
                    "who may go does not queue"
                );
                self.waiting.push(Waiter {
                    ticket,
                    woken,
                    number,
                    class,
                    cap: ask.cap,
                    since: now,
                    expires,
                });
                None
            }
        }
    }

    fn check_refused_on_arrival(
        &self,
        class: usize,
        ask: &Ask,
        foreseen: Option<Refusal>,
        refusal: Refusal,
    ) {
        let before = &self.before;
        if self.settings.dry_run && !self.closed {
            assert!(self.lanes.is_empty(), "a dry run refuses nobody");
            return;
        }
        let queued = before.queued();
        // Who is held up by a cap of its own is nobody's queue but that route's.
        let capped = self.at_cap(ask.cap);
        let in_line = |waiter: &&Waiter| match capped {
            true => waiter.cap == ask.cap,
            false => !self.at_cap(waiter.cap),
        };
        let line = self.waiting.iter().filter(in_line);
        let ahead = line.clone().filter(|w| capped || w.class <= class).count();
        let pace = refusal.drain_time.as_secs_f64() / (line.count() + 1) as f64;
        let predicted = pace * ahead as f64 + 1e-6;
        let left = |deadline: Instant| deadline.saturating_duration_since(self.now);
        match refusal.reason {
            Reason::Draining => assert!(self.closed),
            Reason::QueueFull => {
                assert!(queued as usize >= before.capacity, "there was room");
                assert_eq!(
                    before.queued[class + 1..].iter().sum::<u32>(),
                    0,
                    "a lower class would have made place"
                );
            }
            Reason::Deadline => {
                let left = left(ask.deadline.expect("a deadline")).as_secs_f64();
                assert!(capped || left <= self.service_time.as_secs_f64() + predicted);
            }
            Reason::QueueTimeout => {
                assert!(!capped);
                let standing = before.standing
                    || self.settings.discipline == Discipline::AdaptiveLifo
                        && self.service_time > Duration::ZERO;
                let bound = if standing {
                    SHORTEST_OFFER.min(self.settings.max_wait)
                } else {
                    self.settings.max_wait
                };
                assert!(predicted > bound.as_secs_f64(), "{predicted} > {bound:?}");
            }
            Reason::RouteLimit => {
                assert!(capped && BY_IMPORTANCE[class] != Class::Protected);
                let held_up = self.waiting.iter().filter(|w| self.at_cap(w.cap)).count();
                let share = held_up >= (before.capacity / 2).max(1);
                let max_wait = self.settings.max_wait;
                assert!(share || predicted > max_wait.as_secs_f64(), "{predicted}");
            }
        }
        match foreseen {
            Some(foreseen) => assert_eq!(foreseen.reason, refusal.reason),
            // At the very edge of the deadline there is no time left to wait.
            None => assert_eq!(
                ask.deadline.map(left),
                Some(self.service_time),
                "not foreseen: {refusal:?}"
            ),
        }
    }

    fn fire_timers(&mut self) {
        let now = self.now;
        self.waiting.retain_mut(|waiter| {
            if waiter.expires > now {
                return true;
            }
            waiter.ticket.expire(now).expect("it was still waiting");
            false
        });
    }

    /// Takes the verdicts: who was woken has one, who was not has none.
    fn collect(&mut self) -> Vec<Decided> {
        let mut decided = Vec::new();
        let mut at = 0;
        while at < self.waiting.len() {
            let waiter = &mut self.waiting[at];
            let waker = Waker::from(waiter.woken.clone());
            let verdict = waiter
                .ticket
                .poll(&mut Context::from_waker(&waker), self.now);
            let woken = waiter.woken.0.load(Relaxed);
            assert_eq!(
                woken,
                verdict.is_ready(),
                "woken for a verdict, and only then"
            );
            let Poll::Ready(verdict) = verdict else {
                at += 1;
                continue;
            };
            let waiter = self.waiting.remove(at);
            decided.push(Decided {
                number: waiter.number,
                class: waiter.class,
                cap: waiter.cap,
                since: Some(waiter.since),
                expires: Some(waiter.expires),
                refused: verdict.as_ref().err().copied(),
            });
            if let Ok(permit) = verdict {
                self.holders.push(Holder {
                    permit,
                    cap: waiter.cap,
                });
            }
        }
        decided
    }

    fn check_counts(&self, after: &Snapshot, dry: bool) {
        let mut live = BTreeMap::<u32, u32>::new();
        for holder in &self.holders {
            *live.entry(holder.permit.lane()).or_default() += 1;
        }
        let known = after.lanes.iter().map(|lane| (lane.id, lane.in_flight));
        let known: BTreeMap<u32, u32> = known.filter(|(_, in_flight)| *in_flight > 0).collect();
        assert_eq!(known, live, "in flight are the live permits, by lane");
        assert_eq!(after.in_flight() as usize, self.holders.len());

        for lane in &after.lanes {
            let before = self.before.lanes.iter().find(|l| l.id == lane.id);
            let in_flight = before.map_or(0, |lane| lane.in_flight);
            let retired = !self.lanes.iter().any(|l| l.id == lane.id);
            let most = if retired { 0 } else { lane.limit };
            assert!(
                dry || lane.in_flight <= in_flight.max(most),
                "in flight grows only below the limit: {in_flight} before, {lane:?}"
            );
            assert!(lane.limit >= 1);
            if let Some(before) = before {
                assert!(lane.usage.busy_seconds >= before.usage.busy_seconds);
                assert!(lane.usage.limit_seconds >= before.usage.limit_seconds);
                assert!(lane.usage.saturated_seconds >= before.usage.saturated_seconds);
            }
        }
        let (all, before) = (after.usage, self.before.usage);
        assert!(all.busy_seconds >= before.busy_seconds);
        assert!(all.limit_seconds >= before.limit_seconds);
        assert!(all.saturated_seconds >= before.saturated_seconds);
        assert!(after.queue_seconds >= self.before.queue_seconds);

        for (class, &queued) in after.queued.iter().enumerate() {
            let waiting = self.waiting.iter().filter(|w| w.class == class).count();
            assert_eq!(queued as usize, waiting, "queued in class {class}");
        }
        assert!(
            after.queued() as usize <= after.capacity.max(self.before.queued() as usize),
            "the queue grows only below its capacity"
        );
    }

    fn at_cap(&self, cap: Option<Cap>) -> bool {
        cap.is_some_and(|cap| {
            let used = self.holders.iter().filter(|h| h.cap == Some(cap)).count();
            used >= cap.max as usize
        })
    }

    fn check_nobody_waits_in_vain(&self, after: &Snapshot) {
        let some_healthy = self.lanes.iter().any(|lane| lane.healthy);
        let room = self.lanes.iter().any(|lane| {
            let state = after.lanes.iter().find(|l| l.id == lane.id);
            let state = state.expect("a lane stays until it is retired");
            (lane.healthy || !some_healthy)
                && (self.settings.dry_run || state.in_flight < state.limit)
        });
        for waiter in self.waiting.iter().filter(|w| w.expires > self.now) {
            let may_go = room && (self.settings.dry_run || !self.at_cap(waiter.cap));
            assert!(!may_go, "number {} waits in vain", waiter.number);
        }
    }

    /// Nobody was let in before somebody more important, or, in a FIFO queue, before somebody of
    /// the same class who came earlier; unless that one's route was at its cap.
    fn check_order(&self, decided: &[Decided]) {
        for passed in decided.iter().filter(|d| d.refused.is_none()) {
            for waiter in self.waiting.iter().filter(|w| w.expires > self.now) {
                let first = waiter.class < passed.class
                    || waiter.class == passed.class
                        && waiter.number < passed.number
                        && (self.settings.discipline == Discipline::Fifo
                            || passed.expires.is_none());
                let could_go =
                    waiter.cap.is_some() && waiter.cap == passed.cap || !self.at_cap(waiter.cap);
                assert!(
                    !(first && could_go),
                    "number {} went before number {}",
                    passed.number,
                    waiter.number
                );
            }
        }
    }

    /// Under a standing queue, who has waited for twice what is offered is overtaken by newcomers,
    /// and in a full one gives its place to them: the oldest of the lowest class.
    fn is_overtaken(&self, refused: &Decided, arrival: usize) -> bool {
        let waited = |since| self.now.saturating_duration_since(since);
        self.settings.discipline == Discipline::AdaptiveLifo
            && refused.class >= arrival
            && refused
                .since
                .is_some_and(|since| waited(since) > 2 * SHORTEST_OFFER)
            && self
                .waiting
                .iter()
                .all(|left| left.class != refused.class || left.number > refused.number)
    }

    /// Where far more come than go under such a queue, whoever was overtaken is refused before the time is over, the
    /// oldest of each class first; but for the protected, and for those who wait for their route's cap.
    fn is_hopeless(&self, refused: &Decided, refusal: Refusal) -> bool {
        let waited = |since| self.now.saturating_duration_since(since);
        refusal.reason == Reason::QueueTimeout
            && self.settings.discipline == Discipline::AdaptiveLifo
            && self.service_time > Duration::ZERO
            && BY_IMPORTANCE[refused.class] != Class::Protected
            && refused
                .since
                .is_some_and(|since| waited(since) > 2 * SHORTEST_OFFER)
            && self.waiting.iter().all(|left| {
                left.class != refused.class || left.number > refused.number || left.cap.is_some()
            })
    }

    fn check_refusals(&self, decided: &[Decided], arrival: Option<usize>) {
        let mut evicted = 0;
        for (refused, refusal) in decided.iter().filter_map(|d| Some((d, d.refused?))) {
            if refusal.reason != Reason::QueueFull {
                let expires = refused.expires.expect("it waited");
                assert!(
                    expires <= self.now || self.is_hopeless(refused, refusal),
                    "refused before its time: {refusal:?}"
                );
                continue;
            }
            let arrival = arrival.expect("evicted for an arrival");
            if self.is_overtaken(refused, arrival) {
                continue;
            }
            evicted += 1;
            assert!(
                refused.class > arrival,
                "evicted for someone more important"
            );
            for left in &self.waiting {
                assert!(left.class <= refused.class, "the lowest class goes first");
                assert!(
                    left.class < refused.class || left.number < refused.number,
                    "in it the newest"
                );
            }
        }
        assert!(evicted <= 1, "one place for one arrival");
    }
}

struct GateModel;

impl StateMachineTest for GateModel {
    type SystemUnderTest = Model;
    type Reference = Sequences;

    fn init_test(setup: &Setup) -> Model {
        Model::new(setup)
    }

    fn apply(mut model: Model, _: &Setup, step: Step) -> Model {
        model.step(&step);
        model
    }

    /// All permits come back, nobody is forgotten, and the gate is empty.
    fn teardown(mut model: Model, _: Setup) {
        while !model.holders.is_empty() {
            model.step(&Step::Release(0));
        }
        if !model.lanes.is_empty() {
            let stuck = model.waiting.iter().filter(|w| w.expires > model.now);
            assert_eq!(stuck.count(), 0, "nobody is left behind");
        }
        model.waiting.clear();
        let last = model.gate.snapshot(model.now);
        assert_eq!((last.in_flight(), last.queued()), (0, 0));
        assert_eq!(
            last.lanes.len(),
            model.lanes.len(),
            "retired lanes are gone"
        );
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_gate_keeps_its_promises(sequential 1..120 => GateModel);
}

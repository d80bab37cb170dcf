//! The trace's requests, through the product's own gate, queue and law, in virtual time. Pure: a trace
//! and the settings give one result, always the same.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::{model::Model, outcome::Outcome};
use crate::{
    admission::{
        Ask, Cap, Refusal,
        state::{self, Entry as Entered, LaneId, Seq, State, Verdict, Verdicts},
    },
    config::Class,
    control::{self, Controller, Group, Outcome as End, Readings, Sample},
    observe::trace::{Entry, Fate},
};

/// Between two looks at the law, and while nothing is in flight: as the tuner.
const TICK: f64 = 0.05;
const IDLE_TICK: f64 = 0.25;
/// How long it goes on when the last request has come, seconds.
const TAIL: f64 = 120.0;

/// The settings that are tried.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Of the gate.
    pub(super) queue: state::Settings,
    /// Of the law.
    pub(super) law: control::Settings,
    /// Slots of each endpoint, where they are known.
    pub(super) slots: Option<u32>,
    /// By route of the trace: its class and cap, where the configuration has it.
    pub(super) routes: Vec<Option<(Class, Option<Cap>)>>,
    /// Whether the requests' deadlines are read.
    pub(super) deadlines: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(usize),
    Expire(usize),
    Leave(usize),
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Waiting(Seq),
    Begun {
        since: f64,
        in_flight: u32,
        lane: usize,
    },
    Over,
}

/// An endpoint: all that it has in flight get on at the same speed.
struct Lane {
    law: Controller,
    /// Work that each request in flight has got done since the start, seconds.
    done: f64,
    /// What is in flight, by the work at which it is finished.
    jobs: BinaryHeap<Reverse<(Finish, usize)>>,
}

/// Orders finite numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Finish(f64);

impl Eq for Finish {}

impl PartialOrd for Finish {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Finish {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct Engine<'a> {
    entries: &'a [Entry],
    model: &'a Model,
    setup: &'a Setup,
    base: Instant,
    /// Seconds since the first arrival.
    now: f64,
    order: u64,
    events: BinaryHeap<Reverse<(Finish, u64, Event)>>,
    state: State,
    lanes: Vec<Lane>,
    stages: Vec<Stage>,
    arrived: Vec<f64>,
    verdicts: Verdicts,
    outcome: Outcome,
}

/// Runs the requests, in order of arrival. `base` is any moment: the law measures time from it.
pub(super) fn run(
    entries: &[Entry],
    lanes: usize,
    model: &Model,
    setup: &Setup,
    base: Instant,
) -> Outcome {
    let first = entries.first().map_or(0, |entry| entry.arrived);
    let arrived: Vec<f64> = entries
        .iter()
        .map(|entry| (entry.arrived - first) as f64 / 1e6)
        .collect();
    let mut engine = Engine {
        entries,
        model,
        setup,
        base,
        now: 0.0,
        order: 0,
        events: BinaryHeap::new(),
        state: State::new(setup.queue.clone(), base),
        lanes: Vec::new(),
        stages: vec![Stage::Over; entries.len()],
        outcome: Outcome::new(arrived.last().copied().unwrap_or(0.0)),
        arrived,
        verdicts: Verdicts::new(),
    };
    for id in 0..lanes.max(1) {
        let law = Controller::new(setup.law.clone(), base);
        let limit = law.limit();
        engine
            .state
            .add_lane(id as LaneId, limit, base, &mut engine.verdicts);
        engine.lanes.push(Lane {
            law,
            done: 0.0,
            jobs: BinaryHeap::new(),
        });
    }
    engine.run()
}

impl Engine<'_> {
    fn run(mut self) -> Outcome {
        self.tick();
        if !self.entries.is_empty() {
            self.at(0.0, Event::Arrive(0));
        }
        self.at(TICK, Event::Tick);
        let end = self.arrived.last().copied().unwrap_or(0.0) + TAIL;
        loop {
            let event = self.events.peek().map(|Reverse((at, ..))| at.0);
            let job = self.next_job();
            let (next, lane) = match (event, job) {
                (Some(event), Some((job, lane))) if job <= event => (job, Some(lane)),
                (None, Some((job, lane))) => (job, Some(lane)),
                (Some(event), _) => (event, None),
                (None, None) => break,
            };
            if next > end {
                break;
            }
            self.pass(next);
            match lane {
                Some(lane) => self.finish(lane),
                None => match self.events.pop() {
                    Some(Reverse((.., event))) => self.handle(event),
                    None => break,
                },
            }
            if self.is_over() {
                break;
            }
        }
        self.outcome
    }

    fn is_over(&self) -> bool {
        let quiet = |lane: &Lane| lane.jobs.is_empty();
        self.lanes.iter().all(quiet)
            && self
                .events
                .iter()
                .all(|Reverse((.., event))| matches!(event, Event::Tick))
    }

    fn at(&mut self, seconds: f64, event: Event) {
        self.order += 1;
        self.events
            .push(Reverse((Finish(seconds), self.order, event)));
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_secs_f64(self.now)
    }

    /// When the next request is finished, and where.
    fn next_job(&self) -> Option<(f64, usize)> {
        let next = |(at, lane): (usize, &Lane)| {
            let Reverse((finish, _)) = lane.jobs.peek()?;
            let slower = self.model.stretch(lane.jobs.len() as u32);
            Some((self.now + (finish.0 - lane.done).max(0.0) * slower, at))
        };
        self.lanes
            .iter()
            .enumerate()
            .filter_map(next)
            .min_by(|a, b| a.0.total_cmp(&b.0))
    }

    fn pass(&mut self, until: f64) {
        let passed = (until - self.now).max(0.0);
        let (mut limit, mut in_flight, mut most) = (0, 0, 0);
        for lane in &mut self.lanes {
            let count = lane.jobs.len() as u32;
            limit += lane.law.limit();
            in_flight += count;
            most = most.max(count);
            if count > 0 {
                lane.done += passed / self.model.stretch(count);
            }
        }
        self.outcome.pass(self.now, passed, limit, in_flight);
        if passed > 0.0 && self.now <= self.outcome.seconds {
            self.outcome.at_one(most);
        }
        self.now = until;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(id) => self.arrive(id),
            Event::Expire(id) => {
                if let Some(refusal) = self.leave(id) {
                    self.outcome.refused(self.arrived[id], refusal.reason);
                }
            }
            Event::Leave(id) => {
                if self.leave(id).is_some() {
                    self.outcome.left += 1;
                }
            }
            Event::Tick => {
                self.tick();
                let busy = self.lanes.iter().any(|lane| !lane.jobs.is_empty());
                self.at(self.now + if busy { TICK } else { IDLE_TICK }, Event::Tick);
            }
        }
    }

    fn ask(&self, id: usize) -> Ask {
        let entry = &self.entries[id];
        let configured = self.setup.routes.get(usize::from(entry.route));
        let (class, cap) = configured.copied().flatten().unwrap_or((entry.class, None));
        let patience = Duration::from_micros(entry.patience.into());
        Ask {
            class,
            deadline: (self.setup.deadlines && entry.patience > 0)
                .then(|| self.instant() + patience),
            group: Group::Route(entry.route),
            cap,
            client: None,
        }
    }

    fn arrive(&mut self, id: usize) {
        if let Some(next) = self.arrived.get(id + 1) {
            self.at(*next, Event::Arrive(id + 1));
        }
        let ask = self.ask(id);
        let now = self.instant();
        match self.state.enter(&ask, id as u32, now, &mut self.verdicts) {
            Entered::Admitted(admitted) => self.begin(id, admitted.lane, admitted.in_flight),
            Entered::Refused(refusal) => self.outcome.refused(self.arrived[id], refusal.reason),
            Entered::Queued { seq, expires } => {
                self.stages[id] = Stage::Waiting(seq);
                let expires = expires.saturating_duration_since(self.base);
                self.at(expires.as_secs_f64(), Event::Expire(id));
                let entry = &self.entries[id];
                if entry.fate == Fate::Left {
                    let patience = f64::from(entry.waited) / 1e6;
                    self.at(self.now + patience, Event::Leave(id));
                }
            }
        }
        self.judge();
    }

    fn leave(&mut self, id: usize) -> Option<Refusal> {
        let Stage::Waiting(seq) = self.stages[id] else {
            return None;
        };
        self.stages[id] = Stage::Over;
        let class = self.ask(id).class;
        self.state.leave(seq, class, self.instant())
    }

    /// Hands out what the gate has decided about those who waited.
    fn judge(&mut self) {
        for at in 0..self.verdicts.len() {
            let (key, verdict) = self.verdicts[at];
            let id = key as usize;
            match verdict {
                Verdict::Admitted(admitted) => self.begin(id, admitted.lane, admitted.in_flight),
                Verdict::Refused(refusal) => {
                    self.stages[id] = Stage::Over;
                    self.outcome.refused(self.arrived[id], refusal.reason);
                }
            }
        }
        self.verdicts.clear();
    }

    fn begin(&mut self, id: usize, lane: LaneId, in_flight: u32) {
        let lane = lane as usize;
        self.stages[id] = Stage::Begun {
            since: self.now,
            in_flight,
            lane,
        };
        let work = self.model.work(&self.entries[id], id);
        let lane = &mut self.lanes[lane];
        lane.jobs.push(Reverse((Finish(lane.done + work), id)));
        self.outcome.waited(self.now - self.arrived[id]);
    }

    /// The first in line of this endpoint is done.
    fn finish(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        let Some(Reverse((finish, id))) = lane.jobs.pop() else {
            return;
        };
        lane.done = lane.done.max(finish.0);
        let Stage::Begun {
            since, in_flight, ..
        } = self.stages[id]
        else {
            return;
        };
        self.stages[id] = Stage::Over;
        let entry = &self.entries[id];
        let end = match entry.fate {
            Fate::Served(end) => end,
            _ => End::Success,
        };
        self.outcome
            .answered(self.now - self.arrived[id], self.now - since);
        let now = self.instant();
        let sample = Sample {
            started: self.base + Duration::from_secs_f64(since),
            finished: now,
            in_flight,
            group: Group::Route(entry.route),
            outcome: end,
        };
        let cap = self.ask(id).cap;
        self.state
            .release(at as LaneId, cap, now, &mut self.verdicts);
        self.judge();
        let law = &mut self.lanes[at].law;
        law.observe(&sample);
        if law.due(now) {
            self.tick_lane(at);
        }
    }

    fn tick(&mut self) {
        for at in 0..self.lanes.len() {
            self.tick_lane(at);
        }
    }

    /// As the limiter does it, but for what is not recorded: the ceilings of CPU, memory and the accept queue.
    fn tick_lane(&mut self, at: usize) {
        let now = self.instant();
        let usage = self.state.usage(at as LaneId, now);
        let readings = Readings {
            slots: self.setup.slots,
            ..Readings::default()
        };
        let law = &mut self.lanes[at].law;
        if let Some(decision) = law.tick(now, &usage, &readings)
            && decision.limit != decision.from
        {
            *self.outcome.reasons.entry(decision.reason).or_default() += 1;
        }
        self.state.note_law(at as LaneId, law);
        let limit = law.limit();
        if limit != usage.limit {
            self.state
                .set_limit(at as LaneId, limit, now, &mut self.verdicts);
            self.judge();
        }
    }
}

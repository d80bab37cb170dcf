//! The event loop: clients, the product's gate and queue, a law, and the backend, in virtual time.
//! One seed gives one run, always the same.

mod sensors;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use fastrand::Rng;
use tidegate::{
    admission::{
        Ask, Class, Refusal,
        state::{Entry, LaneId, Seq, State, Verdict, Verdicts},
    },
    clock,
    limit::{BoundBy, Group, Outcome as End, Sample},
};

use self::sensors::Seen;
use super::{
    backend::{Backend, Cpu, Ended, Time, nanos, seconds},
    law::{Law, MakeLaw, Watch},
    outcome::Outcome,
    scenario::{Phase, Scenario},
    traffic::{Arrival, Traffic, Work},
};

/// The only endpoint.
const LANE: LaneId = 0;
/// Between two looks of the product's tuner, seconds.
const TICK: f64 = 0.05;
/// ... while nothing is in flight.
const IDLE_TICK: f64 = 0.25;
/// `Retry-After` is spread up to this share beyond the drain time, as `reject.retry_after_jitter`.
const RETRY_JITTER: f64 = 0.5;

/// Runs the scenario once: what came of each phase.
pub fn run(
    scenario: &Scenario,
    seed: u64,
    law: &MakeLaw<'_>,
    watch: Option<Box<Watch>>,
) -> Vec<Outcome> {
    Engine::new(scenario, seed, law, watch).run()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Phase(usize),
    Up,
    Pause(bool),
    Tick(usize),
    Arrive,
    Try(usize),
    Expire(usize),
    GiveUp(usize),
}

/// What a client wants.
#[derive(Debug)]
struct Request {
    phase: usize,
    arrival: Arrival,
    tries_left: u32,
}

/// One attempt at it; also a job of the backend.
#[derive(Debug)]
struct Attempt {
    request: usize,
    begun: Time,
    stage: Stage,
    client_left: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued(Seq),
    InFlight { since: Time, in_flight: u32 },
    Over,
}

/// One tidegate.
struct Proxy {
    state: State,
    law: Box<dyn Law>,
    bound_by: Option<BoundBy>,
}

struct Engine<'a> {
    scenario: &'a Scenario,
    watch: Option<Box<Watch>>,
    base: Instant,
    now: Time,
    order: u64,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    traffic: Traffic,
    next_arrival: Option<Arrival>,
    /// By class.
    work: Vec<Work>,
    luck: Rng,
    /// The phase's number, begin and end.
    phase: usize,
    begin: f64,
    end: f64,
    requests: Vec<Request>,
    attempts: Vec<Attempt>,
    proxies: Vec<Proxy>,
    backend: Backend,
    ended: Ended,
    verdicts: Verdicts,
    outcomes: Vec<Outcome>,
    seen: Seen,
}

impl<'a> Engine<'a> {
    fn new(
        scenario: &'a Scenario,
        seed: u64,
        law: &MakeLaw<'_>,
        watch: Option<Box<Watch>>,
    ) -> Self {
        let base = clock::now();
        let mut verdicts = Verdicts::new();
        let proxies = (0..scenario.tidegates)
            .map(|_| {
                let law = law(base);
                let mut state = State::new(scenario.queue.clone(), base);
                state.add_lane(LANE, law.limit(), base, &mut verdicts);
                Proxy {
                    state,
                    law,
                    bound_by: None,
                }
            })
            .collect();
        Engine {
            scenario,
            watch,
            base,
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            traffic: Traffic::new(seed, scenario.tidegates),
            next_arrival: None,
            work: (scenario.classes.iter().enumerate())
                .map(|(index, class)| Work::new(seed, index, class))
                .collect(),
            luck: Rng::with_seed(!seed),
            phase: 0,
            begin: 0.0,
            end: 0.0,
            requests: Vec::new(),
            attempts: Vec::new(),
            proxies,
            backend: Backend::new(&scenario.backend),
            ended: Ended::default(),
            verdicts,
            outcomes: Vec::new(),
            seen: Seen {
                slots: (0.0, scenario.backend.slots),
                cpu: (0.0, Cpu::default()),
                reading: None,
            },
        }
    }

    fn run(mut self) -> Vec<Outcome> {
        let phases = self.scenario.phases.len();
        self.at(0, Event::Phase(0));
        for proxy in 0..self.proxies.len() {
            // The product asks the law once before the first request.
            self.tick(proxy);
            let after = TICK * (1.0 + proxy as f64 / self.proxies.len() as f64);
            self.at(nanos(after), Event::Tick(proxy));
        }
        loop {
            let event = self.events.peek().map(|Reverse((time, ..))| *time);
            let next = match (event, self.backend.next()) {
                (Some(event), Some(job)) => event.min(job),
                (Some(event), None) => event,
                (None, _) => break,
            };
            self.pass(next);
            if event != Some(next) {
                continue;
            }
            match self.events.pop() {
                Some(Reverse((.., Event::Phase(phase)))) if phase == phases => break,
                Some(Reverse((.., event))) => self.handle(event),
                None => break,
            }
        }
        for outcome in &mut self.outcomes {
            outcome.close();
        }
        self.outcomes
    }

    fn at(&mut self, time: Time, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, event)));
    }

    fn instant(&self, time: Time) -> Instant {
        self.base + Duration::from_nanos(time)
    }

    /// Lets time pass, in which nothing but the backend's work happens.
    fn pass(&mut self, until: Time) {
        let passed = seconds(until - self.now);
        if passed > 0.0 {
            let outcome = &mut self.outcomes[self.phase];
            let (mut limit, mut in_flight) = (0, 0);
            let now = self.base + Duration::from_nanos(self.now);
            for proxy in &mut self.proxies {
                let usage = proxy.state.usage(LANE, now);
                limit += usage.limit;
                in_flight += usage.in_flight;
                if let Some(bound_by) = proxy.bound_by {
                    outcome.bound(bound_by, passed);
                }
            }
            outcome.limit.add(limit, passed);
            outcome.in_flight.add(in_flight, passed);
        }
        self.now = until;
        self.backend.advance(until, &mut self.ended);
        self.collect();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Phase(phase) => self.enter_phase(phase),
            Event::Up => {
                self.backend.set_down(false, &mut self.ended);
            }
            Event::Pause(paused) => self.backend.pause(paused, &mut self.ended),
            Event::Tick(proxy) => {
                self.tick(proxy);
                let now = self.instant(self.now);
                let usage = self.proxies[proxy].state.usage(LANE, now);
                let busy = usage.in_flight > 0 || usage.queued > 0;
                let after = if busy { TICK } else { IDLE_TICK };
                self.at(self.now + nanos(after), Event::Tick(proxy));
            }
            Event::Arrive => self.arrive(),
            Event::Try(request) => self.try_again(request),
            Event::Expire(attempt) => self.expire(attempt),
            Event::GiveUp(attempt) => self.give_up(attempt),
        }
        self.collect();
    }

    fn enter_phase(&mut self, index: usize) {
        self.begin = self.end;
        let phase = &self.scenario.phases[index];
        self.phase = index;
        self.end = self.begin + phase.seconds;
        let (classes, proxies) = (self.scenario.classes.len(), self.proxies.len());
        self.outcomes
            .push(Outcome::new(phase.seconds, classes, proxies));
        self.backend.change(phase, &mut self.ended);
        if phase.down_seconds > 0.0 {
            self.backend.set_down(true, &mut self.ended);
            self.at(nanos(self.begin + phase.down_seconds), Event::Up);
        }
        self.plan_pauses(phase);
        self.plan_arrival();
        self.at(nanos(self.end), Event::Phase(index + 1));
    }

    fn plan_pauses(&mut self, phase: &Phase) {
        if phase.pause_every <= 0.0 || phase.pause_seconds <= 0.0 {
            return;
        }
        let mut from = self.begin + phase.pause_every;
        while from < self.end {
            self.at(nanos(from), Event::Pause(true));
            self.at(nanos(from + phase.pause_seconds), Event::Pause(false));
            from += phase.pause_every;
        }
    }

    fn plan_arrival(&mut self) {
        let phase = &self.scenario.phases[self.phase];
        self.next_arrival = self.traffic.next(phase, self.begin, self.end);
        if let Some(arrival) = self.next_arrival {
            self.at(nanos(arrival.at), Event::Arrive);
        }
    }

    fn arrive(&mut self) {
        let Some(arrival) = self.next_arrival.take() else {
            return;
        };
        let outcome = &mut self.outcomes[self.phase];
        outcome.offered += 1;
        outcome.classes[arrival.class].0 += 1;
        self.requests.push(Request {
            phase: self.phase,
            arrival,
            tries_left: self.scenario.client.retries,
        });
        self.plan_arrival();
        self.attempt(self.requests.len() - 1);
    }

    fn try_again(&mut self, request: usize) {
        self.outcomes[self.phase].retries += 1;
        self.attempt(request);
    }

    fn attempt(&mut self, request: usize) {
        let Arrival { class, proxy, .. } = self.requests[request].arrival;
        let id = self.attempts.len();
        self.attempts.push(Attempt {
            request,
            begun: self.now,
            stage: Stage::Over,
            client_left: false,
        });
        let ask = Ask {
            class: self.scenario.classes[class].priority,
            group: self.group(request),
            ..Ask::default()
        };
        let now = self.instant(self.now);
        let state = &mut self.proxies[proxy].state;
        let entry = state.enter(&ask, id as u32, now, &mut self.verdicts);
        let deadline = self.now + nanos(self.scenario.client.timeout_ms / 1e3);
        match entry {
            Entry::Admitted(admitted) => {
                self.at(deadline, Event::GiveUp(id));
                self.admit(id, admitted.in_flight);
            }
            Entry::Queued { seq, expires } => {
                self.at(deadline, Event::GiveUp(id));
                self.attempts[id].stage = Stage::Queued(seq);
                let expires = expires.saturating_duration_since(self.base);
                self.at(expires.as_nanos() as Time, Event::Expire(id));
            }
            Entry::Refused(refusal) => self.refuse(id, refusal),
        }
        self.judge();
    }

    /// Hands out what the gate has decided about those who waited.
    fn judge(&mut self) {
        for at in 0..self.verdicts.len() {
            let (key, verdict) = self.verdicts[at];
            match verdict {
                Verdict::Admitted(admitted) => self.admit(key as usize, admitted.in_flight),
                Verdict::Refused(refusal) => self.refuse(key as usize, refusal),
            }
        }
        self.verdicts.clear();
    }

    fn admit(&mut self, id: usize, in_flight: u32) {
        let attempt = &mut self.attempts[id];
        attempt.stage = Stage::InFlight {
            since: self.now,
            in_flight,
        };
        let Arrival { class, proxy, .. } = self.requests[attempt.request].arrival;
        let limit = self.proxies[proxy].law.limit();
        let outcome = &mut self.outcomes[self.phase];
        outcome.over_limit = outcome.over_limit.max(in_flight.saturating_sub(limit));
        if self.backend.is_down() {
            // Refused at once; what it frees is collected by the caller.
            self.ended.lost.push(id);
        } else {
            let work = self.work[class].next();
            self.backend.send(id, work, &mut self.ended);
        }
    }

    fn refuse(&mut self, id: usize, refusal: Refusal) {
        self.attempts[id].stage = Stage::Over;
        if std::mem::replace(&mut self.attempts[id].client_left, true) {
            return;
        }
        let after = if self.scenario.client.honours_retry_after {
            let least = refusal.retry_after().as_secs_f64().ceil().max(1.0) as u64;
            let spread = (least as f64 * RETRY_JITTER).ceil() as u64;
            self.luck.u64(least..=least + spread) * 1_000_000_000
        } else {
            0
        };
        if !self.again(id, after) {
            self.count(id, |outcome, _| outcome.refused += 1);
        }
    }

    /// Whether the client tries again.
    fn again(&mut self, id: usize, after: Time) -> bool {
        let request = self.attempts[id].request;
        let tries_left = &mut self.requests[request].tries_left;
        if *tries_left == 0 {
            return false;
        }
        *tries_left -= 1;
        self.at(self.now + after, Event::Try(request));
        true
    }

    fn expire(&mut self, id: usize) {
        let Stage::Queued(seq) = self.attempts[id].stage else {
            return;
        };
        let (class, proxy) = self.place(id);
        let now = self.instant(self.now);
        if let Some(refusal) = self.proxies[proxy].state.leave(seq, class, now) {
            self.refuse(id, refusal);
        }
    }

    /// The client's patience ends.
    fn give_up(&mut self, id: usize) {
        if self.attempts[id].client_left {
            return;
        }
        self.attempts[id].client_left = true;
        let (class, proxy) = self.place(id);
        match self.attempts[id].stage {
            Stage::Queued(seq) => {
                let now = self.instant(self.now);
                self.proxies[proxy].state.leave(seq, class, now);
                self.attempts[id].stage = Stage::Over;
            }
            Stage::InFlight { .. } => {
                self.note_latency(id, self.scenario.client.timeout_ms / 1e3);
                if self.proxies[proxy].law.frees_abandoned() {
                    self.release(id);
                }
            }
            Stage::Over => {}
        }
        if !self.again(id, 0) {
            self.count(id, |outcome, _| outcome.late += 1);
        }
    }

    fn place(&self, id: usize) -> (Class, usize) {
        let Arrival { class, proxy, .. } = self.requests[self.attempts[id].request].arrival;
        (self.scenario.classes[class].priority, proxy)
    }

    /// Counts how it ended, unless its phase has ended before.
    fn count(&mut self, id: usize, count: impl FnOnce(&mut Outcome, &Arrival)) {
        let request = &self.requests[self.attempts[id].request];
        if request.phase == self.phase {
            count(&mut self.outcomes[self.phase], &request.arrival);
        }
    }

    fn note_latency(&mut self, id: usize, seconds: f64) {
        self.count(id, |outcome, arrival| {
            outcome.latencies.push(seconds as f32);
            outcome.class_latencies[arrival.class].push(seconds as f32);
        });
    }

    /// Deals with what the backend has finished or lost, and with what that leads to.
    fn collect(&mut self) {
        while !self.ended.done.is_empty() || !self.ended.lost.is_empty() || self.ended.killed {
            if std::mem::take(&mut self.ended.killed) {
                self.outcomes[self.phase].killed += 1;
                let up = self.now + nanos(self.scenario.backend.restart_seconds);
                self.at(up, Event::Up);
            }
            let (done, lost) = (
                std::mem::take(&mut self.ended.done),
                std::mem::take(&mut self.ended.lost),
            );
            for id in done {
                let errors = self.scenario.phases[self.phase].errors;
                let error = errors > 0.0 && self.luck.f64() < errors;
                self.finish(id, error.then_some(End::Overload));
            }
            for id in lost {
                // A connection that breaks is a sign of overload to the product, one that is refused is not.
                let end = match self.attempts[id].stage {
                    Stage::InFlight { since, .. } if since < self.now => End::Overload,
                    _ => End::Neutral,
                };
                self.finish(id, Some(end));
            }
        }
    }

    /// The backend is done with it, or has lost it.
    fn finish(&mut self, id: usize, lost: Option<End>) {
        let (class, proxy) = self.place(id);
        let abandoned = self.attempts[id].client_left;
        match (abandoned, lost) {
            (false, None) => {
                self.attempts[id].client_left = true;
                self.count(id, |outcome, arrival| {
                    outcome.good += 1;
                    outcome.by_proxy[proxy] += 1;
                    outcome.classes[arrival.class].1 += 1;
                });
                let latency = seconds(self.now - self.attempts[id].begun);
                self.note_latency(id, latency);
            }
            (false, Some(_)) => {
                self.attempts[id].client_left = true;
                self.count(id, |outcome, _| outcome.failed += 1);
            }
            (true, None) => self.outcomes[self.phase].wasted += 1,
            (true, Some(_)) => {}
        }
        let Stage::InFlight { since, in_flight } = self.attempts[id].stage else {
            return;
        };
        let sample = Sample {
            started: self.instant(since),
            finished: self.instant(self.now),
            in_flight,
            group: self.group(self.attempts[id].request),
            outcome: match lost {
                Some(end) => end,
                None if class == Class::Stream => End::Excluded,
                None if abandoned => End::InVain,
                None => End::Success,
            },
        };
        self.release(id);
        self.proxies[proxy].law.observe(&sample, abandoned);
        self.follow(proxy);
    }

    /// What the law knows a request by.
    fn group(&self, request: usize) -> Group {
        let class = self.requests[request].arrival.class;
        self.scenario.group(class, request)
    }

    /// The permit comes back.
    fn release(&mut self, id: usize) {
        let (_, proxy) = self.place(id);
        self.attempts[id].stage = Stage::Over;
        let now = self.instant(self.now);
        let state = &mut self.proxies[proxy].state;
        state.release(LANE, None, now, &mut self.verdicts);
        self.judge();
    }

    /// After a sample: the law may be due, or has moved its limit already.
    fn follow(&mut self, proxy: usize) {
        let now = self.instant(self.now);
        let law = &self.proxies[proxy].law;
        if law.due(now) {
            self.tick(proxy);
        } else {
            self.set_limit(proxy, law.limit());
        }
    }

    fn set_limit(&mut self, proxy: usize, limit: u32) {
        let now = self.instant(self.now);
        let state = &mut self.proxies[proxy].state;
        if state.usage(LANE, now).limit != limit {
            state.set_limit(LANE, limit, now, &mut self.verdicts);
            self.judge();
        }
    }

    /// As the product's limiter does it.
    fn tick(&mut self, proxy: usize) {
        let now = self.instant(self.now);
        let readings = self.readings();
        let Proxy {
            state,
            law,
            bound_by,
            ..
        } = &mut self.proxies[proxy];
        let usage = state.usage(LANE, now);
        let decision = law.tick(now, &usage, &readings);
        if let Some(service_time) = law.service_time() {
            state.set_service_time(service_time);
        }
        state.set_slots(LANE, readings.slots);
        let limit = law.limit();
        if let Some(decision) = decision {
            *bound_by = Some(decision.bound_by);
            if let Some(outcome) = self.outcomes.get_mut(self.phase) {
                *outcome.reasons.entry(decision.reason).or_default() += 1;
            }
            if let Some(watch) = &mut self.watch {
                watch(seconds(self.now), proxy, &decision);
            }
        }
        self.set_limit(proxy, limit);
    }
}

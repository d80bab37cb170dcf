//! The gate's state: who is in flight, who waits, who may go next. Pure transitions, no clock, no
//! lock, no waking: each takes the time and says whom it decided about.
//!
//! Invariants, checked by `tests/gate_model.rs` and `tests/loom.rs`:
//! - a lane's `in_flight` is the number of its live permits, and grows only while below its limit;
//! - while somebody waits who could go, no lane has room;
//! - nobody waits in a closed gate longer than their `expires`.

mod caps;
mod lanes;
mod pace;
mod queue;
mod rehearsal;
mod snapshot;
mod terms;
mod verdict;

use std::time::{Duration, Instant};

use self::{
    caps::Caps,
    lanes::Lanes,
    pace::Pace,
    queue::{Queue, Waiting},
    rehearsal::Rehearsal,
};
pub use self::{
    snapshot::{LaneSnapshot, LaneUsage, Snapshot},
    verdict::{Admitted, Entry, Verdict, Verdicts},
};
use super::{Ask, Cap, Reason, Refusal};
use crate::{
    config::{Class, Discipline},
    control::{Controller, Usage},
};

/// A lane is one endpoint of the backend: it has a limit of its own.
pub type LaneId = u32;

/// A place in the queue; later arrivals have higher numbers.
pub type Seq = u64;

/// The most that wait when `capacity` is 0.
const AUTO_CAPACITY_MAX: usize = 1024;
/// Places per slot of the limit when `capacity` is 0.
const AUTO_CAPACITY_PER_SLOT: usize = 10;

/// How the queue behaves; `[queue]` and `limit.dry_run` in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The most that may wait; 0 = 10 x limit, at most 1024.
    pub capacity: usize,
    /// The longest anyone waits.
    pub max_wait: Duration,
    /// Who goes next.
    pub discipline: Discipline,
    /// The share of the places that one client may own, 0 to 1; at least one place.
    pub client_max_share: f64,
    /// Admit everyone, and say who would have been refused.
    pub dry_run: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: 0,
            max_wait: Duration::from_millis(500),
            discipline: Discipline::AdaptiveLifo,
            client_max_share: 0.5,
            dry_run: false,
        }
    }
}

/// `now + by`, or a time in the far future where that cannot be represented.
fn later(now: Instant, by: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now.checked_add(by).unwrap_or_else(|| now + FAR)
}

/// How many classes there are.
pub const CLASSES: usize = 5;

/// See the module's documentation.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    lanes: Lanes,
    queue: Queue,
    caps: Caps,
    next_seq: Seq,
    closed: bool,
    pace: Pace,
    /// What would wait, in a dry run.
    rehearsal: Rehearsal,
    updated: Instant,
    /// When a request was last let through whose deadline no recent answer would have met.
    tried: Instant,
    queue_seconds: f64,
}

impl State {
    /// A gate without lanes: nobody passes until one is added.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            lanes: Lanes::default(),
            queue: Queue::default(),
            caps: Caps::default(),
            next_seq: 0,
            closed: false,
            pace: Pace::new(now),
            rehearsal: Rehearsal::new(now),
            updated: now,
            tried: now,
            queue_seconds: 0.0,
        }
    }

    /// A request arrives. `key` names it in later verdicts should it have to wait.
    pub fn enter(&mut self, ask: &Ask, key: u32, now: Instant, out: &mut Verdicts) -> Entry {
        self.advance(now);
        if self.closed {
            return Entry::Refused(self.refusal(Reason::Draining));
        }
        // A request that its route's cap holds up says nothing about the backend's load.
        let capped = self.caps.is_reached(ask.cap);
        if !capped {
            self.pace.note_offer(now);
        }
        if self.misses_deadline(ask, now) {
            return match self.settings.dry_run {
                true => self.admit_regardless(ask.cap, Some(Reason::Deadline)),
                false => Entry::Refused(self.refusal(Reason::Deadline)),
            };
        }
        self.note_try(ask, now);
        if !capped
            && self.nobody_ahead(ask.class)
            && let Some(lane) = self.lanes.roomiest()
        {
            let would = self.rehearse(ask, now);
            return Entry::Admitted(self.admit(lane, ask.cap, would));
        }
        let entry = self.enqueue(ask, key, capped, now, out);
        if !capped {
            self.pace.note_arrival(now);
        }
        self.refuse_overtaken(now, out);
        entry
    }

    fn enqueue(
        &mut self,
        ask: &Ask,
        key: u32,
        capped: bool,
        now: Instant,
        out: &mut Verdicts,
    ) -> Entry {
        if self.settings.dry_run {
            let would = self.rehearse(ask, now);
            return self.admit_regardless(ask.cap, would);
        }
        if let Some(reason) = self.reason_to_refuse(ask, capped, now) {
            return Entry::Refused(self.refusal_to(ask.cap, reason));
        }
        let (expires, reason) = self.patience(ask, capped, now);
        if expires <= now {
            return Entry::Refused(self.refusal_to(ask.cap, reason));
        }
        // There may be more than one to evict: when the limit falls, the capacity falls with it.
        let mut made_room = false;
        while self.queue.len() >= self.capacity() && self.evict_stale(ask.class, now, out) {
            made_room = true;
        }
        // An evicted waiter's place goes to this request, even if the queue is still too long.
        if self.queue.len() >= self.capacity() && !made_room && !self.evict(ask.class, out) {
            return Entry::Refused(self.refusal(Reason::QueueFull));
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        let waiting = Waiting {
            seq,
            key,
            cap: ask.cap,
            capped,
            client: ask.client,
            since: now,
            expires,
            reason,
        };
        self.queue.push(ask.class, waiting);
        self.note_excess();
        Entry::Queued { seq, expires }
    }

    /// A waiter gives up. Says why, if it was still waiting: `None` means that a verdict is on its way.
    pub fn leave(&mut self, seq: Seq, class: Class, now: Instant) -> Option<Refusal> {
        self.advance(now);
        let waiting = self.queue.leave(class, seq)?;
        self.note_excess();
        Some(self.refusal_to(waiting.cap, waiting.reason))
    }

    /// A permit comes back: the backend is done with a request.
    pub fn release(&mut self, lane: LaneId, cap: Option<Cap>, now: Instant, out: &mut Verdicts) {
        self.advance(now);
        let limit = self.lanes.limit();
        let inside = self.lanes.waiting_inside();
        self.pace.note_release(self.excess(), inside, limit, now);
        self.leave_lane(lane, cap, now, out);
    }

    /// A permit comes back unused, which says nothing of the backend's pace.
    pub fn put_back(&mut self, lane: LaneId, cap: Option<Cap>, now: Instant, out: &mut Verdicts) {
        self.advance(now);
        self.leave_lane(lane, cap, now, out);
    }

    fn leave_lane(&mut self, lane: LaneId, cap: Option<Cap>, now: Instant, out: &mut Verdicts) {
        self.caps.leave(cap, self.updated);
        self.lanes.leave(lane);
        self.dispatch(now, out);
        // Only after the dispatch: a waiter that is let go because its route's cap has room again never
        // waited for the backend.
        self.note_excess();
    }

    /// A new limit, at least 1. A lower one revokes nothing: it is paid down by releases.
    pub fn set_limit(&mut self, lane: LaneId, limit: u32, now: Instant, out: &mut Verdicts) {
        self.advance(now);
        self.lanes.set_limit(lane, limit.max(1));
        self.note_excess();
        self.dispatch(now, out);
    }

    /// Prefers other lanes while this one's endpoint does not answer.
    pub fn set_healthy(&mut self, lane: LaneId, healthy: bool, now: Instant, out: &mut Verdicts) {
        self.advance(now);
        self.lanes.set_healthy(lane, healthy);
        self.dispatch(now, out);
    }

    /// An endpoint comes.
    pub fn add_lane(&mut self, id: LaneId, limit: u32, now: Instant, out: &mut Verdicts) {
        self.advance(now);
        self.lanes.add(id, limit.max(1));
        self.dispatch(now, out);
    }

    /// An endpoint goes: nothing new is sent to it, what is in flight may finish.
    pub fn retire_lane(&mut self, id: LaneId, now: Instant, out: &mut Verdicts) {
        self.advance(now);
        self.lanes.retire(id);
        // If that was the last healthy lane, the others are used from now on.
        self.dispatch(now, out);
    }

    /// Takes new settings. Requests that wait already keep the time that they were promised.
    pub fn configure(&mut self, settings: Settings, now: Instant, out: &mut Verdicts) {
        self.advance(now);
        self.settings = settings;
        self.note_excess();
        self.dispatch(now, out);
    }

    /// The backend's unloaded time for a request, from the control law.
    pub fn set_service_time(&mut self, service_time: Duration) {
        self.pace.set_service_time(service_time);
    }

    /// The same for one lane's endpoint. With several, their mean is used.
    pub fn set_service_time_of(&mut self, lane: LaneId, service_time: Duration) {
        self.lanes.set_service_time(lane, service_time);
        if let Some(mean) = self.lanes.service_time() {
            self.pace.set_service_time(mean);
        }
    }

    /// What the law of one lane has learned of its endpoint, but for the limit.
    pub fn note_law(&mut self, lane: LaneId, law: &Controller) {
        // Until an unloaded latency is known, the loaded one is better than none.
        if let Some(service_time) = law.baseline().or(law.service_time()) {
            self.set_service_time_of(lane, service_time);
        }
        self.lanes
            .set_least_time(lane, law.least_time().unwrap_or_default());
        self.set_slots(lane, law.worked_on());
    }

    /// How many requests a lane's endpoint works on at once, if it is known.
    pub fn set_slots(&mut self, lane: LaneId, slots: Option<u32>) {
        self.lanes.set_slots(lane, slots);
    }

    /// Refuses new requests (`true`) or takes them again. Who waits already is served.
    pub fn close(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// How a lane was used so far, as its control law wants to know it.
    pub fn usage(&mut self, lane: LaneId, now: Instant) -> Usage {
        self.advance(now);
        let queued = self.excess() as u32;
        self.lanes
            .snapshots()
            .find(|l| l.id == lane)
            .map(|l| Usage {
                in_flight: l.in_flight,
                streams: 0,
                limit: l.limit,
                queued,
                busy_seconds: l.usage.busy_seconds,
                limit_seconds: l.usage.limit_seconds,
                saturated_seconds: l.usage.saturated_seconds,
            })
            .unwrap_or_default()
    }

    /// What it looks like now.
    pub fn snapshot(&mut self, now: Instant) -> Snapshot {
        self.advance(now);
        Snapshot {
            lanes: self.lanes.snapshots().collect(),
            usage: self.lanes.usage(),
            queued: self.queue.by_class(),
            capacity: self.capacity(),
            standing: self.standing(now),
            closed: self.closed,
            queue_seconds: self.queue_seconds,
            service_time: self.pace.service_time(),
        }
    }

    /// The time of the last transition.
    pub fn updated(&self) -> Instant {
        self.updated
    }

    /// How long it takes until a request that arrives now could be served.
    pub fn drain_time(&self) -> Duration {
        self.pace.wait_behind(self.excess() + 1)
    }

    /// Lets waiters in while there is room.
    fn dispatch(&mut self, now: Instant, out: &mut Verdicts) {
        self.refuse_overtaken(now, out);
        while !self.queue.is_empty() {
            let lane = match self.lanes.roomiest() {
                Some(lane) => lane,
                // In a dry run nobody waits: those who did when it began are let in, room or not.
                None if self.settings.dry_run => match self.lanes.least_loaded() {
                    Some(lane) => lane,
                    None => return,
                },
                None => return,
            };
            let Some(waiting) = self.next_waiter(now, out) else {
                return;
            };
            let admitted = self.admit(lane, waiting.cap, None);
            out.push((waiting.key, Verdict::Admitted(admitted)));
        }
    }

    /// Takes the next request out of the queue: from the highest class that has one, in the order of the
    /// discipline. Those that are out of time are refused on the way.
    fn next_waiter(&mut self, now: Instant, out: &mut Verdicts) -> Option<Waiting> {
        let fresh_from = self.stale_before(now);
        for class in 0..CLASSES {
            while let Some(late) = self.queue.take_late(class, now) {
                let reason = late.reason;
                self.turn_away(late, reason, out);
            }
            // Deadlines differ, so there may be late ones behind the first as well.
            while let Some(next) = self.take_next(class, fresh_from) {
                if next.expires > now {
                    return Some(next);
                }
                let reason = next.reason;
                self.turn_away(next, reason, out);
            }
        }
        None
    }

    fn take_next(&mut self, class: usize, fresh_from: Option<Instant>) -> Option<Waiting> {
        let (caps, dry_run) = (&self.caps, self.settings.dry_run);
        let held_up = |cap| !dry_run && caps.is_reached(cap);
        self.queue.take_next(class, fresh_from, held_up)
    }

    /// Refuses those whose turn will not come, because newcomers go before them and take every free slot. The
    /// sooner they are told, the better; and should a slot happen to be left for one, an answer that late is
    /// worth little.
    fn refuse_overtaken(&mut self, now: Instant, out: &mut Verdicts) {
        if self.queue.is_empty() || !self.is_adaptive() {
            return;
        }
        let crowded_since = self.pace.crowded_since(now);
        let Some((since, stale)) = crowded_since.zip(self.stale_before(now)) else {
            return;
        };
        let before = since.min(stale);
        for class in Class::Protected as usize + 1..CLASSES {
            while let Some(overtaken) = self.queue.take_before(class, before) {
                self.turn_away(overtaken, Reason::QueueTimeout, out);
            }
        }
    }

    /// Tells one who has been taken out of the queue that it may not go.
    fn turn_away(&mut self, waiting: Waiting, reason: Reason, out: &mut Verdicts) {
        self.note_excess();
        let refusal = self.refusal_to(waiting.cap, reason);
        out.push((waiting.key, Verdict::Refused(refusal)));
    }

    fn note_excess(&mut self) {
        let waiting = self.excess() > 0;
        self.pace.note_queue(waiting, self.updated);
    }

    /// The lowest class, not above this one, in which somebody has waited so long that newcomers go first.
    fn stalest(&self, class: Class, now: Instant) -> Option<usize> {
        self.queue.lowest_before(class, self.stale_before(now)?)
    }

    /// Refuses who has waited longest, if others have overtaken it anyway: its place is of more use
    /// to a newcomer.
    fn evict_stale(&mut self, class: Class, now: Instant, out: &mut Verdicts) -> bool {
        let evicted = self.stale_before(now).and_then(|before| {
            let at = self.queue.lowest_before(class, before)?;
            self.queue.take_before(at, before)
        });
        self.evicted(evicted, out)
    }

    /// Refuses the newest of the lowest class below `class` to make place.
    fn evict(&mut self, class: Class, out: &mut Verdicts) -> bool {
        let lowest = self.queue.lowest_below(class);
        let evicted = lowest.and_then(|at| self.queue.take_newest(at));
        self.evicted(evicted, out)
    }

    fn evicted(&mut self, waiting: Option<Waiting>, out: &mut Verdicts) -> bool {
        let Some(waiting) = waiting else { return false };
        self.turn_away(waiting, Reason::QueueFull, out);
        true
    }

    fn admit(&mut self, at: usize, cap: Option<Cap>, would: Option<Reason>) -> Admitted {
        self.caps.enter(cap, self.updated);
        let (lane, in_flight) = self.lanes.enter(at);
        let admitted = Admitted {
            lane,
            in_flight,
            would_refuse: would,
        };
        self.note_excess();
        admitted
    }

    /// Whether nobody of this class or a higher one is waiting who could go now.
    fn nobody_ahead(&self, class: Class) -> bool {
        let caps = &self.caps;
        self.queue.all_held_up(class, |cap| caps.is_reached(cap))
    }

    /// The most that may wait.
    fn capacity(&self) -> usize {
        if self.settings.capacity > 0 {
            return self.settings.capacity;
        }
        (self.lanes.limit() as usize)
            .saturating_mul(AUTO_CAPACITY_PER_SLOT)
            .clamp(1, AUTO_CAPACITY_MAX)
    }

    /// How many waiters their routes' caps hold up, whether or not a lane has room.
    fn held_up(&self) -> usize {
        self.queue.held_up(|cap| self.caps.is_reached(cap))
    }

    /// How many wait for room in a lane; in a dry run, how many would.
    fn excess(&self) -> usize {
        if !self.settings.dry_run {
            return self.queue.len() - self.held_up();
        }
        self.lanes.beyond_limit()
    }

    fn standing(&self, now: Instant) -> bool {
        self.is_adaptive() && self.pace.is_standing(now)
    }

    fn is_adaptive(&self) -> bool {
        self.settings.discipline == Discipline::AdaptiveLifo
    }

    fn standing_wait(&self) -> Duration {
        let (limit, inside) = (self.lanes.limit(), self.lanes.places_inside());
        let offer = self.pace.standing_wait(limit, inside);
        offer.min(self.settings.max_wait)
    }

    /// While the queue stands, or looks as if it will: whoever came before this time has waited so long that
    /// others go first. That is twice the offered wait, so that chance alone makes nobody stale.
    fn stale_before(&self, now: Instant) -> Option<Instant> {
        (self.is_adaptive() && (self.pace.is_standing(now) || self.pace.is_suspect(now)))
            .then(|| now.checked_sub(self.standing_wait() * 2))
            .flatten()
    }

    /// Brings the integrals up to now.
    fn advance(&mut self, now: Instant) {
        // A comparison costs less than a difference, and most changes come in pairs.
        if now <= self.updated {
            return;
        }
        let seconds = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        let wanting = match self.settings.dry_run {
            true => self.excess(),
            false => self.queue.len(),
        };
        self.queue_seconds += seconds * wanting as f64;
        // Anybody who waits while a lane has room is waiting for a route's cap.
        let waiting = !self.queue.is_empty() && self.lanes.roomiest().is_none();
        self.lanes.advance(seconds, waiting);
    }
}

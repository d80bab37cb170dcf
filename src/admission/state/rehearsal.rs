//! How long the requests of a dry run would have waited. In a dry run nobody waits, and what is in flight
//! tells little: the backend gets everything at once, and finishes it sooner than a few slots would. So those
//! slots are simulated, and given only the requests that would have been let in.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Entry, State, later};
use crate::{
    admission::{Ask, Cap, ClientKey, Reason},
    config::Class,
};

/// The simulated slots.
#[derive(Debug)]
pub(super) struct Slots {
    /// When they would be done with all that they were given.
    done: Instant,
}

impl Slots {
    /// All of them are free.
    pub(super) fn new(now: Instant) -> Self {
        Self { done: now }
    }

    /// How long an arrival would wait for a slot. A slot takes `service` for a request, and all of them
    /// together complete one every `interval`. Optimistic by half a place, as the real queue is.
    pub(super) fn wait(&self, service: Duration, interval: Duration, now: Instant) -> Duration {
        let work = self.done.saturating_duration_since(now) + interval / 2;
        work.saturating_sub(service.max(interval))
    }

    /// Gives them one more.
    pub(super) fn take(&mut self, interval: Duration, now: Instant) {
        self.done = later(self.done.max(now), interval);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Rehearsal {
    slots: Slots,
    /// Who would wait, and until when; in the order in which they came.
    waiting: VecDeque<(ClientKey, Instant)>,
}

impl Rehearsal {
    /// Nobody has come.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slots: Slots::new(now),
            waiting: VecDeque::new(),
        }
    }

    /// How many places a client would have.
    fn places_of(&mut self, client: ClientKey, now: Instant) -> usize {
        while self.waiting.front().is_some_and(|(_, until)| *until <= now) {
            self.waiting.pop_front();
        }
        self.waiting.iter().filter(|(it, _)| *it == client).count()
    }
}

impl State {
    /// Lets it in, limit or not.
    pub(super) fn admit_regardless(&mut self, cap: Option<Cap>, would: Option<Reason>) -> Entry {
        match self.lanes.least_loaded() {
            Some(lane) => Entry::Admitted(self.admit(lane, cap, would)),
            None => Entry::Refused(self.refusal(Reason::QueueFull)),
        }
    }

    /// In a dry run: why this arrival would have been refused, if it would have been. Otherwise it is given
    /// to the simulated slots. Of the order of classes only one rule is kept: nobody goes before protected
    /// requests.
    pub(super) fn rehearse(&mut self, ask: &Ask, now: Instant) -> Option<Reason> {
        if !self.settings.dry_run {
            return None;
        }
        let service = self.pace.service_time();
        let interval = self.pace.interval_of(self.lanes.limit());
        let wait = match ask.class {
            Class::Protected => Duration::ZERO,
            _ => self.rehearsal.slots.wait(service, interval, now),
        };
        // Until it is known how long the backend takes, there is only what it has in flight to go by.
        let waiting = match service.is_zero() || interval.is_zero() {
            true => self.excess(),
            false => places(wait, interval),
        };
        if waiting >= self.capacity() {
            return Some(Reason::QueueFull);
        }
        let client = ask.client.filter(|_| !wait.is_zero());
        if let Some(client) = client {
            let share = self.share_of(places(self.settings.max_wait, interval));
            if self.rehearsal.places_of(client, now) >= share {
                return Some(Reason::QueueFull);
            }
        }
        let (expires, reason) = self.patience(ask, false, now);
        if later(now, wait) > expires {
            return Some(reason);
        }
        let (expires, reason) = self.patience(ask, true, now);
        if later(now, self.caps.wait(ask.cap, service, now)) > expires {
            return Some(reason);
        }
        self.rehearsal.slots.take(interval, now);
        self.caps.take(ask.cap, service, now);
        let place = client.map(|client| (client, later(now, wait)));
        self.rehearsal.waiting.extend(place);
        None
    }
}

/// How many are worked off within this time.
fn places(wait: Duration, interval: Duration) -> usize {
    match interval.is_zero() {
        true => usize::MAX,
        false => (wait.as_secs_f64() / interval.as_secs_f64()) as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn as_many_as_there_are_slots_go_at_once_and_the_others_in_turn() {
        let now = crate::clock::now();
        let mut slots = Slots::new(now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            waits.push(slots.wait(100 * MS, 50 * MS, now).as_millis());
            slots.take(50 * MS, now);
        }
        assert_eq!(waits, [0, 0, 25, 75, 125, 175]);
        // Later the slots have got that much done.
        assert_eq!(slots.wait(100 * MS, 50 * MS, now + 100 * MS), 125 * MS);
        assert_eq!(
            slots.wait(100 * MS, 50 * MS, now + 1000 * MS),
            Duration::ZERO
        );
    }
}

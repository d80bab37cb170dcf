//! On what terms an arrival may wait: how long, and why it is refused if it may not.

use std::time::{Duration, Instant};

use super::{State, later};
use crate::{
    admission::{Ask, Cap, Reason, Refusal},
    config::Class,
};

/// A deadline that no recent answer would have met is tried by one request again, this long after the last
/// try.
const TRY_AGAIN: Duration = Duration::from_secs(1);

impl State {
    /// Whether a request like this would be refused at once. Asked before an upload is read.
    pub fn would_refuse(&mut self, ask: &Ask, now: Instant) -> Option<Refusal> {
        if self.closed {
            return Some(self.refusal(Reason::Draining));
        }
        if self.settings.dry_run {
            return None;
        }
        if self.misses_deadline(ask, now) {
            return Some(self.refusal(Reason::Deadline));
        }
        let capped = self.caps.is_reached(ask.cap);
        let may_go = !capped && self.nobody_ahead(ask.class);
        if may_go && self.lanes.roomiest().is_some() {
            return None;
        }
        // Where nobody may wait, whoever cannot go at once is refused.
        let at_once = self.settings.max_wait.is_zero();
        let reason = self
            .reason_to_refuse(ask, capped, now)
            .or(at_once.then(|| self.patience(ask, capped, now).1))?;
        Some(self.refusal_to(ask.cap, reason))
    }

    /// Whether the deadline is nearer than even the fastest recent answer took, whether or not there is room.
    /// If every request were refused for that, nobody would find out that answers have become faster, so one
    /// is let through now and then, whatever else is in flight.
    pub(super) fn misses_deadline(&self, ask: &Ask, now: Instant) -> bool {
        ask.deadline.is_some_and(|at| {
            let left = at.saturating_duration_since(now);
            left.is_zero() || left < self.lanes.least_time() && !self.may_try(now)
        })
    }

    fn may_try(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.tried) >= TRY_AGAIN
    }

    /// Notes one that goes although no answer of late has met such a deadline.
    pub(super) fn note_try(&mut self, ask: &Ask, now: Instant) {
        let least = self.lanes.least_time();
        if ask.deadline.is_some_and(|at| at < later(now, least)) {
            self.tried = now;
        }
    }

    /// How long such a request may wait, and what is said when that is over.
    pub(super) fn patience(&self, ask: &Ask, capped: bool, now: Instant) -> (Instant, Reason) {
        let expires = later(now, self.settings.max_wait);
        if let Some(deadline) = ask.deadline {
            let left = deadline.saturating_duration_since(now);
            let latest = later(now, left.saturating_sub(self.pace.service_time()));
            if latest < expires {
                return (latest, Reason::Deadline);
            }
        }
        let reason = match capped {
            true => Reason::RouteLimit,
            false => Reason::QueueTimeout,
        };
        (expires, reason)
    }

    /// Why an arrival that cannot go now is refused at once, if it is.
    pub(super) fn reason_to_refuse(&self, ask: &Ask, capped: bool, now: Instant) -> Option<Reason> {
        if self.queue.len() >= self.capacity()
            && self.queue.lowest_below(ask.class).is_none()
            && self.stalest(ask.class, now).is_none()
        {
            return Some(Reason::QueueFull);
        }
        // A standing queue is one for the backend, not one for the route's cap.
        let bound = match capped {
            true => self.settings.max_wait,
            false => self.bound(ask.class, now),
        };
        if self.has_its_share(ask, bound) {
            return Some(Reason::QueueFull);
        }
        let capped = ask.cap.filter(|_| capped);
        let wait = match capped {
            Some(_) if ask.class == Class::Protected => Duration::ZERO,
            Some(cap) => self.wait_for_cap(cap, self.queue.of_route(cap), now),
            None => self.predicted_wait(ask.class, now),
        };
        if ask
            .deadline
            .is_some_and(|at| at < later(later(now, wait), self.pace.service_time()))
        {
            return Some(Reason::Deadline);
        }
        if capped.is_some() {
            return (wait > bound || self.caps_have_their_share(ask.class))
                .then_some(Reason::RouteLimit);
        }
        // Whoever is next has an expected wait of zero, and is never refused on an estimate.
        (wait > bound).then_some(Reason::QueueTimeout)
    }

    /// Whether requests that their routes' caps hold up have half of the places already: the other half is
    /// for the rest.
    fn caps_have_their_share(&self, class: Class) -> bool {
        class != Class::Protected && self.held_up() >= (self.capacity() / 2).max(1)
    }

    /// The time until so many of a route at its cap may go.
    fn wait_for_cap(&self, cap: Cap, ahead: usize, now: Instant) -> Duration {
        let usual = self.pace.service_time();
        self.caps.wait_behind(cap, ahead, usual, now)
    }

    /// The longest wait that is offered to an arrival of this class.
    fn bound(&self, class: Class, now: Instant) -> Duration {
        if self.standing(now) && class != Class::Protected {
            self.standing_wait()
        } else {
            self.settings.max_wait
        }
    }

    /// Whether this client waits in as many places as one may own: a share of those that the bound
    /// on the wait leaves. Health checks are exempt.
    fn has_its_share(&self, ask: &Ask, bound: Duration) -> bool {
        let Some(client) = ask.client.filter(|_| ask.class != Class::Protected) else {
            return false;
        };
        self.queue.places_of(client) >= self.share_of(self.pace.places_within(bound))
    }

    /// How many of so many places, or of as many as there are, one client may own.
    pub(super) fn share_of(&self, places: usize) -> usize {
        let places = self.capacity().min(places);
        ((places as f64 * self.settings.client_max_share) as usize).max(1)
    }

    /// The expected wait of an arrival of this class: those who go before it, at the recent pace. Optimistic
    /// by half a place, so that nobody is refused for a rounding.
    fn predicted_wait(&self, class: Class, now: Instant) -> Duration {
        let (caps, fresh_from) = (&self.caps, self.stale_before(now));
        let held_up = |cap| caps.is_reached(cap);
        let ahead = self.queue.ahead_of(class, fresh_from, held_up);
        self.pace.wait_behind(ahead)
    }

    pub(super) fn refusal(&self, reason: Reason) -> Refusal {
        Refusal {
            reason,
            drain_time: self.drain_time(),
            backlog: match reason {
                Reason::Draining => Duration::ZERO,
                _ => self.pace.backlog(),
            },
        }
    }

    /// The same for a request of a route with this cap, whose own pace counts if it is that cap that it waits for.
    pub(super) fn refusal_to(&self, cap: Option<Cap>, reason: Reason) -> Refusal {
        match cap.filter(|_| reason == Reason::RouteLimit) {
            Some(cap) => Refusal {
                reason,
                drain_time: self.wait_for_cap(cap, self.queue.of_route(cap) + 1, self.updated),
                backlog: Duration::ZERO,
            },
            None => self.refusal(reason),
        }
    }
}

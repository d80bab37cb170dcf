//! What is in flight of the routes that have a cap of their own.

use std::time::{Duration, Instant};

use super::rehearsal::Slots;
use crate::admission::Cap;

/// The share of the past that is kept when a request ends: about the last 16 count.
const KEPT: f64 = 1.0 - 1.0 / 16.0;

#[derive(Debug)]
struct Capped {
    id: u16,
    in_flight: u32,
    /// Request-seconds in flight, and how many requests ended, up to `since`; both decay.
    busy: f64,
    ended: f64,
    since: Instant,
    /// What would wait, in a dry run.
    slots: Slots,
}

impl Capped {
    fn new(id: u16, now: Instant) -> Self {
        Self {
            id,
            in_flight: 0,
            busy: 0.0,
            ended: 0.0,
            since: now,
            slots: Slots::new(now),
        }
    }

    fn busy_at(&self, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        self.busy + f64::from(self.in_flight) * seconds
    }

    fn advance(&mut self, now: Instant) {
        self.busy = self.busy_at(now);
        self.since = self.since.max(now);
    }

    /// How long its requests take: request-seconds in flight over the number of requests that ended. While
    /// none has ended, `usual`, but no less than those in flight have taken so far.
    fn service(&self, usual: Duration, now: Instant) -> Duration {
        let busy = self.busy_at(now);
        let seconds = if self.ended > 0.0 {
            busy / self.ended
        } else {
            (busy / f64::from(self.in_flight.max(1))).max(usual.as_secs_f64())
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Caps {
    /// Those that had somebody in flight.
    routes: Vec<Capped>,
}

impl Caps {
    /// Whether such a request is held up by its route's cap.
    pub(super) fn is_reached(&self, cap: Option<Cap>) -> bool {
        cap.is_some_and(|cap| {
            self.find(cap)
                .is_some_and(|route| route.in_flight >= cap.max)
        })
    }

    /// The time until so many of a route with a cap have been let in, at the pace of late.
    pub(super) fn wait_behind(
        &self,
        cap: Cap,
        ahead: usize,
        usual: Duration,
        now: Instant,
    ) -> Duration {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        self.find(cap).map_or(Duration::ZERO, |route| {
            (route.service(usual, now) / cap.max.max(1)).saturating_mul(ahead)
        })
    }

    /// In a dry run: how long such a request would wait for its route's cap. A request takes the `usual` time as long
    /// as nothing else is known of its route.
    pub(super) fn wait(&self, cap: Option<Cap>, usual: Duration, now: Instant) -> Duration {
        let known = cap.and_then(|cap| Some((cap, self.find(cap)?)));
        known.map_or(Duration::ZERO, |(cap, route)| {
            let service = route.service(usual, now);
            let interval = service / cap.max.max(1);
            let wait = route.slots.wait(service, interval, now);
            // Long-lived requests do not end when they are expected to: while the cap is reached, there is a
            // wait.
            match route.in_flight >= cap.max {
                true => wait.max(interval / 2),
                false => wait,
            }
        })
    }

    /// In a dry run: such a request would have been let in.
    pub(super) fn take(&mut self, cap: Option<Cap>, usual: Duration, now: Instant) {
        if let Some(cap) = cap {
            let route = self.known(cap, now);
            let interval = route.service(usual, now) / cap.max.max(1);
            route.slots.take(interval, now);
        }
    }

    pub(super) fn enter(&mut self, cap: Option<Cap>, now: Instant) {
        if let Some(cap) = cap {
            let route = self.known(cap, now);
            route.advance(now);
            route.in_flight += 1;
        }
    }

    pub(super) fn leave(&mut self, cap: Option<Cap>, now: Instant) {
        if let Some(cap) = cap {
            let route = self.known(cap, now);
            route.advance(now);
            route.in_flight = route.in_flight.saturating_sub(1);
            route.busy *= KEPT;
            route.ended = (route.ended + 1.0) * KEPT;
        }
    }

    fn find(&self, cap: Cap) -> Option<&Capped> {
        self.routes.iter().find(|route| route.id == cap.id)
    }

    fn known(&mut self, cap: Cap, now: Instant) -> &mut Capped {
        let at = self.routes.iter().position(|route| route.id == cap.id);
        let at = at.unwrap_or_else(|| {
            self.routes.push(Capped::new(cap.id, now));
            self.routes.len() - 1
        });
        &mut self.routes[at]
    }
}

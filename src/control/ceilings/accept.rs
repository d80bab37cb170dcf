//! The backend's listen backlog: a direct sign of pushing too far, for servers whose workers accept a
//! connection only when they are idle. Where a server accepts early the backlog is empty, and says
//! nothing.

use std::time::{Duration, Instant};

/// Looks closer together than this see the same.
const EVERY: Duration = Duration::from_millis(40);
/// Gain of the share of looks that found somebody waiting: about the last five count.
const GAIN: f64 = 0.2;
/// The backlog is never empty for long: more is sent than is worked on.
const ALWAYS: f64 = 0.6;
/// It is empty most of the time although the ceiling is reached: there are more workers.
const SELDOM: f64 = 0.3;
/// Gain of the workers seen busy, when fewer are than before: they are forgotten within a second.
const FEWER: f64 = 0.05;
/// Beyond those being worked on, one may wait.
const WAITING: f64 = 1.0;
/// A ceiling that nothing has confirmed for so long is gone.
const OLD: Duration = Duration::from_secs(30);

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Accept {
    at: Option<Instant>,
    /// Share of looks that found somebody in the backlog.
    waiting: f64,
    /// Requests being worked on while somebody waits.
    busy: f64,
    confirmed: Option<Instant>,
}

impl Accept {
    pub(super) fn note(&mut self, now: Instant, queue: Option<u32>, in_flight: u32) {
        let Some(queue) = queue else {
            *self = Accept::default();
            return;
        };
        if self
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < EVERY)
        {
            return;
        }
        self.at = Some(now);
        let waits = queue > 0 && in_flight > 0;
        self.waiting += GAIN * (f64::from(u8::from(waits)) - self.waiting);
        if waits {
            let working = f64::from(in_flight.saturating_sub(queue).max(1));
            let gain = if working > self.busy { 1.0 } else { FEWER };
            self.busy += gain * (working - self.busy);
        }
        if self.waiting >= ALWAYS {
            self.confirmed = Some(now);
        } else if self.waiting < SELDOM
            && self.ceiling().is_some_and(|ceiling| in_flight >= ceiling)
        {
            self.confirmed = None;
        }
        if self
            .confirmed
            .is_some_and(|at| now.saturating_duration_since(at) > OLD)
        {
            self.confirmed = None;
        }
    }

    /// The most that makes sense, once the backlog has shown it.
    pub(super) fn ceiling(&self) -> Option<u32> {
        self.confirmed
            .map(|_| (self.busy + WAITING + 0.5).max(1.0) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend of so many workers, each of which accepts only when idle.
    fn look(accept: &mut Accept, now: &mut Instant, times: u32, in_flight: u32, workers: u32) {
        for _ in 0..times {
            *now += Duration::from_millis(50);
            accept.note(*now, Some(in_flight.saturating_sub(workers)), in_flight);
        }
    }

    #[test]
    fn follows_the_workers_within_a_second() {
        let (mut accept, mut now) = (Accept::default(), crate::clock::now());
        look(&mut accept, &mut now, 20, 4, 4);
        assert_eq!(accept.ceiling(), None, "nobody waits");
        look(&mut accept, &mut now, 20, 9, 4);
        assert_eq!(accept.ceiling(), Some(5));
        look(&mut accept, &mut now, 80, 5, 2);
        assert_eq!(accept.ceiling(), Some(3), "two have gone");
        look(&mut accept, &mut now, 10, 3, 4);
        assert_eq!(accept.ceiling(), None, "and come back");
    }

    #[test]
    fn a_moment_in_the_backlog_is_nothing_and_blindness_neither() {
        let (mut accept, mut now) = (Accept::default(), crate::clock::now());
        for _ in 0..100 {
            look(&mut accept, &mut now, 1, 5, 4);
            look(&mut accept, &mut now, 3, 4, 4);
        }
        assert_eq!(accept.ceiling(), None);
        // A server that accepts everything shows an empty backlog.
        look(&mut accept, &mut now, 100, 60, 60);
        assert_eq!(accept.ceiling(), None);
        look(&mut accept, &mut now, 20, 60, 4);
        assert!(accept.ceiling().is_some());
        accept.note(now, None, 60);
        assert_eq!(accept.ceiling(), None);
    }
}

//! How far the limit may go before it is known how much memory a request needs: half of the way to where
//! memory would run out if all that is in use now belonged to the requests in flight. The estimate gets
//! better with every step that is taken.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Requests in flight for this long have allocated what they need.
const SETTLED: Duration = Duration::from_millis(200);
/// Looks closer together than this see the same.
const EVERY: Duration = Duration::from_millis(40);
/// The share of the way. What a request has freed may stay with the thread that served it, so the next ones, on
/// other threads, need as much again.
const WAY: f64 = 0.5;
/// Beyond what is in flight it may go by this factor at once...
const STEP: f64 = 1.25;
/// ... or by one request, if what is left has room for as much, each request being reckoned at so many times
/// what it seems to need.
const CAUTION: f64 = 1.5;
/// What is in use counts as at least this share of the room: a backend that has done nothing yet uses little.
const USED: f64 = 1.0 / 16.0;
/// It may also go by one request if, for this long, memory has not grown...
const QUIET: Duration = Duration::from_secs(2);
/// ... by more than this share.
const GREW: f64 = 0.01;
/// So many requests are let in whatever they need: fewer could never be learned from.
const LEAST: f64 = 2.0;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Frontier {
    /// Looks of the last moments: when, requests in flight, bytes in use.
    looks: VecDeque<(Instant, f64, f64)>,
    /// The least that was in use, bytes.
    base: f64,
    reach: Option<f64>,
    /// What was in use when it last grew, bytes, and when.
    grown: Option<(f64, Instant)>,
}

impl Frontier {
    /// Takes what is in flight and in use, and how much may be, bytes.
    pub(super) fn note(&mut self, now: Instant, in_flight: f64, used: f64, room: f64) {
        let settled = |at: Instant| now.saturating_duration_since(at) >= SETTLED;
        if self
            .looks
            .back()
            .is_some_and(|look| now.saturating_duration_since(look.0) < EVERY)
        {
            return;
        }
        self.looks.push_back((now, in_flight, used));
        // The newest look that is old enough stays, so that all of the time since then is covered.
        while self.looks.len() > 1 && settled(self.looks[1].0) {
            self.looks.pop_front();
        }
        let known = self.looks.front().is_some_and(|look| settled(look.0));
        let least = self.looks.iter().map(|look| look.1);
        let throughout = least.fold(f64::INFINITY, f64::min);
        let most = self.looks.iter().map(|look| look.2).fold(1.0, f64::max);
        self.base = match self.reach {
            None => used,
            Some(_) => self.base.min(used),
        };
        if self.grown.is_none_or(|(to, _)| most > to * (1.0 + GREW)) {
            self.grown = Some((most, now));
        }
        let quiet = self
            .grown
            .is_some_and(|(_, at)| now.saturating_duration_since(at) >= QUIET);
        if most >= room {
            return;
        }
        let part_way = |from: f64| from + WAY * (room / most.max(USED * room) - 1.0) * from;
        self.reach = Some(match self.reach {
            None => part_way(throughout.max(1.0)).max(LEAST),
            Some(reach) if !known => reach,
            Some(reach) => {
                let each = (most - self.base) / throughout.max(1.0);
                let beyond = ((STEP - 1.0) * throughout).max(1.0);
                let left = (room - most) / (CAUTION * each);
                let step = match left {
                    _ if left >= beyond => beyond,
                    _ if left >= 1.0 || quiet => 1.0,
                    _ => 0.0,
                };
                reach.max(part_way(throughout)).max(throughout + step)
            }
        });
    }

    /// The requests in flight that are safe, nothing being known of what they need. None as long as there has
    /// never been room: then it is not the requests that use it.
    pub(super) fn reach(&self) -> Option<f64> {
        self.reach
    }

    /// The least that was in use, bytes.
    pub(super) fn base(&self) -> f64 {
        self.base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    /// A backend of 60 MB and so many for a request, always at its limit; what it needed at the most, and the
    /// limit in the end.
    fn climb(each: f64, base: f64, room: f64, seconds: u32) -> (f64, f64) {
        let (mut frontier, mut now) = (Frontier::default(), crate::clock::now());
        frontier.note(now, 0.0, base, room);
        let mut most = base;
        for _ in 0..seconds * 20 {
            let in_flight = frontier.reach().expect("it is known").floor().min(64.0);
            let used = base + in_flight * each;
            most = most.max(used);
            now += Duration::from_millis(50);
            frontier.note(now, in_flight, used, room);
        }
        (most, frontier.reach().expect("it is known"))
    }

    #[test]
    fn comes_as_far_as_memory_lasts_and_no_farther() {
        let (most, reach) = climb(30.0 * MB, 60.0 * MB, 510.0 * MB, 15);
        assert!(most <= 541.0 * MB, "{most}");
        assert!((14.0..17.0).contains(&reach), "{reach}");
    }

    #[test]
    fn a_backend_with_plenty_is_never_held_back() {
        let (mut frontier, mut now) = (Frontier::default(), crate::clock::now());
        frontier.note(now, 0.0, 100.0 * MB, 6800.0 * MB);
        assert!(frontier.reach() > Some(8.0));
        for _ in 0..6 {
            now += Duration::from_millis(50);
            frontier.note(now, 8.0, 200.0 * MB, 6800.0 * MB);
        }
        assert!(frontier.reach() > Some(64.0));
    }

    #[test]
    fn a_large_backend_is_found_out_in_seconds() {
        let (_, reach) = climb(0.0, 480.0 * MB, 510.0 * MB, 5);
        assert!(reach >= 64.0, "{reach}");
    }
}

//! Too much memory is in use: how far the limit is held down, and for how long.
//!
//! Fewer requests need less memory, but a backend does not always give it back: an allocator keeps what was
//! freed, for the next request. Held lower and lower for memory that will not come back, a limit would be down to 1
//! for good, so each step is judged: where memory did not fall with the requests, they are let in again, one by one
//! and fewer than before, until it grows once more.

use std::time::{Duration, Instant};

/// A step down, a factor, and the deepest where it is known how many are too many.
const CUT: f64 = 0.7;
/// From this share of the memory on, the next allocation may be the last: down to 1, but for a first
/// step where it is known what a request needs and all of them still fit.
const BRINK: f64 = 0.97;
/// Between two steps: what the first brought has to be seen.
const STEP_EVERY: Duration = Duration::from_secs(1);
/// Once there is room again, the limit rises by this factor at each look; beyond `LET_GO_AT` it is let go.
const LET_GO: f64 = 1.25;
const LET_GO_AT: f64 = 1000.0;
/// A step can be judged once so many of the requests have gone.
const GONE: f64 = 0.15;
/// It was in vain if less than this share of what they seemed to hold came back.
const CAME_BACK: f64 = 0.25;
/// After a step in vain the limit comes back to this share of what it was...
const IN_VAIN: f64 = 0.9;
/// ... by this share, or one request, in the time between two steps. Many at once would make a server with
/// threads start more of them, each with memory of its own.
const CLIMB: f64 = 0.1;
/// Growth by this share of the memory is growth.
const GREW: f64 = 0.01;
/// Weight of the newest look in the mean of requests in flight.
const NEWEST: f64 = 0.4;

/// What is seen at one look; memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) in_flight: f64,
    pub(super) used: f64,
    pub(super) most: f64,
    /// The limit in force.
    pub(super) limit: f64,
    /// What is in use without a request, as far as it is known.
    pub(super) base: f64,
    /// What may be in use while the limit is to grow.
    pub(super) room: f64,
    /// What a request needs, if that is known.
    pub(super) each: Option<f64>,
    /// Whether something has to be done.
    pub(super) alarming: bool,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Hold {
    in_flight: Option<f64>,
    step: Option<Step>,
    /// What stays in use whatever the requests do.
    kept: Option<f64>,
}

/// The last step down.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: Instant,
    /// The limit before the first step of several.
    from: f64,
    to: f64,
    /// What was in flight and in use then; none once the step has been judged.
    then: Option<(f64, f64)>,
}

impl Hold {
    /// The requests in flight that it allows.
    pub(super) fn ceiling(&self) -> Option<f64> {
        self.step.map(|step| step.to.max(1.0))
    }

    /// Whether it is bringing memory down now.
    pub(super) fn is_lowering(&self) -> bool {
        self.step.is_some_and(|step| step.then.is_some())
    }

    /// Takes a look. Says whether the limit has just gone down to 1 because memory is at the brink, and what
    /// a request needs is unknown or was underestimated.
    pub(super) fn note(&mut self, now: Instant, look: &Look) -> bool {
        let mean = self.in_flight.get_or_insert(look.in_flight);
        *mean += NEWEST * (look.in_flight - *mean);
        let in_flight = *mean;
        if look.used < look.room {
            self.kept = None;
            self.let_go(look);
            return false;
        }
        let brink = look.used >= BRINK * look.most;
        if let Some(step) = &mut self.step
            && now.saturating_duration_since(step.at) < STEP_EVERY
        {
            let grew = step.then.is_some_and(|(_, then)| look.used > then);
            if brink && grew {
                step.to = 1.0;
            }
            return false;
        }
        self.judge(in_flight, look);
        let grew = self
            .kept
            .is_none_or(|kept| look.used > kept + GREW * look.most);
        if !grew {
            self.climb(now);
        }
        if !look.alarming || !grew {
            return false;
        }
        self.kept = None;
        let lost = brink && (look.each.is_none() || look.used >= look.most);
        let limit = self.step.map_or(look.limit, |step| step.to.min(look.limit));
        let from = match self.step {
            Some(Step {
                from,
                then: Some(_),
                ..
            }) => from,
            _ => limit,
        };
        let too_many = look.each.map(|each| (look.used - look.room) / each);
        let to = match too_many {
            _ if lost => 1.0,
            Some(many) => (limit - many.max(1.0)).max(CUT * limit),
            None => CUT * limit,
        };
        self.step = Some(Step {
            at: now,
            from,
            to: to.max(1.0),
            then: Some((in_flight, look.used)),
        });
        lost
    }

    fn let_go(&mut self, look: &Look) {
        let Some(step) = &mut self.step else { return };
        step.then = None;
        step.to = (step.to * LET_GO).max(look.in_flight.min(step.from));
        if step.to > LET_GO_AT {
            self.step = None;
        }
    }

    fn climb(&mut self, now: Instant) {
        if let Some(step) = &mut self.step {
            let back = (IN_VAIN * step.from).max(step.to);
            step.to = (step.to + (CLIMB * step.from).max(1.0)).min(back);
            step.at = now;
        }
    }

    /// Did memory go with the requests that went?
    fn judge(&mut self, in_flight: f64, look: &Look) {
        let Some(step) = &mut self.step else { return };
        let Some((before, used)) = step.then else {
            return;
        };
        let gone = 1.0 - in_flight / before.max(1.0);
        if gone < GONE {
            return;
        }
        let held = (used - look.base).max(GREW * look.most) * gone;
        if used - look.used < CAME_BACK * held {
            step.then = None;
            self.kept = Some(used.max(look.used));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    struct Bench {
        hold: Hold,
        now: Instant,
        each: Option<f64>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                hold: Hold::default(),
                now: crate::clock::now(),
                each: None,
            }
        }

        /// A look at this in flight and in use, of 600 MB; the limit is 10. What it is held at.
        fn look(&mut self, in_flight: f64, used: f64) -> Option<f64> {
            self.now += Duration::from_millis(250);
            let used = used * MB;
            let look = Look {
                in_flight,
                used,
                most: 600.0 * MB,
                limit: self.hold.ceiling().unwrap_or(10.0).min(10.0),
                base: 60.0 * MB,
                room: 510.0 * MB,
                each: self.each,
                alarming: used >= 552.0 * MB,
            };
            self.hold.note(self.now, &look);
            self.hold.ceiling()
        }

        /// The same for a second.
        fn second(&mut self, in_flight: f64, used: f64) -> Option<f64> {
            (0..4).map(|_| self.look(in_flight, used)).last()?
        }
    }

    #[test]
    fn goes_down_as_long_as_it_helps_and_up_when_there_is_room() {
        let mut bench = Bench::new();
        assert_eq!(bench.second(10.0, 540.0), None, "only growth stops");
        assert_eq!(bench.second(10.0, 595.0), Some(1.0), "at the brink");
        let mut bench = Bench::new();
        assert_eq!(bench.second(10.0, 570.0), Some(7.0));
        let held = bench.second(10.0, 570.0);
        assert!(held < Some(5.0), "still all of them: {held:?}");
        let held = bench.second(5.0, 400.0);
        assert!(held > Some(4.9), "{held:?}");
        bench.second(8.0, 400.0);
        for _ in 0..8 {
            bench.second(8.0, 400.0);
        }
        assert_eq!(bench.hold.ceiling(), None);
    }

    #[test]
    fn goes_down_by_as_many_as_are_too_many_where_that_is_known() {
        let mut bench = Bench::new();
        bench.each = Some(30.0 * MB);
        assert_eq!(bench.second(10.0, 570.0), Some(8.0));
        let mut bench = Bench::new();
        bench.each = Some(30.0 * MB);
        let held = bench.look(10.0, 588.0);
        assert!(held > Some(7.3), "near the brink: {held:?}");
        assert_eq!(bench.look(9.0, 588.0), held);
        assert_eq!(bench.look(8.0, 590.0), Some(1.0), "it grows still");
        let mut bench = Bench::new();
        bench.each = Some(2.0 * MB);
        assert_eq!(bench.second(10.0, 570.0), Some(7.0), "no deeper");
    }

    #[test]
    fn memory_that_does_not_come_back_holds_nobody_down() {
        let mut bench = Bench::new();
        bench.second(10.0, 570.0);
        for _ in 0..8 {
            bench.second(7.0, 568.0);
        }
        assert_eq!(bench.hold.ceiling(), Some(9.0));
        // It stays there as long as memory does.
        for _ in 0..20 {
            assert_eq!(bench.second(9.0, 570.0), Some(9.0));
        }
        // It grew: another step, from there.
        let lower = bench.second(9.0, 578.0);
        assert!(lower < Some(6.5), "{lower:?}");
        for _ in 0..6 {
            bench.second(6.0, 578.0);
        }
        let held = bench.hold.ceiling();
        assert!(held < Some(8.2) && held > Some(8.0), "{held:?}");
    }

    #[test]
    fn from_the_brink_it_comes_back_step_by_step() {
        let mut bench = Bench::new();
        assert_eq!(bench.second(10.0, 590.0), Some(1.0));
        let mut before = Some(1.0);
        for _ in 0..20 {
            let held = bench.second(1.0, 588.0);
            assert!(held <= before.map(|before| before + 1.0), "{held:?}");
            before = held;
        }
        assert_eq!(before, Some(9.0));
    }
}

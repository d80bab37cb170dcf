//! Pauses of the whole backend (a garbage collection, a stopped VM), which are not congestion:
//! the time of a pause is taken out of every latency that spans it.

use std::time::{Duration, Instant};

/// A gap between completions shorter than this is never a pause.
const SHORTEST: f64 = 0.150;
/// A pause is longer than this many usual gaps.
const USUAL_GAPS: f64 = 8.0;
/// Gain of the average gap, a completion; a quarter of a hundred completions of memory.
const GAIN: f64 = 0.04;
/// Completions before the average gap is trusted.
const LEARNING: u32 = 16;
/// Share of the expected latency that must remain when the pause is subtracted: a request that is
/// slow by itself, on a quiet backend, is not a pause.
const REMAINDER: f64 = 0.25;
/// Pauses remembered; a request spans two at most in practice.
const KEPT: usize = 4;

/// Watches the completions of one endpoint for gaps that hit every request at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses {
    last: Option<Instant>,
    usual_gap: f64,
    seen: u32,
    recent: [Option<(Instant, Instant)>; KEPT],
    next: usize,
    /// End of the newest: what started later spans none.
    newest: Option<Instant>,
}

/// What a completion says about pauses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Noted {
    /// Time that this request spent paused, seconds.
    pub(super) overlap: f64,
    /// The pause that this completion has just ended, if one.
    pub(super) ended: Option<(Instant, Instant)>,
}

impl Pauses {
    /// Takes one completion, and its latency, which its caller knows as well; `expected` is the one it should have
    /// had, 0 if unknown. Both in seconds.
    pub(super) fn note(
        &mut self,
        started: Instant,
        finished: Instant,
        latency: f64,
        expected: f64,
    ) -> Noted {
        let mut ended = None;
        let last = self.last.unwrap_or(finished);
        let gap = seconds(finished.saturating_duration_since(last));
        let longest_usual = (USUAL_GAPS * self.usual_gap).max(SHORTEST);
        // In flight from before the gap to after it, and plausible without it.
        if gap > longest_usual
            && self.seen >= LEARNING
            && started <= last
            && expected > 0.0
            && latency - gap >= REMAINDER * expected
        {
            ended = Some((last, finished));
            self.recent[self.next] = ended;
            self.next = (self.next + 1) % KEPT;
            self.newest = Some(finished);
        }
        let warm = f64::from(self.seen + 1) * GAIN >= 1.0;
        let gain = if warm {
            GAIN
        } else {
            1.0 / f64::from(self.seen + 1)
        };
        self.usual_gap += gain * (gap.min(longest_usual) - self.usual_gap);
        self.seen = self.seen.saturating_add(1).min(1 << 20);
        self.last = Some(last.max(finished));

        if self.newest.is_none_or(|newest| started >= newest) {
            return Noted::default();
        }
        let overlap = self
            .recent
            .iter()
            .flatten()
            .map(|&(from, to)| {
                seconds(
                    finished
                        .min(to)
                        .saturating_duration_since(started.max(from)),
                )
            })
            .sum::<f64>();
        Noted {
            overlap: overlap.min(latency),
            ended,
        }
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: Instant, ms: u64) -> Instant {
        base + Duration::from_millis(ms)
    }

    fn note(pauses: &mut Pauses, started: Instant, finished: Instant, expected: f64) -> Noted {
        let latency = seconds(finished.saturating_duration_since(started));
        pauses.note(started, finished, latency, expected)
    }

    #[test]
    fn a_gap_with_requests_in_flight_is_a_pause() {
        let base = crate::clock::now();
        let mut pauses = Pauses::default();
        for i in 0..50 {
            let noted = note(&mut pauses, at(base, i * 20), at(base, i * 20 + 20), 0.02);
            assert_eq!(noted, Noted::default());
        }
        // Started before the gap, ended 300 ms late.
        let noted = note(&mut pauses, at(base, 995), at(base, 1315), 0.02);
        assert_eq!(noted.ended, Some((at(base, 1000), at(base, 1315))));
        // Started within the pause: only its share is taken out.
        let noted = note(&mut pauses, at(base, 1215), at(base, 1335), 0.02);
        assert!((noted.overlap - 0.1).abs() < 1e-9, "{noted:?}");
        assert_eq!(noted.ended, None);
    }

    #[test]
    fn silence_without_requests_is_not_a_pause() {
        let base = crate::clock::now();
        let mut pauses = Pauses::default();
        for i in 0..50 {
            note(&mut pauses, at(base, i * 20), at(base, i * 20 + 20), 0.02);
        }
        assert_eq!(
            note(&mut pauses, at(base, 5000), at(base, 5020), 0.02),
            Noted::default()
        );
        // A request that is slow by itself, in a quiet hour, keeps its latency.
        assert_eq!(
            note(&mut pauses, at(base, 5020), at(base, 6020), 1.0),
            Noted::default()
        );
    }

    #[test]
    fn a_request_that_began_after_the_last_answer_has_spanned_no_pause() {
        let base = crate::clock::now();
        let mut pauses = Pauses::default();
        for i in 0..50 {
            note(&mut pauses, at(base, i * 20), at(base, i * 20 + 20), 0.02);
        }
        // It came a moment later to a quiet backend, and took long by itself.
        assert_eq!(
            note(&mut pauses, at(base, 1001), at(base, 1401), 0.02),
            Noted::default()
        );
    }

    #[test]
    fn the_last_pauses_are_taken_out_of_what_spans_several() {
        let base = crate::clock::now();
        let mut pauses = Pauses::default();
        for i in 0..50 {
            note(&mut pauses, at(base, i * 20), at(base, i * 20 + 20), 0.02);
        }
        for pause in 0..3 {
            let end = 1315 + pause * 400;
            let noted = note(&mut pauses, at(base, end - 330), at(base, end), 0.02);
            assert!(noted.ended.is_some(), "{noted:?}");
            for i in 1..=4 {
                let end = end + i * 20;
                note(&mut pauses, at(base, end - 20), at(base, end), 0.02);
            }
        }
        // From before the first to after the last.
        let long = note(&mut pauses, at(base, 990), at(base, 2200), 0.1);
        assert!((long.overlap - 0.955).abs() < 1e-6, "{long:?}");
    }
}

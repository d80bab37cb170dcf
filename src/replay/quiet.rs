//! Time in which nothing was recorded: tidegate was not running, or nobody came. Pure.

use crate::observe::trace::Entry;

/// So much of it is left, microseconds.
const LONGEST: u64 = 10 * 60 * 1_000_000;

/// What was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// How many times.
    pub(super) count: u32,
    /// How much in all, microseconds.
    pub(super) micros: u64,
}

/// The requests, in order of arrival, the first at 0. What lies beyond ten minutes between the end of all
/// that came before and the next arrival is cut out.
pub(super) fn cut(entries: &[Entry]) -> (Vec<Entry>, Cut) {
    let begin = entries.first().map_or(0, |entry| entry.arrived);
    let (mut cut, mut over) = (Cut::default(), 0);
    let shorter = entries.iter().map(|entry| {
        let arrived = entry.arrived - begin - cut.micros;
        let beyond = arrived.saturating_sub(over + LONGEST);
        if beyond > 0 {
            cut.count += 1;
            cut.micros += beyond;
        }
        let arrived = arrived - beyond;
        over = over.max(arrived + u64::from(entry.waited) + u64::from(entry.took));
        Entry { arrived, ..*entry }
    });
    let entries = shorter.collect();
    (entries, cut)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::served, *};

    const SECOND: u64 = 1_000_000;

    fn arrivals(of: &[(u64, f64)]) -> (Vec<u64>, Cut) {
        let entries: Vec<Entry> = of.iter().map(|&(at, took)| served(at, 1, took)).collect();
        let (entries, cut) = cut(&entries);
        let arrivals = entries.iter().map(|entry| entry.arrived / SECOND);
        (arrivals.collect(), cut)
    }

    #[test]
    fn ten_minutes_are_left_of_the_time_after_the_last_end() {
        let (at, cut) = arrivals(&[
            (7 * SECOND, 100.0),
            // The first is still there.
            (707 * SECOND, 1.0),
            (1308 * SECOND, 1.0),
            (1_000_000 * SECOND, 0.0),
            (1_000_601 * SECOND, 0.0),
            (1_000_602 * SECOND, 0.0),
        ]);
        assert_eq!(at, [0, 700, 1301, 1902, 2502, 2503]);
        let micros = (1_000_602 - 7 - 2503) * SECOND;
        assert_eq!(cut, Cut { count: 2, micros });
    }

    #[test]
    fn a_clock_that_was_set_is_a_pause() {
        let now = 1_800_000_000 * SECOND;
        let (at, cut) = arrivals(&[(3, 0.05), (now, 0.05), (u64::MAX, 0.05)]);
        assert_eq!((at, cut.count), (vec![0, 600, 1200], 2));
        assert_eq!(arrivals(&[]), (vec![], Cut::default()));
    }
}

//! Which endpoints of a trace were there when. Pure.

use crate::observe::trace::{Entry, Fate};

/// An endpoint, and when it was there: microseconds, `from` included, `to` not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) id: u32,
    from: u64,
    to: u64,
}

impl Lane {
    pub(super) fn is_there(&self, at: u64) -> bool {
        (self.from..self.to).contains(&at)
    }
}

/// Whether the backend had it.
pub(super) fn is_served(entry: &Entry) -> bool {
    matches!(entry.fate, Fate::Served(_))
}

/// When the backend got it.
pub(super) fn begun(entry: &Entry) -> u64 {
    entry.arrived + u64::from(entry.waited)
}

/// The endpoints, by their requests. An address that a reload changed has a new id: one that begins
/// when another has had its last request takes its place, and each is there until then.
pub(super) fn lanes(entries: &[Entry]) -> Vec<Lane> {
    let mut used: Vec<Lane> = Vec::new();
    for entry in entries {
        if !is_served(entry) {
            continue;
        }
        let at = begun(entry);
        match used.iter_mut().find(|lane| lane.id == entry.lane) {
            Some(lane) => (lane.from, lane.to) = (lane.from.min(at), lane.to.max(at)),
            None => used.push(Lane {
                id: entry.lane,
                from: at,
                to: at,
            }),
        }
    }
    let span = |lane: &Lane| {
        let others = || used.iter().filter(|other| other.id != lane.id);
        let begins_after = |end: u64| {
            let begins = used.iter().map(|lane| lane.from);
            begins.filter(|from| *from > end).min()
        };
        let before = others().map(|other| other.to);
        let before = before.filter(|to| *to < lane.from).max();
        Lane {
            id: lane.id,
            from: before.and_then(begins_after).unwrap_or(0),
            to: begins_after(lane.to).unwrap_or(u64::MAX),
        }
    };
    used.iter().map(span).collect()
}

/// The most endpoints that were there at once.
pub(super) fn side_by_side(lanes: &[Lane]) -> usize {
    let at = |from: u64| lanes.iter().filter(|lane| lane.is_there(from)).count();
    lanes.iter().map(|lane| at(lane.from)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::served, *};

    fn of(used: &[(u64, u32)]) -> Vec<Lane> {
        let entries: Vec<Entry> = used
            .iter()
            .map(|&(at, lane)| Entry {
                lane,
                ..served(at, 1, 0.05)
            })
            .collect();
        lanes(&entries)
    }

    #[test]
    fn one_that_begins_when_another_has_ended_takes_its_place() {
        let lanes = of(&[(1, 0), (2, 1), (8, 0), (9, 1), (12, 2), (20, 3), (25, 2)]);
        let there = |at| {
            let there = lanes.iter().filter(|lane| lane.is_there(at));
            there.map(|lane| lane.id).collect::<Vec<_>>()
        };
        assert_eq!((there(0), there(11)), (vec![0, 1], vec![0, 1]));
        assert_eq!((there(12), there(u64::MAX - 1)), (vec![2, 3], vec![2, 3]));
        assert_eq!(side_by_side(&lanes), 2);
        assert_eq!(side_by_side(&of(&[(1, 0), (5, 1), (6, 2), (9, 0)])), 2);
        assert_eq!(side_by_side(&of(&[])), 0);
    }
}

//! Slots learned from the accept queue. A server that accepts only when it can work on a request has all its
//! workers busy while somebody waits in the queue: what it has accepted then is what it can run.

/// Looks that the median is taken over: 0.8 s under load.
const LOOKS: usize = 16;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    /// The latest looks that say something, as a ring.
    accepted: Vec<u32>,
    next: usize,
    slots: Option<u32>,
}

impl Learned {
    /// One look under load.
    pub fn note(&mut self, in_flight: u32, queued: u32) {
        let accepted = in_flight.saturating_sub(queued);
        // Nobody waits, although more are in flight than was thought possible: there are more workers.
        let more = queued == 0 && self.slots.is_some_and(|slots| in_flight > slots);
        // What waits may have been sent by somebody who bypasses the proxy.
        if accepted == 0 || !(queued > 0 || more) {
            return;
        }
        if self.accepted.len() < LOOKS {
            self.accepted.push(accepted);
        } else {
            self.accepted[self.next] = accepted;
        }
        self.next = (self.next + 1) % LOOKS;
        if self.accepted.len() == LOOKS {
            let mut sorted = self.accepted.clone();
            sorted.sort_unstable();
            self.slots = Some(sorted[LOOKS / 2]);
        }
    }

    /// The slots, once there were enough looks.
    pub fn slots(&self) -> Option<u32> {
        self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_while_somebody_waits_is_what_runs() {
        let mut learned = Learned::default();
        for look in 0..15_u32 {
            learned.note(4 + look % 3, 2 + look % 3);
            learned.note(2, 0);
        }
        assert_eq!(learned.slots(), None);
        learned.note(9, 7);
        assert_eq!(learned.slots(), Some(2));
        // One on its way is counted as accepted now and then.
        for _ in 0..5 {
            learned.note(9, 6);
        }
        assert_eq!(learned.slots(), Some(2));
        // Strangers in the queue, and nobody in it.
        learned.note(1, 5);
        learned.note(2, 0);
        assert_eq!(learned.slots(), Some(2));
    }

    #[test]
    fn more_and_fewer_workers_are_noticed() {
        let mut learned = Learned::default();
        for _ in 0..LOOKS {
            learned.note(3, 1);
        }
        assert_eq!(learned.slots(), Some(2));
        for _ in 0..LOOKS {
            learned.note(3, 0);
        }
        assert_eq!(learned.slots(), Some(3));
        for _ in 0..LOOKS {
            learned.note(4, 3);
        }
        assert_eq!(learned.slots(), Some(1));
    }
}

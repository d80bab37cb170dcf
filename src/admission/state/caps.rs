//! What is in flight of the routes that have a cap of their own.

use crate::admission::Cap;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Caps {
    /// By route; only those with somebody in flight.
    in_flight: Vec<(u16, u32)>,
}

impl Caps {
    /// Whether such a request is held up by its route's cap.
    pub(super) fn is_reached(&self, cap: Option<Cap>) -> bool {
        cap.is_some_and(|cap| {
            let mut known = self.in_flight.iter();
            known.any(|&(id, in_flight)| id == cap.id && in_flight >= cap.max)
        })
    }

    pub(super) fn enter(&mut self, cap: Option<Cap>) {
        let Some(cap) = cap else { return };
        match self.in_flight.iter_mut().find(|(id, _)| *id == cap.id) {
            Some((_, in_flight)) => *in_flight += 1,
            None => self.in_flight.push((cap.id, 1)),
        }
    }

    pub(super) fn leave(&mut self, cap: Option<Cap>) {
        if let Some(cap) = cap
            && let Some(at) = self.in_flight.iter().position(|(id, _)| *id == cap.id)
        {
            self.in_flight[at].1 = self.in_flight[at].1.saturating_sub(1);
            if self.in_flight[at].1 == 0 {
                self.in_flight.swap_remove(at);
            }
        }
    }
}

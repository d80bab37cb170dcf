//! The flow-control window of a connection: how much a client may send before it is read, all streams
//! together. The protocol grants some of it from the start, which no server can take away. What is granted
//! beyond that lets an upload go on while another one is not being read, and is charged to the budget: an
//! open window is memory that the client may fill. Nor can it be closed again, so it is charged until the
//! connection ends.

use std::sync::Arc;

use super::STREAM_WINDOW;
use crate::buffer::{Budget, Direction, Reservation};

/// What each connection begins with, bytes: RFC 9113 6.9.2.
const GIVEN: u32 = 65_535;
/// The most that is granted beyond that: fifteen uploads may stall while another one goes on.
const MORE_MAX: u64 = 15 * STREAM_WINDOW as u64;

/// Alive while the body of a request may come.
pub type Upload = Arc<()>;

/// See the module's documentation.
#[derive(Debug)]
pub struct Window {
    held: Reservation,
    uploads: Upload,
}

impl Window {
    /// Of a connection that begins now.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self {
            held: budget.reservation(Direction::Request),
            uploads: Upload::default(),
        }
    }

    /// One more body is to come.
    pub fn upload(&self) -> Upload {
        self.uploads.clone()
    }

    /// Opens the window for the bodies that are to come, as far as the budget has something to spare. Returns
    /// the new size, if it has changed.
    pub fn widen(&mut self) -> Option<u32> {
        // The first upload has what is granted from the start, and this holds one reference itself.
        let others = Arc::strong_count(&self.uploads).saturating_sub(2);
        let step = u64::from(STREAM_WINDOW);
        let wanted = MORE_MAX.min(others as u64 * step);
        let before = self.held.bytes();
        while self.held.bytes() < wanted && self.held.grow_early(step) {}
        if self.held.bytes() == before {
            return None;
        }
        let held = u32::try_from(self.held.bytes()).unwrap_or_default();
        Some(GIVEN + held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn it_is_opened_for_uploads_side_by_side_and_held_of_the_budget() {
        let budget = Budget::new(64 * KIB * KIB);
        let used = || budget.used(Direction::Request);
        let mut window = Window::new(&budget);
        let mut uploads = vec![window.upload()];
        assert_eq!(window.widen(), None, "it has its own window");
        uploads.push(window.upload());
        assert_eq!(window.widen(), Some(GIVEN + STREAM_WINDOW));
        assert_eq!(used(), u64::from(STREAM_WINDOW));
        uploads.clear();
        uploads.extend([window.upload(), window.upload()]);
        assert_eq!(window.widen(), None, "it is open still");
        uploads.extend((0..98).map(|_| window.upload()));
        assert_eq!(window.widen(), Some(GIVEN + MORE_MAX as u32), "no further");
        assert_eq!(window.widen(), None);
        drop(window);
        assert_eq!(used(), 0);
    }

    #[test]
    fn it_takes_no_more_of_the_budget_than_there_is_to_spare() {
        let budget = Budget::new(4 * KIB * KIB);
        let many: Vec<_> = (0..100)
            .map(|_| {
                let mut window = Window::new(&budget);
                let uploads: Vec<_> = (0..4).map(|_| window.upload()).collect();
                (window.widen(), window, uploads)
            })
            .collect();
        let used = budget.used(Direction::Request);
        assert_eq!(used, 512 * KIB, "an eighth");
        let sizes: Vec<_> = many.iter().filter_map(|(size, ..)| *size).collect();
        let three = GIVEN + 3 * STREAM_WINDOW;
        assert_eq!(sizes, [three, three, GIVEN + 2 * STREAM_WINDOW]);
    }
}

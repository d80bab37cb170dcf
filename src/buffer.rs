//! One budget for every byte that tidegate holds for somebody else.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the backend.
    Request,
    /// From the backend to the client.
    Response,
}

/// Bounds the buffered bytes of all requests and responses together; `buffers.total`.
#[derive(Debug)]
pub struct Budget {
    total: AtomicU64,
    request: AtomicU64,
    response: AtomicU64,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total: AtomicU64::new(total),
            request: AtomicU64::new(0),
            response: AtomicU64::new(0),
        })
    }

    /// Changes the bound. What is held already stays.
    pub fn set_total(&self, total: u64) {
        self.total.store(total, Relaxed);
    }

    /// Bytes held in that direction.
    pub fn used(&self, direction: Direction) -> u64 {
        self.cell(direction).load(Relaxed)
    }

    /// An empty reservation, to be grown.
    pub fn reservation(self: &Arc<Self>, direction: Direction) -> Reservation {
        Reservation {
            budget: self.clone(),
            direction,
            bytes: 0,
        }
    }

    fn cell(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Request => &self.request,
            Direction::Response => &self.response,
        }
    }
}

/// Bytes taken from a [`Budget`]; they go back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    direction: Direction,
    bytes: u64,
}

impl Reservation {
    /// Takes `bytes` more; false, and nothing taken, if the budget does not have them.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let budget = &self.budget;
        let cell = budget.cell(self.direction);
        // Two cells, so that the bound can be overshot by as many racing growers as there are
        // threads: it is a bound for memory, not an invariant.
        let used = budget.request.load(Relaxed) + budget.response.load(Relaxed);
        if used.saturating_add(bytes) > budget.total.load(Relaxed) {
            return false;
        }
        cell.fetch_add(bytes, Relaxed);
        self.bytes += bytes;
        true
    }

    /// Gives `bytes` back, at most what was taken.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.cell(self.direction).fetch_sub(bytes, Relaxed);
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(100);
        let mut one = budget.reservation(Direction::Request);
        let mut other = budget.reservation(Direction::Response);
        assert!(one.grow(60));
        assert!(!other.grow(41), "both directions share the budget");
        assert!(other.grow(40));
        one.shrink(1000);
        assert_eq!(one.bytes(), 0);
        drop(other);
        assert_eq!(budget.used(Direction::Request), 0);
        assert_eq!(budget.used(Direction::Response), 0);
    }
}

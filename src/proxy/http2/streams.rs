//! The streams of one connection that have not ended. Each counts as being served to its very end.

use std::{sync::Arc, task::Waker, time::Duration};

use crate::{
    buffer::Budget,
    proxy::state::{Stall, State},
    sync::{Mutex, lock},
};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Streams {
    state: Arc<State>,
    connection: Arc<Mutex<Option<Waker>>>,
    write_timeout: Duration,
    budget: Arc<Budget>,
}

impl Streams {
    pub fn new(state: Arc<State>, write_timeout: Duration, budget: Arc<Budget>) -> Self {
        Self {
            state,
            connection: Arc::default(),
            write_timeout,
            budget,
        }
    }

    /// Whom to wake at the end of each stream.
    pub fn wake(&self, waker: &Waker) {
        let mut known = lock(&self.connection);
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// One more, from now on.
    pub fn open(&self) -> Open {
        self.state.serve();
        Open(self.clone())
    }
}

/// A stream that has not ended.
#[derive(Debug)]
pub struct Open(Streams);

impl Open {
    /// Watches how long its client lets it wait for room.
    pub fn stall(&self) -> Stall {
        let stall = Stall::new(self.0.write_timeout, self.0.budget.clone());
        stall.within(self.0.state.share())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state.answered();
        // It may be the last one, and nothing to be written: the connection has to see that it is
        // idle.
        let waker = lock(&self.0.connection).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

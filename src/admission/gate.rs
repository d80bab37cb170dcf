//! The lock and the wakers around [`State`]. Wakes happen outside the lock.

use std::{
    task::{Context, Poll, Waker},
    time::Instant,
};

use super::{
    Ask, Cap, Refusal,
    state::{Admitted, Entry, LaneId, Seq, Settings, Snapshot, State, Verdict, Verdicts},
};
use crate::{
    config::Class,
    control::Group,
    sync::{Arc, Mutex, MutexGuard, lock},
};

/// Counts the requests in flight and lets no more pass than the limit. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    waiters: Vec<Waiter>,
    /// Free places in `waiters`.
    free: Vec<u32>,
    /// Kept for its capacity.
    verdicts: Verdicts,
}

#[derive(Debug, Default)]
struct Waiter {
    waker: Option<Waker>,
    verdict: Option<Verdict>,
}

/// The gate's first answer.
#[derive(Debug)]
pub enum Entered {
    /// Go.
    Admitted(Permit),
    /// Wait for the ticket, at most until the time given.
    Queued(Ticket, Instant),
    /// No.
    Refused(Refusal),
}

impl Gate {
    /// A gate without lanes.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                state: State::new(settings, now),
                waiters: Vec::new(),
                free: Vec::new(),
                verdicts: Vec::new(),
            })),
        }
    }

    /// A request arrives.
    pub fn enter(&self, ask: &Ask, now: Instant) -> Entered {
        let mut inner = lock(&self.inner);
        let key = inner.next();
        let Inner {
            state, verdicts, ..
        } = &mut *inner;
        let entry = state.enter(ask, key, now, verdicts);
        // Most do not wait, and need no place.
        if matches!(entry, Entry::Queued { .. }) {
            inner.claim();
        }
        finish(inner);
        match entry {
            Entry::Admitted(admitted) => {
                Entered::Admitted(self.permit(admitted, ask.group, ask.cap, now))
            }
            Entry::Refused(refusal) => Entered::Refused(refusal),
            Entry::Queued { seq, expires } => Entered::Queued(
                Ticket {
                    gate: self.clone(),
                    key,
                    seq,
                    class: ask.class,
                    group: ask.group,
                    cap: ask.cap,
                    settled: false,
                },
                expires,
            ),
        }
    }

    /// Whether such a request would be refused at once: asked before an upload is read.
    pub fn would_refuse(&self, ask: &Ask, now: Instant) -> Option<Refusal> {
        lock(&self.inner).state.would_refuse(ask, now)
    }

    /// Changes the state, then wakes the waiters that it has decided about.
    pub fn change<T>(&self, change: impl FnOnce(&mut State, &mut Verdicts) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = inner.change(change);
        finish(inner);
        result
    }

    /// The same for a caller with a lock of its own, which [`wake`]s them when it has given that back. (Each request
    /// goes through [`change`](Self::change): there, to return nobody would cost more than to wake nobody.)
    #[must_use]
    pub(super) fn change_quietly(
        &self,
        change: impl FnOnce(&mut State, &mut Verdicts),
    ) -> Vec<Waker> {
        let mut inner = lock(&self.inner);
        inner.change(change);
        inner.deliver()
    }

    /// Sets a lane's limit.
    pub fn set_limit(&self, lane: LaneId, limit: u32, now: Instant) {
        self.change(|state, out| state.set_limit(lane, limit, now, out));
    }

    /// What it looks like now.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        lock(&self.inner).state.snapshot(now)
    }

    fn permit(&self, admitted: Admitted, group: Group, cap: Option<Cap>, now: Instant) -> Permit {
        Permit {
            gate: self.clone(),
            admitted,
            group,
            cap,
            started: now,
            released: false,
            is_stream: false,
        }
    }
}

impl Inner {
    fn change<T>(&mut self, change: impl FnOnce(&mut State, &mut Verdicts) -> T) -> T {
        change(&mut self.state, &mut self.verdicts)
    }

    /// The place that the next waiter gets.
    fn next(&self) -> u32 {
        let new = self.waiters.len() as u32;
        self.free.last().copied().unwrap_or(new)
    }

    /// Takes it.
    fn claim(&mut self) {
        if self.free.pop().is_none() {
            self.waiters.push(Waiter::default());
        }
    }

    /// Frees a waiter's place. The waker, if any, has to be dropped outside the lock: dropping the last waker
    /// of a task drops the task, which may have permits and tickets of its own to give back.
    fn forget(&mut self, key: u32) -> Option<Waker> {
        self.free.push(key);
        std::mem::take(&mut self.waiters[key as usize]).waker
    }

    /// Hands the verdicts to their waiters; the wakers are for outside the lock.
    fn deliver(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for (key, verdict) in self.verdicts.drain(..) {
            let waiter = &mut self.waiters[key as usize];
            debug_assert!(waiter.verdict.is_none(), "one verdict for each waiter");
            waiter.verdict = Some(verdict);
            wakers.extend(waiter.waker.take());
        }
        wakers
    }
}

/// Unlocks, then wakes the waiters that have a verdict. Mostly there are none.
fn finish(mut inner: MutexGuard<'_, Inner>) {
    if inner.verdicts.is_empty() {
        return;
    }
    let wakers = inner.deliver();
    drop(inner);
    wake(wakers);
}

/// Wakes them, outside every lock: whoever polls at once may give a permit back, and so come here again.
pub(super) fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

/// A place in the queue. Dropping it gives the place up, or the permit if it was just granted.
#[derive(Debug)]
pub struct Ticket {
    gate: Gate,
    key: u32,
    seq: Seq,
    class: Class,
    group: Group,
    cap: Option<Cap>,
    settled: bool,
}

impl Ticket {
    /// Ready when the gate has decided.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Result<Permit, Refusal>> {
        let mut inner = lock(&self.gate.inner);
        let waiter = &mut inner.waiters[self.key as usize];
        let Some(verdict) = waiter.verdict.take() else {
            let before = match &waiter.waker {
                Some(waker) if waker.will_wake(cx.waker()) => None,
                _ => waiter.waker.replace(cx.waker().clone()),
            };
            drop(inner);
            drop(before);
            return Poll::Pending;
        };
        let waker = inner.forget(self.key);
        drop(inner);
        drop(waker);
        self.settled = true;
        Poll::Ready(match verdict {
            Verdict::Admitted(admitted) => {
                Ok(self.gate.permit(admitted, self.group, self.cap, now))
            }
            Verdict::Refused(refusal) => Err(refusal),
        })
    }

    /// Time is up: the refusal, unless the gate has decided meanwhile (then poll once more).
    pub fn expire(&mut self, now: Instant) -> Option<Refusal> {
        let mut inner = lock(&self.gate.inner);
        let refusal = inner.state.leave(self.seq, self.class, now)?;
        let waker = inner.forget(self.key);
        drop(inner);
        drop(waker);
        self.settled = true;
        Some(refusal)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut inner = lock(&self.gate.inner);
        let Inner {
            state,
            waiters,
            verdicts,
            ..
        } = &mut *inner;
        match waiters[self.key as usize].verdict.take() {
            // Nobody is there to use it: the next in line gets it.
            Some(Verdict::Admitted(admitted)) => {
                let now = state.updated();
                state.put_back(admitted.lane, self.cap, now, verdicts);
            }
            Some(Verdict::Refused(_)) => {}
            None => {
                let now = state.updated();
                state.leave(self.seq, self.class, now);
            }
        }
        let waker = inner.forget(self.key);
        finish(inner);
        drop(waker);
    }
}

/// The right to have one request at the backend. It comes back when dropped, and not before: keep it
/// until the backend is done, not until the client is.
#[must_use = "a dropped permit is given back at once"]
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    admitted: Admitted,
    group: Group,
    cap: Option<Cap>,
    started: Instant,
    released: bool,
    /// For the limiter, here because there is room for it here.
    pub(super) is_stream: bool,
}

impl Permit {
    /// The endpoint it is for.
    pub fn lane(&self) -> LaneId {
        self.admitted.lane
    }

    /// Requests in flight at that endpoint when it was granted, this one included.
    pub fn in_flight(&self) -> u32 {
        self.admitted.in_flight
    }

    /// When it was granted.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Which requests it is expected to cost as much as.
    pub(super) fn group(&self) -> Group {
        self.group
    }

    /// In a dry run: why the request would have been refused.
    pub fn would_refuse(&self) -> Option<super::Reason> {
        self.admitted.would_refuse
    }

    /// Gives it back, at a time the caller has read already.
    pub fn release(mut self, now: Instant) {
        self.give_back(now);
    }

    fn give_back(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.released, true) {
            let (lane, cap) = (self.admitted.lane, self.cap);
            self.gate
                .change(|state, out| state.release(lane, cap, now, out));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.released {
            self.give_back(crate::clock::now());
        }
    }
}

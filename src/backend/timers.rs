//! How long a request at the backend is waited for. Nearly all of these waits end long before their time,
//! and there is one for each request: so a timer that was set for one of them goes on to the next as it is,
//! and is set anew only if it goes off.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Instant,
};

use tokio::{task::unconstrained, time::Sleep};

use crate::{
    clock,
    sync::{Mutex, lock},
};

/// The most timers that wait for somebody to use them again.
const SPARE_MAX: usize = 256;

/// The timers of one runtime. Whoever uses them runs there.
#[derive(Debug, Default)]
pub struct Timers(Mutex<Vec<Pin<Box<Sleep>>>>);

/// A wait with an end.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    timers: &'a Timers,
    timer: Option<Pin<Box<Sleep>>>,
    due: Instant,
    /// The timer knows whom to wake.
    heard: bool,
}

impl Timers {
    /// A wait until `due`.
    pub(super) fn until(&self, due: Instant) -> Patience<'_> {
        Patience {
            timers: self,
            timer: None,
            due,
            heard: false,
        }
    }
}

impl Patience<'_> {
    /// Ready when it is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.due.into();
        let timer = self.timer.get_or_insert_with(|| {
            let spare = lock(&self.timers.0).pop();
            let mut timer = spare.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            timer
        });
        // Checking whether the timer has gone off is cheap; asking to be woken by it is not.
        while !self.heard || timer.is_elapsed() {
            // Unconstrained, or a backend that sends interim answers without end spends the task's whole
            // budget each time, and the timer never gets its turn.
            self.heard = pin!(unconstrained(timer.as_mut())).poll(cx).is_pending();
            if !self.heard {
                if timer.deadline() >= due {
                    return Poll::Ready(());
                }
                // It went off for an earlier wait.
                timer.as_mut().reset(due);
            }
        }
        Poll::Pending
    }

    /// Once it is over: whether this process did not run meanwhile, so that it goes on; see
    /// [`clock::overslept`].
    pub(super) fn overslept(&mut self) -> bool {
        let Some(timer) = &mut self.timer else {
            return false;
        };
        let overslept = clock::overslept(timer.as_mut());
        if overslept {
            self.due = timer.deadline().into_std();
        }
        overslept
    }

    /// Once it is over: it goes on until `due`.
    pub(super) fn extend(&mut self, due: Instant) {
        self.due = due;
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        let Some(mut timer) = self.timer.take() else {
            return;
        };
        // Replaces the waker, so that the timer neither wakes the task any more nor keeps it in memory.
        let mut nobody = Context::from_waker(Waker::noop());
        if pin!(unconstrained(timer.as_mut()))
            .poll(&mut nobody)
            .is_pending()
        {
            let mut spare = lock(&self.timers.0);
            if spare.len() < SPARE_MAX {
                spare.push(timer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Waits for that long in vain.
    fn in_vain(timers: &Timers, wait: Duration) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut patience = timers.until(clock::now() + wait);
        assert!(patience.poll(&mut cx).is_pending());
    }

    fn spare(timers: &Timers) -> usize {
        lock(&timers.0).len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_takes_its_time_whatever_its_timer_was_set_for() {
        let timers = Timers::default();
        for before in [SECOND, 2 * SECOND, 3 * SECOND] {
            in_vain(&timers, before);
            assert_eq!(spare(&timers), 1, "the timer is there for the next");
            let since = clock::now();
            let mut patience = timers.until(since + 2 * SECOND);
            poll_fn(|cx| patience.poll(cx)).await;
            let took = clock::now() - since;
            assert!((2 * SECOND..3 * SECOND).contains(&took), "{took:?}");
            drop(patience);
            assert_eq!(spare(&timers), 0, "it has gone off");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_goes_on() {
        let timers = Timers::default();
        let since = clock::now();
        let mut patience = timers.until(since + SECOND);
        poll_fn(|cx| patience.poll(cx)).await;
        assert!(!patience.overslept());
        patience.extend(since + 3 * SECOND);
        poll_fn(|cx| patience.poll(cx)).await;
        assert!(clock::now() - since >= 3 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_spare_timer_wakes_nobody_and_keeps_nobody() {
        let timers = Timers::default();
        let count = std::sync::Arc::new(());
        struct Held(#[allow(dead_code)] std::sync::Arc<()>);
        impl std::task::Wake for Held {
            fn wake(self: std::sync::Arc<Self>) {
                panic!("nobody waits");
            }
        }
        {
            let waker = Waker::from(std::sync::Arc::new(Held(count.clone())));
            let mut patience = timers.until(clock::now() + SECOND);
            assert!(patience.poll(&mut Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(std::sync::Arc::strong_count(&count), 1);
        tokio::time::sleep(2 * SECOND).await;
        // It went off while it was spare.
        in_vain(&timers, SECOND);
        assert_eq!(spare(&timers), 1);
    }
}

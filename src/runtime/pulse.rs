//! Whether the threads that serve clients run.

use std::time::{Duration, Instant};

use tokio::{runtime::Handle, sync::watch, time};

use crate::clock;

/// For how long one look waits for a pulse.
const WAIT: Duration = Duration::from_millis(500);
/// Without a pulse for so long, a thread hangs. On a busy machine, or one whose quota is used up, a thread may well not
/// run for a second, and whoever is told that it hangs kills the whole process.
const HANGS: Duration = Duration::from_secs(5);

/// Looks for the pulse when it is asked for, so that it costs nothing otherwise.
#[derive(Debug, Default)]
pub struct Heart {
    /// Since when a pulse is waited for, if one is.
    waiting: watch::Sender<Option<Instant>>,
}

impl Heart {
    /// Whether these threads run; or for how long one of them has had no pulse, if that is too long. The first look at
    /// one that hangs cannot tell yet; the next can, if it comes late enough.
    ///
    /// # Errors
    /// See above.
    pub async fn look(&self, threads: &[Handle]) -> Result<(), Duration> {
        let known = *self.waiting.borrow();
        let since = known.unwrap_or_else(|| {
            let now = clock::now();
            self.waiting.send_replace(Some(now));
            let (threads, waiting) = (threads.to_vec(), self.waiting.clone());
            tokio::spawn(async move {
                pulse(&threads).await;
                waiting.send_replace(None);
            });
            now
        });
        let mut waiting = self.waiting.subscribe();
        if time::timeout(WAIT, waiting.wait_for(Option::is_none))
            .await
            .is_ok()
        {
            return Ok(());
        }
        let without = clock::now().saturating_duration_since(since);
        if without < HANGS {
            Ok(())
        } else {
            Err(without)
        }
    }
}

/// Done when every thread has run something new: one that hangs keeps it waiting. A thread that has
/// ended does not.
pub async fn pulse(threads: &[Handle]) {
    for thread in threads {
        let _ = thread.spawn(std::future::ready(())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    #[tokio::test]
    async fn a_thread_that_hangs_has_no_pulse() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let threads = vec![Handle::current(), runtime.handle().clone()];
        let (go_on, hang) = mpsc::channel::<()>();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                let _ = hang.recv();
                let _ = ended.await;
            });
        });
        let early = time::timeout(Duration::from_millis(50), pulse(&threads)).await;
        assert!(early.is_err(), "it hangs, and yet there is a pulse");

        go_on.send(()).expect("it waits for this");
        pulse(&threads).await;

        end.send(()).expect("it waits for this");
        thread.join().expect("it ends");
        pulse(&threads).await;
    }

    #[tokio::test]
    async fn a_thread_is_said_to_hang_only_after_a_while() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        // Nobody runs it.
        let threads = [runtime.handle().clone()];
        let heart = Heart::default();
        assert_eq!(heart.look(&threads).await, Ok(()), "it may just be busy");
        let long_ago = clock::now().checked_sub(HANGS).expect("no new machine");
        heart.waiting.send_replace(Some(long_ago));
        let without = heart.look(&threads).await.expect_err("it hangs");
        assert!(without >= HANGS);
        let thread = thread::spawn(move || runtime.block_on(tokio::task::yield_now()));
        thread.join().expect("it runs on");
        assert_eq!(heart.look(&threads).await, Ok(()));
    }
}

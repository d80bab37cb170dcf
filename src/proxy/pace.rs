//! How slow an upload may be.

use std::{
    future::Future,
    pin::Pin,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use tokio::time::Sleep;

use crate::{clock, config::Server};

/// The least speed of an upload: so many bytes a second, and a grace. A client may use up the grace and earn
/// it again, but not more than that: a client that sends fast at first may not stop for longer afterwards.
///
/// Only the time in which somebody waits for the client counts: a backend that takes an upload slowly is
/// not its fault.
pub struct Pace {
    grace: Duration,
    rate: u64,
    /// How long the client may be waited for.
    left: Duration,
    /// When that is over, while it is waited for.
    due: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub fn new(server: &Server) -> Self {
        Self {
            grace: server.body_timeout,
            rate: server.body_min_rate,
            left: server.body_timeout,
            due: None,
            timer: None,
        }
    }

    /// So many bytes have come.
    pub fn note(&mut self, bytes: usize) {
        if let Some(due) = self.due.take() {
            self.left = due.saturating_duration_since(clock::now());
        }
        let earned = match self.rate {
            // No rate is asked for: whatever comes is enough.
            0 => self.grace,
            rate => Duration::from_secs_f64(bytes as f64 / rate as f64),
        };
        self.left = self.left.saturating_add(earned).min(self.grace);
    }

    /// Done when the client has been waited for too long.
    pub fn poll_late(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        let due = match self.due {
            Some(due) => due,
            None => {
                let now = clock::now();
                // A timer that went off while nobody waited must not be taken for one that was overslept.
                self.timer
                    .take_if(|timer| timer.deadline().into_std() <= now);
                *self.due.insert(now + self.left)
            }
        };
        loop {
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            std::task::ready!(timer.as_mut().poll(cx));
            if clock::overslept(timer.as_mut()) {
                continue;
            }
            if clock::now() >= due {
                return Poll::Ready(());
            }
            // It was set for an earlier part. The deadline only ever moves later, so a new timer is set.
            self.timer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::config::Config;

    const MINUTE: Duration = Duration::from_secs(60);

    /// 15 s, then 500 bytes a second.
    fn pace() -> Pace {
        Pace::new(&Config::default().server)
    }

    /// Waits so long for the next part; whether the client's time is over before that.
    async fn is_late(pace: &mut Pace, within: Duration) -> bool {
        timeout(within, poll_fn(|cx| pace.poll_late(cx)))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn fast_first_bytes_buy_no_more_than_the_grace() {
        let mut pace = pace();
        pace.note(1_000_000);
        let start = clock::now();
        while !is_late(&mut pace, Duration::from_secs(4)).await {
            pace.note(1);
        }
        let waited = clock::now() - start;
        let grace = Duration::from_secs(15)..Duration::from_millis(15_500);
        assert!(grace.contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_at_the_rate_is_never_late() {
        let mut pace = pace();
        for _ in 0..100 {
            assert!(!is_late(&mut pace, Duration::from_secs(10)).await);
            pace.note(5_100);
        }
        assert!(is_late(&mut pace, MINUTE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_nobody_wants_a_part_does_not_count() {
        let mut pace = pace();
        for _ in 0..10 {
            assert!(!is_late(&mut pace, Duration::from_secs(1)).await);
            pace.note(1);
            sleep(MINUTE).await;
        }
        assert!(!is_late(&mut pace, Duration::from_secs(4)).await);
        assert!(is_late(&mut pace, Duration::from_secs(2)).await);
    }
}

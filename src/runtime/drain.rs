//! Going away without losing a request.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    clock,
    proxy::{Phase, Shared},
    sync::{Mutex, lock},
};

/// Between two looks at whether everything is finished.
const LOOK: Duration = Duration::from_millis(10);
/// When a successor takes the new connections: how long everything must have been finished. A client
/// that has just been let in gets this long to send its request.
const QUIET: Duration = Duration::from_millis(100);
/// How long an endpoint is given to accept when asked.
const PATIENCE: Duration = Duration::from_millis(200);
/// After a preStop hook's drain, the time in which a shutdown must follow: an application that is
/// only restarted runs its preStop hook too.
const UNDRAIN_AFTER: Duration = Duration::from_secs(5);

/// The one drain of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    inner: Arc<Inner>,
}

/// How to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// New requests are refused.
    Refusing,
    /// New requests are refused, but if no shutdown follows, all is as before.
    Passing,
    /// New connections go to a successor; the requests of those we have are served.
    HandedOver,
    /// New requests are refused without any delay: the backend has ended.
    Bereft,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// The drain under way, if any.
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Whether everything is finished.
    done: watch::Sender<bool>,
    /// Tells those who wait for that of a drain that was undone.
    undone: watch::Sender<()>,
    /// The process is on its way out: there is no way back.
    last: watch::Sender<bool>,
}

impl Drain {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            inner: Arc::new(Inner {
                shared,
                task: Mutex::new(None),
                done: watch::Sender::new(false),
                undone: watch::Sender::new(()),
                last: watch::Sender::new(false),
            }),
        }
    }

    /// Starts, unless it is under way: keep serving for `drain.delay` if there is a backend, then refuse new requests
    /// and let the others finish, for at most `drain.timeout`.
    pub fn start(&self, way: Way) {
        let mut task = lock(&self.inner.task);
        if task.is_some() {
            return;
        }
        let inner = self.inner.clone();
        *task = Some(tokio::spawn(async move {
            match way {
                Way::Refusing => inner.go().await,
                Way::HandedOver => inner.serve_the_last().await,
                Way::Bereft => inner.refuse().await,
                Way::Passing => {
                    inner.go().await;
                    inner.undrain_unless_last().await;
                }
            }
        }));
    }

    /// Whether one is under way.
    pub fn is_under_way(&self) -> bool {
        lock(&self.inner.task).is_some()
    }

    /// Serves again.
    ///
    /// # Errors
    /// If the process is on its way out.
    pub fn undo(&self) -> Result<(), String> {
        if *self.inner.last.borrow() {
            return Err("the process is shutting down".to_owned());
        }
        if let Some(task) = lock(&self.inner.task).take() {
            task.abort();
        }
        self.inner.serve_again();
        Ok(())
    }

    /// Done when everything is finished, or the time for it is over; false if the drain was undone before that.
    pub async fn done(&self) -> bool {
        let mut done = self.inner.done.subscribe();
        let mut undone = self.inner.undone.subscribe();
        tokio::select! {
            biased;
            _ = done.wait_for(|done| *done) => true,
            _ = undone.changed() => false,
        }
    }

    /// Drains for good, then closes what is idle. A drain that is under way goes on in its own way.
    pub async fn finish(&self, way: Way) {
        self.inner.last.send_replace(true);
        self.start(way);
        // It cannot be undone.
        let _ = self.inner.done.subscribe().wait_for(|done| *done).await;
        self.inner.shared.set_phase(Phase::Closing);
    }
}

impl Inner {
    async fn go(&self) {
        let delay = self.shared.live().config.drain.delay;
        if !delay.is_zero() && self.can_serve().await {
            self.shared.set_phase(Phase::Leaving);
            tokio::time::sleep(delay).await;
        }
        self.refuse().await;
    }

    /// Whether any endpoint is up. In a pod the application has ended before its sidecar is told to.
    async fn can_serve(&self) -> bool {
        let looks = self.shared.look_at_all(PATIENCE).join_all().await;
        looks.contains(&true)
    }

    async fn refuse(&self) {
        self.shared.set_phase(Phase::Draining);
        let timeout = self.shared.live().config.drain.timeout;
        self.wait(timeout, Duration::ZERO).await;
    }

    /// Nobody is refused: no new connections come, and each answer is the last on its own.
    async fn serve_the_last(&self) {
        self.shared.set_phase(Phase::Leaving);
        let timeout = self.shared.live().config.drain.timeout;
        self.wait(timeout, QUIET).await;
    }

    /// Waits until everything has been finished for as long as `quiet`, or the time is over.
    async fn wait(&self, timeout: Duration, quiet: Duration) {
        let until = clock::now() + timeout;
        let mut busy = clock::now();
        loop {
            let now = clock::now();
            if !self.is_empty() {
                busy = now;
            } else if now.saturating_duration_since(busy) >= quiet {
                break;
            }
            if now >= until {
                tracing::warn!(
                    in_flight = self.shared.limiter.snapshot(now).in_flight(),
                    "drain.timeout is over, the rest is cut off"
                );
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.done.send_replace(true);
    }

    /// Every client has its answer. What the backend still works on is for nobody.
    fn is_empty(&self) -> bool {
        let snapshot = self.shared.limiter.snapshot(clock::now());
        let abandoned = self.shared.metrics.orphaned.get().max(0);
        self.shared.metrics.connections_active.get() <= 0
            && snapshot.queued() == 0
            && i64::from(snapshot.in_flight()) <= abandoned
    }

    async fn undrain_unless_last(&self) {
        let mut last = self.last.subscribe();
        let ends = last.wait_for(|last| *last);
        if tokio::time::timeout(UNDRAIN_AFTER, ends).await.is_err() {
            tracing::info!("no shutdown followed the drain: serving again");
            lock(&self.task).take();
            self.serve_again();
        }
    }

    fn serve_again(&self) {
        self.undone.send_replace(());
        self.done.send_replace(false);
        self.shared.set_phase(Phase::Serving);
    }
}

//! Going away without losing a request.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

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
/// After a preStop hook's drain, the time in which a shutdown or a restart of the application must follow. gunicorn
/// gives its workers 30 s, in which its socket still takes connections that nobody will answer.
const UNDRAIN_AFTER: Duration = Duration::from_secs(60);
/// Between two looks at whether the application has been restarted.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

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
    /// New requests are refused, but if no shutdown follows, all is as before: an application that is only restarted
    /// runs its preStop hook too.
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
    /// Tells those who wait for `done` that the drain was undone.
    undone: watch::Sender<()>,
    /// Whether the drain lasts until it is undone by hand: somebody has asked for more than [`Way::Passing`].
    stays: watch::Sender<bool>,
    /// The process is on its way out: there is no way back.
    last: AtomicBool,
}

impl Drain {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            inner: Arc::new(Inner {
                shared,
                task: Mutex::new(None),
                done: watch::Sender::new(false),
                undone: watch::Sender::new(()),
                stays: watch::Sender::new(false),
                last: AtomicBool::new(false),
            }),
        }
    }

    /// Starts, unless it is under way: keep serving for `drain.delay` if there is a backend, then refuse new requests
    /// and let the others finish, for at most `drain.timeout`. One that would pass stays, if this is to stay.
    pub fn start(&self, way: Way) {
        let mut task = lock(&self.inner.task);
        if way != Way::Passing {
            self.inner.stays.send_replace(true);
        }
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
                    inner.undrain_unless_it_stays().await;
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
        if self.inner.last.load(Relaxed) {
            return Err("the process is shutting down".to_owned());
        }
        let mut task = lock(&self.inner.task);
        if let Some(task) = task.take() {
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
        self.inner.last.store(true, Relaxed);
        let was_over = *self.inner.done.borrow();
        self.start(way);
        // It cannot be undone.
        let _ = self.inner.done.subscribe().wait_for(|done| *done).await;
        if was_over && !self.inner.is_empty() {
            self.inner.tell_of_the_rest();
        }
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

    /// Nobody is refused: no new connections come, and each answer is the last on its connection.
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
                self.tell_of_the_rest();
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.done.send_replace(true);
    }

    /// What becomes of those who have no answer when the time is over.
    fn tell_of_the_rest(&self) {
        let in_flight = self.shared.limiter.snapshot(clock::now()).in_flight();
        match self.last.load(Relaxed) {
            true => tracing::warn!(in_flight, "drain.timeout is over, the rest is cut off"),
            false => tracing::warn!(
                in_flight,
                "drain.timeout is over: what is in flight goes on, and is waited for no longer"
            ),
        }
    }

    /// Every client has its answer. What the backend still works on is for nobody.
    fn is_empty(&self) -> bool {
        let snapshot = self.shared.limiter.snapshot(clock::now());
        let abandoned = self.shared.metrics.orphaned.get().max(0);
        self.shared.metrics.connections_active.get() <= 0
            && snapshot.queued() == 0
            && i64::from(snapshot.in_flight()) <= abandoned
    }

    async fn undrain_unless_it_stays(&self) {
        let mut stays = self.stays.subscribe();
        let why = tokio::select! {
            biased;
            _ = stays.wait_for(|stays| *stays) => return,
            () = self.restarted() => "the application was restarted",
            () = tokio::time::sleep(UNDRAIN_AFTER) => "no shutdown followed the drain",
        };
        let mut task = lock(&self.task);
        if *self.stays.borrow() {
            return;
        }
        tracing::info!("{why}: serving again");
        task.take();
        self.serve_again();
    }

    /// Done when an endpoint that was seen down is up again.
    async fn restarted(&self) {
        let mut down = BTreeSet::new();
        loop {
            self.shared.look_at_all(PATIENCE).join_all().await;
            for endpoint in self.shared.endpoints().iter() {
                if !endpoint.is_up() {
                    down.insert(endpoint.id);
                } else if down.contains(&endpoint.id) {
                    return;
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn serve_again(&self) {
        self.stays.send_replace(false);
        self.undone.send_replace(());
        self.done.send_replace(false);
        self.shared.set_phase(Phase::Serving);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;
    use crate::{
        admission::Limiter,
        config::{Address, Config},
        proxy::queue_settings,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// A drain in front of an application that listens.
    fn drain() -> (Drain, tempfile::TempDir, UnixListener) {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("app.sock");
        let app = UnixListener::bind(&socket).expect("a socket");
        let mut config = Config::default();
        config.backend.endpoints = vec![Address::Unix(socket)];
        let limiter = Limiter::new(queue_settings(&config), None, clock::now());
        let shared = Shared::new(Arc::new(config), limiter, Arc::default());
        (Drain::new(shared), dir, app)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hooks_drain_passes_only_after_the_application_had_time_to_stop() {
        let (drain, _dir, _app) = drain();
        drain.start(Way::Passing);
        assert!(drain.done().await);
        tokio::time::sleep(UNDRAIN_AFTER - SECOND).await;
        assert!(drain.is_under_way(), "gunicorn may still be stopping");
        tokio::time::sleep(2 * SECOND).await;
        assert!(!drain.is_under_way());
        assert_eq!(drain.inner.shared.phase(), Phase::Serving);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hooks_drain_passes_when_the_application_was_restarted() {
        let (drain, dir, app) = drain();
        drain.start(Way::Passing);
        assert!(drain.done().await);
        let socket = dir.path().join("app.sock");
        drop(app);
        fs::remove_file(&socket).expect("it is there");
        tokio::time::sleep(10 * SECOND).await;
        assert!(drain.is_under_way(), "it is down");
        let _app = UnixListener::bind(&socket).expect("a socket");
        tokio::time::sleep(2 * SECOND).await;
        assert!(!drain.is_under_way());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_is_to_stay_is_not_forgotten_with_the_hooks() {
        for pause in [Duration::ZERO, 3 * SECOND] {
            let (drain, _dir, _app) = drain();
            drain.start(Way::Passing);
            tokio::time::sleep(pause).await;
            drain.start(Way::Refusing);
            // A hook that comes later takes nothing back.
            drain.start(Way::Passing);
            assert!(drain.done().await);
            tokio::time::sleep(2 * UNDRAIN_AFTER).await;
            assert!(drain.is_under_way());
            drain.undo().expect("the process is not at its end");
            assert_eq!(drain.inner.shared.phase(), Phase::Serving);
            drain.start(Way::Passing);
            assert!(drain.done().await);
            tokio::time::sleep(2 * UNDRAIN_AFTER).await;
            assert!(!drain.is_under_way(), "what was undone does not stay");
        }
    }
}

//! What a client's connection is doing, shared by those who serve it.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::Sleep;

use crate::{
    buffer::{Budget, Share},
    clock,
    observe::Metrics,
};

/// Who takes nothing of an answer for so long is not waited for while others wait for the budget; nor who takes less than
/// a whole piece while the answers over its own connection hold as much as they may.
const STUCK: Duration = Duration::from_secs(5);
/// How often it is then checked whether others do.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a client's connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing: between requests.
    Idle,
    /// Sending a request's head.
    Head,
    /// Its request is being served.
    Served,
    /// The answer is complete, its last bytes are on their way.
    Flushing,
    /// Bytes of another protocol pass.
    Tunnel,
}

/// Shared by a connection's socket, its services and its watchdog, which all run on one thread.
#[derive(Debug)]
pub struct State {
    activity: AtomicU8,
    /// Since when, milliseconds after `opened`.
    since: AtomicU64,
    opened: Instant,
    /// Requests being served: one, or one for each stream of HTTP/2.
    serving: AtomicU32,
    /// Since when an HTTP/2 client owes the rest of a head: milliseconds after `opened`, plus one; 0 if it
    /// does not.
    owing: AtomicU64,
    /// Another client needs its place.
    evicted: AtomicBool,
    /// What its answers may hold, where there may be several at once.
    share: OnceLock<Arc<Share>>,
    metrics: Arc<Metrics>,
}

impl State {
    /// A new connection: it is expected to send a head soon.
    pub fn new(metrics: Arc<Metrics>, now: Instant) -> Self {
        metrics.connections_idle.increment();
        Self {
            activity: AtomicU8::new(Activity::Head as u8),
            since: AtomicU64::new(0),
            opened: now,
            serving: AtomicU32::new(0),
            owing: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            share: OnceLock::new(),
            metrics,
        }
    }

    /// From now on it may have several answers at once, which hold no more than this together.
    pub fn set_share(&self, share: Arc<Share>) {
        let _ = self.share.set(share);
    }

    /// What they hold.
    pub fn share(&self) -> Option<&Arc<Share>> {
        self.share.get()
    }

    /// Asks it to close, if it is still not being served when it sees this.
    pub fn evict(&self) {
        self.evicted.store(true, Relaxed);
    }

    /// Whether it has to close.
    pub fn is_evicted(&self) -> bool {
        self.evicted.load(Relaxed)
    }

    /// What it is doing, and since when.
    pub fn activity(&self) -> (Activity, Instant) {
        let activity = match self.activity.load(Relaxed) {
            0 => Activity::Idle,
            1 => Activity::Head,
            2 => Activity::Served,
            3 => Activity::Flushing,
            _ => Activity::Tunnel,
        };
        let since = Duration::from_millis(self.since.load(Relaxed));
        (activity, self.opened + since)
    }

    /// One more request is being served from now on.
    pub fn serve(&self) {
        if self.serving.fetch_add(1, Relaxed) > 0 {
            return;
        }
        let before = self.swap(Activity::Served);
        if before == Activity::Idle as u8 || before == Activity::Head as u8 {
            self.metrics.connections_idle.decrement();
            self.metrics.connections_active.increment();
        }
    }

    /// The answer is a 101: once it is out, the connection is a tunnel.
    pub fn switch(&self) {
        self.swap(Activity::Tunnel);
    }

    /// Its answer has been produced. A drain still waits for it to be out.
    pub fn answered(&self) {
        let last = self.serving.fetch_sub(1, Relaxed) == 1;
        if last && self.is(Activity::Served) {
            self.swap(Activity::Flushing);
        }
    }

    /// Everything that was written is out.
    pub fn flushed(&self, now: Instant) {
        if self.is(Activity::Flushing) {
            self.rest(now);
        }
    }

    /// Nothing more will be served, nor written: who needs the place may have it, and nobody waits for the end.
    pub fn retire(&self, now: Instant) {
        if self.is(Activity::Flushing) || self.is(Activity::Tunnel) {
            self.rest(now);
        }
    }

    fn rest(&self, now: Instant) {
        self.start(Activity::Idle, now);
        self.metrics.connections_active.decrement();
        self.metrics.connections_idle.increment();
    }

    /// Whether the client owes the rest of a head, anew or as before.
    pub fn owes(&self, owes: bool, anew: bool) {
        if !owes {
            self.owing.store(0, Relaxed);
        } else if anew || self.owing.load(Relaxed) == 0 {
            self.owing.store(self.age(clock::now()) + 1, Relaxed);
        }
    }

    /// Since when it does.
    pub fn owed(&self) -> Option<Instant> {
        let millis = self.owing.load(Relaxed).checked_sub(1)?;
        Some(self.opened + Duration::from_millis(millis))
    }

    /// Milliseconds since it was opened.
    fn age(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.opened);
        age.as_millis() as u64
    }

    /// Whether it is doing that.
    pub fn is(&self, activity: Activity) -> bool {
        self.activity.load(Relaxed) == activity as u8
    }

    fn swap(&self, activity: Activity) -> u8 {
        self.activity.swap(activity as u8, Relaxed)
    }

    /// It is doing that from now on.
    pub fn start(&self, activity: Activity, now: Instant) {
        self.since.store(self.age(now), Relaxed);
        self.swap(activity);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        match self.activity().0 {
            Activity::Idle | Activity::Head => self.metrics.connections_idle.decrement(),
            Activity::Served | Activity::Flushing | Activity::Tunnel => {
                self.metrics.connections_active.decrement();
            }
        }
    }
}

/// A write that waits for the client.
#[derive(Debug)]
pub struct Stall {
    timeout: Duration,
    /// The budget to which the bytes that wait are charged; `None` if they are not.
    budget: Option<Arc<Budget>>,
    /// What its connection's answers hold, if there are several.
    share: Option<Arc<Share>>,
    wait: Option<Wait>,
    /// The socket has taken something without the reactor having reported it writable.
    unheard: bool,
}

#[derive(Debug)]
struct Wait {
    began: Instant,
    /// Since when nothing at all has been taken.
    stuck: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Stall {
    /// Waits for no longer than `timeout`, and not as long if the client takes nothing while others wait for
    /// the budget.
    pub fn new(timeout: Duration, budget: Arc<Budget>) -> Self {
        Self {
            timeout,
            budget: Some(budget),
            share: None,
            wait: None,
            unheard: false,
        }
    }

    /// The same for one answer of several over a connection.
    pub fn within(mut self, share: Option<&Arc<Share>>) -> Self {
        self.share = share.cloned();
        self
    }

    /// Whether somebody waits for what its client does not take.
    fn is_wanted(&self) -> bool {
        self.budget
            .as_ref()
            .is_some_and(|budget| budget.is_wanted())
            || self.is_share_full()
    }

    /// Whether the answers over its connection hold as much as they may.
    fn is_share_full(&self) -> bool {
        let both = self.budget.as_ref().zip(self.share.as_ref());
        both.is_some_and(|(budget, share)| share.is_full(budget))
    }

    /// From now on nothing of the budget is held.
    pub fn forget_budget(&mut self) {
        (self.budget, self.wait) = (None, None);
    }

    /// The client has taken some of what it is waited for.
    pub fn took_some(&mut self) {
        // A byte now and then holds a whole piece, and what is behind it.
        if self.is_share_full() {
            return;
        }
        if let Some(wait) = &mut self.wait {
            wait.stuck = clock::now();
        }
    }

    /// Passes a write's result on; one that waits for too long becomes an error.
    pub fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.wait = None;
            return result;
        }
        ready!(self.poll_late(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// The same with a write's result. When the time is up, the bytes are offered to the socket itself,
    /// `once_more`: the kernel reports a socket whose buffer was full as writable only when a third of the
    /// buffer is free, and a slow client may take longer to read that much.
    pub fn watch_write(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
        once_more: impl Fn() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.wait = None;
            return result;
        }
        if !self.unheard {
            ready!(self.poll_late(cx));
        }
        match once_more() {
            Ok(written @ 1..) => {
                // There may be room for more.
                (self.wait, self.unheard) = (None, true);
                Poll::Ready(Ok(written))
            }
            _ if self.unheard => {
                self.unheard = false;
                self.watch(cx, Poll::Pending)
            }
            _ => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Waits for as long again.
    pub fn renew<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.wait = None;
        self.watch(cx, Poll::Pending)
    }

    /// Ready when the time is up.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        let stuck = match &self.budget {
            Some(_) => STUCK.min(timeout),
            None => timeout,
        };
        let wanted = self.is_wanted();
        let wait = self.wait.get_or_insert_with(|| {
            let now = clock::now();
            let timer = Box::pin(tokio::time::sleep_until((now + stuck).into()));
            Wait {
                began: now,
                stuck: now,
                timer,
            }
        });
        loop {
            ready!(wait.timer.as_mut().poll(cx));
            let due = wait.timer.deadline().into_std();
            if clock::overslept(wait.timer.as_mut()) {
                // The client gets the time back in which this process could not have seen it take something.
                let more = wait.timer.deadline().into_std() - due;
                (wait.began, wait.stuck) = (wait.began + more, wait.stuck + more);
                continue;
            }
            let (end, stuck) = (wait.began + timeout, wait.stuck + stuck);
            if due >= end || (due >= stuck && wanted) {
                return Poll::Ready(());
            }
            let next = stuck.max(due + LOOK_EVERY).min(end);
            wait.timer.as_mut().reset(next.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What the socket takes at the next attempts, by itself.
    struct Socket<'a>(&'a Cell<&'a [usize]>);

    impl Socket<'_> {
        fn take(&self) -> io::Result<usize> {
            let (&first, rest) = self.0.get().split_first().expect("it is asked no more");
            self.0.set(rest);
            match first {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                some => Ok(some),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_of_which_the_reactor_says_nothing_is_asked_when_the_time_is_up() {
        const TIMEOUT: Duration = STUCK;
        let mut stall = Stall::new(TIMEOUT, Budget::new(0));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let takes = Cell::new(&[][..]);
        let mut write = |times: &'static [usize]| {
            takes.set(times);
            let socket = Socket(&takes);
            let result = stall.watch_write(&mut cx, Poll::Pending, || socket.take());
            assert!(takes.get().is_empty(), "it was not asked");
            result.map_err(|error| error.kind())
        };
        assert!(write(&[]).is_pending());
        tokio::time::advance(TIMEOUT + Duration::from_millis(1)).await;
        // As much as there is room for, and then as much time again.
        assert_eq!(write(&[5]), Poll::Ready(Ok(5)));
        assert_eq!(write(&[7]), Poll::Ready(Ok(7)));
        assert!(write(&[0]).is_pending());
        assert!(write(&[]).is_pending());
        tokio::time::advance(TIMEOUT - Duration::from_millis(1)).await;
        assert!(write(&[]).is_pending());
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(write(&[0]), Poll::Ready(Err(io::ErrorKind::TimedOut)));
    }

    #[tokio::test(start_paused = true)]
    async fn while_others_wait_for_the_budget_a_client_that_takes_nothing_is_not_waited_for() {
        const TIMEOUT: Duration = Duration::from_secs(60);
        const SHORT: Duration = Duration::from_millis(1);
        let budget = Budget::new(0);
        let mut stall = Stall::new(TIMEOUT, budget.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut is_waited_for = |stall: &mut Stall| {
            let watched = stall.watch::<()>(&mut cx, Poll::Pending);
            watched.is_pending()
        };
        assert!(is_waited_for(&mut stall));
        tokio::time::advance(STUCK + SHORT).await;
        assert!(is_waited_for(&mut stall), "nobody waits");
        let waiting = budget.reservation(crate::buffer::Direction::Request).wait();
        stall.took_some();
        for _ in 0..4 {
            tokio::time::advance(LOOK_EVERY + SHORT).await;
            assert!(is_waited_for(&mut stall), "it took something");
        }
        tokio::time::advance(LOOK_EVERY + SHORT).await;
        assert!(!is_waited_for(&mut stall));
        // A tunnel holds nothing that they could have.
        stall.forget_budget();
        assert!(is_waited_for(&mut stall));
        tokio::time::advance(TIMEOUT - SHORT).await;
        assert!(is_waited_for(&mut stall));
        tokio::time::advance(2 * SHORT).await;
        assert!(!is_waited_for(&mut stall));
        drop(waiting);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_holds_its_share_has_to_take_whole_pieces() {
        const TIMEOUT: Duration = Duration::from_secs(60);
        const SHORT: Duration = Duration::from_millis(1);
        let budget = Budget::new(0);
        let share = Share::new(512);
        let mut stall = Stall::new(TIMEOUT, budget.clone()).within(Some(&share));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut is_waited_for =
            |stall: &mut Stall| stall.watch::<()>(&mut cx, Poll::Pending).is_pending();
        assert!(is_waited_for(&mut stall));
        tokio::time::advance(STUCK + SHORT).await;
        assert!(is_waited_for(&mut stall), "there is room");
        budget.set_total(1024);
        let held = budget.reservation(crate::buffer::Direction::Response);
        let mut held = held.within(Some(&share));
        assert!(held.grow(1000));
        stall.took_some();
        tokio::time::advance(LOOK_EVERY + SHORT).await;
        assert!(!is_waited_for(&mut stall), "a byte is no piece");
        let _ = stall.watch(&mut cx, Poll::Ready(Ok(())));
        assert!(
            stall.watch::<()>(&mut cx, Poll::Pending).is_pending(),
            "a piece is"
        );
    }
}

//! The tasks of an HTTP/2 connection's streams. Each counts as being served to its very end, and one
//! whose client does not open the window for it is given up after `server.write_timeout`: nothing is
//! written to the socket for such a stream, so that no socket's timeout notices.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::{
    clock,
    proxy::state::State,
    sync::{Mutex, lock},
};

tokio::task_local! {
    /// The flow of the stream whose task this is.
    static FLOW: Arc<Flow>;
}

/// Whose turn it is on a stream: the backend's, to produce a piece of the answer, or the client's, to
/// make room for it.
#[derive(Debug)]
pub struct Flow {
    opened: Instant,
    /// Since when the client has it, milliseconds after `opened` and one more; 0 if not.
    waits: AtomicU64,
}

impl Flow {
    /// The flow of the stream that is being polled, if it is one of HTTP/2.
    pub fn current() -> Option<Arc<Self>> {
        FLOW.try_with(Arc::clone).ok()
    }

    fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: clock::now(),
            waits: AtomicU64::new(0),
        })
    }

    /// The next piece is asked for: there is room, and the backend is to fill it.
    pub fn asks(&self) {
        self.waits.store(0, Relaxed);
    }

    /// A piece is there for the client.
    pub fn offers(&self) {
        let since = clock::now().saturating_duration_since(self.opened);
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1);
        self.waits.store(millis + 1, Relaxed);
    }

    /// Since when it waits for the client.
    fn since(&self) -> Option<Instant> {
        let millis = self.waits.load(Relaxed).checked_sub(1)?;
        Some(self.opened + Duration::from_millis(millis))
    }
}

/// Runs the streams of one connection.
#[derive(Clone, Debug)]
pub struct Streams {
    state: Arc<State>,
    connection: Arc<Mutex<Option<Waker>>>,
    write_timeout: Duration,
}

impl Streams {
    pub fn new(state: Arc<State>, write_timeout: Duration) -> Self {
        Self {
            state,
            connection: Arc::default(),
            write_timeout,
        }
    }

    /// Whom to wake at the end of each stream.
    pub fn wake(&self, waker: &Waker) {
        let mut known = lock(&self.connection);
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let flow = Flow::new();
        self.state.serve();
        let paced = Paced {
            stream,
            flow: flow.clone(),
            timeout: self.write_timeout,
            timer: None,
            _open: Open(self.clone()),
        };
        tokio::spawn(FLOW.scope(flow, paced));
    }
}

/// A stream that has not ended.
struct Open(Streams);

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

pin_project! {
    /// A stream's task. Dropping the stream resets it.
    struct Paced<F> {
        #[pin]
        stream: F,
        flow: Arc<Flow>,
        timeout: Duration,
        timer: Option<Pin<Box<Sleep>>>,
        _open: Open,
    }
}

impl<F: Future<Output = ()>> Future for Paced<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while let Some(since) = this.flow.since() {
            let due = (since + *this.timeout).into();
            let timer = this
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.deadline() < due {
                timer.as_mut().reset(due);
            }
            std::task::ready!(timer.as_mut().poll(cx));
            if clock::overslept(timer.as_mut()) {
                continue;
            }
            if this.flow.since() == Some(since) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

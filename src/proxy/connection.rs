//! One client's connection, from accept to close.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Poll, Waker},
};

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{sync::Notify, time::Instant as TokioInstant};
use tower::Service;

use super::{
    Error,
    context::Peer,
    hygiene::BadHead,
    io::{Activity, ClientIo, State},
    live::{ClientTimeouts, Phase, Shared},
    reject, stack,
};
use crate::{
    backend::Stream,
    clock,
    observe::{Reason, Source},
    sync::{Mutex, lock},
};

/// The most hyper reads ahead of who consumes a request, and buffers of a response, bytes.
const BUFFER: usize = 64 * 1024;

/// The open connections of one data-plane thread.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    /// To tell them that something has changed, a drain for example.
    wakers: Mutex<Vec<Option<Waker>>>,
    closed: Notify,
}

impl Connections {
    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Makes every connection look at the phase again.
    pub fn wake_all(&self) {
        let wakers: Vec<Waker> = lock(&self.wakers).iter().flatten().cloned().collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Ready when one has closed since.
    pub async fn one_closed(&self) {
        self.closed.notified().await;
    }

    fn register(self: &Arc<Self>, waker: Waker) -> Registered {
        let mut wakers = lock(&self.wakers);
        let at = wakers.iter().position(Option::is_none).unwrap_or_else(|| {
            wakers.push(None);
            wakers.len() - 1
        });
        wakers[at] = Some(waker);
        Registered {
            connections: self.clone(),
            at,
        }
    }

    /// Counts one more, from before its task has run.
    pub fn count(self: &Arc<Self>) -> Counted {
        self.open.fetch_add(1, Relaxed);
        Counted(self.clone())
    }
}

/// A connection that counts as open.
#[derive(Debug)]
pub struct Counted(Arc<Connections>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.closed.notify_one();
    }
}

#[derive(Debug)]
struct Registered {
    connections: Arc<Connections>,
    at: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.connections.wakers)[self.at] = None;
    }
}

/// What ends a connection.
enum End {
    /// Its protocol did.
    Done,
    /// The client took too long for a head.
    SlowHead,
    /// It had been idle for long enough.
    Idle,
}

/// Serves one connection to its end.
pub async fn serve(
    stream: Stream,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    shared: Arc<Shared>,
    counted: Counted,
) {
    let live = shared.live();
    let server = &live.config.server;
    let timeouts = ClientTimeouts::from(server);
    let opened = clock::now();
    let state = Arc::new(State::new(shared.metrics.clone(), opened));
    let peer = Peer::new(peer, local, state.clone());
    let refuse_head = {
        let shared = shared.clone();
        Box::new(move |status| refuse_head(&shared, status))
    };
    let io = ClientIo::new(stream, state.clone(), timeouts.write, refuse_head);
    let service = AlwaysReady(stack(&shared, peer));
    let mut connection = http1::Builder::new()
        .half_close(false)
        .max_buf_size(BUFFER.max(server.max_header_bytes))
        .max_header_size(server.max_header_bytes)
        .serve_connection(TokioIo::new(io), service);
    drop(live);

    let mut closing = false;
    let mut head_since = None;
    let mut timer = pin!(tokio::time::sleep(timeouts.header));
    let mut registered = None;
    let end = poll_fn(|cx| {
        registered.get_or_insert_with(|| counted.0.register(cx.waker().clone()));
        if !closing && shared.phase() == Phase::Closing {
            closing = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        if let Poll::Ready(_result) = Pin::new(&mut connection).poll(cx) {
            // Broken connections are the clients' business, and counted as cancelled requests.
            return Poll::Ready(End::Done);
        }
        let (activity, since) = state.activity();
        if activity == Activity::Head && head_since != Some(since) {
            // Only a head that did not arrive in one piece gets here.
            head_since = Some(since);
            timer
                .as_mut()
                .reset(TokioInstant::from_std(since + timeouts.header));
        } else if activity == Activity::Idle {
            // Not with the defaults: there the timer of the head fires first, and is set again.
            let due = TokioInstant::from_std(since + timeouts.idle);
            if timer.deadline() > due {
                timer.as_mut().reset(due);
            }
        }
        while timer.as_mut().poll(cx).is_ready() {
            let (activity, since) = state.activity();
            let now = clock::now();
            let due = match activity {
                Activity::Head => since + timeouts.header,
                Activity::Idle => since + timeouts.idle,
                Activity::Served | Activity::Flushing | Activity::Tunnel => {
                    now + timeouts.idle.min(timeouts.header)
                }
            };
            if due <= now {
                return Poll::Ready(match activity {
                    Activity::Head => End::SlowHead,
                    _ => End::Idle,
                });
            }
            timer.as_mut().reset(TokioInstant::from_std(due));
        }
        Poll::Pending
    })
    .await;
    match end {
        End::SlowHead => {
            let io = connection.into_parts().io.into_inner();
            io.refuse(408).await;
        }
        End::Idle | End::Done => {
            if let Some(tunnel) = state.take_tunnel() {
                let parts = connection.into_parts();
                let closing = || shared.phase() == Phase::Closing;
                let (client, read) = (parts.io.into_inner(), parts.read_buf);
                // Boxed, since few connections ever need it.
                Box::pin(tunnel.run(client, read, timeouts.idle, closing)).await;
            }
        }
    }
}

/// A tower service as hyper calls one. Ours waits with the request in hand, never before, so that
/// asking whether it is ready would be a future for nothing.
struct AlwaysReady<S>(S);

impl<S: Service<R> + Clone, R> hyper::service::Service<R> for AlwaysReady<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: R) -> S::Future {
        self.0.clone().call(request)
    }
}

/// The answer to a head that never became a request.
fn refuse_head(shared: &Shared, status: u16) -> Bytes {
    let live = shared.live();
    let (error, reason) = match status {
        408 => (Error::BodyTimeout, Reason::RequestTimeout),
        414 => (Error::Head(BadHead::TargetTooLong), Reason::TargetTooLong),
        431 => (
            Error::Head(BadHead::FieldsTooLarge),
            Reason::HeadersTooLarge,
        ),
        _ => (Error::Head(BadHead::Syntax), Reason::BadRequest),
    };
    let route = &live.routes[live.routes.len() - 1].metrics;
    route.rejected(reason);
    let settings = &live.config.reject;
    let rejection = reject::rejection(&error, settings);
    route.request(rejection.status.as_u16(), Source::Tidegate);
    let response = reject::response(&error, &rejection, settings, "");
    reject::to_wire(&response)
}

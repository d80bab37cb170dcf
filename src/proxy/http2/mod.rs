//! HTTP/2 without TLS, for clients that know beforehand: RFC 9113 3.3. Towards the backend it is
//! HTTP/1.1 as ever, and each stream is a request with a permit of its own.
//!
//! The parser bounds what a client may cost in memory and in replies; this bounds what it may cost
//! in time.

mod accept;
mod body;
mod frames;
mod head;
mod io;
mod response;
mod stream;
mod streams;
mod watch;
mod window;
mod writer;

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use h2::server;
use tokio::time::Instant as TokioInstant;
use tower::Service;

use self::{
    accept::Accepting,
    io::{Http2Io, Line, Quota},
    streams::Streams,
    watch::{Next, Watch},
    window::Window,
};
pub use self::{
    body::Incoming,
    frames::{PREFACE, PREFACE_LINE},
    head::{excess, normalise},
};
use super::{
    ClientBody,
    answer::Told,
    guard::Limits,
    live::{ClientTimeouts, Phase, Shared},
    received::Arrived,
    state::State,
};
use crate::{backend::Stream, buffer::Share, clock};

/// Requests at once of one client: beyond, its streams are refused.
const STREAMS_MAX: u32 = 100;
/// How far an unpacked head may at least exceed the limit, bytes: for each of a hundred fields HTTP/2 counts
/// 32 bytes that HTTP/1 does not have, RFC 9113 6.5.2.
const UNPACKED_MORE: usize = 4 * 1024;
/// Streams that a client may reset before they have been looked at: then it is sent away.
const RESETS_MAX: usize = 20;
/// Streams of one connection that may break the rules: then it is sent away.
const ERRORS_MAX: usize = 1024;
/// How much of an answer the parser may hold while the socket takes nothing: what it holds is no longer
/// charged to the budget.
const SEND_BUFFER: usize = PIECE;
/// How much of a stream a client may send before it is read; for all streams together see [`Window`].
const STREAM_WINDOW: u32 = 64 * 1024;
/// Answers are handed out in pieces of this size: a client whose window is open by one byte costs no
/// more than one piece that is not charged to the budget.
pub const PIECE: usize = 16 * 1024;

/// Serves a connection that has begun with [`PREFACE`] to its end; `first` is what has been read.
pub async fn serve<S>(
    stream: Stream,
    first: Bytes,
    service: S,
    state: Arc<State>,
    shared: Arc<Shared>,
    timeouts: ClientTimeouts,
    limits: Limits,
) where
    S: Service<Arrived, Response = ClientBody, Error = Infallible>,
    S::Future: Told + Send + 'static,
{
    state.set_share(Share::new(shared.live().config.buffers.response));
    let opened = clock::now();
    let line = Arc::new(Line::new(opened));
    // What is a little too large is unpacked all the same, to be refused with a reason.
    let unpacked = limits.head + limits.head / 4 + UNPACKED_MORE;
    let unpacked = u32::try_from(unpacked).unwrap_or(u32::MAX);
    let quota = Quota::new(shared.budget.for_head(), unpacked);
    let io = Http2Io::new(
        stream,
        first,
        state.clone(),
        line.clone(),
        quota,
        timeouts.write,
    );
    let streams = Streams::new(state.clone(), timeouts.write, shared.budget.clone());
    let handshake = server::Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(unpacked)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(Some(ERRORS_MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .initial_window_size(STREAM_WINDOW)
        .handshake(io);
    let window = Window::new(&shared.budget);
    let mut connection = Accepting::new(handshake, service, streams.clone(), line.clone(), window);
    let mut watch = Watch::new(&state, &line, timeouts, opened);
    let mut phase = pin!(shared.phase_change());
    let mut timer = pin!(tokio::time::sleep(timeouts.header));
    poll_fn(|cx| {
        streams.wake(cx.waker());
        while phase.as_mut().poll(cx).is_ready() {
            phase.set(shared.phase_change());
        }
        if shared.phase() != Phase::Serving && watch.leave() {
            connection.leave();
        }
        if connection.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            if clock::overslept(timer.as_mut()) && timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = clock::now();
            let due = match watch.next(now) {
                Next::Close => return Poll::Ready(()),
                Next::Look(due) => TokioInstant::from_std(due),
                next => {
                    if next == Next::Leave {
                        watch.leave();
                        connection.leave();
                    } else {
                        watch.ask(now);
                        connection.ping(cx);
                    }
                    if connection.poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    continue;
                }
            };
            // Only ever brought forward: a timer that fires early is set again.
            if timer.deadline() > due || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

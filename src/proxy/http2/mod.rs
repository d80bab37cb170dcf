//! HTTP/2 without TLS, for clients that know beforehand: RFC 9113 3.3. Towards the backend it is
//! HTTP/1.1 as ever, and each stream is a request with a permit of its own.
//!
//! The parser bounds what a client may cost in memory and in replies; this bounds what it may cost
//! in time.

mod frames;
mod head;
mod io;
mod streams;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant as TokioInstant;

pub use self::{
    frames::{PREFACE, PREFACE_LINE},
    head::normalise,
    streams::Flow,
};
use self::{io::Http2Io, streams::Streams};
use super::{
    ClientBody,
    guard::Limits,
    live::{ClientTimeouts, Phase, Shared},
    state::{Activity, State},
};
use crate::{backend::Stream, clock};

/// Requests at once of one client: beyond, its streams are refused.
const STREAMS_MAX: u32 = 100;
/// The most a head may be once it is unpacked, with 32 bytes for each field: RFC 9113 6.5.2.
const HEAD_MAX: u32 = 16 * 1024;
/// Streams that a client may reset before they have been looked at: then it is sent away.
const RESETS_MAX: usize = 20;
/// Streams of one connection that may break the rules: then it is sent away.
const ERRORS_MAX: usize = 1024;
/// What may lie ready for one client's stream beyond what its window takes.
const SEND_BUFFER: usize = 64 * 1024;
/// What a client may send ahead of whoever reads it: for a stream, and for all of them.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// A client that is silent for so long is asked for a sign of life, and has so long to give it.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection this old is asked to make room for another, which a balancer may send elsewhere.
const AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// Answers are handed out in pieces of this size: a client whose window is open by one byte costs no
/// more than a piece beyond what the budget knows of.
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
    S: hyper::service::Service<Request<Incoming>, Response = Response<ClientBody>>,
    S::Error: Into<tower::BoxError>,
    S::Future: Send + 'static,
{
    let io = Http2Io::new(stream, first, state.clone(), timeouts.write);
    let streams = Streams::new(state.clone(), timeouts.write);
    let head_max = HEAD_MAX.min(u32::try_from(limits.head).unwrap_or(HEAD_MAX));
    let mut connection = pin!(
        http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(head_max)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_local_error_reset_streams(ERRORS_MAX)
            .max_send_buf_size(SEND_BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(io), service)
    );
    let mut watch = Watch {
        state: &state,
        timeouts,
        opened: clock::now(),
        left: None,
    };
    let mut phase = pin!(shared.phase_change());
    let mut timer = pin!(tokio::time::sleep(timeouts.header));
    poll_fn(|cx| {
        streams.wake(cx.waker());
        while phase.as_mut().poll(cx).is_ready() {
            phase.set(shared.phase_change());
        }
        if shared.phase() != Phase::Serving && watch.leave() {
            connection.as_mut().graceful_shutdown();
        }
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            if clock::overslept(timer.as_mut()) && timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let due = match watch.next(clock::now()) {
                Next::Close => return Poll::Ready(()),
                Next::Leave => {
                    watch.leave();
                    connection.as_mut().graceful_shutdown();
                    if connection.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    continue;
                }
                Next::Look(due) => TokioInstant::from_std(due),
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

/// What is to be done about a connection if nothing happens on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// End it.
    Close,
    /// Have it take no new streams, and end when it has none.
    Leave,
    /// See again then.
    Look(Instant),
}

/// The times of one connection.
struct Watch<'a> {
    state: &'a State,
    timeouts: ClientTimeouts,
    opened: Instant,
    /// Since when it takes no new streams.
    left: Option<Instant>,
}

impl Watch<'_> {
    /// Notes that it takes no new streams. Whether that is news.
    fn leave(&mut self) -> bool {
        let news = self.left.is_none();
        self.left.get_or_insert_with(clock::now);
        news
    }

    fn next(&self, now: Instant) -> Next {
        let (activity, since) = self.state.activity();
        let idle = matches!(activity, Activity::Idle | Activity::Head);
        if idle && self.state.is_evicted() {
            return Next::Close;
        }
        let mut due = now + self.timeouts.header.min(self.timeouts.idle);
        if let Some(owed) = self.state.owed() {
            if owed + self.timeouts.header <= now {
                return Next::Close;
            }
            due = due.min(owed + self.timeouts.header);
        }
        // The last bytes of an answer may still be on their way to a slow client.
        let (end, what) = match self.left {
            Some(left) if idle => (left.max(since) + self.timeouts.write, Next::Close),
            Some(_) => return Next::Look(due),
            None if idle => (since + self.timeouts.idle, Next::Leave),
            None => (self.opened + AGE_MAX, Next::Leave),
        };
        let end = match what {
            Next::Leave => end.min(self.opened + AGE_MAX),
            _ => end,
        };
        if end <= now {
            return what;
        }
        Next::Look(due.min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Metrics;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch(state: &State, opened: Instant) -> Watch<'_> {
        Watch {
            state,
            timeouts: ClientTimeouts {
                header: 15 * SECOND,
                idle: 75 * SECOND,
                write: 60 * SECOND,
            },
            opened,
            left: None,
        }
    }

    #[test]
    fn an_idle_connection_leaves_and_is_closed_when_nobody_takes_the_rest() {
        let opened = clock::now();
        let state = State::new(Arc::new(Metrics::default()), opened);
        let mut watch = watch(&state, opened);
        assert_eq!(watch.next(opened), Next::Look(opened + 15 * SECOND));
        assert_eq!(watch.next(opened + 75 * SECOND), Next::Leave);
        watch.left = Some(opened + 75 * SECOND);
        let later = opened + 134 * SECOND;
        assert_eq!(watch.next(later), Next::Look(later + SECOND));
        assert_eq!(watch.next(later + SECOND), Next::Close);
    }

    #[test]
    fn a_busy_connection_leaves_when_it_is_old_and_is_never_cut_off() {
        let opened = clock::now();
        let state = State::new(Arc::new(Metrics::default()), opened);
        state.serve();
        let mut watch = watch(&state, opened);
        let almost = opened + AGE_MAX - SECOND;
        assert_eq!(watch.next(almost), Next::Look(almost + SECOND));
        assert_eq!(watch.next(opened + AGE_MAX), Next::Leave);
        watch.left = Some(opened + AGE_MAX);
        let much_later = opened + 10 * AGE_MAX;
        assert_eq!(watch.next(much_later), Next::Look(much_later + 15 * SECOND));
    }

    #[test]
    fn a_head_that_is_owed_has_its_own_time() {
        let opened = clock::now();
        let state = State::new(Arc::new(Metrics::default()), opened);
        state.serve();
        state.owes(true, true);
        let watch = watch(&state, opened);
        let late = opened + 16 * SECOND;
        assert_eq!(watch.next(late), Next::Close);
        state.owes(false, false);
        assert!(matches!(watch.next(late), Next::Look(_)));
    }
}

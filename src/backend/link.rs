//! One HTTP/1.1 connection to a worker, driven by whoever uses it: no task of its own, so that
//! dropping it closes the socket at once.

use std::{
    future::Future,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Error, RequestBody, Stream, substitute::Substituted};

/// The most hyper reads ahead of who consumes the response, bytes.
const READ_BUFFER: usize = 256 * 1024;

/// The most a backend may send before its answer's head is complete, bytes: the head itself, what
/// is read ahead with it, and interim answers, which hyper would skip for ever.
const HEAD_MAX: u64 = 2 * READ_BUFFER as u64;

type TrySend = Result<Response<Incoming>, hyper::client::conn::TrySendError<Request<RequestBody>>>;

/// The future of a response's head. Only ready if its [`Link`] is driven.
pub(super) type ResponseHead = Pin<Box<dyn Future<Output = TrySend> + Send>>;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Link {
    connection: Connection<TokioIo<Metered>, RequestBody>,
    allowance: Arc<AtomicU64>,
    sender: SendRequest<RequestBody>,
    closed: bool,
    /// Whether it has carried a request before this one.
    pub(super) reused: bool,
    idle_since: Option<Instant>,
}

impl Link {
    /// Boxed, since it is large and changes hands often. A `packet` goes in the place of its first
    /// and only request's head.
    pub(super) async fn new(stream: Stream, packet: Option<Bytes>) -> Result<Box<Self>, Error> {
        let allowance = Arc::new(AtomicU64::new(HEAD_MAX));
        let (sender, connection) = Builder::new()
            .max_buf_size(READ_BUFFER)
            .handshake(TokioIo::new(Metered {
                stream: Substituted::new(stream, packet),
                allowance: allowance.clone(),
            }))
            .await
            .map_err(Error::from_hyper)?;
        Ok(Box::new(Self {
            connection,
            allowance,
            sender,
            closed: false,
            reused: false,
            idle_since: None,
        }))
    }

    /// Queues a request; [`Link::drive`] writes it.
    pub(super) fn send(&mut self, request: Request<RequestBody>) -> ResponseHead {
        self.allowance.store(HEAD_MAX, Relaxed);
        Box::pin(self.sender.try_send_request(request))
    }

    /// The head has come: what follows is as long as the body is.
    pub(super) fn head_is_complete(&self) {
        self.allowance.store(UNBOUNDED, Relaxed);
    }

    /// Lets the connection write and read what it can. Errors surface in the response, not here.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.closed && Pin::new(&mut self.connection).poll(cx).is_ready() {
            self.closed = true;
        }
    }

    /// After a complete response: whether another request may follow.
    pub(super) fn reusable(&mut self) -> bool {
        // One more turn lets the connection see that the message is over.
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.closed && self.sender.is_ready()
    }

    /// After a 101: the socket, and what has been read of the new protocol already. `None` if the
    /// connection still speaks HTTP, for a server that switches before it has the whole request.
    pub(super) fn into_raw(mut self) -> Option<(Stream, Bytes)> {
        self.drive(&mut Context::from_waker(Waker::noop()));
        let parts = self.closed.then(|| self.connection.into_parts())?;
        Some((parts.io.into_inner().stream.into_inner(), parts.read_buf))
    }

    pub(super) fn park(&mut self, now: Instant) {
        self.idle_since = Some(now);
        self.reused = true;
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        self.idle_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

const UNBOUNDED: u64 = u64::MAX;

/// A stream that fails when more is read than allowed; and that fails by reading, not by writing: a
/// server that has answered an upload early and closed cannot be written to, but its answer is there
/// to be read.
#[derive(Debug)]
struct Metered {
    stream: Substituted<Stream>,
    allowance: Arc<AtomicU64>,
}

/// A write that the other side's end made impossible just never happens. No wake-up is lost by it:
/// such a socket can be read from, to its end.
fn never_failed<T>(written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    match written {
        Poll::Ready(Err(error))
            if matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            ) =>
        {
            Poll::Pending
        }
        other => other,
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let allowed = this.allowance.load(Relaxed);
        if allowed != UNBOUNDED {
            let read = (buf.filled().len() - before) as u64;
            let Some(left) = allowed.checked_sub(read) else {
                let text = "the answer does not begin";
                return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, text)));
            };
            this.allowance.store(left, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.get_mut().stream).poll_write(cx, buf);
        never_failed(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs);
        never_failed(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        never_failed(Pin::new(&mut self.get_mut().stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Idle connections to one endpoint, the latest used first, so that few are kept warm and the rest
/// age out.
#[derive(Debug, Default)]
pub(super) struct Pool {
    #[allow(clippy::vec_box)] // They come boxed and go boxed.
    idle: Vec<Box<Link>>,
}

/// The most idle connections kept for an endpoint.
const POOL_MAX: usize = 256;

impl Pool {
    /// A connection that has been idle for less than `max_idle` and still seems alive.
    pub(super) fn take(&mut self, max_idle: Duration, now: Instant) -> Option<Box<Link>> {
        // The last is the freshest: if it is too old, so are the others.
        while self
            .idle
            .last()
            .is_some_and(|link| link.idle_for(now) < max_idle)
        {
            let mut link = self.idle.pop()?;
            if link.reusable() {
                return Some(link);
            }
        }
        None
    }

    pub(super) fn put(&mut self, mut link: Box<Link>, max_idle: Duration, now: Instant) {
        link.park(now);
        let stalest = self.idle.first();
        if self.idle.len() >= POOL_MAX || stalest.is_some_and(|l| l.idle_for(now) >= max_idle) {
            self.idle.remove(0);
        }
        self.idle.push(link);
    }

    /// Closes what has been idle for too long.
    pub(super) fn sweep(&mut self, max_idle: Duration, now: Instant) {
        self.idle.retain(|link| link.idle_for(now) < max_idle);
    }
}

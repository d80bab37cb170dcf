//! A client's socket, watched: what it is doing, since when, and whether a write makes progress.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::upgrade::Tunnel;
use crate::{
    backend::Stream,
    clock,
    observe::Metrics,
    sync::{Mutex, lock},
};

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
    /// The worker's side, for the one who serves the connection.
    tunnel: Mutex<Option<Box<Tunnel>>>,
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
            tunnel: Mutex::default(),
            metrics,
        }
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

    /// A request is being served from now on.
    pub fn serve(&self) {
        let before = self.swap(Activity::Served);
        if before == Activity::Idle as u8 || before == Activity::Head as u8 {
            self.metrics.connections_idle.decrement();
            self.metrics.connections_active.increment();
        }
    }

    /// The answer is a 101: once it is out, the connection is this tunnel.
    pub fn switch(&self, tunnel: Box<Tunnel>) {
        self.swap(Activity::Tunnel);
        *lock(&self.tunnel) = Some(tunnel);
    }

    /// The tunnel that HTTP on this connection ended with.
    pub fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        lock(&self.tunnel).take()
    }

    /// The answer has been produced. A drain still waits for it to be out.
    pub fn answered(&self) {
        if self.is(Activity::Served) {
            self.swap(Activity::Flushing);
        }
    }

    /// The answer is out.
    fn flushed(&self) {
        self.start(Activity::Idle);
        self.metrics.connections_active.decrement();
        self.metrics.connections_idle.increment();
    }

    fn is(&self, activity: Activity) -> bool {
        self.activity.load(Relaxed) == activity as u8
    }

    fn swap(&self, activity: Activity) -> u8 {
        self.activity.swap(activity as u8, Relaxed)
    }

    fn start(&self, activity: Activity) {
        let since = clock::now().saturating_duration_since(self.opened);
        self.since.store(since.as_millis() as u64, Relaxed);
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

/// Writes the answer to a head that hyper itself refuses, given hyper's status.
pub type RefuseHead = Box<dyn Fn(u16) -> Bytes + Send>;

/// See the module's documentation.
pub struct ClientIo {
    stream: Stream,
    state: Arc<State>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    refuse_head: RefuseHead,
    /// Our words in the place of hyper's.
    instead: Option<Bytes>,
}

impl ClientIo {
    pub fn new(
        stream: Stream,
        state: Arc<State>,
        write_timeout: Duration,
        refuse_head: RefuseHead,
    ) -> Self {
        Self {
            stream,
            state,
            write_timeout,
            stalled: None,
            refuse_head,
            instead: None,
        }
    }

    /// Says why the connection ends, as far as the socket takes it without waiting.
    pub async fn refuse(mut self, status: u16) {
        use tokio::io::AsyncWriteExt;
        let answer = (self.refuse_head)(status);
        let _ = tokio::time::timeout(Duration::from_millis(100), async {
            self.stream.write_all(&answer).await?;
            self.stream.shutdown().await
        })
        .await;
    }

    /// Passes a write's result on; one that waits for too long becomes an error.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let timeout = self.write_timeout;
        let timer = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// hyper answers a head that it cannot read without asking anyone, and briefly. It does so only
    /// when nothing else is being answered, which is how such a write is known.
    fn replace(&mut self, written: &[u8]) {
        let own = self.state.is(Activity::Head) || self.state.is(Activity::Idle);
        if own
            && self.instead.is_none()
            && let Some(status) = status_of(written)
        {
            self.instead = Some((self.refuse_head)(status));
        }
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.instead.as_mut().filter(|rest| !rest.is_empty()) {
            let result = Pin::new(&mut self.stream).poll_write(cx, rest);
            match result {
                Poll::Ready(Ok(written)) => drop(rest.split_to(written)),
                other => return self.watch(cx, other.map_ok(|_| ())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The status of a response of hyper's own.
fn status_of(written: &[u8]) -> Option<u16> {
    let status = written.strip_prefix(b"HTTP/1.1 4")?.get(..2)?;
    let digits = std::str::from_utf8(status).ok()?;
    digits.parse::<u16>().ok().map(|rest| 400 + rest)
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        if buf.filled().len() > before && this.state.is(Activity::Idle) {
            this.state.start(Activity::Head);
        }
        result
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.replace(buf);
        if this.instead.is_some() {
            return this.poll_instead(cx).map_ok(|()| buf.len());
        }
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) {
            this.replace(first);
        }
        if this.instead.is_some() {
            let all = bufs.iter().map(|buf| buf.len()).sum();
            return this.poll_instead(cx).map_ok(|()| all);
        }
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        if result.is_ready() && this.state.is(Activity::Flushing) {
            this.state.flushed();
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_error_is_hypers_own() {
        assert_eq!(
            status_of(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"),
            Some(431)
        );
        assert_eq!(status_of(b"HTTP/1.1 400 Bad Request\r\n"), Some(400));
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(status_of(b"HTTP/1.1 4"), None);
    }
}

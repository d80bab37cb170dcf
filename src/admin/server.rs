//! Connections to the admin server: how many, how long, and who has to go when there are too many.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{rt, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Sleep, sleep, timeout},
};

use super::{
    AdminListener, Handle, events,
    listener::Connection,
    routes::{self, Desk},
};

/// Open connections at most, however many files may be open, and at least, however few.
const MAX_CONNECTIONS: usize = 64;
const MIN_CONNECTIONS: usize = 4;

/// How long a request's head may take, and how long a connection may wait for its next request:
/// longer than the usual interval of scrapes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may refuse to take a byte of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// How long requests in progress may still take at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// A pause after a failed `accept`: most often, there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is done; then requests in progress are finished (those of
/// `/drain/wait` among them), for two seconds at most.
///
/// At most 64 connections are open, fewer where few files may be. The next one takes the place of the one
/// that has been without a whole request in progress for longest, so that slow or silent clients cannot keep
/// a probe out.
///
/// Must run inside a tokio runtime with I/O and time.
pub async fn serve(
    listener: AdminListener,
    handle: Arc<dyn Handle>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = pin!(shutdown);
    let (closing, on_closing) = watch::channel(false);
    let room = room(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
    let mut crowd = Crowd::default();
    // Those who stay long leave at least half of the places to others.
    let share = |most: usize| Arc::new(Semaphore::new(most.min(room / 4)));
    let waiters = share(routes::MAX_WAITERS);
    let streams = share(events::MAX_STREAMS);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let (connection, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "admin: accept failed");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        if !crowd.make_room(room) {
            tracing::warn!("admin: {room} requests in progress, a connection is refused");
            continue;
        }
        let busy = Arc::new(AtomicBool::new(false));
        let desk = Desk {
            handle: Arc::clone(&handle),
            mutations: listener.mutations,
            peer,
            waiters: Arc::clone(&waiters),
            streams: Arc::clone(&streams),
            closing: on_closing.clone(),
            busy: Arc::clone(&busy),
        };
        let task = match connection {
            Connection::Tcp(stream) => {
                let io = TokioIo::new(stream);
                tokio::spawn(attend(io, desk, on_closing.clone()))
            }
            Connection::Unix(stream) => {
                let io = TokioIo::new(stream);
                tokio::spawn(attend(io, desk, on_closing.clone()))
            }
        };
        crowd.0.push(Guest { task, busy });
    }
    drop(listener);
    let _ = closing.send(true);
    let _ = timeout(FAREWELL, crowd.leave()).await;
    // Who is still here is sent away when the crowd is dropped.
}

/// How many connections may be open where so many files may: the clients need them more.
fn room(files: u64) -> usize {
    usize::try_from(files / 16)
        .unwrap_or(usize::MAX)
        .clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// One open connection.
struct Guest {
    task: JoinHandle<()>,
    /// Whether a request is being worked on; reading one and writing its answer do not count.
    busy: Arc<AtomicBool>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The open connections, the oldest first.
#[derive(Default)]
struct Crowd(Vec<Guest>);

impl Crowd {
    /// Whether there is room for one more, if need be after sending an idle one away.
    fn make_room(&mut self, room: usize) -> bool {
        self.0.retain(|guest| !guest.task.is_finished());
        if self.0.len() < room {
            return true;
        }
        match self.0.iter().position(|guest| !guest.busy.load(Relaxed)) {
            Some(idle) => {
                drop(self.0.remove(idle));
                true
            }
            None => false,
        }
    }

    /// Is done when all have gone by themselves.
    async fn leave(&mut self) {
        for guest in &mut self.0 {
            let _ = (&mut guest.task).await;
        }
    }
}

/// Serves one connection to its end.
async fn attend<I>(io: I, desk: Desk, mut closing: watch::Receiver<bool>)
where
    I: rt::Read + rt::Write + Unpin,
{
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(routes::answer(&desk, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(Impatient::new(io), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin: a connection ended early");
    }
}

/// Is done when the server is closing.
async fn told(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Marks a connection as busy for as long as it lives, also when the request is dropped half way.
pub(super) struct Busy(Arc<AtomicBool>);

impl Busy {
    pub(super) fn new(flag: &Arc<AtomicBool>) -> Self {
        flag.store(true, Relaxed);
        Busy(Arc::clone(flag))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// A stream that gives up on a peer that takes nothing for [`WRITE_TIMEOUT`].
struct Impatient<I> {
    inner: I,
    /// Runs while a write is pending.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<I> Impatient<I> {
    fn new(inner: I) -> Self {
        Impatient {
            inner,
            patience: None,
        }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(patience.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: rt::Read + Unpin> rt::Read for Impatient<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<I: rt::Write + Unpin> rt::Write for Impatient<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn few_files_leave_few_connections() {
        assert_eq!(room(64), 4);
        assert_eq!(room(200), 12);
        assert_eq!(room(1024), 64);
        assert_eq!(room(u64::MAX), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_is_given_up() {
        let (near, _far) = tokio::io::duplex(16);
        let mut io = Impatient::new(TokioIo::new(near));
        let mut write =
            async || poll_fn(|cx| rt::Write::poll_write(Pin::new(&mut io), cx, &[0; 16])).await;
        assert_eq!(write().await.unwrap(), 16);
        assert_eq!(write().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

//! An HTTP/2 client's socket, watched: whether it owes the rest of a head, when it was heard last, and whether a
//! write makes progress.

use std::{
    future::Future as _,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::frames::Frames;
use crate::{
    backend::Stream,
    buffer::{BUDGET_PAUSE, Reservation},
    proxy::{
        io::{first, take_ahead},
        state::{Stall, State},
    },
};

/// What lies ready of interim answers for a client that does not take them, bytes; more is thrown away.
const INTERIM_MAX: usize = 256 * 1024;

/// What is known of the socket, for those that do not own it.
#[derive(Debug)]
pub struct Line {
    opened: Instant,
    /// When something was last read, milliseconds after `opened`.
    heard: AtomicU64,
    /// The client does not take what is written.
    stalled: AtomicBool,
    /// Bytes of interim answers since everything was last out.
    interim: AtomicUsize,
}

impl Line {
    pub fn new(opened: Instant) -> Self {
        Self {
            opened,
            heard: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            interim: AtomicUsize::new(0),
        }
    }

    /// The client has said something.
    pub fn hear(&self, now: Instant) {
        let age = now.saturating_duration_since(self.opened);
        self.heard.store(age.as_millis() as u64, Relaxed);
    }

    /// When it last did.
    pub fn heard(&self) -> Instant {
        self.opened + Duration::from_millis(self.heard.load(Relaxed))
    }

    /// Whether an interim answer of so many bytes may be written.
    pub fn has_room(&self, bytes: usize) -> bool {
        let waiting = self.interim.load(Relaxed);
        if waiting < INTERIM_MAX {
            self.interim.store(waiting + bytes, Relaxed);
        }
        waiting < INTERIM_MAX
    }

    /// Whether the client does not take what is written.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed)
    }

    /// The parser has written all that it could.
    pub fn wrote_all(&self) {
        if !self.is_stalled() {
            self.interim.store(0, Relaxed);
        }
    }
}

/// Roughly how many bytes a byte of a packed head may become: a whole field, whose text is shared with
/// HPACK's table.
const UNPACKED: u64 = 128;

/// What a head takes of the budget while it is unpacked, frame by frame: as much as what has come of it may have become.
/// Once it is complete, whoever serves it accounts for it.
#[derive(Debug)]
pub struct Quota {
    held: Reservation,
    most: u64,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Quota {
    /// For heads of at most so many bytes, unpacked.
    pub fn new(held: Reservation, most: u32) -> Self {
        Self {
            held,
            most: u64::from(most),
            pause: None,
        }
    }

    /// Ready when more may come of a head of which there are so many bytes.
    fn poll_room(&mut self, cx: &mut Context<'_>, packed: usize) -> Poll<()> {
        let unpacked = (packed as u64).saturating_mul(UNPACKED).min(self.most);
        loop {
            let more = unpacked.saturating_sub(self.held.bytes());
            if more == 0 || self.held.grow(more) {
                return Poll::Ready(());
            }
            let pause = self
                .pause
                .get_or_insert_with(|| Box::pin(sleep(BUDGET_PAUSE)));
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
    }

    /// The head is whole.
    fn give_back(&mut self) {
        self.held.shrink(self.held.bytes());
    }
}

/// See the module's documentation.
pub struct Http2Io {
    stream: Stream,
    /// What was read before it was known to be HTTP/2.
    first: Bytes,
    frames: Frames,
    state: Arc<State>,
    line: Arc<Line>,
    quota: Quota,
    stall: Stall,
}

impl Http2Io {
    pub fn new(
        stream: Stream,
        first: Bytes,
        state: Arc<State>,
        line: Arc<Line>,
        quota: Quota,
        write_timeout: Duration,
    ) -> Self {
        state.owes(true, true);
        let budget = quota.held.budget().clone();
        Self {
            stream,
            first,
            frames: Frames::new(),
            state,
            line,
            quota,
            stall: Stall::new(write_timeout, budget),
        }
    }

    /// A write of what begins with `first` had this result.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
        first: &[u8],
    ) -> Poll<io::Result<usize>> {
        let once_more = || self.stream.send_now(first);
        let result = self.stall.watch_write(cx, result, once_more);
        self.line.stalled.store(result.is_pending(), Relaxed);
        result
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(packed) = this.frames.in_pieces() {
            ready!(this.quota.poll_room(cx, packed));
        }
        let before = buf.filled().len();
        if !take_ahead(&mut this.first, buf) {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        }
        this.line.hear(crate::clock::now());
        let ended = this.frames.advance(&buf.filled()[before..]);
        this.state.owes(this.frames.owes(), ended);
        if this.frames.in_pieces().is_none() {
            this.quota.give_back();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(cx, result, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(cx, result, first(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        if result.is_ready() {
            this.state.flushed(crate::clock::now());
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

//! A client's socket, watched: whether what it sends is HTTP, and whether a write makes progress. Who
//! reads from it gets heads whole, and one message at a time.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::{
    departure::Departure,
    error::Error,
    guard::{Guard, Head, Limits},
    http2::{PREFACE, PREFACE_LINE},
    hygiene::BadHead,
    state::{Activity, Stall, State},
    vigil::Vigil,
};
use crate::{backend::Stream, buffer::Reservation, clock};

/// The first bytes of a connection, or of a parked one.
const FIRST_READ: usize = 2048;
/// Room for them, bytes: little, since many connections carry one request, and a small piece of memory costs less
/// than a large one.
const FIRST_ROOM: usize = 1024;
/// A read takes up to this, bytes: most heads.
const READ: usize = 4 * 1024;
/// The most one takes of a body.
const READ_MOST: usize = 64 * 1024;
/// Less room than this is not worth a read ahead, bytes.
const READ_LEAST: usize = 256;
/// What a client may send ahead of the answer to its last request, bytes; then its next bytes wait
/// in the socket.
const AHEAD_MAX: usize = 16 * 1024;
/// How many bytes of heads a connection may hold that are not charged to the budget.
const HELD_FREE: usize = 4 * 1024;
/// How long the rest of what a client sends is read after the last answer, and thrown away: until it pauses for so long,
/// and so long in all. Closing a socket with unread bytes makes the kernel throw that answer away.
const LINGER_PAUSE: Duration = Duration::from_secs(2);
const LINGER_MOST: Duration = Duration::from_secs(10);
/// How much of that one read takes, bytes.
const LINGER_READ: usize = 16 * 1024;
/// Parts of a body that are smaller than this are joined with those behind them, bytes,
const SMALL_PART: usize = 4 * 1024;
/// up to so many, as far as they have come.
const JOINED_PARTS: usize = 16 * 1024;

/// Accounts for a head that is refused, and writes the answer.
pub type RefuseHead = Box<dyn Fn(&Error) -> Bytes + Send + Sync>;

/// See the module's documentation.
pub struct ClientIo {
    stream: Stream,
    state: Arc<State>,
    guard: Guard,
    /// What was read and not passed on: an incomplete head, or what follows.
    held: BytesMut,
    /// What that takes of the budget.
    quota: Reservation,
    /// Room for the next read, bytes.
    room: usize,
    /// The client will send no more.
    ended: bool,
    departure: Option<Box<Departure>>,
    vigil: Option<Box<Vigil>>,
    /// Some of the answer has been written.
    answering: bool,
    /// There has been a message already.
    begun: bool,
    stall: Stall,
    refuse_head: RefuseHead,
}

/// What has come where a head is expected.
pub enum Came {
    /// One, and where its parts are.
    Head(Bytes, Head),
    /// What is none.
    Bad(BadHead),
    /// The end.
    Nothing,
}

impl ClientIo {
    /// `first` is what has been read of the first request, `quota` an empty reservation.
    pub fn new(
        stream: Stream,
        first: BytesMut,
        quota: Reservation,
        state: Arc<State>,
        limits: Limits,
        write_timeout: Duration,
        refuse_head: RefuseHead,
    ) -> Self {
        let budget = quota.budget().clone();
        Self {
            stream,
            state,
            guard: Guard::new(limits),
            held: first,
            quota,
            room: READ,
            ended: false,
            departure: None,
            vigil: None,
            answering: false,
            begun: false,
            stall: Stall::new(write_timeout, budget),
            refuse_head,
        }
    }

    /// Says where the message is.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Waits for a request's first bytes, without a buffer to be kept. Whether there will be any.
    pub fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while is_blank(&self.held) && !self.ended {
            let mut space = [MaybeUninit::uninit(); FIRST_READ];
            let mut buf = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            self.ended = read.is_err() || buf.filled().is_empty();
            if self.held.is_empty() && buf.filled().len() < FIRST_ROOM {
                // With room for what comes while the request is being served, which is mostly nothing.
                self.held = BytesMut::with_capacity(FIRST_ROOM);
            }
            self.held.extend_from_slice(buf.filled());
        }
        Poll::Ready(!is_blank(&self.held))
    }

    /// Waits for the next message's head.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        if self.guard.is_done() {
            self.departure = None;
            self.vigil = None;
            self.answering = false;
            self.guard.next_message();
            self.begun = true;
        }
        let mut looked = self.held.is_empty();
        loop {
            if !looked {
                let bad = match self.guard.head(&self.held) {
                    Ok(Some(head)) => {
                        let bytes = self.held.split_to(head.length).freeze();
                        self.account();
                        return Poll::Ready(Came::Head(bytes, head));
                    }
                    Ok(None) if self.account() => None,
                    Ok(None) => Some(BadHead::NoRoom),
                    Err(bad) => Some(bad),
                };
                if self.state.is(Activity::Idle) && !is_blank(&self.held) {
                    self.state.start(Activity::Head, clock::now());
                }
                if let Some(bad) = bad {
                    return Poll::Ready(Came::Bad(bad));
                }
            }
            if self.ended || !ready!(self.poll_fill(cx, READ)).is_ok_and(|more| more) {
                return Poll::Ready(Came::Nothing);
            }
            looked = false;
        }
    }

    /// All of a body of so many bytes, if it is here.
    pub fn whole_body(&mut self, length: u64) -> Option<Bytes> {
        if (self.held.len() as u64) < length {
            return None;
        }
        self.guard.body(&mut self.held).ok()?
    }

    /// Waits for the next part of the body; there is none at the end.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            let part = self.guard.body(&mut self.held).map_err(|_| Error::Body)?;
            if let Some(part) = part {
                return Poll::Ready(self.join_small(part).map(Some));
            }
            if self.guard.is_done() {
                return Poll::Ready(Ok(None));
            }
            let left = self.guard.remaining();
            let left = left.map_or(0, |left| usize::try_from(left).unwrap_or(READ_MOST));
            let room = self.room.max(left.min(READ_MOST));
            if self.ended || !ready!(self.poll_fill(cx, room)).is_ok_and(|more| more) {
                self.ended = true;
                return Poll::Ready(Err(Error::BodyCut));
            }
        }
    }

    /// A small part of a body with those behind it that have come: a chunk of its own for each would cost the backend a
    /// read, and us a write.
    fn join_small(&mut self, part: Bytes) -> Result<Bytes, Error> {
        if part.len() >= SMALL_PART || self.held.is_empty() || self.guard.is_done() {
            return Ok(part);
        }
        let mut joined = BytesMut::new();
        while joined.len() < JOINED_PARTS
            && let Some(next) = self.guard.body(&mut self.held).map_err(|_| Error::Body)?
        {
            if joined.is_empty() {
                joined.reserve(part.len() + next.len() + self.held.len().min(JOINED_PARTS));
                joined.extend_from_slice(&part);
            }
            joined.extend_from_slice(&next);
        }
        Ok(match joined.is_empty() {
            true => part,
            false => joined.freeze(),
        })
    }

    /// Throws away what is at hand of the body, up to so many bytes. Whether that was the rest of it.
    pub fn skip_body(&mut self, cx: &mut Context<'_>, most: usize) -> bool {
        let mut skipped = 0;
        while !self.guard.is_done() {
            match self.poll_body(cx) {
                Poll::Ready(Ok(Some(part))) if skipped < most => skipped += part.len(),
                Poll::Ready(Ok(None)) => {}
                _ => return false,
            }
        }
        true
    }

    /// While a request is being served that has come completely: what comes now belongs to the next one, and
    /// an end may mean that the client has left. Ready when it has.
    pub fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended && self.held.len() < AHEAD_MAX && self.account() {
            if ready!(self.poll_fill(cx, READ_LEAST)).is_err() {
                return Poll::Ready(());
            }
        }
        self.account();
        if !self.ended {
            return match self.answering {
                // Whether it takes the answer tells.
                true => Poll::Pending,
                false => self.poll_left(cx),
            };
        }
        let answering = self.answering;
        let departure = self
            .departure
            .get_or_insert_with(|| Box::new(Departure::new(answering)));
        departure.poll(cx, &mut self.stream)
    }

    /// While nothing of what the client sends is read. Ready when it has left.
    #[cold]
    pub fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let lacks = self.guard.remaining().unwrap_or_default();
        let lacks = lacks.saturating_sub(self.held.len() as u64);
        let vigil = self.vigil.get_or_insert_with(|| Box::new(Vigil::new()));
        vigil.poll(cx, &self.stream, lacks)
    }

    /// Some of an answer is about to be written. Returns how much of it was sent ahead: see [`Departure`].
    pub fn answers(&mut self, answer: &[u8]) -> usize {
        self.answering = true;
        let departure = self.departure.as_mut();
        departure.map_or(0, |departure| departure.write(answer))
    }

    /// An interim answer is out, and another answer follows: whether the client has left is found out anew.
    pub fn is_between_answers(&mut self) {
        self.answering = false;
        self.departure = None;
    }

    /// Writes what the client takes of these, in this order; never nothing.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: [&[u8]; 3],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let result = match parts {
            [one, [], []] => stream.poll_write(cx, one),
            [[], data, tail] => stream.poll_write_vectored(cx, &[data, tail].map(IoSlice::new)),
            parts => stream.poll_write_vectored(cx, &parts.map(IoSlice::new)),
        };
        let once_more = || {
            let first = parts.into_iter().find(|part| !part.is_empty());
            self.stream.send_now(first.unwrap_or_default())
        };
        let result = self.stall.watch_write(cx, result, once_more);
        if let Poll::Ready(Ok(0)) = result {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        result
    }

    /// Everything that was written is out.
    pub fn flushed(&self, now: Instant) {
        self.state.flushed(now);
    }

    /// Reads what comes, with room for at least so many bytes. False at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<bool>> {
        if self.held.capacity() - self.held.len() < room {
            if !self.held.is_empty() {
                self.held.reserve(room);
            } else if !self.held.try_reclaim(room) {
                // Not `reserve`, which makes it as large as it once was.
                self.held = BytesMut::with_capacity(room.max(READ));
            }
        }
        let room = self.held.capacity() - self.held.len();
        match ready!(pin!(self.stream.read_buf(&mut self.held)).poll(cx)) {
            Ok(0) => self.ended = true,
            Ok(read) if read == room => self.room = (2 * self.room).min(READ_MOST),
            Ok(_) => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(!self.ended))
    }

    /// Whether what was refused are the first words of HTTP/2, and the first on this connection.
    pub fn is_http2(&self) -> bool {
        let known = self.held.len().min(PREFACE.len());
        !self.begun && known >= PREFACE_LINE && self.held[..known] == PREFACE[..known]
    }

    /// The socket, and what has been read from it.
    pub fn into_raw(self) -> (Stream, Bytes) {
        (self.stream, self.held.freeze())
    }

    /// When it is closed, by whomever, the client shall see that it broke.
    pub fn reset(&self) {
        self.stream.leave_nothing();
    }

    /// When it is closed, the client shall see an ordinary end after all.
    pub fn reset_no_more(&self) {
        self.stream.leave_in_order();
    }

    /// Whether nothing of a request has come.
    pub fn is_silent(&self) -> bool {
        is_blank(&self.held)
    }

    /// Gives its read buffer back, if there is nothing in it.
    pub fn rest(&mut self) {
        if self.held.is_empty() {
            self.held = BytesMut::new();
            self.room = READ;
        }
    }

    /// A head that was taken is to be refused.
    pub fn put_back(&mut self, head: &Bytes) {
        let behind = std::mem::replace(&mut self.held, BytesMut::from(&head[..]));
        self.held.extend_from_slice(&behind);
    }

    /// From now on bytes pass that are not HTTP.
    pub fn open(&mut self) {
        self.stall.forget_budget();
        self.guard.open();
    }

    /// Says why the connection ends, to whoever speaks HTTP.
    pub async fn refuse(&mut self, error: &Error) {
        use tokio::io::AsyncWriteExt;
        let mut answer = (self.refuse_head)(error);
        if !self.begun && is_foreign(&self.held) {
            answer.clear();
        }
        if self.held.starts_with(b"HEAD ")
            && let Some(end) = memmem::find(&answer, b"\r\n\r\n")
        {
            // Whatever is wrong with it, it asks for no body.
            answer.truncate(end + 4);
        }
        let _ = tokio::time::timeout(Duration::from_millis(100), async {
            self.stream.write_all(&answer).await?;
            self.stream.shutdown().await
        })
        .await;
    }

    /// Whether a client may still be sending when its connection is to end.
    pub fn lingers(&self) -> bool {
        let between = self.guard.is_done() || self.guard.in_head();
        !(self.ended || (between && is_blank(&self.held)))
    }

    /// What lets a client that is still sending read the answer before the socket is closed, unless its place is needed
    /// or, as `closing` says, everything ends. Boxed, since few connections ever need it.
    pub fn linger<'a>(
        &'a mut self,
        closing: impl Fn() -> bool + Send + Sync + 'a,
    ) -> Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>> {
        self.lingers()
            .then(|| Box::pin(self.read_on(closing)) as Pin<Box<_>>)
    }

    /// Reads the rest of what a client sends, within bounds.
    async fn read_on(&mut self, closing: impl Fn() -> bool) {
        let begun = clock::now();
        self.state.retire(begun);
        self.held = BytesMut::new();
        self.account();
        let end = begun + LINGER_MOST;
        let mut timer = pin!(tokio::time::sleep(LINGER_PAUSE));
        let mut heard = begun;
        poll_fn(|cx| {
            loop {
                if self.state.is_evicted() || closing() || heard >= end {
                    return Poll::Ready(());
                }
                let mut space = [MaybeUninit::uninit(); LINGER_READ];
                let mut buf = ReadBuf::uninit(&mut space);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => heard = clock::now(),
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => {
                        ready!(timer.as_mut().poll(cx));
                        let due = end.min(heard + LINGER_PAUSE);
                        if due <= clock::now() {
                            return Poll::Ready(());
                        }
                        timer.as_mut().reset(due.into());
                    }
                }
            }
        })
        .await;
    }

    /// Brings the budget up to date; false if it has no more, so that nothing more may be held.
    fn account(&mut self) -> bool {
        if self.held.len() <= HELD_FREE && self.quota.bytes() == 0 {
            return true;
        }
        let held = match self.held.len() {
            0..=HELD_FREE => 0,
            more => more as u64,
        };
        let taken = self.quota.bytes();
        if held > taken {
            return self.quota.grow(held - taken);
        }
        self.quota.shrink(taken - held);
        true
    }
}

/// What is to be written first.
pub(super) fn first<'a>(bufs: &'a [IoSlice<'_>]) -> &'a [u8] {
    let first = bufs.iter().find(|buf| !buf.is_empty());
    first.map_or(&[], |first| first)
}

/// Reads from the bytes that a connection's previous owner has read already; false if none are left.
pub(super) fn take_ahead(ahead: &mut Bytes, buf: &mut ReadBuf<'_>) -> bool {
    if ahead.is_empty() {
        return false;
    }
    let count = buf.remaining().min(ahead.len());
    buf.put_slice(&ahead.split_to(count));
    true
}

/// Whether nothing has come but, at most, the empty line that old clients send after a body: not the
/// beginning of a request.
fn is_blank(held: &[u8]) -> bool {
    matches!(held, b"" | b"\r" | b"\r\n")
}

/// Whether a first line has the words of a request, and none that is HTTP's: neither a version, nor a
/// path, a URI or an asterisk. It is another protocol, a bad preface of HTTP/2 for example, which would
/// take an answer's bytes for something else.
fn is_foreign(held: &[u8]) -> bool {
    let line = memmem::find(held, b"\r\n").map(|end| &held[..end]);
    line.is_some_and(|line| {
        line.split(|&byte| byte == b' ').count() == 3
            && line.iter().all(|&b| b == b' ' || b.is_ascii_alphanumeric())
    })
}

/// What passes when it is no HTTP any more.
impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            let count = buf.remaining().min(this.held.len());
            buf.put_slice(&this.held.split_to(count));
            this.rest();
            this.account();
            return Poll::Ready(Ok(()));
        }
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.ended = buf.filled().len() == before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        let once_more = || this.stream.send_now(buf);
        this.stall.watch_write(cx, result, once_more)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        let once_more = || this.stream.send_now(first(bufs));
        this.stall.watch_write(cx, result, once_more)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_foreign_line_is_http() {
        assert!(is_foreign(b"INVALID CONNECTION PREFACE\r\n\r\n"));
        for http in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"GET / FOO\r\n",
            b"GET index HTTP/1.1\r\n",
            b"OPTIONS * ICAP\r\n",
            b"GET\r\n",
            b"GET a b",
        ] {
            assert!(!is_foreign(http), "{}", http.escape_ascii());
        }
    }
}

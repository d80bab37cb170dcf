//! A client's socket, watched: whether what it sends is HTTP, and whether a write makes progress. The
//! parser gets one message at a time, and heads whole.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    departure::Departure,
    error::Error,
    guard::{Bad, Guard, Limits},
    http2::{PREFACE, PREFACE_LINE},
    hygiene::BadHead,
    state::{Activity, Stall, State},
};
use crate::{backend::Stream, buffer::Reservation};

/// The first bytes of a connection, or of a parked one; the rest is read by the parser.
const FIRST_READ: usize = 2048;
/// What a client may send ahead of the answer to its last request, bytes; then its next bytes wait
/// in the socket.
const AHEAD_MAX: usize = 16 * 1024;
/// What a connection may hold of heads without its being accounted for, bytes.
const HELD_FREE: usize = 4 * 1024;
/// How long, and for how many bytes, the rest of what a client sends is read after the last answer:
/// closing a socket with unread bytes makes the kernel throw that answer away.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX: usize = 1024 * 1024;

/// Accounts for a head that is refused, and writes the answer.
pub type RefuseHead = Box<dyn Fn(&Error) -> Bytes + Send + Sync>;

/// See the module's documentation.
pub struct ClientIo {
    stream: Stream,
    state: Arc<State>,
    guard: Guard,
    /// What was read and not passed on: an incomplete head, or the requests after this one.
    held: BytesMut,
    /// What that takes of the budget.
    quota: Reservation,
    /// It has not been looked at yet.
    fresh: bool,
    /// So much of it may pass.
    passed: usize,
    /// The client will send no more.
    ended: bool,
    departure: Option<Box<Departure>>,
    /// Some of the answer has been written.
    answering: bool,
    /// What is wrong with the head.
    verdict: Option<BadHead>,
    /// There has been a message already.
    begun: bool,
    stall: Stall,
    refuse_head: RefuseHead,
    /// Our words in the place of hyper's.
    instead: Option<Bytes>,
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
        Self {
            stream,
            state,
            guard: Guard::new(limits),
            fresh: !first.is_empty(),
            held: first,
            quota,
            passed: 0,
            ended: false,
            departure: None,
            answering: false,
            verdict: None,
            begun: false,
            stall: Stall::new(write_timeout),
            refuse_head,
            instead: None,
        }
    }

    /// Waits for a request's first bytes, without a buffer to be kept. Whether there will be any.
    pub fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while is_blank(&self.held) && !self.ended {
            let mut space = [MaybeUninit::uninit(); FIRST_READ];
            let mut buf = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            self.ended = read.is_err() || buf.filled().is_empty();
            self.held.extend_from_slice(buf.filled());
            self.fresh = true;
        }
        Poll::Ready(!is_blank(&self.held))
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

    /// Why the head was refused, if it was.
    pub fn verdict(&self) -> Option<BadHead> {
        self.verdict
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

    /// Lets a client that is still sending read the answer before the socket is closed.
    pub async fn linger(mut self) {
        use tokio::io::AsyncReadExt;
        let between = self.guard.is_done() || self.guard.in_head();
        if self.ended || (between && is_blank(&self.held) && self.verdict.is_none()) {
            return;
        }
        self.held.clear();
        let _ = tokio::time::timeout(LINGER, async {
            let mut read = 0;
            while read < LINGER_MAX && self.stream.read_buf(&mut self.held).await? > 0 {
                read += self.held.len();
                self.held.clear();
            }
            io::Result::Ok(())
        })
        .await;
    }

    /// Passes on what may pass of what is held.
    fn pass(&mut self, buf: &mut ReadBuf<'_>) {
        let size = self.passed.min(buf.remaining());
        buf.put_slice(&self.held[..size]);
        self.held.advance(size);
        self.passed -= size;
        if self.held.is_empty() {
            // An idle connection keeps no buffer.
            self.held = BytesMut::new();
        }
        self.account();
    }

    /// Brings the budget up to date; false if it has no more, so that nothing more may be held.
    fn account(&mut self) -> bool {
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

    /// How many of the bytes may pass, after all that have. `None` when there is nothing to be done
    /// but to refuse.
    fn judge(guard: &mut Guard, bytes: &[u8], verdict: &mut Option<BadHead>) -> io::Result<usize> {
        match guard.advance(bytes) {
            Ok(passed) => Ok(passed),
            Err(Bad::Body) => Err(malformed()),
            Err(Bad::Head(bad)) => {
                *verdict = Some(bad);
                Ok(0)
            }
        }
    }

    /// Looks at what is held. Whether some of it may pass.
    fn judge_held(&mut self) -> io::Result<bool> {
        if self.state.is(Activity::Idle) && !is_blank(&self.held) {
            self.state.start(Activity::Head);
        }
        self.passed = Self::judge(&mut self.guard, &self.held, &mut self.verdict)?;
        if self.passed == 0 && self.verdict.is_none() && !self.account() {
            self.verdict = Some(BadHead::FieldsTooLarge);
        }
        Ok(self.passed > 0)
    }

    /// While a request is being served: what comes now belongs to the next, and an end may mean that
    /// the client has left.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        while !self.ended && self.held.len() < AHEAD_MAX && self.account() {
            if !self.held.is_empty() {
                self.state.has_more();
            }
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            self.held.extend_from_slice(&buf.filled()[before..]);
            self.ended = buf.filled().len() == before;
            buf.set_filled(before);
        }
        self.account();
        self.state.has_more();
        if !self.ended {
            return Poll::Pending;
        }
        let answering = self.answering;
        let departure = self
            .departure
            .get_or_insert_with(|| Box::new(Departure::new(answering)));
        departure.poll(cx, &mut self.stream).map(Ok)
    }

    /// What of an answer's beginning the client has already.
    fn sent_before(&mut self, answer: &[u8]) -> Option<usize> {
        self.answering |= !answer.starts_with(b"HTTP/1.1 1");
        let sent = self.departure.as_mut()?.write(answer);
        (sent > 0).then_some(sent)
    }

    /// hyper answers a head that it cannot read without asking anyone, and briefly. It does so only
    /// when nothing else is being answered, which is how such a write is known.
    fn replace(&mut self, written: &[u8]) {
        let own = self.state.is(Activity::Head) || self.state.is(Activity::Idle);
        if own
            && self.instead.is_none()
            && let Some(status) = status_of(written)
        {
            let bad = match status {
                414 => BadHead::TargetTooLong,
                431 => BadHead::FieldsTooLarge,
                _ => BadHead::Syntax,
            };
            self.instead = Some((self.refuse_head)(&bad.into()));
        }
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.instead.as_mut().filter(|rest| !rest.is_empty()) {
            let result = Pin::new(&mut self.stream).poll_write(cx, rest);
            match result {
                Poll::Ready(Ok(written)) => drop(rest.split_to(written)),
                other => return self.stall.watch(cx, other.map_ok(|_| ())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads from what was read ahead of a connection's next owner; false if nothing is left of it.
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
        if this.passed > 0 {
            this.pass(buf);
            return Poll::Ready(Ok(()));
        }
        if this.guard.is_broken() {
            return Poll::Ready(Err(malformed()));
        }
        if this.guard.is_done() {
            if this.state.is(Activity::Tunnel) {
                this.guard.open();
            } else if this.state.is(Activity::Idle) {
                this.departure = None;
                this.answering = false;
                this.guard.next_message();
                this.begun = true;
            } else {
                return this.poll_ahead(cx, buf);
            }
            this.fresh = !this.held.is_empty();
        }
        if std::mem::take(&mut this.fresh) && this.judge_held()? {
            this.pass(buf);
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.verdict.is_some() {
                // Whoever polls this connection sees it, and takes the socket back.
                this.state.refuse();
                return Poll::Pending;
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let new = &buf.filled()[before..];
            if new.is_empty() {
                this.ended = true;
            } else if this.held.is_empty() {
                if this.state.is(Activity::Idle) && !is_blank(new) {
                    this.state.start(Activity::Head);
                }
                let passed = Self::judge(&mut this.guard, new, &mut this.verdict)?;
                if passed < new.len() {
                    this.held.extend_from_slice(&new[passed..]);
                    buf.set_filled(before + passed);
                }
                if passed > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.held.extend_from_slice(new);
                buf.set_filled(before);
                if this.judge_held()? {
                    this.pass(buf);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// A body that is not what its head says.
fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the body is malformed")
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
        if let Some(sent) = this.sent_before(buf) {
            return Poll::Ready(Ok(sent));
        }
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.state.stall(result.is_pending());
        this.stall.watch(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first = bufs.iter().find(|buf| !buf.is_empty());
        if let Some(first) = first {
            this.replace(first);
        }
        if this.instead.is_some() {
            let all = bufs.iter().map(|buf| buf.len()).sum();
            return this.poll_instead(cx).map_ok(|()| all);
        }
        if let Some(sent) = first.and_then(|first| this.sent_before(first)) {
            return Poll::Ready(Ok(sent));
        }
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.state.stall(result.is_pending());
        this.stall.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        if result.is_ready() {
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

//! One connection to a worker, driven by whoever uses it: no task of its own, so that dropping it
//! closes the socket at once.

use std::{
    future::Future as _,
    io::ErrorKind,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use tokio::io::AsyncReadExt as _;

use super::{
    Answered, Error, RequestBody, ResponseBody, Stream,
    codec::{Added, BodyDecoder, Heads, Malformed, RequestHead, Signs, Step},
    connect::Home,
    sending::Sending,
    steering::{Seat, Steering},
};

/// The first read takes up to this, bytes: most heads, and many whole answers.
const READ_FIRST: usize = 4 * 1024;
/// The most one read takes, bytes.
const READ_MOST: usize = 256 * 1024;
/// The least that it may be.
const READ_LITTLE: usize = 4 * 1024;
/// The most one read takes while the head is still to come, bytes: what lies there are interim answers, which
/// wait until the client takes them.
const READ_HEAD: usize = 16 * 1024;

/// Under load a connection gets its next request within this time. The poll of all sockets that reported the
/// request is more recent still, and the kernel knows little more than that did: not worth a system call for
/// each request.
const JUST_NOW: Duration = Duration::from_millis(10);

/// See the module's documentation.
pub(super) struct Link {
    stream: Stream,
    /// The thread with whose reactor it is registered.
    home: Home,
    sending: Sending,
    read: BytesMut,
    /// Room to make for the next read.
    room: usize,
    /// The most that it may be.
    most: usize,
    receiving: Receiving,
    /// Whether the backend said that it stays open.
    keep_alive: bool,
    /// The backend closed its side, or the connection broke.
    ended: bool,
    /// Whether it has carried a request before this one.
    pub(super) reused: bool,
    /// Small parts go out at once.
    hurried: bool,
    /// Since when it is there, once it has carried a request.
    made: Option<Instant>,
    idle_since: Option<Instant>,
    /// Where it is known which worker has it.
    seat: Option<Seat>,
}

enum Receiving {
    Head(Heads),
    Body(BodyDecoder),
}

/// A response that has begun; [`Link::poll_data`] reads its body.
pub(super) struct Begun {
    /// In a box already: it would be a large part of every request's future, and goes to the client in it.
    pub(super) response: Answered,
    pub(super) signs: Signs,
}

/// Why there is no head.
pub(super) struct NoHead {
    pub(super) error: Error,
    /// The request, if it is whole: whether it may be sent again is another question.
    pub(super) request: Option<(Box<RequestHead>, RequestBody)>,
    /// Whether a byte of it was written.
    pub(super) begun: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Boxed, since it changes hands often. `read` is an empty buffer, which may have memory.
    pub(super) fn new(stream: Stream, read: BytesMut) -> Box<Self> {
        Box::new(Self {
            stream,
            home: Home::here(),
            sending: Sending::on_new_socket(),
            read,
            room: READ_FIRST,
            most: READ_MOST,
            receiving: Receiving::Body(BodyDecoder::none()),
            keep_alive: false,
            ended: false,
            reused: false,
            hurried: false,
            made: None,
            idle_since: None,
            seat: None,
        })
    }

    /// Gives it a seat of this steering, if it has none. `busy` says that it gets a request now.
    pub(super) fn sit(&mut self, steering: &Arc<Steering>, busy: bool) {
        if self.seat.as_ref().is_none_or(|seat| !seat.is_of(steering)) {
            let connection = self.stream.connection();
            self.seat = connection.map(|connection| steering.seat(connection, busy));
        }
    }

    /// Since when it is there, which is `now` if it has carried no request yet.
    pub(super) fn made(&mut self, now: Instant) -> Instant {
        *self.made.get_or_insert(now)
    }

    /// Where it is known which worker has it.
    pub(super) fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// Takes a request, which may ask for an `upgrade`; [`Link::poll_head`] writes it. A `packet` goes in the
    /// place of its head.
    pub(super) fn send(
        &mut self,
        request: (Box<RequestHead>, RequestBody),
        upgrade: bool,
        added: &dyn Added,
        packet: Option<Bytes>,
    ) {
        self.receiving = Receiving::Head(Heads::new(request.0.method(), upgrade));
        self.sending.begin(request, added, packet);
        if !self.hurried && (self.reused || upgrade || !self.sending.is_one_segment()) {
            // What fits in one segment, with nothing sent before it, is not held back by Nagle's algorithm.
            // Mostly that is all that a connection carries.
            self.stream.hurry();
            self.hurried = true;
        }
        self.room = READ_FIRST;
        self.most = READ_MOST;
    }

    /// The response's head. Writes and reads what it can.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Begun, NoHead>> {
        let polled = self.poll_for_head(cx);
        polled.map_err(|error| NoHead {
            error,
            begun: self.sending.has_begun(),
            request: self.sending.take_back(),
        })
    }

    fn poll_for_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Begun, Error>> {
        if let Poll::Ready(Err(error)) = self.sending.poll(&mut self.stream, cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            let Receiving::Head(heads) = &mut self.receiving else {
                return Poll::Pending;
            };
            if let Some(head) = heads.take(&mut self.read).map_err(Error::Protocol)? {
                if !self.sending.has_begun() {
                    // An answer to nobody's question.
                    return Poll::Ready(Err(Error::Protocol(Malformed::Unasked)));
                }
                self.sending.forget();
                self.keep_alive = head.keep_alive;
                self.receiving = Receiving::Body(head.body);
                let body = ResponseBody::begun(head.usual);
                return Poll::Ready(Ok(Begun {
                    response: Box::new(head.response.map(|()| body)),
                    signs: head.signs,
                }));
            }
            if heads.has_told() {
                if !self.sending.has_begun() {
                    return Poll::Ready(Err(Error::Protocol(Malformed::Unasked)));
                }
                // A backend that sends an interim answer has the request, so it must not be sent again.
                self.sending.forget();
                // One at a time: there may be any number of them.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !ready!(self.poll_fill(cx))? {
                return Poll::Ready(Err(cut()));
            }
        }
    }

    /// An interim answer, if there is one since the last look at the head.
    pub(super) fn told(&mut self) -> Option<Box<Response<()>>> {
        match &mut self.receiving {
            Receiving::Head(heads) => heads.told(),
            Receiving::Body(_) => None,
        }
    }

    /// What is left of the request once its response has begun: an empty one with its memory.
    pub(super) fn take_spent(&mut self) -> Option<Box<RequestHead>> {
        self.sending.take_spent()
    }

    /// Whether the response has not begun.
    pub(super) fn is_before_head(&self) -> bool {
        matches!(self.receiving, Receiving::Head(_))
    }

    /// Changes when something of the request's body has moved on that did not go out at once.
    pub(super) fn moved(&self) -> u64 {
        self.sending.moved()
    }

    /// Whether the next part of such a body is waited for.
    pub(super) fn waits_for_body(&self) -> bool {
        self.sending.waits_for_body()
    }

    /// How much of the response's body is to come, if its head says so.
    pub(super) fn remaining(&self) -> Option<u64> {
        match &self.receiving {
            Receiving::Body(body) => body.remaining(),
            Receiving::Head(_) => None,
        }
    }

    /// The rest of this response is read in parts of about so many bytes.
    pub(super) fn read_at_most(&mut self, most: u64) {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.most = most.clamp(READ_LITTLE, READ_MOST);
        self.room = self.room.min(self.most);
    }

    /// The next part of the response's body.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if !self.sending.is_over()
            // The answer came early: the rest of the request is still sent, as long as the backend takes it.
            && let Poll::Ready(Err(error @ Error::RequestBody(_))) =
                self.sending.poll(&mut self.stream, cx)
        {
            // The worker waits for a body that will not come: it is to see the end of the connection now.
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let Receiving::Body(body) = &mut self.receiving else {
                return Poll::Ready(None);
            };
            match body.next(&mut self.read) {
                Ok(Step::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Step::Done) => return Poll::Ready(None),
                Ok(Step::More) => {}
                Err(malformed) => return Poll::Ready(Some(Err(Error::Protocol(malformed)))),
            }
            if let Some(left) = body.remaining() {
                // One byte more than is left: a read that leaves room is known to be the last.
                let left = usize::try_from(left).unwrap_or(usize::MAX);
                self.room = self.room.max(left.saturating_add(1)).min(self.most);
            }
            match ready!(self.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) => {
                    let whole = match &mut self.receiving {
                        Receiving::Body(body) => body.end(),
                        Receiving::Head(_) => false,
                    };
                    return Poll::Ready((!whole).then(|| Err(cut())));
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// What came after the body, once all of it was read.
    pub(super) fn take_trailers(&mut self) -> Option<Box<HeaderMap>> {
        match &mut self.receiving {
            Receiving::Body(body) => body.take_trailers(),
            Receiving::Head(_) => None,
        }
    }

    /// Reads once; false at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        if !self.read.try_reclaim(self.room) {
            // Not `reserve`, which would make it as large as it once was, although whoever holds parts of the
            // old buffer may do so for long. What it still has unread is little, the size of a chunk for
            // example.
            let mut next = BytesMut::with_capacity(self.read.len() + self.room);
            next.extend_from_slice(&self.read);
            self.read = next;
        }
        let room = self.read.capacity() - self.read.len();
        let read = ready!(pin!(self.stream.read_buf(&mut self.read)).poll(cx));
        match read {
            Ok(0) => {
                self.ended = true;
                Poll::Ready(Ok(false))
            }
            Ok(read) => {
                if read == room {
                    let most = match self.receiving {
                        Receiving::Head(_) => self.most.min(READ_HEAD),
                        Receiving::Body(_) => self.most,
                    };
                    self.room = (2 * self.room).min(most);
                }
                Poll::Ready(Ok(true))
            }
            Err(error) => {
                self.ended = true;
                Poll::Ready(Err(Error::Reset(error)))
            }
        }
    }

    /// After a complete response: whether another request may follow. Not if anything came after the
    /// response: that is the answer to nobody's question.
    pub(super) fn reusable(&mut self) -> bool {
        let idle = matches!(&self.receiving, Receiving::Body(body) if body.is_done());
        if !(idle && self.keep_alive && self.sending.is_whole())
            || self.ended
            || !self.read.is_empty()
        {
            return false;
        }
        // Whatever comes now is not wanted.
        self.ended = !self.stream.is_quiet();
        !self.ended
    }

    /// After a complete response that said the connection stays open: whether it has ended.
    pub(super) fn ended_silently(&self) -> bool {
        let done = matches!(&self.receiving, Receiving::Body(body) if body.is_done());
        done && self.keep_alive && self.read.is_empty() && (self.ended || self.stream.has_ended())
    }

    /// Before another request: whether still nothing has arrived on it. The runtime knows what had arrived
    /// when it last polled all sockets; what has arrived since, only the kernel knows. The kernel is asked
    /// unless the last request ended just now and this one may be sent again. It is also asked for a
    /// connection of another thread, since it is not known when that thread last polled.
    pub(super) fn is_still_quiet(&mut self, replayable: bool, now: Instant) -> bool {
        let known = replayable && self.is_at_home() && self.idle_for(now) < JUST_NOW;
        self.reusable() && (known || !self.stream.has_something())
    }

    /// Whether this thread's reactor looks at it.
    pub(super) fn is_at_home(&self) -> bool {
        self.home == Home::here()
    }

    /// Registers it with this thread's reactor, if it is not. Left with another thread's, each answer would
    /// have to wake this thread: a system call more, and later. `None` if the reactor does not take it.
    pub(super) fn come_home(self: Box<Self>) -> Option<Box<Self>> {
        if self.is_at_home() {
            return Some(self);
        }
        let link = *self;
        Some(Box::new(Self {
            stream: link.stream.move_here().ok()?,
            home: Home::here(),
            sending: Sending::on_new_socket(),
            ..link
        }))
    }

    /// After a 101: the socket, what has been read of the new protocol already, and the place at the worker. `None` for
    /// a server that switches before it has the whole request.
    pub(super) fn into_raw(self) -> Option<(Stream, Bytes, Option<Seat>)> {
        let switched = self.sending.is_whole() && !self.ended;
        switched.then(|| (self.stream, self.read.freeze(), self.seat))
    }

    /// Makes closing it a reset, which the other side sees at its next write: after an ordinary end, that
    /// write would still succeed.
    pub(super) fn leave_nothing(&self) {
        self.stream.leave_nothing();
    }

    /// Closes it. The buffer for reading is left, if it is an ordinary one.
    pub(super) fn close(mut self) -> Option<BytesMut> {
        let done = matches!(&self.receiving, Receiving::Body(body) if body.is_done());
        if done && self.sending.is_whole() && !self.ended {
            self.stream.leave_nothing();
        }
        self.read.clear();
        (self.room <= READ_FIRST).then_some(self.read)
    }

    pub(super) fn park(&mut self, now: Instant) {
        self.idle_since = Some(now);
        self.reused = true;
        if let Some(seat) = &self.seat {
            seat.park(now);
        }
        // What was read belongs to whoever reads the response; the next one begins with an ordinary buffer
        // again.
        if self.room > READ_FIRST {
            self.read = BytesMut::new();
        }
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        self.idle_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// The backend closed before the end.
fn cut() -> Error {
    Error::Reset(ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{super::Lines, *};

    #[tokio::test]
    async fn what_comes_unasked_is_seen_before_the_reactor_says_so() {
        let now = crate::clock::now();
        for unasked in ["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "x", ""] {
            let (mut link, mut backend) = pair().await;
            link.park(now);
            assert!(link.is_still_quiet(false, now), "nothing has come");
            if unasked.is_empty() {
                drop(backend);
            } else {
                backend.write_all(unasked.as_bytes()).expect("written");
            }
            // Not an await in between: the reactor has not looked.
            assert!(!link.is_still_quiet(false, now), "{unasked:?}");
            assert!(!link.is_still_quiet(true, now + JUST_NOW), "{unasked:?}");
        }
    }

    /// The kernel is not asked, but what the reactor has seen counts, however short the time.
    #[tokio::test]
    async fn what_comes_unasked_is_seen_when_the_reactor_has_said_so() {
        let now = crate::clock::now();
        let (mut link, mut backend) = pair().await;
        link.park(now);
        assert!(link.is_still_quiet(true, now));
        backend.write_all(b"x").expect("written");
        let Stream::Tcp(stream) = &link.stream else {
            unreachable!("it is TCP");
        };
        stream.readable().await.expect("it is readable");
        assert!(!link.is_still_quiet(true, now));
    }

    /// Else the next one seems to move, and has twice its time.
    #[tokio::test]
    async fn what_moves_is_counted_for_each_request() {
        let (mut link, _backend) = pair().await;
        let body = RequestBody::Full(Some(Bytes::from_static(b"abc")), None);
        let mut upload = Box::<RequestHead>::default();
        let length = http::HeaderValue::from_static("3");
        upload.headers_mut().insert("content-length", length);
        let upload = (upload, RequestBody::Stream(Box::pin(body)));
        link.send(upload, false, &Lines::default(), None);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(link.poll_head(&mut cx).is_pending());
        assert_eq!((link.moved(), link.sending.is_whole()), (1, true));
        let next = (Box::default(), RequestBody::Empty);
        link.send(next, false, &Lines::default(), None);
        assert_eq!(link.moved(), 0);
    }

    #[test]
    fn one_of_another_thread_is_asked_and_comes_home() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
        };
        let made = std::thread::spawn(move || {
            let there = runtime().expect("a runtime");
            let pairs = there.block_on(async { [pair().await, pair().await] });
            (there, pairs)
        });
        let (there, [(mut spoilt, mut unasked), (mut link, mut backend)]) =
            made.join().expect("two connections");
        let now = crate::clock::now();
        spoilt.park(now);
        unasked.write_all(b"x").expect("written");
        assert!(
            !spoilt.is_still_quiet(true, now),
            "its reactor has not looked, so the kernel is asked"
        );
        link.park(now);
        assert!(link.is_still_quiet(true, now) && !link.is_at_home());
        let here = runtime().expect("a runtime");
        let link = here.block_on(async { link.come_home() });
        let link = link.expect("it is taken");
        assert!(link.is_at_home() && link.reused);
        // Nobody looks at it there any more.
        drop(there);
        backend.write_all(b"x").expect("written");
        let Stream::Tcp(stream) = &link.stream else {
            unreachable!("it is TCP");
        };
        let told = async { tokio::time::timeout(Duration::from_secs(30), stream.readable()).await };
        let told = here.block_on(told).expect("it is heard here");
        told.expect("it is readable");
    }

    #[tokio::test]
    async fn what_is_done_with_leaves_nothing_behind() {
        let end = |mut backend: std::net::TcpStream| {
            let wait = Some(Duration::from_secs(30));
            backend.set_read_timeout(wait).expect("a bound");
            let read = std::io::Read::read(&mut backend, &mut [0]);
            read.map_err(|error| error.kind())
        };
        let (link, backend) = pair().await;
        link.close();
        assert_eq!(end(backend), Err(ErrorKind::ConnectionReset));
        let (mut link, backend) = pair().await;
        link.receiving = Receiving::Body(BodyDecoder::length(5));
        link.close();
        assert_eq!(end(backend), Ok(0), "the answer was not whole");
    }

    async fn pair() -> (Box<Link>, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = tokio::net::TcpStream::connect(address);
        let stream = Stream::Tcp(stream.await.expect("a connection"));
        let (backend, _) = listener.accept().expect("a connection");
        let mut link = Link::new(stream, BytesMut::new());
        link.keep_alive = true;
        (link, backend)
    }
}

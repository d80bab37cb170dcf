//! One client's connection while it speaks HTTP/1: a request, its answer, the next request.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::Body as _;
use tokio::io::AsyncWrite as _;
use tower::Service;

use super::{
    body::{Reader, Supply, body},
    request::{Parsed, parse},
    response::{Asked, Framing, Length, Outgoing},
};
use crate::{
    backend::RequestHead,
    clock,
    proxy::{
        ClientBody,
        answer::Told,
        guard::{self, Head},
        hygiene::BadHead,
        io::{Came, ClientIo},
        received::{Arrived, Received},
        upgrade::Tunnel,
    },
};

/// Requests of one client in a row, before others have their turn.
const TURN: usize = 16;
/// An unread body ends the connection, unless all of it is at hand and no longer than this.
const UNREAD_MAX: usize = 64 * 1024;
/// What lies ready of interim answers for a client that does not take them, bytes; more is thrown away.
const INTERIM_MAX: usize = 64 * 1024;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// See the module's documentation.
pub struct Connection<S: Service<Arrived>> {
    io: Box<ClientIo>,
    service: S,
    stage: Stage,
    /// The request that is being served. In one place for all of them.
    serving: Pin<Box<Option<S::Future>>>,
    /// Where its body goes.
    supply: Option<Supply>,
    /// Its client waits for a 100.
    expects: bool,
    /// Its client has asked for a 100, which is ours to send.
    asks: bool,
    asked: Asked,
    /// Whether another request may follow.
    keep_alive: bool,
    /// The answer's body, until it is out.
    answer: Option<ClientBody>,
    /// Whether more of it is to be taken.
    more: bool,
    framing: Framing,
    out: Outgoing,
    /// What is left of the last request: an empty one with its memory.
    spare: Option<Box<RequestHead>>,
    /// What ends the connection once the answer is out.
    end: Option<End>,
    /// What follows a 101.
    tunnel: Option<Box<Tunnel>>,
}

/// How a connection has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its client has left, or nothing more is to be said.
    Done,
    /// An answer that goes to the connection's end is torn: an ordinary end would make it look whole.
    Torn,
    /// What came is no request.
    Refused(BadHead),
    /// The last answer was a 101, and another protocol follows: see [`Connection::into_tunnel`].
    Switched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A head is to come.
    Head,
    /// A request is being served.
    Serving,
    /// Its answer is being written.
    Answering,
    /// Nothing more will be said.
    Closing,
}

/// What a look at what the client sends has found.
enum Look {
    /// A part of the request's body for its reader.
    Part,
    /// Nothing.
    Nothing,
    /// The client has left.
    Left,
}

impl<S> Connection<S>
where
    S: Service<Arrived, Response = ClientBody, Error = Infallible>,
    S::Future: Told,
{
    /// Serves what comes from `io` by `service`, which is always ready.
    pub fn new(io: Box<ClientIo>, service: S) -> Self {
        Self {
            io,
            service,
            stage: Stage::Head,
            serving: Box::pin(None),
            supply: None,
            expects: false,
            asks: false,
            asked: Asked::default(),
            keep_alive: true,
            answer: None,
            more: false,
            framing: Framing::Length(0),
            out: Outgoing::default(),
            spare: None,
            end: None,
            tunnel: None,
        }
    }

    /// The connection and the service, for what comes next.
    pub fn into_parts(self) -> (Box<ClientIo>, S) {
        (self.io, self.service)
    }

    /// The connection and the tunnel that it is from now on, if it has ended with that.
    pub fn into_tunnel(self) -> Option<(Box<ClientIo>, Box<Tunnel>)> {
        Some((self.io, self.tunnel?))
    }

    /// No more requests: at once if none is being served, else after this one.
    pub fn close(&mut self) {
        self.keep_alive = false;
        if self.stage == Stage::Head {
            self.stage = Stage::Closing;
        }
    }

    /// Ready at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut served = 0;
        loop {
            match self.stage {
                Stage::Head => {
                    if served == TURN {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    served += 1;
                    match ready!(self.io.poll_head(cx)) {
                        Came::Head(bytes, head) => {
                            if let Err(bad) = self.begin(&bytes, &head, cx) {
                                self.io.put_back(&bytes);
                                return Poll::Ready(End::Refused(bad));
                            }
                        }
                        Came::Bad(bad) => return Poll::Ready(End::Refused(bad)),
                        Came::Nothing => self.stage = Stage::Closing,
                    }
                }
                Stage::Serving => {
                    if !ready!(self.poll_serving(cx)) {
                        return Poll::Ready(End::Done);
                    }
                    self.stage = Stage::Answering;
                }
                Stage::Answering => {
                    if ready!(self.poll_answering(cx)).is_err() {
                        return Poll::Ready(self.broken_off());
                    }
                    let now = clock::now();
                    if let Some(mut answer) = self.answer.take()
                        && !matches!(self.end, Some(End::Done | End::Torn))
                    {
                        answer.finish(now);
                    }
                    if let Some(end) = self.end {
                        self.io.flushed(now);
                        return Poll::Ready(end);
                    }
                    if matches!(self.framing, Framing::UntilClose) {
                        self.io.reset_no_more();
                    }
                    let next = self.leave_rest() && self.keep_alive;
                    self.io.flushed(now);
                    self.stage = match next {
                        true => Stage::Head,
                        false => Stage::Closing,
                    };
                }
                Stage::Closing => {
                    // Only if the client may still be sending; otherwise the socket is closed next, which
                    // ends this side too. Whether it succeeds does not matter.
                    if self.io.lingers() {
                        let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
                    }
                    return Poll::Ready(End::Done);
                }
            }
        }
    }

    /// A head has come.
    fn begin(&mut self, bytes: &Bytes, head: &Head, cx: &Context<'_>) -> Result<(), BadHead> {
        let spare = self.spare.take().unwrap_or_default();
        let parsed = parse(bytes, head, self.io.guard().fields(), spare)?;
        let Parsed {
            request,
            keep_alive,
            expects,
            trailers,
        } = parsed;
        self.asked = Asked {
            head: *request.method() == http::Method::HEAD,
            http10: head.http10,
            trailers,
        };
        self.keep_alive = keep_alive;
        self.asks = expects;
        self.expects = expects && head.body != guard::Framing::None;
        let received = match head.body {
            guard::Framing::None => Received::None,
            guard::Framing::Length(length) => {
                match self.io.whole_body(length) {
                    // Nobody has to be asked for it: RFC 9110 10.1.1.
                    Some(whole) => Received::Whole(whole),
                    None => self.supplied(Some(length), cx),
                }
            }
            guard::Framing::Chunked => self.supplied(None, cx),
        };
        let future = self.service.call(Arrived {
            head: request,
            size: bytes.len(),
            body: received,
        });
        self.serving.set(Some(future));
        self.stage = Stage::Serving;
        Ok(())
    }

    fn supplied(&mut self, declared: Option<u64>, cx: &Context<'_>) -> Received {
        let (supply, coming) = body(declared);
        // So that it is known whom to wake, or not to.
        supply.reader(cx);
        self.supply = Some(supply);
        Received::Http1(coming)
    }

    /// Ready with true when there is an answer, with false when nobody is there to take it.
    fn poll_serving(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let serving = self.serving.as_mut().as_pin_mut();
            let Some(Poll::Ready(answer)) = serving.map(|future| future.poll(cx)) else {
                self.pass_on();
                match self.look(cx) {
                    Look::Part => continue,
                    Look::Left => return Poll::Ready(false),
                    Look::Nothing => return Poll::Pending,
                }
            };
            self.serving.set(None);
            if self.supply.is_some() {
                // What the head says of the connection depends on whether the reader of the body is gone. If
                // it is not, it is not known whether the rest will come, nor whether it will be wanted: then
                // this answer is the last, RFC 9112 9.6.
                let _ = self.look(cx);
                self.keep_alive &= self.io.guard().is_done();
            }
            let Ok(answer) = answer;
            self.answer(answer);
            return Poll::Ready(true);
        }
    }

    /// Takes an interim answer of the backend's, for a client whose HTTP has them: RFC 9110 15.2. Not a 100
    /// if the client has asked for one: that is ours to send, and the backend was not asked.
    fn pass_on(&mut self) {
        let serving = self.serving.as_ref().as_pin_ref();
        if let Some(interim) = serving.and_then(|future| future.told())
            && !self.asked.http10
            && !(self.asks && interim.status() == StatusCode::CONTINUE)
            && self.out.len() < INTERIM_MAX
        {
            self.out.push_interim(&interim);
        }
    }

    /// Reads what the client sends while it waits for its answer.
    fn look(&mut self, cx: &mut Context<'_>) -> Look {
        if let Look::Left = self.write_interim(cx) {
            return Look::Left;
        }
        match self.supply.as_ref().map(|supply| supply.reader(cx)) {
            Some(Reader::Busy) => return self.watch(cx),
            Some(Reader::Waits) => return self.feed(cx),
            Some(Reader::Gone) => {
                self.supply = None;
                self.keep_alive &= self.io.skip_body(cx, UNREAD_MAX);
            }
            None => {}
        }
        if !self.io.guard().is_done() {
            return self.watch(cx);
        }
        match self.io.poll_ahead(cx) {
            Poll::Ready(()) => Look::Left,
            Poll::Pending => Look::Nothing,
        }
    }

    /// Looks whether the client is still there of whom nothing is read now.
    fn watch(&mut self, cx: &mut Context<'_>) -> Look {
        // Whether it takes an answer tells that.
        if self.stage == Stage::Serving && self.io.poll_left(cx).is_ready() {
            return Look::Left;
        }
        Look::Nothing
    }

    /// Reads a part of the body for the reader that waits for it. Before the first, a client that waits for a
    /// 100 gets it.
    fn feed(&mut self, cx: &mut Context<'_>) -> Look {
        if std::mem::take(&mut self.expects) && self.stage == Stage::Serving {
            self.out.push(CONTINUE);
        }
        if let Look::Left = self.write_interim(cx) {
            return Look::Left;
        }
        let Poll::Ready(part) = self.io.poll_body(cx) else {
            return Look::Nothing;
        };
        self.keep_alive &= part.is_ok();
        let part = part.transpose();
        let last = !matches!(part, Some(Ok(_)));
        if let Some(supply) = &self.supply {
            supply.hand_over(part, cx);
        }
        if last {
            self.supply = None;
        }
        Look::Part
    }

    /// Writes what must be out before an answer is there.
    fn write_interim(&mut self, cx: &mut Context<'_>) -> Look {
        if self.stage != Stage::Serving || self.out.is_empty() {
            return Look::Nothing;
        }
        while !self.out.is_empty() {
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Look::Left,
                Poll::Pending => return Look::Nothing,
            }
        }
        self.io.is_between_answers();
        Look::Nothing
    }

    /// An answer is there: its head.
    fn answer(&mut self, mut answer: ClientBody) {
        if !self.asked.trailers || self.asked.http10 {
            answer.forget_trailers();
        }
        let length = match answer.is_end_stream() {
            true => Length::None,
            false => match answer.size_hint().exact() {
                Some(length) => Length::Known(length),
                None => Length::Unknown,
            },
        };
        let (response, usual) = answer.head();
        (self.framing, self.keep_alive) =
            self.out
                .push_head(response, usual, length, self.asked, self.keep_alive);
        if matches!(self.framing, Framing::UntilClose) {
            // Whatever ends it from here on, half of it must not look whole.
            self.io.reset();
        }
        self.tunnel = answer.take_tunnel();
        self.end = self.tunnel.as_ref().map(|_| End::Switched);
        self.spare = answer.take_spent();
        // Else its head says all that there is to say.
        self.more = self.framing != Framing::Length(0);
        self.answer = Some(answer);
    }

    /// Writes the answer, and reads what the client sends meanwhile.
    fn poll_answering(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.gather(cx);
            if self.out.is_empty() {
                if !self.more {
                    return Poll::Ready(Ok(()));
                }
            } else if let Poll::Ready(result) = self.poll_write(cx) {
                result?;
                continue;
            }
            match self.look(cx) {
                Look::Part => {}
                Look::Left => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                Look::Nothing => return Poll::Pending,
            }
        }
    }

    /// How the connection ends when the answer is not written to its end.
    fn broken_off(&self) -> End {
        match self.framing {
            Framing::UntilClose => End::Torn,
            _ => End::Done,
        }
    }

    /// Takes of the answer's body what is there, if it is time for more.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while self.more && self.out.has_room() {
            let Some(body) = &mut self.answer else {
                return;
            };
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
                return;
            };
            let mut trailers = None;
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.out.push_data(data, &mut self.framing);
                        if !body.is_end_stream() {
                            continue;
                        }
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                // Its backend broke off; so does this.
                Some(Err(_)) => self.end = Some(self.broken_off()),
                None => {}
            }
            self.more = false;
            if self.end.is_none() && !self.out.end(&self.framing, trailers.as_ref()) {
                self.end = Some(End::Done);
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = self.io.answers(self.out.parts()[0]);
        if written == 0 {
            written = ready!(self.io.poll_write(cx, self.out.parts()))?;
        }
        self.out.advance(written);
        Poll::Ready(Ok(()))
    }

    /// The answer is out: says whether all of the request has been read. If not, nobody needs the rest, and a
    /// reader that still waits for it, an orphan perhaps, is told that it will not come.
    fn leave_rest(&mut self) -> bool {
        let whole = self.io.guard().is_done();
        if !whole {
            self.supply = None;
        }
        whole
    }
}

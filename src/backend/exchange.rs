//! One request and its response, over one connection.

use std::{
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{
    Answered, Endpoint, Error, RequestBody,
    codec::{Added, RequestHead},
    flight::Flight,
    link::{Begun, Link, NoHead},
    parts::Parts,
    profile,
    pump::{Hope, LEAST_ROOM, Pipe, len, piece, pump},
    steering::{SEARCH, Steering},
    timers::Timers,
    upgraded::switch,
    uwsgi,
};
use crate::{
    buffer::{Budget, Direction, Share},
    clock,
    config::{Config, Protocol},
    observe::Metrics,
};
use http::{Method, Response, StatusCode, header};

/// Responses of a declared length up to this are read whole before the client gets the head, bytes:
/// it saves a task, and a backend that stops half-way is a 502 instead of a torn answer.
const WHOLE_MAX: u64 = 64 * 1024;
/// An answer is large when it is longer than this many times `buffers.response`: what buffer and
/// sockets hold together does not free the worker.
const LARGE: u64 = 4;
/// A request that must not be sent twice goes only over a connection that was in use just now: it is
/// the idle ones that a server closes under a request.
const FRESH_IDLE: Duration = Duration::from_millis(250);

/// Says that the backend is busy, until completed. Dropped without, it counts as
/// [`Completion::Abandoned`].
pub trait Lease: Send + 'static {
    /// The backend has said something on the way to its answer: RFC 9110 15.2.
    fn told(&self, interim: Box<Response<()>>);

    /// The answer is a stream of events or a tunnel, which lasts as long as somebody likes.
    fn note_stream(&mut self) {}

    /// It goes over a connection that was made then.
    fn goes_over(&mut self, made: Instant) {
        let _ = made;
    }

    /// The backend is done, at this time.
    fn complete(self, completion: Completion, status: Option<StatusCode>, now: Instant);
}

impl<L: Lease> Lease for Box<L> {
    fn told(&self, interim: Box<Response<()>>) {
        (**self).told(interim);
    }

    fn note_stream(&mut self) {
        (**self).note_stream();
    }

    fn goes_over(&mut self, made: Instant) {
        (**self).goes_over(made);
    }

    fn complete(self, completion: Completion, status: Option<StatusCode>, now: Instant) {
        (*self).complete(completion, status, now);
    }
}

/// How the backend's part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// With a whole response.
    Answered,
    /// With a whole response, after its client had left.
    AnsweredInVain,
    /// With a response whose duration was determined by the client or by the view.
    Streamed,
    /// Too late.
    TimedOut,
    /// The connection broke.
    Reset,
    /// What came was not HTTP, or a switch of protocols that nobody had asked for: how busy the backend is, that does
    /// not tell.
    Malformed,
    /// Could not connect.
    Unreachable,
    /// Could not connect for lack of room in the listen backlog.
    Overloaded,
    /// The client left before the response, or did not send all of its request.
    Abandoned,
}

impl Completion {
    /// With this error, and nothing left to wait for.
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::RequestBody(_) => Self::Abandoned,
            Error::Protocol(_) | Error::Switched => Self::Malformed,
            _ => Self::Reset,
        }
    }
}

/// What an exchange needs beside the request.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// Where to.
    pub endpoint: &'a Arc<Endpoint>,
    /// The configuration the request began with.
    pub config: &'a Arc<Config>,
    /// For what is buffered.
    pub budget: &'a Arc<Budget>,
    /// What of that its client may have, where it has several answers at once.
    pub share: Option<&'a Arc<Share>>,
    /// The figures.
    pub metrics: &'a Arc<Metrics>,
    /// Whether the route says that the response is a stream.
    pub stream: bool,
    /// The time.
    pub now: Instant,
    /// The timers of this runtime.
    pub timers: &'a Timers,
    /// Fields beside those in the request's map. HTTP alone knows them: with uwsgi there are none.
    pub added: &'a dyn Added,
}

/// An exchange that brought no response.
#[derive(Debug)]
pub struct Failed<L> {
    /// Why.
    pub error: Error,
    /// The request and its lease, if not a byte of it was sent: it may go elsewhere.
    pub unsent: Option<Box<Unsent<L>>>,
}

/// A request that has not been sent.
#[derive(Debug)]
pub struct Unsent<L> {
    /// Its head.
    pub head: Box<RequestHead>,
    /// Its body.
    pub body: RequestBody,
    /// Its lease.
    pub lease: L,
}

impl<L> From<Error> for Failed<L> {
    fn from(error: Error) -> Self {
        Self {
            error,
            unsent: None,
        }
    }
}

/// Sends the request and returns the response, as soon as it may be passed on.
///
/// Dropping the future does not free the worker, so it does not free the lease either: the exchange
/// goes on in the background for at most `backend.orphan_max`.
///
/// # Errors
/// See [`Error`]. A request is sent again, once, only when that cannot have any effect twice.
// An async block keeps what it captures in one place; an async function would keep its arguments twice.
#[allow(clippy::manual_async_fn)]
pub fn exchange<L: Lease>(
    delivery: Delivery<'_>,
    mut request: Box<RequestHead>,
    mut body: RequestBody,
    mut lease: L,
) -> impl Future<Output = Result<Answered, Failed<L>>> + Send {
    async move {
        let backend = &delivery.config.backend;
        let endpoint = delivery.endpoint;
        let mut may_reuse = endpoint.keeps_connections(backend);
        let suspect = endpoint.suspect(&request, delivery.added.size());
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let (mut flight, head) = loop {
            let replayable = is_replayable(&request, &body);
            let packet = match backend.protocol {
                Protocol::Http => None,
                Protocol::Uwsgi => Some(uwsgi::encode(&request, &body).map_err(Error::from)?),
            };
            let (mut link, since) = match open(&delivery, replayable, may_reuse).await {
                Ok(opened) => opened,
                Err(error) => {
                    return Err(Failed {
                        error,
                        unsent: Some(Box::new(Unsent {
                            head: request,
                            body,
                            lease,
                        })),
                    });
                }
            };
            let reused = link.reused;
            endpoint.metrics.connection(reused);
            lease.goes_over(link.made(since));
            let mut flight = Flight::launch(
                link,
                (request, body),
                upgrade.is_some(),
                packet,
                lease,
                &delivery,
            );
            let error = match flight
                .head(delivery.timers, since, backend.response_timeout)
                .await
            {
                Ok(head) if head.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Ok(switch(flight, head.response, upgrade.as_ref())?);
                }
                Ok(head) => break (flight, head),
                // An idle connection that the server closed under us: resend, once, if no byte was sent or
                // sending it twice does no harm.
                Err(NoHead {
                    error: Error::Reset(_),
                    request: Some(unanswered),
                    begun,
                }) if reused && (replayable || !begun) => {
                    (request, body) = unanswered;
                    match flight.into_lease() {
                        Some(returned) => lease = returned,
                        None => return Err(Error::Timeout.into()),
                    }
                    may_reuse = false;
                    continue;
                }
                Err(failed) => {
                    // uWSGI says nothing of a head that is too large for it; it just closes.
                    if let (Error::Reset(_), Some(excess)) = (&failed.error, suspect)
                        && !endpoint.facts().answers_excess
                    {
                        endpoint.tried(true);
                        flight.finish(Completion::Abandoned);
                        return Err(Error::from(excess).into());
                    }
                    failed.error
                }
            };
            match error {
                Error::Timeout => flight.give_up(Completion::TimedOut),
                _ => flight.finish(Completion::of(&error)),
            }
            return Err(error.into());
        };
        let response = &head.response;
        let look = endpoint.recognise(&head.signs);
        flight.look_at_its_end(look);
        let excess = profile::says_excess(response.status());
        if suspect.is_some() {
            endpoint.tried(excess.is_some());
        }
        if let Some(excess) = excess
            && profile::is_servers_own(&head.signs)
        {
            // Had the limit been known beforehand, there would have been a 414 or 431 of ours; so there is
            // now.
            flight.finish(Completion::Abandoned);
            return Err(Error::from(excess).into());
        }
        receive(flight, head, &delivery).await
    }
}

/// A connection for the request, and the time at which it was ready, from which the backend's time counts.
async fn open(
    delivery: &Delivery<'_>,
    replayable: bool,
    may_reuse: bool,
) -> Result<(Box<Link>, Instant), Error> {
    let endpoint = delivery.endpoint;
    let keepalive_idle = delivery.config.backend.keepalive_idle;
    let max_idle = if replayable {
        keepalive_idle
    } else {
        keepalive_idle.min(FRESH_IDLE)
    };
    let steering = endpoint.steering();
    let now = match &steering {
        // Boxed, here and below: it would be a large part of every request's future. (There is no such wait
        // where a connection has to be made first, during which a free worker would idle, nor in a dry run,
        // which holds nobody back.)
        Some(steering) if may_reuse && !delivery.config.limit.dry_run => {
            Box::pin(steering.wait_for_room()).await
        }
        _ => delivery.now,
    };
    if may_reuse && let Some(link) = endpoint.take_link(max_idle, replayable, now) {
        // It has cost no time.
        return Ok((link, now));
    }
    let link = match steering {
        None => open_new(delivery).await?,
        Some(steering) => {
            let max_idle = may_reuse.then_some(max_idle);
            Box::pin(search(delivery, &steering, replayable, max_idle)).await?
        }
    };
    Ok((link, clock::now()))
}

/// Makes connections, without sending anything on them, until one belongs to a worker with a free slot, or no
/// worker seems to have one, or a kept connection that has been idle for less than `max_idle` comes free.
/// After a few rounds in vain, the next connection is taken, whoever has it.
async fn search(
    delivery: &Delivery<'_>,
    steering: &Arc<Steering>,
    replayable: bool,
    max_idle: Option<Duration>,
) -> Result<Box<Link>, Error> {
    let endpoint = delivery.endpoint;
    let mut link = open_new(delivery).await?;
    link.sit(steering, true);
    let crowded = match link.seat() {
        Some(seat) => steering.is_crowded(seat).await,
        None => false,
    };
    if !crowded {
        return Ok(link);
    }
    endpoint.close_link(link);
    for count in SEARCH {
        let kept = max_idle.and_then(|max| endpoint.take_link(max, replayable, clock::now()));
        if let Some(link) = kept {
            return Ok(link);
        }
        let (mut links, mut seats) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for _ in 0..count {
            let mut link = open_new(delivery).await?;
            link.sit(steering, false);
            let Some(seat) = link.seat() else {
                return Ok(link);
            };
            seats.push(seat.id());
            links.push(link);
        }
        let picked = steering.pick(&seats).await;
        let picked = picked.map(|at| links.swap_remove(at));
        for link in links {
            endpoint.close_link(link);
        }
        if let Some(link) = picked {
            return Ok(link);
        }
    }
    steering.rest(clock::now());
    let mut link = open_new(delivery).await?;
    link.sit(steering, true);
    Ok(link)
}

async fn open_new(delivery: &Delivery<'_>) -> Result<Box<Link>, Error> {
    let backend = &delivery.config.backend;
    let endpoint = delivery.endpoint;
    let stream = match endpoint.connect_at_once() {
        Some(connected) => connected?,
        // Boxed: it would be the largest part of every request's future.
        None => Box::pin(endpoint.dial(backend.connect_timeout)).await?,
    };
    Ok(Link::new(stream, endpoint.take_buffer()))
}

/// Whether sending it twice does no harm: RFC 9110 9.2.2, without PUT and DELETE, which applications get
/// wrong, and without a body, which is gone once sent.
fn is_replayable(request: &RequestHead, body: &RequestBody) -> bool {
    matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    ) && body.is_empty()
}

/// Takes the response over: whole if it is small or already there, else through a pipe.
#[allow(clippy::manual_async_fn)]
fn receive<'a, L: Lease>(
    mut flight: Flight<L>,
    Begun {
        mut response,
        signs,
    }: Begun,
    delivery: &'a Delivery<'_>,
) -> impl Future<Output = Result<Answered, Failed<L>>> + Send + 'a {
    let stream = delivery.stream || signs.events;
    let length = flight.remaining();
    let spent = flight.begin(response.status());
    response.body_mut().keep(spent);
    async move {
        if length == Some(0) {
            flight.finish(Completion::Answered);
            return Ok(response);
        }
        let buffers = &delivery.config.buffers;
        let read_timeout = delivery.config.backend.read_timeout;
        let held = delivery.budget.reservation(Direction::Response);
        let mut held = held.within(delivery.share);
        let mut parts = Parts::default();
        let whole = !stream
            && length.is_some_and(|length| {
                length <= WHOLE_MAX.min(buffers.response) && held.grow(length)
            });
        // The worker is not free before the client has read most of it, however much of it is buffered here.
        let large = length.is_some_and(|length| length > LARGE.saturating_mul(buffers.response));
        if large {
            flight.read_at_most(LEAST_ROOM);
        } else if length.is_none() {
            held.share();
            flight.read_at_most(piece(&held));
        }
        let arrived = if whole {
            collect(&mut flight, &mut parts, read_timeout)
                .await
                .map(|()| true)
        } else if stream || large {
            Ok(false)
        } else {
            // Short answers of unknown length are often there with their head.
            take_ready(&mut flight, &mut parts).await
        };
        let complete = match arrived {
            Ok(complete) => complete,
            Err(Error::Timeout) => {
                flight.give_up(Completion::TimedOut);
                return Err(Error::Timeout.into());
            }
            Err(error) => {
                flight.finish(Completion::of(&error));
                return Err(error.into());
            }
        };
        // What the budget has no room for keeps its worker, unless it is little: nothing else would bound how
        // much of it there is.
        let has_room = whole || held.grow(parts.len()) || parts.len() <= LEAST_ROOM;
        if complete && has_room {
            let trailers = flight.take_trailers();
            flight.finish(Completion::Answered);
            response.body_mut().fill(parts, trailers, held);
        } else {
            let (room, hope) = match length {
                _ if large => (LEAST_ROOM, Hope::None),
                Some(length) if length <= buffers.response => (buffers.response, Hope::Fits),
                Some(_) => (buffers.response, Hope::Long),
                None => (buffers.response, Hope::Unknown),
            };
            let pipe = Pipe::new(parts.into(), held, room, hope);
            tokio::spawn(pump(
                flight,
                pipe.clone(),
                read_timeout,
                stream,
                delivery.metrics.clone(),
            ));
            response.body_mut().pipe(pipe, length);
        }
        Ok(response)
    }
}

/// Reads to the end, however long that takes, as long as no pause is longer than `read_timeout`.
async fn collect<L: Lease>(
    flight: &mut Flight<L>,
    parts: &mut Parts,
    read_timeout: Duration,
) -> Result<(), Error> {
    loop {
        // Mostly it is there already; only if it is not, a timer is needed.
        let there = poll_fn(|cx| match flight.poll_data(cx) {
            Poll::Ready(next) => Poll::Ready(Some(next)),
            Poll::Pending => Poll::Ready(None),
        });
        let next = match there.await {
            Some(next) => next,
            None => {
                let next = poll_fn(|cx| flight.poll_data(cx));
                Box::pin(clock::within(read_timeout, next))
                    .await
                    .ok_or(Error::Timeout)?
            }
        };
        match next.transpose()? {
            Some(part) => parts.push(part),
            None => return Ok(()),
        }
    }
}

/// Takes what has arrived already, up to [`WHOLE_MAX`]; true if that is all.
async fn take_ready<L: Lease>(flight: &mut Flight<L>, parts: &mut Parts) -> Result<bool, Error> {
    let mut taken = 0;
    poll_fn(|cx| {
        while taken < WHOLE_MAX {
            match flight.poll_data(cx) {
                Poll::Ready(Some(Ok(part))) => {
                    taken += len(&part);
                    parts.push(part);
                }
                Poll::Ready(None) => return Poll::Ready(Ok(true)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(false))
    })
    .await
}

#[cfg(test)]
mod tests;

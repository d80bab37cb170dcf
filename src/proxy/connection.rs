//! One client's connection, from accept to close.

use std::{
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderValue, header};
use tokio::{
    io::{AsyncRead, ReadBuf},
    task::unconstrained,
    time::{Instant as TokioInstant, Sleep},
};

use super::{
    Error,
    connections::{Counted, Registered},
    context::Peer,
    date,
    forwarded::is_trusted,
    guard::Limits,
    http1, http2,
    io::ClientIo,
    live::{ClientTimeouts, Phase, Shared},
    preamble::{self, Told},
    reject,
    request_id::RequestId,
    stack,
    state::{Activity, State},
};
use crate::{
    backend::Stream,
    buffer::Direction,
    clock,
    config::ProxyProtocol,
    observe::{self, Source},
};

/// A connection that has been idle for so long gives its buffers back, some 10 kB.
const PARK_AFTER: Duration = Duration::from_millis(250);
/// The same where there are more than [`MANY`] on the thread: what all of them hold at once stays with the
/// process for good.
const PARK_SOON: Duration = Duration::from_millis(25);
const MANY: usize = 100;

/// What ends a connection.
enum End {
    /// HTTP did.
    Http(http1::End),
    /// The client took too long for a head.
    SlowHead,
    /// It has been idle for long enough, or its place is needed.
    Idle,
    /// It has been idle for a moment.
    Park,
}

/// Serves one connection to its end.
// An async block keeps what it captures in one place; an async function would keep its arguments twice.
#[allow(clippy::manual_async_fn)]
pub fn serve(
    mut stream: Stream,
    peer: Option<SocketAddr>,
    port: Option<u16>,
    shared: Arc<Shared>,
    counted: Counted,
) -> impl Future<Output = ()> + Send {
    async move {
        let live = shared.live();
        let server = &live.config.server;
        let timeouts = ClientTimeouts::from(server);
        let limits = Limits::new(server.max_header_bytes);
        let http2 = server.http2;
        let protocol = server.proxy_protocol;
        let proxies = &live.config.headers.trusted_proxies;
        let preamble = protocol != ProxyProtocol::Off
            && (proxies.is_empty() || peer.is_none_or(|peer| is_trusted(peer.ip(), proxies)));
        drop(live);
        let now = clock::now();
        let state = Arc::new(State::new(shared.metrics.clone(), now));
        let mut watch = Watch {
            counted: &counted,
            state: &state,
            timeouts,
            timer: pin!(tokio::time::sleep_until((now + timeouts.header).into())),
            armed: false,
            heard: false,
            head_since: None,
            parked: true,
            _registered: None,
        };
        let mut first = BytesMut::new();
        let mut refused = None;
        let mut ends = (peer, port);
        let mut unnamed = false;
        if preamble {
            let reading = poll_fn(|cx| watch.poll_preamble(cx, &mut stream, &mut first, protocol));
            match reading.await {
                Ok(Some((client, server))) => ends = (Some(client), Some(server.port())),
                Ok(None) => unnamed = true,
                Err(Some(error)) => refused = Some(error),
                Err(None) => return,
            }
        }
        let timers = counted.connections().timers().clone();
        let mut peer = Peer::new(ends.0, ends.1, state.clone(), timers);
        peer.unnamed = unnamed;
        let refuse_head = {
            let (shared, state, client) = (shared.clone(), state.clone(), peer.ip);
            Box::new(move |error: &Error| refuse_head(&shared, &state, client, error))
        };
        // In a box: it changes hands, and would be most of what is moved when the task begins.
        let mut io = Box::new(ClientIo::new(
            stream,
            first,
            shared.budget.reservation(Direction::Request),
            state.clone(),
            limits,
            timeouts.write,
            refuse_head,
        ));
        if let Some(error) = refused {
            return refuse(io, &error, &shared).await;
        }
        let mut service = stack(&shared, peer);
        // Who was there before and is idle is only let go, and asks elsewhere without having lost a request.
        let came_late = shared.phase() >= Phase::Draining;
        loop {
            // A client that sends nothing needs no parser.
            watch.start(true);
            let waited = poll_fn(|cx| {
                watch.register(cx);
                if is_over(&shared, came_late) {
                    return Poll::Ready(Some(End::Idle));
                }
                match io.poll_first(cx) {
                    Poll::Ready(true) => Poll::Ready(None),
                    Poll::Ready(false) => Poll::Ready(Some(End::Http(http1::End::Done))),
                    Poll::Pending => watch.poll(cx).map(Some),
                }
            });
            match waited.await {
                None | Some(End::Park) => {}
                // Who has not said a word is not answered.
                Some(End::SlowHead | End::Idle | End::Http(_)) => return,
            }

            watch.start(false);
            let mut connection = Box::new(http1::Connection::new(io, service));
            let mut closing = false;
            let end = poll_fn(|cx| {
                if !closing && is_over(&shared, came_late) {
                    closing = true;
                    connection.close();
                }
                match connection.poll(cx) {
                    Poll::Ready(end) => Poll::Ready(End::Http(end)),
                    Poll::Pending => watch.poll(cx),
                }
            })
            .await;
            // Apart from the other ends: otherwise what lives across its `await` would be part of every
            // connection's future.
            if let End::Http(http1::End::Switched) = end {
                if let Some((io, tunnel)) = connection.into_tunnel() {
                    let closing = || shared.phase() == Phase::Closing;
                    // Boxed, since few connections ever need it.
                    Box::pin(tunnel.run(io, timeouts.idle, closing)).await;
                }
                return;
            }
            (io, service) = connection.into_parts();
            match end {
                End::Park => io.rest(),
                End::Idle | End::Http(http1::End::Switched) => return,
                End::SlowHead if io.is_silent() => return,
                End::SlowHead => {
                    return refuse(io, &Error::HeadTimeout, &shared).await;
                }
                End::Http(http1::End::Refused(_)) if http2 && io.is_http2() => {
                    let (stream, first) = io.into_raw();
                    let serves = http2::serve(
                        stream,
                        first,
                        service,
                        state.clone(),
                        shared,
                        timeouts,
                        limits,
                    );
                    // Boxed, since it is large, and others never need it.
                    Box::pin(serves).await;
                    return;
                }
                End::Http(http1::End::Refused(bad)) => {
                    return refuse(io, &bad.into(), &shared).await;
                }
                End::Http(http1::End::Torn) => return io.reset(),
                End::Http(http1::End::Done) => {
                    let closing = || shared.phase() == Phase::Closing;
                    if let Some(lingering) = io.linger(closing) {
                        lingering.await;
                    }
                    return;
                }
            }
        }
    }
}

/// Says why the connection ends. In a box, since few connections ever need it.
fn refuse<'a>(
    mut io: Box<ClientIo>,
    error: &'a Error,
    shared: &'a Shared,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(async move {
        io.refuse(error).await;
        // Whoever has not sent a head for so long has nothing on its way.
        if !matches!(error, Error::HeadTimeout)
            && let Some(lingering) = io.linger(|| shared.phase() == Phase::Closing)
        {
            lingering.await;
        }
    })
}

/// Whether a connection that is idle is to end. Who came when requests were refused already is to be told so.
fn is_over(shared: &Shared, came_late: bool) -> bool {
    match shared.phase() {
        Phase::Closing => true,
        Phase::Draining => !came_late,
        Phase::Serving | Phase::Leaving => false,
    }
}

/// The timeouts of one connection, and what others ask of it.
struct Watch<'a> {
    counted: &'a Counted,
    state: &'a Arc<State>,
    timeouts: ClientTimeouts,
    timer: Pin<&'a mut Sleep>,
    /// The timer is set for what the connection is doing.
    armed: bool,
    /// The timer knows whom to wake.
    heard: bool,
    head_since: Option<Instant>,
    parked: bool,
    _registered: Option<Registered>,
}

impl Watch<'_> {
    /// From now on it is parked, or it is not.
    fn start(&mut self, parked: bool) {
        self.parked = parked;
        self.armed = false;
    }

    /// Sets the timer. Not before somebody waits for it: most connections that carry one request end
    /// without.
    fn arm(&mut self, due: Instant) {
        self.timer.as_mut().reset(TokioInstant::from_std(due));
        (self.armed, self.heard) = (true, false);
    }

    fn park_after(&self) -> Duration {
        if self.counted.connections().open() > MANY {
            PARK_SOON
        } else {
            PARK_AFTER
        }
    }

    fn register(&mut self, cx: &Context<'_>) {
        self._registered.get_or_insert_with(|| {
            let connections = self.counted.connections();
            connections.register(cx.waker().clone(), self.state.clone())
        });
    }

    /// When something is to be done about it, if nothing happens.
    fn due(&self) -> Instant {
        let (activity, since) = self.state.activity();
        since
            + match activity {
                Activity::Head => self.timeouts.header,
                _ if self.parked => self.timeouts.idle,
                _ => self.timeouts.idle.min(self.park_after()),
            }
    }

    /// Reads the PROXY protocol's header, and what comes with it. An error without words ends the
    /// connection.
    fn poll_preamble(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        read: &mut BytesMut,
        protocol: ProxyProtocol,
    ) -> Poll<Result<Told, Option<Error>>> {
        self.register(cx);
        loop {
            match preamble::parse(read, protocol) {
                Ok(Some(preamble)) => {
                    read.advance(preamble.length);
                    return Poll::Ready(Ok(preamble.told));
                }
                Ok(None) => {}
                Err(preamble::BadPreamble) => return Poll::Ready(Err(Some(Error::Preamble))),
            }
            let mut buffer = [0; 512];
            let mut buffer = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    read.extend_from_slice(buffer.filled());
                }
                Poll::Ready(_) => return Poll::Ready(Err(None)),
                Poll::Pending => break,
            }
        }
        match self.poll(cx) {
            Poll::Ready(End::SlowHead) => Poll::Ready(Err(Some(Error::HeadTimeout))),
            Poll::Ready(_) => Poll::Ready(Err(None)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let head = self.state.is(Activity::Head);
        if !head && !self.state.is(Activity::Idle) {
            // While a request is served, other timers apply.
            if self.armed && (self.head_since.take().is_some() || self.timer.is_elapsed()) {
                self.armed = false;
            }
            return Poll::Pending;
        }
        if self.state.is_evicted() {
            return Poll::Ready(End::Idle);
        }
        if head {
            // Only a head that did not arrive in one piece gets here.
            let (_, since) = self.state.activity();
            if self.head_since != Some(since) {
                self.head_since = Some(since);
                self.armed = false;
            }
        }
        if !self.armed {
            self.arm(self.due());
        }
        // Checking whether the timer has gone off is cheap; asking to be woken by it is not.
        while !self.heard || self.timer.is_elapsed() {
            // Unconstrained: it must be known whether it has heard.
            if pin!(unconstrained(self.timer.as_mut()))
                .poll(cx)
                .is_pending()
            {
                self.heard = true;
                break;
            }
            self.heard = false;
            if clock::overslept(self.timer.as_mut()) {
                continue;
            }
            let now = clock::now();
            let due = self.due();
            if due > now {
                self.arm(due);
                continue;
            }
            let (activity, since) = self.state.activity();
            return Poll::Ready(match activity {
                Activity::Head => End::SlowHead,
                _ if now < since + self.timeouts.idle => End::Park,
                _ => End::Idle,
            });
        }
        Poll::Pending
    }
}

/// Accounts for a head that never became a request, and writes the answer.
fn refuse_head(shared: &Shared, state: &State, client: Option<IpAddr>, error: &Error) -> Bytes {
    let live = shared.live();
    let route = &live.routes[live.routes.len() - 1];
    let settings = &live.config.reject;
    let rejection = reject::rejection(error, settings);
    let status = rejection.status.as_u16();
    if let Some(reason) = rejection.reason {
        route.metrics.rejected(reason);
    }
    route.metrics.request(status, Source::Tidegate);
    let id = RequestId::new();
    let name = live.request_id.as_ref();
    let mut response = reject::response(error, &rejection, settings, &id, name, None);
    // It is not known where the next message would begin.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    date::insert(response.headers_mut());
    let mode = live.config.log.access;
    if observe::log::wants_access(mode, status, rejection.reason) {
        let (_, since) = state.activity();
        let took = clock::now().saturating_duration_since(since);
        observe::log::access(
            mode,
            &observe::log::AccessRecord {
                method: "-",
                path: "-",
                status,
                source: Source::Tidegate,
                reason: rejection.reason,
                route: &route.name,
                request_id: id.as_str(),
                client,
                queue_ms: 0.0,
                backend_ms: None,
                total_ms: observe::log::millis(took),
                bytes: response.body().len() as u64,
                endpoint: None,
                attempt: 0,
            },
        );
    }
    reject::to_wire(&response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, E, F: Future>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// It is moved several times before it is where it stays, and there is one for each client.
    #[test]
    fn the_future_of_a_connection_is_small() {
        let size = size(serve);
        assert!(size <= 800, "{size} bytes");
    }
}

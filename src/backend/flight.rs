//! A request that is at the backend, until the backend has finished with it.

use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    Endpoint, Error, RequestBody,
    codec::RequestHead,
    exchange::{Completion, Delivery, Lease},
    link::{Begun, Link, NoHead},
    raised::Raised,
    timers::Timers,
    upgraded::Upgraded,
};
use crate::{clock, config::Config, observe::Metrics};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// A process that wakes up late, because it was stopped or starved, finds its timeouts over before it has
/// looked at what has arrived meanwhile: it waits this much longer for an answer that may be there.
const SECOND_LOOK: Duration = Duration::from_millis(20);

/// A request at the backend. Dropped before it has ended, it goes on in the background, so that the
/// lease tells the truth.
pub(super) struct Flight<L: Lease> {
    inner: Option<InFlight<L>>,
}

struct InFlight<L> {
    link: Box<Link>,
    lease: L,
    status: Option<StatusCode>,
    /// Whether how the connection ends tells who the server is.
    look: bool,
    /// What to complete with if it is given up.
    verdict: Completion,
    endpoint: Arc<Endpoint>,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
}

impl<L: Lease> Flight<L> {
    /// Sends the request.
    pub(super) fn launch(
        mut link: Box<Link>,
        request: (Box<RequestHead>, RequestBody),
        upgrade: bool,
        packet: Option<Bytes>,
        lease: L,
        delivery: &Delivery<'_>,
    ) -> Self {
        link.send(request, upgrade, delivery.added, packet);
        Self {
            inner: Some(InFlight {
                link,
                lease,
                status: None,
                look: false,
                verdict: Completion::Abandoned,
                endpoint: delivery.endpoint.clone(),
                config: delivery.config.clone(),
                metrics: delivery.metrics.clone(),
            }),
        }
    }

    /// Waits for the head. Whenever an upload makes progress the time begins anew; an upload that makes none
    /// for that long has itself timed out.
    pub(super) async fn head(
        &mut self,
        timers: &Timers,
        since: Instant,
        timeout: Duration,
    ) -> Result<Begun, NoHead> {
        let mut patience = timers.until(since + timeout);
        let (mut seen, mut seen_at) = (0, None);
        let mut looked = false;
        poll_fn(|cx| {
            let late = |error| {
                Poll::Ready(Err(NoHead {
                    error,
                    request: None,
                    begun: true,
                }))
            };
            let Some(inner) = &mut self.inner else {
                return late(Error::Timeout);
            };
            if let Poll::Ready(result) = inner.link.poll_head(cx) {
                return Poll::Ready(result);
            }
            if let Some(interim) = inner.link.told() {
                inner.lease.told(interim);
            }
            let moved = inner.link.moved();
            if moved != seen {
                (seen, seen_at, looked) = (moved, Some(clock::now()), false);
            }
            while patience.poll(cx).is_ready() {
                if patience.overslept() {
                    continue;
                }
                let now = clock::now();
                let anew = seen_at.take().map(|at| at + timeout);
                let due = match anew.filter(|due| *due > now) {
                    Some(due) => due,
                    None if !looked => {
                        looked = true;
                        now + SECOND_LOOK
                    }
                    None if inner.link.waits_for_body() => {
                        let late_body = io::Error::from(ErrorKind::TimedOut);
                        return late(Error::RequestBody(late_body.into()));
                    }
                    None => return late(Error::Timeout),
                };
                patience.extend(due);
            }
            Poll::Pending
        })
        .await
    }

    /// Says whether the way in which the connection ends tells which server it is.
    pub(super) fn look_at_its_end(&mut self, look: bool) {
        if let Some(inner) = &mut self.inner {
            inner.look = look;
        }
    }

    /// The head is there. What the request's head held of memory, to be used again.
    pub(super) fn begin(&mut self, status: StatusCode) -> Option<Box<RequestHead>> {
        let inner = self.inner.as_mut()?;
        inner.status = Some(status);
        inner.link.take_spent()
    }

    /// How much of the response's body is to come, if its head says so.
    pub(super) fn remaining(&self) -> Option<u64> {
        self.inner.as_ref()?.link.remaining()
    }

    /// The next part of the response's body.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        match &mut self.inner {
            Some(inner) => inner.link.poll_data(cx),
            None => Poll::Ready(None),
        }
    }

    /// From here on at most about so many bytes are read at once.
    pub(super) fn read_at_most(&mut self, most: u64) {
        if let Some(inner) = &mut self.inner {
            inner.link.read_at_most(most);
        }
    }

    /// What came after the body, once all of it was read.
    pub(super) fn take_trailers(&mut self) -> Option<Box<HeaderMap>> {
        self.inner
            .as_mut()
            .and_then(|inner| inner.link.take_trailers())
    }

    /// Counts an error that ends an answer whose head the client has already. (An earlier error is returned
    /// to the caller, which counts it.)
    pub(super) fn blame(&self, error: &Error) {
        if let (Some(inner), Some(kind)) = (&self.inner, error.kind()) {
            inner.endpoint.metrics.error(kind);
        }
    }

    /// Nobody wants the rest of a stream: a worker notices that at its next write.
    pub(super) fn leave_stream(self) {
        if let Some(inner) = &self.inner {
            inner.link.leave_nothing();
        }
        self.finish(Completion::Streamed);
    }

    /// See [`Lease::note_stream`].
    pub(super) fn note_stream(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.lease.note_stream();
        }
    }

    /// The backend is done: closes or keeps the connection, then gives the lease back.
    pub(super) fn finish(mut self, completion: Completion) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        let InFlight {
            mut link,
            lease,
            status,
            look,
            endpoint,
            config,
            ..
        } = inner;
        let whole = matches!(completion, Completion::Answered | Completion::Streamed);
        let now = clock::now();
        if look && whole && link.ended_silently() {
            endpoint.ended_silently();
        }
        if whole && endpoint.keeps_connections(&config.backend) && link.reusable() {
            endpoint.put_link(link, config.backend.keepalive_idle, now);
        } else {
            endpoint.close_link(link);
        }
        lease.complete(completion, status, now);
    }

    /// Nobody waits any more: the rest happens in the background.
    pub(super) fn give_up(mut self, verdict: Completion) {
        if let Some(inner) = &mut self.inner {
            inner.verdict = verdict;
        }
    }

    /// The backend has switched protocols.
    pub(super) fn into_upgraded(mut self) -> Option<Upgraded> {
        let InFlight {
            link,
            lease,
            metrics,
            ..
        } = self.inner.take()?;
        match link.into_raw() {
            Some((stream, first, seat)) => {
                Some(Upgraded::new(stream, first, (seat, lease), &metrics))
            }
            None => {
                lease.complete(Completion::Malformed, None, clock::now());
                None
            }
        }
    }

    /// Closes the connection and takes the lease back, to send the request again.
    pub(super) fn into_lease(mut self) -> Option<L> {
        self.inner.take().map(|inner| inner.lease)
    }
}

impl<L: Lease> Drop for Flight<L> {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(orphan(inner))),
            Err(_) => {
                let (verdict, status) = (inner.verdict, inner.status);
                inner.lease.complete(verdict, status, clock::now());
            }
        }
    }
}

impl<L> InFlight<L> {
    /// Reads and discards until the backend is done. The status, if the response was whole and its
    /// pace the backend's own.
    async fn discard(&mut self) -> Option<StatusCode> {
        if self.link.is_before_head() {
            let head = poll_fn(|cx| self.link.poll_head(cx)).await.ok()?;
            if head.signs.events {
                self.link.leave_nothing();
                return None;
            }
            self.status = Some(head.response.status());
        }
        loop {
            match poll_fn(|cx| self.link.poll_data(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return None,
                None => return self.status,
            }
        }
    }
}

/// The backend does not notice that the client has left, and works on: so does the lease.
async fn orphan<L: Lease>(mut inner: InFlight<L>) {
    let _counted = Raised::new(&inner.metrics, |metrics| &metrics.orphaned);
    let orphan_max = inner.config.backend.orphan_max;
    let ended = tokio::time::timeout(orphan_max, inner.discard()).await;
    let InFlight {
        link,
        lease,
        verdict,
        status,
        ..
    } = inner;
    drop(link);
    let now = clock::now();
    match (verdict, ended) {
        // It was answered, but nobody was there any more: how long that took is as true as for any other
        // request. When a slow backend drives all its clients away, nothing else shows how slow it is.
        (Completion::Abandoned, Ok(Some(status))) => {
            lease.complete(Completion::AnsweredInVain, Some(status), now);
        }
        _ => lease.complete(verdict, status, now),
    }
}

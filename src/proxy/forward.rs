//! The innermost service: an admitted request meets its endpoint.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use http::{Response, StatusCode};
use tower::Service;

use super::{
    Error,
    context::{Asked, Context},
    http2,
    live::Shared,
    reject, trace,
};
use crate::{
    admission::{Admitted, Permit, outcome_of},
    backend::{
        self, Answered, Completion, Delivery, Endpoint, Failed, Lease, RequestBody, RequestHead,
        ResponseBody,
    },
    clock,
    config::Class,
    control::Outcome,
    observe::{self, WaitOutcome},
};

/// A backend that listened less than this ago is being restarted, and one that has been known for less is being started
/// beside tidegate; any other is down, and nobody waits for it.
const RESTART: Duration = Duration::from_secs(10);
/// Between two attempts to reach it meanwhile.
const RECONNECT: Duration = Duration::from_millis(25);

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Forward {
    shared: Arc<Shared>,
}

impl Forward {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Service<Admitted<Asked<RequestBody>>> for Forward {
    type Response = Answered;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted<Asked<RequestBody>>) -> Self::Future {
        let Admitted {
            request:
                Asked {
                    head,
                    body,
                    context,
                },
            permit,
        } = admitted;
        Box::pin(forward(self.shared.clone(), context, (head, body), permit))
    }
}

/// Has the exchange. An endpoint that cannot be reached costs nothing but another attempt, of as many as there are
/// endpoints.
// An async block keeps what it captures in one place; an async function would keep its arguments twice.
#[allow(clippy::manual_async_fn)]
fn forward(
    shared: Arc<Shared>,
    context: Arc<Context>,
    (mut head, mut body): (Box<RequestHead>, RequestBody),
    mut permit: Permit,
) -> impl Future<Output = Result<Answered, Error>> + Send {
    async move {
        note_admission(&shared, &context, &permit);
        if let Some(share) = context.share()
            && share.is_full(&shared.budget)
        {
            // Its answer could only wait with its worker. (The permit goes back: nothing was sent.)
            permit.complete(Outcome::Neutral);
            return Err(Error::Share);
        }
        let mut tried = Vec::new();
        let mut tries = 0;
        let mut reconnects = false;
        loop {
            let Some(endpoint) = shared.endpoint(permit.lane().id()) else {
                // Its endpoint was taken out of the configuration just now.
                permit = Box::pin(shared.limiter.acquire(context.ask())).await?;
                continue;
            };
            context.attempt();
            context.goes_to(endpoint.id);
            let now = permit
                .started()
                .filter(|_| !reconnects)
                .unwrap_or_else(clock::now);
            let delivery = Delivery {
                endpoint: &endpoint,
                config: &context.live.config,
                budget: &shared.budget,
                share: context.share(),
                metrics: &shared.metrics,
                stream: context.class() == Class::Stream,
                now,
                timers: &context.peer.timers,
                added: &*context,
            };
            let lease = Box::new(Serving {
                permit: Some(permit),
                context: context.clone(),
                shared: shared.clone(),
                endpoint: endpoint.clone(),
                made: now,
            });
            let failed = match backend::exchange(delivery, head, body, lease).await {
                Ok(response) if context.http2 => {
                    let response = ResponseBody::unfold(response);
                    return Ok(Box::new(response.map(|body| body.in_pieces(http2::PIECE))));
                }
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            // Repeated attempts to reach a backend that is being restarted count as one error.
            let again = reconnects && matches!(failed.error, backend::Error::Connect(_));
            if let Some(kind) = failed.error.kind().filter(|_| !again) {
                endpoint.metrics.error(kind);
            }
            let Failed { error, unsent } = failed;
            // A shortage here says nothing about the endpoint, and another endpoint would need the same.
            let unsent = unsent.filter(|_| !matches!(error, backend::Error::Shortage(_)));
            let Some(unsent) = unsent else {
                return Err(Error::of_exchange(error));
            };
            let mut lease = unsent.lease;
            (head, body) = (unsent.head, unsent.body);
            if let backend::Error::Connect(why) = &error
                && let Some(pause) = restart_pause(&shared, &context, &endpoint, why)
            {
                // Its permit it keeps: those behind it would fare no better.
                let kept = lease.permit.take();
                drop(lease);
                // In a box: it is rare, and would make every request larger.
                Box::pin(tokio::time::sleep(pause)).await;
                if let Some(kept) = kept {
                    (tried, tries) = (Vec::new(), 0);
                    (permit, reconnects) = (kept, true);
                    continue;
                }
                return Err(error.into());
            }
            lease.complete(
                match error {
                    backend::Error::ConnectTimeout => Completion::Overloaded,
                    _ => Completion::Unreachable,
                },
                None,
                clock::now(),
            );
            let endpoints = shared.endpoints();
            // An endpoint that was taken out of the configuration meanwhile does not count as tried.
            tried.retain(|id| *id != endpoint.id && endpoints.iter().any(|e| e.id == *id));
            if endpoints.iter().any(|e| e.id == endpoint.id) {
                tried.push(endpoint.id);
            }
            tries += 1;
            // One that is said to be up again may be tried again, but not for ever.
            let enough = tried.len() >= endpoints.len() || tries >= 2 * endpoints.len();
            if enough || !endpoints.iter().any(|e| e.is_up()) {
                return Err(error.into());
            }
            permit = Box::pin(shared.limiter.acquire(context.ask())).await?;
        }
    }
}

/// How long to wait before an endpoint is tried again that listened a moment ago, and so is being restarted,
/// or that is new, and so is being started. `None` if it is neither, if another may be up, or if the time
/// that a request may wait is over.
fn restart_pause(
    shared: &Shared,
    context: &Context,
    endpoint: &Endpoint,
    why: &io::Error,
) -> Option<Duration> {
    let now = clock::now();
    shared.note_down(endpoint, Some(why), now);
    if shared.endpoints().iter().any(|e| e.is_up())
        || !endpoint.is_awaited(RESTART, now)
        || context.live.config.limit.dry_run
    {
        return None;
    }
    let waited = context.at_gate(now)?;
    let left = context.live.config.queue.max_wait.checked_sub(waited)?;
    let in_time = |at: Instant| now + RECONNECT < at;
    (left > RECONNECT && context.ask().deadline.is_none_or(in_time)).then_some(RECONNECT)
}

fn note_admission(shared: &Shared, context: &Context, permit: &Permit) {
    let waited = permit.waited().unwrap_or_default();
    context.waited(waited);
    context.enter(observe::Phase::InFlight);
    shared
        .metrics
        .queue_wait(context.class(), WaitOutcome::Admitted, waited);
    if let Some(reason) = permit.would_refuse() {
        let reason = reject::refusal_reason(reason);
        context.route().metrics.would_reject(reason);
    }
}

/// A permit while the backend works for it.
#[derive(Debug)]
struct Serving {
    permit: Option<Permit>,
    context: Arc<Context>,
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    /// When its connection was made.
    made: Instant,
}

impl Lease for Serving {
    fn told(&self, interim: Box<Response<()>>) {
        self.context.tell(interim);
    }

    fn note_stream(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.note_stream();
        }
    }

    fn goes_over(&mut self, made: Instant) {
        self.made = made;
    }

    fn complete(mut self, completion: Completion, status: Option<StatusCode>, now: Instant) {
        self.end(completion, status, now);
    }
}

impl Serving {
    fn end(&mut self, completion: Completion, status: Option<StatusCode>, now: Instant) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let outcome = match completion {
            Completion::Answered => status.map_or(Outcome::Success, outcome_of),
            Completion::AnsweredInVain => match status.map(outcome_of) {
                None | Some(Outcome::Success) => Outcome::InVain,
                Some(other) => other,
            },
            Completion::Streamed => Outcome::Excluded,
            Completion::TimedOut | Completion::Reset | Completion::Overloaded => Outcome::Overload,
            Completion::Unreachable | Completion::Abandoned | Completion::Malformed => {
                Outcome::Neutral
            }
        };
        let begun = trace::begun(&self.shared, &self.context, &permit);
        let took = permit.complete_at(outcome, now);
        trace::served(&self.shared, &self.context, begun, outcome, took);
        match completion {
            Completion::Unreachable => self.shared.note_down(&self.endpoint, None, now),
            Completion::Overloaded => self.shared.note_late(&self.endpoint, now),
            _ => {
                self.shared.note_served(&self.endpoint, self.made, now);
                self.context.served(took, now);
                self.context.route().metrics.backend_seconds(took);
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Dropped while connecting: nothing was sent.
        if let Some(permit) = self.permit.take() {
            permit.complete(Outcome::Neutral);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// There is one for each request in flight, and an allocator's fast path ends at 1 KiB: glibc's tcache.
    #[test]
    fn the_future_of_a_request_is_small() {
        let size = size(forward);
        assert!(size <= 1024, "{size} bytes");
    }
}

//! The services behind [`super::AdmissionLayer`].

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::Service;

use super::{Ask, Limiter, Permit, Refusal, limiter::Acquire};
use crate::{clock, control::Outcome};

/// Reads from a request what it asks of the gate.
pub trait AskFor<R> {
    /// Its class, deadline and route.
    fn ask(&self, request: &R) -> Ask;

    /// The time at which it asks: now, or as the clock was read last if that was just now.
    fn now(&self, _request: &R) -> Instant {
        clock::now()
    }

    /// It has been refused, and goes no further. `waited` is how long it was in the queue, if it was.
    fn refused(&self, _request: R, _waited: Option<Duration>) {}
}

impl<R, F: Fn(&R) -> Ask> AskFor<R> for F {
    fn ask(&self, request: &R) -> Ask {
        self(request)
    }
}

/// A request with its permit. Complete the permit when the backend is done with the request.
#[derive(Debug)]
pub struct Admitted<R> {
    /// The request.
    pub request: R,
    /// Its permit.
    pub permit: Permit,
}

/// Lets no more requests into the inner service than the limit.
#[derive(Clone, Debug)]
pub struct Admission<S, A> {
    inner: S,
    limiter: Arc<Limiter>,
    ask: A,
}

/// Refused by the gate, or failed behind it.
#[derive(Debug)]
pub enum AdmissionError<E> {
    /// The gate refused it.
    Refused(Refusal),
    /// The inner service's own error.
    Inner(E),
}

impl<E: fmt::Display> fmt::Display for AdmissionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Inner(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for AdmissionError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Inner(error) => error.source(),
        }
    }
}

impl<S, A> Admission<S, A> {
    pub(super) fn new(inner: S, limiter: Arc<Limiter>, ask: A) -> Self {
        Self {
            inner,
            limiter,
            ask,
        }
    }
}

impl<R, S, A> Service<R> for Admission<S, A>
where
    S: Service<Admitted<R>> + Clone,
    A: AskFor<R> + Clone,
{
    type Response = S::Response;
    type Error = AdmissionError<S::Error>;
    type Future = AdmissionFuture<S, A, R>;

    /// The inner service's readiness. Reserves nothing: see the module's documentation.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(AdmissionError::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let clone = self.inner.clone();
        // The one that was polled ready is the one that is called.
        let inner = std::mem::replace(&mut self.inner, clone);
        let acquire = self
            .limiter
            .acquire_at(self.ask.ask(&request), self.ask.now(&request));
        AdmissionFuture::Waiting {
            acquire,
            request: Some((inner, self.ask.clone(), request)),
        }
    }
}

pin_project! {
    /// The future of [`Admission`].
    #[project = Project]
    pub enum AdmissionFuture<S: Service<Admitted<R>>, A, R> {
        /// At the gate.
        Waiting { acquire: Acquire, request: Option<(S, A, R)> },
        /// Past it.
        Serving { #[pin] future: S::Future },
    }
}

impl<S: Service<Admitted<R>>, A, R> fmt::Debug for AdmissionFuture<S, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting { .. } => "AdmissionFuture::Waiting",
            Self::Serving { .. } => "AdmissionFuture::Serving",
        })
    }
}

impl<S: Service<Admitted<R>>, A: AskFor<R>, R> Future for AdmissionFuture<S, A, R> {
    type Output = Result<S::Response, AdmissionError<S::Error>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                Project::Waiting { acquire, request } => {
                    let acquired = ready!(Pin::new(&mut *acquire).poll(cx));
                    let Some((mut inner, ask, request)) = request.take() else {
                        return Poll::Pending;
                    };
                    let permit = match acquired {
                        Ok(permit) => permit,
                        Err(refusal) => {
                            let waited = acquire
                                .queued_since()
                                .map(|since| clock::now().saturating_duration_since(since));
                            ask.refused(request, waited);
                            return Poll::Ready(Err(AdmissionError::Refused(refusal)));
                        }
                    };
                    let future = inner.call(Admitted { request, permit });
                    self.set(Self::Serving { future });
                }
                Project::Serving { future } => {
                    return future.poll(cx).map_err(AdmissionError::Inner);
                }
            }
        }
    }
}

/// Holds the permit until the inner service has answered. An error counts as a sign of overload.
#[derive(Clone, Debug)]
pub struct HoldResponse<S> {
    inner: S,
}

impl<S> HoldResponse<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<R, S: Service<R>> Service<Admitted<R>> for HoldResponse<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Held<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, admitted: Admitted<R>) -> Self::Future {
        Held {
            future: self.inner.call(admitted.request),
            permit: Some(admitted.permit),
        }
    }
}

pin_project! {
    /// An inner future with its permit.
    #[derive(Debug)]
    pub struct Held<F> {
        #[pin]
        future: F,
        permit: Option<Permit>,
    }
}

impl<F: Future<Output = Result<T, E>>, T, E> Future for Held<F> {
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.future.poll(cx));
        if let Some(permit) = this.permit.take() {
            permit.complete(match &result {
                Ok(_) => Outcome::Success,
                Err(_) => Outcome::Overload,
            });
        }
        Poll::Ready(result)
    }
}

/// Holds the permit until the body of the HTTP response has ended. The outcome follows from the
/// status, see [`outcome_of`].
#[derive(Clone, Debug)]
pub struct HoldBody<S> {
    inner: S,
}

impl<S> HoldBody<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<R, S, B> Service<Admitted<R>> for HoldBody<S>
where
    S: Service<R, Response = http::Response<B>>,
    B: Body,
{
    type Response = http::Response<PermitBody<B>>;
    type Error = S::Error;
    type Future = HeldBody<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, admitted: Admitted<R>) -> Self::Future {
        HeldBody {
            held: Held {
                future: self.inner.call(admitted.request),
                permit: Some(admitted.permit),
            },
        }
    }
}

pin_project! {
    /// An inner future whose response takes the permit along.
    #[derive(Debug)]
    pub struct HeldBody<F> {
        #[pin]
        held: Held<F>,
    }
}

impl<F, B, E> Future for HeldBody<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
    B: Body,
{
    type Output = Result<http::Response<PermitBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let held = self.project().held.project();
        let result = ready!(held.future.poll(cx));
        let permit = held.permit.take();
        Poll::Ready(match result {
            Ok(response) => {
                let outcome = outcome_of(response.status());
                let mut permit = permit.map(|permit| (permit, outcome));
                // Nobody asks an empty body for its end.
                if response.body().is_end_stream()
                    && let Some((permit, outcome)) = permit.take()
                {
                    permit.complete(outcome);
                }
                Ok(response.map(|body| PermitBody { body, permit }))
            }
            Err(error) => {
                if let Some(permit) = permit {
                    permit.complete(Outcome::Overload);
                }
                Err(error)
            }
        })
    }
}

/// What a status says of load: 429, 502, 503 and 504 are signs of overload, other 5xx say nothing.
pub fn outcome_of(status: http::StatusCode) -> Outcome {
    match status.as_u16() {
        429 | 502 | 503 | 504 => Outcome::Overload,
        500..=599 => Outcome::Neutral,
        _ => Outcome::Success,
    }
}

pin_project! {
    /// A response's body with the permit of its request, given back at the end of the body.
    #[derive(Debug)]
    pub struct PermitBody<B> {
        #[pin]
        body: B,
        permit: Option<(Permit, Outcome)>,
    }
}

impl<B: Body> Body for PermitBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let mut body = this.body;
        let frame = ready!(body.as_mut().poll_frame(cx));
        let outcome = match &frame {
            None => this.permit.take(),
            Some(Ok(_)) if body.is_end_stream() => this.permit.take(),
            Some(Ok(_)) => None,
            Some(Err(_)) => this
                .permit
                .take()
                .map(|(permit, _)| (permit, Outcome::Overload)),
        };
        if let Some((permit, outcome)) = outcome {
            permit.complete(outcome);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_sign_of_overload_says_nothing_or_is_a_success() {
        let outcome = |code| outcome_of(http::StatusCode::from_u16(code).expect("a status"));
        for code in [429, 502, 503, 504] {
            assert_eq!(outcome(code), Outcome::Overload, "{code}");
        }
        for code in [500, 501, 505, 599] {
            assert_eq!(outcome(code), Outcome::Neutral, "{code}");
        }
        for code in [200, 204, 304, 400, 404, 428, 499, 600] {
            assert_eq!(outcome(code), Outcome::Success, "{code}");
        }
    }
}

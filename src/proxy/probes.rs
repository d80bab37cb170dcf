//! Health checks while the backend is busy.
//!
//! Whoever probes a saturated app must not conclude that it is dead: a restart under load makes it
//! worse (CONTROL F18). A request of a route with `class = "protected"` goes to the head of the queue.
//! If that is not enough, because every slot is held by something slow, the prober gets the last real
//! answer instead, with its `Age`, while the real check stays in line and refreshes what is known.
//! After [`MISSES`] of those in a row there is no answer to go by any more, and the check fails.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header, uri::PathAndQuery};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use pin_project_lite::pin_project;
use tokio::{sync::Notify, time::timeout};
use tower::{Layer, Service};

use super::{Error, context::Asked, live::Shared, received::Received};
use crate::{
    admission::{Class, Reason, Refusal},
    backend::{Answered, ResponseBody},
    clock,
    sync::{Mutex, lock},
};

/// A check waits this long for the backend's own answer before the last one will do. Kubernetes gives
/// a check one second.
const PATIENCE: Duration = Duration::from_millis(80);
/// Checks in a row that the last real answer stands in for.
const MISSES: u32 = 2;
/// The longest body that is kept, bytes.
const BODY_MAX: u64 = 16 * 1024;
/// Different checks that are kept.
const CHECKS: usize = 64;

/// The last real answers to health checks.
#[derive(Debug, Default)]
pub struct Probes {
    checks: Mutex<HashMap<(Method, PathAndQuery), Arc<Check>>>,
}

/// Marks an answer from memory.
#[derive(Clone, Copy, Debug)]
pub struct Recalled;

#[derive(Debug, Default)]
struct Check {
    known: Mutex<Known>,
    /// The check in line has come to an end.
    done: Notify,
}

#[derive(Debug, Default)]
struct Known {
    last: Option<(Response<Bytes>, Instant)>,
    /// How often `last` has stood in since.
    misses: u32,
    /// A check is in line whose prober has its answer already.
    in_line: bool,
}

impl Probes {
    /// What is known of this check; `None` if there are too many different ones.
    fn check(&self, method: &Method, target: &PathAndQuery) -> Option<Arc<Check>> {
        let mut checks = lock(&self.checks);
        let key = (method.clone(), target.clone());
        if let Some(check) = checks.get(&key) {
            return Some(check.clone());
        }
        (checks.len() < CHECKS).then(|| checks.entry(key).or_default().clone())
    }
}

impl Check {
    /// Takes the one place in line; without it, somebody else's check is there already.
    fn stay_in_line(self: &Arc<Self>) -> Option<InLine> {
        let free = !std::mem::replace(&mut lock(&self.known).in_line, true);
        free.then(|| InLine(self.clone()))
    }

    fn is_in_line(&self) -> bool {
        lock(&self.known).in_line
    }

    /// Keeps a real answer, and gives it back whole.
    async fn keep(&self, answer: Answered) -> Answered {
        if answer
            .body()
            .size_hint()
            .upper()
            .is_none_or(|most| most > BODY_MAX)
        {
            return answer;
        }
        let (parts, body) = ResponseBody::unfold(answer).into_parts();
        let Ok(body) = body.collect().await else {
            // It broke off: the prober sees a body shorter than declared.
            return Box::new(Response::from_parts(parts, ResponseBody::empty()));
        };
        let body = body.to_bytes();
        let mut kept = Response::new(body.clone());
        *kept.status_mut() = parts.status;
        *kept.headers_mut() = parts.headers.clone();
        let mut known = lock(&self.known);
        known.last = Some((kept, clock::now()));
        known.misses = 0;
        drop(known);
        Box::new(Response::from_parts(parts, ResponseBody::full(body)))
    }

    /// The last real answer in place of one to a check that arrived at `since`.
    fn recall(&self, since: Instant, drain_time: Duration) -> Result<Answered, Error> {
        let mut known = lock(&self.known);
        let misses = known.misses;
        let Some((answer, at)) = known.last.as_ref().filter(|_| misses < MISSES) else {
            return Err(Error::Refused(Refusal {
                reason: Reason::QueueTimeout,
                drain_time,
            }));
        };
        let age = clock::now().saturating_duration_since(*at).as_secs();
        let is_news = *at >= since;
        let mut answer = answer.clone().map(ResponseBody::full);
        answer
            .headers_mut()
            .insert(header::AGE, HeaderValue::from(age));
        answer.extensions_mut().insert(Recalled);
        known.misses += u32::from(!is_news);
        Ok(Box::new(answer))
    }
}

/// The place in line of a check whose prober has its answer already.
struct InLine(Arc<Check>);

impl Drop for InLine {
    fn drop(&mut self) {
        lock(&self.0.known).in_line = false;
        self.0.done.notify_waiters();
    }
}

/// Answers health checks while the backend is busy.
#[derive(Clone, Debug)]
pub struct ProbesLayer {
    shared: Arc<Shared>,
}

impl ProbesLayer {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl<S> Layer<S> for ProbesLayer {
    type Service = ProbesService<S>;

    fn layer(&self, inner: S) -> ProbesService<S> {
        ProbesService {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct ProbesService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Asked<Received>> for ProbesService<S>
where
    S: Service<Asked<Received>, Response = Answered, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Answered;
    type Error = Error;
    type Future = ProbesFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, asked: Asked<Received>) -> Self::Future {
        let check = check(&asked, &self.shared);
        let future = self.inner.call(asked);
        match check {
            None => ProbesFuture::Other { future },
            Some(check) => ProbesFuture::Check {
                future: Box::pin(answer(check, future, self.shared.clone())),
            },
        }
    }
}

/// The check that this request is, if it is one.
fn check(asked: &Asked<Received>, shared: &Shared) -> Option<Arc<Check>> {
    let request = &asked.head;
    let protected = asked.context.class() == Class::Protected;
    if !protected
        || !matches!(*request.method(), Method::GET | Method::HEAD)
        || !asked.body.is_none()
    {
        return None;
    }
    let target = request.uri().path_and_query()?;
    shared.probes.check(request.method(), target)
}

async fn answer<F>(check: Arc<Check>, real: F, shared: Arc<Shared>) -> Result<Answered, Error>
where
    F: Future<Output = Result<Answered, Error>> + Send + 'static,
{
    let since = clock::now();
    let drain_time = |gate: &crate::admission::Gate| gate.change(|state, _| state.drain_time());
    // Whoever comes while a check is in line waits for that one.
    let mut done = std::pin::pin!(check.done.notified());
    done.as_mut().enable();
    if check.is_in_line() {
        let _ = timeout(PATIENCE, done).await;
        return check.recall(since, drain_time(shared.limiter.gate()));
    }
    let mut real = Box::pin(real);
    let result = match timeout(PATIENCE, &mut real).await {
        Ok(result) => result,
        Err(_) if is_saturated(&shared) => {
            if let Some(place) = check.stay_in_line() {
                tokio::spawn(async move {
                    if let Ok(answer) = real.await {
                        place.0.keep(answer).await;
                    }
                });
            }
            return check.recall(since, drain_time(shared.limiter.gate()));
        }
        // A check that is slow by itself takes the time it takes.
        Err(_) => real.await,
    };
    Ok(check.keep(result?).await)
}

fn is_saturated(shared: &Shared) -> bool {
    let gate = shared.limiter.snapshot(clock::now());
    gate.in_flight() >= gate.limit()
}

pin_project! {
    /// The future of [`ProbesService`].
    #[project = Project]
    pub enum ProbesFuture<F> {
        /// Any other request.
        Other { #[pin] future: F },
        /// A health check.
        Check { future: Pin<Box<dyn Future<Output = Result<Answered, Error>> + Send>> },
    }
}

impl<F> Future for ProbesFuture<F>
where
    F: Future<Output = Result<Answered, Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Project::Other { future } => future.poll(cx),
            Project::Check { future } => future.as_mut().poll(cx),
        }
    }
}

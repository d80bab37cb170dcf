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
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header, uri::PathAndQuery};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use pin_project_lite::pin_project;
use tokio::{sync::Notify, time::timeout};
use tower::{Layer, Service};

use super::{
    Error,
    context::{Asked, Context},
    live::Shared,
    received::Received,
    reject, trace,
};
use crate::{
    admission::{Class, Reason, Refusal},
    backend::{self, Answered, ResponseBody},
    clock,
    observe::WaitOutcome,
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
    checks: Mutex<HashMap<Target, Entry>>,
}

/// What is checked. The query belongs to it: what answers to one is not what answers to another.
type Target = (Method, PathAndQuery);

/// A check, and what says whether it is worth its place.
#[derive(Debug, Default)]
struct Entry {
    check: Arc<Check>,
    /// How often it was asked for.
    asked: u64,
    last: Option<Instant>,
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
    /// What is known of this check, which is asked for now; `None` if there are too many different ones in line.
    fn check(&self, method: &Method, target: &PathAndQuery, now: Instant) -> Option<Arc<Check>> {
        let mut checks = lock(&self.checks);
        let key = (method.clone(), target.clone());
        if checks.len() >= CHECKS && !checks.contains_key(&key) {
            let given_up = least(&checks)?;
            checks.remove(&given_up);
        }
        let entry = checks.entry(key).or_default();
        entry.asked += 1;
        entry.last = Some(now);
        Some(entry.check.clone())
    }

    /// Forgets all: they were answers to other questions, or of another backend.
    pub fn forget(&self) {
        lock(&self.checks).clear();
    }
}

/// The check that was asked for least often, of several the one that was not for the longest time: a prober comes again
/// and again, and invented ones do not push it out. One that is in line keeps its place.
fn least(checks: &HashMap<Target, Entry>) -> Option<Target> {
    let free = checks.iter().filter(|(_, entry)| !entry.check.is_in_line());
    let least = free.min_by_key(|(_, entry)| (entry.asked, entry.last));
    least.map(|(target, _)| target.clone())
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
    async fn keep(&self, answer: Answered) -> Result<Answered, Error> {
        if answer
            .body()
            .size_hint()
            .upper()
            .is_none_or(|most| most > BODY_MAX)
        {
            return Ok(answer);
        }
        let (parts, body) = ResponseBody::unfold(answer).into_parts();
        // Nothing of it is out yet: one that breaks off need not look like an answer.
        let body = body.collect().await.map_err(|error| {
            let error = error.downcast().map(|error| *error);
            error.unwrap_or_else(|other| backend::Error::Reset(io::Error::other(other)))
        })?;
        let body = body.to_bytes();
        let mut kept = Response::new(body.clone());
        *kept.status_mut() = parts.status;
        *kept.headers_mut() = parts.headers.clone();
        let mut known = lock(&self.known);
        known.last = Some((kept, clock::now()));
        known.misses = 0;
        drop(known);
        let answer = Response::from_parts(parts, ResponseBody::full(body));
        Ok(Box::new(answer))
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

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, asked: Asked<Received>) -> Self::Future {
        let check = check(&asked, &self.shared);
        let check = check.map(|check| (check, asked.context.clone()));
        let future = self.inner.call(asked);
        match check {
            None => ProbesFuture::Other { future },
            Some((check, context)) => ProbesFuture::Check {
                future: Box::pin(answer(check, context, future, self.shared.clone())),
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
    shared
        .probes
        .check(request.method(), target, asked.context.arrived)
}

async fn answer<F>(
    check: Arc<Check>,
    context: Arc<Context>,
    real: F,
    shared: Arc<Shared>,
) -> Result<Answered, Error>
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
            let recalled = check.recall(since, drain_time(shared.limiter.gate()));
            if let Some(place) = check.stay_in_line() {
                // A prober that has its answer was not refused, but what stood in line for it may be.
                let waits = recalled.is_ok();
                tokio::spawn(async move {
                    match real.await {
                        Ok(answer) => drop(place.0.keep(answer).await),
                        Err(Error::Refused(refusal)) if waits => {
                            note_refusal(&shared, &context, &refusal);
                        }
                        Err(_) => {}
                    }
                });
            }
            return recalled;
        }
        // A check that is slow by itself takes the time it takes.
        Err(_) => real.await,
    };
    check.keep(result?).await
}

/// Notes how long a check was in line in vain.
fn note_refusal(shared: &Shared, context: &Context, refusal: &Refusal) {
    if let Some(waited) = context.at_gate(clock::now()) {
        let class = context.class();
        let metrics = &shared.metrics;
        metrics.queue_wait(class, WaitOutcome::Timeout, waited);
    }
    trace::refused(shared, context, reject::refusal_reason(refusal.reason));
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

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match self.project() {
            Project::Other { future } => future.poll(cx),
            Project::Check { future } => future.as_mut().poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_checks_do_not_push_a_probers_out() {
        let (probes, start) = (Probes::default(), clock::now());
        let at = |tick: u64| start + Duration::from_millis(tick);
        let ask = |target: &str, tick| {
            let target: PathAndQuery = target.parse().expect("a target");
            probes.check(&Method::GET, &target, at(tick))
        };
        let probers = ask("/healthz", 0).expect("there is room");
        ask("/healthz", 1);
        for n in 0..200 {
            let invented = ask(&format!("/healthz?{n}"), 2 + n);
            assert!(invented.is_some(), "the last to come is kept as well");
        }
        assert_eq!(lock(&probes.checks).len(), CHECKS);
        let again = ask("/healthz", 300).expect("it is there");
        assert!(Arc::ptr_eq(&probers, &again));
        // What came last is there, what came first is not.
        let known = |target: &str| {
            let target = target.parse().expect("a target");
            lock(&probes.checks).contains_key(&(Method::GET, target))
        };
        assert!(known("/healthz?199") && !known("/healthz?0"));
        probes.forget();
        assert!(lock(&probes.checks).is_empty());
    }

    #[test]
    fn a_check_in_line_keeps_its_place() {
        let (probes, now) = (Probes::default(), clock::now());
        let places: Vec<InLine> = (0..CHECKS)
            .map(|n| {
                let target = format!("/{n}").parse().expect("a target");
                let check = probes.check(&Method::GET, &target, now);
                check.and_then(|it| it.stay_in_line()).expect("it is free")
            })
            .collect();
        let target = "/other".parse().expect("a target");
        assert!(probes.check(&Method::GET, &target, now).is_none());
        drop(places);
        assert!(probes.check(&Method::GET, &target, now).is_some());
    }
}

//! Health checks while the backend is busy.
//!
//! Whoever probes a saturated app must not conclude that it is dead: a restart under load makes it
//! worse. A request of a route with `class = "protected"` goes to the head of the queue.
//! If that is not enough, because every slot is held by something slow, the prober gets the last real
//! answer instead, with its `Age`, while the real check stays in line and refreshes what is known.
//! After [`MISSES`] such answers in a row the last one no longer stands in, and a check waits for the
//! backend.
//!
//! An answer for one client must not reach another. So a health check is a request that carries nothing of who sent it
//! but its address ([`BARE`]), its answer is for requests that say the same ([`TELLING`]), and is not kept where it says
//! that it is not for all.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header, uri::PathAndQuery};
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
    admission::{Class, Refusal},
    backend::{self, Answered, Name, Names, RequestHead, ResponseBody, has_member},
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
/// The fields that a health check may have: what probers, and proxies in front of them, send. With any other an answer
/// may be for this client alone.
const BARE: Names<17> = Names::new([
    "via",
    "host",
    "accept",
    "pragma",
    "forwarded",
    "connection",
    "user-agent",
    "traceparent",
    "x-request-id",
    "cache-control",
    "accept-encoding",
    "x-amzn-trace-id",
    "x-forwarded-for",
    "x-request-start",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
]);
/// Those of them by which an application may tell for whom its answer is.
const TELLING: Names<8> = Names::new([
    "host",
    "accept",
    "forwarded",
    "user-agent",
    "accept-encoding",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
]);

/// The last real answers to health checks.
#[derive(Debug, Default)]
pub struct Probes {
    checks: Mutex<HashMap<Target, Entry>>,
}

/// What is checked: the host and the query belong to it, since what answers to one is not what answers to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    method: Method,
    path: PathAndQuery,
    /// The address of its client, or of the proxy in front of us.
    ip: Option<IpAddr>,
    /// The fields of [`TELLING`], in its order.
    told: Vec<(&'static str, HeaderValue)>,
}

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
    fn check(&self, target: Target, now: Instant) -> Option<Arc<Check>> {
        let mut checks = lock(&self.checks);
        if checks.len() >= CHECKS && !checks.contains_key(&target) {
            let given_up = least(&checks)?;
            checks.remove(&given_up);
        }
        let entry = checks.entry(target).or_default();
        entry.asked += 1;
        entry.last = Some(now);
        Some(entry.check.clone())
    }

    /// Forgets all: they were answers to other questions, or of another backend.
    pub fn forget(&self) {
        lock(&self.checks).clear();
    }
}

/// The check that was asked for least often, and of several such, the one that was not asked for the longest:
/// a real prober comes again and again, so invented checks do not push its own out. One that is in line keeps
/// its place.
fn least(checks: &HashMap<Target, Entry>) -> Option<Target> {
    let free = checks.iter().filter(|(_, entry)| !entry.check.is_in_line());
    let least = free.min_by_key(|(_, entry)| (entry.asked, entry.last));
    least.map(|(target, _)| target.clone())
}

impl Check {
    /// Takes the one place in line; `None` if another check has it already.
    fn stay_in_line(self: &Arc<Self>) -> Option<InLine> {
        let free = !std::mem::replace(&mut lock(&self.known).in_line, true);
        free.then(|| InLine(self.clone()))
    }

    fn is_in_line(&self) -> bool {
        lock(&self.known).in_line
    }

    /// Keeps a real answer, and gives it back whole.
    async fn keep(&self, answer: Answered) -> Result<Answered, Error> {
        let most = answer.body().size_hint().upper();
        // The fields that say who may see it need not be in its map, so all are put there.
        let answer = ResponseBody::unfold(answer);
        if most.is_none_or(|most| most > BODY_MAX) || !is_for_all(answer.headers()) {
            lock(&self.known).last = None;
            return Ok(Box::new(answer));
        }
        let (parts, body) = answer.into_parts();
        // Nothing of it has been sent yet: one that breaks off becomes an error, not a torn answer.
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

    /// The last real answer in place of one to a check that arrived at `since`, if there is one to go by.
    fn recall(&self, since: Instant) -> Option<Answered> {
        let mut known = lock(&self.known);
        let misses = known.misses;
        let (answer, at) = known.last.as_ref().filter(|_| misses < MISSES)?;
        let age = clock::now().saturating_duration_since(*at).as_secs();
        let is_news = *at >= since;
        let mut answer = answer.clone().map(ResponseBody::full);
        answer
            .headers_mut()
            .insert(header::AGE, HeaderValue::from(age));
        answer.extensions_mut().insert(Recalled);
        known.misses += u32::from(!is_news);
        Some(Box::new(answer))
    }
}

/// Whether an answer may go to whoever asks the same.
fn is_for_all(headers: &HeaderMap) -> bool {
    let says = |name, member: &[u8]| {
        let mut values = headers.get_all(name).iter();
        values.any(|value| has_member(value.as_bytes(), member))
    };
    !(headers.contains_key(header::SET_COOKIE)
        || headers.contains_key(header::VARY)
        || says(header::CACHE_CONTROL, b"private")
        || says(header::CACHE_CONTROL, b"no-store"))
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
        || asked.context.live.config.limit.dry_run
        || !matches!(*request.method(), Method::GET | Method::HEAD)
        || !asked.body.is_none()
        || !is_bare(request, asked.context.live.request_id.as_ref())
    {
        return None;
    }
    let target = Target {
        method: request.method().clone(),
        path: request.uri().path_and_query()?.clone(),
        ip: asked.context.peer.ip,
        told: told(request),
    };
    shared.probes.check(target, asked.context.arrived)
}

/// Its values for [`TELLING`], whether or not they are in its map.
fn told(head: &RequestHead) -> Vec<(&'static str, HeaderValue)> {
    let plain = head.body();
    let mut told = Vec::new();
    for name in TELLING.all() {
        match Name::find(name.as_bytes()).and_then(|known| plain.get(known)) {
            Some(value) => told.extend(HeaderValue::from_bytes(value).map(|value| (name, value))),
            None => {
                let values = head.headers().get_all(name).iter();
                told.extend(values.map(|value| (name, value.clone())));
            }
        }
    }
    told
}

/// Whether a request tells nothing of who sent it.
fn is_bare(head: &RequestHead, request_id: Option<&HeaderName>) -> bool {
    let is_id = |name: &[u8]| {
        request_id.is_some_and(|id| name.eq_ignore_ascii_case(id.as_str().as_bytes()))
    };
    let is_usual = |name: &[u8]| BARE.find(name).is_some() || is_id(name);
    let plain = head.body();
    let is_there = |name: &Name| plain.there() & name.bit() != 0;
    (Name::all().filter(is_there)).all(|name| is_usual(name.as_str().as_bytes()))
        && plain.others().all(is_usual)
        && (head.headers().keys()).all(|name| is_usual(name.as_str().as_bytes()))
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
    // Whoever comes while a check is in line waits for that one.
    let mut done = std::pin::pin!(check.done.notified());
    done.as_mut().enable();
    if check.is_in_line() {
        let _ = timeout(PATIENCE, done).await;
        if let Some(recalled) = check.recall(since) {
            return Ok(recalled);
        }
    }
    let mut real = Box::pin(real);
    if let Ok(result) = timeout(PATIENCE, &mut real).await {
        return check.keep(result?).await;
    }
    if is_saturated(&shared)
        && let Some(recalled) = check.recall(since)
    {
        if let Some(place) = check.stay_in_line() {
            tokio::spawn(async move {
                match real.await {
                    Ok(answer) => drop(place.0.keep(answer).await),
                    // A prober that has its answer was not refused, but what stood in line for it was.
                    Err(Error::Refused(refusal)) => note_refusal(&shared, &context, &refusal),
                    Err(_) => {}
                }
            });
        }
        return Ok(recalled);
    }
    // A check that is slow by itself, or that nothing can stand in for, takes the time it takes.
    check.keep(real.await?).await
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
    shared.limiter.snapshot(clock::now()).is_full()
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
    use crate::backend::Usual;

    fn target(path: &str) -> Target {
        Target {
            method: Method::GET,
            path: path.parse().expect("a path"),
            ip: None,
            told: Vec::new(),
        }
    }

    #[test]
    fn invented_checks_do_not_push_a_probers_out() {
        let (probes, start) = (Probes::default(), clock::now());
        let at = |tick: u64| start + Duration::from_millis(tick);
        let ask = |path: &str, tick| probes.check(target(path), at(tick));
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
        let known = |path: &str| lock(&probes.checks).contains_key(&target(path));
        assert!(known("/healthz?199") && !known("/healthz?0"));
        probes.forget();
        assert!(lock(&probes.checks).is_empty());
    }

    #[test]
    fn a_check_in_line_keeps_its_place() {
        let (probes, now) = (Probes::default(), clock::now());
        let places: Vec<InLine> = (0..CHECKS)
            .map(|n| {
                let check = probes.check(target(&format!("/{n}")), now);
                check.and_then(|it| it.stay_in_line()).expect("it is free")
            })
            .collect();
        assert!(probes.check(target("/other"), now).is_none());
        drop(places);
        assert!(probes.check(target("/other"), now).is_some());
    }

    #[test]
    fn a_health_check_tells_nothing_of_who_sent_it() {
        let is_bare = |names: &[&'static str]| {
            let mut head = RequestHead::default();
            for name in names {
                let value = HeaderValue::from_static("a");
                head.headers_mut().insert(*name, value);
            }
            is_bare(&head, Some(&HeaderName::from_static("x-trace")))
        };
        assert!(is_bare(&[]));
        assert!(is_bare(&["x-trace"]), "the id has that name here");
        assert!(is_bare(&[
            "host",
            "user-agent",
            "accept",
            "x-forwarded-for"
        ]));
        for name in [
            "cookie",
            "authorization",
            "x-api-key",
            "accept-language",
            "x-user",
        ] {
            assert!(!is_bare(&["host", name]), "{name}");
        }
    }

    #[test]
    fn a_request_id_tells_nothing_in_or_out_of_the_map() {
        let is_bare = |field: &str| {
            let mut head = RequestHead::default();
            let fields = format!("Host: a{field}");
            let plain = head.body_mut();
            plain.begin(Bytes::from(fields.clone()));
            plain.push(Name::HOST, 0, 7);
            plain.push(Name::OTHER, 7, fields.len());
            is_bare(&head, Some(&HeaderName::from_static("x-trace")))
        };
        assert!(is_bare("X-Request-Id: 1") && is_bare("X-TRACE: 1"));
        assert!(!is_bare("X-User: 1"));
    }

    #[tokio::test]
    async fn what_says_that_an_answer_is_for_one_need_not_be_in_its_map() {
        let check = Arc::<Check>::default();
        for (name, value, kept) in [
            ("content-type", "text/plain", true),
            ("set-cookie", "session=1", false),
            ("cache-control", "private", false),
            ("vary", "Cookie", false),
        ] {
            let mut usual = Usual::default();
            usual.lines.push(name, value.as_bytes());
            let body = ResponseBody::full(Bytes::from_static(b"ok")).with(usual, None);
            let answer = check.keep(Box::new(Response::new(body))).await;
            let answer = answer.expect("it is whole");
            assert_eq!(answer.headers()[name], value);
            let recalled = check.recall(clock::now());
            assert_eq!(recalled.is_some(), kept, "{name}: {value}");
        }
    }

    #[test]
    fn an_answer_for_one_is_not_for_all() {
        let is_for_all = |name: &'static str, value: &'static str| {
            is_for_all(&HeaderMap::from_iter([(
                name.parse().expect("a name"),
                HeaderValue::from_static(value),
            )]))
        };
        assert!(is_for_all("content-type", "text/plain"));
        assert!(is_for_all("cache-control", "no-cache, max-age=0"));
        for (name, value) in [
            ("set-cookie", "a=1"),
            ("cache-control", "max-age=0, Private"),
            ("cache-control", "no-store"),
            ("vary", "Cookie"),
        ] {
            assert!(!is_for_all(name, value), "{name}: {value}");
        }
    }
}

//! The outermost layer: gives every request a context, turns whatever comes back into the one
//! response, and hands it to its [`Record`].

use std::{
    convert::Infallible,
    future::Future,
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::{Duration, Instant},
};

use http::{Response, StatusCode, Version};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::{
    Error, client,
    context::{Asked, Context, Peer},
    http2,
    hygiene::{self, BadHead},
    live::{Live, Shared},
    received::{Arrived, Received},
    record::{ClientBody, Record},
    reject,
    request_id::RequestId,
    upgrade,
};
use crate::{
    admission::{Ask, route},
    backend::{self, Answered, Plain, RequestHead, Size},
    buffer::{Direction, Reservation},
    clock,
};

/// Heads of no more than this are not charged to the budget, bytes. That is most of them, so they still pass
/// when uploads have used it up.
const HEAD_FREE: usize = 8 * 1024;
/// Roughly what each field in the map takes besides its text, bytes.
const FIELD: usize = 128;

/// Makes [`Answer`]s for one client's connection.
#[derive(Clone, Debug)]
pub struct AnswerLayer {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
}

impl AnswerLayer {
    pub fn new(shared: Arc<Shared>, peer: Peer) -> Self {
        Self {
            shared,
            peer: Arc::new(peer),
        }
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answer<S>;

    fn layer(&self, inner: S) -> Answer<S> {
        Answer {
            inner,
            shared: self.shared.clone(),
            peer: self.peer.clone(),
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Answer<S> {
    inner: S,
    shared: Arc<Shared>,
    peer: Arc<Peer>,
}

impl<S> Service<Arrived> for Answer<S>
where
    S: Service<Asked<Received>, Response = Answered>,
    S::Error: Into<Error>,
{
    type Response = ClientBody;
    type Error = Infallible;
    type Future = AnswerFuture<S::Future>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        // The layers below are always ready: they wait with the request in hand.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, arrived: Arrived) -> Self::Future {
        let Arrived {
            head: mut request,
            size: head_size,
            body,
        } = arrived;
        let arrived = clock::now();
        self.peer.state.serve();
        let live = self.shared.live();
        if live.reads(&request) {
            Plain::unfold(&mut request);
        }
        let route = live.matcher.find(&request);
        // Looking for each of the fields that few requests have would cost more than this.
        let usual = !live.reads_usual
            && !request.body().has_others()
            && hygiene::is_plain(request.headers());
        let rare = (!usual).then_some(&*request);
        let id = RequestId::of(rare, &live);
        let deadline = rare.and_then(|head| deadline(head, &live));
        let deadline = deadline.map(|left| arrived + left);
        let upgrade = rare.and_then(upgrade::asked);
        let http2 = request.version() == Version::HTTP_2;
        let endpoints = self.shared.endpoints_now();
        let lines = endpoints.takes_lines(&live.config.backend);
        let most = endpoints.most_fields(request.headers().len());
        let size_max = live.config.server.max_header_bytes;
        let checked = match http2 && head_size > size_max {
            // Over HTTP/1 the guard has let none pass that is too large.
            true => Err(http2::excess(&request, size_max)),
            false => hygiene::inbound(&mut request, &self.peer, &live, &id, arrived, lines, most),
        };
        if let Some(protocols) = upgrade {
            upgrade::insert(request.headers_mut(), protocols);
        }
        let mut held = None;
        let checked = checked.map_err(Error::from).and_then(|appended| {
            held = self.hold(&request, head_size)?;
            let size = appended.as_ref().map_or_else(Size::default, |it| it.size);
            let excess = endpoints.excess(&request, size);
            excess.map_or(Ok(appended), |excess| {
                Err(backend::Error::from(excess).into())
            })
        });
        let (appended, checked) = match checked {
            Ok(appended) => (appended, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let mut ask = ask(&request, &self.peer, &live, route, deadline);
        if !usual {
            ask.class = client::class(ask.class, &request);
        }
        let mut context = Arc::new(Context::new(
            live,
            arrived,
            self.peer.clone(),
            &request,
            route,
            ask,
            id,
            http2,
            appended,
        ));
        if held.is_some()
            && let Some(context) = Arc::get_mut(&mut context)
        {
            context.detach();
        }
        let record = Record::new(self.shared.clone(), context.clone());
        let step = match checked {
            Ok(()) => {
                let asked = Asked {
                    head: request,
                    body,
                    context,
                };
                match caught(|| self.inner.call(asked)) {
                    Ok(future) => Step::Serving { future },
                    Err(error) => Step::Refused { error: Some(error) },
                }
            }
            Err(error) => Step::Refused { error: Some(error) },
        };
        AnswerFuture {
            step,
            record: Some(record),
            _held: held,
        }
    }
}

impl<S> Answer<S> {
    /// Accounts for a head of so many bytes, if it is large: it may wait for its body, in the queue, and at the backend.
    fn hold(&self, head: &RequestHead, size: usize) -> Result<Option<Reservation>, Error> {
        let size = size + FIELD * head.headers().len();
        if size <= HEAD_FREE {
            return Ok(None);
        }
        let mut held = self.shared.budget.reservation(Direction::Request);
        match held.grow(size as u64) {
            true => Ok(Some(held)),
            false => Err(BadHead::NoRoom.into()),
        }
    }
}

/// What a request asks of the gate, by its cleaned head. Whether it is a retry is not looked at yet.
fn ask(
    request: &RequestHead,
    peer: &Peer,
    live: &Live,
    route: usize,
    deadline: Option<Instant>,
) -> Ask {
    let route = &live.routes[route];
    let proxies = &live.config.headers.trusted_proxies;
    Ask {
        class: route.class,
        deadline,
        group: route::group(route.id, request),
        cap: route.cap,
        client: live.client_key.key(request, peer, proxies),
    }
}

/// For how long the client says it waits.
fn deadline(head: &RequestHead, live: &Live) -> Option<Duration> {
    let value = Plain::find(head, live.deadline.as_ref()?)?;
    let millis: u64 = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// Runs a part of a request's service: if it panics, that costs this request alone.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Error> {
    // What was touched before the panic is the request's own, and goes with it.
    panic::catch_unwind(AssertUnwindSafe(run)).map_err(|panic| reject::panicked(&*panic))
}

pin_project! {
    /// The future of [`Answer`].
    pub struct AnswerFuture<F> {
        #[pin]
        step: Step<F>,
        record: Option<Record>,
        // What a large head takes of the budget, until there is an answer.
        _held: Option<Reservation>,
    }
}

pin_project! {
    #[project = StepProject]
    enum Step<F> {
        Serving { #[pin] future: F },
        Refused { error: Option<Error> },
    }
}

/// Whoever serves a request may be told something on the way to the answer.
pub trait Told {
    /// An interim answer, clean, that is to be passed on now.
    fn told(&self) -> Option<Box<Response<()>>>;
}

impl<F> Told for AnswerFuture<F> {
    fn told(&self) -> Option<Box<Response<()>>> {
        let context = self.record.as_ref()?.context();
        let mut interim = context.told()?;
        hygiene::interim(&mut interim, &context.live);
        Some(interim)
    }
}

impl<F, E> Future for AnswerFuture<F>
where
    F: Future<Output = Result<Answered, E>>,
    E: Into<Error>,
{
    type Output = Result<ClientBody, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = match this.step.project() {
            StepProject::Serving { future } => match caught(|| future.poll(cx)) {
                Ok(result) => ready!(result).map_err(Into::into),
                Err(error) => Err(error),
            },
            StepProject::Refused { error } => Err(error.take().unwrap_or(Error::Panicked)),
        };
        let Some(record) = this.record.take() else {
            return Poll::Pending;
        };
        Poll::Ready(Ok(match result {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                record.switch(response)
            }
            Ok(response) => record.pass_on(response),
            Err(error) => record.refuse(&error),
        }))
    }
}

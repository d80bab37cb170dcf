//! Reads request bodies before a permit is asked for, so that a slow upload costs a buffer and not a
//! worker. Bounded for each request, by a spool file beyond that, and for all together.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::{BoxError, Layer, Service};

use super::{
    Error, context::Asked, hygiene::ExpectsContinue, live::Shared, pace::Pace, received::Received,
    spool,
};
use crate::{
    backend::{self, Name, Plain, RequestBody, RequestHead},
    buffer::{BUDGET_PAUSE, Direction, Reservation},
    clock,
    config::Config,
};

/// The most that comes of a body at once, bytes.
const PART: u64 = 64 * 1024;

/// While others wait for the budget, an upload keeps only what has come, and room for so many times what came
/// within
const AHEAD: u64 = 4;
/// this time.
const MEASURED: Duration = Duration::from_secs(1);

/// Makes [`ReadBody`] services.
#[derive(Clone, Debug)]
pub struct ReadBodyLayer {
    shared: Arc<Shared>,
}

impl ReadBodyLayer {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl<S> Layer<S> for ReadBodyLayer {
    type Service = ReadBody<S>;

    fn layer(&self, inner: S) -> ReadBody<S> {
        ReadBody {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct ReadBody<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Asked<Received>> for ReadBody<S>
where
    S: Service<Asked<RequestBody>> + Clone + Send + 'static,
    S::Error: Into<Error>,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = Error;
    type Future = ReadBodyFuture<S::Future, S::Response>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, asked: Asked<Received>) -> Self::Future {
        if asked.body.is_none() {
            return ReadBodyFuture::None {
                future: self.inner.call(asked.with(RequestBody::Empty)),
            };
        }
        let mut inner = self.inner.clone();
        let shared = self.shared.clone();
        ReadBodyFuture::Some {
            future: Box::pin(async move {
                let asked = read(asked, &shared).await?;
                inner.call(asked).await.map_err(Into::into)
            }),
        }
    }
}

pin_project! {
    /// The future of [`ReadBody`].
    #[project = Project]
    pub enum ReadBodyFuture<F, T> {
        /// There is no body.
        None { #[pin] future: F },
        /// There is one.
        Some { future: Pin<Box<dyn Future<Output = Result<T, Error>> + Send>> },
    }
}

impl<F, T, E> Future for ReadBodyFuture<F, T>
where
    F: Future<Output = Result<T, E>>,
    E: Into<Error>,
{
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        match self.project() {
            Project::None { future } => future.poll(cx).map_err(Into::into),
            Project::Some { future } => future.as_mut().poll(cx),
        }
    }
}

async fn read(asked: Asked<Received>, shared: &Shared) -> Result<Asked<RequestBody>, Error> {
    let Asked {
        mut head,
        body: received,
        context,
    } = asked;
    let config = context.live.config.clone();
    let declared = received.declared();
    let max = config.server.max_body_bytes;
    if max > 0 && declared.is_some_and(|length| length > max) {
        return Err(Error::BodyTooLarge(max));
    }
    if head.extensions().get::<ExpectsContinue>().is_some() {
        // The client waits for our 100, which the first read sends: an upload that would be shed
        // costs nobody anything.
        let ask = context.ask();
        if let Some(refusal) = shared.limiter.gate().would_refuse(&ask, clock::now()) {
            return Err(refusal.into());
        }
    }
    let needs_length = shared.needs_length(&config.backend);
    let mut held = shared.budget.reservation(Direction::Request);
    let body = match received {
        Received::Whole(whole) => {
            // It is here, whatever the budget says: to wait for room would only make it stay longer.
            held.grow(whole.len() as u64);
            RequestBody::Full(Some(whole), Some(held))
        }
        received => {
            let upload = Upload::new(received, &config, needs_length);
            upload.read_ahead(held, &config, declared).await?
        }
    };
    set_framing(&mut head, &body, config.backend.dechunk, needs_length)?;
    if config.backend.dechunk && declared.is_none() && body.size_hint().exact().is_none() {
        shared.streams_chunks();
    }
    Ok(Asked {
        head,
        body,
        context,
    })
}

/// Says how long the body is, if that is known; WSGI servers lose chunked bodies.
fn set_framing(
    head: &mut RequestHead,
    body: &RequestBody,
    dechunk: bool,
    needs_length: bool,
) -> Result<(), backend::Error> {
    let exact = body.size_hint().exact();
    let said = head.body().get(Name::CONTENT_LENGTH);
    if let (Some(length), Some(said)) = (exact, said)
        && said == itoa::Buffer::new().format(length).as_bytes()
    {
        return Ok(());
    }
    Plain::unfold(head);
    let headers = head.headers_mut();
    let was_declared = headers.contains_key(header::CONTENT_LENGTH);
    match exact {
        Some(length) if was_declared || dechunk || needs_length => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        _ if needs_length => return Err(backend::Error::NoLength),
        // Has to be said: a request without either field has no body.
        _ => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
    }
    Ok(())
}

/// A body on its way in, held to a minimum rate.
struct Upload {
    received: Received,
    pace: Pace,
    /// How long it may still wait for a piece of the budget.
    patience: Duration,
    /// Bytes so far.
    length: u64,
    max: u64,
    /// The backend's server would lose it if it came in chunks.
    needs_length: bool,
}

impl Upload {
    fn new(received: Received, config: &Config, needs_length: bool) -> Self {
        Self {
            received,
            pace: Pace::new(&config.server),
            patience: config.server.body_timeout,
            length: 0,
            max: config.server.max_body_bytes,
            needs_length,
        }
    }

    /// Reads as much as the bounds allow; what is beyond them will be streamed.
    async fn read_ahead(
        mut self,
        mut held: Reservation,
        config: &Config,
        declared: Option<u64>,
    ) -> Result<RequestBody, Error> {
        let in_memory = config.buffers.request;
        // The whole of a declared length at once: half-read bodies that wait for more of the budget
        // would wait for each other.
        if let Some(declared) = declared {
            self.reserve(&mut held, declared.min(in_memory)).await?;
        }
        let mut first: Option<Bytes> = None;
        let mut joined = BytesMut::new();
        let mut length = 0;
        let mut measured = Measured::default();
        loop {
            let Some(chunk) = self.next_giving_back(&mut held, &mut measured).await? else {
                let whole = match first {
                    Some(first) if joined.is_empty() => first,
                    _ => joined.freeze(),
                };
                return Ok(RequestBody::Full(Some(whole), Some(held)));
            };
            length += chunk.len() as u64;
            let fits = length <= in_memory
                && match length.saturating_sub(held.bytes()) {
                    0 => true,
                    // An upload that has given back what it had reserved does not wait for more: others may
                    // be waiting for what it still holds.
                    more if declared.is_some() => held.grow(more),
                    more => self.reserve(&mut held, more).await.map(|()| true)?,
                };
            if !fits {
                let prefix = join(first, joined, chunk);
                return self.beyond_memory(prefix, held, config, declared).await;
            }
            // One buffer of the right size: many small chunks would each keep a read buffer alive.
            match first.take() {
                None if joined.is_empty() => first = Some(chunk),
                None => joined.extend_from_slice(&chunk),
                Some(earlier) => {
                    joined.reserve(declared.unwrap_or(length).min(in_memory) as usize);
                    joined.extend_from_slice(&earlier);
                    joined.extend_from_slice(&chunk);
                }
            }
        }
    }

    /// More than may be held in memory: to the disk if there is one, else as a stream.
    async fn beyond_memory(
        self,
        prefix: Bytes,
        held: Reservation,
        config: &Config,
        declared: Option<u64>,
    ) -> Result<RequestBody, Error> {
        let buffers = &config.buffers;
        if let Some(dir) = &buffers.spool_dir
            && declared.is_none_or(|length| length <= buffers.spool_max)
        {
            match spool::Spool::create(dir, buffers.spool_max).await {
                Ok(spool) => {
                    let max = buffers.spool_max;
                    return self.spool(spool, prefix, held, max, declared).await;
                }
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "cannot spool a request's body, streaming it");
                }
            }
        }
        Ok(self.stream(
            Prefix::Memory {
                bytes: Some(prefix),
                _held: held,
            },
            declared,
        ))
    }

    async fn spool(
        mut self,
        mut spool: spool::Spool,
        prefix: Bytes,
        mut held: Reservation,
        spool_max: u64,
        declared: Option<u64>,
    ) -> Result<RequestBody, Error> {
        let mut chunk = Some(prefix);
        let mut length = 0;
        while let Some(bytes) = chunk {
            let size = bytes.len() as u64;
            let written = spool.write(bytes.clone()).await;
            if written.is_err() || length + size > spool_max {
                if let Err(error) = &written {
                    tracing::warn!(%error, "cannot write to the spool, streaming a request's body");
                    if declared.is_none() && self.needs_length {
                        return Err(Error::Memory);
                    }
                }
                // The part that could not be written is the only one still in memory, and is charged already.
                let on_disk = if written.is_ok() {
                    length + size
                } else {
                    length
                };
                let reader = Box::pin(spool.into_body(on_disk));
                let rest = written.is_err().then_some((bytes, held));
                return Ok(self.stream(Prefix::Disk(reader, rest), declared));
            }
            length += size;
            // What is on the disk is in memory no more.
            held.shrink(held.bytes().saturating_sub(PART));
            chunk = self.next().await?;
        }
        Ok(RequestBody::Stream(Box::pin(spool.into_body(length))))
    }

    /// What was read, then the rest as it comes.
    fn stream(self, prefix: Prefix, declared: Option<u64>) -> RequestBody {
        RequestBody::Stream(Box::pin(Streamed {
            prefix,
            upload: self,
            remaining: declared,
        }))
    }

    /// The next part. What is reserved for a client that is slow to send is given back while others wait for
    /// it: otherwise, somebody could take all of the budget by sending nothing but heads.
    async fn next_giving_back(
        &mut self,
        held: &mut Reservation,
        measured: &mut Measured,
    ) -> Result<Option<Bytes>, Error> {
        let at_once = std::future::poll_fn(|cx| Poll::Ready(self.poll_next(cx))).await;
        if let Poll::Ready(part) = at_once {
            return part;
        }
        while held.bytes() > self.length {
            let since = *measured.since.get_or_insert_with(clock::now);
            let until = since + MEASURED;
            let next = tokio::time::timeout_at(until.into(), self.next()).await;
            if clock::now() >= until {
                if held.is_wanted() {
                    let came = self.length - measured.length;
                    let keeps = self.length + AHEAD * came;
                    held.shrink(held.bytes().saturating_sub(keeps));
                }
                (measured.since, measured.length) = (None, self.length);
            }
            if let Ok(part) = next {
                return part;
            }
        }
        self.next().await
    }

    async fn reserve(&mut self, held: &mut Reservation, bytes: u64) -> Result<(), Error> {
        if held.grow(bytes) {
            return Ok(());
        }
        let _waiting = held.wait();
        while !held.grow(bytes) {
            let Some(left) = self.patience.checked_sub(BUDGET_PAUSE) else {
                return Err(Error::Memory);
            };
            self.patience = left;
            tokio::time::sleep(BUDGET_PAUSE).await;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        match self.received.poll_next(cx) {
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
            Poll::Ready(Some(Ok(bytes))) => {
                self.pace.note(bytes.len());
                self.length += bytes.len() as u64;
                if self.max > 0 && self.length > self.max {
                    return Poll::Ready(Err(Error::BodyTooLarge(self.max)));
                }
                Poll::Ready(Ok(Some(bytes)))
            }
            Poll::Pending => {
                std::task::ready!(self.pace.poll_late(cx));
                Poll::Ready(Err(Error::BodyTimeout))
            }
        }
    }
}

/// How much of an upload had come, and when.
#[derive(Default)]
struct Measured {
    since: Option<Instant>,
    length: u64,
}

fn join(first: Option<Bytes>, mut joined: BytesMut, last: Bytes) -> Bytes {
    match first {
        None if joined.is_empty() => last,
        first => {
            joined.extend_from_slice(&first.unwrap_or_default());
            joined.extend_from_slice(&last);
            joined.freeze()
        }
    }
}

/// What was read before the permit was asked for.
enum Prefix {
    Memory {
        bytes: Option<Bytes>,
        /// What the bytes hold of the budget.
        _held: Reservation,
    },
    /// On the disk, and then what was not written any more.
    Disk(Pin<Box<spool::SpoolBody>>, Option<(Bytes, Reservation)>),
    Spent,
}

/// A body of which the rest is still coming.
struct Streamed {
    prefix: Prefix,
    upload: Upload,
    remaining: Option<u64>,
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let mut next = None;
        match &mut this.prefix {
            Prefix::Memory { bytes, .. } => next = bytes.take().map(Ok),
            Prefix::Disk(body, rest) => {
                next = std::task::ready!(body.as_mut().poll_frame(cx))
                    .map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()));
                if next.is_none()
                    && let Some((bytes, held)) = rest.take()
                {
                    this.prefix = Prefix::Memory {
                        bytes: Some(bytes),
                        _held: held,
                    };
                    return Pin::new(this).poll_frame(cx);
                }
            }
            Prefix::Spent => {}
        }
        if next.is_none() {
            this.prefix = Prefix::Spent;
            next = std::task::ready!(this.upload.poll_next(cx))
                .map_err(BoxError::from)
                .transpose();
        }
        if let (Some(remaining), Some(Ok(bytes))) = (&mut this.remaining, &next) {
            *remaining = remaining.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(next.map(|bytes| bytes.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

//! An answer on its way to its client: what its head becomes, and what is accounted for when its last
//! byte is gone.

use std::{
    fmt::Write as _,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

use super::{
    Error,
    context::Context,
    hygiene,
    live::{Phase, Shared},
    probes::Recalled,
    reject, trace,
    upgrade::{self, Tunnel},
};
use crate::{
    backend::{self, Answered, RequestHead, ResponseBody, Upgraded, Usual},
    clock,
    observe::{self, Reason, Source, WaitOutcome},
};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What is known of a request when it is over. Dropped unfinished, its client has left.
pub struct Record {
    shared: Arc<Shared>,
    context: Arc<Context>,
    status: u16,
    source: Source,
    reason: Option<Reason>,
    bytes: u64,
    /// The backend has broken off in the middle of the answer.
    cut: bool,
    finished: bool,
}

impl Record {
    pub(super) fn new(shared: Arc<Shared>, context: Arc<Context>) -> Self {
        Self {
            shared,
            context,
            status: 0,
            source: Source::Tidegate,
            reason: None,
            bytes: 0,
            cut: false,
            finished: false,
        }
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// The backend's answer.
    pub(super) fn pass_on(mut self, mut response: Answered) -> ClientBody {
        let offered = upgrade::offered(&response).filter(|_| !self.context.http2);
        self.adopt(&mut response);
        if let Some(protocols) = offered {
            upgrade::offer(response.headers_mut(), protocols);
        }
        ClientBody::new(response, self)
    }

    /// The backend's 101: the connection becomes a tunnel when it is out.
    pub(super) fn switch(mut self, mut response: Answered) -> ClientBody {
        let Some(upgraded) = Upgraded::of(&response) else {
            return self.refuse(&backend::Error::Switched.into());
        };
        let protocols = response.headers().get(header::UPGRADE).cloned();
        self.adopt(&mut response);
        let headers = response.headers_mut();
        // A 101 has no body: RFC 9110 8.6.
        headers.remove(header::CONTENT_LENGTH);
        if let Some(protocols) = protocols {
            upgrade::insert(headers, protocols);
        }
        self.context.peer.state.switch();
        *response.body_mut() = ResponseBody::empty();
        ClientBody {
            inner: response,
            record: None,
            tunnel: Some(Tunnel::new(upgraded, self)),
        }
    }

    /// Makes the backend's head fit for the client.
    fn adopt(&mut self, response: &mut Response<ResponseBody>) {
        let live = &self.context.live;
        let id = &self.context.request_id;
        let mut usual = std::mem::take(response.body_mut().usual_mut());
        let lines = !self.context.http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        hygiene::outbound(response, lines.then_some(&mut usual), live, id);
        *response.body_mut().usual_mut() = usual;
        self.source = match response.extensions().get::<Recalled>() {
            Some(Recalled) => Source::Tidegate,
            None => Source::Backend,
        };
        self.status = response.status().as_u16();
        if live.config.headers.server_timing {
            self.add_server_timing(response);
        }
        let answered = self.context.answered();
        self.finish_head(response.headers_mut(), answered);
    }

    /// A tunnel has ended, after so many bytes for the client.
    pub fn end(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.finish(true, clock::now());
    }

    /// Our own answer.
    pub(super) fn refuse(mut self, error: &Error) -> ClientBody {
        let live = self.context.live.clone();
        let now = clock::now();
        let settings = &live.config.reject;
        let rejection = reject::rejection(error, settings);
        let mut usual = (!self.context.http2).then(Usual::default);
        let mut response = reject::response(
            error,
            &rejection,
            settings,
            &self.context.request_id,
            live.request_id.as_ref(),
            usual.as_mut(),
        );
        let whole = |response: Response<Bytes>| {
            let spent = self.context.take_spent();
            let whole = |body| ResponseBody::full(body).with(usual.unwrap_or_default(), spent);
            Box::new(response.map(whole))
        };
        if matches!(error, Error::BodyCut) {
            // Its client has left; what is written now is for one that only closed its side.
            let response = whole(response);
            self.finish(false, now);
            return ClientBody::new(response, self);
        }
        self.status = rejection.status.as_u16();
        self.reason = rejection.reason;
        let answered = now.saturating_duration_since(self.context.arrived);
        if let Some(reason) = rejection.reason {
            self.context.route().metrics.rejected(reason);
        }
        if matches!(error, Error::Refused(_)) {
            // A request that was admitted before, and had to ask again, has been counted already.
            if let Some(waited) = self.context.lost() {
                self.note_wait(WaitOutcome::Timeout, waited);
            }
            if let Some(reason) = rejection.reason {
                trace::refused(&self.shared, &self.context, reason);
            }
        }
        self.finish_head(response.headers_mut(), answered);
        let response = whole(response);
        ClientBody::new(response, self)
    }

    fn finish_head(&self, headers: &mut HeaderMap, answered: Duration) {
        if self.shared.phase() != Phase::Serving {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let route = self.context.route();
        route.metrics.request(self.status, self.source);
        route.metrics.first_byte_seconds(answered);
        self.context.enter(observe::Phase::Responding);
    }

    /// Notes what ends the answer before its end. Its client is still there.
    fn cut(&mut self, error: BoxError) -> BoxError {
        match error.downcast::<backend::Error>() {
            Ok(error) => {
                let error = Error::Backend(*error);
                self.cut = true;
                self.reason = reject::rejection(&error, &self.context.live.config.reject).reason;
                error.into()
            }
            Err(other) => other,
        }
    }

    fn note_cancel(&self, now: Instant) {
        let phase = self.context.phase();
        self.shared.metrics.canceled(phase);
        if phase == observe::Phase::Queued {
            if let Some(waited) = self.context.at_gate(now) {
                self.note_wait(WaitOutcome::Canceled, waited);
            }
            trace::left(&self.shared, &self.context);
        }
    }

    fn note_wait(&self, outcome: WaitOutcome, waited: Duration) {
        let class = self.context.class();
        self.shared.metrics.queue_wait(class, outcome, waited);
    }

    fn add_server_timing<B>(&self, response: &mut Response<B>) {
        let millis = |d: Duration| d.as_secs_f64() * 1e3;
        let now = clock::now();
        let total = now.saturating_duration_since(self.context.arrived);
        let queue = self.context.queue_time();
        let mut text = format!("tidegate-queue;dur={:.1}", millis(queue));
        if self.source == Source::Backend {
            // One that goes on writing its answer is not done yet.
            let so_far = || Some(self.context.at_gate(now)?.saturating_sub(queue));
            if let Some(backend) = self.context.backend_time().or_else(so_far) {
                let _ = write!(text, ", tidegate-backend;dur={:.1}", millis(backend));
            }
        }
        let _ = write!(text, ", tidegate-total;dur={:.1}", millis(total));
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().append(SERVER_TIMING, value);
        }
    }

    /// The last byte is out, or nobody is there to take it.
    fn finish(&mut self, complete: bool, now: Instant) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let context = &self.context;
        context.peer.state.answered();
        let total = now.saturating_duration_since(context.arrived);
        if complete {
            context.route().metrics.request_seconds(total);
        } else if !self.cut {
            self.note_cancel(now);
        }
        let mode = context.live.config.log.access;
        if !observe::log::wants_access(mode, self.status, self.reason) || self.status == 0 {
            return;
        }
        observe::log::access(
            mode,
            &observe::log::AccessRecord {
                method: context.method.as_str(),
                path: context.path.as_ref().map_or("*", |path| path.path()),
                status: self.status,
                source: self.source,
                reason: self.reason,
                route: &context.route().name,
                request_id: context.request_id.as_str(),
                client: context.peer.ip,
                queue_ms: observe::log::millis(context.queue_time()),
                backend_ms: context.backend_time().map(observe::log::millis),
                total_ms: observe::log::millis(total),
                bytes: self.bytes,
                endpoint: context.endpoint(&self.shared).as_deref(),
                attempt: u32::from(context.attempts()),
            },
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished {
            self.finish(false, clock::now());
        }
    }
}

/// An answer on its way to its client, and its body; tells its record when the client has it all, as whoever
/// writes it says.
pub struct ClientBody {
    inner: Answered,
    /// `None` for a 101, whose record goes with its tunnel.
    record: Option<Record>,
    /// The tunnel of a 101. It goes with the answer, so that it ends if that cannot be sent.
    tunnel: Option<Box<Tunnel>>,
}

impl ClientBody {
    fn new(inner: Answered, record: Record) -> Self {
        Self {
            inner,
            record: Some(record),
            tunnel: None,
        }
    }

    /// What the connection is once this is out, if it is a 101.
    pub fn take_tunnel(&mut self) -> Option<Box<Tunnel>> {
        self.tunnel.take()
    }

    /// The answer's head, and the fields of it that are not in its map.
    pub fn head(&self) -> (&Response<ResponseBody>, &Usual) {
        (&self.inner, self.inner.body().usual())
    }

    /// Drops the trailers that are there already, for a client that does not take any.
    pub fn forget_trailers(&mut self) {
        self.inner.body_mut().forget_trailers();
    }

    /// The answer's head, of which all fields are in its map.
    pub fn take_head(&mut self) -> Response<()> {
        let mut head = Response::new(());
        *head.status_mut() = self.inner.status();
        std::mem::swap(head.headers_mut(), self.inner.headers_mut());
        head
    }

    /// The field that has the request's id.
    pub fn id_name(&self) -> Option<&HeaderName> {
        let record = self.record.as_ref()?;
        record.context.live.request_id.as_ref()
    }

    /// All that there is to be written is out.
    pub fn finish(&mut self, now: Instant) {
        if let Some(record) = &mut self.record {
            record.finish(true, now);
        }
    }

    /// What is left of its request: memory for the next.
    pub fn take_spent(&mut self) -> Option<Box<RequestHead>> {
        self.inner.body_mut().take_spent()
    }
}

impl std::fmt::Debug for ClientBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ClientBody({:?})",
            self.record.as_ref().map(|r| r.status)
        )
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(this.inner.body_mut()).poll_frame(cx));
        let Some(record) = &mut this.record else {
            return Poll::Ready(frame);
        };
        if let Some(Ok(frame)) = &frame {
            record.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| record.cut(error))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.body().size_hint()
    }
}

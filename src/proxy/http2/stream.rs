//! One stream, from its request to the end of its answer: what the backend says on the way goes to the client
//! as it comes, and a client that resets the stream ends it, whatever has become of it.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use pin_project_lite::pin_project;
use tower::Service;

use super::{
    body::{Incoming, Wanted},
    head::size,
    io::Line,
    response,
    streams::Open,
    window::Upload,
    writer::Writer,
};
use crate::{
    backend::{Plain, length},
    clock,
    proxy::{
        ClientBody,
        answer::Told,
        hygiene::expects_continue,
        received::{Arrived, Received},
    },
};

/// What a request says of its answer, and of what comes before.
struct Asked {
    /// It is for the head alone.
    head: bool,
    /// Its client has asked for a 100, which is ours to send.
    expects: bool,
    /// What tells that somebody waits for the body; `None` if nobody has to be asked for it any more.
    wanted: Option<Wanted>,
}

pin_project! {
    /// See the module's documentation. A stream whose answer is not complete is reset when this is dropped.
    pub struct Stream<F> {
        respond: SendResponse<Bytes>,
        #[pin]
        stage: Stage<F>,
        asked: Asked,
        line: Arc<Line>,
        open: Open,
    }
}

pin_project! {
    #[project = StageProject]
    enum Stage<F> {
        /// The answer is to come.
        Serving { #[pin] future: F },
        /// Its body is being written.
        Answering { writer: Writer },
    }
}

impl<F> Stream<F> {
    /// Has `service`, which is always ready, serve a request; its body is to come if it is an upload.
    pub fn begin<S>(
        service: &mut S,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        upload: Option<Upload>,
        line: Arc<Line>,
        open: Open,
    ) -> Self
    where
        S: Service<Arrived, Future = F>,
    {
        let (head, data) = request.into_parts();
        let head = Box::new(Request::from_parts(head, Plain::default()));
        let mut asked = Asked {
            head: *head.method() == Method::HEAD,
            expects: expects_continue(head.headers()),
            wanted: None,
        };
        let body = upload.map_or(Received::None, |upload| {
            asked.wanted = asked.expects.then(Wanted::default);
            let declared = head.headers().get(header::CONTENT_LENGTH);
            let declared = declared.and_then(|declared| length(declared.as_bytes()));
            let wanted = asked.wanted.clone();
            Received::Http2(Incoming::new(data, declared, wanted, upload))
        });
        let size = size(&head);
        let future = service.call(Arrived { head, size, body });
        Self {
            respond,
            stage: Stage::Serving { future },
            asked,
            line,
            open,
        }
    }
}

impl<F> Future for Stream<F>
where
    F: Future<Output = Result<ClientBody, Infallible>> + Told,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let StageProject::Serving { mut future } = this.stage.as_mut().project() {
            let Poll::Ready(answer) = future.as_mut().poll(cx) else {
                if this.respond.poll_reset(cx).is_ready() {
                    return Poll::Ready(());
                }
                pass_on(this.respond, this.asked, this.line, future.told());
                return Poll::Pending;
            };
            let Ok(mut answer) = answer;
            let (head, ends) = response::head(&mut answer, this.asked.head);
            let Ok(stream) = this.respond.send_response(head, ends) else {
                this.respond.send_reset(Reason::INTERNAL_ERROR);
                return Poll::Ready(());
            };
            if ends {
                answer.finish(clock::now());
                return Poll::Ready(());
            }
            let writer = Writer::new(stream, answer, this.open.stall());
            this.stage.set(Stage::Answering { writer });
        }
        if let StageProject::Answering { writer } = this.stage.project()
            && let Err(error) = ready!(writer.poll(cx, this.line))
        {
            tracing::debug!(%error, "an answer over HTTP/2 was not written to its end");
        }
        Poll::Ready(())
    }
}

/// Invites the client to send its body, if somebody waits for it, and passes on what the backend has said:
/// RFC 9110 15.2. Not a 100 of the backend's if the client has asked for one: that is ours to send, and the
/// backend was not asked.
fn pass_on(
    respond: &mut SendResponse<Bytes>,
    asked: &mut Asked,
    line: &Line,
    told: Option<Box<Response<()>>>,
) {
    if asked
        .wanted
        .take_if(|wanted| wanted.load(Relaxed))
        .is_some()
    {
        let mut invitation = Response::new(());
        *invitation.status_mut() = StatusCode::CONTINUE;
        // Whoever is not there for it learns nothing by its failure.
        let _ = respond.send_informational(invitation);
    }
    if let Some(interim) = told
        && !(asked.expects && interim.status() == StatusCode::CONTINUE)
        && line.has_room(weight(&interim))
    {
        let _ = respond.send_informational(*interim);
    }
}

/// What an interim answer costs, about, until it is sent: RFC 9113 6.5.2.
fn weight(interim: &Response<()>) -> usize {
    let fields = interim.headers().iter();
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
    fields.map(field).sum()
}

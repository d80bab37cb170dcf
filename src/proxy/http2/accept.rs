//! Takes the requests of a connection as they come, and gives each a task of its own.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    server::{self, Handshake},
};
use tower::Service;

use super::{
    io::{Http2Io, Line},
    stream::Stream,
    streams::Streams,
    window::Window,
};
use crate::proxy::{ClientBody, answer::Told, received::Arrived};

/// See the module's documentation.
pub struct Accepting<S> {
    http: Http,
    service: S,
    streams: Streams,
    line: Arc<Line>,
    window: Window,
    /// It takes no more requests, once it can say so.
    leaves: bool,
}

enum Http {
    /// The preface is to come.
    Beginning(Handshake<Http2Io, Bytes>),
    Serving(server::Connection<Http2Io, Bytes>, Option<PingPong>),
}

impl<S> Accepting<S>
where
    S: Service<Arrived, Response = ClientBody, Error = Infallible>,
    S::Future: Told + Send + 'static,
{
    /// Serves what begins with this handshake by `service`, which is always ready.
    pub fn new(
        handshake: Handshake<Http2Io, Bytes>,
        service: S,
        streams: Streams,
        line: Arc<Line>,
        window: Window,
    ) -> Self {
        Self {
            http: Http::Beginning(handshake),
            service,
            streams,
            line,
            window,
            leaves: false,
        }
    }

    /// No more requests: GOAWAY, and the end when those that there are have been answered.
    pub fn leave(&mut self) {
        self.leaves = true;
        if let Http::Serving(connection, _) = &mut self.http {
            connection.graceful_shutdown();
        }
    }

    /// Asks the client for a sign of life.
    pub fn ping(&mut self, cx: &mut Context<'_>) {
        if let Http::Serving(_, Some(pings)) = &mut self.http {
            // One may be under way at a time, so the answer to the last one makes room for this. If there is
            // none yet this one fails, which does not matter: the last one still asks the same.
            let _ = pings.poll_pong(cx);
            let _ = pings.send_ping(Ping::opaque());
        }
    }

    /// Ready at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.http {
                Http::Beginning(handshake) => {
                    let Ok(mut connection) = std::task::ready!(Pin::new(handshake).poll(cx)) else {
                        return Poll::Ready(());
                    };
                    if self.leaves {
                        connection.graceful_shutdown();
                    }
                    let pings = connection.ping_pong();
                    self.http = Http::Serving(connection, pings);
                }
                Http::Serving(connection, _) => {
                    let Poll::Ready(next) = connection.poll_accept(cx) else {
                        self.line.wrote_all();
                        return Poll::Pending;
                    };
                    let Some(Ok((request, respond))) = next else {
                        return Poll::Ready(());
                    };
                    let upload = (!request.body().is_end_stream()).then(|| self.window.upload());
                    if upload.is_some()
                        && let Some(size) = self.window.widen()
                    {
                        connection.set_target_window_size(size);
                    }
                    let (line, open) = (self.line.clone(), self.streams.open());
                    let service = &mut self.service;
                    let stream = Stream::begin(service, request, respond, upload, line, open);
                    tokio::spawn(stream);
                }
            }
        }
    }
}

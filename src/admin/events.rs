//! `/status` as server-sent events: the document once a second, for as long as the client listens.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    Handle,
    respond::{Content, Reply, with_content},
};

/// Streams that may be open at once; who comes later asks `/status` now and then.
pub(super) const MAX_STREAMS: usize = 8;

/// Between two documents.
const PERIOD: Duration = Duration::from_secs(1);

/// How a client finds out that this is a stream, and when it should come back after it.
const GREETING: &[u8] = b"retry: 2000\n\n";

/// The stream of one client. A document is made when the one before has been taken, so a slow client
/// gets fewer of them, and never an old one.
pub(super) struct Events {
    handle: Arc<dyn Handle>,
    ticks: Interval,
    /// Is done when the server is closing.
    closing: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_greeted: bool,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// An answer that goes on until the server closes or the client leaves.
    pub(super) fn reply(
        handle: Arc<dyn Handle>,
        mut closing: watch::Receiver<bool>,
        place: OwnedSemaphorePermit,
    ) -> Reply {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let events = Self {
            handle,
            ticks,
            closing: Box::pin(async move {
                let _ = closing.wait_for(|closing| *closing).await;
            }),
            is_greeted: false,
            is_over: false,
            _place: place,
        };
        with_content(StatusCode::OK, "text/event-stream", Content::Events(events))
    }

    /// The next piece; none at the end, which comes with a last document.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if !self.is_greeted {
            self.is_greeted = true;
            return Poll::Ready(Some(Bytes::from_static(GREETING)));
        }
        if self.closing.as_mut().poll(cx).is_ready() {
            self.is_over = true;
        } else if self.ticks.poll_tick(cx).is_pending() {
            return Poll::Pending;
        }
        // On one line: a line break would end the event's field.
        Poll::Ready(Some(format!("data: {}\n\n", self.handle.status()).into()))
    }
}

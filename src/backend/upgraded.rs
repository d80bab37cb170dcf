//! The backend's side of a connection that no longer speaks HTTP.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};

use super::{
    Answered, Error, Stream,
    codec::{has_member, members},
    exchange::{Completion, Lease},
    flight::Flight,
    raised::Raised,
    steering::Seat,
};
use crate::{
    clock,
    observe::Metrics,
    sync::{Mutex, lock},
};

/// A worker's connection after a 101. Its fields go in their order: the socket is closed before the
/// worker counts as free.
#[derive(Debug)]
pub struct Upgraded {
    /// The connection.
    pub stream: Stream,
    /// What came together with the 101.
    pub first: Bytes,
    /// For as long as the connection lasts.
    pub busy: Busy,
}

/// The lease of an exchange that ended with a 101: completed when dropped.
pub struct Busy {
    complete: Option<Box<dyn FnOnce() + Send>>,
    _counted: Raised,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(complete) = self.complete.take() {
            complete();
        }
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Busy")
    }
}

impl Upgraded {
    pub(super) fn new<L: Lease>(
        stream: Stream,
        first: Bytes,
        (seat, mut lease): (Option<Seat>, L),
        metrics: &Arc<Metrics>,
    ) -> Self {
        lease.note_stream();
        let complete = move || {
            drop(seat);
            let status = http::StatusCode::SWITCHING_PROTOCOLS;
            lease.complete(Completion::Streamed, Some(status), clock::now());
        };
        Self {
            stream,
            first,
            busy: Busy {
                complete: Some(Box::new(complete)),
                _counted: Raised::new(metrics, |metrics| &metrics.streaming),
            },
        }
    }

    /// Sends it along with its response.
    fn attach<B>(self, response: &mut Response<B>) {
        let handover = Handover(Arc::new(Mutex::new(Some(self))));
        response.extensions_mut().insert(handover);
    }

    /// The one that came with this response, for the first who asks.
    pub fn of<B>(response: &Response<B>) -> Option<Self> {
        let handover = response.extensions().get::<Handover>()?;
        lock(&handover.0).take()
    }
}

/// Extensions are cloned, connections are not.
#[derive(Clone, Debug)]
struct Handover(Arc<Mutex<Option<Upgraded>>>);

/// Takes a 101 over, if it is the one that was asked for.
pub(super) fn switch<L: Lease>(
    flight: Flight<L>,
    mut response: Answered,
    asked: Option<&HeaderValue>,
) -> Result<Answered, Error> {
    if !switches_to(asked, response.headers()) {
        flight.finish(Completion::Malformed);
        return Err(Error::Switched);
    }
    match flight.into_upgraded() {
        Some(upgraded) => upgraded.attach(&mut response),
        None => return Err(Error::Switched),
    }
    Ok(response)
}

/// Whether a 101 with these fields switches to nothing but what was asked for.
fn switches_to(asked: Option<&HeaderValue>, answer: &HeaderMap) -> bool {
    let Some(asked) = asked else {
        return false;
    };
    let lines = answer.get_all(header::UPGRADE);
    let mut protocols = lines.iter().flat_map(|line| members(line.as_bytes()));
    let mut switched = false;
    protocols.all(|protocol| {
        switched = true;
        !protocol.is_empty() && has_member(asked.as_bytes(), protocol)
    }) && switched
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_switched_to() {
        let switches = |asked: Option<&'static str>, answered: &[&'static str]| {
            let asked = asked.map(HeaderValue::from_static);
            let mut answer = HeaderMap::new();
            for value in answered {
                answer.append(header::UPGRADE, HeaderValue::from_static(value));
            }
            switches_to(asked.as_ref(), &answer)
        };
        assert!(switches(Some("websocket"), &["WebSocket"]));
        assert!(switches(Some("chat, websocket"), &["chat"]));
        assert!(!switches(None, &["websocket"]));
        assert!(!switches(Some("websocket"), &[]));
        assert!(!switches(Some("websocket"), &["chat"]));
        assert!(!switches(Some("websocket"), &["websocket", "chat"]));
        assert!(!switches(Some("websocket"), &["websocket,"]));
        assert!(!switches(Some("websocket"), &[""]));
    }
}

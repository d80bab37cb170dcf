//! The client's side of HTTP.
//!
//! The way of a request, as [`stack`] composes it: `answer` turns whatever comes out into the one
//! response and accounts for it; `hygiene` checks and cleans the head; `body` reads the body
//! while nothing is held for it; admission takes a permit; `forward` has the exchange with the
//! backend.

mod answer;
mod body;
mod client;
mod connection;
mod connections;
mod context;
mod date;
mod departure;
mod error;
mod forward;
mod forwarded;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guard;
#[doc(hidden)]
pub mod head;
mod http1;
mod http2;
mod hygiene;
mod io;
mod listener;
mod live;
mod pace;
mod preamble;
mod probes;
mod received;
mod record;
mod reject;
mod request_id;
mod spool;
mod state;
mod trace;
mod upgrade;
mod vigil;

use std::{convert::Infallible, sync::Arc};

use tower::{Service, ServiceBuilder};

use self::{
    answer::AnswerLayer, body::ReadBodyLayer, forward::Forward, probes::ProbesLayer,
    received::Arrived,
};
pub use self::{
    connection::serve,
    connections::Connections,
    context::Peer,
    error::Error,
    listener::{
        Acceptor, Listener, Open, Worker, close_unused, descriptors, room_for_clients,
        serve_accepted,
    },
    live::{Live, Phase, Shared, control_settings, queue_settings},
    record::ClientBody,
};
use crate::admission::AdmissionLayer;

/// What a request goes through, from the outside in.
pub fn stack(
    shared: &Arc<Shared>,
    peer: Peer,
) -> impl Service<Arrived, Response = ClientBody, Error = Infallible, Future: Send + answer::Told>
+ Clone
+ Send
+ 'static
+ use<> {
    ServiceBuilder::new()
        .layer(AnswerLayer::new(shared.clone(), peer))
        .layer(ProbesLayer::new(shared.clone()))
        .layer(ReadBodyLayer::new(shared.clone()))
        .layer(
            AdmissionLayer::new(shared.limiter.clone())
                .ask(context::AtGate)
                .hand_over(),
        )
        .service(Forward::new(shared.clone()))
}

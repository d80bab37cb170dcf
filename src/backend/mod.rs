//! The worker's side of HTTP: endpoints, connections, and one exchange with a worker.
//!
//! An exchange takes a request whose body is at hand, and a [`Lease`] that says the backend is busy.
//! The lease is completed when the backend has finished, which is not when the client leaves or the
//! head arrives: an exchange that nobody waits for any more goes on in the background.

mod body;
mod codec;
pub(crate) mod connect;
mod endpoint;
mod error;
mod exchange;
mod flight;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod link;
mod parts;
mod pool;
pub mod profile;
mod pump;
mod raised;
mod sending;
mod steering;
mod timers;
mod upgraded;
pub mod uwsgi;

pub use self::{
    body::{Answered, RequestBody, ResponseBody},
    codec::{
        Added, Lines, Malformed, Name, Names, Plain, RequestHead, Size, Usual, can_have_body,
        chunk, colon, detach, empty, has_control, has_member, head, is_plain_option, length, line,
        members,
    },
    connect::{Stream, connect},
    endpoint::{Endpoint, Look},
    error::Error,
    exchange::{Completion, Delivery, Failed, Lease, Unsent, exchange},
    timers::Timers,
    upgraded::Upgraded,
};

//! Everything that can keep a request from its answer. `reject` says what the client sees.

use std::io::{self, ErrorKind};

use super::hygiene;
use crate::{admission::AdmissionError, admission::Refusal, backend};

/// Why tidegate answers a request itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The head is wrong.
    #[error(transparent)]
    Head(#[from] hygiene::BadHead),
    /// The PROXY protocol's header is not there, or malformed.
    #[error("the PROXY protocol's header is missing or malformed")]
    Preamble,
    /// The head came too slowly.
    #[error("the request's head did not arrive in time")]
    HeadTimeout,
    /// The body is malformed.
    #[error("the request's body is malformed")]
    Body,
    /// The client left before its body was complete.
    #[error("the request's body is incomplete")]
    BodyCut,
    /// The body came too slowly.
    #[error("the request's body did not arrive in time")]
    BodyTimeout,
    /// The body is longer than `server.max_body_bytes`.
    #[error("the request's body is longer than {0} bytes")]
    BodyTooLarge(u64),
    /// The budget for buffered bytes was spent for as long as the body may take.
    #[error("no memory is left to buffer the request's body")]
    Memory,
    /// What was spooled of the body cannot be read again.
    #[error("what was spooled of the request's body cannot be read again")]
    Spool,
    /// The other answers over the connection hold as much as one client may.
    #[error("the answers over this connection that are not taken hold as much memory as they may")]
    Share,
    /// The gate refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The exchange with the backend failed.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// A bug in tidegate; it costs this request alone.
    #[error("an internal error")]
    Panicked,
}

impl Error {
    /// What went wrong with a request's body while it was passed on, from the error that the
    /// exchange ended with.
    pub fn of_exchange(error: backend::Error) -> Self {
        let backend::Error::RequestBody(cause) = &error else {
            return Self::Backend(error);
        };
        let stalled = |cause: &io::Error| cause.kind() == ErrorKind::TimedOut;
        match cause.downcast_ref() {
            Some(Self::Body) => Self::Body,
            Some(Self::BodyCut) => Self::BodyCut,
            Some(Self::BodyTimeout) => Self::BodyTimeout,
            Some(Self::BodyTooLarge(max)) => Self::BodyTooLarge(*max),
            Some(Self::Spool) => Self::Spool,
            None if cause.downcast_ref().is_some_and(stalled) => Self::BodyTimeout,
            _ => Self::Backend(error),
        }
    }

    /// What ends the stream of a request's body over HTTP/2 before its time: the parser, which has found it
    /// malformed, or the client.
    pub fn of_stream(error: &h2::Error) -> Self {
        match error.is_library() {
            true => Self::Body,
            false => Self::BodyCut,
        }
    }
}

impl From<AdmissionError<Error>> for Error {
    fn from(error: AdmissionError<Error>) -> Self {
        match error {
            AdmissionError::Refused(refusal) => Self::Refused(refusal),
            AdmissionError::Inner(error) => error,
        }
    }
}

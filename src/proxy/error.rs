//! Everything that can keep a request from its answer. `reject` says what the client sees.

use super::hygiene;
use crate::{admission::AdmissionError, admission::Refusal, backend};

/// Why tidegate answers a request itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The head is wrong.
    #[error(transparent)]
    Head(#[from] hygiene::BadHead),
    /// The body is malformed or was cut off.
    #[error("the request's body is malformed or incomplete")]
    Body,
    /// The body came too slowly.
    #[error("the request's body did not arrive in time")]
    BodyTimeout,
    /// The body is longer than `server.max_body_bytes`.
    #[error("the request's body is longer than {0} bytes")]
    BodyTooLarge(u64),
    /// The budget for buffered bytes was spent for as long as the body may take.
    #[error("no memory is left to buffer the request's body")]
    Memory,
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

impl From<AdmissionError<Error>> for Error {
    fn from(error: AdmissionError<Error>) -> Self {
        match error {
            AdmissionError::Refused(refusal) => Self::Refused(refusal),
            AdmissionError::Inner(error) => error,
        }
    }
}

//! What can go wrong between tidegate and a worker.

use std::io;

use rustix::io::Errno;
use tower::BoxError;

use super::{codec::Malformed, profile::Excess, uwsgi::Unencodable};
use crate::observe::ErrorKind;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: nothing listens, the host is unknown, the listen backlog stayed full.
    #[error("cannot connect to the backend: {0}")]
    Connect(#[source] io::Error),
    /// No connection, for want of something of our own: descriptors, ports, memory. It says nothing of the backend.
    #[error("nothing is left here to connect to the backend with: {0}")]
    Shortage(#[source] io::Error),
    /// Connecting took longer than `backend.connect_timeout`.
    #[error("the backend did not accept a connection in time")]
    ConnectTimeout,
    /// No response head within `backend.response_timeout`, or a pause within the body longer than
    /// `backend.read_timeout`.
    #[error("the backend did not answer in time")]
    Timeout,
    /// The connection ended before the response did.
    #[error("the backend closed the connection before its answer was complete")]
    Reset(#[source] io::Error),
    /// What the backend sent is not HTTP, or ambiguous.
    #[error("the backend's answer is not valid HTTP: {0}")]
    Protocol(#[source] Malformed),
    /// It answered 101 to a request that asked for no upgrade, or for another one.
    #[error("the backend switched protocols without being asked")]
    Switched,
    /// The request's head is more than the backend takes.
    #[error(transparent)]
    Excess(#[from] Excess),
    /// The request's body has no length, and the backend's protocol has no other way to end it.
    #[error("the request's body has no length, and the backend needs one")]
    NoLength,
    /// The client's own body failed while it was passed on, or did not come on: an [`io::Error`] that says so.
    #[error("the request's body ended early: {0}")]
    RequestBody(#[source] BoxError),
}

impl Error {
    /// What kept a connection from being made.
    pub(super) fn connecting(error: io::Error) -> Self {
        let errno = Errno::from_io_error(&error);
        match errno {
            Some(
                Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM,
            ) => Self::Shortage(error),
            _ => Self::Connect(error),
        }
    }

    /// Its label in the metrics; `None` where it was not the backend's fault.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Connect(_) | Self::ConnectTimeout => Some(ErrorKind::Connect),
            Self::Timeout => Some(ErrorKind::Timeout),
            Self::Reset(_) => Some(ErrorKind::Reset),
            Self::Protocol(_) | Self::Switched => Some(ErrorKind::Protocol),
            Self::Shortage(_) | Self::Excess(_) | Self::NoLength | Self::RequestBody(_) => None,
        }
    }
}

impl From<Unencodable> for Error {
    fn from(error: Unencodable) -> Self {
        match error {
            Unencodable::TooLarge => Self::Excess(Excess::Fields),
            Unencodable::NoLength => Self::NoLength,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_shortage_is_no_fault_of_the_backend() {
        let connecting = |errno: Errno| Error::connecting(errno.into()).kind();
        for ours in [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL] {
            assert_eq!(connecting(ours), None, "{ours}");
        }
        for theirs in [Errno::CONNREFUSED, Errno::NOENT, Errno::HOSTUNREACH] {
            assert_eq!(connecting(theirs), Some(ErrorKind::Connect), "{theirs}");
        }
    }
}

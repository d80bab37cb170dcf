//! A request's body as its client sends it, whatever version of HTTP it speaks.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::{Error, http1::Coming, http2::Incoming};
use crate::backend::RequestHead;

/// A request as it has come. Its head is in a box from the beginning: it changes hands often.
#[derive(Debug)]
pub struct Arrived {
    /// Its head.
    pub head: Box<RequestHead>,
    /// How long that is as HTTP/1 has it, bytes.
    pub size: usize,
    /// Its body.
    pub body: Received,
}

/// See the module's documentation.
#[derive(Debug)]
pub enum Received {
    /// There is none.
    None,
    /// It came with its head.
    Whole(Bytes),
    /// Over HTTP/1.
    Http1(Coming),
    /// Over HTTP/2.
    Http2(Incoming),
}

impl Received {
    /// Whether there is nothing to be read.
    pub fn is_none(&self) -> bool {
        match self {
            Self::None => true,
            Self::Whole(_) | Self::Http1(_) | Self::Http2(_) => false,
        }
    }

    /// How long it is, if its head says so and nothing of it has been read; bytes.
    pub fn declared(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Http1(coming) => coming.declared(),
            Self::Http2(incoming) => incoming.declared(),
        }
    }

    /// The next bytes of it; `None` at the end. Trailers end here: no WSGI server hands them on.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        match self {
            Self::None => Poll::Ready(None),
            Self::Whole(_) => match std::mem::replace(self, Self::None) {
                Self::Whole(bytes) => Poll::Ready(Some(Ok(bytes))),
                _ => Poll::Ready(None),
            },
            Self::Http1(coming) => coming.poll_next(cx),
            Self::Http2(incoming) => incoming.poll_next(cx),
        }
    }
}

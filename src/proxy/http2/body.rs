//! A request's body as it comes in the DATA of its stream. What is taken of it opens the client's windows
//! again, and nothing else does; what nobody takes is given back to the connection with the stream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::RecvStream;

use super::window::Upload;
use crate::proxy::Error;

/// Whether somebody waits for a body whose client waits for a 100 before it sends it.
pub type Wanted = Arc<AtomicBool>;

/// See the module's documentation.
#[derive(Debug)]
pub struct Incoming {
    data: RecvStream,
    declared: Option<u64>,
    /// To be told that the body is wanted, if it has not been.
    wanted: Option<Wanted>,
    _upload: Upload,
}

impl Incoming {
    /// A body that is `declared` bytes long, if that is known; of whose client somebody may have to ask it.
    pub fn new(
        data: RecvStream,
        declared: Option<u64>,
        wanted: Option<Wanted>,
        upload: Upload,
    ) -> Self {
        Self {
            data,
            declared,
            wanted,
            _upload: upload,
        }
    }

    /// How long it is, if its head says so.
    pub fn declared(&self) -> Option<u64> {
        self.declared
    }

    /// The next bytes of it; `None` at the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let Poll::Ready(data) = self.data.poll_data(cx) else {
            if let Some(wanted) = self.wanted.take() {
                wanted.store(true, Relaxed);
            }
            return Poll::Pending;
        };
        // Who sends has not waited: RFC 9110 10.1.1.
        self.wanted = None;
        Poll::Ready(data.map(|data| match data {
            Ok(bytes) => {
                // It fails only for more than has come.
                let _ = self.data.flow_control().release_capacity(bytes.len());
                Ok(bytes)
            }
            Err(error) => Err(Error::of_stream(&error)),
        }))
    }
}

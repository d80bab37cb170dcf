//! An HTTP/2 client's socket, watched: whether it owes the rest of a head, and whether a write makes
//! progress.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;
use crate::{
    backend::Stream,
    proxy::{
        io::take_ahead,
        state::{Stall, State},
    },
};

/// See the module's documentation.
pub struct Http2Io {
    stream: Stream,
    /// What was read before it was known to be HTTP/2.
    first: Bytes,
    frames: Frames,
    state: Arc<State>,
    stall: Stall,
}

impl Http2Io {
    pub fn new(stream: Stream, first: Bytes, state: Arc<State>, write_timeout: Duration) -> Self {
        state.owes(true, true);
        Self {
            stream,
            first,
            frames: Frames::new(),
            state,
            stall: Stall::new(write_timeout),
        }
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if !take_ahead(&mut this.first, buf) {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        }
        let ended = this.frames.advance(&buf.filled()[before..]);
        this.state.owes(this.frames.owes(), ended);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.stall.watch(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.stall.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        if result.is_ready() {
            this.state.flushed(crate::clock::now());
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

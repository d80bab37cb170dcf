//! Writes the body of an answer to its stream. A piece of it is taken at a time, and nothing is handed to the
//! parser that the client's windows have no room for. The rest of the piece waits here, and the rest of the
//! answer in the buffers behind it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use super::{io::Line, response};
use crate::{
    clock,
    proxy::{ClientBody, state::Stall},
};

/// See the module's documentation. Dropped before it is done, it resets the stream.
pub struct Writer {
    stream: SendStream<Bytes>,
    answer: ClientBody,
    /// What of the answer is taken and not sent.
    piece: Bytes,
    /// Nothing comes behind it.
    last: bool,
    /// The time in which the client has to make room for it.
    stall: Stall,
}

impl Writer {
    /// Behind the answer's head.
    pub fn new(stream: SendStream<Bytes>, answer: ClientBody, stall: Stall) -> Self {
        Self {
            stream,
            answer,
            piece: Bytes::new(),
            last: false,
            stall,
        }
    }

    /// Ready at the end; an error if there is nobody any more to whom it could be written, or nothing.
    pub fn poll(&mut self, cx: &mut Context<'_>, line: &Line) -> Poll<io::Result<()>> {
        loop {
            if !self.piece.is_empty() {
                let sent = self.poll_send(cx);
                let waits = sent.is_pending();
                let mut watched = self.stall.watch(cx, sent);
                if waits && watched.is_ready() && line.is_stalled() {
                    // It is the socket that takes nothing, which has a timeout of its own.
                    watched = self.stall.renew(cx);
                }
                ready!(watched)?;
                if self.last {
                    break;
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.answer).poll_frame(cx) else {
                // As nothing is being written, only a reset can tell that the client has left.
                let reset = ready!(self.stream.poll_reset(cx));
                return Poll::Ready(Err(reset.map_or_else(other, |_| gone())));
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.last = self.answer.is_end_stream();
                        if data.is_empty() && !self.last {
                            continue;
                        }
                        if data.is_empty() {
                            self.stream.send_data(data, true).map_err(other)?;
                            break;
                        }
                        // Not before there is data: what one stream reserves of the connection's window the
                        // others cannot use.
                        self.stream.reserve_capacity(data.len());
                        self.piece = data;
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        let trailers = response::trailers(trailers);
                        self.stream.send_trailers(trailers).map_err(other)?;
                        break;
                    }
                },
                Some(Err(error)) => {
                    // Its backend broke off: it must not look whole.
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                None => {
                    self.stream.send_data(Bytes::new(), true).map_err(other)?;
                    break;
                }
            }
        }
        self.answer.finish(clock::now());
        Poll::Ready(Ok(()))
    }

    /// Sends the piece, as much at once as there is room for. Ready when all of it is sent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.piece.is_empty() {
            let room = match self.stream.capacity() {
                0 => match ready!(self.stream.poll_capacity(cx)) {
                    Some(room) => room.map_err(other)?,
                    None => return Poll::Ready(Err(gone())),
                },
                room => room,
            };
            let part = self.piece.split_to(room.min(self.piece.len()));
            let ends = self.last && self.piece.is_empty();
            self.stream.send_data(part, ends).map_err(other)?;
            self.stall.took_some();
        }
        Poll::Ready(Ok(()))
    }
}

fn other(error: h2::Error) -> io::Error {
    io::Error::other(error)
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

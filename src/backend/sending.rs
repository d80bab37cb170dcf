//! A request on its way to a worker: what is left of it to write, and of what was written what may have to
//! be sent again.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::header;
use tokio::io::AsyncWrite as _;

use super::{
    Error, RequestBody, Stream,
    body::Streamed,
    codec::{self, Added, RequestHead},
};

/// A body up to this is written together with the head from one buffer, bytes.
const JOINED_MAX: usize = 16 * 1024;
/// Parts of a body that is still coming are joined up to this size, bytes.
const SMALL_PART: usize = 4 * 1024;
/// This many bytes fit in one TCP segment on any network: the least MTU of RFC 8200 5, without the headers of
/// IP and TCP.
const ONE_SEGMENT: usize = 1200;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Sending {
    /// The request, until its response begins: it may have to be sent again.
    request: Option<(Box<RequestHead>, RequestBody)>,
    /// What is left of the request, empty.
    spent: Option<Box<RequestHead>>,
    /// Head, or a chunk's size; then `data`; then `tail`.
    head: Vec<u8>,
    head_at: usize,
    data: Bytes,
    tail: &'static [u8],
    upload: Option<Upload>,
    /// Parts of this request's `upload` so far, and what was written since the other side first took no more.
    moved: u64,
    /// Whether the other side has taken no more at some point of this request.
    held_up: bool,
    /// Whether a byte of it was written.
    begun: bool,
    /// The other side takes no more: what is left is never written.
    broken: bool,
    /// The socket is new: the reactor has not looked at it.
    unknown: bool,
}

/// A body that is still coming.
struct Upload {
    body: Streamed,
    /// Bytes to come of a declared length; `None`: it goes in chunks.
    left: Option<u64>,
}

impl Sending {
    /// None yet, on a socket at which the reactor has not looked.
    pub(super) fn on_new_socket() -> Self {
        Self {
            unknown: true,
            ..Self::default()
        }
    }

    /// Takes a request. A `packet` goes in the place of its head.
    #[inline]
    pub(super) fn begin(
        &mut self,
        (request, mut body): (Box<RequestHead>, RequestBody),
        added: &dyn Added,
        packet: Option<Bytes>,
    ) {
        self.begun = false;
        (self.moved, self.held_up) = (0, false);
        self.head.clear();
        self.head_at = 0;
        let chunked = packet.is_none()
            && !body.is_empty()
            && request.headers().contains_key(header::TRANSFER_ENCODING);
        match packet {
            Some(packet) => self.head.extend_from_slice(&packet),
            None => codec::head(&request, added, &mut self.head),
        }
        match &mut body {
            RequestBody::Empty => {}
            RequestBody::Full(bytes, _) => {
                // A clone of a reference: the request stays whole.
                let bytes = bytes.clone().unwrap_or_default();
                let tail = match (chunked, bytes.is_empty()) {
                    (false, _) => "",
                    (true, true) => "0\r\n\r\n",
                    (true, false) => {
                        codec::chunk(bytes.len(), &mut self.head);
                        "\r\n0\r\n\r\n"
                    }
                };
                if bytes.len() <= JOINED_MAX {
                    self.head.extend_from_slice(&bytes);
                    self.head.extend_from_slice(tail.as_bytes());
                } else {
                    self.data = bytes;
                    self.tail = tail.as_bytes();
                }
            }
            body @ RequestBody::Stream(_) => {
                if let RequestBody::Stream(body) = std::mem::replace(body, RequestBody::Empty) {
                    let left = codec::declared(&request);
                    self.upload = Some(Upload { body, left });
                }
            }
        }
        self.request = Some((request, body));
    }

    /// Whether all that is to be written fits in one segment.
    pub(super) fn is_one_segment(&self) -> bool {
        self.upload.is_none() && self.pieces_left() <= ONE_SEGMENT
    }

    /// Whether a byte of it was written.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Changes when something of a body has moved on that did not go out at once.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether everything that has come of it was written, and the rest is still to come: it is the client that
    /// is waited for, and not the backend.
    pub(super) fn waits_for_body(&self) -> bool {
        self.upload.is_some() && self.pieces_left() == 0 && !self.broken
    }

    /// Whether all of it was written.
    pub(super) fn is_whole(&self) -> bool {
        self.is_over() && !self.broken
    }

    /// What is left of the request once its response has begun: an empty one with its memory.
    pub(super) fn take_spent(&mut self) -> Option<Box<RequestHead>> {
        self.spent.take()
    }

    /// Whether nothing more will be written.
    pub(super) fn is_over(&self) -> bool {
        self.broken || (self.upload.is_none() && self.pieces_left() == 0)
    }

    fn pieces_left(&self) -> usize {
        self.head.len() - self.head_at + self.data.len() + self.tail.len()
    }

    /// Writes what it can.
    pub(super) fn poll(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        loop {
            while self.pieces_left() > 0 && !self.broken {
                let written = self.poll_write(stream, cx);
                self.held_up |= written.is_pending();
                ready!(written)?;
            }
            if self.broken {
                return Poll::Ready(Ok(()));
            }
            if self.upload.is_none() {
                self.forget_body();
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_gather(cx))?;
        }
    }

    /// Takes what is there of a body that is still coming: a large part, or small ones up to [`JOINED_MAX`].
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.head.clear();
        self.head_at = 0;
        while let Some(upload) = &mut self.upload {
            let chunked = upload.left.is_none();
            let next = match upload.poll_next(cx) {
                Poll::Pending if !self.head.is_empty() => break,
                next => ready!(next).transpose()?,
            };
            let Some(data) = next else {
                self.upload = None;
                if chunked {
                    codec::last_chunk(&mut self.head);
                }
                break;
            };
            self.moved += 1;
            if chunked {
                codec::chunk(data.len(), &mut self.head);
            }
            let tail: &'static [u8] = if chunked { b"\r\n" } else { b"" };
            if data.len() > SMALL_PART {
                (self.data, self.tail) = (data, tail);
                break;
            }
            self.head.extend_from_slice(&data);
            self.head.extend_from_slice(tail);
            if self.head.len() >= JOINED_MAX {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let head = &self.head[self.head_at..];
        let written = if self.data.is_empty() && self.tail.is_empty() {
            match std::mem::take(&mut self.unknown).then(|| stream.send_now(head)) {
                Some(result) if !would_wait(&result) => result,
                _ => ready!(Pin::new(stream).poll_write(cx, head)),
            }
        } else {
            let pieces = [head, &self.data, self.tail].map(IoSlice::new);
            let from = usize::from(head.is_empty());
            ready!(Pin::new(stream).poll_write_vectored(cx, &pieces[from..]))
        };
        match written {
            Ok(written) => {
                self.begun |= written > 0;
                self.moved += u64::from(self.held_up);
                self.advance(written);
                Poll::Ready(Ok(()))
            }
            // A server that has answered an upload early and closed cannot be written to, but its
            // answer is there to be read: if there is an error, the reading will find it.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) =>
            {
                self.broken = true;
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(Error::Reset(error))),
        }
    }

    fn advance(&mut self, written: usize) {
        let of_head = written.min(self.head.len() - self.head_at);
        self.head_at += of_head;
        let of_data = (written - of_head).min(self.data.len());
        if of_data > 0 {
            drop(self.data.split_to(of_data));
        }
        self.tail = &self.tail[written - of_head - of_data..];
    }

    /// The request, unless a part of its body is gone.
    pub(super) fn take_back(&mut self) -> Option<(Box<RequestHead>, RequestBody)> {
        let (request, body) = self.request.take()?;
        match self.upload.take() {
            None => Some((request, body)),
            // Not polled before the head is written.
            Some(upload) if !self.begun => Some((request, RequestBody::Stream(upload.body))),
            Some(_) => None,
        }
    }

    /// It will not be sent again.
    pub(super) fn forget(&mut self) {
        if let Some((mut request, _)) = self.request.take() {
            codec::empty(&mut request);
            self.spent = Some(request);
        }
    }

    /// All of it is written: what its body holds of the budget goes back.
    fn forget_body(&mut self) {
        if let Some((_, RequestBody::Full(..))) = &self.request {
            self.forget();
        }
    }
}

impl Upload {
    /// The next bytes, never none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            let frame = ready!(self.body.as_mut().poll_frame(cx));
            let data = match frame {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Some(Err(Error::RequestBody(error)))),
                None if self.left.is_none_or(|left| left == 0) => return Poll::Ready(None),
                None => {
                    let short =
                        io::Error::new(ErrorKind::UnexpectedEof, "it is shorter than declared");
                    return Poll::Ready(Some(Err(Error::RequestBody(short.into()))));
                }
            };
            if let Some(left) = &mut self.left {
                *left = left.saturating_sub(data.len() as u64);
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }
}

fn would_wait(result: &io::Result<usize>) -> bool {
    let kind = result.as_ref().err().map(io::Error::kind);
    matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::Interrupted))
}

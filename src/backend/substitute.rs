//! A connection that says something else than HTTP's head: what the HTTP client writes up to the empty
//! line is left out, and a packet goes in its place. What comes back passes unchanged.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More pieces than this are not written at once.
const PIECES: usize = 16;
const END_OF_HEAD: &[u8; 4] = b"\r\n\r\n";

/// See the module's documentation. Without a packet it is the stream itself.
#[derive(Debug)]
pub(super) struct Substituted<S> {
    stream: S,
    /// Empty once it is sent.
    packet: Bytes,
    /// How much of [`END_OF_HEAD`] was just written; all of it: the head is over.
    ending: usize,
}

impl<S: AsyncWrite + Unpin> Substituted<S> {
    /// Sends `packet` in place of the first head.
    pub(super) fn new(stream: S, packet: Option<Bytes>) -> Self {
        let plain = packet.is_none();
        Self {
            stream,
            packet: packet.unwrap_or_default(),
            ending: if plain { END_OF_HEAD.len() } else { 0 },
        }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn in_head(&self) -> bool {
        self.ending < END_OF_HEAD.len()
    }

    /// Swallows what belongs to the head; how much that is.
    fn swallow(&mut self, bytes: &[u8]) -> usize {
        for (at, &byte) in bytes.iter().enumerate() {
            self.ending = match byte {
                _ if byte == END_OF_HEAD[self.ending] => self.ending + 1,
                b'\r' => 1,
                _ => 0,
            };
            if !self.in_head() {
                return at + 1;
            }
        }
        bytes.len()
    }

    /// Sends the packet and these bytes in one go; how many of the bytes.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let ahead = self.packet.len();
            let written = if ahead == 0 {
                return Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
            } else {
                let mut pieces = [IoSlice::new(&[]); PIECES];
                pieces[0] = IoSlice::new(&self.packet);
                let count = bytes.len().min(PIECES - 1);
                for (piece, bytes) in pieces[1..].iter_mut().zip(bytes) {
                    *piece = IoSlice::new(bytes);
                }
                let stream = Pin::new(&mut self.stream);
                ready!(stream.poll_write_vectored(cx, &pieces[..=count]))?
            };
            self.packet.advance(written.min(ahead));
            if written > ahead {
                return Poll::Ready(Ok(written - ahead));
            }
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if self.packet.is_empty() && bytes.iter().all(|piece| piece.is_empty()) {
                return Poll::Ready(Ok(0));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Substituted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Substituted<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.in_head() {
            return Poll::Ready(Ok(this.swallow(bytes)));
        }
        if this.packet.is_empty() {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        }
        this.poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.in_head() {
            return this.poll_send(cx, bytes);
        }
        let mut swallowed = 0;
        for piece in bytes {
            swallowed += this.swallow(piece);
            if !this.in_head() {
                break;
            }
        }
        Poll::Ready(Ok(swallowed))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.in_head() && !this.packet.is_empty() {
            ready!(this.poll_send(cx, &[]))?;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;

    /// Takes at most so many bytes at a time, of the first piece that has any.
    #[derive(Default)]
    struct Narrow {
        written: Vec<u8>,
        width: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let taken = bytes.len().min(this.width);
            this.written.extend(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        /// However head and body are cut, and however little the socket takes at once.
        #[test]
        fn the_packet_stands_for_the_head(
            body in proptest::collection::vec(any::<u8>(), 0..60),
            packet in proptest::collection::vec(any::<u8>(), 1..60),
            width in 1_usize..80,
            cut in 1_usize..80,
            vectored: bool,
        ) {
            let mut message = b"GET / HTTP/1.1\r\nA: \r\rb\r\n\r\n".to_vec();
            message.extend(&body);
            let socket = Narrow { width, ..Narrow::default() };
            let mut stream = Substituted::new(socket, Some(packet.clone().into()));
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let mut rest = &message[..];
                while !rest.is_empty() {
                    let now = &rest[..rest.len().min(cut)];
                    let written = poll_fn(|cx| {
                        let stream = Pin::new(&mut stream);
                        if vectored {
                            let (one, two) = now.split_at(now.len() / 2);
                            stream.poll_write_vectored(cx, &[IoSlice::new(one), IoSlice::new(two)])
                        } else {
                            stream.poll_write(cx, now)
                        }
                    });
                    rest = &rest[written.await.expect("written")..];
                }
                // More than once, as long as the socket is that narrow.
                for _ in 0..=packet.len() {
                    poll_fn(|cx| Pin::new(&mut stream).poll_flush(cx)).await.expect("flushed");
                }
            });
            let mut expected = packet;
            expected.extend(&body);
            prop_assert_eq!(&stream.stream.written, &expected);
        }
    }
}

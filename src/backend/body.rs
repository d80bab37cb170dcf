//! The bodies on both sides of an exchange.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tower::BoxError;

use super::pump::Pipe;
use crate::buffer::Reservation;

/// A request's body on its way to the backend.
pub enum RequestBody {
    /// None.
    Empty,
    /// All of it, in memory, with what it holds of the budget.
    Full(Option<Bytes>, Option<Reservation>),
    /// From a file, or as the client sends it.
    Stream(Streamed),
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes, _) => write!(f, "Full({:?} bytes)", bytes.as_ref().map(Bytes::len)),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl RequestBody {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// How many frames of a stream have been taken, from now on; `None` if it is none.
    pub(super) fn watch(&mut self) -> Option<Arc<AtomicU64>> {
        let Self::Stream(inner) = self else {
            return None;
        };
        let moved = Arc::new(AtomicU64::new(0));
        let empty: Streamed =
            Box::pin(http_body_util::Empty::new().map_err(|never| match never {}));
        *inner = Box::pin(Counted {
            inner: std::mem::replace(inner, empty),
            moved: moved.clone(),
        });
        Some(moved)
    }
}

type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// A streamed body that says when it moves.
struct Counted {
    inner: Streamed,
    moved: Arc<AtomicU64>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(self.inner.as_mut().poll_frame(cx));
        self.moved.fetch_add(1, Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes, _) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes, _) => bytes.is_none(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(body) => body.size_hint(),
        }
    }
}

/// A response's body on its way to the client, as fast as the client takes it. By the time somebody
/// reads it the backend may long be done.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// What the backend declared, while that is not yet delivered.
    remaining: Option<u64>,
    /// The most that is delivered at once.
    piece: usize,
    /// Returned as the bytes are delivered.
    _held: Option<Reservation>,
}

#[derive(Debug)]
enum Source {
    Whole(VecDeque<Frame<Bytes>>),
    One(Option<Bytes>),
    Piped(Arc<Pipe>),
}

/// The first of the frames, or as much of it as may be delivered at once.
pub(super) fn next(frames: &mut VecDeque<Frame<Bytes>>, most: usize) -> Option<Frame<Bytes>> {
    let first = frames.front_mut()?;
    cut(first, most).or_else(|| frames.pop_front())
}

/// The first `most` bytes of a longer frame; what is left stays in it.
fn cut(frame: &mut Frame<Bytes>, most: usize) -> Option<Frame<Bytes>> {
    let data = frame.data_mut().filter(|data| data.len() > most)?;
    Some(Frame::data(data.split_to(most)))
}

impl ResponseBody {
    /// Delivers no more than so many bytes at once; the rest stays accounted for here.
    pub fn in_pieces(mut self, piece: usize) -> Self {
        self.piece = piece.max(1);
        self
    }

    /// No body.
    pub fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// These bytes.
    pub fn full(bytes: Bytes) -> Self {
        Self {
            remaining: Some(bytes.len() as u64),
            source: Source::One((!bytes.is_empty()).then_some(bytes)),
            piece: usize::MAX,
            _held: None,
        }
    }

    pub(super) fn whole(frames: VecDeque<Frame<Bytes>>, held: Reservation) -> Self {
        let data = frames.iter().filter_map(Frame::data_ref);
        Self {
            remaining: Some(data.map(|bytes| bytes.len() as u64).sum()),
            source: Source::Whole(frames),
            piece: usize::MAX,
            _held: Some(held),
        }
    }

    pub(super) fn piped(pipe: Arc<Pipe>, hint: &SizeHint) -> Self {
        Self {
            remaining: hint.exact(),
            source: Source::Piped(pipe),
            piece: usize::MAX,
            _held: None,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::One(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Whole(frames) => next(frames, this.piece).map(Ok),
            Source::Piped(pipe) => ready!(pipe.poll_read(cx, this.piece)),
        };
        if let (Some(remaining), Some(Ok(frame))) = (&mut this.remaining, &frame) {
            let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
            *remaining = remaining.saturating_sub(sent);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::One(bytes) => bytes.is_none(),
            Source::Whole(frames) => frames.is_empty(),
            Source::Piped(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Source::Piped(pipe) = &self.source {
            pipe.abandon();
        }
    }
}

//! The bodies on both sides of an exchange.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

use super::{
    codec::{RequestHead, Usual},
    parts::{Parts, next},
    pump::Pipe,
};
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
}

/// A body that is still coming.
pub(super) type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

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

/// A response as the backend's side hands it over. In a box: it changes hands often.
pub type Answered = Box<Response<ResponseBody>>;

/// A response's body on its way to the client, as fast as the client takes it. By the time somebody
/// reads it the backend may long be done.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// Fields of its head that are not in the response's map.
    usual: Usual,
    /// What comes after a whole body.
    trailers: Option<Box<HeaderMap>>,
    /// What is left to deliver of the length that the backend declared.
    remaining: Option<u64>,
    /// The most that is delivered at once.
    piece: usize,
    /// What is left of its request: memory for the next.
    spent: Option<Box<RequestHead>>,
    /// Returned as the bytes are delivered.
    _held: Option<Reservation>,
}

#[derive(Debug)]
enum Source {
    Whole(VecDeque<Bytes>),
    One(Option<Bytes>),
    Piped(Arc<Pipe>),
}

/// All that there is, or as much of it as may be delivered at once; what is left stays there.
fn next_of_one(one: &mut Option<Bytes>, most: usize) -> Option<Bytes> {
    match one {
        Some(bytes) if bytes.len() > most => Some(bytes.split_to(most)),
        one => one.take(),
    }
}

impl ResponseBody {
    /// Delivers no more than so many bytes at once; the rest stays accounted for here.
    pub fn in_pieces(mut self, piece: usize) -> Self {
        self.piece = piece.max(1);
        self
    }

    /// With these fields, and what is left of the request.
    pub fn with(mut self, usual: Usual, spent: Option<Box<RequestHead>>) -> Self {
        self.usual = usual;
        self.spent = spent;
        self
    }

    /// The fields of its head that are not in the response's map.
    pub fn usual(&self) -> &Usual {
        &self.usual
    }

    /// The same, to add to them.
    pub fn usual_mut(&mut self) -> &mut Usual {
        &mut self.usual
    }

    /// An empty request with the memory of the one that this answers.
    pub fn take_spent(&mut self) -> Option<Box<RequestHead>> {
        self.spent.take()
    }

    /// Puts all fields of a response into its map.
    pub fn unfold(mut response: Answered) -> Response<Self> {
        let mut usual = std::mem::take(response.body_mut().usual_mut());
        usual.unfold(response.headers_mut());
        *response
    }

    /// Without its trailers, for a client that does not take any: the length says where it ends, if that is known.
    pub fn forget_trailers(&mut self) {
        self.trailers = None;
    }

    fn take_trailers(&mut self) -> Option<Box<HeaderMap>> {
        match &self.source {
            Source::Piped(pipe) => pipe.take_trailers(),
            _ => self.trailers.take(),
        }
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
            usual: Usual::default(),
            trailers: None,
            piece: usize::MAX,
            spent: None,
            _held: None,
        }
    }

    /// A body of which nothing has come yet, of an answer with these fields.
    pub(super) fn begun(usual: Usual) -> Self {
        let mut body = Self::empty();
        body.usual = usual;
        body
    }

    /// What is left of its request.
    pub(super) fn keep(&mut self, spent: Option<Box<RequestHead>>) {
        self.spent = spent;
    }

    /// All of it has come.
    pub(super) fn fill(
        &mut self,
        parts: Parts,
        trailers: Option<Box<HeaderMap>>,
        held: Reservation,
    ) {
        self.remaining = Some(parts.len());
        self.source = match parts {
            Parts { first, rest } if rest.is_empty() && trailers.is_none() => Source::One(first),
            parts => Source::Whole(parts.into()),
        };
        self.trailers = trailers;
        self._held = Some(held);
    }

    /// It comes through a pipe.
    pub(super) fn pipe(&mut self, pipe: Arc<Pipe>, length: Option<u64>) {
        self.remaining = length;
        self.source = Source::Piped(pipe);
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
        let part = match &mut this.source {
            Source::One(bytes) => next_of_one(bytes, this.piece).map(Ok),
            Source::Whole(parts) => next(parts, this.piece).map(Ok),
            Source::Piped(pipe) => ready!(pipe.poll_read(cx, this.piece)),
        };
        if let (Some(remaining), Some(Ok(part))) = (&mut this.remaining, &part) {
            *remaining = remaining.saturating_sub(part.len() as u64);
        }
        Poll::Ready(match part {
            Some(part) => Some(part.map(Frame::data)),
            None => this.take_trailers().map(|it| Ok(Frame::trailers(*it))),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::One(bytes) => bytes.is_none(),
            Source::Whole(parts) => parts.is_empty() && self.trailers.is_none(),
            Source::Piped(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        // Whoever is told a length stops there, and what comes behind it is lost.
        self.remaining
            .filter(|_| self.trailers.is_none())
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

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::buffer::{Budget, Direction};

    fn whole(trailers: bool) -> ResponseBody {
        let mut parts = Parts::default();
        parts.push(Bytes::from_static(b"hello"));
        let mut all = HeaderMap::new();
        all.insert("x-sum", http::HeaderValue::from_static("1"));
        let held = Budget::new(1024).reservation(Direction::Response);
        let mut body = ResponseBody::empty();
        body.fill(parts, trailers.then(|| Box::new(all)), held);
        body
    }

    #[test]
    fn a_whole_body_with_trailers_does_not_end_with_its_length() {
        assert_eq!(whole(false).size_hint().exact(), Some(5));
        let mut forgetful = whole(true);
        forgetful.forget_trailers();
        assert_eq!(forgetful.size_hint().exact(), Some(5));
        let with = whole(true);
        assert_eq!(with.size_hint().exact(), None);
        let collected = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime")
            .block_on(with.collect())
            .expect("all of it");
        assert_eq!(collected.trailers().expect("trailers")["x-sum"], "1");
        assert_eq!(collected.to_bytes(), "hello");
    }
}

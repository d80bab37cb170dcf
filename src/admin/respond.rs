//! The answers' common form.

use std::{
    convert::Infallible,
    io::Write,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::{events::Events, negotiate};

/// An answer.
pub(super) type Reply = Response<Content>;

/// What an answer consists of.
pub(super) enum Content {
    /// Complete before it is sent, so that a slow client holds memory and nothing else.
    Whole(Full<Bytes>),
    /// Of no known end.
    Events(Events),
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Events(events) => events
                .poll_next(cx)
                .map(|next| next.map(Frame::data).map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Below this size, in bytes, gzip costs more than it saves.
const WORTH_COMPRESSING: usize = 1024;

/// An answer with a body.
pub(super) fn reply(status: StatusCode, media_type: &str, body: impl Into<Bytes>) -> Reply {
    with_content(status, media_type, Content::Whole(Full::new(body.into())))
}

/// An answer with what it consists of.
pub(super) fn with_content(status: StatusCode, media_type: &str, content: Content) -> Reply {
    let mut reply = Response::new(content);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    if let Ok(media_type) = HeaderValue::from_str(media_type) {
        headers.insert(header::CONTENT_TYPE, media_type);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    reply
}

/// One line of text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

/// A document.
pub(super) fn json(status: StatusCode, document: &serde_json::Value) -> Reply {
    reply(status, "application/json", format!("{document:#}\n"))
}

/// An error, as RFC 9457 has it.
pub(super) fn problem(status: StatusCode, detail: &str) -> Reply {
    let document = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    reply(status, "application/problem+json", format!("{document}\n"))
}

/// `body`, compressed if the client can read that and it is worth it.
pub(super) fn compressed(media_type: &str, body: String, request: &HeaderMap) -> Reply {
    let wanted = body.len() >= WORTH_COMPRESSING
        && negotiate::accepts_gzip(field(request, header::ACCEPT_ENCODING).unwrap_or_default());
    let packed = if wanted { gzip(body.as_bytes()) } else { None };
    let is_packed = packed.is_some();
    let mut answer = reply(
        StatusCode::OK,
        media_type,
        packed.unwrap_or_else(|| body.into_bytes()),
    );
    let headers = answer.headers_mut();
    headers.insert(
        header::VARY,
        HeaderValue::from_static("Accept, Accept-Encoding"),
    );
    if is_packed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer
}

fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

/// A header field as text; the first of it, should a client repeat it.
pub(super) fn field(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

//! The one place where an error becomes a response.

use std::{any::Any, borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{Error, hygiene::BadHead, request_id::RequestId};
use crate::{
    admission,
    backend::{self, Lines, Usual, profile::Excess},
    config::{Reject, RejectBody, RetryAfter},
    observe::Reason,
};

/// Says in a header why tidegate answered by itself.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-tidegate-reason");

/// How an error looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The status.
    pub status: StatusCode,
    /// The reason, for the client and the metrics; `None` for a bug of ours.
    pub reason: Option<Reason>,
    /// For how long the client had better stay away.
    pub retry_after: Option<Duration>,
    /// Whether the connection must not be used again.
    pub close: bool,
}

impl Rejection {
    /// The reason as the client reads it.
    fn word(&self) -> &'static str {
        self.reason.map_or("internal_error", Reason::as_str)
    }
}

/// The table: every error's status, reason and consequences.
pub fn rejection(error: &Error, reject: &Reject) -> Rejection {
    let shed = StatusCode::from_u16(reject.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let (status, reason, after, close) = match error {
        Error::Head(bad) => match bad {
            BadHead::Method => (
                StatusCode::NOT_IMPLEMENTED,
                Reason::NotImplemented,
                None,
                false,
            ),
            BadHead::Connect => (
                StatusCode::NOT_IMPLEMENTED,
                Reason::NotImplemented,
                None,
                true,
            ),
            BadHead::Version => (
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                Reason::Version,
                None,
                true,
            ),
            BadHead::TargetTooLong => (StatusCode::URI_TOO_LONG, Reason::TargetTooLong, None, true),
            BadHead::FieldsTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                Reason::HeadersTooLarge,
                None,
                true,
            ),
            BadHead::NoRoom => (shed, Reason::Memory, Some(Duration::ZERO), true),
            BadHead::Host | BadHead::Target | BadHead::Framing | BadHead::Syntax => {
                (StatusCode::BAD_REQUEST, Reason::BadRequest, None, true)
            }
            BadHead::Expectation => (
                StatusCode::EXPECTATION_FAILED,
                Reason::BadRequest,
                None,
                true,
            ),
            BadHead::LastHop => {
                return Rejection {
                    status: StatusCode::OK,
                    reason: None,
                    retry_after: None,
                    close: false,
                };
            }
        },
        Error::Preamble | Error::Body | Error::BodyCut => {
            (StatusCode::BAD_REQUEST, Reason::BadRequest, None, true)
        }
        Error::HeadTimeout | Error::BodyTimeout => (
            StatusCode::REQUEST_TIMEOUT,
            Reason::RequestTimeout,
            None,
            true,
        ),
        Error::BodyTooLarge(_) => (
            StatusCode::PAYLOAD_TOO_LARGE,
            Reason::BodyTooLarge,
            None,
            true,
        ),
        Error::Memory | Error::Spool => (shed, Reason::Memory, Some(Duration::ZERO), true),
        Error::Share => (shed, Reason::Memory, Some(Duration::ZERO), false),
        Error::Refused(refusal) => {
            let (status, close) = match refusal.reason {
                admission::Reason::Draining => (StatusCode::SERVICE_UNAVAILABLE, true),
                _ => (shed, false),
            };
            (
                status,
                refusal_reason(refusal.reason),
                Some(refusal.retry_after()),
                close,
            )
        }
        Error::Backend(error) => match error {
            backend::Error::Shortage(_) => (shed, Reason::Memory, Some(Duration::ZERO), true),
            backend::Error::Connect(_) | backend::Error::ConnectTimeout => (
                StatusCode::BAD_GATEWAY,
                Reason::BackendUnreachable,
                None,
                false,
            ),
            backend::Error::Reset(_) => {
                (StatusCode::BAD_GATEWAY, Reason::BackendReset, None, false)
            }
            backend::Error::Protocol(_) | backend::Error::Switched => (
                StatusCode::BAD_GATEWAY,
                Reason::BackendProtocol,
                None,
                false,
            ),
            backend::Error::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                Reason::BackendTimeout,
                None,
                false,
            ),
            backend::Error::Excess(Excess::Target) => {
                (StatusCode::URI_TOO_LONG, Reason::TargetTooLong, None, false)
            }
            backend::Error::Excess(Excess::Fields) => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                Reason::HeadersTooLarge,
                None,
                false,
            ),
            backend::Error::NoLength => (
                StatusCode::PAYLOAD_TOO_LARGE,
                Reason::BodyTooLarge,
                None,
                true,
            ),
            backend::Error::RequestBody(_) => {
                (StatusCode::BAD_REQUEST, Reason::BadRequest, None, true)
            }
        },
        Error::Panicked => {
            return Rejection {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                reason: None,
                retry_after: None,
                close: true,
            };
        }
    };
    Rejection {
        status,
        reason: Some(reason),
        retry_after: after.and_then(|after| retry_after(after, reject)),
        close,
    }
}

/// A gate's reason by its public name.
pub fn refusal_reason(reason: admission::Reason) -> Reason {
    match reason {
        admission::Reason::QueueFull => Reason::QueueFull,
        admission::Reason::QueueTimeout => Reason::QueueTimeout,
        admission::Reason::Deadline => Reason::Deadline,
        admission::Reason::RouteLimit => Reason::RouteLimit,
        admission::Reason::Draining => Reason::Draining,
    }
}

/// That time, at least a second, spread by the jitter so that the refused
/// do not come back all at once: uniform from `t` to `t x (1 + jitter)`, in whole seconds.
fn retry_after(auto: Duration, reject: &Reject) -> Option<Duration> {
    let base = match reject.retry_after {
        RetryAfter::Off => return None,
        RetryAfter::Fixed(fixed) => fixed,
        RetryAfter::Auto => auto,
    };
    let least = base.as_secs_f64().ceil().max(1.0) as u64;
    let spread = (least as f64 * reject.retry_after_jitter.max(0.0)).ceil() as u64;
    Some(Duration::from_secs(fastrand::u64(least..=least + spread)))
}

/// The response that tells the client, and the request's id if `id_name` says in which field. Its fields go
/// into `usual` where there is a place for them: a map of them costs more than the rest of the response.
pub fn response(
    error: &Error,
    rejection: &Rejection,
    reject: &Reject,
    id: &RequestId,
    id_name: Option<&HeaderName>,
    mut usual: Option<&mut Usual>,
) -> Response<Bytes> {
    if let Some(usual) = &mut usual {
        usual.lines = Lines::with_room(FIELDS);
    }
    let mut headers = HeaderMap::new();
    let mut put = |name: &HeaderName, value: &[u8]| {
        if let Some(usual) = &mut usual {
            usual.lines.push(name.as_str(), value);
        } else if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    };
    let mut body = Bytes::new();
    if !rejection.status.is_success() {
        let media_type;
        (body, media_type) = match &reject.body {
            RejectBody::ProblemJson => (
                problem(
                    error,
                    rejection,
                    id.as_bytes(),
                    matches!(id, RequestId::Made(_)),
                ),
                "application/problem+json",
            ),
            RejectBody::Text => (
                Bytes::from(format!("{error}\n")),
                "text/plain; charset=utf-8",
            ),
            RejectBody::File {
                content,
                media_type,
                ..
            } => (Bytes::copy_from_slice(content), *media_type),
        };
        put(&header::CONTENT_TYPE, media_type.as_bytes());
        put(&header::CACHE_CONTROL, b"no-store");
        put(&REASON_HEADER, rejection.word().as_bytes());
        if let Some(after) = rejection.retry_after {
            put(
                &header::RETRY_AFTER,
                itoa::Buffer::new().format(after.as_secs()).as_bytes(),
            );
        }
    }
    if let Some(name) = id_name {
        put(name, id.as_bytes());
    }
    if rejection.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let mut response = Response::new(body);
    *response.status_mut() = rejection.status;
    *response.headers_mut() = headers;
    response
}

/// RFC 9457, with two members of our own. By hand: under an overload most answers are this one, and a
/// serializer makes up a good part of what they cost. What no client has a part in, as an id that was made here,
/// needs no look at each byte.
fn problem(error: &Error, rejection: &Rejection, id: &[u8], made: bool) -> Bytes {
    let reason = rejection.word();
    let title = rejection.status.canonical_reason().unwrap_or("Error");
    let (detail, ours) = match error {
        Error::Refused(refusal) => (Cow::Borrowed(refusal.text()), true),
        other => (Cow::Owned(other.to_string()), false),
    };
    // What must be escaped is longer, and rare.
    let size = PROBLEM + 2 * reason.len() + title.len() + detail.len() + id.len();
    let mut text = Vec::with_capacity(size);
    text.extend_from_slice(b"{\"type\":\"urn:tidegate:reason:");
    text.extend_from_slice(reason.as_bytes());
    text.extend_from_slice(b"\",\"title\":\"");
    text.extend_from_slice(title.as_bytes());
    text.extend_from_slice(b"\",\"status\":");
    text.extend_from_slice(rejection.status.as_str().as_bytes());
    text.extend_from_slice(b",\"detail\":");
    quote(detail.as_bytes(), ours, &mut text);
    text.extend_from_slice(b",\"reason\":\"");
    text.extend_from_slice(reason.as_bytes());
    text.extend_from_slice(b"\",\"request_id\":");
    quote(id, made, &mut text);
    text.push(b'}');
    Bytes::from(text)
}

/// What every problem document has, with its status, bytes; a vector of just the right size needs nothing
/// else to become [`Bytes`].
const PROBLEM: usize = concat!(
    r#"{"type":"urn:tidegate:reason:","title":"","status":503,"detail":"#,
    r#""","reason":"","request_id":""}"#
)
.len();
/// Room for its fields, bytes.
const FIELDS: usize = 224;

/// A string of JSON, which is `plain` if it is known to have nothing that must be escaped. Few have, and those
/// are left to the serializer.
fn quote(string: &[u8], plain: bool, text: &mut Vec<u8>) {
    if plain || is_plain(string) {
        text.push(b'"');
        text.extend_from_slice(string);
        text.push(b'"');
    } else {
        // A Vec takes everything.
        let _ = serde_json::to_writer(text, &String::from_utf8_lossy(string));
    }
}

/// Whether it is in a string of JSON as it is.
fn is_plain(string: &[u8]) -> bool {
    // Without a branch, for the compiler to take sixteen at a time.
    string.iter().fold(true, |plain, &byte| {
        plain & (b' '..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\')
    })
}

/// A response as it goes over the wire, for a client whose request could not be read.
pub fn to_wire(response: &Response<Bytes>) -> Bytes {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut wire = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in response.headers() {
        wire.extend_from_slice(name.as_str().as_bytes());
        wire.extend_from_slice(b": ");
        wire.extend_from_slice(value.as_bytes());
        wire.extend_from_slice(b"\r\n");
    }
    let length = response.body().len();
    wire.extend_from_slice(format!("content-length: {length}\r\n\r\n").as_bytes());
    wire.extend_from_slice(response.body());
    wire.into()
}

/// A panic costs its own request alone.
pub fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(panic = %text, "a request panicked: please report this");
    Error::Panicked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reject(jitter: f64) -> Reject {
        Reject {
            status: 503,
            body: RejectBody::ProblemJson,
            retry_after: RetryAfter::Auto,
            retry_after_jitter: jitter,
        }
    }

    #[test]
    fn retry_after_covers_the_drain_and_spreads() {
        let seen: std::collections::BTreeSet<u64> = (0..200)
            .filter_map(|_| retry_after(Duration::from_millis(3200), &reject(0.5)))
            .map(|after| after.as_secs())
            .collect();
        assert_eq!(seen.first(), Some(&4), "not before the queue has drained");
        assert_eq!(seen.last(), Some(&6));
        let plain = retry_after(Duration::ZERO, &reject(0.0));
        assert_eq!(plain, Some(Duration::from_secs(1)), "at least a second");
    }

    #[test]
    fn a_refusal_says_why_and_until_when() {
        let error = Error::Refused(admission::Refusal {
            reason: admission::Reason::QueueFull,
            drain_time: Duration::from_secs(2),
            backlog: Duration::ZERO,
        });
        let rejection = rejection(&error, &reject(0.0));
        let id = RequestId::Sent(HeaderValue::from_static("id-1"));
        let name = HeaderName::from_static("x-request-id");
        let tell = |usual| response(&error, &rejection, &reject(0.0), &id, Some(&name), usual);
        let response = tell(None);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["x-tidegate-reason"], "queue_full");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let document: serde_json::Value =
            serde_json::from_slice(response.body()).expect("problem+json");
        assert_eq!(document["reason"], "queue_full");
        assert_eq!(document["request_id"], "id-1");
        assert_eq!(document["status"], 503);
        let mut usual = Usual::default();
        let lean = tell(Some(&mut usual));
        assert!(lean.headers().is_empty());
        assert_eq!(lean.body(), response.body());
        let mut fields = HeaderMap::new();
        usual.unfold(&mut fields);
        assert_eq!(
            &fields,
            response.headers(),
            "the same fields in another place"
        );
    }

    #[test]
    fn a_bug_of_ours_has_a_reason_too() {
        let rejection = rejection(&Error::Panicked, &reject(0.0));
        let id = RequestId::Sent(HeaderValue::from_static("id-1"));
        let answer = response(&Error::Panicked, &rejection, &reject(0.0), &id, None, None);
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.headers()["x-tidegate-reason"], "internal_error");
        let document: serde_json::Value =
            serde_json::from_slice(answer.body()).expect("problem+json");
        assert_eq!(document["reason"], "internal_error");
    }

    #[test]
    fn what_is_written_without_a_look_needs_none() {
        use admission::Reason::{Deadline, Draining, QueueFull, QueueTimeout, RouteLimit};
        for reason in [Deadline, Draining, QueueFull, QueueTimeout, RouteLimit] {
            let refusal = admission::Refusal {
                reason,
                drain_time: Duration::ZERO,
                backlog: Duration::ZERO,
            };
            assert!(is_plain(refusal.text().as_bytes()), "{reason:?}");
        }
        assert!(is_plain(RequestId::new().as_bytes()));
    }

    /// What differs from one document to another, bytes.
    fn document_strings(document: &serde_json::Value) -> usize {
        let length = |name: &str| document[name].as_str().map_or(0, str::len);
        2 * length("reason") + length("title") + length("detail") + length("request_id")
    }

    #[test]
    fn whatever_a_client_calls_its_request_the_document_is_json() {
        let error = Error::BodyTooLarge(7);
        let rejection = rejection(&error, &reject(0.0));
        for id in ["", "a", "\"", "\\", "a\"b\\c\u{1}\u{7f}ü"] {
            let text = problem(&error, &rejection, id.as_bytes(), false);
            let document: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(document["request_id"], id);
            assert_eq!(document["type"], "urn:tidegate:reason:body_too_large");
            assert_eq!(document["title"], "Payload Too Large");
            assert_eq!(document["detail"], error.to_string());
            assert_eq!(document["status"], 413);
            if id == "a" {
                assert_eq!(
                    text.len(),
                    PROBLEM + document_strings(&document),
                    "it has just the room"
                );
            }
        }
    }
}

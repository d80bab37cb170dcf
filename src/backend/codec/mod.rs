//! HTTP/1.1 as a gateway speaks it to a worker, without I/O: a request's head becomes bytes, and bytes
//! become a response. Strict where two readers could disagree: what is ambiguous is refused, never
//! repaired (RFC 9112 6.3, 11.2).

mod body;
mod field;
mod names;
mod plain;
mod request;
mod response;
mod usual;

pub(super) use self::{
    body::{BodyDecoder, Step},
    request::{declared, is_written, last_chunk},
    response::Heads,
    usual::Signs,
};
pub use self::{
    field::{colon, has_control, has_member, is_plain_option, length, members},
    names::Names,
    plain::{Name, Plain, RequestHead},
    request::{Added, Lines, Size, chunk, empty, head, line},
    response::can_have_body,
    usual::{Usual, detach},
};

/// What makes a backend's answer no HTTP, or ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No `HTTP/1.x NNN` line.
    #[error("it does not begin with a status line")]
    StatusLine,
    /// A field that is none: a bad name, a control character, a folded or a bare line.
    #[error("a header field is malformed")]
    Field,
    /// More than are accepted.
    #[error("it has too many header fields")]
    Fields,
    /// The head, with the interim answers before it, does not end.
    #[error("its head is too long")]
    HeadTooLong,
    /// Content-Length or Transfer-Encoding leave doubt about where the body ends.
    #[error("its length is ambiguous")]
    Framing,
    /// A chunk whose size or end is wrong.
    #[error("a chunk of its body is malformed")]
    Chunk,
    /// 101 to a request that did not ask for another protocol, or bytes before the request was sent.
    #[error("it was not asked for")]
    Unasked,
}

//! What must hold of the parser of a backend's bytes and of the uwsgi encoder, whatever they are given.

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::{
    RequestBody,
    codec::{Heads, Step},
    uwsgi,
};
use crate::fuzzing::pieces;

/// A response is read the same however its bytes are cut.
///
/// # Panics
/// If that does not hold.
pub fn response(data: &[u8]) {
    let Some((size, bytes)) = pieces(data) else {
        return;
    };
    let whole = read(bytes, usize::MAX);
    assert_eq!(read(bytes, size), whole, "in pieces of {size}");
    assert_eq!(read(bytes, 1), whole, "byte by byte");
}

/// What comes of these bytes: the statuses of the interim answers and of the answer, the body, whether it
/// ended, and what is left. `None` where it is refused.
fn read(bytes: &[u8], size: usize) -> Option<(Vec<u16>, Vec<u8>, bool, usize)> {
    let mut heads = Heads::new(&Method::GET, false);
    let (mut there, mut at, mut body) = (BytesMut::new(), 0, None);
    let (mut out, mut statuses) = (Vec::new(), Vec::new());
    loop {
        while body.is_none() {
            if let Some(head) = heads.take(&mut there).ok()? {
                statuses.push(head.response.status().as_u16());
                body = Some(head.body);
            } else if let Some(told) = heads.told() {
                statuses.push(told.status().as_u16());
            } else {
                break;
            }
        }
        if let Some(body) = &mut body {
            while let Step::Data(data) = body.next(&mut there).ok()? {
                assert!(!data.is_empty(), "a part of nothing");
                out.extend_from_slice(&data);
            }
        }
        if at == bytes.len() {
            let done = body.as_mut().is_some_and(|body| body.end());
            return Some((statuses, out, done, there.len()));
        }
        let to = at.saturating_add(size).min(bytes.len());
        there.extend_from_slice(&bytes[at..to]);
        at = to;
    }
}

/// A packet says no more and no less than its length, and holds every field that was put in.
///
/// # Panics
/// If that does not hold.
pub fn uwsgi(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let Some(Ok(uri)) = lines.next().map(Uri::try_from) else {
        return;
    };
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = uri;
    for line in lines {
        let mut parts = line.splitn(2, |&byte| byte == b':');
        if let (Some(Ok(name)), Some(Ok(value))) = (
            parts.next().map(HeaderName::from_bytes),
            parts.next().map(HeaderValue::from_bytes),
        ) {
            request.headers_mut().append(name, value);
        }
    }
    let Ok(packet) = uwsgi::encode(&request, request.body()) else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([packet[1], packet[2]]));
    assert_eq!(length, packet.len() - 4);
    let mut rest = &packet[4..];
    let mut texts = 0;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        rest = &after[usize::from(u16::from_le_bytes(*length))..];
        texts += 1;
    }
    assert!(rest.is_empty() && texts % 2 == 0, "names and values");
}

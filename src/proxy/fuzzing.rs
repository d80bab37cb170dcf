//! What must hold of the parsers of a client's bytes, whatever they are.

use bytes::BytesMut;
use http::header;

use super::{
    guard::{Guard, Head, Limits},
    http1, preamble,
};
use crate::{backend::Plain, config::ProxyProtocol, fuzzing::pieces};

/// A connection's requests: they are read, or refused, the same however the bytes are cut.
///
/// # Panics
/// If that does not hold.
pub fn request(data: &[u8]) {
    let Some((size, bytes)) = pieces(data) else {
        return;
    };
    let whole = follow(bytes, usize::MAX);
    assert_eq!(follow(bytes, size), whole, "in pieces of {size}");
    assert_eq!(follow(bytes, 1), whole, "byte by byte");
}

/// The messages of a connection, and whether one was refused.
fn follow(bytes: &[u8], size: usize) -> (Vec<Message>, bool) {
    let mut guard = Guard::new(Limits::new(16 * 1024));
    let (mut messages, mut held, mut seen) = (Vec::<Message>::new(), BytesMut::new(), 0);
    loop {
        if guard.in_head() {
            match guard.head(&held) {
                Err(_) => return (messages, true),
                Ok(None) => {}
                Ok(Some(head)) => {
                    let bytes = held.split_to(head.length).freeze();
                    let Ok(parsed) = http1::parse(&bytes, &head, guard.fields(), Box::default())
                    else {
                        return (messages, true);
                    };
                    let mut request = parsed.request.clone();
                    Plain::unfold(&mut request);
                    // By way of a map from the beginning. (A plain `Connection` is not kept.)
                    let unkept = head.plain.then_some(header::CONNECTION);
                    let by_map = Head {
                        plain: false,
                        ..head.clone()
                    };
                    let put = http1::parse(&bytes, &by_map, guard.fields(), Box::default());
                    let put = put.expect("it is a request");
                    let fields = put.request.headers().iter();
                    let fields = fields.filter(|(name, _)| unkept.as_ref() != Some(name));
                    assert!(
                        request.headers().iter().eq(fields),
                        "a field is not the same"
                    );
                    let said = (put.keep_alive, put.expects, put.trailers);
                    assert_eq!((parsed.keep_alive, parsed.expects, parsed.trailers), said);
                    messages.push(Message {
                        head: bytes.len(),
                        request: format!("{parsed:?}"),
                        ..Message::default()
                    });
                }
            }
        }
        loop {
            match guard.body(&mut held) {
                Err(_) => return (messages, true),
                Ok(None) => break,
                Ok(Some(data)) => {
                    let message = messages.last_mut().expect("a body follows a head");
                    message.body.extend_from_slice(&data);
                }
            }
        }
        if guard.is_done() {
            messages.last_mut().expect("there is one").end = seen - held.len();
            guard.next_message();
            continue;
        }
        if seen == bytes.len() {
            return (messages, false);
        }
        let more = seen.saturating_add(size).min(bytes.len());
        held.extend_from_slice(&bytes[seen..more]);
        seen = more;
    }
}

/// A message as it was read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    head: usize,
    request: String,
    body: Vec<u8>,
    /// Where it ends.
    end: usize,
}

/// The PROXY protocol: more bytes never turn a header that was whole, or wrong, into something else.
///
/// # Panics
/// If that does not hold.
pub fn preamble(data: &[u8]) {
    let told = preamble::parse(data, ProxyProtocol::Auto);
    for end in 0..data.len() {
        match preamble::parse(&data[..end], ProxyProtocol::Auto) {
            Ok(None) => {}
            early => return assert_eq!(early, told, "after {end} bytes"),
        }
    }
    if let Ok(Some(header)) = told {
        assert!(header.length <= data.len());
    }
}

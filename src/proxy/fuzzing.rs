//! What must hold of the parsers of a client's bytes, whatever they are.

use super::{
    guard::{Bad, Guard, Limits},
    preamble,
};
use crate::{config::ProxyProtocol, fuzzing::pieces};

/// A connection's requests: the guard decides the same however the bytes are cut, and passes no more
/// than it was given.
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

/// Where messages end, and whether one was refused.
fn follow(bytes: &[u8], size: usize) -> (Vec<usize>, bool) {
    let mut guard = Guard::new(Limits::new(16 * 1024));
    let (mut ends, mut passed, mut seen) = (Vec::new(), 0, 0);
    loop {
        match guard.advance(&bytes[passed..seen]) {
            Err(Bad::Head(_) | Bad::Body) => return (ends, true),
            Ok(more) => passed += more,
        }
        assert!(passed <= seen, "it passes what has not come");
        if guard.is_broken() {
            return (ends, true);
        }
        if guard.is_done() {
            ends.push(passed);
            guard.next_message();
            continue;
        }
        if seen == bytes.len() {
            return (ends, false);
        }
        seen = seen.saturating_add(size).min(bytes.len());
    }
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

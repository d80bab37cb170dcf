//! The parts in which a response's body comes, while they wait for the client.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A part of fewer bytes takes more memory to hold than it counts: it is joined with the one before it.
const SMALL: usize = 512;
/// What is joined gets no longer than this, bytes: a client gets it in one piece.
const JOINED_MOST: usize = 8 * 1024;

/// Puts a part behind those that wait.
pub(super) fn append(parts: &mut VecDeque<Bytes>, part: Bytes) {
    if part.len() < SMALL
        && (parts.back()).is_some_and(|last| last.len() + part.len() <= JOINED_MOST)
        && let Some(last) = parts.pop_back()
    {
        let joined = match last.try_into_mut() {
            Ok(mut joined) => {
                joined.extend_from_slice(&part);
                joined
            }
            // It lies in what was read at once, with others.
            Err(last) => {
                let mut joined = BytesMut::with_capacity(last.len() + SMALL);
                joined.extend_from_slice(&last);
                joined.extend_from_slice(&part);
                joined
            }
        };
        parts.push_back(joined.freeze());
        return;
    }
    parts.push_back(part);
}

/// The first of the parts, or as much of it as may be delivered at once; what is left stays there.
pub(super) fn next(parts: &mut VecDeque<Bytes>, most: usize) -> Option<Bytes> {
    let first = parts.front_mut()?;
    if first.len() > most {
        return Some(first.split_to(most));
    }
    parts.pop_front()
}

/// What has come of a response's body. It is mostly one part, which needs no list.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) first: Option<Bytes>,
    pub(super) rest: VecDeque<Bytes>,
}

impl Parts {
    /// The next part.
    pub(super) fn push(&mut self, part: Bytes) {
        match self.first {
            None => self.first = Some(part),
            Some(_) => append(&mut self.rest, part),
        }
    }

    /// Bytes of all of them.
    pub(super) fn len(&self) -> u64 {
        let all = self.first.iter().chain(&self.rest);
        all.map(|part| part.len() as u64).sum()
    }
}

impl From<Parts> for VecDeque<Bytes> {
    fn from(Parts { first, mut rest }: Parts) -> Self {
        if let Some(first) = first {
            rest.push_front(first);
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_that_wait_are_joined_and_large_ones_are_not_copied() {
        let read = Bytes::from(vec![b'x'; 100_000]);
        let mut parts = VecDeque::new();
        for at in 0..50_000 {
            append(&mut parts, read.slice(at..at + 1));
        }
        let large = read.slice(50_000..);
        append(&mut parts, large.clone());
        append(&mut parts, read.slice(..1));
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        assert_eq!(bytes, 100_001);
        assert!(parts.len() <= 50_000 / JOINED_MOST + 3, "{}", parts.len());
        assert!(parts.iter().any(|part| part.as_ptr() == large.as_ptr()));
    }
}

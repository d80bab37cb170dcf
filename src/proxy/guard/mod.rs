//! Follows a client's HTTP/1 bytes before the parser sees them, and stops at the first that another
//! server could read otherwise.
//!
//! A general parser repairs and forgives: it drops a Content-Length beside a Transfer-Encoding, takes
//! a bare LF for the end of a line, cuts a target at its `#`. What it then hands over no longer shows
//! that there was a choice. So the choice is refused here, where the bytes still are: RFC 9112 to the
//! letter, and where the letter says "may", the one reading that every server shares.
//!
//! No I/O, no clock. It takes bytes in whatever pieces they come, and notes where a head's parts are, so
//! that nobody has to look for them again.

mod chunked;
mod head;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes, BytesMut};

pub use self::{
    chunked::BadBody,
    head::{Field, Framing, Head, METHOD_MAX},
};
use self::{chunked::Chunked, head::HeadScanner};
use super::hygiene::BadHead;

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The whole of it, bytes.
    pub head: usize,
    /// Fields; gunicorn and hyper take as many.
    pub fields: usize,
}

impl Limits {
    /// As many fields as the usual servers take, and a head of `head` bytes.
    pub fn new(head: usize) -> Self {
        Self { head, fields: 100 }
    }
}

/// One connection's messages, one after the other.
#[derive(Debug)]
pub struct Guard {
    stage: Stage,
    limits: Limits,
    fields: Vec<Field>,
}

#[derive(Debug)]
enum Stage {
    Head(HeadScanner),
    /// So many bytes of the body are still to come.
    Length(u64),
    Chunked(Chunked),
    /// The message is complete.
    Done,
    /// The body was malformed.
    Broken,
    /// The connection does not speak HTTP/1 any more.
    Open,
}

impl Guard {
    /// Before the first message.
    pub fn new(limits: Limits) -> Self {
        Self {
            stage: Stage::Head(HeadScanner::default()),
            limits,
            fields: Vec::new(),
        }
    }

    /// Whether the message is complete: what comes next is another one.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Whether it waits for a head, or for the rest of one.
    pub fn in_head(&self) -> bool {
        matches!(self.stage, Stage::Head(_))
    }

    /// The next message may begin.
    pub fn next_message(&mut self) {
        self.stage = Stage::Head(HeadScanner::default());
        self.fields.clear();
    }

    /// From now on it is not HTTP/1 that is spoken.
    pub fn open(&mut self) {
        self.stage = Stage::Open;
    }

    /// Looks at a message's first bytes; `None` as long as its head is not complete: ask again with more
    /// behind the same bytes.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn head(&mut self, bytes: &[u8]) -> Result<Option<Head>, BadHead> {
        let Stage::Head(scanner) = &mut self.stage else {
            return Ok(None);
        };
        let head = scanner.scan(bytes, self.limits, &mut self.fields)?;
        if let Some(head) = &head {
            self.stage = match head.body {
                Framing::None => Stage::Done,
                Framing::Length(length) => Stage::Length(length),
                Framing::Chunked => Stage::Chunked(Chunked::new(self.limits)),
            };
        }
        Ok(head)
    }

    /// The fields of the head that was complete.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// How many bytes of the body are still to come, where its head says so.
    pub fn remaining(&self) -> Option<u64> {
        match self.stage {
            Stage::Length(left) => Some(left),
            Stage::Done => Some(0),
            _ => None,
        }
    }

    /// Takes the next part of the body out of the bytes that follow the head; `None` when more must come
    /// or, as [`Guard::is_done`] says, it was all.
    ///
    /// # Errors
    /// When it is malformed; then it stays so.
    pub fn body(&mut self, bytes: &mut BytesMut) -> Result<Option<Bytes>, BadBody> {
        match &mut self.stage {
            Stage::Length(left) => {
                if bytes.is_empty() {
                    return Ok(None);
                }
                let there = bytes.len();
                let taken = usize::try_from(*left).map_or(there, |left| there.min(left));
                *left -= taken as u64;
                if *left == 0 {
                    self.stage = Stage::Done;
                }
                Ok(Some(bytes.split_to(taken).freeze()))
            }
            Stage::Chunked(chunked) => match chunked.next(bytes) {
                Ok(part) => {
                    bytes.advance(part.before);
                    if chunked.is_done() {
                        self.stage = Stage::Done;
                    }
                    let data = bytes.split_to(part.data);
                    Ok((part.data > 0).then(|| data.freeze()))
                }
                Err(bad) => {
                    self.stage = Stage::Broken;
                    Err(bad)
                }
            },
            Stage::Broken => Err(BadBody),
            Stage::Head(_) | Stage::Done | Stage::Open => Ok(None),
        }
    }
}

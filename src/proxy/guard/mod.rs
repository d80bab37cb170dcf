//! Follows a client's HTTP/1 bytes before the parser sees them, and stops at the first that another
//! server could read otherwise.
//!
//! A general parser repairs and forgives: it drops a Content-Length beside a Transfer-Encoding, takes
//! a bare LF for the end of a line, cuts a target at its `#`. What it then hands over no longer shows
//! that there was a choice. So the choice is refused here, where the bytes still are: RFC 9112 to the
//! letter, and where the letter says "may", the one reading that every server shares.
//!
//! No I/O, no clock, and no allocation but for trailers. It takes bytes in whatever pieces they come.

mod chunked;
mod head;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;

use self::{
    chunked::{BadBody, Chunked},
    head::{Framing, HeadScanner},
};
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

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Its head: nobody has seen any of it.
    Head(BadHead),
    /// Its body: somebody may be reading it.
    Body,
}

/// One connection's messages, one after the other.
#[derive(Debug)]
pub struct Guard {
    stage: Stage,
    limits: Limits,
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
        }
    }

    /// Whether the message is complete: what comes next is another one.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Whether the body turned out to be malformed.
    pub fn is_broken(&self) -> bool {
        matches!(self.stage, Stage::Broken)
    }

    /// Whether it waits for a head, or for the rest of one.
    pub fn in_head(&self) -> bool {
        matches!(self.stage, Stage::Head(_))
    }

    /// The next message may begin.
    pub fn next_message(&mut self) {
        self.stage = Stage::Head(HeadScanner::default());
    }

    /// Lets everything pass from now on.
    pub fn open(&mut self) {
        self.stage = Stage::Open;
    }

    /// Looks at the bytes that follow those which have passed, and says how many more may pass. None
    /// of a head passes before all of it: ask again with more behind the same bytes. Of a body, all
    /// that is given passes, up to the end of the message.
    ///
    /// # Errors
    /// Says what is wrong; nothing passes any more.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Bad> {
        let mut passed = 0;
        if let Stage::Head(scanner) = &mut self.stage {
            let Some(head) = scanner.scan(bytes, self.limits).map_err(Bad::Head)? else {
                return Ok(0);
            };
            passed = head.length;
            self.stage = match head.body {
                Framing::None => Stage::Done,
                Framing::Length(length) => Stage::Length(length),
                Framing::Chunked => Stage::Chunked(Chunked::new(self.limits)),
            };
        }
        let rest = bytes.get(passed..).unwrap_or_default();
        match &mut self.stage {
            Stage::Length(left) => {
                let taken = usize::try_from(*left).map_or(rest.len(), |left| rest.len().min(left));
                *left -= taken as u64;
                passed += taken;
                if *left == 0 {
                    self.stage = Stage::Done;
                }
            }
            Stage::Chunked(chunked) => match chunked.scan(rest) {
                Ok((taken, done)) => {
                    passed += taken;
                    if done {
                        self.stage = Stage::Done;
                    }
                }
                Err(BadBody) => {
                    self.stage = Stage::Broken;
                    if passed == 0 {
                        return Err(Bad::Body);
                    }
                }
            },
            Stage::Open => passed += rest.len(),
            Stage::Broken => return Err(Bad::Body),
            Stage::Head(_) | Stage::Done => {}
        }
        Ok(passed)
    }
}

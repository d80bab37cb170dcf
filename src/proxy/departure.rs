//! Has a client left, or has it only closed its sending side? Both look the same: an end of what it
//! sends.
//!
//! The network tells on the next byte that is sent: a client that has left answers with a reset. So
//! the first byte of the answer goes ahead. Every answer begins with it, whatever it will be.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{io::AsyncWrite, time::Sleep};

use crate::{backend::Stream, clock};

/// Of the status line.
const FIRST_BYTE: &[u8] = b"H";
/// How soon the socket is asked for a reset; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// In the midst of an answer no byte can be sent ahead. A client that has left is known by the
/// answer's own bytes, and if none come for so long it is taken to have left.
const SILENCE: Duration = Duration::from_secs(5);

/// Asks the question.
#[derive(Debug)]
pub struct Departure {
    probe: Probe,
    timer: Option<Pin<Box<Sleep>>>,
    pause: Duration,
}

#[derive(Debug)]
enum Probe {
    Unsent,
    /// On its way, and not part of the answer yet.
    Sent,
    /// The answer has begun, and last went on then.
    Answering(Instant),
}

impl Departure {
    /// When the end has come, before or amid the answer.
    pub fn new(answering: bool) -> Self {
        Self {
            probe: match answering {
                true => Probe::Answering(clock::now()),
                false => Probe::Unsent,
            },
            timer: None,
            pause: FIRST_PAUSE,
        }
    }

    /// Ready when the client has left.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<()> {
        if let Probe::Unsent = self.probe {
            match Pin::new(&mut *stream).poll_write(cx, FIRST_BYTE) {
                Poll::Ready(Ok(1)) => self.probe = Probe::Sent,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        loop {
            if !matches!(stream.take_error(), Ok(None)) {
                return Poll::Ready(());
            }
            if let Probe::Answering(since) = self.probe
                && clock::now().saturating_duration_since(since) > SILENCE
            {
                return Poll::Ready(());
            }
            if let Some(timer) = &mut self.timer {
                std::task::ready!(timer.as_mut().poll(cx));
                self.pause = (self.pause * 2).min(LAST_PAUSE);
            }
            self.timer = Some(Box::pin(tokio::time::sleep(self.pause)));
        }
    }

    /// Some of the answer is about to be written; how much of it has been sent.
    pub fn write(&mut self, answer: &[u8]) -> usize {
        let ahead = matches!(self.probe, Probe::Sent) && answer.starts_with(FIRST_BYTE);
        self.probe = Probe::Answering(clock::now());
        if ahead { FIRST_BYTE.len() } else { 0 }
    }
}

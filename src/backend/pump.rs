//! Reads a response at the backend's speed while the client takes it at its own.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Sleep;
use tower::BoxError;

use super::{
    Error,
    exchange::{Completion, Lease},
    flight::Flight,
    parts::{append, next},
    raised::Raised,
};
use crate::{
    buffer::{BUDGET_PAUSE, Reservation, Waiting},
    clock,
    observe::Metrics,
    sync::{Mutex, lock},
};

/// A client for which the backend has had to wait this long, all in all, determines how long the answer
/// takes.
const CLIENT_PACE: Duration = Duration::from_millis(20);

/// The least that a pipe has room for, bytes.
pub(super) const LEAST_ROOM: u64 = 16 * 1024;
/// The same where nobody knows how long the answer is, and many of those are held.
const LITTLE_ROOM: u64 = 8 * 1024;
/// The most that is read at once of such an answer, bytes.
const PIECE_MOST: u64 = 64 * 1024;

/// What lies between the backend and a slower client: bounded by `buffers.response` and the budget.
pub(super) struct Pipe {
    state: Mutex<State>,
    capacity: u64,
    hope: Hope,
}

/// Whether holding an answer may free its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// All of it fits.
    Fits,
    /// It does not, but much of it does.
    Long,
    /// Nobody knows how long it is: it may be short, or endless.
    Unknown,
    /// It is far too long.
    None,
}

/// Of what nobody tells when there is room again.
enum Lacks {
    /// The budget: others are asked to give back what they can.
    Budget { _waiting: Waiting },
    /// Its client's share of it, for whose sake nobody else has to.
    Share,
}

struct State {
    parts: VecDeque<Bytes>,
    bytes: u64,
    /// Bytes of the part that the client's side has taken, until it asks for the next.
    in_hand: u64,
    /// What `bytes` and `in_hand` take of the budget.
    held: Reservation,
    /// While there is no room for it in the budget, or in what its client may have of that.
    lacks: Option<Lacks>,
    end: Option<Result<Option<Box<HeaderMap>>, BoxError>>,
    /// The client has gone.
    abandoned: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipe({} bytes)", lock(&self.state).bytes)
    }
}

impl Pipe {
    /// A pipe that holds about `capacity` bytes, with `parts` in it already, accounted for in `held`.
    /// Unless it is known that the whole answer fits, it holds less the more others do.
    pub(super) fn new(
        parts: VecDeque<Bytes>,
        held: Reservation,
        capacity: u64,
        hope: Hope,
    ) -> Arc<Self> {
        let bytes = parts.iter().map(len).sum();
        Arc::new(Self {
            capacity: capacity.max(1),
            hope,
            state: Mutex::new(State {
                parts,
                bytes,
                in_hand: 0,
                held,
                lacks: None,
                end: None,
                abandoned: false,
                reader: None,
                writer: None,
            }),
        })
    }

    /// The client's side: the next part, or at most `most` bytes of it, or the end.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Option<Result<Bytes, BoxError>>> {
        let mut state = lock(&self.state);
        let done = std::mem::take(&mut state.in_hand);
        let short = done > state.held.bytes();
        state.held.shrink(done);
        if let Some(part) = next(&mut state.parts, most) {
            state.in_hand = len(&part);
            state.bytes -= state.in_hand;
            let writer = state.writer.take();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(part)));
        }
        match state.end.take() {
            Some(Ok(trailers)) => {
                state.end = Some(Ok(trailers));
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                state.end = Some(Ok(None));
                Poll::Ready(Some(Err(error)))
            }
            None => {
                state.reader = Some(cx.waker().clone());
                let writer = state.writer.take_if(|_| short);
                drop(state);
                if let Some(writer) = writer {
                    writer.wake();
                }
                Poll::Pending
            }
        }
    }

    /// What came after the last part.
    pub(super) fn take_trailers(&self) -> Option<Box<HeaderMap>> {
        match &mut lock(&self.state).end {
            Some(Ok(trailers)) => trailers.take(),
            _ => None,
        }
    }

    /// The client has gone.
    pub(super) fn abandon(&self) {
        let mut state = lock(&self.state);
        state.abandoned = true;
        state.lacks = None;
        state.parts.clear();
        let bytes = std::mem::take(&mut state.bytes) + std::mem::take(&mut state.in_hand);
        state.held.shrink(bytes);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// The backend's side: ready when there is room, with how many bytes to read at once; with `None` if
    /// the client has gone.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let mut state = lock(&self.state);
        if state.abandoned {
            return Poll::Ready(None);
        }
        state.writer = Some(cx.waker().clone());
        let capacity = match self.hope {
            Hope::Fits => self.capacity,
            Hope::Long | Hope::Unknown => state.held.room(LITTLE_ROOM, self.capacity),
            Hope::None => state.held.room(LEAST_ROOM, self.capacity),
        };
        let room = capacity.saturating_sub(state.bytes);
        let at_once = match self.hope {
            Hope::Fits => room,
            Hope::Long => room / 4,
            Hope::Unknown => (room / 4).min(piece(&state.held)),
            // Very large answers make up most of all bytes, so they are not read in smaller pieces than need
            // be.
            Hope::None => LEAST_ROOM,
        };
        // One part may always be held, or a spent budget would stop everyone for good.
        let all = state.bytes + state.in_hand;
        let lacks = all.saturating_sub(state.held.bytes());
        let fits = lacks == 0 || state.held.grow(lacks);
        if all == 0 || (room > 0 && fits) {
            state.lacks = None;
            return Poll::Ready(Some(at_once));
        }
        if fits || room == 0 {
            // Its client has to read first, however much there is of the budget.
            state.lacks = None;
        } else if state.held.is_beyond_share(lacks) {
            state.lacks = Some(Lacks::Share);
        } else if !matches!(state.lacks, Some(Lacks::Budget { .. })) {
            state.lacks = Some(Lacks::Budget {
                _waiting: state.held.wait(),
            });
        }
        Poll::Pending
    }

    /// Whether there would be room if the budget, or its client's share of it, had some.
    fn waits_for_budget(&self) -> bool {
        lock(&self.state).lacks.is_some()
    }

    fn push(&self, part: Bytes) {
        let mut state = lock(&self.state);
        if state.abandoned {
            return;
        }
        let size = len(&part);
        state.bytes += size;
        // If that is refused, `held` stays short of `bytes`, and there is no room until this client or others
        // have read.
        state.held.grow(size);
        append(&mut state.parts, part);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn end(&self, result: Result<Option<Box<HeaderMap>>, BoxError>) {
        let mut state = lock(&self.state);
        state.end = Some(result);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// How much of an answer of unknown length is read at once. Many of those at the same time would leave a
/// fragmented heap, with buffers of all sizes.
pub(super) fn piece(held: &Reservation) -> u64 {
    held.piece(LEAST_ROOM, PIECE_MOST)
}

pub(super) fn len(part: &Bytes) -> u64 {
    part.len() as u64
}

/// What the pump found at its last look.
enum Next {
    Part(Bytes),
    End,
    Failed(Error),
    Abandoned,
    Stalled,
    Resumed,
}

/// Moves the rest of a response from the backend into the pipe, then ends the exchange.
pub(super) async fn pump<L: Lease>(
    mut flight: Flight<L>,
    pipe: Arc<Pipe>,
    read_timeout: Duration,
    mut stream: bool,
    metrics: Arc<Metrics>,
) {
    let raise = || Raised::new(&metrics, |metrics| &metrics.streaming);
    let mut counted = stream.then(raise);
    if stream {
        flight.note_stream();
    }
    let mut timer = pin!(tokio::time::sleep(read_timeout));
    let mut waited = Duration::ZERO;
    // For polling the budget, which does not say when it has room again.
    let mut pause: Option<Pin<Box<Sleep>>> = None;
    loop {
        let mut waiting = None;
        let next = std::future::poll_fn(|cx| {
            loop {
                match pipe.poll_room(cx) {
                    Poll::Ready(Some(most)) => {
                        flight.read_at_most(most);
                        break;
                    }
                    Poll::Ready(None) => return Poll::Ready(Next::Abandoned),
                    Poll::Pending => {
                        waiting.get_or_insert_with(clock::now);
                        if !pipe.waits_for_budget() {
                            return Poll::Pending;
                        }
                    }
                }
                let sleep = || Box::pin(tokio::time::sleep(BUDGET_PAUSE));
                ready!(pause.get_or_insert_with(sleep).as_mut().poll(cx));
                pause = None;
            }
            match flight.poll_data(cx) {
                Poll::Ready(Some(Ok(part))) => Poll::Ready(Next::Part(part)),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Next::Failed(error)),
                Poll::Ready(None) => Poll::Ready(Next::End),
                Poll::Pending if waiting.is_some() => Poll::Ready(Next::Resumed),
                Poll::Pending => {
                    while timer.as_mut().poll(cx).is_ready() {
                        if !clock::overslept(timer.as_mut()) {
                            return Poll::Ready(Next::Stalled);
                        }
                    }
                    Poll::Pending
                }
            }
        })
        .await;
        if let Some(since) = waiting {
            waited += clock::now().saturating_duration_since(since);
        }
        if waited > CLIENT_PACE && !stream {
            // From here on the client sets the pace, and the time says nothing of the backend.
            stream = true;
            counted = Some(raise());
        }
        let restart = || tokio::time::Instant::from_std(clock::now() + read_timeout);
        match next {
            Next::Part(part) => {
                pipe.push(part);
                timer.as_mut().reset(restart());
            }
            // The client's pause is not the backend's.
            Next::Resumed => timer.as_mut().reset(restart()),
            Next::End => {
                let trailers = flight.take_trailers();
                flight.finish(if stream {
                    Completion::Streamed
                } else {
                    Completion::Answered
                });
                pipe.end(Ok(trailers));
                break;
            }
            Next::Failed(error) => {
                flight.blame(&error);
                flight.finish(Completion::of(&error));
                pipe.end(Err(error.into()));
                break;
            }
            Next::Stalled => {
                flight.blame(&Error::Timeout);
                flight.give_up(Completion::TimedOut);
                pipe.end(Err(Error::Timeout.into()));
                break;
            }
            Next::Abandoned if stream => {
                flight.leave_stream();
                break;
            }
            Next::Abandoned => {
                flight.give_up(Completion::Abandoned);
                break;
            }
        }
    }
    drop(counted);
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        task::Wake,
    };

    use super::*;
    use crate::buffer::{Budget, Direction, Share};

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn a_part_for_which_the_budget_has_no_room_is_written_before_another_is_read() {
        let held = Budget::new(0).reservation(Direction::Response);
        let parts = VecDeque::from([Bytes::from_static(b"part")]);
        let pipe = Pipe::new(parts, held, 1024, Hope::Unknown);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut writer = Context::from_waker(&waker);
        let mut reader = Context::from_waker(Waker::noop());
        assert!(pipe.poll_room(&mut writer).is_pending());
        assert!(pipe.poll_read(&mut reader, usize::MAX).is_ready());
        assert!(
            pipe.poll_room(&mut writer).is_pending(),
            "it is being written"
        );
        woken.0.store(false, Relaxed);
        assert!(pipe.poll_read(&mut reader, usize::MAX).is_pending());
        assert!(woken.0.load(Relaxed), "it is written");
        assert!(pipe.poll_room(&mut writer).is_ready());
    }

    #[test]
    fn what_the_budget_has_no_room_for_waits_until_it_has() {
        let budget = Budget::new(4);
        let mut other = budget.reservation(Direction::Response);
        assert!(other.grow(1));
        let held = budget.reservation(Direction::Response);
        let parts = VecDeque::from([Bytes::from_static(b"part")]);
        let pipe = Pipe::new(parts, held, 1024, Hope::Fits);
        let mut writer = Context::from_waker(Waker::noop());
        assert!(!budget.is_wanted());
        assert!(pipe.poll_room(&mut writer).is_pending());
        assert!(budget.is_wanted() && pipe.waits_for_budget());
        drop(other);
        assert!(pipe.poll_room(&mut writer).is_ready());
        assert!(!budget.is_wanted() && !pipe.waits_for_budget());
        assert_eq!(budget.used(Direction::Response), 4);
        // What is full waits for its client.
        pipe.push(Bytes::from(vec![0; 2048]));
        assert!(pipe.poll_room(&mut writer).is_pending());
        assert!(!budget.is_wanted());
    }

    #[test]
    fn who_waits_for_its_own_share_asks_nobody_to_give_back() {
        let budget = Budget::new(1024);
        let share = Share::new(2);
        budget.set_total(32);
        let answer = || budget.reservation(Direction::Response).within(Some(&share));
        let mut other = answer();
        assert!(other.grow(1));
        let parts = VecDeque::from([Bytes::from_static(b"part")]);
        let pipe = Pipe::new(parts, answer(), 1024, Hope::Fits);
        let mut writer = Context::from_waker(Waker::noop());
        assert!(pipe.poll_room(&mut writer).is_pending());
        assert!(pipe.waits_for_budget() && !budget.is_wanted());
        drop(other);
        assert!(pipe.poll_room(&mut writer).is_ready());
        assert!(!pipe.waits_for_budget());
    }
}

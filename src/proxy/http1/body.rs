//! A request's body on its way from who reads the connection to who reads the body. Nothing is read
//! before somebody wants it, and one part at a time: so the client is held back, and a 100 goes out no
//! earlier than it is meant.
//!
//! Both are mostly one task, that of the connection. An upload may outlive its request's future, though,
//! and then its reader is another.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use crate::{
    proxy::Error,
    sync::{Mutex, lock},
};

/// The reader's end.
#[derive(Debug)]
pub struct Coming {
    shared: Arc<Mutex<Shared>>,
    declared: Option<u64>,
}

/// The connection's end.
#[derive(Debug)]
pub struct Supply(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    next: Option<Result<Bytes, Error>>,
    ended: bool,
    /// The reader waits for a part.
    wanted: bool,
    /// The reader is gone.
    left: bool,
    reader: Option<Waker>,
    connection: Option<Waker>,
}

/// What the reader is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Something else.
    Busy,
    /// It waits for the next part.
    Waits,
    /// It is gone.
    Gone,
}

/// Both ends of a body that is `declared` bytes long, if that is known.
pub fn body(declared: Option<u64>) -> (Supply, Coming) {
    let shared = Arc::<Mutex<Shared>>::default();
    let coming = Coming {
        shared: shared.clone(),
        declared,
    };
    (Supply(shared), coming)
}

impl Supply {
    /// What the reader is doing. Whoever asks is woken when that changes.
    pub fn reader(&self, cx: &Context<'_>) -> Reader {
        let mut shared = lock(&self.0);
        if shared.left {
            return Reader::Gone;
        }
        // One that waits may leave before anything has come.
        note(&mut shared.connection, cx);
        match shared.wanted {
            true => Reader::Waits,
            false => Reader::Busy,
        }
    }

    /// Hands over the next part; nothing, at the end. A reader in the same task is not woken: it is to
    /// be polled next.
    pub fn hand_over(&self, part: Option<Result<Bytes, Error>>, cx: &Context<'_>) {
        let mut shared = lock(&self.0);
        shared.wanted = false;
        shared.ended = !matches!(part, Some(Ok(_)));
        shared.next = part;
        let reader = shared.reader.take();
        drop(shared);
        wake(reader, Some(cx));
    }
}

impl Drop for Supply {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        if !std::mem::replace(&mut shared.ended, true) {
            // The connection has ended before the body.
            shared.next = Some(Err(Error::BodyCut));
        }
        let reader = shared.reader.take();
        drop(shared);
        wake(reader, None);
    }
}

impl Coming {
    /// How long it is, if the head says so; bytes.
    pub fn declared(&self) -> Option<u64> {
        self.declared
    }

    /// The next part; `None` at the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let mut shared = lock(&self.shared);
        if let Some(next) = shared.next.take() {
            return Poll::Ready(Some(next));
        }
        if shared.ended {
            return Poll::Ready(None);
        }
        note(&mut shared.reader, cx);
        let news = !std::mem::replace(&mut shared.wanted, true);
        let connection = news.then(|| shared.connection.take()).flatten();
        drop(shared);
        wake(connection, Some(cx));
        Poll::Pending
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.left = true;
        shared.next = None;
        let connection = shared.connection.take();
        drop(shared);
        wake(connection, None);
    }
}

/// Remembers to wake this task.
fn note(place: &mut Option<Waker>, cx: &Context<'_>) {
    if !place
        .as_ref()
        .is_some_and(|known| known.will_wake(cx.waker()))
    {
        *place = Some(cx.waker().clone());
    }
}

/// Wakes a task, unless it is the one that is running.
fn wake(task: Option<Waker>, running: Option<&Context<'_>>) {
    let other = |task: &Waker| running.is_none_or(|cx| !task.will_wake(cx.waker()));
    if let Some(task) = task.filter(other) {
        task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn part(text: &'static str) -> Option<Result<Bytes, Error>> {
        Some(Ok(Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn parts_are_handed_over_when_they_are_wanted() {
        let (one, other) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (connection, reader) = (Waker::from(one.clone()), Waker::from(other.clone()));
        let (connection, mut reader) = (
            Context::from_waker(&connection),
            Context::from_waker(&reader),
        );
        let (supply, mut coming) = body(Some(3));
        assert_eq!(coming.declared(), Some(3));
        assert_eq!(supply.reader(&connection), Reader::Busy);
        assert!(coming.poll_next(&mut reader).is_pending());
        assert_eq!(one.0.load(SeqCst), 1, "the connection hears of it");
        assert!(coming.poll_next(&mut reader).is_pending());
        assert_eq!(one.0.load(SeqCst), 1, "once");
        assert_eq!(supply.reader(&connection), Reader::Waits);
        supply.hand_over(part("abc"), &connection);
        assert_eq!(other.0.load(SeqCst), 1, "the reader hears of it");
        assert_eq!(supply.reader(&connection), Reader::Busy);
        assert!(matches!(coming.poll_next(&mut reader), Poll::Ready(Some(Ok(it))) if it == "abc"));
        assert!(coming.poll_next(&mut reader).is_pending());
        supply.hand_over(None, &connection);
        assert!(matches!(coming.poll_next(&mut reader), Poll::Ready(None)));
        drop(coming);
        assert_eq!(supply.reader(&connection), Reader::Gone);
    }

    #[test]
    fn a_task_does_not_wake_itself() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        let (supply, mut coming) = body(None);
        assert_eq!(supply.reader(&cx), Reader::Busy);
        assert!(coming.poll_next(&mut cx).is_pending());
        supply.hand_over(part("a"), &cx);
        assert!(coming.poll_next(&mut cx).is_ready());
        assert_eq!(count.0.load(SeqCst), 0);
    }

    #[test]
    fn the_connection_hears_of_a_reader_that_leaves_while_it_waits() {
        let count = Arc::new(Count::default());
        let connection = Waker::from(count.clone());
        let connection = Context::from_waker(&connection);
        let (supply, mut coming) = body(Some(3));
        let mut reader = Context::from_waker(Waker::noop());
        assert_eq!(supply.reader(&connection), Reader::Busy);
        assert!(coming.poll_next(&mut reader).is_pending());
        assert_eq!(count.0.load(SeqCst), 1);
        assert_eq!(supply.reader(&connection), Reader::Waits);
        drop(coming);
        assert_eq!(count.0.load(SeqCst), 2);
        assert_eq!(supply.reader(&connection), Reader::Gone);
    }

    #[test]
    fn a_connection_that_ends_cuts_the_body() {
        let (supply, mut coming) = body(None);
        drop(supply);
        let mut cx = Context::from_waker(Waker::noop());
        let told = coming.poll_next(&mut cx);
        assert!(matches!(told, Poll::Ready(Some(Err(Error::BodyCut)))));
        assert!(matches!(coming.poll_next(&mut cx), Poll::Ready(None)));
    }
}

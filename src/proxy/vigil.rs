//! Is a client still there that sends what nobody reads yet? The end of what it sends lies behind all of that, and
//! nothing can be sent ahead while its request is not complete. So the socket is asked, seldom: one that is broken says
//! so, and so does one that has ended before the request has.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use crate::{backend::Stream, clock};

/// How soon the socket is asked; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Asks the question.
#[derive(Debug)]
pub struct Vigil {
    timer: Pin<Box<Sleep>>,
    pause: Duration,
}

impl Vigil {
    /// From now on.
    pub fn new() -> Self {
        Self {
            timer: Box::pin(sleep(FIRST_PAUSE)),
            pause: FIRST_PAUSE,
        }
    }

    /// Ready when the client has left, whose request lacks so many bytes.
    pub fn poll(&mut self, cx: &mut Context<'_>, stream: &Stream, lacks: u64) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if stream.is_broken(lacks) {
                return Poll::Ready(());
            }
            self.pause = (2 * self.pause).min(LAST_PAUSE);
            let next = Instant::from_std(clock::now() + self.pause);
            self.timer.as_mut().reset(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Shutdown};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// Both ends of a connection.
    async fn pair() -> (Stream, tokio::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let theirs = tokio::net::TcpStream::connect(address).await;
        let (ours, _) = listener.accept().await.expect("it has come");
        (Stream::Tcp(ours), theirs.expect("it listens"))
    }

    async fn leaves(stream: &Stream, lacks: u64, within: Duration) -> bool {
        let mut vigil = Vigil::new();
        let left = poll_fn(|cx| vigil.poll(cx, stream, lacks));
        tokio::time::timeout(within, left).await.is_ok()
    }

    #[tokio::test]
    async fn a_reset_is_seen_behind_what_nobody_has_read() {
        let (ours, mut theirs) = pair().await;
        theirs.write_all(b"unread").await.expect("there is room");
        let theirs = theirs.into_std().expect("a socket");
        socket2::SockRef::from(&theirs)
            .set_linger(Some(Duration::ZERO))
            .expect("it is one of TCP");
        drop(theirs);
        assert!(leaves(&ours, 0, PATIENCE).await);
    }

    #[tokio::test]
    async fn an_end_is_a_departure_only_where_something_is_lacking() {
        let (ours, mut theirs) = pair().await;
        theirs.write_all(b"unread").await.expect("there is room");
        let theirs = theirs.into_std().expect("a socket");
        theirs.shutdown(Shutdown::Write).expect("it is connected");
        assert!(leaves(&ours, 7, PATIENCE).await, "a byte is lacking");
        assert!(!leaves(&ours, 6, Duration::from_millis(50)).await);
        assert!(!leaves(&ours, 0, Duration::from_millis(50)).await);
    }
}

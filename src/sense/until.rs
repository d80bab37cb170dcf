//! A socket that is read up to a deadline, in however many pieces the answer comes: with a timeout for each
//! read alone, a server that trickles would be read for ever.

use std::{
    io::{self, ErrorKind, Read},
    os::fd::AsFd,
    time::Instant,
};

use socket2::SockRef;

use crate::clock;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Until<S> {
    pub(super) stream: S,
    pub(super) end: Instant,
}

impl<S: Read + AsFd> Read for Until<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let late = || io::Error::new(ErrorKind::TimedOut, "no whole answer in time");
        let left = self.end.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(late());
        }
        SockRef::from(&self.stream).set_read_timeout(Some(left))?;
        self.stream
            .read(buffer)
            .map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => late(),
                _ => error,
            })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{io::Write, os::unix::net::UnixStream, time::Duration};

    use super::*;

    /// Writes one byte after the other until nobody reads them, or for far longer than anybody should.
    pub(in crate::sense) fn trickle(mut stream: impl Write) {
        for _ in 0..1000 {
            if stream.write_all(b" ").is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_trickles_and_what_never_comes_is_not_waited_for_for_ever() {
        let read = |stream| {
            let end = clock::now() + Duration::from_millis(100);
            let mut text = Vec::new();
            let error = Until { stream, end }.read_to_end(&mut text);
            (error.expect_err("it is late").kind(), text.len())
        };
        let (silent, _held) = UnixStream::pair().expect("two ends");
        assert_eq!(read(silent), (ErrorKind::TimedOut, 0));
        let (ours, theirs) = UnixStream::pair().expect("two ends");
        let server = std::thread::spawn(|| trickle(theirs));
        let (kind, read) = read(ours);
        assert_eq!(kind, ErrorKind::TimedOut);
        assert!(read < 1000, "{read}");
        server.join().expect("no panic");
    }
}

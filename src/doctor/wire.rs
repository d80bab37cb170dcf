//! The doctor's connections, read by hand: an HTTP library would hide what is looked for.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use super::ask::{Answer, PATIENCE};
use crate::{clock, config::Address, socket_file};

/// Of what has no end yet, a head or a line, no more is kept than this.
const MAX_HELD: usize = 1 << 20;
/// Of a body, no more is read than this.
const MAX_BODY: u64 = 64 << 20;

/// The value of a field of a head.
pub(super) fn field(head: &str, wanted: &str) -> Option<String> {
    head.split("\r\n").skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted)
            .then(|| value.trim().to_owned())
    })
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// Received, but not of an answer that was given out already.
    rest: Vec<u8>,
    ended: bool,
    /// The last answer was not read to its end.
    cut: bool,
}

impl Connection {
    pub(super) fn open(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Tcp { host, port } => {
                let mut found: Vec<SocketAddr> =
                    (host.as_str(), *port).to_socket_addrs()?.collect();
                found.sort_by_key(SocketAddr::is_ipv6);
                let mut stream = Err(io::ErrorKind::NotFound.into());
                for address in &found {
                    stream = TcpStream::connect_timeout(address, PATIENCE);
                    if stream.is_ok() {
                        break;
                    }
                }
                let stream = stream?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Address::Unix(path) => Stream::Unix(socket_file::connect(path, PATIENCE)?),
            Address::Fd(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self {
            stream,
            rest: Vec::new(),
            ended: false,
            cut: false,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.write_all(bytes)
            }
            Stream::Unix(stream) => {
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.write_all(bytes)
            }
        }
    }

    /// Reads what is there, waiting until `deadline` for it. False at the end, or when there is nothing.
    fn fill(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() || self.ended || self.rest.len() > MAX_HELD {
            return false;
        }
        let mut chunk = [0; 16 * 1024];
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream
                .set_read_timeout(Some(left))
                .and_then(|()| stream.read(&mut chunk)),
            Stream::Unix(stream) => stream
                .set_read_timeout(Some(left))
                .and_then(|()| stream.read(&mut chunk)),
        };
        match read {
            Ok(0) => {
                self.ended = true;
                false
            }
            Ok(count) => {
                self.rest.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => false,
                io::ErrorKind::Interrupted => true,
                _ => {
                    self.ended = true;
                    false
                }
            },
        }
    }

    /// The next answer, whole, and its head. An interim one counts as an answer.
    pub(super) fn answer(&mut self, deadline: Instant) -> (Answer, Option<String>) {
        loop {
            if let Some(end) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.rest[..end]).into_owned();
                self.rest.drain(..end + 4);
                let status = head
                    .strip_prefix("HTTP/1.")
                    .and_then(|rest| rest.get(2..5)?.parse().ok());
                let Some(status) = status else {
                    return (Answer::Closed, None);
                };
                if status >= 200 {
                    self.cut = !self.skip_body(&head, status, deadline);
                }
                return (Answer::Status(status), Some(head));
            }
            if !self.fill(deadline) {
                let answer = if self.ended {
                    Answer::Closed
                } else {
                    Answer::Silence
                };
                return (answer, None);
            }
        }
    }

    /// Reads the body and keeps none of it; up to the end of the connection where nothing else ends it. False if there
    /// may be more of it to come.
    fn skip_body(&mut self, head: &str, status: u16, deadline: Instant) -> bool {
        if matches!(status, 204 | 304) {
            return true;
        }
        let mut room = MAX_BODY;
        let chunked = field(head, "transfer-encoding").is_some_and(|c| c.ends_with("chunked"));
        let length = field(head, "content-length").and_then(|length| length.parse().ok());
        let whole = match length {
            _ if chunked => self.skip_chunks(&mut room, deadline).is_some(),
            Some(length) => self.skip(length, &mut room, deadline).is_some(),
            None => {
                self.skip(MAX_BODY, &mut room, deadline);
                false
            }
        };
        whole || self.ended
    }

    /// Drops so many bytes as they come. None if they do not come in time, or are more than there is room for.
    fn skip(&mut self, mut count: u64, room: &mut u64, deadline: Instant) -> Option<()> {
        *room = room.checked_sub(count)?;
        loop {
            let here = usize::try_from(count).map_or(self.rest.len(), |it| it.min(self.rest.len()));
            self.rest.drain(..here);
            count -= here as u64;
            if count == 0 {
                return Some(());
            }
            if !self.fill(deadline) {
                return None;
            }
        }
    }

    fn skip_chunks(&mut self, room: &mut u64, deadline: Instant) -> Option<()> {
        loop {
            let line = self.line(deadline)?;
            let size = line.split(';').next()?.trim();
            let size = u64::from_str_radix(size, 16).ok()?;
            if size == 0 {
                break;
            }
            // With the end of the line.
            self.skip(size.checked_add(2)?, room, deadline)?;
        }
        while !self.line(deadline)?.is_empty() {}
        Some(())
    }

    fn line(&mut self, deadline: Instant) -> Option<String> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.rest[..end]).into_owned();
                self.rest.drain(..end + 2);
                return Some(line);
            }
            if !self.fill(deadline) {
                return None;
            }
        }
    }

    /// Whether the last answer was given up before its end: what comes next still belongs to it, and not to a
    /// new answer.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Whether the server closes its side within this time.
    pub(super) fn ended_within(&mut self, time: Duration) -> bool {
        let deadline = clock::now() + time;
        while self.fill(deadline) {}
        self.ended
    }

    /// Whether the other end of the connection, whose side is shut, is still a socket of some process:
    /// the kernel's table says so by an inode.
    pub(super) fn held_by_peer(&self) -> Option<bool> {
        let Stream::Tcp(stream) = &self.stream else {
            return None;
        };
        let (own, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        table
            .lines()
            .find_map(|line| held(line, own.port(), peer.port()))
    }
}

/// Of a row of `/proc/net/tcp`: whether a process holds the socket that is bound to `local` and
/// connected to `remote`. None for any other row.
fn held(line: &str, remote: u16, local: u16) -> Option<bool> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |at: usize| {
        let (_, port) = fields.get(at)?.split_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    if port(1)? != local || port(2)? != remote {
        return None;
    }
    Some(*fields.get(9)? != "0")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The statuses of two answers over one connection, and whether the second was given up before its end.
    fn asked_twice(answer: Vec<u8>) -> (Answer, Answer, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            while stream.read(&mut [0]).unwrap_or(0) == 1 {
                // A client that has had enough goes.
                let _ = stream.write_all(&answer);
            }
        });
        let host = "127.0.0.1".to_owned();
        let mut connection = Connection::open(&Address::Tcp { host, port }).unwrap();
        let mut ask = || {
            connection.write(b"?").unwrap();
            connection.answer(clock::now() + 12 * PATIENCE).0
        };
        let (first, second) = (ask(), ask());
        let cut = connection.is_cut();
        drop(connection);
        server.join().unwrap();
        (first, second, cut)
    }

    #[test]
    fn a_large_answer_is_followed_by_the_next() {
        let ok = Answer::Status(200);
        let size = 3 * MAX_HELD;
        let mut whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        whole.resize(whole.len() + size, b'x');
        assert_eq!(asked_twice(whole), (ok, ok, false));

        let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..40 {
            chunked.extend(b"10000;x=y\r\n");
            // Not the end, though it looks like it.
            let data = b"\n0\r\n\r\n".iter().cycle().take(0x10000);
            chunked.extend(data);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\nEnd: yes\r\n\r\n");
        assert_eq!(asked_twice(chunked), (ok, ok, false));
    }

    #[test]
    fn a_socket_in_somebodys_hands_has_an_inode() {
        let row = "  12: 0100007F:1F40 0100007F:9C40 05 00000000:00000000 00:00000000 00000000  0  0 4711 1";
        assert_eq!(held(row, 0x9C40, 0x1F40), Some(true));
        assert_eq!(held(&row.replace("4711", "0"), 0x9C40, 0x1F40), Some(false));
        assert_eq!(held(row, 0x9C41, 0x1F40), None);
        assert_eq!(held("sl local_address", 1, 2), None);
    }
}

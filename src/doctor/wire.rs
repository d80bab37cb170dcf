//! The doctor's connections, read by hand: an HTTP library would hide what is looked for.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use super::ask::{Answer, PATIENCE};
use crate::{clock, config::Address, socket_file};

/// Of an answer, no more is read than this.
const MAX_ANSWER: usize = 1 << 20;

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
        if left.is_zero() || self.ended || self.rest.len() > MAX_ANSWER {
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
                    self.skip_body(&head, status, deadline);
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

    /// Reads the body; up to the end of the connection where nothing else ends it.
    fn skip_body(&mut self, head: &str, status: u16, deadline: Instant) {
        if matches!(status, 204 | 304) {
            return;
        }
        let chunked = field(head, "transfer-encoding").is_some_and(|c| c.ends_with("chunked"));
        let length = field(head, "content-length").and_then(|length| length.parse::<usize>().ok());
        loop {
            let end = match length {
                _ if chunked => self
                    .rest
                    .windows(5)
                    .position(|five| five == b"0\r\n\r\n")
                    .map(|at| at + 5),
                Some(length) => (self.rest.len() >= length).then_some(length),
                None => None,
            };
            if let Some(end) = end {
                self.rest.drain(..end);
                return;
            }
            if !self.fill(deadline) {
                return;
            }
        }
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
    use super::*;

    #[test]
    fn a_socket_in_somebodys_hands_has_an_inode() {
        let row = "  12: 0100007F:1F40 0100007F:9C40 05 00000000:00000000 00:00000000 00000000  0  0 4711 1";
        assert_eq!(held(row, 0x9C40, 0x1F40), Some(true));
        assert_eq!(held(&row.replace("4711", "0"), 0x9C40, 0x1F40), Some(false));
        assert_eq!(held(row, 0x9C41, 0x1F40), None);
        assert_eq!(held("sl local_address", 1, 2), None);
    }
}

//! A handful of harmless requests, and what the answers tell of the server's habits. `GET /` is asked
//! once or twice, as any health check does; the rest are `OPTIONS /`, which Flask answers by itself.
//!
//! Blocking, on raw sockets: an HTTP library would hide what is looked for.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use crate::{clock, config::Address};

/// For a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A server that wants to close after its answer has done so by then.
const MOMENT: Duration = Duration::from_millis(300);
/// The longest that a kept connection is watched.
const IDLE: Duration = Duration::from_millis(2500);
/// Of an answer, no more is read than this.
const MAX_ANSWER: usize = 1 << 20;

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A status.
    Status(u16),
    /// The connection ended without one.
    Closed,
    /// Nothing, for some seconds.
    Silence,
    /// No connection.
    Unreachable,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(code) => write!(f, "{code}"),
            Self::Closed => f.write_str("the connection ended without an answer"),
            Self::Silence => f.write_str("no answer"),
            Self::Unreachable => f.write_str("no connection"),
        }
    }
}

/// One request that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// In words.
    pub request: String,
    /// What came back.
    pub answer: Answer,
}

/// How long a connection is of use after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is closed at once.
    Closes,
    /// It carries another request, and is closed when idle for this long; None = longer than was waited.
    Keeps(Option<Duration>),
    /// It stays open, but another request gets no answer.
    Stale,
}

/// What the requests told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manners {
    /// Every request, in order.
    pub asked: Vec<Asked>,
    /// The head of the first answer.
    pub head: Option<String>,
    /// The `Server` field of the first answer.
    pub server: Option<String>,
    /// The minor version of HTTP/1 that it answers with.
    pub version: Option<u8>,
    /// What it says of the connection: the field `Connection`.
    pub announced: Option<String>,
    /// What it does with the connection.
    pub keep: Option<Keep>,
    /// Whether the socket is still the server's after its last byte, until the client closes too.
    /// None where that cannot be seen.
    pub lingers: Option<bool>,
    /// The answer to `OPTIONS /` of usual size, with which the others are compared.
    pub usual: Option<Answer>,
    /// The answer to a chunked body.
    pub chunked: Option<Answer>,
    /// How many `100 Continue` it sent when asked for one.
    pub continues: Option<u32>,
    /// The least request line, bytes, that it did not take, and its answer.
    pub line_limit: Option<(usize, Answer)>,
    /// The least field, bytes, that it did not take, and its answer.
    pub field_limit: Option<(usize, Answer)>,
    /// The least number of fields that it did not take, and its answer.
    pub count_limit: Option<(usize, Answer)>,
}

/// Asks. Takes about three seconds with a server that keeps connections, less with others, and more
/// with one whose workers are all busy.
pub fn ask(address: &Address) -> Manners {
    let mut manners = Manners::default();
    let (mut first, answer) = manners.one(address, "GET / HTTP/1.1", &plain("GET", ""));
    let Some(head) = answer else {
        return manners;
    };
    manners.server = field(&head, "server");
    manners.version = head.strip_prefix("HTTP/1.").and_then(|rest| {
        let digit = rest.bytes().next()?;
        digit.is_ascii_digit().then(|| digit - b'0')
    });
    manners.announced = field(&head, "connection");
    manners.head = Some(head);
    if let Some(connection) = &mut first {
        manners.keep = Some(manners.after_answer(connection));
    }
    drop(first);

    manners.one(address, "OPTIONS / HTTP/1.1", &plain("OPTIONS", ""));
    manners.usual = manners.asked.last().map(|asked| asked.answer);
    // The limits of the known servers lie between these.
    manners.line_limit = manners.least(address, &[4_200, 8_300, 70_000], |size| {
        let padding = "x".repeat(size - "OPTIONS /? HTTP/1.1".len());
        let head = request("OPTIONS", &format!("/?{padding}"), "Connection: close\r\n");
        (format!("OPTIONS with a request line of {size} bytes"), head)
    });
    manners.field_limit = manners.least(address, &[4_200, 8_300, 70_000], |size| {
        let field = format!("X-Doctor: {}\r\n", "x".repeat(size - "X-Doctor: ".len()));
        (
            format!("OPTIONS with a field of {size} bytes"),
            plain("OPTIONS", &field),
        )
    });
    manners.count_limit = manners.least(address, &[101, 201], |count| {
        // Host, Connection and User-Agent are there already.
        let fields: String = (3..count).map(|n| format!("X-Doctor-{n}: x\r\n")).collect();
        (
            format!("OPTIONS with {count} fields"),
            plain("OPTIONS", &fields),
        )
    });
    let chunked = plain("OPTIONS", "Transfer-Encoding: chunked\r\n") + "1\r\nx\r\n0\r\n\r\n";
    manners.one(address, "OPTIONS with a chunked body of 1 byte", &chunked);
    manners.chunked = manners.asked.last().map(|asked| asked.answer);
    manners.expect(address);
    manners
}

fn request(method: &str, target: &str, fields: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: tidegate-doctor\r\n{fields}\r\n"
    )
}

/// Closes, unless it is the first: that one is asked what it does by itself.
fn plain(method: &str, fields: &str) -> String {
    let close = if method == "GET" {
        ""
    } else {
        "Connection: close\r\n"
    };
    request(method, "/", &format!("{close}{fields}"))
}

impl Manners {
    /// Sends one request and reads its answer; the connection stays open.
    fn one(
        &mut self,
        address: &Address,
        name: &str,
        text: &str,
    ) -> (Option<Connection>, Option<String>) {
        let (connection, answer, head) = match Connection::open(address) {
            Err(_) => (None, Answer::Unreachable, None),
            Ok(mut connection) => {
                // A server that refuses a head may close before it has read all of it.
                let _ = connection.write(text.as_bytes());
                let (answer, head) = connection.answer(clock::now() + PATIENCE);
                (Some(connection), answer, head)
            }
        };
        self.note(name, answer);
        (connection, head)
    }

    fn note(&mut self, request: &str, answer: Answer) {
        self.asked.push(Asked {
            request: request.to_owned(),
            answer,
        });
    }

    /// What the server does with the connection when its answer is complete.
    fn after_answer(&mut self, connection: &mut Connection) -> Keep {
        if connection.ended_within(MOMENT) {
            // Its side is shut: is the socket still in somebody's hands?
            self.lingers = connection.held_by_peer();
            return Keep::Closes;
        }
        self.lingers = Some(false);
        let sent = connection.write(plain("GET", "").as_bytes());
        let (answer, _) = match sent {
            Ok(()) => connection.answer(clock::now() + PATIENCE),
            Err(_) => (Answer::Closed, None),
        };
        self.note("GET / again over the same connection", answer);
        if !matches!(answer, Answer::Status(_)) {
            return Keep::Stale;
        }
        let start = clock::now();
        let ended = connection.ended_within(IDLE);
        Keep::Keeps(ended.then(|| clock::now().saturating_duration_since(start)))
    }

    /// The first of these sizes that is not answered as a request of usual size is.
    fn least(
        &mut self,
        address: &Address,
        sizes: &[usize],
        text: impl Fn(usize) -> (String, String),
    ) -> Option<(usize, Answer)> {
        for &size in sizes {
            let (name, text) = text(size);
            self.one(address, &name, &text);
            let answer = self.asked.last()?.answer;
            let refused = match answer {
                _ if Some(answer) == self.usual => false,
                Answer::Status(code) => matches!(code, 400 | 413 | 414 | 431 | 500..),
                Answer::Closed => true,
                Answer::Silence | Answer::Unreachable => return None,
            };
            if refused {
                return Some((size, answer));
            }
        }
        None
    }

    fn expect(&mut self, address: &Address) {
        const NAME: &str = "OPTIONS with Expect: 100-continue and a body of 1 byte";
        let head = plain("OPTIONS", "Expect: 100-continue\r\nContent-Length: 1\r\n");
        let Ok(mut connection) = Connection::open(address) else {
            return self.note(NAME, Answer::Unreachable);
        };
        let sent = connection.write(head.as_bytes());
        let mut continues = 0;
        // Whoever invites does so at once, or when the body is read.
        let mut answer = match sent {
            Ok(()) => connection.answer(clock::now() + MOMENT).0,
            Err(_) => Answer::Closed,
        };
        if answer == Answer::Status(100) || answer == Answer::Silence {
            let _ = connection.write(b"x");
        } else {
            if matches!(answer, Answer::Status(_)) {
                self.continues = Some(0);
            }
            return self.note(NAME, answer);
        }
        loop {
            if answer == Answer::Status(100) {
                continues += 1;
            } else if answer != Answer::Silence || continues > 8 {
                break;
            }
            let before = answer;
            answer = connection.answer(clock::now() + PATIENCE).0;
            if before == Answer::Silence && answer == Answer::Silence {
                break;
            }
        }
        self.continues = Some(continues);
        self.note(NAME, answer);
    }
}

/// The value of a field of a head.
fn field(head: &str, wanted: &str) -> Option<String> {
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
struct Connection {
    stream: Stream,
    /// Received, but not of an answer that was given out already.
    rest: Vec<u8>,
    ended: bool,
}

impl Connection {
    fn open(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Tcp { host, port } => {
                let mut found: Vec<SocketAddr> =
                    (host.as_str(), *port).to_socket_addrs()?.collect();
                found.sort_by_key(SocketAddr::is_ipv6);
                let none = io::Error::from(io::ErrorKind::NotFound);
                let first = found.first().ok_or(none)?;
                let stream = TcpStream::connect_timeout(first, PATIENCE)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
            Address::Fd(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self {
            stream,
            rest: Vec::new(),
            ended: false,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
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
    fn answer(&mut self, deadline: Instant) -> (Answer, Option<String>) {
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
    fn ended_within(&mut self, time: Duration) -> bool {
        let deadline = clock::now() + time;
        while self.fill(deadline) {}
        self.ended
    }

    /// Whether the other end of the connection, whose side is shut, is still a socket of some process:
    /// the kernel's table says so by an inode.
    fn held_by_peer(&self) -> Option<bool> {
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

    /// Answers each connection by what `answer` makes of its head, until the test is over.
    fn server(answer: impl Fn(&str) -> Option<&'static str> + Send + 'static) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                if let Some(answer) = answer(&String::from_utf8_lossy(&head)) {
                    let _ = stream.write_all(answer.as_bytes());
                }
                // A body that is left unread would turn the end into a reset.
                let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
                let _ = stream.read(&mut [0; 64]);
            }
        });
        Address::Tcp {
            host: "127.0.0.1".into(),
            port,
        }
    }

    #[test]
    fn a_server_that_closes_and_has_small_limits() {
        let manners = ask(&server(|head| match head {
            head if head.len() > 5_000 => None,
            head if head.lines().count() > 102 => Some("HTTP/1.1 431 Too Many\r\n\r\n"),
            head if head.contains("chunked") => {
                Some("HTTP/1.1 411 No\r\nContent-Length: 0\r\n\r\n")
            }
            head if head.contains("Expect") => {
                Some("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            }
            _ => Some(
                "HTTP/1.1 200 OK\r\nServer: small/1.0\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            ),
        }));
        assert_eq!(manners.server.as_deref(), Some("small/1.0"));
        assert_eq!(
            (manners.version, manners.announced.as_deref()),
            (Some(1), Some("close"))
        );
        assert_eq!(manners.keep, Some(Keep::Closes));
        assert_eq!(
            manners.line_limit,
            Some((8_300, Answer::Closed)),
            "{manners:?}"
        );
        assert_eq!(manners.field_limit, Some((8_300, Answer::Closed)));
        assert_eq!(manners.count_limit, Some((101, Answer::Status(431))));
        assert_eq!(manners.chunked, Some(Answer::Status(411)));
        assert_eq!(manners.continues, Some(1));
        assert!(
            manners.asked.len() >= 8 && manners.asked.len() <= 12,
            "{manners:?}"
        );
        let verbs = ["GET /", "OPTIONS "];
        let harmless = |asked: &Asked| verbs.iter().any(|verb| asked.request.starts_with(verb));
        assert!(manners.asked.iter().all(harmless), "{manners:?}");
    }

    #[test]
    fn nobody_there_is_one_request_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let manners = ask(&Address::Tcp {
            host: "127.0.0.1".into(),
            port,
        });
        assert_eq!(manners.asked.len(), 1);
        assert_eq!(manners.asked[0].answer, Answer::Unreachable);
        assert_eq!(manners.keep, None);
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

//! A handful of harmless requests, and what the answers tell of the server's habits. `GET /` is asked
//! once or twice, as any health check does; the rest are `OPTIONS /`, which Flask answers by itself.
//! In HTTP or in uWSGI's protocol: where the one is not understood, the other is tried.

use std::{io, time::Duration};

use super::wire::{Connection, field};
use crate::{
    backend::uwsgi,
    clock,
    config::{Address, Protocol},
};

/// For a connection, and for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A server that wants to close after its answer has done so by then.
const MOMENT: Duration = Duration::from_millis(300);
/// The longest that a kept connection is watched.
const IDLE: Duration = Duration::from_millis(2500);

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

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing listens there.
    Absent,
    /// It is not for this user.
    Denied,
    /// It took too long: it may be busy.
    Slow,
    /// Something else, in words.
    Other(String),
}

impl Refusal {
    fn new(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Slow,
            _ => Self::Other(error.to_string()),
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

impl Keep {
    /// How long tidegate may keep an idle connection, to be done with it well before the server is; `None` where
    /// keeping is of no use.
    pub(super) fn idle(self) -> Option<Duration> {
        /// In less, next to no request comes along.
        const LEAST: Duration = Duration::from_millis(50);
        match self {
            Keep::Keeps(known) => Some(known.unwrap_or(IDLE) / 2).filter(|idle| *idle >= LEAST),
            Keep::Closes | Keep::Stale => None,
        }
    }
}

/// What the requests told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manners {
    /// Every request, in order.
    pub asked: Vec<Asked>,
    /// Why there was no connection, if there was none.
    pub refusal: Option<Refusal>,
    /// Whether it was asked in uWSGI's protocol, configured or understood in place of HTTP.
    pub uwsgi: bool,
    /// The head of the first answer.
    pub head: Option<String>,
    /// The `Server` field of the first answer.
    pub server: Option<String>,
    /// The minor version of HTTP/1 that it answers with.
    pub version: Option<u8>,
    /// What it says of the connection: the field `Connection`.
    pub announced: Option<String>,
    /// What it does with the connection. None where its answer was too long to tell.
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
pub fn ask(address: &Address, protocol: Protocol) -> Manners {
    let mut manners = Manners {
        uwsgi: protocol == Protocol::Uwsgi,
        ..Manners::default()
    };
    let question = Question::new("GET");
    let (mut first, mut head) = manners.one(address, &first_name(protocol), &question);
    if manners.is_misunderstood(head.as_deref()) {
        // uWSGI's socket hangs up on HTTP, and an HTTP server on a packet of uWSGI's.
        manners.uwsgi = !manners.uwsgi;
        let second = manners.one(address, &first_name(manners.protocol()), &question);
        if manners.is_misunderstood(second.1.as_deref()) || second.1.is_none() {
            manners.uwsgi = !manners.uwsgi;
        } else {
            (first, head) = second;
        }
    }
    let Some(head) = head else {
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
        manners.keep = manners.after_answer(connection);
    }
    drop(first);

    let usual = Question::new("OPTIONS").closing();
    manners.one(address, "OPTIONS / HTTP/1.1", &usual);
    manners.usual = manners.asked.last().map(|asked| asked.answer);
    // The limits of the known servers lie between these; a packet of uWSGI's ends at 64 KiB.
    let sizes = match manners.protocol() {
        Protocol::Http => [4_200, 8_300, 70_000],
        Protocol::Uwsgi => [4_200, 8_300, 60_000],
    };
    if manners.protocol() == Protocol::Http {
        manners.line_limit = manners.least(address, &sizes, |size| {
            let padding = "x".repeat(size - "OPTIONS /? HTTP/1.1".len());
            let name = format!("OPTIONS with a request line of {size} bytes");
            let target = format!("/?{padding}");
            (
                name,
                Question {
                    target,
                    ..usual.clone()
                },
            )
        });
    }
    manners.field_limit = manners.least(address, &sizes, |size| {
        let name = format!("OPTIONS with a field of {size} bytes");
        let value = "x".repeat(size - "X-Doctor: ".len());
        (name, usual.clone().with("X-Doctor", &value))
    });
    manners.count_limit = manners.least(address, &[101, 201], |count| {
        // Host, Connection and User-Agent are there already.
        let question = (3..count).fold(usual.clone(), |question, n| {
            question.with(&format!("X-Doctor-{n}"), "x")
        });
        (format!("OPTIONS with {count} fields"), question)
    });
    // uWSGI's protocol knows neither chunks nor expectations.
    if manners.protocol() == Protocol::Http {
        let mut chunked = usual.clone().with("Transfer-Encoding", "chunked");
        chunked.body = "1\r\nx\r\n0\r\n\r\n";
        manners.one(address, "OPTIONS with a chunked body of 1 byte", &chunked);
        manners.chunked = manners.asked.last().map(|asked| asked.answer);
        manners.expect(address);
    }
    manners
}

fn first_name(protocol: Protocol) -> String {
    match protocol {
        Protocol::Http => "GET / HTTP/1.1".to_owned(),
        Protocol::Uwsgi => "GET / in the uwsgi protocol".to_owned(),
    }
}

/// A request that has no form yet.
#[derive(Clone, Debug)]
struct Question {
    method: &'static str,
    target: String,
    fields: Vec<(String, String)>,
    /// As it goes over the wire.
    body: &'static str,
}

impl Question {
    fn new(method: &'static str) -> Self {
        Self {
            method,
            target: "/".to_owned(),
            fields: vec![
                ("Host".to_owned(), "localhost".to_owned()),
                ("User-Agent".to_owned(), "tidegate-doctor".to_owned()),
            ],
            body: "",
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// All but the first, which is to show what the server does by itself.
    fn closing(self) -> Self {
        self.with("Connection", "close")
    }

    fn bytes(&self, protocol: Protocol) -> Vec<u8> {
        match protocol {
            Protocol::Http => {
                let fields: String = self
                    .fields
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}\r\n"))
                    .collect();
                let Self {
                    method,
                    target,
                    body,
                    ..
                } = self;
                format!("{method} {target} HTTP/1.1\r\n{fields}\r\n{body}").into_bytes()
            }
            Protocol::Uwsgi => {
                let mut request = http::Request::builder()
                    .method(self.method)
                    .uri(&self.target);
                // What is about the connection has no place in a packet.
                for (name, value) in self.fields.iter().filter(|(name, _)| name != "Connection") {
                    request = request.header(name, value);
                }
                let packet = request
                    .body(http_body_util::Empty::<bytes::Bytes>::new())
                    .ok()
                    .and_then(|request| uwsgi::encode(&request, request.body()).ok());
                debug_assert!(packet.is_some(), "{self:?}");
                packet.map(Vec::from).unwrap_or_default()
            }
        }
    }
}

impl Manners {
    /// What it was asked in.
    pub fn protocol(&self) -> Protocol {
        if self.uwsgi {
            Protocol::Uwsgi
        } else {
            Protocol::Http
        }
    }

    /// What `GET /` was answered with, in the protocol that it understands.
    pub(super) fn looked(&self) -> Option<Answer> {
        // The last of them was understood.
        let mut asked = self.asked.iter().rev();
        let found = asked.find(|asked| asked.request.starts_with("GET / "));
        found.map(|asked| asked.answer)
    }

    /// Sends one request and reads its answer; the connection stays open.
    fn one(
        &mut self,
        address: &Address,
        name: &str,
        question: &Question,
    ) -> (Option<Connection>, Option<String>) {
        let (connection, answer, head) = match Connection::open(address) {
            Err(error) => {
                self.refusal = Some(Refusal::new(&error));
                (None, Answer::Unreachable, None)
            }
            Ok(mut connection) => {
                // A server that refuses a head may close before it has read all of it.
                let _ = connection.write(&question.bytes(self.protocol()));
                let (answer, head) = connection.answer(clock::now() + PATIENCE);
                (Some(connection), answer, head)
            }
        };
        self.note(name, answer);
        (connection, head)
    }

    /// Whether the last answer is that of a server which expects another protocol.
    fn is_misunderstood(&self, head: Option<&str>) -> bool {
        let answer = self.asked.last().map(|asked| asked.answer);
        match self.protocol() {
            // Silence is that of workers which are all busy. gunicorn, when told to expect uWSGI's
            // protocol, answers with a 500 that does not bear its name.
            Protocol::Http => match answer {
                Some(Answer::Status(500)) => {
                    head.is_some_and(|head| field(head, "server").is_none())
                }
                answer => answer == Some(Answer::Closed),
            },
            Protocol::Uwsgi => matches!(
                answer,
                Some(Answer::Closed | Answer::Silence | Answer::Status(400))
            ),
        }
    }

    fn note(&mut self, request: &str, answer: Answer) {
        self.asked.push(Asked {
            request: request.to_owned(),
            answer,
        });
    }

    /// What the server does with the connection when its answer is complete; None where that was not to be waited for.
    fn after_answer(&mut self, connection: &mut Connection) -> Option<Keep> {
        if connection.is_cut() {
            return None;
        }
        if connection.ended_within(MOMENT) {
            // Its side is shut: is the socket still in somebody's hands?
            self.lingers = connection.held_by_peer();
            return Some(Keep::Closes);
        }
        self.lingers = Some(false);
        let sent = connection.write(&Question::new("GET").bytes(self.protocol()));
        let (answer, _) = match sent {
            Ok(()) => connection.answer(clock::now() + PATIENCE),
            Err(_) => (Answer::Closed, None),
        };
        self.note("GET / again over the same connection", answer);
        if !matches!(answer, Answer::Status(_)) {
            return Some(Keep::Stale);
        }
        if connection.is_cut() {
            return None;
        }
        let start = clock::now();
        let ended = connection.ended_within(IDLE);
        let idle = ended.then(|| clock::now().saturating_duration_since(start));
        Some(Keep::Keeps(idle))
    }

    /// The first of these sizes that is not answered as a request of usual size is.
    fn least(
        &mut self,
        address: &Address,
        sizes: &[usize],
        question: impl Fn(usize) -> (String, Question),
    ) -> Option<(usize, Answer)> {
        for &size in sizes {
            let (name, question) = question(size);
            self.one(address, &name, &question);
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
        let head = Question::new("OPTIONS")
            .closing()
            .with("Expect", "100-continue")
            .with("Content-Length", "1");
        let Ok(mut connection) = Connection::open(address) else {
            return self.note(NAME, Answer::Unreachable);
        };
        let sent = connection.write(&head.bytes(Protocol::Http));
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

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
        let manners = ask(
            &server(|head| match head {
                head if head.len() > 5_000 => None,
                head if head.lines().count() > 102 => Some("HTTP/1.1 431 Too Many\r\n\r\n"),
                head if head.contains("chunked") => {
                    Some("HTTP/1.1 411 No\r\nContent-Length: 0\r\n\r\n")
                }
                head if head.contains("Expect") => Some(
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                ),
                _ => Some(
                    "HTTP/1.1 200 OK\r\nServer: small/1.0\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
                ),
            }),
            Protocol::Http,
        );
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
    fn an_answer_without_an_end_tells_nothing_of_the_connection() {
        let endless = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\nx";
        let address = server(move |_| Some(endless));
        let mut manners = Manners::default();
        let (connection, head) = manners.one(&address, "GET /", &Question::new("GET"));
        assert!(head.is_some(), "{manners:?}");
        assert_eq!(manners.after_answer(&mut connection.unwrap()), None);
    }

    #[test]
    fn a_full_backlog_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let _held = crate::socket_file::tests::full_backlog(&path);
        let manners = ask(&Address::Unix(path), Protocol::Http);
        assert_eq!(manners.refusal, Some(Refusal::Slow));
    }

    #[test]
    fn nobody_there_is_one_request_and_no_more() {
        // Held, so that nobody else gets it meanwhile.
        let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let held = held.unwrap();
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        held.bind(&any.into()).unwrap();
        let port = held.local_addr().unwrap().as_socket().unwrap().port();
        let nobody = Address::Tcp {
            host: "127.0.0.1".into(),
            port,
        };
        let manners = ask(&nobody, Protocol::Http);
        assert_eq!(manners.asked.len(), 1);
        assert_eq!(manners.asked[0].answer, Answer::Unreachable);
        assert_eq!(manners.keep, None);
    }
}

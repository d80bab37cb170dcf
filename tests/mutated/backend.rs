//! A backend that writes down what it reads, complains of what no backend should ever get, and answers as the
//! path says, well or badly.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::common::{PATIENCE, dice::Dice};

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Behaviour {
    Length,
    Chunked,
    UntilClose,
    /// By HTTP/1.0.
    Old,
    OldUntilClose,
    /// With interim answers before.
    Hints,
    NoContent,
    NotModified,
    /// In pieces, with pauses.
    Slow,
    /// With another answer behind, that nobody has asked for.
    Doubled,
    /// Before the request's body has been read, which is then.
    Early,
    /// The same, but the connection is closed.
    EarlyClose,
    EarlyReset,
    /// The body breaks off.
    Cut,
    CutChunks,
    /// No answer.
    Nothing,
    TwoLengths,
    BadChunk,
}

pub use Behaviour::*;

/// All of them, the usual ones several times.
pub const BEHAVIOURS: [Behaviour; 26] = [
    Length,
    Length,
    Length,
    Length,
    Length,
    Chunked,
    Chunked,
    Chunked,
    Chunked,
    UntilClose,
    Old,
    OldUntilClose,
    Hints,
    Hints,
    NoContent,
    NotModified,
    Slow,
    Doubled,
    Early,
    EarlyClose,
    EarlyReset,
    Cut,
    CutChunks,
    Nothing,
    TwoLengths,
    BadChunk,
];

/// In which words it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Uwsgi,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub body: u64,
    /// All of its body came.
    pub whole: bool,
}

/// See the module's documentation.
pub struct Backend {
    pub address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    seen: Mutex<HashMap<String, Vec<Seen>>>,
    problems: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands for a body.
pub fn hash(bytes: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The body of the answer to this request.
pub fn answer_to(id: &str, body: u64) -> Vec<u8> {
    let filler = [0, 10, 1000, 5000, 70_000, 300_000][hash(id) as usize % 6];
    let mut answer = format!("{id}:{body:x}:").into_bytes();
    answer.resize(answer.len() + filler, b'x');
    answer
}

trait Wire: Read + Write + Send {
    fn end(&self);
}

impl Wire for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Wire for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Backend {
    /// On a port of its own, or on this socket. It ends with the process.
    pub fn start(protocol: Protocol, socket: Option<&Path>) -> Self {
        let state = Arc::<State>::default();
        let serve = {
            let state = state.clone();
            move |wire: Box<dyn Wire>| {
                let state = state.clone();
                std::thread::spawn(move || {
                    let _ = Conn::new(wire, &state).serve(protocol);
                });
            }
        };
        let address = match socket {
            None => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
                let address = listener.local_addr().expect("an address").to_string();
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let _ = stream.set_nodelay(true);
                        let _ = stream.set_read_timeout(Some(PATIENCE));
                        serve(Box::new(stream));
                    }
                });
                address
            }
            Some(path) => {
                let listener = UnixListener::bind(path).expect("a socket");
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let _ = stream.set_read_timeout(Some(PATIENCE));
                        serve(Box::new(stream));
                    }
                });
                format!("unix:{}", path.display())
            }
        };
        Self { address, state }
    }

    /// What came since the last time, by the requests' ids.
    pub fn take(&self) -> HashMap<String, Vec<Seen>> {
        std::mem::take(&mut locked(&self.state.seen))
    }

    /// What no backend should have got.
    pub fn problems(&self) -> Vec<String> {
        locked(&self.state.problems).clone()
    }
}

/// A head, in either protocol.
#[derive(Debug, Default)]
struct Asked {
    method: String,
    target: String,
    length: Option<usize>,
    chunked: bool,
    /// No other request may follow.
    last: bool,
}

struct Conn<'a> {
    wire: Box<dyn Wire>,
    state: &'a State,
    read: Vec<u8>,
}

impl<'a> Conn<'a> {
    fn new(wire: Box<dyn Wire>, state: &'a State) -> Self {
        Self {
            wire,
            state,
            read: Vec::new(),
        }
    }

    fn problem(&self, text: String) -> io::Error {
        locked(&self.state.problems).push(text.clone());
        io::Error::other(text)
    }

    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 65536];
        let count = self.wire.read(&mut buffer)?;
        self.read.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < count {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.read.split_off(count);
        Ok(std::mem::replace(&mut self.read, rest))
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.take(end + 2)?;
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn serve(mut self, protocol: Protocol) -> io::Result<()> {
        loop {
            if self.read.is_empty() && !self.fill()? {
                return Ok(());
            }
            let asked = match protocol {
                Protocol::Http => self.http()?,
                Protocol::Uwsgi => self.uwsgi()?,
            };
            if !self.exchange(&asked)? || asked.last {
                // Whatever comes now was not asked for.
                self.wire.end();
                if self.fill().unwrap_or(false) {
                    return Err(self.problem(format!("bytes behind {asked:?}: {:?}", self.read)));
                }
                return Ok(());
            }
        }
    }

    fn http(&mut self) -> io::Result<Asked> {
        let first = self
            .line()
            .map_err(|_| self.problem(format!("half a head: {:?}", self.read)))?;
        let mut asked = Asked::default();
        let words: Vec<&str> = first.split(' ').collect();
        let [method, target, "HTTP/1.1"] = words[..] else {
            return Err(self.problem(format!("a line {first:?}")));
        };
        (asked.method, asked.target) = (method.to_owned(), target.to_owned());
        let mut hosts = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(": ") else {
                return Err(self.problem(format!("a field {line:?} of {first}")));
            };
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            let control = |b: u8| (b < b' ' && b != b'\t') || b == 0x7f;
            if !name.bytes().all(plain) || value.bytes().any(control) {
                return Err(self.problem(format!("a field {line:?} of {first}")));
            }
            let twice = match name {
                "host" => {
                    hosts += 1;
                    hosts > 1
                }
                "content-length" => asked
                    .length
                    .replace(value.parse().unwrap_or(usize::MAX))
                    .is_some(),
                "transfer-encoding" => {
                    std::mem::replace(&mut asked.chunked, true) || value != "chunked"
                }
                "te" | "expect" | "keep-alive" | "proxy-connection" | "upgrade" => true,
                "connection" => {
                    asked.last = value == "close";
                    false
                }
                _ => false,
            };
            if twice {
                return Err(self.problem(format!("{line:?} in {first}")));
            }
        }
        if hosts != 1 || asked.chunked && asked.length.is_some() {
            return Err(self.problem(format!("{hosts} hosts, {asked:?}")));
        }
        Ok(asked)
    }

    fn uwsgi(&mut self) -> io::Result<Asked> {
        let header = self.take(4)?;
        if (header[0], header[3]) != (0, 0) {
            return Err(self.problem(format!("a packet {header:?}")));
        }
        let vars = self.take(usize::from(u16::from_le_bytes([header[1], header[2]])))?;
        let mut rest = &vars[..];
        let mut texts = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_le_bytes(*length));
            if length > after.len() {
                return Err(self.problem(format!("a packet that is too short: {vars:?}")));
            }
            texts.push(String::from_utf8_lossy(&after[..length]).into_owned());
            rest = &after[length..];
        }
        let mut asked = Asked {
            last: true,
            ..Asked::default()
        };
        let mut known = std::collections::HashSet::new();
        for pair in texts.chunks(2) {
            let [name, value] = pair else {
                return Err(self.problem(format!("a name without a value: {texts:?}")));
            };
            let framing = matches!(
                &name[..],
                "HTTP_CONTENT_LENGTH" | "HTTP_TRANSFER_ENCODING" | "HTTP_PROXY"
            );
            if framing || !known.insert(name.clone()) {
                return Err(self.problem(format!("{name} in {texts:?}")));
            }
            match &name[..] {
                "REQUEST_METHOD" => asked.method.clone_from(value),
                "REQUEST_URI" => asked.target.clone_from(value),
                "CONTENT_LENGTH" if !value.is_empty() => asked.length = value.parse().ok(),
                _ => {}
            }
        }
        if !known.contains("HTTP_HOST") {
            return Err(self.problem(format!("no host: {texts:?}")));
        }
        Ok(asked)
    }

    /// The body; `None` if it broke off.
    fn body(&mut self, asked: &Asked) -> io::Result<Option<Vec<u8>>> {
        let torn = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Ok(None),
            _ => Err(error),
        };
        if let Some(length) = asked.length {
            return self.take(length).map(Some).or_else(torn);
        }
        let mut body = Vec::new();
        if !asked.chunked {
            return Ok(Some(body));
        }
        loop {
            let line = match self.line() {
                Ok(line) => line,
                Err(error) => return torn(error),
            };
            let Ok(size) = usize::from_str_radix(&line, 16) else {
                return Err(self.problem(format!("a chunk of {line:?}")));
            };
            let chunk = match self.take(size + 2) {
                Ok(chunk) => chunk,
                Err(error) => return torn(error),
            };
            if !chunk.ends_with(b"\r\n") {
                return Err(self.problem(format!("the end of a chunk of {line}")));
            }
            if size == 0 {
                return Ok(Some(body));
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    /// Writes it in pieces of random sizes.
    fn send(&mut self, bytes: &[u8], dice: &mut Dice) -> io::Result<()> {
        if dice.once_in(2) {
            return self.wire.write_all(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let size = [1, 2, 3, 50, 5000, 50_000][dice.roll(6)].min(rest.len());
            self.wire.write_all(&rest[..size])?;
            rest = &rest[size..];
        }
        Ok(())
    }

    /// One request and its answer; whether another may follow.
    fn exchange(&mut self, asked: &Asked) -> io::Result<bool> {
        let path = asked.target.split('?').next().unwrap_or_default();
        let mut parts = path.split('/').skip(1);
        let (Some(id), Some(behaviour), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(self.problem(format!("nobody has sent {asked:?}")));
        };
        let Some(behaviour) = BEHAVIOURS
            .iter()
            .find(|one| format!("{one:?}") == behaviour)
        else {
            return Err(self.problem(format!("nobody has sent {asked:?}")));
        };
        let early = matches!(behaviour, Early | EarlyClose | EarlyReset);
        let body = if early {
            Some(Vec::new())
        } else {
            self.body(asked)?
        };
        let seen = Seen {
            method: asked.method.clone(),
            body: body.as_ref().map_or(0, hash),
            whole: body.is_some() && !early,
        };
        locked(&self.state.seen)
            .entry(id.to_owned())
            .or_default()
            .push(seen);
        let Some(body) = body else {
            return Ok(false);
        };
        let mut dice = Dice::new(hash(id));
        let text = answer_to(id, if early { 0 } else { hash(&body) });
        let bytes = if asked.method == "HEAD" {
            &[][..]
        } else {
            &text
        };
        let id = format!("X-Id: {id}\r\n");
        let length = format!("Content-Length: {}\r\n", text.len());
        let whole = |head: &str, end: &[u8]| [head.as_bytes(), b"\r\n", bytes, end].concat();
        match behaviour {
            Old => {
                self.send(
                    &whole(&format!("HTTP/1.0 200 OK\r\n{id}{length}"), b""),
                    &mut dice,
                )?;
                return Ok(false);
            }
            UntilClose | OldUntilClose => {
                let version = if *behaviour == UntilClose {
                    "1.1"
                } else {
                    "1.0"
                };
                self.send(
                    &whole(&format!("HTTP/{version} 200 OK\r\n{id}"), b""),
                    &mut dice,
                )?;
                return Ok(*behaviour == UntilClose && asked.method == "HEAD");
            }
            Chunked | CutChunks | BadChunk => {
                let head = format!("HTTP/1.1 200 OK\r\n{id}Transfer-Encoding: chunked\r\n\r\n");
                let mut all = head.into_bytes();
                if asked.method != "HEAD" {
                    all.extend(chunks(bytes, &mut dice));
                    match behaviour {
                        CutChunks => all.truncate(all.len() - 3),
                        BadChunk => all.splice(all.len() - 5.., *b"x\r\n").for_each(drop),
                        _ => {}
                    }
                }
                self.send(&all, &mut dice)?;
                return Ok(*behaviour == Chunked || asked.method == "HEAD");
            }
            Hints => {
                let hint = format!(
                    "HTTP/1.1 103 Early Hints\r\n{id}Connection: x-hop\r\nX-Hop: 1\r\n\r\n"
                );
                let invitation = "HTTP/1.1 100 Continue\r\n\r\n";
                let mut all = String::new();
                for _ in 0..=dice.roll(3) {
                    all += dice.pick(&[&hint[..], &hint, invitation]);
                }
                self.send(
                    &whole(&format!("{all}HTTP/1.1 200 OK\r\n{id}{length}"), b""),
                    &mut dice,
                )?;
            }
            NoContent => self.send(
                format!("HTTP/1.1 204 No Content\r\n{id}\r\n").as_bytes(),
                &mut dice,
            )?,
            NotModified => {
                let head = format!("HTTP/1.1 304 Not Modified\r\n{id}Content-Length: 77\r\n\r\n");
                self.send(head.as_bytes(), &mut dice)?;
            }
            Slow => {
                let all = whole(&format!("HTTP/1.1 200 OK\r\n{id}{length}"), b"");
                for piece in [&all[..10], &all[10..50], &all[50..]] {
                    std::thread::sleep(Duration::from_millis(5));
                    self.wire.write_all(piece)?;
                }
            }
            // In one write: what comes too late is taken for the answer to the next, by everybody.
            Doubled if text.len() < 4000 => {
                let second = b"HTTP/1.1 200 OK\r\nX-Id: evil\r\nContent-Length: 4\r\n\r\nevil";
                self.wire
                    .write_all(&whole(&format!("HTTP/1.1 200 OK\r\n{id}{length}"), second))?;
                return Ok(false);
            }
            Length | Doubled => self.send(
                &whole(&format!("HTTP/1.1 200 OK\r\n{id}{length}"), b""),
                &mut dice,
            )?,
            Early => {
                self.wire
                    .write_all(&whole(&format!("HTTP/1.1 200 OK\r\n{id}{length}"), b""))?;
                return Ok(self.body(asked)?.is_some());
            }
            EarlyClose | EarlyReset => {
                let head = format!("HTTP/1.1 200 OK\r\n{id}{length}Connection: close\r\n");
                self.wire.write_all(&whole(&head, b""))?;
                if *behaviour == EarlyClose {
                    self.wire.end();
                    while self.fill()? {
                        self.read.clear();
                    }
                }
                return Err(io::ErrorKind::Other.into());
            }
            Cut => {
                let head = format!("HTTP/1.1 200 OK\r\n{id}Content-Length: 999999\r\n");
                self.send(&whole(&head, b""), &mut dice)?;
                return Ok(asked.method == "HEAD");
            }
            Nothing => return Ok(false),
            TwoLengths => {
                let head = format!("HTTP/1.1 200 OK\r\n{id}{length}Content-Length: 1\r\n");
                self.send(&whole(&head, b""), &mut dice)?;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A body in chunks of random sizes, with extensions and trailers here and there.
pub fn chunks(body: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut all = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let size = [1, 7, 100, 5000, 70_000][dice.roll(5)].min(rest.len());
        let size_text = match dice.roll(4) {
            0 => format!("{size:x}"),
            1 => format!("{size:X}"),
            2 => format!("000{size:x}"),
            _ => format!(
                "{size:x}{}",
                dice.pick(&["", ";a", ";a=b", ";a=\"q; \"", " ; a=b"])
            ),
        };
        all.extend_from_slice(size_text.as_bytes());
        all.extend_from_slice(b"\r\n");
        all.extend_from_slice(&rest[..size]);
        all.extend_from_slice(b"\r\n");
        rest = &rest[size..];
    }
    let end = dice.pick(&[
        "0\r\n\r\n",
        "000\r\n\r\n",
        "0;a=b\r\n\r\n",
        "0\r\nX-Sum: 1\r\n\r\n",
    ]);
    all.extend_from_slice(end.as_bytes());
    all
}

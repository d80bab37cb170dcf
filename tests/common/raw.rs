//! A scripted backend: a closure answers, byte for byte.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{PATIENCE, ports::own_port};

/// See the module's documentation.
#[derive(Debug)]
pub struct Raw {
    address: String,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    connections: AtomicUsize,
    requests: Mutex<Vec<Received>>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The number of its connection, from 0.
    pub connection: usize,
    /// The request line and the fields, as they came.
    pub head: String,
    pub body: Vec<u8>,
}

impl Received {
    /// The names of the fields in their order, in lower case.
    pub fn names(&self) -> Vec<String> {
        self.fields().into_iter().map(|(name, _)| name).collect()
    }

    pub fn fields(&self) -> Vec<(String, String)> {
        self.head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect()
    }

    /// A field's value; several lines are joined with a comma.
    pub fn header(&self, name: &str) -> Option<String> {
        let fields = self.fields();
        let values: Vec<&str> = fields
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// `GET /path HTTP/1.1`
    pub fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap_or_default()
    }
}

/// A connection at the scripted backend.
#[derive(Debug)]
pub struct Conn {
    pub stream: TcpStream,
    /// From 0.
    pub number: usize,
    state: Arc<State>,
    read: Vec<u8>,
}

impl Conn {
    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 65536];
        let count = self.stream.read(&mut buffer)?;
        self.read.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    /// The next request with its body; `None` at the end.
    pub fn request(&mut self) -> Option<Received> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill().ok()? {
                return None;
            }
        };
        let rest = self.read.split_off(end);
        let head = std::mem::replace(&mut self.read, rest);
        let mut received = Received {
            connection: self.number,
            head: String::from_utf8_lossy(&head).into_owned(),
            body: Vec::new(),
        };
        if let Some(length) = received.header("content-length") {
            let length: usize = length.parse().ok()?;
            while self.read.len() < length {
                if !self.fill().ok()? {
                    return None;
                }
            }
            let rest = self.read.split_off(length);
            received.body = std::mem::replace(&mut self.read, rest);
        } else if received.header("transfer-encoding").is_some() {
            // As it is on the wire: the framing is what is looked at.
            while !self.read.ends_with(b"0\r\n\r\n") {
                if !self.fill().ok()? {
                    return None;
                }
            }
            received.body = std::mem::take(&mut self.read);
        }
        self.state
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(received.clone());
        Some(received)
    }

    /// Sends these bytes; whether they could be sent.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// 200 with this body.
    pub fn ok(&mut self, body: &str) -> bool {
        self.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// Waits for the other side's end; whether it came within this time, without a byte before it.
    pub fn sees_end_within(&mut self, time: Duration) -> bool {
        if !self.read.is_empty() || self.stream.set_read_timeout(Some(time)).is_err() {
            return false;
        }
        let end = match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
        end
    }

    /// Waits for the other side's end; whether it is a RST, and not a FIN.
    pub fn ends_in_a_reset(&mut self) -> bool {
        let mut rest = Vec::new();
        let ended = self.stream.read_to_end(&mut rest);
        ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }

    /// How many bytes came after the last request.
    pub fn early(&self) -> usize {
        self.read.len()
    }

    /// Closes with a RST instead of a FIN.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }

    pub fn close(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Raw {
    /// A backend that has each connection handled by `script`, in a thread of its own.
    pub fn start(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a port"), script)
    }

    /// On a socket that is bound already.
    pub fn on(listener: TcpListener, script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(State::default());
        let script = Arc::new(script);
        let acceptor = std::thread::spawn({
            let state = state.clone();
            move || {
                for stream in listener.incoming() {
                    if state.stop.load(SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let _ = stream.set_read_timeout(Some(PATIENCE));
                    let _ = stream.set_write_timeout(Some(PATIENCE));
                    let _ = stream.set_nodelay(true);
                    let (state, script) = (state.clone(), script.clone());
                    std::thread::spawn(move || {
                        // Somebody who only looked whether anybody is here does not count.
                        if !matches!(stream.peek(&mut [0]), Ok(1)) {
                            return;
                        }
                        script(Conn {
                            stream,
                            number: state.connections.fetch_add(1, SeqCst),
                            state,
                            read: Vec::new(),
                        });
                    });
                }
            }
        });
        Self {
            address,
            state,
            acceptor: Some(acceptor),
        }
    }

    /// A backend that answers each request with `answer`, and keeps its connections.
    pub fn answering(answer: impl Fn(&Received) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start(move |mut conn| {
            while let Some(request) = conn.request() {
                if !conn.send(answer(&request)) {
                    return;
                }
            }
        })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many connections there have been over which something was sent.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// All requests that have arrived.
    pub fn requests(&self) -> Vec<Received> {
        self.state
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.state.stop.store(true, SeqCst);
        // Wakes the acceptor, which then closes the socket.
        let _ = TcpStream::connect(&self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// An address on loopback where nobody else listens: bound for as long as the listener lives, and
/// refused as soon as it is dropped, or from [`refuse`] on. See [`own_port`] for who gets it then.
pub fn reserved_port() -> (TcpListener, String) {
    let held = own_port();
    held.listen(128).expect("it listens");
    let listener = TcpListener::from(held);
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

/// Ends listening, but holds the port: from here on connections are refused, and no other test's server gets it.
pub fn refuse(listener: &TcpListener) {
    rustix::net::shutdown(listener, rustix::net::Shutdown::Both).expect("it listened");
}

/// Listens again.
pub fn accept(listener: &TcpListener) {
    rustix::net::listen(listener, 128).expect("the port is still held");
}

/// A backend that answers when the test says so.
#[derive(Debug)]
pub struct Held {
    backend: Raw,
    allowed: Arc<(Mutex<usize>, Condvar)>,
}

impl Held {
    pub fn start() -> Self {
        let allowed = Arc::new((Mutex::new(0), Condvar::new()));
        let backend = Raw::start({
            let allowed = allowed.clone();
            move |mut conn| {
                while conn.request().is_some() {
                    let (count, changed) = &*allowed;
                    let count = count.lock().unwrap_or_else(PoisonError::into_inner);
                    let (mut count, timeout) = changed
                        .wait_timeout_while(count, PATIENCE, |count| *count == 0)
                        .unwrap_or_else(PoisonError::into_inner);
                    if timeout.timed_out() {
                        return;
                    }
                    *count -= 1;
                    drop(count);
                    if !conn.ok("ok") {
                        return;
                    }
                }
            }
        });
        Self { backend, allowed }
    }

    /// Lets so many more answers go.
    pub fn release(&self, count: usize) {
        let (allowed, changed) = &*self.allowed;
        *allowed.lock().unwrap_or_else(PoisonError::into_inner) += count;
        changed.notify_all();
    }

    pub fn address(&self) -> &str {
        self.backend.address()
    }

    pub fn connections(&self) -> usize {
        self.backend.connections()
    }

    pub fn requests(&self) -> Vec<Received> {
        self.backend.requests()
    }
}

//! Backends that misbehave, one kind in each file, on sockets of their own. [`Peer::heal`] makes any
//! of them a well-behaved one; dropping it closes everything.
#![allow(dead_code)]

pub mod closes;
pub mod closes_idle;
pub mod deaf;
pub mod early_answer;
pub mod endless_head;
pub mod garbage_after;
pub mod half_body;
pub mod half_head;
pub mod informational;
pub mod not_http;
pub mod resets;
pub mod silent;
pub mod slow;
pub mod switches;
pub mod trickle;
pub mod two_lengths;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// What a healed peer answers.
pub const GOOD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\ngood\n";

/// A head is never longer in these tests.
const HEAD_MAX: usize = 64 * 1024;

/// A backend: a listener, and a thread for each connection.
pub struct Peer {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    accepted: AtomicUsize,
    asked: AtomicUsize,
}

#[derive(Default)]
struct State {
    healed: bool,
    stopped: bool,
    /// To be shut down at the end.
    open: Vec<TcpStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Each connection is served by `fault`, until the peer is healed. Its error ends the connection.
    pub fn start(fault: impl Fn(&mut Conn) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::on(listener, fault)
    }

    /// The same, on a socket that listens already.
    pub fn on(
        listener: TcpListener,
        fault: impl Fn(&mut Conn) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let fault = Arc::new(fault);
        let acceptor = {
            let shared = shared.clone();
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    let mut state = shared.lock();
                    if state.stopped {
                        return;
                    }
                    state.open.retain(|open| open.peer_addr().is_ok());
                    state.open.push(stream.try_clone().expect("a descriptor"));
                    let healed = state.healed;
                    drop(state);
                    let (shared, fault) = (shared.clone(), fault.clone());
                    std::thread::spawn(move || {
                        let mut conn = Conn { stream, shared };
                        let _ = stream_options(&conn.stream);
                        // Somebody who only looked whether anybody is here does not count.
                        if !matches!(conn.stream.peek(&mut [0]), Ok(1)) {
                            return;
                        }
                        conn.shared.accepted.fetch_add(1, Relaxed);
                        let _ = if healed {
                            well_behaved(&mut conn)
                        } else {
                            fault(&mut conn)
                        };
                        conn.close();
                    });
                }
            })
        };
        Self {
            addr,
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// From now on it serves as it should; what it still held it lets go.
    pub fn heal(&self) {
        self.shared.lock().healed = true;
        self.shared.changed.notify_all();
    }

    /// `host:port`
    pub fn address(&self) -> String {
        self.addr.to_string()
    }

    /// How many connections it has accepted over which something was sent.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Relaxed)
    }

    /// How many requests' heads it has read.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Relaxed)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stopped = true;
            for open in state.open.drain(..) {
                let _ = open.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn stream_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Nothing here waits for longer, not even in a broken test.
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))
}

/// A request at a time, with its body, until the other side closes.
fn well_behaved(conn: &mut Conn) -> io::Result<()> {
    loop {
        conn.request()?;
        conn.send(GOOD)?;
    }
}

/// One connection that a peer has accepted.
pub struct Conn {
    stream: TcpStream,
    shared: Arc<Shared>,
}

impl Conn {
    /// Reads a request's head.
    pub fn head(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
            if head.len() > HEAD_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        self.shared.asked.fetch_add(1, Relaxed);
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    /// Reads a request, head and body, of which only Content-Length is understood.
    pub fn request(&mut self) -> io::Result<String> {
        let head = self.head()?;
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse::<u64>().ok())
            .unwrap_or(0);
        io::copy(&mut (&mut self.stream).take(length), &mut io::sink())?;
        Ok(head)
    }

    /// Sends all of it.
    pub fn send(&mut self, text: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(text.as_ref())
    }

    /// Waits until the other side closes or resets, reading what still comes.
    pub fn wait_for_close(&mut self) {
        let _ = io::copy(&mut self.stream, &mut io::sink());
    }

    /// Does nothing, until the peer is healed or dropped.
    pub fn sleep(&mut self) {
        let state = self.shared.lock();
        drop(
            self.shared
                .changed
                .wait_while(state, |state| !state.healed && !state.stopped),
        );
    }

    /// Pauses; false if the peer was healed or dropped meanwhile.
    pub fn pause(&mut self, pause: Duration) -> bool {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, pause, |state| !state.healed && !state.stopped);
        waited.is_ok_and(|(_, timeout)| timeout.timed_out())
    }

    /// Ends the connection with an RST.
    pub fn reset(&mut self) {
        let mut state = self.shared.lock();
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        // The last descriptor of the socket must go for the RST to be sent: the clone goes first.
        let own = self.stream.peer_addr().ok();
        state.open.retain(|open| open.peer_addr().ok() != own);
    }

    /// Ends it with a FIN, or with what [`Conn::reset`] asked for.
    fn close(self) {
        let own = self.stream.peer_addr().ok();
        let mut state = self.shared.lock();
        state.open.retain(|open| open.peer_addr().ok() != own);
    }
}

//! Where clients come in.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    pin::pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    connection::serve,
    connections::{Connections, Counted},
    live::{Phase, Shared},
};
use crate::{
    backend::Stream,
    config::{Address, Config},
    socket_file::{SocketFile, make_room},
};

/// Connections that the kernel holds for us until they are accepted; it caps this by `somaxconn`.
const BACKLOG: i32 = 4096;
/// First pause when the process or the machine is out of descriptors or memory; doubles to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Descriptors that are not for clients and their backends: a quarter, within these bounds.
const SPARE_MIN: u64 = 32;
const SPARE_MAX: u64 = 1024;

/// The sockets that systemd passed. They are looked up once: the environment forgets them.
static PASSED: LazyLock<Mutex<Passed>> = LazyLock::new(|| {
    let process = std::env::var("LISTEN_PID").ok();
    Mutex::new(Passed {
        are_ours: process.is_some_and(|pid| pid == std::process::id().to_string()),
        sockets: listenfd::ListenFd::from_env(),
    })
});

struct Passed {
    sockets: listenfd::ListenFd,
    /// Whether they were passed to this very process, so that no descriptor of its own is among them.
    are_ours: bool,
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket; its file is removed at the end.
    Unix(UnixListener, SocketFile),
    /// TCP, by systemd.
    InheritedTcp(TcpListener),
    /// A Unix socket, by systemd.
    InheritedUnix(UnixListener),
}

impl Listener {
    /// Binds an address. A name with several addresses is bound once, to the first that works; several passed
    /// sockets may have the same name. `all` are all addresses to listen on: if there is an IPv4 address with
    /// the same port among them, `[::]` is for IPv6 alone.
    ///
    /// # Errors
    /// If the address is taken, not ours, or not permitted.
    pub fn bind(address: &Address, all: &[Address]) -> io::Result<Vec<Self>> {
        match address {
            Address::Tcp { host, port } => {
                let mut last = None;
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    let only_v6 = address.is_ipv6() && has_v4(all, *port);
                    match bind_tcp(address, only_v6) {
                        Ok(listener) => return Ok(vec![Self::Tcp(listener)]),
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.unwrap_or_else(|| ErrorKind::AddrNotAvailable.into()))
            }
            Address::Unix(path) => bind_unix(path).map(|listener| vec![listener]),
            Address::Fd(name) => inherited(name),
        }
    }

    /// Whether the socket was given to us, and outlives us.
    pub fn is_inherited(&self) -> bool {
        matches!(self, Self::InheritedTcp(_) | Self::InheritedUnix(_))
    }

    /// The same for the runtime that this is called in.
    ///
    /// # Errors
    /// If the socket cannot be used with the runtime.
    pub fn open(self) -> io::Result<Open> {
        let is_inherited = self.is_inherited();
        let socket = match self {
            Self::Tcp(bound) | Self::InheritedTcp(bound) => {
                // A socket that we were given may accept connections to other ports (IP_TRANSPARENT), and has
                // the options that its creator chose. So each of its connections is asked.
                let own = match is_inherited {
                    true => None,
                    false => bound.local_addr().ok(),
                };
                OpenSocket::Tcp(tokio::net::TcpListener::from_std(bound)?, own)
            }
            Self::Unix(bound, file) => OpenSocket::Unix {
                listener: tokio::net::UnixListener::from_std(bound)?,
                _file: Some(file),
            },
            Self::InheritedUnix(bound) => OpenSocket::Unix {
                listener: tokio::net::UnixListener::from_std(bound)?,
                _file: None,
            },
        };
        Ok(Open {
            socket,
            is_inherited,
        })
    }

    /// The address it is bound to, as one would write it to connect.
    pub fn local_address(&self) -> String {
        match self {
            Self::Tcp(listener) | Self::InheritedTcp(listener) => listener
                .local_addr()
                .map_or_else(|_| "?".to_owned(), |address| address.to_string()),
            Self::Unix(_, file) => format!("unix:{}", file.path().display()),
            Self::InheritedUnix(listener) => listener
                .local_addr()
                .ok()
                .and_then(|address| Some(format!("unix:{}", address.as_pathname()?.display())))
                .unwrap_or_else(|| "an inherited socket".to_owned()),
        }
    }
}

/// A bound socket in the runtime that accepts from it.
#[derive(Debug)]
pub struct Open {
    socket: OpenSocket,
    /// Whether the socket was given to us, and outlives us.
    pub is_inherited: bool,
}

#[derive(Debug)]
enum OpenSocket {
    /// With the address, where all that is accepted has the same.
    Tcp(tokio::net::TcpListener, Option<SocketAddr>),
    Unix {
        listener: tokio::net::UnixListener,
        /// It goes when this is dropped.
        _file: Option<SocketFile>,
    },
}

/// Whether one of these is an IPv4 address with this port.
fn has_v4(all: &[Address], wanted: u16) -> bool {
    all.iter().any(|address| match address {
        Address::Tcp { host, port } => {
            *port == wanted && wanted != 0 && host.parse::<Ipv4Addr>().is_ok()
        }
        Address::Unix(_) | Address::Fd(_) => false,
    })
}

fn bind_tcp(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // On Linux accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    make_room(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(Listener::Unix(socket.into(), SocketFile::of(path)))
}

/// The sockets that systemd passed by this name: `sd_listen_fds_with_names(3)`. All sockets of a socket unit
/// have the same name.
fn inherited(name: &str) -> io::Result<Vec<Listener>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut listeners = Vec::new();
    for (at, _) in names.split(':').enumerate().filter(|(_, it)| *it == name) {
        listeners.extend(take(&mut passed.sockets, at)?);
    }
    if listeners.is_empty() {
        return Err(io::Error::new(
            ErrorKind::NotFound,
            format!("no socket named {name} was passed (LISTEN_FDNAMES={names:?})"),
        ));
    }
    Ok(listeners)
}

/// Closes what systemd passed and nobody listens on: the command of `exec` would have it too. Says which these were.
pub fn close_unused() {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    if !passed.are_ours {
        return;
    }
    let names: Vec<&str> = names.split(':').collect();
    for at in 0..passed.sockets.len() {
        let name = names.get(at);
        let sockets = &mut passed.sockets;
        let is_closed = sockets.take_tcp_listener(at).is_ok_and(|it| it.is_some())
            || sockets.take_unix_listener(at).is_ok_and(|it| it.is_some())
            || sockets.take_udp_socket(at).is_ok_and(|it| it.is_some())
            || sockets.take_unix_datagram(at).is_ok_and(|it| it.is_some());
        if is_closed {
            tracing::warn!(
                name,
                "a socket was passed that server.listen does not name: whoever connects to it is not answered"
            );
        }
    }
}

fn take(passed: &mut listenfd::ListenFd, at: usize) -> io::Result<Option<Listener>> {
    // Only trying tells whether it is TCP or Unix; a try that fails leaves the socket in its place.
    if let Ok(Some(listener)) = passed.take_tcp_listener(at) {
        listener.set_nonblocking(true)?;
        return Ok(Some(Listener::InheritedTcp(listener)));
    }
    let Some(listener) = passed.take_unix_listener(at)? else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    Ok(Some(Listener::InheritedUnix(listener)))
}

/// How many clients the process has descriptors for, of `limit` in all.
///
/// Each that is served needs one for its backend, and each that uploads one for its body where there is a
/// spool; the admin server and the reload need some, too.
pub fn room_for_clients(limit: u64, config: &Config) -> usize {
    let spare = (limit / 4).clamp(SPARE_MIN, SPARE_MAX);
    let room = limit.saturating_sub(spare);
    let served = match config.limit.dry_run {
        true => u64::MAX,
        false => u64::from(config.limit.max) * config.backend.endpoints.len().max(1) as u64,
    };
    let mut room = room - served.min(room / 2);
    if config.buffers.spool_dir.is_some() {
        room /= 2;
    }
    usize::try_from(room).unwrap_or(usize::MAX).max(1)
}

/// How many descriptors the process may have.
pub fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A connection on its way to another thread's runtime.
#[derive(Debug)]
pub enum Accepted {
    /// TCP, with the client's address and our port.
    Tcp(std::net::TcpStream, Option<SocketAddr>, Option<u16>),
    /// Unix.
    Unix(UnixStream),
}

/// A data-plane thread, as the acceptor sees it.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its open connections.
    pub connections: Arc<Connections>,
    /// `None` for the acceptor's own thread.
    pub sender: Option<tokio::sync::mpsc::UnboundedSender<(Accepted, Counted)>>,
}

/// Accepts connections and gives each to the thread that has the fewest.
#[derive(Debug)]
pub struct Acceptor {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

impl Acceptor {
    /// An acceptor for these threads, one of which it runs on.
    pub fn new(shared: Arc<Shared>, workers: Vec<Worker>) -> Self {
        Self { shared, workers }
    }

    /// Accepts from `listener` until `over`. Whoever has been accepted by then is handed over still.
    pub async fn run(&self, listener: Open, over: impl Future<Output = ()>) {
        let mut over = pin!(over);
        let mut pauses = Pauses::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut over => return,
                accepted = accept(&listener.socket) => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    pauses.reset();
                    self.make_room().await;
                    self.hand_over(accepted);
                }
                Err(error) => tokio::select! {
                    () = &mut over => return,
                    () = pauses.after(&error) => {}
                },
            }
        }
    }

    /// At `max_connections`, or at what the descriptors allow, the client that has been idle for the
    /// longest goes. When none is idle, the others wait in the kernel's backlog.
    async fn make_room(&self) {
        loop {
            let open: usize = self.workers.iter().map(|w| w.connections.open()).sum();
            let config = self.shared.live().config.clone();
            // Asked each time: a reload may have raised it.
            let room = room_for_clients(descriptors(), &config);
            if open < config.server.max_connections.min(room)
                || self.shared.phase() == Phase::Closing
            {
                return;
            }
            let oldest = self
                .workers
                .iter()
                .filter_map(|worker| Some((worker.connections.oldest()?, worker)))
                .min_by_key(|&(rank, _)| rank);
            if let Some((_, worker)) = oldest {
                worker.connections.close_oldest();
            }
            // Another thread's connections do not wake us: look again now and then.
            let closed = self.workers[0].connections.one_closed();
            let _ = tokio::time::timeout(Duration::from_millis(50), closed).await;
        }
    }

    fn least_loaded(&self) -> &Worker {
        self.workers
            .iter()
            .min_by_key(|worker| worker.connections.open())
            .unwrap_or(&self.workers[0])
    }

    fn hand_over(&self, Newcomer { stream, peer, port }: Newcomer) {
        let worker = self.least_loaded();
        let counted = worker.connections.count();
        let Some(sender) = &worker.sender else {
            tokio::spawn(serve(stream, peer, port, self.shared.clone(), counted));
            return;
        };
        let accepted = match stream {
            Stream::Tcp(stream) => stream
                .into_std()
                .map(|stream| Accepted::Tcp(stream, peer, port)),
            Stream::Unix(stream) => stream.into_std().map(Accepted::Unix),
        };
        if let Ok(accepted) = accepted {
            let _ = sender.send((accepted, counted));
        }
    }
}

/// A connection that was accepted.
struct Newcomer {
    stream: Stream,
    /// The client's address.
    peer: Option<SocketAddr>,
    /// Ours.
    port: Option<u16>,
}

async fn accept(socket: &OpenSocket) -> io::Result<Newcomer> {
    match socket {
        OpenSocket::Tcp(listener, own) => {
            let (stream, peer) = listener.accept().await?;
            let local = own.or_else(|| {
                let _ = stream.set_nodelay(true);
                stream.local_addr().ok()
            });
            Ok(Newcomer {
                stream: Stream::Tcp(stream),
                peer: Some(peer),
                port: local.map(|local| local.port()),
            })
        }
        OpenSocket::Unix { listener, .. } => {
            let (stream, _) = listener.accept().await?;
            Ok(Newcomer {
                stream: Stream::Unix(stream),
                peer: None,
                port: None,
            })
        }
    }
}

/// Serves what the acceptor sends to this thread.
pub async fn serve_accepted(
    mut accepted: tokio::sync::mpsc::UnboundedReceiver<(Accepted, Counted)>,
    shared: Arc<Shared>,
) {
    while let Some((stream, counted)) = accepted.recv().await {
        let (stream, peer, port) = match stream {
            Accepted::Tcp(stream, peer, port) => (
                tokio::net::TcpStream::from_std(stream).map(Stream::Tcp),
                peer,
                port,
            ),
            Accepted::Unix(stream) => (
                tokio::net::UnixStream::from_std(stream).map(Stream::Unix),
                None,
                None,
            ),
        };
        if let Ok(stream) = stream {
            tokio::spawn(serve(stream, peer, port, shared.clone(), counted));
        }
    }
}

/// What to do when accept fails: nothing for a client that left, a growing pause for a lack of
/// descriptors.
#[derive(Debug, Default)]
struct Pauses {
    next: Option<Duration>,
}

impl Pauses {
    fn reset(&mut self) {
        self.next = None;
    }

    async fn after(&mut self, error: &io::Error) {
        if matches!(
            error.kind(),
            ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionRefused
        ) {
            return;
        }
        if self.next.is_none() {
            tracing::error!(%error, "cannot accept connections; trying again");
        }
        let pause = self.next.unwrap_or(FIRST_PAUSE);
        self.next = Some((pause * 2).min(LAST_PAUSE));
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{admission::Limiter, clock, observe::Metrics, proxy::live::queue_settings};

    #[test]
    fn idle_clients_need_one_descriptor_each() {
        let mut config = Config::default();
        config.limit.max = 1000;
        assert_eq!(room_for_clients(20_000, &config), 20_000 - 1024 - 1000);
        assert_eq!(
            room_for_clients(64, &config),
            16,
            "as many may be served as come in"
        );
        config.buffers.spool_dir = Some("/tmp".into());
        assert_eq!(
            room_for_clients(20_000, &config),
            (20_000 - 1024 - 1000) / 2
        );
        config.limit.dry_run = true;
        assert_eq!(room_for_clients(20_000, &config), (20_000 - 1024) / 4);
    }

    /// Binds all hosts to one port: another one, if somebody takes it in between.
    fn bind_all(hosts: &[&str]) -> Option<(u16, Vec<Vec<Listener>>)> {
        let attempt = || {
            let free = TcpListener::bind("[::]:0").ok()?.local_addr().ok()?.port();
            let parse = |host| format!("{host}:{free}").parse().expect("an address");
            let all: Vec<Address> = hosts.iter().map(parse).collect();
            let bound = all.iter().map(|address| Listener::bind(address, &all));
            Some((free, bound.collect::<io::Result<_>>().ok()?))
        };
        std::iter::repeat_with(attempt).take(20).flatten().next()
    }

    #[test]
    fn both_families_are_listened_on_with_one_port() {
        if TcpListener::bind("[::1]:0").is_err() {
            return;
        }
        for hosts in [
            &["0.0.0.0", "[::]"][..],
            &["[::]", "0.0.0.0"],
            &["[::]", "127.0.0.1"],
            // Alone it is for both.
            &["[::]"],
        ] {
            let (port, _bound) = bind_all(hosts).unwrap_or_else(|| panic!("{hosts:?}"));
            for peer in ["127.0.0.1", "::1"] {
                std::net::TcpStream::connect((peer, port)).expect("it is listened on");
            }
        }
    }

    fn shared() -> Arc<Shared> {
        shared_for(Config::default())
    }

    fn shared_for(config: Config) -> Arc<Shared> {
        let limiter = Limiter::new(queue_settings(&config), None, clock::now());
        Shared::new(Arc::new(config), limiter, Arc::new(Metrics::new()))
    }

    /// Three threads, of which the test is each.
    struct Threads {
        open: Vec<Arc<Connections>>,
        accepted: Vec<mpsc::UnboundedReceiver<(Accepted, Counted)>>,
        address: String,
        acceptor: tokio::task::JoinHandle<()>,
        over: Option<tokio::sync::oneshot::Sender<()>>,
    }

    impl Threads {
        fn start() -> Self {
            Self::start_with(shared())
        }

        fn start_with(shared: Arc<Shared>) -> Self {
            let (mut workers, mut accepted) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                let (sender, receiver) = mpsc::unbounded_channel();
                accepted.push(receiver);
                workers.push(Worker {
                    connections: Arc::default(),
                    sender: Some(sender),
                });
            }
            let open = workers.iter().map(|w| w.connections.clone()).collect();
            let address = "127.0.0.1:0".parse().expect("an address");
            let mut bound = Listener::bind(&address, &[]).expect("a port");
            let listener = bound.remove(0);
            let address = listener.local_address();
            let acceptor = Acceptor::new(shared, workers);
            let (over, is_over) = tokio::sync::oneshot::channel();
            let listener = listener.open().expect("a runtime");
            Self {
                open,
                accepted,
                address,
                acceptor: tokio::spawn(async move {
                    let over = async { drop(is_over.await) };
                    acceptor.run(listener, over).await;
                }),
                over: Some(over),
            }
        }

        fn counts(&self) -> Vec<usize> {
            self.open.iter().map(|open| open.open()).collect()
        }

        /// So many more clients, once they have been accepted.
        async fn connect(&self, clients: usize) -> Vec<tokio::net::TcpStream> {
            let all = self.counts().iter().sum::<usize>() + clients;
            let mut streams = Vec::new();
            for _ in 0..clients {
                let stream = tokio::net::TcpStream::connect(&self.address).await;
                streams.push(stream.expect("a connection"));
            }
            let until = clock::now() + Duration::from_secs(20);
            while self.counts().iter().sum::<usize>() < all {
                assert!(clock::now() < until, "{:?} of {all}", self.counts());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            streams
        }
    }

    /// A balancer opens its connections at once and keeps them for days: where they are is where the work
    /// is.
    #[tokio::test]
    async fn connections_are_spread_evenly_and_gaps_are_filled() {
        let mut threads = Threads::start();
        let _first = threads.connect(30).await;
        assert_eq!(threads.counts(), [10, 10, 10], "a burst is spread evenly");
        // All connections of one thread end, as those of one balancer do that goes away.
        for _ in 0..10 {
            threads.accepted[1].try_recv().expect("it was handed over");
        }
        assert_eq!(threads.counts(), [10, 0, 10]);
        let _second = threads.connect(8).await;
        assert_eq!(threads.counts(), [10, 8, 10], "all to the one with room");
        let _third = threads.connect(8).await;
        assert_eq!(threads.counts(), [12, 12, 12]);
        threads.acceptor.abort();
    }

    /// It was taken from the backlog, where it could have waited for a successor.
    #[tokio::test]
    async fn who_waits_for_room_at_the_end_is_handed_over_still() {
        let mut config = Config::default();
        config.server.max_connections = 1;
        let mut threads = Threads::start_with(shared_for(config));
        let _first = threads.connect(1).await;
        let first = threads.accepted[0].try_recv().expect("it was handed over");
        let _second = tokio::net::TcpStream::connect(&threads.address).await;
        // The connection is in the backlog by now, and accepted whenever the acceptor is polled.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(threads.over.take());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!threads.acceptor.is_finished(), "there is no room yet");
        drop(first);
        (&mut threads.acceptor).await.expect("no panic");
        let handed_over = threads.accepted.iter_mut().map(|it| it.try_recv().is_ok());
        assert_eq!(handed_over.filter(|is_one| *is_one).count(), 1);
    }

    /// Both go without saying for each connection, so nobody asks the kernel for them.
    #[tokio::test]
    async fn what_is_accepted_has_the_listeners_port_and_no_delay() {
        let mut threads = Threads::start();
        let _client = threads.connect(1).await;
        let (accepted, _) = threads.accepted[0].try_recv().expect("it was handed over");
        let Accepted::Tcp(stream, _, port) = accepted else {
            unreachable!("it is TCP");
        };
        assert!(stream.nodelay().expect("it can be asked"));
        let local = stream.local_addr().expect("it has an address");
        assert_eq!(port, Some(local.port()));
        threads.acceptor.abort();
    }
}

//! A connection to the backend, TCP or Unix.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionread},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, send,
        socket_with, sockopt::set_socket_linger,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::Error;
use crate::{config::Address, sense::Connection};

/// The first pause between attempts while a backlog is full, and the longest: each is twice the one
/// before, because many may be waiting.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);
const BACKLOG_PAUSE_MAX: Duration = Duration::from_millis(40);
/// On the loopback interface a connection takes microseconds, unless the backlog is full and the kernel has
/// dropped the SYN. The kernel would send that again after a second, and then at ever longer intervals; we
/// connect anew instead.
const LOOPBACK_PATIENCE: Duration = Duration::from_millis(25);

/// The thread whose reactor looks at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home(u32);

thread_local! {
    static HERE: Home = {
        static HOMES: AtomicU32 = AtomicU32::new(0);
        Home(HOMES.fetch_add(1, Relaxed))
    };
}

impl Home {
    /// This thread.
    pub(super) fn here() -> Self {
        HERE.with(|&here| here)
    }
}

/// A byte stream of either family.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// The error that the kernel has noted, if there is one.
    ///
    /// # Errors
    /// If the socket cannot be asked.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Self::Tcp(stream) => stream.take_error(),
            Self::Unix(stream) => stream.take_error(),
        }
    }

    /// How the kernel knows the connection.
    pub(super) fn connection(&self) -> Option<Connection> {
        Some(match self {
            Self::Tcp(stream) => Connection::Tcp {
                ours: stream.local_addr().ok()?,
                theirs: stream.peer_addr().ok()?,
            },
            Self::Unix(stream) => Connection::Unix {
                ours: u32::try_from(rustix::fs::fstat(stream).ok()?.st_ino).ok()?,
            },
        })
    }

    /// The same socket, looked at by this thread's reactor from now on.
    pub(super) fn move_here(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
        })
    }

    /// Sends small parts at once, without waiting until the other side has confirmed those before.
    pub(super) fn hurry(&self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
        }
    }

    /// Whether there is a byte to be read, or the end, without waiting for the reactor to say so.
    pub(super) fn has_something(&self) -> bool {
        !matches!(self.peek(), Err(Errno::AGAIN | Errno::INTR))
    }

    /// Whether nothing is to be read, as far as the reactor has heard.
    pub(super) fn is_quiet(&self) -> bool {
        let peek = || self.peek().map_err(io::Error::from);
        let looked = match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, peek),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, peek),
        };
        looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Whether the other side has closed, and nothing is left to be read.
    pub(super) fn has_ended(&self) -> bool {
        self.peek() == Ok(0)
    }

    /// Whether the connection has broken, whatever is still to be read, or the other side has closed with less than so
    /// many bytes to be read.
    pub fn is_broken(&self, lacks: u64) -> bool {
        #[cfg(target_os = "linux")]
        const CLOSED: PollFlags = PollFlags::RDHUP;
        #[cfg(not(target_os = "linux"))]
        const CLOSED: PollFlags = PollFlags::empty();
        let mut one = [PollFd::new(self, CLOSED)];
        if poll(&mut one, Some(&Timespec::default())).is_err() {
            return false;
        }
        let seen = one[0].revents();
        seen.intersects(PollFlags::ERR | PollFlags::HUP)
            || (seen.intersects(CLOSED) && ioctl_fionread(self).is_ok_and(|there| there < lacks))
    }

    /// Makes closing it a reset, which leaves nothing behind where all has been said on both sides. Otherwise
    /// whoever closes a TCP connection first keeps its port in TIME_WAIT for a minute, and there are 28,000
    /// ports: with a new connection for each request, 470 requests a second would use them up.
    ///
    /// It also keeps a peer from taking the end of the connection for the end of an answer.
    pub fn leave_nothing(&self) {
        if let Self::Tcp(stream) = self {
            // It is closed all the same.
            let _ = set_socket_linger(stream, Some(Duration::ZERO));
        }
    }

    /// Sends what the socket takes, without waiting for the reactor to report it writable: of a new socket
    /// the reactor does not know that yet, and of a full one it learns it late.
    ///
    /// # Errors
    /// If it takes nothing now, or never will.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match self {
            Self::Tcp(stream) => send(stream, bytes, flags),
            Self::Unix(stream) => send(stream, bytes, flags),
        };
        sent.map_err(io::Error::from)
    }

    /// The opposite of [`leave_nothing`](Self::leave_nothing): what is closed in good order looks so.
    pub fn leave_in_order(&self) {
        if let Self::Tcp(stream) = self {
            let _ = set_socket_linger(stream, None);
        }
    }

    fn peek(&self) -> Result<usize, Errno> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mut byte = [0_u8];
        let peeked = match self {
            Self::Tcp(stream) => recv(stream, &mut byte, flags),
            Self::Unix(stream) => recv(stream, &mut byte, flags),
        };
        peeked.map(|(count, _)| count)
    }
}

/// An address on this machine, to which a connection is established at once.
#[derive(Debug)]
pub(super) enum Local {
    Tcp(SocketAddr),
    /// `localhost`, which is either address of the loopback interface.
    Named {
        port: u16,
        /// It was that of IPv6 that accepted last.
        v6: AtomicBool,
    },
    Unix(SocketAddrUnix),
}

impl Local {
    /// The address, if it is one.
    pub(super) fn of(address: &Address) -> Option<Self> {
        match address {
            // RFC 6761 6.3: no resolver has to be asked.
            Address::Tcp { host, port } if host.eq_ignore_ascii_case("localhost") => {
                Some(Self::Named {
                    port: *port,
                    v6: AtomicBool::new(false),
                })
            }
            Address::Tcp { host, port } => {
                let ip: IpAddr = host.parse().ok()?;
                ip.is_loopback().then(|| Self::Tcp((ip, *port).into()))
            }
            Address::Unix(path) => SocketAddrUnix::new(path).ok().map(Self::Unix),
            Address::Fd(_) => None,
        }
    }

    /// Connects without waiting for anything: `None` if that would be necessary.
    pub(super) fn connect(&self) -> Option<Result<Stream, Error>> {
        match self.begin() {
            Ok((stream, true)) => Some(Ok(stream)),
            Ok((_, false)) => None,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                None
            }
            Err(error) => Some(Err(Error::connecting(error))),
        }
    }

    /// Connects once: [`ErrorKind::WouldBlock`] if the backlog is full.
    async fn connect_patiently(&self) -> io::Result<Stream> {
        let (stream, connected) = self.begin()?;
        if let (Stream::Tcp(tcp), false) = (&stream, connected) {
            match tokio::time::timeout(LOOPBACK_PATIENCE, tcp.writable()).await {
                Ok(ready) => ready?,
                Err(_) => return Err(ErrorKind::WouldBlock.into()),
            }
            if let Some(error) = tcp.take_error()? {
                return Err(error);
            }
            refuse_itself(tcp, tcp.peer_addr()?)?;
        }
        Ok(stream)
    }

    /// Begins to connect; says whether the connection is established already.
    fn begin(&self) -> io::Result<(Stream, bool)> {
        let of_tcp = |(stream, connected)| (Stream::Tcp(stream), connected);
        match self {
            Self::Tcp(address) => begin_tcp(*address).map(of_tcp),
            Self::Named { port, v6 } => {
                let address = |v6| -> SocketAddr {
                    match v6 {
                        true => (Ipv6Addr::LOCALHOST, *port).into(),
                        false => (Ipv4Addr::LOCALHOST, *port).into(),
                    }
                };
                let last = v6.load(Relaxed);
                let begun = begin_tcp(address(last)).or_else(|error| {
                    let other = begin_tcp(address(!last)).map_err(|_| error)?;
                    v6.store(!last, Relaxed);
                    Ok::<_, io::Error>(other)
                });
                begun.map(of_tcp)
            }
            Self::Unix(address) => Ok((Stream::Unix(connect_unix(address)?), true)),
        }
    }
}

/// Connects within `timeout`. A full backlog is waited for: the workers are busy, not gone.
///
/// # Errors
/// [`Error::Connect`] at once when nothing listens, [`Error::Shortage`] when nothing is left here to connect with,
/// [`Error::ConnectTimeout`] otherwise.
pub async fn connect(address: &Address, timeout: Duration) -> Result<Stream, Error> {
    let stream = dial(Local::of(address).as_ref(), address, timeout).await?;
    stream.hurry();
    Ok(stream)
}

/// The same, for who calls [`Stream::hurry`] himself when it is time, and knows the address if it is a local one.
pub(super) async fn dial(
    local: Option<&Local>,
    address: &Address,
    timeout: Duration,
) -> Result<Stream, Error> {
    let attempt = async {
        let mut pause = BACKLOG_PAUSE;
        loop {
            let connected = match local {
                Some(local) => local.connect_patiently().await,
                None => connect_once(address).await,
            };
            match connected {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(BACKLOG_PAUSE_MAX);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return other.map_err(Error::connecting),
            }
        }
    };
    tokio::time::timeout(timeout, attempt)
        .await
        .unwrap_or(Err(Error::ConnectTimeout))
}

async fn connect_once(address: &Address) -> io::Result<Stream> {
    match address {
        // (For a literal address no resolver is asked: its lookups would run on a thread pool.)
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            if let Ok(theirs) = stream.peer_addr() {
                refuse_itself(&stream, theirs)?;
            }
            Ok(Stream::Tcp(stream))
        }
        Address::Unix(_) | Address::Fd(_) => Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("{address} cannot be connected to"),
        )),
    }
}

/// Begins to connect on the loopback interface; says whether the connection is established already. There the
/// handshake is over when the call returns, and a second call reports its result. Only a connection that has
/// to wait needs the reactor, a timer and another turn of the task.
fn begin_tcp(address: SocketAddr) -> io::Result<(TcpStream, bool)> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    let connect = || rustix::net::connect(&socket, &address);
    let mut connected = connect();
    if connected == Err(Errno::INPROGRESS) {
        connected = connect();
    }
    let connected = match connected {
        Ok(()) => true,
        Err(Errno::ALREADY | Errno::INPROGRESS | Errno::INTR) => false,
        Err(error) => return Err(error.into()),
    };
    if connected {
        refuse_itself(&socket, address)?;
    }
    Ok((TcpStream::from_std(socket.into())?, connected))
}

/// If nothing listens at a port of the ephemeral range, the kernel may choose that very port for our end, and
/// the socket is then connected to itself: what is sent comes back as the answer, and the backend cannot
/// listen there.
fn refuse_itself(socket: &impl AsFd, theirs: SocketAddr) -> io::Result<()> {
    let ours = rustix::net::getsockname(socket)?;
    if SocketAddr::try_from(ours) == Ok(theirs) {
        // Nothing of it stays.
        let _ = set_socket_linger(socket, Some(Duration::ZERO));
        return Err(Errno::CONNREFUSED.into());
    }
    Ok(())
}

/// A Unix socket connects at once, or its backlog is full: [`ErrorKind::WouldBlock`].
fn connect_unix(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, address)?;
    UnixStream::from_std(socket.into())
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn localhost_is_whichever_address_accepts() {
        for (ip, at) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let Ok(listener) = TcpListener::bind(ip) else {
                continue;
            };
            let port = listener.local_addr().expect("it is bound").port();
            let host = "Localhost".to_owned();
            let local = Local::of(&Address::Tcp { host, port }).expect("it is local");
            for _ in 0..2 {
                assert!(matches!(local.connect(), Some(Ok(_))), "{ip}");
                assert!(matches!(&local, Local::Named { v6, .. } if v6.load(Relaxed) == at));
            }
            drop(listener);
            let refused = local.connect().expect("nothing is waited for");
            assert!(
                matches!(refused, Err(Error::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused)
            );
        }
    }

    #[test]
    fn a_connection_with_itself_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let theirs = listener.local_addr().expect("it is bound");
        let other = std::net::TcpStream::connect(theirs).expect("it listens");
        assert!(refuse_itself(&other, theirs).is_ok());

        let socket = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        rustix::net::bind(&socket, &any).expect("a port");
        let own = rustix::net::getsockname(&socket).expect("it is bound");
        let own = SocketAddr::try_from(own).expect("an address");
        rustix::net::connect(&socket, &own).expect("the kernel allows it");
        let refused = refuse_itself(&socket, own).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
    }
}

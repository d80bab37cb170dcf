//! Listening sockets and what waits in them, and the other ends of connections, from the kernel itself:
//! `NETLINK_SOCK_DIAG`, sock_diag(7). Needs no privilege; shows the sockets of the own network namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::net::{
    self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
};

use super::listener::{Local, Socket};

/// `SOCK_DIAG_BY_FAMILY`, linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR`, `NLMSG_DONE`, linux/netlink.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST`, and with `NLM_F_ROOT | NLM_F_MATCH` all that fit.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// `TCP_LISTEN` as a set of states; Unix sockets use the same number.
const LISTENING: u32 = 1 << 10;
const AF_UNIX: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// `UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_RQLEN`, linux/unix_diag.h.
const SHOW: u32 = 0x1 | 0x2 | 0x10;
/// `UNIX_DIAG_NAME`, `UNIX_DIAG_VFS`, `UNIX_DIAG_RQLEN`.
const NAME: u16 = 0;
const VFS: u16 = 1;
const RQLEN: u16 = 4;
/// `UDIAG_SHOW_PEER`, and `UNIX_DIAG_PEER`.
const SHOW_PEER: u32 = 0x4;
const PEER: u16 = 2;
/// nlmsghdr, inet_diag_msg and unix_diag_msg, bytes.
const HEADER: usize = 16;
const INET_MESSAGE: usize = 72;
const UNIX_MESSAGE: usize = 16;
/// The kernel answers at once; this is for the day it does not.
const PATIENCE: Duration = Duration::from_millis(100);
/// One datagram of a dump: the kernel fills what it is given, up to 32 KiB.
const BUFFER: usize = 32 << 10;

/// An open conversation with the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// # Errors
    /// Where the kernel has no sock_diag, or a sandbox forbids it.
    pub fn open() -> io::Result<Self> {
        Self::of(netlink::SOCK_DIAG)
    }

    /// With another part of the kernel, perhaps, which understands none of this.
    pub(super) fn of(part: Protocol) -> io::Result<Self> {
        let socket = net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(part),
        )?;
        net::sockopt::set_socket_timeout(&socket, net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER],
            sequence: 0,
        })
    }

    /// The TCP sockets that listen on this port, IPv4 and IPv6.
    ///
    /// # Errors
    /// As the kernel has them.
    pub fn tcp(&mut self, port: u16) -> io::Result<Vec<Socket>> {
        let mut found = self.dump(&inet_request(AF_INET, port), parse_inet)?;
        // A kernel without IPv6 has no such family.
        found.extend(
            self.dump(&inet_request(AF_INET6, port), parse_inet)
                .unwrap_or_default(),
        );
        found.retain(|socket| matches!(socket.local, Local::Tcp(_, at) if at == port));
        Ok(found)
    }

    /// All Unix sockets that listen.
    ///
    /// # Errors
    /// As the kernel has them.
    pub fn unix(&mut self) -> io::Result<Vec<Socket>> {
        self.dump(&unix_request(0, SHOW), parse_unix)
    }

    /// The Unix socket with this inode; `None` if it is gone.
    ///
    /// # Errors
    /// As the kernel has them.
    pub fn unix_by_inode(&mut self, inode: u32) -> io::Result<Option<Socket>> {
        one(self.ask(&unix_request(inode, SHOW), REQUEST, parse_unix))
    }

    /// The inode of the socket that a TCP connection has at `here`, whose other end is `there`; `None` while
    /// nobody has accepted it, and when it is gone.
    ///
    /// # Errors
    /// As the kernel has them.
    pub fn accepted_tcp(&mut self, here: SocketAddr, there: SocketAddr) -> io::Result<Option<u64>> {
        let found = self.ask(&pair_request(here, there), REQUEST, parse_inet);
        Ok(one(found)?.map(|socket| socket.inode).filter(|it| *it > 0))
    }

    /// The inode of the other end of a Unix connection; `None` as above.
    ///
    /// # Errors
    /// As the kernel has them.
    pub fn accepted_unix(&mut self, ours: u32) -> io::Result<Option<u64>> {
        let found = self.ask(&unix_request(ours, SHOW_PEER), REQUEST, parse_peer);
        Ok(one(found)?.filter(|it| *it > 0))
    }

    fn dump(&mut self, request: &[u8], parse: Parse<Socket>) -> io::Result<Vec<Socket>> {
        self.ask(request, REQUEST | DUMP, parse)
    }

    fn ask<T>(&mut self, request: &[u8], flags: u16, parse: Parse<T>) -> io::Result<Vec<T>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + request.len());
        message.extend(((HEADER + request.len()) as u32).to_ne_bytes());
        message.extend(BY_FAMILY.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(request);
        net::sendto(
            &self.socket,
            &message,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        let mut found = Vec::new();
        loop {
            let (read, _) = net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
            let answers = self.buffer.get(..read).unwrap_or_default();
            let more = gather(answers, self.sequence, parse, &mut found)?;
            if !more || flags & DUMP == 0 {
                return Ok(found);
            }
        }
    }
}

type Parse<T> = fn(&[u8]) -> Option<T>;

/// The answer about one socket, which may be gone.
fn one<T>(found: io::Result<Vec<T>>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(found.into_iter().next()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the messages of one datagram; whether more datagrams follow.
fn gather<T>(
    mut bytes: &[u8],
    sequence: u32,
    parse: Parse<T>,
    found: &mut Vec<T>,
) -> io::Result<bool> {
    while let (Some(length), Some(kind), Some(of)) =
        (u32_at(bytes, 0), u16_at(bytes, 4), u32_at(bytes, 8))
    {
        let length = length as usize;
        if length < HEADER || length > bytes.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let body = &bytes[HEADER..length];
        // Answers to an earlier question that was given up are passed over.
        if of == sequence {
            match kind {
                // A dump that fails is done, too: tcp_diag may be missing where inet_diag is there.
                DONE | ERROR => {
                    let code = u32_at(body, 0).unwrap_or_default().cast_signed();
                    return match code {
                        0 => Ok(false),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                BY_FAMILY => found.extend(parse(body)),
                _ => {}
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// inet_diag_req_v2: listening TCP sockets on one port.
fn inet_request(family: u8, port: u16) -> Vec<u8> {
    tcp_request(family, LISTENING, [port, 0], [[0; 16]; 2])
}

/// inet_diag_req_v2: the one TCP socket with these ends.
fn pair_request(here: SocketAddr, there: SocketAddr) -> Vec<u8> {
    let (here, there) = (canonical(here), canonical(there));
    let family = if here.is_ipv4() { AF_INET } else { AF_INET6 };
    let octets = |ip| match ip {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
        IpAddr::V6(ip) => ip.octets(),
    };
    let ports = [here.port(), there.port()];
    let addresses = [octets(here.ip()), octets(there.ip())];
    tcp_request(family, u32::MAX, ports, addresses)
}

fn tcp_request(family: u8, states: u32, ports: [u16; 2], addresses: [[u8; 16]; 2]) -> Vec<u8> {
    let mut request = vec![family, IPPROTO_TCP, 0, 0];
    request.extend(states.to_ne_bytes());
    // inet_diag_sockid: ports and addresses in network order, the interface, no cookie.
    request.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    request.extend(addresses.concat());
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    request
}

/// IPv4 as such, also where a socket writes it as IPv6: the kernel looks it up so.
fn canonical(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

/// unix_diag_req: listening sockets, or the one with this inode in whatever state, and what to show of it.
fn unix_request(inode: u32, show: u32) -> Vec<u8> {
    let mut request = vec![AF_UNIX, 0, 0, 0];
    request.extend(LISTENING.to_ne_bytes());
    request.extend(inode.to_ne_bytes());
    request.extend(show.to_ne_bytes());
    request.extend([0xff; 8]);
    request
}

fn parse_inet(message: &[u8]) -> Option<Socket> {
    if message.len() < INET_MESSAGE {
        return None;
    }
    let ip = match message[0] {
        AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&message[8..12]).ok()?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&message[8..24]).ok()?)),
        _ => return None,
    };
    let port = u16::from_be_bytes(message[4..6].try_into().ok()?);
    Some(Socket {
        local: Local::Tcp(ip, port),
        inode: u64::from(u32_at(message, 68)?),
        queued: u32_at(message, 56),
        backlog: u32_at(message, 60),
    })
}

fn parse_unix(message: &[u8]) -> Option<Socket> {
    if message.len() < UNIX_MESSAGE || message[0] != AF_UNIX {
        return None;
    }
    let mut socket = Socket {
        local: Local::Unix {
            name: Vec::new(),
            file: None,
        },
        inode: u64::from(u32_at(message, 4)?),
        queued: None,
        backlog: None,
    };
    for (kind, value) in attributes(&message[UNIX_MESSAGE..]) {
        let Local::Unix { name, file } = &mut socket.local else {
            return None;
        };
        match kind {
            NAME => *name = value.strip_suffix(&[0]).unwrap_or(value).to_vec(),
            VFS => *file = u32_at(value, 0).zip(u32_at(value, 4)),
            RQLEN => {
                socket.queued = u32_at(value, 0);
                socket.backlog = u32_at(value, 4);
            }
            _ => {}
        }
    }
    Some(socket)
}

/// The inode of the other end.
fn parse_peer(message: &[u8]) -> Option<u64> {
    if message.len() < UNIX_MESSAGE || message[0] != AF_UNIX {
        return None;
    }
    let mut attributes = attributes(&message[UNIX_MESSAGE..]);
    let (_, value) = attributes.find(|(kind, _)| *kind == PEER)?;
    u32_at(value, 0).map(u64::from)
}

/// What follows a message's fixed part: rtattr, each with its kind and its value.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::{
            fd::AsFd,
            unix::net::{UnixListener, UnixStream},
        },
    };

    use super::*;

    fn inode(socket: impl AsFd) -> u64 {
        rustix::fs::fstat(socket).expect("its file").st_ino
    }

    #[test]
    fn the_other_end_is_known_once_it_is_accepted() {
        let mut kernel = Netlink::open().expect("sock_diag");
        for address in ["127.0.0.1:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue; // no IPv6 here
            };
            let port = listener.local_addr().expect("its address").port();
            let ours = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
            let here = ours.peer_addr().expect("its address");
            let there = ours.local_addr().expect("its address");
            let mut found = || kernel.accepted_tcp(here, there).expect("an answer");
            assert_eq!(found(), None, "nobody has accepted it");
            let (theirs, _) = listener.accept().expect("a connection");
            assert_eq!(found(), Some(inode(&theirs)));
        }
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("s")).expect("a socket");
        let ours = UnixStream::connect(dir.path().join("s")).expect("a connection");
        let number = u32::try_from(inode(&ours)).expect("an inode");
        let mut found = || kernel.accepted_unix(number).expect("an answer");
        assert_eq!(found(), None, "nobody has accepted it");
        let (theirs, _) = listener.accept().expect("a connection");
        assert_eq!(found(), Some(inode(&theirs)));
        drop((ours, theirs));
        assert_eq!(found(), None, "it is gone");
    }

    #[test]
    fn the_kernel_counts_what_waits_in_a_tcp_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let waiting: Vec<_> = (0..3).map(|_| TcpStream::connect(address)).collect();
        let found = Netlink::open()
            .and_then(|mut kernel| kernel.tcp(address.port()))
            .expect("an answer");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].local, Local::Tcp(address.ip(), address.port()));
        assert_eq!(found[0].queued, Some(3));
        assert!(
            found[0].backlog > Some(0) && found[0].inode > 0,
            "{found:?}"
        );
        drop(waiting);
    }

    #[test]
    fn the_kernel_counts_what_waits_in_a_unix_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("a socket");
        let waiting: Vec<_> = (0..2).map(|_| UnixStream::connect(&path)).collect();
        let mut kernel = Netlink::open().expect("sock_diag");
        let all = kernel.unix().expect("an answer");
        let name = path.as_os_str().as_encoded_bytes();
        let ours = all
            .iter()
            .find(|s| matches!(&s.local, Local::Unix { name: of, .. } if of == name))
            .expect("it is among them");
        assert_eq!(ours.queued, Some(2));
        let again = kernel.unix_by_inode(ours.inode as u32).expect("an answer");
        assert_eq!(again.and_then(|s| s.queued), Some(2));
        drop((listener, waiting));
        let gone = kernel.unix_by_inode(ours.inode as u32).expect("an answer");
        assert_eq!(gone, None);
    }

    #[test]
    fn broken_answers_are_refused_or_passed_over() {
        let mut found = Vec::new();
        let mut message = vec![0; 20];
        message[0] = 200;
        assert!(gather(&message, 0, parse_inet, &mut found).is_err());
        message[0] = 20;
        message[4] = 20;
        // A message that is too short for a socket.
        assert!(gather(&message, 0, parse_inet, &mut found).is_ok_and(|more| more));
        assert!(gather(&message, 0, parse_unix, &mut found).is_ok_and(|more| more));
        assert!(gather(&[1, 2, 3], 0, parse_unix, &mut found).is_ok_and(|more| more));
        assert_eq!(found, []);
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_passed_over() {
        let mut done = vec![0; HEADER];
        done[0] = HEADER as u8;
        done[4] = DONE as u8;
        done[8] = 6;
        let found = &mut Vec::new();
        assert!(gather(&done, 7, parse_inet, found).is_ok_and(|more| more));
        assert!(gather(&done, 6, parse_inet, found).is_ok_and(|more| !more));
        // With what became of it, ENOENT.
        done[0] += 4;
        done.extend((-2_i32).to_ne_bytes());
        let failed = gather(&done, 6, parse_inet, found).expect_err("nobody to ask");
        assert_eq!(failed.kind(), io::ErrorKind::NotFound);
    }
}

//! The socket that the backend listens on: which one it is, and how many wait in it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket},
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::netlink::Netlink;
use crate::config::Address;

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// An address and a port.
    Tcp(IpAddr, u16),
    /// A path as it was given to bind(2), and the inode and device of the file.
    Unix {
        name: Vec<u8>,
        file: Option<(u32, u32)>,
    },
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    pub local: Local,
    /// As in `/proc/PID/fd`: `socket:[INODE]`.
    pub inode: u64,
    /// Connections that nobody has accepted yet.
    pub queued: Option<u32>,
    /// How many may wait.
    pub backlog: Option<u32>,
}

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Netlink,
    /// `/proc/net/tcp` and its like, where netlink is forbidden or does not answer.
    Proc,
}

impl Via {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Netlink => "netlink",
            Self::Proc => "/proc/net",
        }
    }
}

/// The listening sockets of one endpoint: one, or several where processes share a port.
#[derive(Debug)]
pub struct Listener {
    /// Sorted, never empty.
    pub inodes: Vec<u64>,
    /// Connections that wait, over all of them; `None` if the kernel doesn't say.
    pub queued: Option<u32>,
    /// How many may wait.
    pub backlog: Option<u32>,
}

/// Finds the listener of an endpoint again and again.
#[derive(Debug)]
pub struct Lookup {
    target: Target,
    kernel: Option<Netlink>,
}

#[derive(Debug)]
enum Target {
    Tcp { ips: Vec<IpAddr>, port: u16 },
    Unix(std::path::PathBuf),
}

impl Lookup {
    /// # Errors
    /// One sentence, if the endpoint is not on this machine.
    pub fn new(address: &Address) -> Result<Self, String> {
        let target = match address {
            Address::Tcp { host, port } => {
                let ips: Vec<IpAddr> = (host.as_str(), *port)
                    .to_socket_addrs()
                    .map_err(|error| format!("{host} cannot be resolved: {error}"))?
                    .map(|address| address.ip())
                    .filter(is_ours)
                    .collect();
                if ips.is_empty() {
                    return Err(format!("{host} is not this machine"));
                }
                Target::Tcp { ips, port: *port }
            }
            Address::Unix(path) => Target::Unix(path.clone()),
            Address::Fd(_) => return Err("not an address to connect to".to_owned()),
        };
        Ok(Self {
            target,
            kernel: Netlink::open().ok(),
        })
    }

    /// How the kernel is asked.
    pub fn via(&self) -> Via {
        match self.kernel {
            Some(_) => Via::Netlink,
            None => Via::Proc,
        }
    }

    /// The listener now. `before` is the last one found, which saves looking at every Unix socket.
    ///
    /// # Errors
    /// One sentence, if nobody listens there or the kernel does not say.
    pub fn find(&mut self, before: Option<&Listener>) -> Result<Listener, String> {
        let sockets = match &self.target {
            Target::Tcp { ips, port } => {
                let found = by_netlink(&mut self.kernel, |kernel| kernel.tcp(*port))
                    .unwrap_or_else(|| tcp_from_proc(*port));
                choose(found.map_err(|error| error.to_string())?, ips)
            }
            Target::Unix(path) => {
                let path = path.clone();
                self.unix(&path, before)
                    .map_err(|error| format!("{}: {error}", path.display()))?
            }
        };
        let mut inodes: Vec<u64> = sockets.iter().map(|socket| socket.inode).collect();
        inodes.sort_unstable();
        if inodes.is_empty() {
            return Err("nobody listens there, in this network namespace".to_owned());
        }
        let sum = |of: fn(&Socket) -> Option<u32>| sockets.iter().map(of).sum::<Option<u32>>();
        Ok(Listener {
            queued: sum(|socket| socket.queued),
            backlog: sum(|socket| socket.backlog),
            inodes,
        })
    }

    fn unix(&mut self, path: &Path, before: Option<&Listener>) -> io::Result<Vec<Socket>> {
        if self.kernel.is_none() {
            return unix_from_proc(path);
        }
        // Whoever binds the path anew makes a new file, so the old socket is asked for only while the
        // file is the same.
        let file = fs::metadata(path)?;
        let known = before.and_then(|before| before.inodes.first());
        let found = by_netlink(&mut self.kernel, |kernel| {
            if let Some(&inode) = known
                && let Some(socket) = kernel.unix_by_inode(inode as u32)?
                && is_at(&socket, path, &file)
            {
                return Ok(vec![socket]);
            }
            let mut all = kernel.unix()?;
            all.retain(|socket| is_at(socket, path, &file));
            Ok(all)
        });
        found.unwrap_or_else(|| unix_from_proc(path))
    }
}

/// What the kernel answers; `None` where it is not there to be asked, or no longer: one without inet_diag or unix_diag
/// says so only when it is asked.
fn by_netlink<T>(
    kernel: &mut Option<Netlink>,
    question: impl FnOnce(&mut Netlink) -> io::Result<T>,
) -> Option<io::Result<T>> {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    let answer = question(kernel.as_mut()?);
    match &answer {
        Err(error) if !matches!(error.kind(), WouldBlock | TimedOut | Interrupted) => {
            *kernel = None;
            None
        }
        _ => Some(answer),
    }
}

fn is_at(socket: &Socket, path: &Path, file: &fs::Metadata) -> bool {
    let Local::Unix { name, file: vfs } = &socket.local else {
        return false;
    };
    let is_named = name == path.as_os_str().as_encoded_bytes();
    // The kernel's own encoding of a device: 20 bits of minor, above them the major.
    let device = rustix::fs::major(file.dev()) << 20 | rustix::fs::minor(file.dev());
    match vfs {
        // On btrfs and overlayfs, stat(2) tells of another device than the kernel has for itself.
        Some((inode, on)) => {
            u64::from(*inode) == file.ino() & 0xffff_ffff && (*on == device || is_named)
        }
        None => is_named,
    }
}

/// Whether an address belongs to this machine: only such an address can be bound.
fn is_ours(ip: &IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((*ip, 0)).is_ok()
}

/// Of those that listen on a port, those that a connection to one of these addresses ends at: the exact
/// address wins over any address.
fn choose(sockets: Vec<Socket>, ips: &[IpAddr]) -> Vec<Socket> {
    let bound = |socket: &Socket| match socket.local {
        Local::Tcp(ip, _) => ip.to_canonical(),
        Local::Unix { .. } => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    for ip in ips {
        let any_v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let any_v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let own = if ip.is_ipv4() { any_v4 } else { any_v6 };
        for wanted in [ip.to_canonical(), own, any_v6] {
            let mut found = sockets
                .iter()
                .filter(|socket| bound(socket) == wanted)
                .peekable();
            if found.peek().is_some() {
                return found.cloned().collect();
            }
        }
    }
    Vec::new()
}

fn tcp_from_proc(port: u16) -> io::Result<Vec<Socket>> {
    let mut found = parse_tcp(&fs::read_to_string("/proc/net/tcp")?);
    if let Ok(six) = fs::read_to_string("/proc/net/tcp6") {
        found.extend(parse_tcp(&six));
    }
    found.retain(|socket| matches!(socket.local, Local::Tcp(_, at) if at == port));
    Ok(found)
}

/// The listening sockets of `/proc/net/tcp` or `tcp6`.
fn parse_tcp(text: &str) -> Vec<Socket> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        // 0A is TCP_LISTEN.
        if fields.nth(1)? != "0A" {
            return None;
        }
        let (_, queued) = fields.next()?.split_once(':')?;
        let inode = fields.nth(4)?.parse().ok()?;
        let (ip, port) = local.split_once(':')?;
        // Each 32 bits as the machine has them in memory.
        let words: Vec<u8> = (0..ip.len() / 8)
            .filter_map(|i| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok())
            .flat_map(u32::to_ne_bytes)
            .collect();
        let ip = match words.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(words).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(words).ok()?),
            _ => return None,
        };
        Some(Socket {
            local: Local::Tcp(ip, u16::from_str_radix(port, 16).ok()?),
            inode,
            queued: Some(u32::from_str_radix(queued, 16).ok()?),
            backlog: None,
        })
    };
    text.lines().filter_map(line).collect()
}

fn unix_from_proc(path: &Path) -> io::Result<Vec<Socket>> {
    let text = fs::read("/proc/net/unix")?;
    Ok(parse_unix(&String::from_utf8_lossy(&text), path))
}

/// The listening socket at a path, of `/proc/net/unix`; how many wait in it is not written there.
fn parse_unix(text: &str, path: &Path) -> Vec<Socket> {
    // __SO_ACCEPTCON
    const LISTENS: u32 = 0x10000;
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let inode = fields.nth(2)?.parse().ok()?;
        let name = fields.next()?;
        (flags & LISTENS != 0 && Path::new(name) == path).then(|| Socket {
            local: Local::Unix {
                name: name.as_bytes().to_vec(),
                file: None,
            },
            inode,
            queued: None,
            backlog: None,
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn proc_net_tcp_is_read_as_the_kernel_writes_it() {
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000007 00:00000000 00000000     0        0 123456 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F40 0100007F:A0B1 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000000000000 20 4 30 10 -1
garbage
";
        assert_eq!(
            parse_tcp(text),
            [Socket {
                local: Local::Tcp([127, 0, 0, 1].into(), 8000),
                inode: 123_456,
                queued: Some(7),
                backlog: None,
            }]
        );
        let six = "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 9 1 0 100 0 0 10 0\n";
        assert_eq!(
            parse_tcp(six)[0].local,
            Local::Tcp(Ipv6Addr::UNSPECIFIED.into(), 80)
        );
    }

    #[test]
    fn proc_net_unix_is_read_as_the_kernel_writes_it() {
        let text = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 2345 /run/app.sock
0000000000000000: 00000003 00000000 00000000 0001 03 2346 /run/app.sock
0000000000000000: 00000002 00000000 00010000 0001 01 2347
";
        let found = parse_unix(text, Path::new("/run/app.sock"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].inode, 2345);
    }

    #[test]
    fn the_exact_address_wins_over_any_address() {
        let at = |ip: &str, inode| Socket {
            local: Local::Tcp(ip.parse().expect("an address"), 80),
            inode,
            queued: Some(0),
            backlog: None,
        };
        let loopback = ["127.0.0.1".parse().expect("an address")];
        let all = vec![
            at("0.0.0.0", 1),
            at("127.0.0.1", 2),
            at("127.0.0.1", 3),
            at("127.0.0.2", 4),
        ];
        let inodes = |found: Vec<Socket>| found.iter().map(|s| s.inode).collect::<Vec<_>>();
        assert_eq!(inodes(choose(all, &loopback)), [2, 3]);
        assert_eq!(
            inodes(choose(vec![at("0.0.0.0", 1), at("::", 5)], &loopback)),
            [1]
        );
        assert_eq!(inodes(choose(vec![at("::", 5)], &loopback)), [5]);
        assert!(choose(vec![at("127.0.0.2", 4)], &loopback).is_empty());
    }

    #[test]
    fn both_ways_of_asking_find_the_same_listener() {
        // An address of its own: else another test may take the port as soon as it is free.
        let listener = TcpListener::bind("127.0.0.77:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let address = address.parse().expect("an address");
        let mut lookup = Lookup::new(&address).expect("this machine");
        let by_netlink = lookup.find(None).expect("it listens");
        lookup.kernel = None;
        let by_proc = lookup.find(None).expect("it listens");
        assert_eq!(by_netlink.inodes, by_proc.inodes);
        assert_eq!(by_proc.queued, Some(0));
        drop(listener);
        // A child that another test is starting has it open until it runs its program.
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            lookup.find(None).is_err()
        });
        assert!(gone);
    }

    #[test]
    fn a_kernel_that_does_not_answer_such_questions_is_asked_by_proc() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let tcp = listener.local_addr().expect("its address").to_string();
        let dir = tempfile::tempdir().expect("a directory");
        let unix = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&unix).expect("a socket");
        for address in [tcp.parse().expect("an address"), Address::Unix(unix)] {
            let mut lookup = Lookup::new(&address).expect("this machine");
            lookup.kernel = Netlink::of(rustix::net::netlink::USERSOCK).ok();
            assert_eq!(lookup.via(), Via::Netlink);
            let by_proc = lookup.find(None).expect("it listens");
            assert_eq!(lookup.via(), Via::Proc);
            lookup.kernel = Netlink::open().ok();
            let by_netlink = lookup.find(Some(&by_proc)).expect("it listens");
            assert_eq!(lookup.via(), Via::Netlink);
            assert_eq!(by_netlink.inodes, by_proc.inodes);
        }
        let slow = |kind: io::ErrorKind| {
            let mut kernel = Netlink::open().ok();
            by_netlink(&mut kernel, |_| Err::<(), _>(kind.into())).is_some() && kernel.is_some()
        };
        assert!(slow(io::ErrorKind::WouldBlock), "it is asked again");
        assert!(!slow(io::ErrorKind::NotFound));
    }

    #[test]
    fn a_unix_socket_is_known_by_its_file_on_whatever_device_the_kernel_says_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let file = fs::metadata(&path).expect("a file");
        let device = rustix::fs::major(file.dev()) << 20 | rustix::fs::minor(file.dev());
        let inode = file.ino() as u32;
        let name = path.as_os_str().as_encoded_bytes();
        let found = |name: &[u8], file_of: Option<(u32, u32)>| {
            let socket = Socket {
                local: Local::Unix {
                    name: name.to_vec(),
                    file: file_of,
                },
                inode: 1,
                queued: None,
                backlog: None,
            };
            is_at(&socket, &path, &file)
        };
        assert!(found(name, Some((inode, device))));
        assert!(found(b"s", Some((inode, device))), "bound by another name");
        assert!(found(name, Some((inode, device + 1))), "btrfs");
        assert!(!found(b"s", Some((inode, device + 1))));
        assert!(!found(name, Some((inode + 1, device))), "bound anew since");
        assert!(found(name, None));
    }

    #[test]
    fn another_machine_is_not_looked_at() {
        // TEST-NET-1, RFC 5737: nobody's.
        let address = Address::Tcp {
            host: "192.0.2.1".into(),
            port: 80,
        };
        assert!(Lookup::new(&address).is_err_and(|why| why.contains("not this machine")));
    }
}

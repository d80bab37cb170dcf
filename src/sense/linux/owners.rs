//! Which of the backend's processes has accepted a connection.

use std::collections::HashMap;

use super::{netlink::Netlink, process};
use crate::sense::Connection;

/// Finds them out for one backend.
#[derive(Debug)]
pub struct Owners {
    kernel: Netlink,
    master: u32,
}

impl Owners {
    /// For the workers of this process. `None` where the kernel does not tell of connections.
    pub fn of(master: u32) -> Option<Self> {
        let kernel = Netlink::open().ok()?;
        Some(Self { kernel, master })
    }

    /// For each connection the worker that has it; `None` while nobody has accepted it, or if that is not to be
    /// seen. Some microseconds for each connection and each file that a worker has open.
    pub fn whose(&mut self, connections: &[Connection]) -> Vec<Option<u32>> {
        let mut owners = vec![None; connections.len()];
        let mut sought = HashMap::new();
        for (at, connection) in connections.iter().enumerate() {
            let inode = match *connection {
                Connection::Tcp { ours, theirs } => self.kernel.accepted_tcp(theirs, ours),
                Connection::Unix { ours } => self.kernel.accepted_unix(ours),
            };
            if let Ok(Some(inode)) = inode {
                sought.insert(inode, at);
            }
        }
        // Those behind a new master are more expensive to find, and seldom there.
        let behind = |master| process::workers(&process::masters(master));
        let places: [fn(u32) -> Vec<u32>; 2] = [process::children, behind];
        for place in places {
            if sought.is_empty() {
                break;
            }
            for worker in place(self.master) {
                if sought.is_empty() {
                    break;
                }
                for inode in process::socket_inodes(worker).into_iter().flatten() {
                    if let Some(at) = sought.remove(&inode) {
                        owners[at] = Some(worker);
                    }
                }
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_connection_is_its_acceptors() {
        // A child that accepts one connection, says so, and holds it.
        let program = "import socket, sys
s = socket.create_server(('127.0.0.1', 0))
print(s.getsockname()[1], flush=True)
c, _ = s.accept()
print('accepted', flush=True)
sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut said = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut next = || said.next().expect("a line").expect("a line");
        let port: u16 = next().parse().expect("a port");
        let ours = std::net::TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        assert_eq!(next(), "accepted");
        let connection = Connection::Tcp {
            ours: ours.local_addr().expect("its address"),
            theirs: ours.peer_addr().expect("its address"),
        };
        let mut owners = Owners::of(std::process::id()).expect("sock_diag");
        assert_eq!(owners.whose(&[connection]), [Some(child.id())]);
        let elsewhere = Connection::Unix { ours: 1 };
        assert_eq!(
            owners.whose(&[elsewhere, connection]),
            [None, Some(child.id())]
        );
        drop(child.stdin.take());
        child.wait().expect("it ends");
    }
}

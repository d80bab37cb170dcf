//! The admin server's socket.

use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::guard::Peer;
use crate::{
    config::{self, Address, Mutations},
    socket_file::{SocketFile, make_room},
};

/// A bound socket, and who may change something over it.
#[derive(Debug)]
pub struct AdminListener {
    socket: Socket,
    pub(super) mutations: Mutations,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removed with it.
        _file: SocketFile,
    },
}

/// A connection to the admin server.
#[derive(Debug)]
pub(super) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AdminListener {
    /// Binds `admin.listen`. Must be called inside a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the address cannot be bound, or is of the kind `fd:NAME`, which is not taken here.
    pub async fn bind(settings: &config::Admin) -> io::Result<Self> {
        let socket = match &settings.listen {
            Address::Tcp { host, port } => {
                let host = if host.is_empty() { "0.0.0.0" } else { host };
                let host = host.trim_start_matches('[').trim_end_matches(']');
                Socket::Tcp(TcpListener::bind((host, *port)).await?)
            }
            Address::Unix(path) => {
                make_room(path)?;
                let listener = UnixListener::bind(path)?;
                // Who may connect may drain: not everybody on the machine.
                let permitted = fs::set_permissions(path, fs::Permissions::from_mode(0o660));
                let file = SocketFile::of(path);
                permitted?;
                Socket::Unix {
                    listener,
                    _file: file,
                }
            }
            Address::Fd(name) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!(
                        "fd:{name} is a socket that was passed, which the admin server does not take"
                    ),
                ));
            }
        };
        Ok(AdminListener {
            socket,
            mutations: settings.mutations,
        })
    }

    /// The address that was bound, for TCP: tells which port 0 has become.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Connection, Peer)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written whole; waiting to fill a segment only delays them.
                stream.set_nodelay(true)?;
                Ok((Connection::Tcp(stream), Peer::Ip(address.ip())))
            }
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Connection::Unix(stream), Peer::Unix))
            }
        }
    }
}

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
        /// Ours to remove when we bound it; a passed socket has none.
        _file: Option<SocketFile>,
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
    /// When the address cannot be bound, or is of the kind `fd:NAME`: a passed socket comes through
    /// [`AdminListener::from_tcp`] or [`AdminListener::from_unix`].
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
                    _file: Some(file),
                }
            }
            Address::Fd(name) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("fd:{name} is a socket to be passed, not to be bound"),
                ));
            }
        };
        Ok(AdminListener {
            socket,
            mutations: settings.mutations,
        })
    }

    /// Takes over a TCP socket that somebody else has bound.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or registered with the runtime.
    pub fn from_tcp(listener: std::net::TcpListener, mutations: Mutations) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(AdminListener {
            socket: Socket::Tcp(TcpListener::from_std(listener)?),
            mutations,
        })
    }

    /// Takes over a Unix socket that somebody else has bound. Its file is left alone at the end.
    ///
    /// # Errors
    /// As [`AdminListener::from_tcp`].
    pub fn from_unix(
        listener: std::os::unix::net::UnixListener,
        mutations: Mutations,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(AdminListener {
            socket: Socket::Unix {
                listener,
                _file: None,
            },
            mutations,
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

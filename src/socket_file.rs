//! The file of a Unix socket that we listen on.

use std::{
    io::{self, ErrorKind},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// Removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// Of a socket that is bound.
    pub fn of(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes room for a socket: removes one whose process is gone.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] for one that is listened on, [`ErrorKind::AlreadyExists`] for a file that is no
/// socket: both stay.
pub fn make_room(path: &Path) -> io::Result<()> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !there.is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "there is a file already that is no socket",
        ));
    }
    // Not to wait where a backlog is full.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_on_makes_room() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        make_room(&path).expect("there is nothing");

        let listener = UnixListener::bind(&path).expect("a socket");
        let error = make_room(&path).expect_err("it is in use");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        drop(listener);
        make_room(&path).expect("nobody listens");
        assert!(!path.exists());

        std::fs::write(&path, "precious").expect("written");
        let error = make_room(&path).expect_err("it is no socket");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        let text = std::fs::read_to_string(&path).expect("it stays");
        assert_eq!(text, "precious");
    }
}

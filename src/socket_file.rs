//! The file of a Unix socket: one that we listen on, and how to connect to one without waiting for ever.

use std::{
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// Removed when dropped, if it is still the one that was bound: another process may have put its own in its
/// place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// `None` if it could not be looked at.
    identity: Option<Identity>,
}

impl SocketFile {
    /// For a socket that is bound, and whose permissions are set already.
    pub fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: Identity::of(path),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && Identity::of(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Which file it is. An inode's number alone is soon given to another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    since: Since,
}

/// A time that tells a file from another one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Created(SystemTime),
    /// Where the file system does not know that. Changing the file's mode later counts as a change, too, and
    /// the file then stays behind: better than removing one that belongs to another process.
    Changed(i64, i64),
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let there = std::fs::symlink_metadata(path).ok()?;
        let since = match there.created() {
            Ok(created) => Since::Created(created),
            Err(_) => Since::Changed(there.ctime(), there.ctime_nsec()),
        };
        Some(Self {
            device: there.dev(),
            inode: there.ino(),
            since,
        })
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
    // Non-blocking, so as not to wait where the backlog is full.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

/// Connects. `patience` is how long to wait for room in a full backlog, and how long each write may take.
///
/// # Errors
/// [`ErrorKind::TimedOut`] where the backlog stayed full; any that the system has.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // What bounds a write bounds the wait for a place in the backlog, too.
    socket.set_write_timeout(Some(patience))?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(UnixStream::from(OwnedFd::from(socket))),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(io::Error::new(
            ErrorKind::TimedOut,
            "its backlog is full: no connection in time",
        )),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A socket whose backlog is full, for as long as what is returned is held.
    pub(crate) fn full_backlog(path: &Path) -> Vec<Socket> {
        let address = SockAddr::unix(path).expect("an address");
        let socket = || Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        let listener = socket();
        listener.bind(&address).expect("bound");
        listener.listen(0).expect("it listens");
        let mut held = vec![listener];
        loop {
            let client = socket();
            client.set_nonblocking(true).expect("set");
            if client.connect(&address).is_err() {
                return held;
            }
            held.push(client);
        }
    }

    #[test]
    fn a_full_backlog_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let _held = full_backlog(&path);
        let error = connect(&path, Duration::from_millis(50)).expect_err("it is full");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

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

    #[test]
    fn only_the_socket_that_was_bound_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let bind = || {
            let listener = UnixListener::bind(&path).expect("a socket");
            (listener, SocketFile::of(&path))
        };
        let (_old, old_file) = bind();
        std::fs::remove_file(&path).expect("it is there");
        let (_new, new_file) = bind();
        drop(old_file);
        assert!(path.exists(), "it is another's");
        drop(new_file);
        assert!(!path.exists());
    }
}

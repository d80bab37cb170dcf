//! What a platform can show of the backend, in words that every platform shares.

use std::{collections::BTreeMap, time::Instant};

/// The socket that the backend listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerFacts {
    /// Connections that nobody has accepted yet; `None` if it cannot be seen.
    pub queued: Option<u32>,
    /// How many may wait; `None` if it cannot be seen.
    pub backlog: Option<u32>,
    /// How the kernel was asked: `netlink` or `/proc/net`.
    pub via: &'static str,
}

/// The process that owns the listening socket; if several have it open, the one that started the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessFacts {
    /// Its number, as seen from here.
    pub pid: u32,
    /// Its short name.
    pub name: String,
    /// Its arguments, the program first.
    pub command: Vec<String>,
    /// Those of its variables that say something of a server.
    pub environment: BTreeMap<String, String>,
    /// Whether its memory is allocated by the GNU C library, as far as its libraries tell.
    pub allocates_by_glibc: bool,
    /// The names of its threads.
    pub thread_names: Vec<String>,
    /// For how long it has been running, seconds.
    pub age: f64,
    /// The processes that it started. Instead of a new master that takes over from it, those that the new
    /// master started.
    pub children: Vec<ChildFacts>,
}

/// A process that the owner started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChildFacts {
    /// Its number, as seen from here.
    pub pid: u32,
    /// Its arguments.
    pub command: Vec<String>,
    /// Whether it has the listening socket open, so that it may accept.
    pub listens: bool,
}

/// What is remembered from one look to the next, because it is expensive to find out.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The process that owned the socket.
    pub owner: Option<u32>,
    /// See [`Overlap`].
    pub overlap: Option<Overlap>,
}

/// What resident sizes count more than once, because processes share it. To find out, the kernel has to walk
/// all of their page tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// By process.
    pub parts: BTreeMap<u32, Part>,
    /// When it was measured of all of them.
    pub at: Instant,
}

/// The part of one process in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its resident memory, bytes.
    pub resident: u64,
    /// What of that is counted for other processes as well, bytes.
    pub twice: u64,
}

/// The variable that tells a new gunicorn master which process it takes over from: after a USR2 both run, the
/// new one as a child of the old.
pub const TAKES_OVER: &str = "GUNICORN_PID";

/// The variables that Werkzeug's development server gives to the process that it starts for its reloader. Others, such
/// as `WERKZEUG_DEBUG_PIN`, are set by people, whatever the server.
pub const DEVELOPMENT: [&str; 2] = ["WERKZEUG_RUN_MAIN", "WERKZEUG_SERVER_FD"];

/// Whether a variable says something of a server.
pub fn is_telling(variable: &str) -> bool {
    const NAMES: [&str; 6] = [
        "WEB_CONCURRENCY",
        "GUNICORN_CMD_ARGS",
        "GLIBC_TUNABLES",
        "PWD",
        "HOME",
        "XDG_RUNTIME_DIR",
    ];
    NAMES.contains(&variable)
        || DEVELOPMENT.contains(&variable)
        || ["UWSGI_", "GRANIAN_", "MALLOC_"]
            .iter()
            .any(|prefix| variable.starts_with(prefix))
}

/// Whether a process with these files mapped allocates by the GNU C library: musl has another file name, and
/// a replacement allocator would be among the files.
pub fn is_glibc(maps: &str) -> bool {
    const OTHERS: [&str; 3] = ["jemalloc", "tcmalloc", "mimalloc"];
    let has = |file: &str| maps.contains(file);
    (has("/libc.so.6") || has("/libc-2.")) && !OTHERS.into_iter().any(has)
}

/// The whole command in one line, for people; long ones are cut.
pub fn in_one_line(command: &[String]) -> String {
    const MOST: usize = 160;
    let line: String = command
        .join(" ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MOST + 1)
        .collect();
    match line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

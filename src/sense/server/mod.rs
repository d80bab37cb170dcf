//! Which server the backend is, and how many requests it runs in parallel, by its process.
//!
//! Pure: the platform hands over the facts, and a way to read a file as the process would.

mod args;
mod gunicorn;
mod others;
mod uwsgi;

use super::facts::ProcessFacts;
use crate::config::Profile;
use args::Args;

/// When a server takes a connection from the kernel's accept queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Only when it can work on it: what waits in the accept queue is load beyond its slots.
    WhenIdle,
    /// At once: what waits, waits inside of it, and the accept queue shows nothing.
    Eagerly,
    /// Nobody knows.
    Unknown,
}

/// A server that was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// What tidegate knows of its habits.
    pub profile: Profile,
    /// Its name, which says more than the profile where that is `generic`.
    pub name: &'static str,
    /// By what it was recognised: `command line`, `environment`, ….
    pub how: &'static str,
    /// When it accepts.
    pub accepts: Accepts,
    /// Requests that it runs in parallel and how that follows, or why it cannot be said.
    pub slots: Result<Count, String>,
}

impl Server {
    /// Whether it is known to have no slots that could be counted.
    pub fn is_unbounded(&self) -> bool {
        let slots = self.slots.as_ref();
        slots.is_err_and(|why| why.starts_with(UNBOUNDED))
    }
}

/// So begins the reason why such a server has no number of slots.
const UNBOUNDED: &str = "it has no bound";

/// `it has no bound: a thread for each request`
pub(super) fn unbounded(what: &str) -> String {
    format!("{UNBOUNDED}: {what}")
}

/// A number of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Requests in parallel, at least 1.
    pub slots: u32,
    /// How it follows: `2 workers x 4 threads`.
    pub because: String,
}

impl Count {
    pub(super) fn new(slots: u32, because: impl Into<String>) -> Result<Self, String> {
        if slots == 0 {
            return Err("no workers at the moment".to_owned());
        }
        Ok(Self {
            slots,
            because: because.into(),
        })
    }

    /// So many processes with so many threads each.
    pub(super) fn product(processes: u32, threads: u32) -> Result<Self, String> {
        let because = match threads {
            1 if processes == 1 => "1 worker, one request at a time".to_owned(),
            1 => format!("{processes} workers, one request each"),
            _ => format!("{} x {threads} threads", counted(processes, "worker")),
        };
        Self::new(processes.saturating_mul(threads), because)
    }
}

/// Reads a file as the process would: in its root, from its working directory.
pub type ReadFile<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Reads a file that a process was told to read when it started: from the directory that it was started in, which
/// `--chdir` has left since, or else from its working directory.
fn read_at_start(process: &ProcessFacts, path: &str, read: &ReadFile<'_>) -> Option<String> {
    let started_in = process.environment.get("PWD");
    let started_in = started_in.filter(|_| !path.starts_with('/'));
    started_in
        .and_then(|dir| read(&format!("{dir}/{path}")))
        .or_else(|| read(path))
}

/// `1 worker`, `2 workers`.
fn counted(number: u32, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// The server that this process is, if it is a known one.
pub fn recognise(process: &ProcessFacts, read: &ReadFile<'_>) -> Option<Server> {
    let args = Args::of_command(&process.command);
    gunicorn::recognise(process, &args, read)
        .or_else(|| uwsgi::recognise(process, &args, read))
        .or_else(|| others::recognise(process, &args, read))
        .or_else(|| gunicorn::by_environment(process, &args, read))
        .or_else(|| others::by_libraries(process, read))
}

/// What is known of a server whose profile was configured.
pub fn accepts(profile: Profile) -> Accepts {
    match profile {
        Profile::GunicornSync | Profile::Uwsgi => Accepts::WhenIdle,
        Profile::GunicornGthread
        | Profile::GunicornGevent
        | Profile::Waitress
        | Profile::Werkzeug
        // Apache accepts; its daemons wait behind a socket of their own.
        | Profile::ModWsgi => Accepts::Eagerly,
        Profile::Auto | Profile::Generic => Accepts::Unknown,
    }
}

/// The slots by a hint in the environment, where the server itself is not known.
pub fn hinted(process: &ProcessFacts) -> Result<Count, String> {
    const NAME: &str = "WEB_CONCURRENCY";
    match process.environment.get(NAME) {
        None => Err(format!("its environment has no {NAME}")),
        Some(value) => match value.trim().parse() {
            Ok(slots) => Count::new(slots, format!("{NAME}={slots}")),
            Err(_) => Err(format!("{NAME} is not a number")),
        },
    }
}

#[cfg(test)]
mod tests;

//! What can be known of the backend from outside, without a change in the app: how many requests it can
//! run in parallel, how many wait in its accept queue, what its CPU and memory do. Each signal is optional.
//!
//! [`look`] looks once at one endpoint and says all that it found. [`Senses`] looks again and again, and
//! turns what it sees into the [`Readings`](crate::control::Readings) of the control law.
//!
//! - `ladder` asks the sources of slots in order: configuration, `control_socket` (gunicorn's),
//!   `uwsgi_stats`, the process that owns the listening socket (`server` recognises it), its environment;
//!   `learned` knows them from the accept queue under load;
//! - `crew` is the processes that accept, and `Owners` finds out which of them has a connection;
//! - `watch` knows when to look at what, so that an idle backend costs next to nothing;
//! - the platform finds sockets, processes and limits: `linux`, or `other`, which sees nothing.
//!
//! Everything blocks, for milliseconds at most but for a server that does not answer; none of it runs on a
//! thread that serves requests.

mod control_socket;
mod crew;
pub mod facts;
pub mod ladder;
mod learned;
pub mod server;
mod until;
mod uwsgi_stats;
mod watch;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(not(target_os = "linux"))]
use other as platform;

use std::fmt::Write as _;

pub use self::{
    crew::{Connection, Crew},
    ladder::{Ladder, Rung, Slots, Source},
    platform::Owners,
    server::{Accepts, Server},
    watch::{Answers, News, Senses},
};
use self::{
    facts::{Before, ListenerFacts, ProcessFacts, in_one_line},
    platform::{Eyes, Survey},
};
use crate::{
    clock,
    config::{Address, Config, Profile},
    control::{CpuReading, MemoryReading},
};

/// What this platform cannot see at all, one sentence to be said at start; `None` where it sees everything.
pub const BLIND: Option<&str> = platform::BLIND;

/// All that one look at an endpoint found.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// The socket that it listens on, or why it cannot be seen: one sentence.
    pub listener: Result<ListenerFacts, String>,
    /// The process that owns the socket, or why it cannot be seen.
    pub process: Result<ProcessFacts, String>,
    /// The sources of slots, and the server that was recognised.
    pub ladder: Ladder,
    /// The profile in force: the configured one, or that of the server.
    pub profile: Profile,
    /// When the server accepts. If [`Accepts::Eagerly`], the accept queue says nothing.
    pub accepts: Accepts,
    /// Where CPU is read, or why it cannot be.
    pub cpu: Result<String, String>,
    /// Where memory is read, or why it cannot be.
    pub memory: Result<String, String>,
}

impl Findings {
    /// The slots by the surest source that knows.
    pub fn slots(&self) -> Option<Slots> {
        self.ladder.slots()
    }

    /// All of it as lines for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = match &self.ladder.server {
            Some(server) => writeln!(
                out,
                "server: {}, profile {}, by its {}",
                server.name, self.profile, server.how
            ),
            None => writeln!(out, "server: not recognised, profile {}", self.profile),
        };
        let _ = match &self.process {
            Ok(process) => writeln!(
                out,
                "process: {}, {}",
                process.pid,
                in_one_line(&process.command)
            ),
            Err(why) => writeln!(out, "process: {why}"),
        };
        for rung in &self.ladder.rungs {
            let _ = match &rung.outcome {
                Ok(count) => writeln!(
                    out,
                    "slots by {}: {} ({})",
                    rung.source.as_str(),
                    count.slots,
                    count.because
                ),
                Err(why) => writeln!(out, "slots by {}: {why}", rung.source.as_str()),
            };
        }
        let _ = match &self.listener {
            Ok(ListenerFacts {
                queued: Some(queued),
                via,
                ..
            }) => {
                let blind = match self.accepts {
                    Accepts::Eagerly => {
                        "; of no use here: the server accepts more than it can work on"
                    }
                    _ => "",
                };
                writeln!(out, "accept queue: {queued}, by {via}{blind}")
            }
            Ok(_) => writeln!(out, "accept queue: not shown by the kernel"),
            Err(why) => writeln!(out, "accept queue: {why}"),
        };
        for (what, source) in [("cpu", &self.cpu), ("memory", &self.memory)] {
            let source = source.as_ref().unwrap_or_else(|why| why);
            let _ = writeln!(out, "{what}: {source}");
        }
        out
    }
}

/// Looks once at an endpoint: everything that can be seen without sending it a request. `child` is the process
/// that `exec` started, if there is one. Blocks for milliseconds, and for up to half a second for each of
/// gunicorn's control socket and uWSGI's stats server where they do not answer.
pub fn look(endpoint: &Address, config: &Config, child: Option<u32>) -> Findings {
    look_closely(endpoint, config, child).0
}

/// One endpoint, looked at again and again by whoever has it, on their own thread. Everything here blocks
/// for milliseconds at most, but for [`Gaze::new`], which is a [`look`].
#[derive(Debug)]
pub struct Gaze {
    findings: Findings,
    eyes: Eyes,
}

impl Gaze {
    /// Looks for the first time.
    pub fn new(endpoint: &Address, config: &Config) -> Self {
        let (findings, eyes) = look_closely(endpoint, config, None);
        Self { findings, eyes }
    }

    /// What the first look found.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// How many connections wait to be accepted now, whether or not that says something of load.
    pub fn accept_queue(&mut self) -> Option<u32> {
        self.eyes.accept_queue().ok().flatten()
    }

    /// CPU and memory now. CPU is known from the second time on, over at least 200 ms.
    pub fn gauges(&mut self) -> Gauges {
        self.eyes.gauges(clock::now()).unwrap_or_default()
    }

    /// What one of the processes has used so far; `None` if it is gone.
    pub fn times(pid: u32) -> Option<ProcessTimes> {
        platform::times(pid)
    }
}

/// What a process has used since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessTimes {
    /// CPU, seconds.
    pub cpu: f64,
    /// Time that its present threads were runnable but had no core, seconds.
    pub waited: f64,
    /// Threads now.
    pub threads: u32,
    /// The process that started it.
    pub parent: u32,
}

fn look_closely(endpoint: &Address, config: &Config, child: Option<u32>) -> (Findings, Eyes) {
    look_again(endpoint, config, child, &Before::default())
}

/// The same, where `before` is what was found the last time: its owner is looked at first, which is far cheaper
/// than a search among all processes.
fn look_again(
    endpoint: &Address,
    config: &Config,
    child: Option<u32>,
    before: &Before,
) -> (Findings, Eyes) {
    let discovery = &config.discovery;
    let Survey {
        listener,
        process,
        cpu,
        memory,
        eyes,
    } = platform::survey(endpoint, discovery, child, before);
    let pid = process.as_ref().map_or(0, |process| process.pid);
    let read = |path: &str| platform::read_file(pid, path);
    let ladder = Ladder::climb(discovery, process.as_ref().map_err(String::as_str), &read);
    let profile = match (config.backend.profile, &ladder.server) {
        (Profile::Auto, Some(server)) => server.profile,
        (Profile::Auto, None) => Profile::Generic,
        (configured, _) => configured,
    };
    let findings = Findings {
        accepts: ladder.accepts(config.backend.profile),
        listener,
        process,
        ladder,
        profile,
        cpu,
        memory,
    };
    (findings, eyes)
}

/// What the backend's CPU and memory do at the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// CPU, over the last second or so.
    pub cpu: Option<CpuReading>,
    /// Memory against its limit.
    pub memory: Option<MemoryReading>,
    /// Memory in use, bytes, also where there is no limit.
    pub memory_used: Option<u64>,
    /// What it may use, bytes.
    pub memory_limit: Option<u64>,
    /// Whether the kernel tells of stalls (PSI).
    pub stalls: bool,
    /// The processes that were looked at, sorted by descent.
    pub processes: Vec<u32>,
}

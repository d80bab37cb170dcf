//! Any platform but Linux. This is the whole of what a port has to fill in: find the listening socket, the
//! process that owns it, and read its accept queue, CPU and memory. Until then, what the configuration and
//! the backend itself say is all there is.

use std::time::Instant;

use super::{
    Connection, Gauges, ProcessTimes,
    facts::{Before, ListenerFacts, Overlap, ProcessFacts},
};
use crate::config::{Address, Discovery};

/// What this platform cannot see at all, one sentence.
pub const BLIND: Option<&str> = Some(
    "on this platform neither the backend's process nor its accept queue, CPU and memory can be seen; \
     set discovery.slots, or name gunicorn's control socket or uWSGI's stats server",
);

const NOT_HERE: &str = "not to be seen on this platform";

/// A look at everything, and what is needed to look again.
#[derive(Debug)]
pub struct Survey {
    /// The listening socket, or why it is not known.
    pub listener: Result<ListenerFacts, String>,
    /// The process that owns it, or why it is not known.
    pub process: Result<ProcessFacts, String>,
    /// Where CPU is read, or why not.
    pub cpu: Result<String, String>,
    /// Where memory is read, or why not.
    pub memory: Result<String, String>,
    /// For what is read again and again.
    pub eyes: Eyes,
}

/// The open ends of a survey.
#[derive(Debug, Default)]
pub struct Eyes;

/// Looks at everything. `child` is the process that `exec` started, `before` what the last look found.
pub fn survey(
    _address: &Address,
    _discovery: &Discovery,
    _child: Option<u32>,
    _before: &Before,
) -> Survey {
    Survey {
        listener: Err(NOT_HERE.to_owned()),
        process: Err(NOT_HERE.to_owned()),
        cpu: Err(NOT_HERE.to_owned()),
        memory: Err(NOT_HERE.to_owned()),
        eyes: Eyes,
    }
}

/// A file as the process sees it.
pub fn read_file(_pid: u32, _path: &str) -> Option<String> {
    None
}

/// What a process has used so far.
pub fn times(_pid: u32) -> Option<ProcessTimes> {
    None
}

impl Eyes {
    /// Takes over what an earlier survey has learned over time.
    pub fn continue_from(&mut self, _before: Self) {}

    /// Whether the endpoint is on this machine, and will be seen once somebody listens there.
    pub fn is_here(&self) -> bool {
        false
    }

    /// What the processes share, for the next survey.
    pub fn overlap(&self) -> Option<Overlap> {
        None
    }

    /// How many wait in the accept queue now. An error means that the listener is another one than before:
    /// it is time for a survey.
    ///
    /// # Errors
    /// See above.
    pub fn accept_queue(&mut self) -> Result<Option<u32>, String> {
        Ok(None)
    }

    /// CPU and memory now.
    pub fn gauges(&mut self, _now: Instant) -> Option<Gauges> {
        None
    }

    /// Whether other processes are the owner's workers than at the survey.
    pub fn workers_changed(&self, _processes: &[u32]) -> bool {
        false
    }

    /// Memory alone, for what it was at this very moment.
    pub fn refresh_memory(&self, _gauges: &mut Gauges) {}

    /// Whether the owner of the listener still runs.
    pub fn owner_lives(&self) -> bool {
        true
    }
}

/// Which of the backend's processes has accepted a connection.
#[derive(Debug)]
pub struct Owners;

impl Owners {
    /// For the workers of this process. `None` where the kernel does not tell of connections.
    pub fn of(_master: u32) -> Option<Self> {
        None
    }

    /// For each connection the worker that has it; `None` if that is not to be seen.
    pub fn whose(&mut self, connections: &[Connection]) -> Vec<Option<u32>> {
        vec![None; connections.len()]
    }
}

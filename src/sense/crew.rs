//! The backend's workers as those who accept: a connection belongs to the process that has accepted it.

use std::net::SocketAddr;

use super::Findings;

/// Several processes that accept from one socket, each with as many slots as the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crew {
    /// The process that started them.
    pub master: u32,
    /// Their numbers, in order.
    pub workers: Vec<u32>,
    /// Requests that each can run in parallel, at least 1.
    pub slots_each: u32,
}

impl Crew {
    /// Those of an endpoint, if all that is to be known of them is known.
    pub fn of(findings: &Findings) -> Option<Self> {
        let process = findings.process.as_ref().ok()?;
        let listening = process.children.iter().filter(|child| child.listens);
        let mut workers: Vec<u32> = listening.map(|child| child.pid).collect();
        workers.sort_unstable();
        let slots = findings.slots()?.count;
        let count = u32::try_from(workers.len()).ok()?;
        let even = count > 1 && slots > 0 && slots % count == 0;
        even.then(|| Self {
            master: process.pid,
            slots_each: slots / count,
            workers,
        })
    }
}

/// A connection to the backend, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// By its two ends.
    Tcp {
        /// Our end.
        ours: SocketAddr,
        /// The backend's.
        theirs: SocketAddr,
    },
    /// By the inode of our end.
    Unix {
        /// Our end.
        ours: u32,
    },
}

//! What the process asks of the system.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{config::Config, proxy};

/// Descriptors beside those of connections: spool files, logs, sensors.
const SPARE: u64 = 1024;

/// The soft limit of descriptors that the process was started with.
static STARTED_WITH: OnceLock<Option<u64>> = OnceLock::new();

/// The soft limit of descriptors that the process was started with, if there is one: what `select(2)` can take may
/// depend on it, so the command of `exec` gets it back.
pub fn descriptors_at_start() -> Option<u64> {
    *STARTED_WITH.get_or_init(|| getrlimit(Resource::Nofile).current)
}

/// Sets the soft limit of descriptors back to what it was.
pub fn restore_descriptor_limit(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let restored = Rlimit {
        current: Some(current),
        maximum,
    };
    // Without it the command is as well off as tidegate.
    let _ = setrlimit(Resource::Nofile, restored);
}

/// Raises the soft limit of descriptors so far that every client and its backend connection find
/// one, as far as the hard limit allows.
pub fn raise_descriptor_limit(config: &Config) {
    let max_connections = config.server.max_connections;
    let Some(limit) = raise_descriptors(2 * max_connections as u64) else {
        return;
    };
    let room = proxy::room_for_clients(proxy::descriptors(), config);
    if room < max_connections {
        tracing::warn!(
            limit,
            room,
            "few open files are allowed: clients above that will have to wait (see ulimit -Hn, or lower server.max_connections)"
        );
    }
}

/// Raises the soft limit of descriptors so far that there are so many beside the usual ones, as far as the hard
/// limit allows. The limit then; None when there is none, or it cannot be raised.
pub fn raise_descriptors(connections: u64) -> Option<u64> {
    let wanted = connections + SPARE;
    descriptors_at_start();
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current?;
    let reachable = limit.maximum.map_or(wanted, |hard| wanted.min(hard));
    if reachable > current {
        let raised = Rlimit {
            current: Some(reachable),
            maximum: limit.maximum,
        };
        if setrlimit(Resource::Nofile, raised).is_err() {
            tracing::warn!(current, wanted, "cannot raise the limit of open files");
            return None;
        }
    }
    Some(reachable.max(current))
}

/// Warns at the start about what would otherwise be said for each large body.
pub fn try_spool(config: &Config) {
    if let Some(dir) = &config.buffers.spool_dir
        && let Err(error) = tempfile::tempfile_in(dir)
    {
        tracing::warn!(
            dir = %dir.display(),
            %error,
            "buffers.spool_dir cannot be written to: larger bodies are streamed, each of which holds a slot while it comes"
        );
    }
}

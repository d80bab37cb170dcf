//! What is counted for each endpoint of the backend.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use crate::observe::labels::ErrorKind;

/// The handles of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointMetrics {
    errors: [AtomicU64; ErrorKind::ALL.len()],
    dialed: AtomicU64,
    reused: AtomicU64,
    up: AtomicBool,
    /// The server, and how that is known.
    server: Mutex<Option<(&'static str, &'static str)>>,
    /// By direction and reason. A lock is fine here: the limit changes a few times a second.
    limit_changes: Mutex<BTreeMap<(bool, &'static str), u64>>,
}

impl EndpointMetrics {
    /// The backend failed a request.
    pub fn error(&self, kind: ErrorKind) {
        self.errors[kind as usize].fetch_add(1, Relaxed);
    }

    /// A request got a connection: a new one, or one that was kept alive.
    pub fn connection(&self, reused: bool) {
        let count = if reused { &self.reused } else { &self.dialed };
        count.fetch_add(1, Relaxed);
    }

    /// The limit was changed. `reason` is the decision's one word.
    pub fn limit_change(&self, up: bool, reason: &'static str) {
        *self.changes().entry((up, reason)).or_default() += 1;
    }

    /// Exports a possible change as 0 before it first happens, so that `rate()` sees it happen.
    pub fn declare_limit_change(&self, up: bool, reason: &'static str) {
        self.changes().entry((up, reason)).or_default();
    }

    /// Whether the endpoint accepts connections.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Relaxed);
    }

    /// Whether the endpoint accepts connections, as last told.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// What the endpoint's server is, and how that is known.
    pub fn set_server(&self, profile: &'static str, source: &'static str) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        *server = Some((profile, source));
    }

    /// What the endpoint's server is, and how that is known, as last told.
    pub fn server(&self) -> Option<(&'static str, &'static str)> {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = (ErrorKind, u64)> {
        ErrorKind::ALL
            .iter()
            .map(|kind| (*kind, self.errors[*kind as usize].load(Relaxed)))
    }

    pub(super) fn connections(&self) -> [(&'static str, u64); 2] {
        [
            ("false", self.dialed.load(Relaxed)),
            ("true", self.reused.load(Relaxed)),
        ]
    }

    pub(super) fn limit_changes(&self) -> Vec<(bool, &'static str, u64)> {
        self.changes()
            .iter()
            .map(|((up, reason), count)| (*up, *reason, *count))
            .collect()
    }

    fn changes(&self) -> std::sync::MutexGuard<'_, BTreeMap<(bool, &'static str), u64>> {
        self.limit_changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

//! Locks, as the model checker needs them: loom's under `--cfg tidegate_loom`, else the standard library's.

#[cfg(tidegate_loom)]
pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
#[cfg(not(tidegate_loom))]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard};

/// Locks, also after a panic elsewhere: what our locks guard is kept valid at every step, and a
/// gate that stays poisoned would refuse everyone.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! The one place that reads a clock. Everything else is handed the time, so that it can be tested
//! and simulated without one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time, by which everything is measured and every timer is set.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    // tokio's clock is the system's, except in tests that pause it.
    tokio::time::Instant::now().into_std()
}

/// CPU time that the calling thread has used: what a piece of work costs, however crowded the machine is.
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The wall clock, since the Unix epoch. For log lines, headers and metrics that name a date;
/// never for a duration.
#[allow(clippy::disallowed_methods)]
pub fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

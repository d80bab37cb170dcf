//! What can be seen from outside: metrics, the log, the trace and the status document.
//!
//! None of it is on the hot path. The data path only adds to atomics through handles that were looked up
//! once; names, labels and text exist at scrape time alone.

pub mod exposition;
pub mod histogram;
pub mod labels;
pub mod log;
pub mod metrics;
pub mod process;
pub mod status;
mod stderr;
pub mod trace;
pub mod traffic;

pub use exposition::Format;
pub use labels::{ErrorKind, Phase, Reason, Source, WaitOutcome};
pub use metrics::{
    EndpointMetrics, EndpointSnapshot, Metrics, RouteMetrics, Sight, Signals, Snapshot,
    SteeringSnapshot, WorkerSnapshot,
};

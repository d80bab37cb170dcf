//! tidegate: how many requests can the backend run in parallel? Measured, and enforced.
pub mod admin;
pub mod admission;
pub mod backend;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod observe;
pub mod proxy;
pub mod runtime;
mod sync;
pub mod tuner;

/// The control laws, under the name by which users of the library look for them.
pub use control as limit;

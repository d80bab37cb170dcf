//! tidegate: how many requests can the backend run in parallel? Measured, and enforced.
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;

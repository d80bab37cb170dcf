//! Threads, signals, drain, reload and the child process.

pub mod child;

//! A deterministic discrete-event simulator around the product's own gate, queue and control law.
//!
//! [`scenario`] reads a file, [`traffic`] draws its requests, [`engine`] leads them through the gate
//! to the [`backend`], and [`outcome`] holds what came of them. [`oracle`] runs a scenario over its
//! seeds and finds the best fixed limits; [`report`] says it. [`compare`] does the same with the [`peers`].

pub mod arenas;
pub mod backend;
pub mod compare;
pub mod engine;
pub mod law;
pub mod oracle;
pub mod outcome;
pub mod peers;
pub mod report;
pub mod scenario;
pub mod traffic;

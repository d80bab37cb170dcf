//! tidegate answers a question, and enforces the answer: how many requests can this backend run in
//! parallel?
//!
//! It is a reverse proxy for one backend (Flask under gunicorn, uWSGI, …), and this crate is all of
//! it. Two parts are of use without the proxy: [`admission::AdmissionLayer`], a tower layer that puts
//! an adaptive limit and a short queue in front of any service, and [`limit`], the control laws behind
//! it, which do no I/O and read no clock.
//!
//! # The modules
//!
//! Imports run downward only.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | what can be typed, one file for each command |
//! | [`runtime`] | threads, signals, drain, reload, the child process; ties together all that serves |
//! | [`doctor`] | what the backend is, by a look at its process and a handful of harmless requests |
//! | [`probe`] | how many parallel requests a backend sustains, measured |
//! | [`replay`] | what another configuration would have made of a recorded trace |
//! | [`admin`] | the admin server and its page |
//! | [`tuner`] | the only periodic loop: ticks the control laws and watches the endpoints |
//! | [`proxy`] | the client's side of HTTP, and the one place where an error becomes a response |
//! | [`admission`] | who may pass: routes, the gate with its queue, permits, the tower layer |
//! | [`backend`] | the worker's side of HTTP: connections, and one exchange with a worker |
//! | [`sense`] | what can be known of the backend from outside: slots, accept queue, CPU, memory |
//! | [`observe`] | metrics, the log, the trace, the status document |
//! | [`config`] | TOML, environment and flags become one validated configuration |
//! | [`control`] | the laws, pure |
//! | [`buffer`], [`clock`] | the budget of buffered bytes; the only place that reads a clock |
//!
//! # The way of a request
//!
//! [`proxy`] accepts a connection and reads a head; it is checked, cleaned and given a route; the body
//! is read while nothing is held for it. [`admission`] takes a permit, or a place in the queue, or
//! refuses. [`backend`] connects, writes, and reads the response at the worker's speed. When the
//! response is complete the socket is closed, the permit goes back and the law gets its sample; the
//! client gets its bytes at its own speed.

pub mod admin;
pub mod admission;
pub mod backend;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod doctor;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod observe;
pub mod probe;
pub mod proxy;
#[cfg(test)]
mod reference;
pub mod replay;
pub mod runtime;
pub mod sense;
mod socket_file;
mod sync;
pub mod tuner;

/// The control laws, under the name by which users of the library look for them.
pub use control as limit;

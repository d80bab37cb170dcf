//! The admin server: liveness, readiness, metrics, status, the dashboard, and the few commands that
//! change a running tidegate.
//!
//! It runs on a thread of its own beside the data plane, so that a scrape never delays a request.
//! It knows nothing of that plane: everything it shows or does goes through [`Handle`].
//!
//! | request | answer |
//! |---|---|
//! | `GET /livez` | 200 while the process runs, and its threads do |
//! | `GET /readyz[?verbose]` | 200 while the backend accepts and no drain is under way, else 503 |
//! | `GET /metrics` | Prometheus text 0.0.4 or OpenMetrics 1.0.0 by `Accept`; gzip |
//! | `GET /status` | JSON; with `Accept: text/event-stream`, as server-sent events, once a second |
//! | `GET /config` | the effective configuration as TOML, or JSON by `Accept` |
//! | `GET /` | the dashboard |
//! | `POST /reload`, `/drain`, `/undrain`, `/limit` | JSON; see [`guard`] for who may |
//! | `GET /drain/wait` | **starts a drain** if none is under way; 200 when it is done, 409 when it is undone |
//!
//! `GET /drain/wait` changes something although it is a GET: a kubelet's `preStop.httpGet` can send
//! one GET and nothing else, and comes from the node, not from loopback. It is therefore open to
//! every peer that reaches the admin address, unless `mutations = "off"`; what shows itself to be a
//! browser is refused.

mod events;
pub mod guard;
mod listener;
mod negotiate;
mod page;
mod respond;
mod routes;
mod server;
#[cfg(test)]
mod tests;

use std::{pin::Pin, time::Duration};

pub use listener::AdminListener;
pub use server::serve;

pub use crate::observe::Format;

/// A future that a [`Handle`] answers with.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the admin server can ask of a running tidegate. The runtime implements it.
pub trait Handle: Send + Sync {
    /// The metrics, rendered.
    fn metrics(&self, format: Format) -> String;

    /// The status document, see [`crate::observe::status::document`].
    fn status(&self) -> serde_json::Value;

    /// The effective configuration, as TOML and as JSON, without what looks like a secret in
    /// `process.command`.
    fn config(&self) -> (String, serde_json::Value);

    /// Whether the threads that serve clients run; or for how long one of them has not. It should take less than a
    /// second.
    fn alive(&self) -> Answer<'_, Result<(), Duration>>;

    /// Whether requests should be sent here. It should take less than a second.
    fn ready(&self) -> Answer<'_, Readiness>;

    /// Reads the configuration again. What has changed, or what is wrong, in words.
    fn reload(&self) -> Answer<'_, Result<String, String>>;

    /// Starts a drain; nothing happens when one is under way. A `passing` one is undone by itself if
    /// no shutdown follows: a preStop hook also runs when only the application is restarted.
    fn drain(&self, passing: bool);

    /// Takes new requests again. Why not, in words, when it is too late for that.
    ///
    /// # Errors
    /// When the process is already on its way out.
    fn undrain(&self) -> Result<(), String>;

    /// Is done when a drain is under way and nothing is in flight or queued any more, or when
    /// `drain.timeout` is over; with false, at once, when the drain is undone before that.
    fn drained(&self) -> Answer<'_, bool>;

    /// Fixes the limit of every endpoint, at least 1, or leaves it to the control law again.
    ///
    /// # Errors
    /// When the limit is out of bounds, in words.
    fn set_limit(&self, limit: Option<u32>) -> Result<(), String>;
}

/// The answer to "should requests be sent here?".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Yes or no.
    pub ready: bool,
    /// Whether a drain is under way.
    pub draining: bool,
    /// What was looked at, for `?verbose`: a name, and what is wrong with it if anything is.
    pub checks: Vec<(String, Result<(), String>)>,
}

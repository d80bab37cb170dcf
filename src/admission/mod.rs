//! Who may pass. A request asks ([`Ask`]) and gets a [`Permit`], a place in a short, bounded,
//! deadline-aware queue, or a [`Refusal`] that says why and for how long.
//!
//! - [`route`] classifies requests;
//! - [`state`] is the gate as a pure state machine, [`gate`] puts the lock and the wakers around it;
//! - [`limiter`] closes the loop: finished permits feed the control law, whose decisions move the gate;
//! - [`AdmissionLayer`] is all of it as a tower layer, for any service.
//!
//! The layer never reserves anything in `poll_ready`: admission needs the request (its class and
//! deadline), so the permit is taken inside the call's future, and a service that is ready but idle
//! holds nothing.

pub mod gate;
mod layer;
pub mod limiter;
pub mod route;
mod service;
pub mod state;

use std::time::{Duration, Instant};

pub use self::{
    gate::Gate,
    layer::{AdmissionLayer, Builder},
    limiter::{Acquire, Lane, Limiter, Permit},
    service::{
        Admission, AdmissionError, Admitted, AskFor, HoldBody, HoldResponse, PermitBody, outcome_of,
    },
};
pub use crate::{
    config::{Class, Discipline},
    control::Group,
};

/// What a request asks of the gate.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Its importance.
    pub class: Class,
    /// When its client stops waiting for the answer.
    pub deadline: Option<Instant>,
    /// For the control law: groups of requests differ in cost.
    pub group: Group,
    /// Its route's own cap.
    pub cap: Option<Cap>,
    /// Who asks, for fairness in the queue; `None` = everybody alike.
    pub client: Option<ClientKey>,
}

/// What tells one client from another: a hash, so that keys of any length cost the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey(pub u64);

impl Default for Ask {
    fn default() -> Self {
        Self {
            class: Class::Normal,
            deadline: None,
            group: Group::default(),
            cap: None,
            client: None,
        }
    }
}

/// The most that a route may have in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// The route.
    pub id: u16,
    /// At least 1.
    pub max: u32,
}

/// Why a request was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As many wait as may.
    QueueFull,
    /// It waited, or would have had to wait, longer than the bound.
    QueueTimeout,
    /// It could not have been answered before its client's deadline.
    Deadline,
    /// Its route was at its cap for as long as it may wait, or would have been.
    RouteLimit,
    /// The gate is closed: tidegate is going away.
    Draining,
}

/// A refusal, and when it is worth asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// How long the queue takes to drain at the pace of late; zero when that is not known.
    pub drain_time: Duration,
    /// How long the backend takes for those who were refused over the last two seconds or so, and will ask again.
    pub backlog: Duration,
}

impl Refusal {
    /// No client is asked to wait for longer than this because others were refused too.
    const BACKLOG_MOST: Duration = Duration::from_secs(30);

    /// When it is worth asking again. If all the refused were told the time until the queue has drained, they would be
    /// back together and find the same overload: the more there are of them, the longer it takes until there is room.
    pub fn retry_after(&self) -> Duration {
        self.drain_time + self.backlog.min(Self::BACKLOG_MOST)
    }

    /// Why, for people.
    pub fn text(&self) -> &'static str {
        match self.reason {
            Reason::QueueFull => "the queue is full",
            Reason::QueueTimeout => "the wait would exceed the bound",
            Reason::Deadline => "the deadline cannot be met",
            Reason::RouteLimit => "the route is at its limit",
            Reason::Draining => "the gate is draining",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Refusal {}

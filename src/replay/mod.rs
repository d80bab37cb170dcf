//! What would have happened: the requests of a trace, through another configuration. The gate, the queue
//! and the law are the product's own; the backend is a model that the trace itself gives.
//!
//! `quiet` cuts out the time in which nothing was recorded, `model` is that backend, `lanes` its endpoints,
//! `engine` the virtual time, `outcome` the figures, `report` shows them. Pure.

mod engine;
mod lanes;
mod model;
mod outcome;
mod quiet;
mod report;

use crate::{
    admission::Cap,
    clock,
    config::{Config, Route},
    observe::trace::Trace,
    proxy,
};

use self::{engine::Setup, model::Model};
pub use self::{
    outcome::{Outcome, Part, Quantiles},
    report::{json, text},
};

/// What did happen, and what would have.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// As it was recorded.
    pub was: Outcome,
    /// With the other configuration.
    pub would_be: Outcome,
    /// Requests in the trace.
    pub requests: usize,
    /// What to bear in mind.
    pub notes: Vec<String>,
}

/// Why there is nothing to compare.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Without one there is no telling how long a request takes.
    #[error("the trace has no request that the backend answered")]
    NothingServed,
}

/// Runs the trace through a configuration.
///
/// # Errors
/// When the trace says nothing of the backend.
pub fn compare(trace: &Trace, config: &Config) -> Result<Comparison, ReplayError> {
    let (entries, cut) = quiet::cut(&trace.entries);
    let trace = &Trace {
        entries,
        ..trace.clone()
    };
    let model = Model::of(trace).ok_or(ReplayError::NothingServed)?;
    let served = || trace.entries.iter().filter(|entry| lanes::is_served(entry));
    let lanes = lanes::side_by_side(&lanes::lanes(&trace.entries));
    let known = served()
        .map(|entry| entry.slots)
        .next_back()
        .filter(|slots| *slots > 0);
    let configured = Some(config.discovery.slots).filter(|slots| *slots > 0);
    let mut law = proxy::control_settings(config);
    if let (0, None, Some(slots)) = (config.limit.initial, configured, known) {
        law.initial = slots.clamp(law.min, law.max);
    }
    let setup = Setup {
        queue: proxy::queue_settings(config),
        law,
        slots: configured.or(known),
        routes: trace
            .routes
            .iter()
            .map(|name| route(config, name))
            .collect(),
    };
    let would_be = engine::run(&trace.entries, lanes, &model, &setup, clock::now());
    let mut notes = Vec::new();
    if trace.damaged > 0 {
        notes.push(format!(
            "{} records of the trace are damaged and left out",
            trace.damaged
        ));
    }
    if cut.count > 0 {
        notes.push(format!(
            "nothing was recorded for more than ten minutes, {}: ten minutes of it are left, {} are cut out",
            match cut.count {
                1 => "once".to_owned(),
                count => format!("{count} times"),
            },
            report::span(cut.micros as f64 / 1e6)
        ));
    }
    if outcome::extrapolates(&would_be, &model) {
        notes.push(format!(
            "up to {} requests were in flight at an endpoint, but the trace knows it with {} at most: \
             beyond that its throughput is taken to stay the same",
            would_be.most_at_one,
            model.measured()
        ));
    }
    let overloads = outcome::overloads(trace);
    if overloads > 0 {
        notes.push(format!(
            "{overloads} requests timed out or were answered with an error of overload: they end the \
             same way here, after the time that they took with as many beside them"
        ));
    }
    if config.queue.client_key != crate::config::ClientKeySource::Off {
        notes.push(
            "the trace does not know clients apart: queue.client_key has no effect".to_owned(),
        );
    }
    Ok(Comparison {
        was: Outcome::of(trace),
        would_be,
        requests: trace.entries.len(),
        notes,
    })
}

/// The class and the cap of a route, where the configuration has it.
fn route(config: &Config, name: &str) -> Option<(crate::config::Class, Option<Cap>)> {
    let known = |(_, route): &(usize, &Route)| route.name == name;
    let (at, route) = config.routes.iter().enumerate().find(known)?;
    let cap = (route.max_in_flight > 0).then_some(Cap {
        id: at as u16,
        max: route.max_in_flight,
    });
    Some((route.class, cap))
}

#[cfg(test)]
pub(super) mod tests;

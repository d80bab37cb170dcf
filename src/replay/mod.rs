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
    config::{Config, Route, UNROUTED},
    control,
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
    let mut notes = Vec::new();
    let mut law = proxy::control_settings(config);
    if let (0, Some(first)) = (config.limit.initial, served().next()) {
        let slots = configured.filter(|slots| Some(*slots) != known);
        // Without slots a running tidegate looks at the cores of its machine. This may be another, and what the
        // trace begins with is seldom a start.
        let fixed = (law.algorithm == control::Algorithm::Fixed).then_some(known);
        let begin = slots.or(fixed.flatten()).unwrap_or_else(|| {
            notes.push(format!(
                "limit.initial is not set: the limit starts at {}, the first that was recorded",
                first.limit.clamp(law.min, law.max)
            ));
            first.limit
        });
        law.initial = begin.clamp(law.min, law.max);
    }
    let mut queue = proxy::queue_settings(config);
    if std::mem::take(&mut queue.dry_run) {
        notes.push(
            "limit.dry_run is left out of account: this is what the limit would do in earnest"
                .to_owned(),
        );
    }
    let setup = Setup {
        queue,
        law,
        slots: configured.or(known),
        routes: trace
            .routes
            .iter()
            .map(|name| route(config, name))
            .collect(),
        deadlines: !config.queue.deadline_header.is_empty(),
    };
    let would_be = engine::run(&trace.entries, lanes, &model, &setup, clock::now());
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
    routes_apart(trace, config, &mut notes);
    notes.push(
        "CPU, memory and the accept queue are not in a trace: nothing of them holds the limit here, and \
         limit.resources has no effect"
            .to_owned(),
    );
    Ok(Comparison {
        was: Outcome::of(trace),
        would_be,
        requests: trace.entries.len(),
        notes,
    })
}

/// Says which routes only the trace has, and which only the configuration.
fn routes_apart(trace: &Trace, config: &Config, notes: &mut Vec<String>) {
    let mut is_used = vec![false; trace.routes.len()];
    for entry in &trace.entries {
        if let Some(used) = is_used.get_mut(usize::from(entry.route)) {
            *used = true;
        }
    }
    let used = trace.routes.iter().zip(is_used);
    let used: Vec<&str> = used
        .filter(|(_, is_used)| *is_used)
        .map(|(name, _)| name.as_str())
        .collect();
    let configured: Vec<&str> = config.routes.iter().map(|r| r.name.as_str()).collect();
    let missing = |of: &[&str], among: &[&str]| {
        // What does not fit into a trace's header has no name there.
        let named = of.iter().filter(|name| !["", UNROUTED].contains(name));
        let missing = named.filter(|name| !among.contains(name)).copied();
        Some(missing.collect::<Vec<_>>().join(", ")).filter(|names| !names.is_empty())
    };
    if let Some(names) = missing(&configured, &used) {
        notes.push(format!(
            "no request of the trace was counted under these routes: {names}. A trace knows no paths: what a \
             new route would match keeps the route that it had"
        ));
    }
    if let Some(names) = missing(&used, &configured) {
        notes.push(format!(
            "the configuration lacks these routes of the trace: {names}. Their requests keep the class that \
             was recorded, and have no cap"
        ));
    }
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

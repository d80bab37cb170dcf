//! What the backend is, before anything is put in front of it: the server, how many requests it runs in
//! parallel and who says so, its habits, its cores and memory, what tidegate can see of it.
//!
//! [`crate::sense`] looks at it from outside, `ask` sends it a handful of harmless requests; `known` is what
//! cannot be found out by asking, `verdict` and `settings` draw the conclusions, `report` shows them. All but
//! the first two are pure.

mod ask;
mod known;
mod report;
mod settings;
mod verdict;
mod wire;

use std::time::Duration;

pub use self::{
    ask::{Answer, Asked, Keep, Manners, Refusal},
    report::{json, text},
};
use crate::{
    config::{Address, Config, Discovery, Profile},
    sense::{Findings, Gauges, Gaze},
};

/// For how long CPU is watched.
const WATCH: Duration = Duration::from_millis(500);

/// A server, and how it was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// Its name.
    pub name: String,
    /// What tidegate knows of its kind.
    pub profile: Profile,
    /// By what.
    pub how: String,
}

impl Recognised {
    /// Whether this is its name, a version aside.
    fn is(&self, name: &str) -> bool {
        let own = self.name.get(..name.len());
        own.is_some_and(|own| own.eq_ignore_ascii_case(name))
    }
}

/// A habit of the server's, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quirk {
    /// One word.
    pub name: &'static str,
    /// What was found, and whether by asking.
    pub found: String,
    /// What tidegate does about it; empty if there is nothing to do.
    pub then: String,
}

/// Something that tidegate can read of the backend, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// As in the metrics.
    pub name: &'static str,
    /// Whether it can be read and says something.
    pub available: bool,
    /// Where it is read, or why it is not and how to get it.
    pub how: String,
}

/// All that was found out about one endpoint.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// The address.
    pub endpoint: Address,
    /// What was seen.
    pub findings: Findings,
    /// CPU and memory.
    pub gauges: Gauges,
    /// What was asked.
    pub manners: Manners,
    /// The server.
    pub server: Option<Recognised>,
    /// Its habits.
    pub quirks: Vec<Quirk>,
    /// What can be read of it.
    pub signals: Vec<Signal>,
    /// One sentence.
    pub verdict: String,
    /// What could be better.
    pub advice: Vec<String>,
    /// A configuration for it.
    pub toml: String,
}

impl Diagnosis {
    /// The profile: of the server that was recognised, or the configured one.
    pub fn profile(&self) -> Profile {
        match &self.server {
            Some(server) => server.profile,
            None => self.findings.profile,
        }
    }

    /// Connections that may wait to be accepted, where that can be seen.
    pub fn backlog(&self) -> Option<u32> {
        self.findings.listener.as_ref().ok()?.backlog
    }

    /// Whether nothing was found at the address, by asking or by looking.
    pub fn is_absent(&self) -> bool {
        let last = self.manners.asked.last();
        let refused = matches!(
            self.manners.refusal,
            Some(Refusal::Denied | Refusal::Other(_))
        );
        (self.findings.listener.is_err() || refused && !self.answered())
            && last.is_some_and(|asked| asked.answer == Answer::Unreachable)
    }

    /// Whether it answered at all.
    pub fn answered(&self) -> bool {
        self.manners.head.is_some()
    }
}

/// Examines one endpoint. Blocks for some seconds.
pub fn examine(endpoint: &Address, config: &Config) -> Diagnosis {
    let manners = ask::ask(endpoint, config.backend.protocol);
    // Afterwards, so that lazy workers have shown themselves.
    let mut gaze = Gaze::new(endpoint, config);
    gaze.gauges();
    std::thread::sleep(WATCH);
    let gauges = gaze.gauges();
    let findings = gaze.findings().clone();
    conclude(endpoint, &config.discovery, findings, gauges, manners)
}

fn conclude(
    endpoint: &Address,
    given: &Discovery,
    findings: Findings,
    gauges: Gauges,
    manners: Manners,
) -> Diagnosis {
    let server = known::recognise(&findings, &manners);
    let profile = server
        .as_ref()
        .map_or(findings.profile, |server| server.profile);
    let evidence = verdict::Evidence {
        endpoint,
        given,
        findings: &findings,
        gauges: &gauges,
        manners: &manners,
        server: server.as_ref(),
        profile,
    };
    Diagnosis {
        quirks: known::quirks(&manners, profile, server.as_ref(), evidence.is_steered()),
        signals: verdict::signals(&evidence),
        verdict: verdict::sentence(&evidence),
        advice: verdict::advice(&evidence),
        toml: settings::toml(&evidence),
        endpoint: endpoint.clone(),
        server,
        findings,
        gauges,
        manners,
    }
}

#[cfg(test)]
mod tests;

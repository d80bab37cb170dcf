//! What a controller says of itself.

use std::time::Duration;

use super::super::{
    Algorithm, BoundBy, CurvePoint, Evidence, Setting, Settings,
    law::Law,
    usl::{self, Usl},
};
use super::Controller;

impl Controller {
    /// The limit in force, requests in flight; at least 1.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// What the law alone would allow, without pin, slots or bounds, beside the streams that there are; `initial` when
    /// fixed.
    pub fn law_limit(&self) -> u32 {
        match self.law {
            Law::Fixed => self.law.limit(&self.settings),
            _ => self.law.limit(&self.settings).saturating_add(self.streams),
        }
    }

    /// What the laws of `settings.shadow` would set, by the same windows.
    pub fn shadows(&self) -> impl Iterator<Item = (Algorithm, u32)> {
        self.shadows.limits(&self.settings)
    }

    /// Whether the backend's memory grows while its requests do not.
    pub fn leaking(&self) -> bool {
        self.leaking
    }

    /// What holds the limit where it is.
    pub fn bound_by(&self) -> BoundBy {
        self.bound_by
    }

    /// Who holds the limit, if it is the configuration or the operator.
    pub fn configured_by(&self) -> Option<Setting> {
        let (min, max) = self.settings.bounds();
        (self.bound_by == BoundBy::Configured).then_some(match self.law {
            // The bounds may have changed since.
            _ if self.pinned.is_some_and(|pinned| pinned > max) => Setting::Max,
            _ if self.pinned.is_some_and(|pinned| pinned < min) => Setting::Min,
            _ if self.pinned.is_some() => Setting::Hand,
            Law::Fixed => Setting::Fixed,
            _ if self.limit > self.ceilings.lowest(max).0 => Setting::Min,
            _ if self.limit >= max => Setting::Max,
            _ => Setting::Min,
        })
    }

    /// The reason of the last decision; [`explain`](super::super::explain) makes it a sentence.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The operator's override, as asked for.
    pub fn pinned(&self) -> Option<u32> {
        self.pinned
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The figures of the last window.
    pub fn evidence(&self) -> Option<Evidence> {
        self.evidence
    }

    /// Windows closed since the start.
    pub fn windows(&self) -> u32 {
        self.windows
    }

    /// The unloaded latency of the recent mix of routes.
    pub fn baseline(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.baseline?.scale * self.cost).ok()
    }

    /// The last window's latency over its unloaded latency; 1 = no queueing in the backend.
    pub fn stretch(&self) -> Option<f64> {
        self.baseline
            .and(self.evidence)
            .map(|evidence| evidence.stretch)
    }

    /// How many requests the backend works on at once, if its slots are known: fewer where its CPU quota is used up.
    pub fn worked_on(&self) -> Option<u32> {
        self.ceilings
            .worked_on(self.of_short(self.limit), self.stretch().unwrap_or(1.0))
    }

    /// Moving average of the latency of answers: what a place in the queue has to wait for.
    pub fn service_time(&self) -> Option<Duration> {
        (self.averaged > 0).then(|| Duration::try_from_secs_f64(self.latency).unwrap_or_default())
    }

    /// The least that an answer of late took.
    pub fn least_time(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.quickest.get()?).ok()
    }

    /// The capacity curve as learned so far, by requests in flight.
    pub fn curve(&self) -> impl Iterator<Item = CurvePoint> {
        // Without a baseline nothing can be said of stretch: show it as latency per cost.
        let scale = self.baseline.map_or(1.0, |baseline| baseline.scale);
        let cost = if self.cost > 0.0 { self.cost } else { 1.0 };
        self.curve.points(scale, cost)
    }

    /// The Universal Scalability Law that fits the curve: how many requests in parallel the backend
    /// is good for. `None` until three concurrencies have been seen.
    pub fn capacity(&self) -> Option<Usl> {
        let points: Vec<usl::Point> = self
            .curve()
            .map(|point| usl::Point {
                in_flight: f64::from(point.in_flight),
                throughput: point.throughput,
                weight: point.weight,
            })
            .collect();
        usl::fit(&points)
    }
}

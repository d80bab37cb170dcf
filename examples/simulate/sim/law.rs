//! What moves a limit in the simulator: the product's controller, or a peer's rule beside it.

use std::time::{Duration, Instant};

use tidegate::limit::{Controller, Decision, Readings, Sample, Settings, Usage};

/// A rule that turns finished requests into a limit.
pub trait Law: Send {
    /// The limit in force.
    fn limit(&self) -> u32;

    /// A request is finished. `abandoned`: its client had left before.
    fn observe(&mut self, sample: &Sample, abandoned: bool);

    /// Whether [`Law::tick`] would do something now.
    fn due(&self, now: Instant) -> bool;

    /// Time passes.
    fn tick(&mut self, now: Instant, usage: &Usage, readings: &Readings) -> Option<Decision>;

    /// The backend's own time for a request, for the queue.
    fn service_time(&self) -> Option<Duration>;

    /// Whether a permit comes back when the client leaves, though the backend works on.
    fn frees_abandoned(&self) -> bool {
        false
    }
}

/// Makes the law of one tidegate.
pub type MakeLaw<'a> = dyn Fn(Instant) -> Box<dyn Law> + Sync + 'a;

/// Called with each decision: seconds since the start, tidegate, decision.
pub type Watch = dyn FnMut(f64, usize, &Decision);

/// The product's own.
pub struct Product(pub Controller);

impl Product {
    pub fn new(settings: &Settings, now: Instant) -> Self {
        Product(Controller::new(settings.clone(), now))
    }
}

impl Law for Product {
    fn limit(&self) -> u32 {
        self.0.limit()
    }

    fn observe(&mut self, sample: &Sample, _abandoned: bool) {
        self.0.observe(sample);
    }

    fn due(&self, now: Instant) -> bool {
        self.0.due(now)
    }

    fn tick(&mut self, now: Instant, usage: &Usage, readings: &Readings) -> Option<Decision> {
        self.0.tick(now, usage, readings)
    }

    fn service_time(&self) -> Option<Duration> {
        self.0.baseline().or(self.0.service_time())
    }
}

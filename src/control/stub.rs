use super::*;
#[derive(Debug)]
pub struct Controller {
    s: Settings,
    pin: Option<u32>,
}
impl Controller {
    pub fn new(settings: Settings, _now: Instant) -> Self {
        Self {
            s: settings,
            pin: None,
        }
    }
    pub fn reconfigure(&mut self, settings: Settings, _now: Instant) {
        self.s = settings;
    }
    pub fn pin(&mut self, limit: Option<u32>, _now: Instant) {
        self.pin = limit;
    }
    pub fn observe(&mut self, _s: &Sample) {}
    pub fn due(&self, _now: Instant) -> bool {
        false
    }
    pub fn tick(&mut self, _now: Instant, _u: &Usage, _r: &Readings) -> Option<Decision> {
        None
    }
    pub fn limit(&self) -> u32 {
        self.pin.unwrap_or(self.s.initial)
    }
    pub fn bound_by(&self) -> BoundBy {
        BoundBy::Idle
    }
    pub fn baseline(&self) -> Option<Duration> {
        None
    }
    pub fn stretch(&self) -> Option<f64> {
        None
    }
    pub fn service_time(&self) -> Option<Duration> {
        None
    }
}

//! How fast the backend works off what waits, and whether the queue is a burst or stands.
//!
//! CoDel's distinction, with a target taken from the measured service time instead of a constant.

use std::time::{Duration, Instant};

/// How many wait under a standing queue, in square roots of the limit. What a queue is for is to have
/// somebody at hand when a worker comes free early, and the fluctuation of that grows with the root.
/// Everything longer is latency for nothing. (Measured with 2 sync workers at 2x overload: 5 places, a
/// wait of 2.5 service times, lose 0.4 % of goodput against 12 service times.)
const STANDING_PLACES: f64 = 3.5;
/// A queue that has not been empty for this many service times is standing, not a burst.
const STANDING_AFTER: u32 = 5;
/// ... and at least this long, so that a fast backend's ordinary bursts are not cut.
const STANDING_AFTER_MIN: Duration = Duration::from_millis(200);
/// ... and only once more have come than went, by so many standard deviations of the number that came:
/// a backend with room to spare sees bursts of every length, and refuses nobody for them.
const STANDING_PROOF: f64 = 2.0;
/// A wait that nobody minds. Shorter bounds would refuse requests for the scheduler's hiccups.
const STANDING_WAIT_MIN: Duration = Duration::from_millis(50);
/// Weight of the newest interval in the drain rate: about the last 8 releases count.
const INTERVAL_WEIGHT: f64 = 0.125;
/// One interval counts for no more than so many usual ones: a pause is not a pace.
const INTERVAL_OUTLIER: f64 = 4.0;
/// ... but always for so many seconds, so that a slower backend is soon believed.
const INTERVAL_OUTLIER_MIN: f64 = 0.005;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pace {
    /// Since when somebody has been waiting, but for breaks shorter than a service time.
    waiting_since: Instant,
    /// Who came and who was done since `waiting_since`, while somebody waited.
    came: u64,
    went: u64,
    /// Whether more came than chance explains.
    overloaded: bool,
    /// Since when nobody has been waiting; `None` while somebody is.
    idle_since: Option<Instant>,
    /// The backend's own time for a request, unloaded; zero = unknown.
    service_time: Duration,
    /// Mean time between releases while somebody waits, seconds; zero = unknown.
    interval: f64,
    /// The last release that left somebody waiting.
    last_release: Option<Instant>,
}

impl Pace {
    /// Nothing is known, and nobody waits.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            waiting_since: now,
            came: 0,
            went: 0,
            overloaded: false,
            idle_since: Some(now),
            service_time: Duration::ZERO,
            interval: 0.0,
            last_release: None,
        }
    }

    /// The backend's own time for a request, unloaded; zero = unknown.
    pub(super) fn service_time(&self) -> Duration {
        self.service_time
    }

    pub(super) fn set_service_time(&mut self, service_time: Duration) {
        self.service_time = service_time;
    }

    /// The time until so many have been worked off, at the pace of late; zero while it is unknown.
    pub(super) fn wait_behind(&self, ahead: usize) -> Duration {
        Duration::from_secs_f64(ahead as f64 * self.interval)
    }

    /// How many can be worked off within this time, at the pace of late; no bound while that is
    /// unknown.
    pub(super) fn places_within(&self, wait: Duration) -> usize {
        if self.interval > 0.0 {
            (wait.as_secs_f64() / self.interval) as usize
        } else {
            usize::MAX
        }
    }

    /// Notes when a queue begins and ends. One that is back within a service time never went away:
    /// at twice the load a short queue is empty for a moment several times a second. One that comes
    /// back after a rest is a new burst, about which the old pace says nothing.
    pub(super) fn note_queue(&mut self, waiting: bool, now: Instant) {
        match (waiting, self.idle_since) {
            (true, Some(since)) => {
                let rest = now.saturating_duration_since(since);
                if rest >= self.service_time {
                    self.waiting_since = now;
                    (self.came, self.went, self.overloaded) = (0, 0, false);
                }
                if rest >= self.standing_after() {
                    self.interval = 0.0;
                }
                self.idle_since = None;
            }
            (false, None) => {
                self.idle_since = Some(now);
                self.last_release = None;
            }
            _ => {}
        }
    }

    /// Counts an arrival that found somebody waiting, or had to wait.
    pub(super) fn note_arrival(&mut self, now: Instant) {
        if self.idle_since.is_some() {
            return;
        }
        self.came += 1;
        let more = self.came.saturating_sub(self.went) as f64;
        let age = now.saturating_duration_since(self.waiting_since);
        self.overloaded |=
            age >= self.standing_after() && more >= STANDING_PROOF * (self.came as f64).sqrt();
    }

    /// Learns the drain rate from releases that find somebody waiting.
    pub(super) fn note_release(&mut self, waiting: bool, now: Instant) {
        self.went += u64::from(waiting);
        if let (true, Some(last)) = (waiting, self.last_release) {
            let interval = now.saturating_duration_since(last).as_secs_f64();
            self.interval = if self.interval == 0.0 {
                interval
            } else {
                let most = (self.interval * INTERVAL_OUTLIER).max(INTERVAL_OUTLIER_MIN);
                let interval = interval.min(most);
                self.interval + (interval - self.interval) * INTERVAL_WEIGHT
            };
        }
        self.last_release = waiting.then_some(now);
    }

    /// Whether the queue stands: more have come than went, for longer than a burst lasts.
    pub(super) fn is_standing(&self, now: Instant) -> bool {
        self.service_time > Duration::ZERO
            && self.overloaded
            && self
                .idle_since
                .is_none_or(|since| now.saturating_duration_since(since) < self.service_time)
    }

    /// The wait that is worth offering under a standing queue, with this limit.
    pub(super) fn standing_wait(&self, limit: u32) -> Duration {
        let places = STANDING_PLACES / f64::from(limit.max(1)).sqrt();
        self.service_time.mul_f64(places).max(STANDING_WAIT_MIN)
    }

    fn standing_after(&self) -> Duration {
        STANDING_AFTER_MIN.max(self.service_time * STANDING_AFTER)
    }
}

//! How fast the backend works off what waits, and whether the queue is a burst or stands.
//!
//! CoDel's distinction, with a target taken from the measured service time instead of a constant.

use std::time::{Duration, Instant};

/// How many wait under a standing queue to begin with, in square roots of the limit. What a queue is
/// for is to have somebody at hand when a worker comes free, and the fluctuation of that grows with the
/// root. Everything longer is latency for nothing.
const STANDING_PLACES: f64 = 1.5;
/// The most that it grows to, in the same unit.
const STANDING_PLACES_MOST: f64 = 6.0;
/// A worker that came free and found nobody waiting: so many places more.
const STANDING_UP: f64 = 0.5;
/// ... and so many fewer for each that found somebody, times the square of those it found, in the same
/// unit. With few places one in fifty waits for work, and only until the next arrival: about 1 % of the
/// throughput. A long queue that never empties is soon a short one.
const STANDING_DOWN: f64 = 0.01;
/// The same where the backend's slots are known, so that what waits inside of it is counted as well, and nobody is
/// thought to be idle who is not: one in a hundred has to wait for work.
const STANDING_DOWN_KNOWN: f64 = 0.005;
/// A queue that has not been empty for this many service times may be a standing one...
const STANDING_AFTER: f64 = 2.5;
/// ... and at least this long...
const STANDING_AFTER_MIN: Duration = Duration::from_millis(50);
/// ... if more have come than went, by so many standard deviations of the number that came: a backend
/// with room to spare sees bursts of every length, and refuses nobody for them.
const STANDING_PROOF_EARLY: f64 = 3.0;
/// When it lasts twice as long, and at least this long, less proof will do...
const STANDING_LATE_MIN: Duration = Duration::from_millis(200);
/// ... namely this.
const STANDING_PROOF_LATE: f64 = 2.0;
/// With so much it is suspected before that: newcomers already go first, as they would under a standing queue, but
/// nobody is refused for it. If it was a burst, whoever was overtaken is served when it is over.
const STANDING_SUSPICION: f64 = 1.5;
/// A wait that nobody minds. Shorter bounds would refuse requests for the scheduler's hiccups.
const STANDING_WAIT_MIN: Duration = Duration::from_millis(20);
/// The drain rate is that of about so many releases...
const RATE_RELEASES: f64 = 8.0;
/// ... and of at least so many service times: requests that began together end together, and what lies
/// between is no pause.
const RATE_SERVICE_TIMES: f64 = 2.0;
/// Nobody done for longer than so many service times and usual intervals is a pause, and not a pace.
const PAUSE_SERVICE_TIMES: f64 = 1.5;
const PAUSE_INTERVALS: f64 = 4.0;
/// ... but so many seconds always count, so that a slower backend is soon believed.
const PAUSE_MIN: f64 = 0.005;

/// When so many come for each that goes, what those in front leave is not worth waiting for. With fewer, a worker that
/// comes free and finds nobody else is glad of somebody who was overtaken.
const CROWDED: f64 = 1.75;
/// That is measured over this time, forgetting...
const CROWDED_OVER: f64 = 0.5;
/// ... and, because it may have been one burst, so many must have come for each in the last stretch as well: a
/// service time, and at least so many intervals.
const CROWDED_STILL: f64 = 1.25;
const STRETCH_INTERVALS: f64 = 4.0;

/// So many seconds, to the nanosecond: `from_secs_f64` calculates with 128 bits, and each arrival asks.
fn seconds(seconds: f64) -> Duration {
    Duration::from_nanos((seconds * 1e9 + 0.5) as u64)
}

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
    /// Whether it begins to look like that.
    suspected: bool,
    /// Since when nobody has been waiting; `None` while somebody is.
    idle_since: Option<Instant>,
    /// The backend's own time for a request, unloaded; zero = unknown.
    service_time: Duration,
    /// Releases while somebody waited and the time they took, both forgetting.
    released: f64,
    busy_seconds: f64,
    /// The last release that left somebody waiting.
    last_release: Option<Instant>,
    /// How many may wait under a standing queue, beyond the next, in square roots of the limit.
    places: f64,
    arrivals: Arrivals,
    /// The beginning of the last whole stretch, if it was crowded.
    crowded_since: Option<Instant>,
}

/// Who comes while somebody waits.
#[derive(Debug)]
struct Arrivals {
    last: Instant,
    /// Those of late and the time they took, both forgetting.
    came: f64,
    seconds: f64,
    /// The present stretch.
    stretch_since: Instant,
    stretch_came: f64,
}

impl Arrivals {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            came: 0.0,
            seconds: 0.0,
            stretch_since: now,
            stretch_came: 0.0,
        }
    }
}

impl Pace {
    /// Nothing is known, and nobody waits.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            waiting_since: now,
            came: 0,
            went: 0,
            overloaded: false,
            suspected: false,
            idle_since: Some(now),
            service_time: Duration::ZERO,
            released: 0.0,
            busy_seconds: 0.0,
            last_release: None,
            places: STANDING_PLACES,
            arrivals: Arrivals::new(now),
            crowded_since: None,
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
        seconds(ahead as f64 * self.interval())
    }

    /// How many can be worked off within this time, at the pace of late; no bound while that is
    /// unknown.
    pub(super) fn places_within(&self, wait: Duration) -> usize {
        if self.interval() > 0.0 {
            (wait.as_secs_f64() / self.interval()) as usize
        } else {
            usize::MAX
        }
    }

    /// Notes when a queue begins and ends. One that is back within a service time never went away:
    /// at twice the load a short queue is empty for a moment several times a second, and once it is
    /// known to stand, for longer. One that comes back after a rest is a new burst, about which the
    /// old pace says nothing.
    pub(super) fn note_queue(&mut self, waiting: bool, now: Instant) {
        match (waiting, self.idle_since) {
            (true, Some(since)) => {
                let rest = now.saturating_duration_since(since);
                self.overloaded &= rest < self.rest();
                if rest >= self.service_time && !self.overloaded {
                    self.waiting_since = now;
                    (self.came, self.went, self.suspected) = (0, 0, false);
                    (self.arrivals, self.crowded_since) = (Arrivals::new(now), None);
                }
                if rest >= self.rest() {
                    (self.released, self.busy_seconds) = (0.0, 0.0);
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
        self.learn_arrivals(now);
        let more = self.came.saturating_sub(self.went) as f64;
        let age = now.saturating_duration_since(self.waiting_since);
        let early = self.service_time.mul_f64(STANDING_AFTER);
        let proof = if age >= self.rest() {
            STANDING_PROOF_LATE
        } else {
            STANDING_PROOF_EARLY
        };
        if age >= STANDING_AFTER_MIN.max(early) {
            let chance = (self.came as f64).sqrt();
            self.overloaded |= more >= proof * chance;
            self.suspected |= more >= STANDING_SUSPICION * chance;
        }
    }

    /// Learns the drain rate from releases that find somebody waiting, and how many need to wait so
    /// that most do. A worker also finds those who wait `inside` the backend, if it is known how many. `limit`
    /// as in [`standing_wait`](Self::standing_wait).
    pub(super) fn note_release(
        &mut self,
        waiting: usize,
        inside: Option<usize>,
        limit: u32,
        now: Instant,
    ) {
        if self.is_standing(now) {
            let root = f64::from(limit.max(1)).sqrt();
            let down = inside.map_or(STANDING_DOWN, |_| STANDING_DOWN_KNOWN);
            let step = match waiting + inside.unwrap_or(0) {
                0 => STANDING_UP,
                n => -down * (n as f64 / root).min(10.0),
            };
            self.places = (self.places + step / root).clamp(0.0, STANDING_PLACES_MOST);
        }
        let waiting = waiting > 0;
        self.went += u64::from(waiting);
        if let (true, Some(last)) = (waiting, self.last_release) {
            self.learn_interval(now.saturating_duration_since(last).as_secs_f64());
        }
        self.last_release = waiting.then_some(now);
    }

    /// Takes an arrival, and judges a stretch that is over.
    fn learn_arrivals(&mut self, now: Instant) {
        let interval = self.interval();
        let arrivals = &mut self.arrivals;
        let gap = now.saturating_duration_since(arrivals.last).as_secs_f64();
        let kept = (-gap / CROWDED_OVER).exp();
        arrivals.last = now;
        arrivals.came = arrivals.came * kept + 1.0;
        arrivals.seconds = arrivals.seconds * kept + gap;
        let stretch = now.saturating_duration_since(arrivals.stretch_since);
        let stretch = stretch.as_secs_f64();
        if stretch >= (STRETCH_INTERVALS * interval).max(self.service_time.as_secs_f64()) {
            let is_crowded = arrivals.came * interval >= CROWDED * arrivals.seconds
                && arrivals.stretch_came * interval >= CROWDED_STILL * stretch;
            self.crowded_since = is_crowded.then_some(arrivals.stretch_since);
            (arrivals.stretch_since, arrivals.stretch_came) = (now, 0.0);
        }
        arrivals.stretch_came += 1.0;
    }

    /// Under a standing queue: since when at the least far more have come than went. Whoever was there before,
    /// and is behind all of them, waits in vain.
    pub(super) fn crowded_since(&self, now: Instant) -> Option<Instant> {
        self.crowded_since.filter(|_| self.is_standing(now))
    }

    /// Takes the time since the last release, seconds.
    fn learn_interval(&mut self, gap: f64) {
        let service = self.service_time.as_secs_f64();
        let pause = PAUSE_SERVICE_TIMES * service + PAUSE_INTERVALS * self.interval();
        let gap = if self.released > 0.0 {
            gap.min(pause.max(PAUSE_MIN))
        } else {
            gap
        };
        let memory = (RATE_SERVICE_TIMES * service).max(RATE_RELEASES * self.interval());
        let kept = if memory > 0.0 {
            (-gap / memory).exp()
        } else {
            0.0
        };
        self.released = self.released * kept + 1.0;
        self.busy_seconds = self.busy_seconds * kept + gap;
    }

    /// Mean time between releases while somebody waits, seconds; zero = unknown.
    fn interval(&self) -> f64 {
        if self.released > 0.0 {
            self.busy_seconds / self.released
        } else {
            0.0
        }
    }

    /// Whether the queue stands: more have come than went, for longer than a burst lasts.
    pub(super) fn is_standing(&self, now: Instant) -> bool {
        self.service_time > Duration::ZERO
            && self.overloaded
            && self
                .idle_since
                .is_none_or(|since| now.saturating_duration_since(since) < self.rest())
    }

    /// Whether a queue that is too young to be judged looks as if it were going to stand.
    pub(super) fn is_suspect(&self, now: Instant) -> bool {
        self.suspected
            && self.service_time > Duration::ZERO
            && now.saturating_duration_since(self.waiting_since) < self.rest()
    }

    /// What is long for a queue, to last or to be gone.
    fn rest(&self) -> Duration {
        STANDING_LATE_MIN.max(self.service_time.mul_f64(2.0 * STANDING_AFTER))
    }

    /// The wait that is worth offering under a standing queue, with this limit, of which so many wait `inside` the
    /// backend.
    pub(super) fn standing_wait(&self, limit: u32, inside: u32) -> Duration {
        let places = self.places * f64::from(limit.max(1)).sqrt() - f64::from(inside);
        let places = places.max(0.0);
        seconds(places * self.interval()).max(STANDING_WAIT_MIN)
    }
}

//! How fast the backend works off what waits, and whether the queue is a burst or stands.
//!
//! CoDel's distinction, with a target taken from the measured service time instead of a constant.

use std::time::{Duration, Instant};

/// How many may wait under a standing queue to begin with, in units of the square root of the limit. The
/// purpose of a queue is to have somebody ready when a worker comes free, and the fluctuations of that grow
/// with the root. A longer queue only adds latency.
const STANDING_PLACES: f64 = 1.5;
/// The most that it grows to, in the same unit.
const STANDING_PLACES_MOST: f64 = 6.0;
/// So many places are added when a worker comes free and finds nobody waiting...
const STANDING_UP: f64 = 0.5;
/// ... and so many taken away when one finds somebody, times the number that it finds, in the same unit. With
/// few places one worker in fifty has to wait for work, and only until the next arrival: about 1 % of the
/// throughput. A long queue that never empties is soon a short one.
const STANDING_DOWN: f64 = 0.01;
/// The same where the backend's slots are known: requests that wait inside it are counted as well, so no
/// worker is taken for idle that is not, and one in a hundred has to wait for work.
const STANDING_DOWN_KNOWN: f64 = 0.005;
/// A queue that has not been empty for this many service times may be a standing one...
const STANDING_AFTER: f64 = 2.5;
/// ... and at least this long...
const STANDING_AFTER_MIN: Duration = Duration::from_millis(50);
/// ... if arrivals exceed completions by so many standard deviations of the number of arrivals: a backend
/// with room to spare sees bursts of every length, and nobody is to be refused for them.
const STANDING_PROOF_EARLY: f64 = 3.0;
/// When it lasts twice as long, and at least this long, less proof will do...
const STANDING_LATE_MIN: Duration = Duration::from_millis(200);
/// ... namely this.
const STANDING_PROOF_LATE: f64 = 2.0;
/// With this much proof a standing queue is suspected even earlier: newcomers already go first, but nobody is
/// refused for it. If it was only a burst, those who were overtaken are served when it is over.
const STANDING_SUSPICION: f64 = 1.5;
/// Where a backend got slower, the load from before is better proof: it is known, and it only has to be more
/// than the backend completes now. It is the mean over this many seconds before anybody waited...
const BEFORE_OVER: f64 = 10.0;
/// ... if it is known for this many...
const BEFORE_LEAST: f64 = 5.0;
/// ... while as much still arrives, over this many: a load that is over proves nothing...
const OF_LATE_OVER: f64 = 2.0;
/// ... both means being updated when this many seconds have passed...
const OFFERED_EVERY: f64 = 0.1;
/// ... compared with the releases while somebody waited, of which there must be at least this many...
const OUTRUN_RELEASES: u64 = 24;
/// ... and which the load has to exceed by this factor.
const OUTRUN_BY: f64 = 1.05;
/// A wait that nobody minds. Shorter bounds would refuse requests for the scheduler's hiccups.
const STANDING_WAIT_MIN: Duration = Duration::from_millis(20);
/// The drain rate is that of about so many releases...
const RATE_RELEASES: f64 = 8.0;
/// ... and of at least so many service times: requests that began together end together, and what lies
/// between is no pause.
const RATE_SERVICE_TIMES: f64 = 2.0;
/// A gap between releases that is longer than so many service times plus so many usual intervals is a pause,
/// and counts as no longer than that...
const PAUSE_SERVICE_TIMES: f64 = 1.5;
const PAUSE_INTERVALS: f64 = 4.0;
/// ... but so many seconds always count, so that a slower backend is soon believed.
const PAUSE_MIN: f64 = 0.005;

/// When so many requests arrive for each that is completed, those who were overtaken need not wait for what
/// newcomers leave them. With fewer arrivals, a worker that comes free and finds nobody else can use one of
/// them.
const CROWDED: f64 = 1.75;
/// That is measured over this time, with exponential decay...
const CROWDED_OVER: f64 = 0.5;
/// ... and, because it may have been one burst, so many must have come for each in the last stretch as well: a
/// service time, and at least so many intervals.
const CROWDED_STILL: f64 = 1.25;
const STRETCH_INTERVALS: f64 = 4.0;

/// A duration of so many seconds, to the nanosecond: `from_secs_f64` calculates with 128 bits, which is too
/// slow for each arrival.
fn seconds(seconds: f64) -> Duration {
    Duration::from_nanos((seconds * 1e9 + 0.5) as u64)
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pace {
    /// Since when somebody has been waiting, but for breaks shorter than a service time.
    waiting_since: Instant,
    /// Arrivals and completions since `waiting_since`, while somebody waited.
    came: u64,
    went: u64,
    /// Whether more came than chance explains.
    overloaded: bool,
    /// Whether it begins to look like that.
    suspected: bool,
    /// Seconds in which somebody waited since `waiting_since`, up to the last break, and the end of that.
    waited: f64,
    resumed: Instant,
    offered: Offered,
    /// Since when nobody has been waiting; `None` while somebody is.
    idle_since: Option<Instant>,
    /// The backend's own time for a request, unloaded; zero = unknown.
    service_time: Duration,
    /// Releases while somebody waited, and the time they took; both decay.
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

/// All arrivals, whether somebody waits or not.
#[derive(Debug)]
struct Offered {
    counted: u32,
    since: Instant,
    long: Rate,
    late: Rate,
    /// A second, before anybody waited; zero = unknown.
    before: f64,
}

/// A number, and the seconds in which it was counted; both decay.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    number: f64,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, number: f64, seconds: f64, memory: f64) {
        let kept = (-seconds / memory).exp();
        self.number = self.number * kept + number;
        self.seconds = self.seconds * kept + seconds;
    }

    /// A second.
    fn mean(self) -> f64 {
        if self.seconds > 0.0 {
            self.number / self.seconds
        } else {
            0.0
        }
    }
}

impl Offered {
    fn new(now: Instant) -> Self {
        Self {
            counted: 0,
            since: now,
            long: Rate::default(),
            late: Rate::default(),
            before: 0.0,
        }
    }

    fn note(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.since).as_secs_f64();
        if gap >= OFFERED_EVERY {
            let number = f64::from(self.counted);
            self.long.add(number, gap, BEFORE_OVER);
            self.late.add(number, gap, OF_LATE_OVER);
            (self.counted, self.since) = (0, now);
        }
        self.counted += 1;
    }

    /// A queue begins.
    fn begin(&mut self) {
        let known = self.long.seconds >= BEFORE_LEAST;
        self.before = if known { self.long.mean() } else { 0.0 };
    }
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
            waited: 0.0,
            resumed: now,
            offered: Offered::new(now),
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

    /// The time that the backend needs for those who came over the last two seconds or so and are more than it got done.
    pub(super) fn backlog(&self) -> Duration {
        let load = self.offered.late.mean() * self.interval();
        seconds((load - 1.0).clamp(0.0, 1e3) * OF_LATE_OVER)
    }

    /// The time between completions if all of `slots` are busy, however many are now: by the service time,
    /// but no less than the backend has shown to need.
    pub(super) fn interval_of(&self, slots: u32) -> Duration {
        let service = self.service_time.as_secs_f64();
        seconds((service / f64::from(slots.max(1))).max(self.interval()))
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
                    self.waited = 0.0;
                    self.offered.begin();
                    (self.arrivals, self.crowded_since) = (Arrivals::new(now), None);
                }
                if rest >= self.rest() {
                    (self.released, self.busy_seconds) = (0.0, 0.0);
                }
                (self.idle_since, self.resumed) = (None, now);
            }
            (false, None) => {
                self.waited += now.saturating_duration_since(self.resumed).as_secs_f64();
                self.idle_since = Some(now);
                self.last_release = None;
            }
            _ => {}
        }
    }

    /// Counts an arrival, whatever becomes of it.
    pub(super) fn note_offer(&mut self, now: Instant) {
        self.offered.note(now);
    }

    /// Whether more come, and came before anybody waited, than the backend gets done now.
    fn is_outrun(&self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.resumed).as_secs_f64() + self.waited;
        let coming = self.offered.before.min(self.offered.late.mean());
        self.went >= OUTRUN_RELEASES && coming * waited >= OUTRUN_BY * self.went as f64
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
        self.overloaded |= age >= self.rest() && self.is_outrun(now);
    }

    /// Learns the drain rate from releases that find somebody waiting, and how many places it takes for most
    /// of them to do so. A worker also finds those who wait `inside` the backend, if it is known how many.
    /// `limit` as in [`standing_wait`](Self::standing_wait).
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

    /// Under a standing queue: a time since which far more requests have arrived than were completed. Whoever
    /// came before it is behind all of those, and waits in vain.
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

    /// What counts as long, both for a queue to last and for it to have been gone.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend that does one request after the other, and never refuses.
    struct Bench {
        pace: Pace,
        start: Instant,
        random: fastrand::Rng,
        waiting: usize,
        done: Option<f64>,
        standing: u32,
    }

    impl Bench {
        fn new(seed: u64) -> Self {
            let start = crate::clock::now();
            let mut pace = Pace::new(start);
            pace.set_service_time(Duration::from_millis(20));
            Self {
                pace,
                start,
                random: fastrand::Rng::with_seed(seed),
                waiting: 0,
                done: None,
                standing: 0,
            }
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        /// Requests at random between two moments, on average this many times what the backend gets done. When the
        /// first of them found a queue that stands.
        fn run(&mut self, from: f64, to: f64, load: f64, service: f64) -> Option<f64> {
            let (mut arrival, mut first) = (from, None);
            while arrival < to {
                while let Some(done) = self.done.filter(|done| *done <= arrival) {
                    let now = self.at(done);
                    self.pace.note_release(self.waiting, None, 1, now);
                    self.done = (self.waiting > 0).then_some(done + service);
                    self.waiting = self.waiting.saturating_sub(1);
                    self.pace.note_queue(self.waiting > 0, now);
                }
                let now = self.at(arrival);
                self.pace.note_offer(now);
                if self.done.is_none() {
                    self.done = Some(arrival + service);
                } else {
                    self.waiting += 1;
                    self.pace.note_queue(true, now);
                    self.pace.note_arrival(now);
                }
                if self.pace.is_standing(now) {
                    self.standing += 1;
                    first = first.or(Some(arrival));
                }
                arrival -= (1.0 - self.random.f64()).ln() * service / load;
            }
            first
        }
    }

    #[test]
    fn the_backlog_is_what_those_who_came_too_many_of_late_need() {
        for (load, least, most) in [(0.7, 0.0, 1.0), (3.0, 3.0, 5.0), (10.0, 14.0, 22.0)] {
            let mut bench = Bench::new(1);
            bench.run(0.0, 8.0, load, 0.02);
            let backlog = bench.pace.backlog().as_secs_f64();
            assert!((least..=most).contains(&backlog), "{load}: {backlog}");
        }
    }

    #[test]
    fn a_backend_that_falls_a_little_short_is_found_out_within_seconds() {
        let mut found: Vec<f64> = (0..21)
            .map(|seed| {
                let mut bench = Bench::new(seed);
                bench.run(0.0, 20.0, 0.56, 0.0215);
                let found = bench.run(20.0, 40.0, 1.12, 0.043);
                found.unwrap_or(f64::INFINITY) - 20.0
            })
            .collect();
        found.sort_by(f64::total_cmp);
        // Without the load from before it takes 2.5 and 10 s.
        assert!(found[10] <= 2.0 && found[18] <= 5.0, "{found:?}");
    }

    #[test]
    fn a_backend_with_room_to_spare_refuses_nobody_for_what_was_before() {
        let (mut arrivals, mut standing) = (0.0, 0.0);
        for seed in 0..10 {
            let mut bench = Bench::new(seed);
            bench.run(0.0, 200.0, 0.8, 0.02);
            arrivals += 200.0 * 0.8 / 0.02;
            standing += f64::from(bench.standing);
        }
        // As much as without: what is judged by the queue alone.
        assert!(standing <= 0.1 * arrivals, "{}", standing / arrivals);
        // An overload is over, and what is left of it in the long mean proves nothing.
        let mut bench = Bench::new(1);
        bench.run(0.0, 20.0, 1.5, 0.02);
        bench.waiting = 0;
        bench.pace.note_queue(false, bench.at(20.0));
        bench.done = None;
        bench.standing = 0;
        bench.run(25.0, 45.0, 0.65, 0.02);
        assert!(bench.standing <= 10, "{}", bench.standing);
    }
}

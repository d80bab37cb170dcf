//! The controller of one backend endpoint: samples in, a limit out.

mod view;

use std::time::{Duration, Instant};

use super::ceilings::Ceilings;
use super::curve::{Baseline, Curve, Origins};
use super::elastic::{Point, busy};
use super::law::{LIMITED, Law, Measured};
use super::memory::Remembered;
use super::pause::Pauses;
use super::quickest::Quickest;
use super::routes::Routes;
use super::shadows::Shadows;
use super::window::{Pace, Summary, Window};
use super::{BoundBy, Decision, Evidence, Outcome, Readings, Sample, Settings, Usage, reason};

/// After a change of the limit one latency passes before samples count, but no more than this.
const SETTLE_MOST: Duration = Duration::from_secs(1);
/// The same before any latency is known.
const SETTLE_UNKNOWN: Duration = Duration::from_millis(50);
/// Gain of the averages of latency and cost, a sample, once they are warm.
const AVERAGE_GAIN: f64 = 0.02;
/// One request's coefficient of variation before it is measured: that of a typical service.
const VARIATION: f64 = 0.5;
/// Gain of the coefficient of variation, a window.
const VARIATION_GAIN: f64 = 0.2;
/// Windows in a row with latency beyond the tolerance before the CPU may cut. At a stretch of 1.12 instead,
/// it would cut where throughput still grows.
const SLOW_WINDOWS: u32 = 2;
/// When requests turn out to have other costs, and that moves the baseline by no more than this part of it, what was
/// measured before still compares.
const FORGETTABLE: f64 = 0.05;
/// A resource that has cut the limit is what bounds it for this long, if nothing else does.
const CUT_REMEMBERED: Duration = Duration::from_secs(10);

/// The concurrency limit of one backend endpoint, and why it is what it is.
///
/// Told of every finished request ([`observe`](Self::observe)), asked now and then
/// ([`tick`](Self::tick)). It reads no clock: the caller passes the time, which must not go back.
#[derive(Clone, Debug)]
pub struct Controller {
    settings: Settings,
    law: Law,
    limit: u32,
    /// Streams at the last look. The law decides about the others; a stream is let in as one of them, and then is one
    /// more than they.
    streams: u32,
    /// What the law had for the others before streams took what bounds the limit.
    crowded: Option<u32>,
    bound_by: BoundBy,
    pinned: Option<u32>,
    /// What [`Controller::begin`] was told.
    begun: Option<u32>,
    /// If something other than the law has moved the limit since the last tick: the limit before that, and
    /// the reason.
    moved: Option<(u32, &'static str)>,
    shadows: Shadows,
    ceilings: Ceilings,
    readings: Readings,
    /// The last look: when, and the integral of in-flight.
    looked: Option<(Instant, f64)>,
    /// Windows in a row in which latency was stretched.
    slow: u32,
    /// The last cut by a resource.
    cut: Option<(BoundBy, Instant)>,
    leaking: bool,
    /// Only requests started since then enter the window.
    epoch: Instant,
    /// While the last change settles: until then.
    settling: Option<Instant>,
    window: Window,
    windows: u32,
    routes: Routes,
    curve: Curve,
    origins: Origins,
    baseline: Option<Baseline>,
    pauses: Pauses,
    quickest: Quickest,
    /// Whether traffic reached the limit in the last window.
    limited: bool,
    size_biased: Option<f64>,
    variation: f64,
    averaged: u32,
    latency: f64,
    cost: f64,
    evidence: Option<Evidence>,
    reason: &'static str,
}

impl Controller {
    /// A controller that starts at `settings.initial`, within `min..=max`.
    pub fn new(settings: Settings, now: Instant) -> Self {
        let limit = settings.clamp(settings.initial);
        let law = Law::new(settings.algorithm, limit);
        let mut controller = Controller {
            settings,
            law,
            limit,
            streams: 0,
            crowded: None,
            bound_by: BoundBy::Idle,
            pinned: None,
            begun: None,
            moved: None,
            shadows: Shadows::default(),
            ceilings: Ceilings::default(),
            readings: Readings::default(),
            looked: None,
            slow: 0,
            cut: None,
            leaking: false,
            epoch: now,
            settling: None,
            window: Window::new(now, None),
            windows: 0,
            routes: Routes::new(),
            curve: Curve::new(),
            origins: Origins::new(),
            baseline: None,
            pauses: Pauses::default(),
            quickest: Quickest::default(),
            limited: false,
            size_biased: None,
            variation: VARIATION,
            averaged: 0,
            latency: 0.0,
            cost: 0.0,
            evidence: None,
            reason: reason::IDLE,
        };
        controller.cast_shadows();
        controller.bound_by = controller.find_bound(now);
        if controller.bound_by == BoundBy::Configured {
            controller.reason = reason::CONFIGURED;
        }
        controller
    }

    /// Takes new settings while running. The limit stays, within the new `min..=max`; under
    /// [`Algorithm::Fixed`](super::Algorithm::Fixed) it becomes the new `initial`. What was learned of the backend
    /// stays.
    pub fn reconfigure(&mut self, settings: Settings, now: Instant) {
        let (min, max) = settings.bounds();
        if self.law.algorithm() == settings.algorithm {
            self.law.clamp(min, max);
        } else {
            let limit = self.of_short(self.limit).clamp(min, max);
            self.law = Law::new(settings.algorithm, limit);
            if self.windows > 0 {
                // It is the end of another law's search, not the beginning of one.
                self.law.shrink(f64::from(limit));
            }
        }
        self.settings = settings;
        self.cast_shadows();
        self.note_move(reason::CONFIGURED);
        self.apply(now);
    }

    fn cast_shadows(&mut self) {
        let in_force = self.law.algorithm();
        let limit = self.of_short(self.limit);
        self.shadows.cast(&self.settings, in_force, limit);
    }

    /// Starts at this limit instead, unless something has been learned already: the backend's slots
    /// have become known.
    pub fn begin(&mut self, limit: u32, now: Instant) {
        self.begun = Some(limit);
        self.settings.initial = self.settings.clamp(limit);
        if self.windows == 0 {
            self.law = Law::new(self.settings.algorithm, self.settings.initial);
        }
        self.note_move(reason::SLOTS);
        self.apply(now);
    }

    /// Where it was told to begin, or else the slots that the sensors see: this takes the place of an
    /// `initial` that is not configured.
    pub fn begun(&self) -> Option<u32> {
        self.begun.or(self.readings.slots)
    }

    /// Holds the limit at the operator's value (within `min..=max`) until `None` gives it back to
    /// the law, which goes on from where it was. The backend is measured meanwhile.
    pub fn pin(&mut self, limit: Option<u32>, now: Instant) {
        self.pinned = limit;
        self.note_move(reason::CONFIGURED);
        self.apply(now);
    }

    /// Notes that something other than the law is about to move the limit. The next decision says so, and
    /// why.
    fn note_move(&mut self, why: &'static str) {
        let from = self.moved.map_or(self.limit, |(from, _)| from);
        self.moved = Some((from, why));
    }

    /// What was learned of the backend, to be kept across a restart; `None` while that is too little.
    pub fn remember(&self) -> Option<Remembered> {
        Some(Remembered {
            slots: self.readings.slots,
            limit: self.law.settled_limit(&self.settings),
            scale: self.baseline?.scale,
            cost: self.cost,
            latency: self.latency,
            bins: self.curve.remember(),
        })
    }

    /// Goes on from what an earlier process learned, if this one has learned nothing yet: says whether
    /// it did. Figures that make no sense, and those of a backend with other slots, are refused.
    pub fn recall(&mut self, known: &Remembered, now: Instant) -> bool {
        let same = match (known.slots, self.readings.slots) {
            (Some(then), Some(now)) => then == now,
            _ => true,
        };
        if self.windows > 0 || self.averaged > 0 || !same || !known.makes_sense() {
            return false;
        }
        self.curve.recall(known.scale, &known.bins, now);
        self.baseline = self.curve.baseline(known.limit, now);
        (self.cost, self.latency, self.averaged) = (known.cost, known.latency, 1);
        let limit = self.settings.clamp(known.limit);
        self.law = Law::new(self.settings.algorithm, limit);
        // It is the end of a search, not its beginning: no slow start.
        self.law.shrink(f64::from(limit));
        self.note_move(reason::RECALL);
        self.apply(now);
        true
    }

    /// Takes one finished request. Constant time, no allocation.
    pub fn observe(&mut self, sample: &Sample) {
        if sample.outcome == Outcome::Excluded {
            return;
        }
        let place = Routes::place(sample.group);
        let scale = self.baseline.map_or(0.0, |baseline| baseline.scale);
        let known = self.routes.cost(place);
        let took = sample
            .finished
            .saturating_duration_since(sample.started)
            .as_secs_f64();
        let noted = self
            .pauses
            .note(sample.started, sample.finished, took, known * scale);
        if let Some((from, to)) = noted.ended {
            self.window.paused(from, to);
        }
        let fresh = self.settling.is_none() && sample.started >= self.epoch;
        match sample.outcome {
            Outcome::Success | Outcome::InVain => {}
            Outcome::Overload => {
                if fresh {
                    self.window.drop();
                }
                return;
            }
            Outcome::Neutral | Outcome::Excluded => return,
        }
        self.quickest.note(took);
        let latency = (took - noted.overlap).max(1e-6);
        let in_flight = self.of_short(sample.in_flight);
        let low = in_flight <= Curve::low(self.of_short(self.limit));
        let expected = match (low, scale > 0.0) {
            (true, true) => scale,
            (false, true) => self.curve.ratio(in_flight).unwrap_or(scale).max(scale),
            (_, false) => 1.0,
        };
        // A request that began before the limit was last changed may have had more others beside it later
        // than at its start.
        let steady = low && sample.started >= self.epoch;
        self.routes.learn(place, latency / expected, steady);
        let cost = self.routes.cost(place);
        self.curve.add(in_flight, latency, cost, sample.finished);
        self.origins.note(in_flight, sample.group);
        self.averaged = (self.averaged + 1).min(1 << 20);
        let warm = f64::from(self.averaged) * AVERAGE_GAIN >= 1.0;
        let gain = if warm {
            AVERAGE_GAIN
        } else {
            1.0 / f64::from(self.averaged)
        };
        self.latency += gain * (latency - self.latency);
        self.cost += gain * (cost - self.cost);
        if self.settling.is_none() {
            self.window.worked(cost);
        }
        if fresh {
            self.window.success(place, latency, cost);
            let was_heard = sample.outcome == Outcome::Success;
            self.window
                .heard(was_heard, sample.started, sample.finished);
        }
    }

    /// Whether [`tick`](Self::tick) would do something now. Cheap enough to ask at every completion.
    pub fn due(&self, now: Instant) -> bool {
        match self.settling {
            Some(until) => now >= until,
            None => {
                let pace = self.pace();
                self.window.may_close(pace) && self.window.closes(now, self.typical(), pace)
            }
        }
    }

    /// Closes a window when it is time, and moves the limit. To be called every 50 ms or so, and
    /// when [`due`](Self::due). `Some` when a window closed, or when the limit or what binds it
    /// changed.
    pub fn tick(&mut self, now: Instant, usage: &Usage, readings: &Readings) -> Option<Decision> {
        self.note_streams(usage.streams);
        let moved = self.moved.take().filter(|(from, _)| *from != self.limit);
        let (from, bound_by) = (moved.map_or(self.limit, |(from, _)| from), self.bound_by);
        self.window.anchor(now, usage);
        if self.settling.is_some_and(|until| now >= until) {
            self.settling = None;
            self.window = Window::new(now, Some(*usage));
        }
        let workers = self.readings.slots;
        self.look(now, usage, readings);
        if matches!(bound_by, BoundBy::Workers | BoundBy::AcceptQueue)
            && let (Some(before), Some(slots)) = (workers, readings.slots)
            && slots > before
        {
            // It was only the workers that held the limit, and there are more of them.
            let raised = self.of_short(self.ceiling().min(slots + 1));
            self.law.raise(f64::from(raised));
        }
        let mut closed = false;
        if self.settling.is_none() {
            if self.due(now) {
                closed = true;
                self.close(now, usage);
                self.window = Window::new(now, Some(*usage));
            } else if self.window.is_stale(now, usage, self.latency) {
                // Where requests hang there are no samples, however full it is.
                self.limited = self.window.saturation(now, usage) >= LIMITED;
                self.window = Window::new(now, Some(*usage));
            }
        }
        let cut = self.cut_back(now);
        self.apply(now);
        let alarm = self.ceilings.leaking() && !self.leaking;
        self.leaking = self.ceilings.leaking();
        let changed = self.limit != from || self.bound_by != bound_by;
        if let Some(by) = cut {
            self.reason = reason::vetoed(by);
        } else if let Some((_, why)) = moved {
            self.reason = why;
        } else if !closed && changed || self.limit < from && self.limit >= self.ceiling() {
            // Not the law moved it, but what bounds the law.
            self.reason = reason::vetoed(self.bound_by);
        } else if self.reason == reason::LATENCY && !self.limited && self.limit == from {
            // It would fall to what is in flight, and that is where it is already.
            self.reason = reason::IDLE;
        }
        if alarm {
            self.reason = reason::LEAK;
        }
        (closed || changed || alarm).then(|| Decision {
            at: now,
            from,
            limit: self.limit,
            bound_by: self.bound_by,
            reason: self.reason,
            evidence: Evidence {
                law_limit: self.law_limit(),
                ceiling: self.ceiling(),
                readings: self.readings,
                ..self.evidence.unwrap_or_default()
            },
        })
    }

    /// Hands what the sensors say to the ceilings.
    fn look(&mut self, now: Instant, usage: &Usage, readings: &Readings) {
        let mut mean = f64::from(usage.in_flight);
        if let Some((at, busy)) = self.looked {
            let seconds = now.saturating_duration_since(at).as_secs_f64();
            let grown = (usage.busy_seconds - busy) / seconds.max(1e-6);
            if seconds > 0.0 && grown.is_finite() {
                mean = grown.clamp(0.0, f64::from(u32::MAX));
            }
        }
        self.looked = Some((now, usage.busy_seconds));
        self.readings = *readings;
        let resources = self.settings.resources;
        self.ceilings.note(now, readings, usage, mean, &resources);
    }

    /// Takes the cut that a resource asks for.
    fn cut_back(&mut self, now: Instant) -> Option<BoundBy> {
        if self.pinned.is_some() || matches!(self.law, Law::Fixed) {
            return None;
        }
        // A change of the limit has to be seen first: it may have been enough.
        let slow =
            self.slow >= SLOW_WINDOWS && self.settling.is_none() && self.pace() == Pace::Usual;
        let cut = self.ceilings.cut(now, slow)?;
        let (min, _) = self.settings.bounds();
        let limit = self.of_short(self.limit);
        // A tenth of a small limit is a whole request, and maybe one that is worked on.
        let least = busy(limit, self.stretch().unwrap_or(1.0)).max(f64::from(min));
        let to = (f64::from(limit) * cut.factor).max(least);
        self.law.shrink(to.min(f64::from(limit)));
        self.cut = Some((cut.by, now));
        // What was seen belongs to the limit before: the next cut needs new windows.
        self.slow = 0;
        Some(cut.by)
    }

    fn typical(&self) -> f64 {
        let known = self.window.size_biased().or(self.size_biased);
        known.unwrap_or(0.0)
    }

    fn pace(&self) -> Pace {
        match self.pinned {
            None => self.law.pace(),
            Some(_) => Pace::Usual,
        }
    }

    /// The most that makes sense by the sensors.
    fn ceiling(&self) -> u32 {
        let (min, max) = self.settings.bounds();
        self.ceilings.lowest(max).0.clamp(min, max)
    }

    fn close(&mut self, now: Instant, usage: &Usage) {
        self.size_biased = self.window.size_biased().or(self.size_biased);
        if let Some(corrections) = self.routes.normalise() {
            let moved = self.curve.correct(&self.origins, &corrections, now);
            if (moved - 1.0).abs() > FORGETTABLE {
                self.law.forget();
                self.shadows.forget();
            }
        }
        let summary = self.window.summary(now, usage, &self.routes);
        self.windows = self.windows.saturating_add(1);
        self.limited = summary.limited >= LIMITED;
        if summary.samples >= 8 {
            let gain = VARIATION_GAIN.max(1.0 / f64::from(self.windows.min(100)));
            self.variation += gain * (summary.variation - self.variation);
        }
        self.baseline = self.curve.baseline(self.of_short(self.limit), now);
        let measured = self.measure(now, &summary);
        self.evidence = Some(Evidence {
            samples: summary.samples,
            drops: summary.drops,
            stretch: measured.point.stretch,
            noise: measured.sigma,
            throughput: summary.work * self.baseline.map_or(1.0, |baseline| baseline.scale),
            limited_share: summary.limited,
            mean_latency: Duration::try_from_secs_f64(summary.latency).unwrap_or_default(),
            in_flight: summary.in_flight,
            ..Evidence::default()
        });
        self.shadows.decide(&measured, &self.curve, &self.settings);
        self.reason = if self.pinned.is_some() {
            reason::CONFIGURED
        } else {
            self.law.decide(&measured, &mut self.curve, &self.settings)
        };
        let slow = summary.limited >= LIMITED
            && measured.point.stretch > self.settings.tolerance
            && !measured.is_negligible()
            && self.reason != reason::REBASE;
        self.slow = if slow { self.slow.saturating_add(1) } else { 0 };
        self.baseline = self.curve.baseline(self.of_short(self.limit), now);
    }

    fn measure(&self, now: Instant, summary: &Summary) -> Measured {
        let noise = self.variation * summary.averaging;
        let (stretch, sigma, known) = match (summary.ratio, self.baseline) {
            (Some(ratio), Some(baseline)) => {
                let of_baseline = self.variation / baseline.weight.sqrt();
                (ratio / baseline.scale, noise.hypot(of_baseline), true)
            }
            _ => (1.0, noise, false),
        };
        Measured {
            point: Point {
                at: now,
                limit: self.of_short(self.limit),
                in_flight: (summary.in_flight - f64::from(self.streams)).max(0.0),
                stretch,
                noise,
                work: summary.work,
                drops: f64::from(summary.drops) / f64::from(summary.samples.max(1)),
            },
            samples: summary.samples,
            drops: summary.drops,
            known,
            scale: self.baseline.map_or(0.0, |baseline| baseline.scale),
            ratio: summary.ratio,
            sigma,
            limited: summary.limited,
            latency: summary.latency,
            in_vain: summary.in_vain,
            ceiling: self.of_short(self.ceiling()),
            floor: self.ceilings.floor().map(|floor| self.of_short(floor)),
            veto: self.ceilings.veto(),
            cpu_room: self.ceilings.cpu_has_room(),
        }
    }

    fn wanted(&self) -> u32 {
        match (&self.law, self.pinned) {
            (_, Some(pinned)) => self.settings.clamp(pinned),
            (Law::Fixed, None) => self.settings.clamp(self.settings.initial),
            (_, None) => self.settings.clamp(self.law_limit().min(self.ceiling())),
        }
    }

    fn find_bound(&self, now: Instant) -> BoundBy {
        let (min, max) = self.settings.bounds();
        if self.pinned.is_some() || matches!(self.law, Law::Fixed) {
            return BoundBy::Configured;
        }
        let (ceiling, by) = self.ceilings.lowest(max);
        let recently =
            |(_, at): &(BoundBy, Instant)| now.saturating_duration_since(*at) < CUT_REMEMBERED;
        let cause = self.law.cause();
        if self.limit > ceiling {
            // It would be there, but for limit.min.
            BoundBy::Configured
        } else if self.limit < max && self.ceilings.fills_workers(self.limit) {
            // Where there is not enough CPU for the present workers, more would not help.
            if self.ceilings.cpu_is_used_up() {
                BoundBy::Cpu
            } else {
                BoundBy::Workers
            }
        } else if self.limit >= ceiling && by != BoundBy::Configured {
            by
        } else if self.limit >= max || (self.limited && self.limit <= min && min > 1) {
            BoundBy::Configured
        } else if !self.limited {
            BoundBy::Idle
        } else if let Some((by, _)) = self.cut.filter(recently) {
            by
        } else if cause == BoundBy::Latency && self.ceilings.cpu_is_short() {
            BoundBy::Cpu
        } else {
            cause
        }
    }

    /// How many of so many are no streams; at least 1.
    fn of_short(&self, all: u32) -> u32 {
        all.saturating_sub(self.streams).max(1)
    }

    /// Takes the number of streams. The limit moves with it as far as it may, and that is no decision: it stays what it
    /// was for the others.
    fn note_streams(&mut self, streams: u32) {
        if streams == self.streams {
            return;
        }
        let before = self.of_short(self.limit);
        let fewer = streams < self.streams;
        self.streams = streams;
        let room = self.of_short(self.ceiling());
        let law = self.law.limit(&self.settings);
        if room < law {
            self.crowded = self.crowded.max(Some(law));
        } else if fewer && let Some(known) = self.crowded {
            self.law.raise(f64::from(known.min(room)));
            self.crowded = self.crowded.filter(|known| *known > room);
        }
        let limit = self.wanted();
        if self.of_short(limit) == before {
            self.limit = limit;
        }
    }

    /// Puts the law's wish into force, and lets a change settle.
    fn apply(&mut self, now: Instant) {
        let limit = self.wanted();
        if limit != self.limit {
            self.limit = limit;
            let latency = self.typical();
            let settle = if latency > 0.0 {
                Duration::try_from_secs_f64(latency).map_or(SETTLE_MOST, |d| d.min(SETTLE_MOST))
            } else {
                SETTLE_UNKNOWN
            };
            self.epoch = now;
            self.settling = Some(now + settle);
        }
        self.bound_by = self.find_bound(now);
    }
}

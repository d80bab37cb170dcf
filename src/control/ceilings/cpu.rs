//! The backend's CPU: it forbids growth and deepens a cut, but never starts one. A backend that waits
//! for a database is slow with idle cores, and one with busy cores may have room for requests that wait. How
//! many of them wait for a core is known where the kernel counts it, and needs no baseline.

use std::time::{Duration, Instant};

use crate::control::CpuReading;

/// Time over which readings are averaged.
const MEMORY: Duration = Duration::from_secs(1);
/// Share of the enforcement periods in which the quota was used up that forbids growth.
const THROTTLED: f64 = 0.05;
/// ... and that cuts.
const THROTTLED_HARD: f64 = 0.25;
/// Time runnable without a core over time running that forbids growth.
const DELAYED: f64 = 0.5;
/// ... and that cuts.
const DELAYED_HARD: f64 = 1.5;
/// Share of the time in which a task waits for CPU (PSI `some`) that cuts.
const PRESSED_HARD: f64 = 0.40;
/// With less of its CPU in use than this, a backend waits because of other processes, not because of itself:
/// with fewer requests it would wait as long.
const OWN: f64 = 0.5;
/// Growth is allowed again when this much below the threshold.
const HYSTERESIS: f64 = 0.05;
/// The cut, a factor.
const CUT: f64 = 0.9;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Cpu {
    at: Option<Instant>,
    mean: CpuReading,
    /// Mean requests in flight, over the same time.
    in_flight: f64,
    /// Threads that wait for a core, as they were last read: that is a mean already.
    waiting: f64,
    short: bool,
    /// Some process has a core of its own and needs it (the GIL).
    pinned: bool,
}

impl Cpu {
    pub(super) fn note(
        &mut self,
        now: Instant,
        reading: Option<&CpuReading>,
        in_flight: f64,
        high: f64,
    ) {
        let Some(reading) = reading else {
            *self = Cpu::default();
            return;
        };
        let gain = match self.at {
            None => 1.0,
            Some(at) => {
                let age = now.saturating_duration_since(at).as_secs_f64();
                1.0 - (-age / MEMORY.as_secs_f64()).exp()
            }
        };
        self.at = Some(now);
        self.pinned = reading.pinned > 0;
        self.waiting = reading.waiting;
        let mean = &mut self.mean;
        for (mean, now) in [
            (&mut self.in_flight, in_flight),
            (&mut mean.utilisation, reading.utilisation),
            (&mut mean.throttled, reading.throttled),
            (&mut mean.run_delay, reading.run_delay),
            (&mut mean.pressure, reading.pressure),
        ] {
            if now.is_finite() {
                *mean += gain * (now - *mean);
            }
        }
        let high = if self.short { high - HYSTERESIS } else { high };
        self.short = mean.utilisation > high
            || mean.throttled > THROTTLED
            || (mean.run_delay > DELAYED && mean.utilisation > OWN);
    }

    /// Whether it forbids growth.
    pub(super) fn veto(&self) -> bool {
        self.short
    }

    /// Whether it has room for more requests although it is short. It has while no more threads wait for a
    /// core than the square root of the requests in flight: with so few, a core may soon find nobody waiting.
    /// `None` where that is not known, as where threads that serve no request wait too, and where a low count
    /// proves nothing: what waits for the GIL or for more of a quota need not wait for a core.
    pub(super) fn has_room(&self) -> Option<bool> {
        if !self.short || self.waiting <= 0.0 || self.waiting >= self.in_flight {
            return None;
        }
        let room = self.waiting <= self.in_flight.sqrt();
        let proves = !room || !(self.pinned || self.mean.throttled > THROTTLED);
        proves.then_some(room)
    }

    /// Whether its quota is used up time and again.
    pub(super) fn is_throttled(&self) -> bool {
        self.mean.throttled > THROTTLED_HARD
    }

    /// Whether it is known to be no bottleneck.
    pub(super) fn idles(&self) -> bool {
        self.at.is_some() && !self.short && !self.pinned && self.mean.utilisation < OWN
    }

    /// The factor that it would cut by.
    pub(super) fn cut(&self) -> Option<f64> {
        let mean = &self.mean;
        let waits = mean.run_delay > DELAYED_HARD || mean.pressure > PRESSED_HARD;
        (self.is_throttled() || (waits && mean.utilisation > OWN)).then_some(CUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(reading: CpuReading) -> Cpu {
        let (mut cpu, now) = (Cpu::default(), crate::clock::now());
        for i in 0..40 {
            let at = now + Duration::from_millis(i * 50);
            cpu.note(at, Some(&reading), 9.0, 0.9);
        }
        cpu
    }

    #[test]
    fn says_no_when_it_is_short_itself() {
        let reading = |utilisation, throttled, run_delay| CpuReading {
            utilisation,
            throttled,
            run_delay,
            ..CpuReading::default()
        };
        let busy = seen(reading(0.95, 0.0, 0.2));
        assert_eq!((busy.veto(), busy.cut()), (true, None));
        let throttled = seen(reading(0.8, 0.5, 0.0));
        assert_eq!((throttled.veto(), throttled.cut()), (true, Some(CUT)));
        let crowded = seen(reading(0.7, 0.0, 2.0));
        assert_eq!((crowded.veto(), crowded.cut()), (true, Some(CUT)));
        assert!(!busy.idles() && !throttled.idles() && !crowded.idles());
        assert!(seen(reading(0.3, 0.0, 0.2)).idles());
        let gil = CpuReading {
            pinned: 1,
            ..reading(0.3, 0.0, 0.0)
        };
        assert!(!seen(gil).idles() && !Cpu::default().idles());
        // Others are busy, and it sleeps: nothing that fewer requests would change.
        let asleep = seen(reading(0.1, 0.0, 2.0));
        assert_eq!((asleep.veto(), asleep.cut()), (false, None));
    }

    #[test]
    fn has_room_while_few_wait_for_a_core() {
        // Nine requests in flight.
        let waiting = |waiting, utilisation, pinned| {
            seen(CpuReading {
                waiting,
                utilisation,
                pinned,
                ..CpuReading::default()
            })
        };
        assert_eq!(waiting(2.9, 0.95, 0).has_room(), Some(true));
        assert_eq!(waiting(3.1, 0.95, 0).has_room(), Some(false));
        assert_eq!(waiting(3.1, 0.5, 0).has_room(), None, "it is not short");
        assert_eq!(waiting(0.0, 0.95, 0).has_room(), None, "nobody counts");
        assert_eq!(waiting(9.0, 0.95, 0).has_room(), None, "not only they");
        assert_eq!(waiting(2.9, 0.95, 1).has_room(), None, "the GIL");
        assert_eq!(waiting(3.1, 0.95, 1).has_room(), Some(false));
    }

    #[test]
    fn a_burst_is_averaged_out_and_the_edge_is_wide() {
        let mut cpu = seen(CpuReading {
            utilisation: 0.86,
            ..CpuReading::default()
        });
        let now = crate::clock::now() + Duration::from_secs(2);
        let at = |ms| now + Duration::from_millis(ms);
        let used = |utilisation| CpuReading {
            utilisation,
            ..CpuReading::default()
        };
        cpu.note(at(50), Some(&used(1.0)), 9.0, 0.9);
        assert!(!cpu.veto(), "one reading");
        for i in 2..60 {
            cpu.note(at(i * 50), Some(&used(0.95)), 9.0, 0.9);
        }
        assert!(cpu.veto());
        for i in 60..160 {
            cpu.note(at(i * 50), Some(&used(0.87)), 9.0, 0.9);
        }
        assert!(cpu.veto(), "not clearly below");
        cpu.note(at(8050), None, 9.0, 0.9);
        assert!(!cpu.veto(), "unknown");
    }
}

//! What the sensors say about the limit, whatever latency says: the backend's workers, its accept
//! queue, its CPU and its memory.
//!
//! A resource either bounds the limit (a ceiling), forbids it to grow (a veto), or cuts it, at most once a
//! second.

mod accept;
mod cpu;
mod frontier;
mod hold;
mod memory;

use std::time::{Duration, Instant};

use self::{accept::Accept, cpu::Cpu, memory::Memory};
use super::{BoundBy, Readings, Resources, Usage, elastic::worked_on};

/// Requests beyond the backend's slots, so that a worker finds its next one waiting.
const HEADROOM: u32 = 1;
/// Least time between two cuts: the backend's answer to the first has to be seen.
const CUT_EVERY: Duration = Duration::from_secs(1);

/// A limit that the law is asked to fall to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    /// The factor on the limit.
    pub(super) factor: f64,
    pub(super) by: BoundBy,
}

/// The ceilings of one endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Ceilings {
    slots: Option<u32>,
    accept: Accept,
    cpu: Cpu,
    memory: Memory,
    last_cut: Option<Instant>,
}

impl Ceilings {
    /// Takes what the sensors say now, with the limit in force. `mean_in_flight` is that since the last look.
    pub(super) fn note(
        &mut self,
        now: Instant,
        readings: &Readings,
        usage: &Usage,
        mean_in_flight: f64,
        resources: &Resources,
    ) {
        let slots = readings.slots.filter(|&slots| slots > 0);
        if self.slots.is_some_and(|before| slots > Some(before)) {
            // What it has learned is about the workers that there were before.
            self.accept = Accept::default();
        }
        self.slots = slots;
        self.accept
            .note(now, readings.accept_queue, usage.in_flight);
        let cpu = readings.cpu.filter(|_| resources.cpu);
        self.cpu
            .note(now, cpu.as_ref(), mean_in_flight, resources.cpu_high);
        let memory = readings.memory.filter(|_| resources.memory);
        let (memory, limit) = (memory.as_ref(), usage.limit);
        self.memory
            .note(now, memory, mean_in_flight, limit, resources);
    }

    /// The lowest ceiling below `max`, and whose it is.
    pub(super) fn lowest(&self, max: u32) -> (u32, BoundBy) {
        let slots = self.slots.map(|slots| slots.saturating_add(HEADROOM));
        [
            (slots, BoundBy::Workers),
            (self.accept.ceiling(), BoundBy::AcceptQueue),
            (self.memory.ceiling(), BoundBy::Memory),
        ]
        .into_iter()
        .filter_map(|(ceiling, by)| Some((ceiling?, by)))
        .min_by_key(|(ceiling, _)| *ceiling)
        .filter(|(ceiling, _)| *ceiling < max)
        .unwrap_or((max, BoundBy::Configured))
    }

    /// Whether the workers are all that a limit of so many could keep busy.
    pub(super) fn fills_workers(&self, limit: u32) -> bool {
        self.slots.is_some_and(|slots| limit >= slots)
    }

    /// The backend's slots (or, while connections wait to be accepted, those that are seen to work), as long
    /// as requests can wait for nothing but them: its CPU is known to idle. A lower limit would only idle
    /// workers. The exception is something behind the backend that gets slower under its load; the law has to
    /// see that in the latency.
    pub(super) fn floor(&self) -> Option<u32> {
        let slots = self
            .slots
            .filter(|_| self.cpu.idles() && !self.memory.veto())?;
        let working = self.accept.ceiling().map(|ceiling| ceiling - HEADROOM);
        Some(working.map_or(slots, |working| working.min(slots)))
    }

    /// Who forbids the limit to grow.
    pub(super) fn veto(&self) -> Option<BoundBy> {
        match (self.memory.veto(), self.cpu.veto()) {
            (true, _) => Some(BoundBy::Memory),
            (_, true) => Some(BoundBy::Cpu),
            _ => None,
        }
    }

    /// Whether a CPU that is short has room for more requests nevertheless, if that is known.
    pub(super) fn cpu_has_room(&self) -> Option<bool> {
        self.cpu.has_room()
    }

    /// Whether the backend's CPU quota is used up time and again.
    pub(super) fn cpu_is_used_up(&self) -> bool {
        self.cpu.is_throttled()
    }

    /// How many of `limit` requests in flight are worked on at once at this stretch, if the slots are known.
    /// Those that wait for more of the CPU quota are not.
    pub(super) fn worked_on(&self, limit: u32, stretch: f64) -> Option<u32> {
        let slots = self.slots?;
        if !self.cpu.is_throttled() {
            return Some(slots);
        }
        Some((worked_on(limit, stretch) as u32).clamp(1, slots))
    }

    /// Whether the CPU is what makes the backend slow.
    pub(super) fn cpu_is_short(&self) -> bool {
        self.cpu.veto()
    }

    /// The cut that is due, if any. `slow` says that latency was stretched in the last two windows:
    /// the CPU never cuts on its own word.
    pub(super) fn cut(&mut self, now: Instant, slow: bool) -> Option<Cut> {
        if self
            .last_cut
            .is_some_and(|at| now.saturating_duration_since(at) < CUT_EVERY)
        {
            return None;
        }
        let factor = self.cpu.cut().filter(|_| slow)?;
        self.last_cut = Some(now);
        Some(Cut {
            factor,
            by: BoundBy::Cpu,
        })
    }

    /// Memory grows while the requests in flight do not.
    pub(super) fn leaking(&self) -> bool {
        self.memory.leaking()
    }
}

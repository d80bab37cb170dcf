//! What the product's sensors would see of the simulated backend.

use tidegate::limit::{CpuReading, MemoryReading, Readings};

use super::{
    super::{
        backend::{Cpu, seconds},
        scenario::Kind,
    },
    Engine,
};

/// Between two looks at how many workers there are, seconds.
const DISCOVERY: f64 = 1.0;
/// What the CPU did is a mean over this many seconds.
const CPU_WINDOW: f64 = 1.0;

/// What was last seen of the backend.
pub(super) struct Seen {
    pub(super) slots: (f64, u32),
    pub(super) cpu: (f64, Cpu),
    pub(super) reading: Option<CpuReading>,
}

impl Engine<'_> {
    /// What the sensors would see. A reading that is not simulated stays unknown.
    #[allow(clippy::needless_update)]
    pub(super) fn readings(&mut self) -> Readings {
        let settings = &self.scenario.backend;
        let at = seconds(self.now);
        if at - self.seen.slots.0 >= DISCOVERY {
            self.seen.slots = (at, self.backend.slots());
        }
        if at - self.seen.cpu.0 >= CPU_WINDOW {
            self.seen.reading = Some(self.cpu(at));
            self.seen.cpu = (at, self.backend.cpu);
        }
        Readings {
            slots: settings.slots_known.then_some(self.seen.slots.1),
            accept_queue: settings
                .accept_queue_visible
                .then(|| self.backend.accept_queue()),
            cpu: self.seen.reading.filter(|_| settings.kind == Kind::Sharing),
            memory: (settings.memory_limit > 0).then(|| MemoryReading {
                used: self.backend.memory(),
                limit: settings.memory_limit,
                hits: self.backend.killed,
                kills: self.backend.killed,
                ..MemoryReading::default()
            }),
            ..Readings::default()
        }
    }

    /// The use of the CPU since the last look.
    fn cpu(&self, at: f64) -> CpuReading {
        let (since, before) = self.seen.cpu;
        let (now, cores, window) = (self.backend.cpu, self.backend.cores(), at - since);
        let (busy, delay) = (now.busy - before.busy, now.delay - before.delay);
        CpuReading {
            utilisation: busy / (window * cores),
            cores,
            waiting: delay / window,
            run_delay: delay / busy.max(1e-9),
            pressure: (now.pressed - before.pressed) / window,
            ..CpuReading::default()
        }
    }
}

//! The memory of requests behind an allocator that gives back only a part of what is freed, as that of the C
//! library does: it has arenas, each used by some of the threads, and each keeps the last of what was freed for the
//! next request that comes to it.

use super::{backend::JobId, scenario};

/// Fibonacci hashing: requests come to the arenas in no order.
const HASH: u64 = 0x9E37_79B9_7F4A_7C15;

/// See the module's documentation. Without arenas everything is given back.
#[derive(Debug)]
pub struct Arenas {
    /// Those who live in each, and the places kept for others.
    arenas: Vec<(u64, u64)>,
    keep: u64,
}

impl Arenas {
    pub fn new(settings: &scenario::Backend) -> Self {
        let arenas = settings.memory_arenas.max(1) as usize;
        Arenas {
            arenas: vec![(0, 0); arenas],
            keep: match settings.memory_arenas {
                0 => 0,
                _ => settings.memory_kept.into(),
            },
        }
    }

    fn of(&mut self, id: JobId) -> &mut (u64, u64) {
        let arenas = self.arenas.len() as u64;
        let hash = (id as u64).wrapping_mul(HASH) >> 32;
        &mut self.arenas[(hash % arenas) as usize]
    }

    /// A request is begun.
    pub fn begin(&mut self, id: JobId) {
        let (live, kept) = self.of(id);
        *live += 1;
        *kept = kept.saturating_sub(1);
    }

    /// It is done.
    pub fn end(&mut self, id: JobId) {
        let keep = self.keep;
        let (live, kept) = self.of(id);
        *live -= 1;
        *kept = (*kept + 1).min(keep);
    }

    /// The process is gone.
    pub fn clear(&mut self) {
        self.arenas.fill((0, 0));
    }

    /// In use, as many times what one request needs.
    pub fn used(&self) -> u64 {
        self.arenas.iter().map(|(live, kept)| live + kept).sum()
    }
}

//! The backend: workers on one FIFO, or threads that share cores. It works on what it was sent
//! whether anybody still waits for it or not, as WSGI servers do.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
};

use super::{
    arenas::Arenas,
    scenario::{self, Kind, Phase},
};

/// Names a request in the backend.
pub type JobId = usize;

/// Nanoseconds since the start.
pub type Time = u64;

/// So many seconds.
pub fn nanos(seconds: f64) -> Time {
    (seconds * 1e9).round() as Time
}

/// In seconds.
pub fn seconds(time: Time) -> f64 {
    time as f64 / 1e9
}

/// The efficiency that thrashing leaves at least.
const EFFICIENCY_LEAST: f64 = 0.1;
/// Rounding of a clock in seconds that is read in nanoseconds.
const ROUNDING: f64 = 2e-9;

/// What it has to do for one request. Threads compute, wait (for a database), and compute again.
#[derive(Clone, Copy, Debug)]
struct Job {
    id: JobId,
    /// Seconds of waiting that are left after this stage.
    wait: f64,
    /// Seconds of computing that are left after this stage.
    compute: f64,
}

/// A request in a stage. The first to leave is the greatest.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// The reading of the stage's clock.
    at: f64,
    /// Among equals.
    order: u64,
    job: Job,
}

impl Ord for Leaving {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_time = other.at.total_cmp(&self.at);
        by_time.then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Leaving {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Leaving {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Leaving {}

/// Those in one kind of stage. All make the same progress, so one clock serves all.
#[derive(Debug, Default)]
struct Stage {
    clock: f64,
    jobs: BinaryHeap<Leaving>,
}

/// How the machine was used so far; integrals that only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Core-seconds of computing.
    pub busy: f64,
    /// Seconds that requests waited for a core.
    pub delay: f64,
    /// Seconds in which somebody did.
    pub pressed: f64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Backend {
    settings: scenario::Backend,
    slots: usize,
    cores: f64,
    speed: f64,
    paused: bool,
    down: bool,
    now: Time,
    order: u64,
    computing: Stage,
    waiting: Stage,
    backlog: VecDeque<Job>,
    leaked: f64,
    arenas: Arenas,
    /// Its use of the machine.
    pub cpu: Cpu,
    /// How often it ran out of memory.
    pub killed: u64,
}

/// What became of requests since one last looked.
#[derive(Debug, Default)]
pub struct Ended {
    /// Answered.
    pub done: Vec<JobId>,
    /// Lost with the backend.
    pub lost: Vec<JobId>,
    /// Whether memory ran out: it has to be started again.
    pub killed: bool,
}

impl Stage {
    fn enter(&mut self, job: Job, seconds: f64, order: u64) {
        let at = self.clock + seconds;
        self.jobs.push(Leaving { at, order, job });
    }

    /// Seconds of this clock until the next one leaves.
    fn next(&self) -> Option<f64> {
        Some((self.jobs.peek()?.at - self.clock).max(0.0))
    }

    fn leave(&mut self) -> Option<Job> {
        if self.next()? > ROUNDING {
            return None;
        }
        self.jobs.pop().map(|leaving| leaving.job)
    }
}

impl Backend {
    pub fn new(settings: &scenario::Backend) -> Self {
        Backend {
            slots: settings.slots as usize,
            cores: settings.cores,
            settings: settings.clone(),
            speed: 1.0,
            paused: false,
            down: false,
            now: 0,
            order: 0,
            computing: Stage::default(),
            waiting: Stage::default(),
            backlog: VecDeque::new(),
            leaked: 0.0,
            arenas: Arenas::new(settings),
            cpu: Cpu::default(),
            killed: 0,
        }
    }

    /// A phase begins.
    pub fn change(&mut self, phase: &Phase, ended: &mut Ended) {
        self.slots = phase.slots as usize;
        self.cores = phase.cores;
        self.speed = 1.0 / phase.slowdown;
        self.fill(ended);
    }

    /// All servers stop, or go on.
    pub fn pause(&mut self, paused: bool, ended: &mut Ended) {
        self.paused = paused;
        self.fill(ended);
    }

    /// It goes, with all that it has, or comes back.
    pub fn set_down(&mut self, down: bool, ended: &mut Ended) {
        self.down = down;
        if down {
            self.lose(ended);
        }
    }

    /// Whether it refuses connections.
    pub fn is_down(&self) -> bool {
        self.down
    }

    /// A request comes, with so many seconds of work.
    pub fn send(&mut self, id: JobId, work: f64, ended: &mut Ended) {
        let compute = match self.settings.kind {
            Kind::Slots => 0.0,
            Kind::Sharing => work * self.settings.cpu_share,
        };
        self.backlog.push_back(Job {
            id,
            wait: work - compute,
            compute,
        });
        self.fill(ended);
    }

    /// Connections that nobody has accepted.
    pub fn accept_queue(&self) -> u32 {
        self.backlog.len() as u32
    }

    /// Requests that are being worked on.
    pub fn running(&self) -> usize {
        self.computing.jobs.len() + self.waiting.jobs.len()
    }

    pub fn slots(&self) -> u32 {
        self.slots as u32
    }

    pub fn cores(&self) -> f64 {
        self.cores
    }

    /// Bytes in use.
    pub fn memory(&self) -> u64 {
        self.settings.memory_base
            + self.leaked as u64
            + self.arenas.used() * self.settings.memory_per_request
    }

    /// When something happens next, unless something else does before.
    pub fn next(&self) -> Option<Time> {
        let wait = self.waiting.next().map(|left| left / self.wait_rate());
        let compute = self.computing.next().map(|left| left / self.compute_rate());
        let seconds = match (wait, compute) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        seconds
            .is_finite()
            .then(|| self.now + (seconds * 1e9).ceil() as Time)
    }

    /// Works until then; not past what [`Backend::next`] said.
    pub fn advance(&mut self, now: Time, ended: &mut Ended) {
        let seconds = (now - self.now) as f64 / 1e9;
        self.now = now;
        if seconds > 0.0 {
            let computing = self.computing.jobs.len() as f64;
            let cores = if self.paused { 0.0 } else { self.cores };
            let (wait, compute) = (self.wait_rate(), self.compute_rate());
            self.waiting.clock += seconds * wait;
            self.computing.clock += seconds * compute;
            self.cpu.busy += seconds * computing.min(cores);
            self.cpu.delay += seconds * (computing - cores).max(0.0);
            self.cpu.pressed += if computing > cores { seconds } else { 0.0 };
            if !self.down {
                self.leaked += seconds * self.settings.memory_leak as f64;
            }
        }
        while let Some(job) = self.waiting.leave() {
            self.go_on(job, ended);
        }
        while let Some(job) = self.computing.leave() {
            self.go_on(job, ended);
        }
        self.fill(ended);
    }

    fn wait_rate(&self) -> f64 {
        if self.paused { 0.0 } else { self.speed }
    }

    fn compute_rate(&self) -> f64 {
        let computing = self.computing.jobs.len() as f64;
        let beyond = (computing - self.cores).max(0.0);
        let efficiency = (1.0 - self.settings.thrash * beyond).max(EFFICIENCY_LEAST);
        self.wait_rate() * (self.cores / computing.max(1.0)).min(1.0) * efficiency
    }

    /// The next stage of a request, or its end.
    fn go_on(&mut self, mut job: Job, ended: &mut Ended) {
        self.order += 1;
        if job.wait > 0.0 {
            let wait = std::mem::take(&mut job.wait);
            self.waiting.enter(job, wait, self.order);
        } else if job.compute > 0.0 {
            let compute = std::mem::take(&mut job.compute);
            self.computing.enter(job, compute, self.order);
        } else {
            self.arenas.end(job.id);
            ended.done.push(job.id);
        }
    }

    /// Free workers take connections.
    fn fill(&mut self, ended: &mut Ended) {
        if self.down || self.paused {
            return;
        }
        while self.running() < self.slots {
            let Some(mut job) = self.backlog.pop_front() else {
                break;
            };
            self.order += 1;
            self.arenas.begin(job.id);
            if job.compute > 0.0 {
                job.compute /= 2.0;
                self.computing.enter(job, job.compute, self.order);
            } else {
                self.go_on(job, ended);
            }
        }
        if self.settings.memory_limit > 0 && self.memory() > self.settings.memory_limit {
            self.killed += 1;
            self.down = true;
            self.lose(ended);
            ended.killed = true;
        }
    }

    fn lose(&mut self, ended: &mut Ended) {
        let staged = self.computing.jobs.drain().chain(self.waiting.jobs.drain());
        ended.lost.extend(staged.map(|leaving| leaving.job.id));
        ended.lost.extend(self.backlog.drain(..).map(|job| job.id));
        self.leaked = 0.0;
        self.arenas.clear();
        // Heaps drain in no order of their own.
        ended.lost.sort_unstable();
    }
}

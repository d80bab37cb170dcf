//! CPU and memory of the backend: by its cgroup where that has a limit, else by its processes.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    time::{Duration, Instant},
};

use super::{
    cgroup::{self, Cgroup, CpuCounts, Stalls},
    process::{self, Stat},
};
use crate::{
    config::Discovery,
    control::{CpuReading, MemoryReading},
    sense::{
        Gauges,
        facts::{Overlap, Part},
    },
};

/// What is said of CPU is a mean over this time.
const WINDOW: Duration = Duration::from_secs(1);
/// A shorter time says nothing: the kernel counts CPU time in hundredths of a second.
const WINDOW_MIN: Duration = Duration::from_millis(200);
/// A process that uses so much of one core, all by itself, cannot use more: with Python, the GIL.
const PINNED: f64 = 0.9;
/// Below this share of a core, running and waiting together, a ratio of the two says nothing.
const RUN_MIN: f64 = 0.02;

/// What processes share is measured again after this time, when their memory has changed by one part in
/// `OVERLAP_PART`, and when a process that shares that much has come or gone. At every look it would be a
/// third of all that an idle tidegate does.
const OVERLAP_AGE: Duration = Duration::from_secs(60);
const OVERLAP_PART: u64 = 16;

/// The counts at one moment.
#[derive(Clone, Debug)]
struct Point {
    at: Instant,
    processes: HashMap<u32, Times>,
    /// CPU that they and those that have ended have used since the first point, seconds.
    used: f64,
    /// What processes that have just ended had used, as far as it has not shown up in a parent's count yet.
    owed: f64,
    group: Option<CpuCounts>,
    stalls: Stalls,
}

/// What one process has used, seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    cpu: f64,
    /// See [`Stat::reaped_seconds`].
    reaped: f64,
    run: f64,
    wait: f64,
    parent: u32,
    /// When it was started: process ids are reused.
    started: f64,
}

impl Point {
    /// What one process had used; nothing yet if it is new.
    fn before(&self, pid: u32, now: &Times) -> Times {
        let known = self.processes.get(&pid);
        known
            .filter(|known| known.started == now.started)
            .copied()
            .unwrap_or_default()
    }

    /// Adds what was used since the point before. When a parent has waited for a child, all that the child
    /// ever used is added to the parent's count, so what was counted while the child was there is subtracted.
    /// The parent may get it just after it was looked at, or never if it does not wait, so it is expected for
    /// one more point only.
    fn continue_from(&mut self, before: &Self) {
        let (mut used, mut reaped) = (0.0, 0.0);
        for (pid, now) in &self.processes {
            let known = before.before(*pid, now);
            used += (now.cpu - known.cpu).max(0.0);
            reaped += (now.reaped - known.reaped).max(0.0);
        }
        let ended = before.processes.iter().filter(|(pid, known)| {
            let now = self.processes.get(pid);
            now.is_none_or(|now| now.started != known.started)
        });
        let ended: f64 = ended.map(|(_, known)| known.cpu + known.reaped).sum();
        let news = (reaped - before.owed).max(0.0) - ended;
        self.used = before.used + used + news.max(0.0);
        self.owed = (-news).max(0.0);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Meter {
    root: Option<u32>,
    cgroup: Result<Option<Cgroup>, String>,
    cores: f64,
    /// A quota of more cores than these says nothing.
    most_cores: f64,
    cpu_limit: Option<f64>,
    memory_limit: Option<u64>,
    history: VecDeque<Point>,
    /// The processes at the last look.
    pids: Vec<u32>,
    /// None if memory is the group's. Measured with the survey alone: the kernel walks through all of a process's
    /// memory for it, and holds up what that process does with it meanwhile. Until then a new one counts whole.
    overlap: Option<Overlap>,
}

impl Meter {
    /// A meter for a process, if it is known, and its descendants, and for its group; no group means the
    /// whole machine. `before` is what an earlier meter knew.
    pub fn new(
        root: Option<u32>,
        cgroup: Result<Option<Cgroup>, String>,
        discovery: &Discovery,
        before: Option<Overlap>,
        now: Instant,
    ) -> Self {
        let mut meter = Self {
            root,
            cgroup,
            cores: allowed_cores(root),
            most_cores: match root {
                Some(_) => allowed_cores(root),
                // The processes of a group that was named may run on cores that tidegate may not use.
                None => machine_cores(),
            },
            cpu_limit: discovery.cpu_limit,
            memory_limit: discovery.memory_limit,
            history: VecDeque::new(),
            pids: root.map(process::tree).unwrap_or_default(),
            overlap: None,
        };
        let counts = meter.group().and_then(Cgroup::memory);
        if !counts.is_some_and(|counts| meter.is_of_group(counts.limit, root)) {
            let resident: Vec<(u32, u64)> = meter.resident().collect();
            meter.overlap = Some(overlap(&resident, before, now));
        }
        meter
    }

    /// Memory of the processes, each counted by itself.
    fn resident(&self) -> impl Iterator<Item = (u32, u64)> {
        self.pids.iter().map(|pid| (*pid, process::resident(*pid)))
    }

    /// For the next one.
    pub fn overlap(&self) -> Option<&Overlap> {
        self.overlap.as_ref()
    }

    fn group(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref().ok()?.as_ref()
    }

    /// Takes over the history of an earlier one of the same process.
    pub fn continue_from(&mut self, before: Self) {
        if before.root == self.root && before.cgroup == self.cgroup {
            self.history = before.history;
        }
    }

    /// Where the figures of CPU are from, for people.
    pub fn cpu_source(&self) -> String {
        match (self.group().map(|group| (group, group.cpu())), self.root) {
            (
                Some((
                    group,
                    Some(CpuCounts {
                        quota: Some(quota), ..
                    }),
                )),
                _,
            ) => {
                let cores = self.cores(Some(quota));
                format!("{}, a quota of {cores} cores", group.cpu_source())
            }
            (Some((group, Some(_))), None) => {
                format!("{}, on {} cores", group.cpu_source(), self.cores(None))
            }
            _ => format!("{}, on {} cores", self.processes(), self.cores(None)),
        }
    }

    /// The cores that there are to use. What was configured is taken at its word.
    fn cores(&self, quota: Option<f64>) -> f64 {
        let seen = quota.map_or(self.cores, |quota| quota.min(self.most_cores));
        self.cpu_limit.unwrap_or(seen).max(0.001)
    }

    /// Where the figures of memory are from, for people.
    pub fn memory_source(&self) -> String {
        match (self.group().map(|group| (group, group.memory())), self.root) {
            (Some((group, Some(counts))), root) if self.is_of_group(counts.limit, root) => {
                group.memory_source()
            }
            _ => self.processes(),
        }
    }

    /// The processes, for people, and why it is they that count.
    fn processes(&self) -> String {
        let root = self.root.unwrap_or_default();
        match &self.cgroup {
            Ok(_) => format!("process {root} and its children"),
            Err(why) => format!("process {root} and its children ({why})"),
        }
    }

    /// Whether the group's memory counts, rather than the processes'.
    fn is_of_group(&self, limit: Option<u64>, root: Option<u32>) -> bool {
        root.is_none() || (limit.is_some() && self.memory_limit.is_none())
    }

    /// Looks once; the processes too, which may have changed.
    pub fn read(&mut self, now: Instant) -> Gauges {
        let pids = self.root.map(process::tree).unwrap_or_default();
        let mut point = Point {
            at: now,
            processes: all_times(&pids, self.history.back()),
            used: 0.0,
            owed: 0.0,
            group: self.group().and_then(Cgroup::cpu),
            stalls: match &self.cgroup {
                Ok(Some(group)) if !group.is_whole_machine() => group.stalls(),
                // The backend's group is the whole machine.
                Ok(_) => cgroup::machine_stalls(),
                // The group cannot be seen, and the machine's stalls would include those of its neighbours.
                Err(_) => Stalls::default(),
            },
        };
        if let Some(before) = self.history.back() {
            point.continue_from(before);
        }
        self.pids.clone_from(&pids);
        let (memory, memory_used) = self.memory();
        self.history.push_back(point);
        while self.history.len() > 2 && now.saturating_duration_since(self.history[1].at) >= WINDOW
        {
            self.history.pop_front();
        }
        let mut gauges = Gauges {
            memory,
            memory_used,
            memory_limit: memory.map(|memory| memory.limit),
            processes: pids,
            ..Gauges::default()
        };
        if let (Some(first), Some(last)) = (self.history.front(), self.history.back())
            && last.at.saturating_duration_since(first.at) >= WINDOW_MIN
        {
            let seconds = (last.at - first.at).as_secs_f64();
            gauges.cpu = Some(self.cpu(first, last, seconds));
            let stalled = |of: fn(&Stalls) -> Option<f64>| {
                let share = (of(&last.stalls)? - of(&first.stalls)?) / seconds;
                Some(share.clamp(0.0, 1.0))
            };
            gauges.stalls = stalled(|s| s.cpu).is_some() || stalled(|s| s.memory).is_some();
            if let Some(cpu) = &mut gauges.cpu {
                cpu.pressure = stalled(|s| s.cpu).unwrap_or(0.0);
            }
            if let Some(memory) = &mut gauges.memory {
                memory.pressure = stalled(|s| s.memory).unwrap_or(0.0);
            }
        }
        gauges
    }

    fn cpu(&self, first: &Point, last: &Point, seconds: f64) -> CpuReading {
        let mut sum = Times::default();
        let mut pinned = 0;
        for (pid, now) in &last.processes {
            // One that is new has used all of it since.
            let before = first.before(*pid, now);
            let cpu = (now.cpu - before.cpu).max(0.0);
            // Threads that have ended take their times with them.
            sum.run += (now.run - before.run).max(0.0);
            sum.wait += (now.wait - before.wait).max(0.0);
            pinned += u32::from(cpu / seconds >= PINNED);
        }
        let (quota, used, throttled) = match (first.group, last.group) {
            (Some(before), Some(now)) => {
                let used = now.used.zip(before.used).map(|(now, before)| now - before);
                let periods = now.periods.saturating_sub(before.periods);
                let throttled = now.throttled.saturating_sub(before.throttled);
                let share = throttled as f64 / periods.max(1) as f64;
                (now.quota, used, share.min(1.0))
            }
            _ => (None, None, 0.0),
        };
        // Without a quota the group does not bound the processes, so only their own use counts.
        let used = used.filter(|_| quota.is_some() || self.root.is_none());
        let cores = self.cores(quota);
        CpuReading {
            utilisation: used.unwrap_or(last.used - first.used).max(0.0) / seconds / cores,
            cores,
            throttled,
            waiting: sum.wait / seconds,
            run_delay: if (sum.run + sum.wait) / seconds < RUN_MIN {
                0.0
            } else {
                sum.wait / sum.run.max(seconds * RUN_MIN)
            },
            pressure: 0.0,
            pinned,
        }
    }

    /// Memory against its limit, and what is used where no limit is known: of the processes that were there at
    /// the last look.
    pub fn memory(&self) -> (Option<MemoryReading>, Option<u64>) {
        let counts = self.group().and_then(Cgroup::memory);
        let (used, limit, (hits, kills)) = match counts {
            Some(counts) if self.is_of_group(counts.limit, self.root) => (
                counts.used,
                self.memory_limit.or(counts.limit),
                (counts.hits, counts.kills),
            ),
            _ => {
                let twice = |pid| {
                    let part = self.overlap.as_ref()?.parts.get(&pid);
                    part.map(|part| part.twice)
                };
                let own = self
                    .resident()
                    .map(|(pid, resident)| resident.saturating_sub(twice(pid).unwrap_or(0)));
                (own.sum(), self.memory_limit, (0, 0))
            }
        };
        if used == 0 {
            return (None, None);
        }
        let reading = limit.map(|limit| MemoryReading {
            used,
            limit,
            pressure: 0.0,
            hits,
            kills,
        });
        (reading, Some(used))
    }
}

/// What one process counts that others count as well.
fn part(pid: u32, resident: u64) -> Part {
    // Where that may not be read, shared memory is counted once for each process.
    let share = process::proportional(pid).unwrap_or(resident);
    Part {
        resident,
        twice: resident.saturating_sub(share),
    }
}

/// What these processes count twice: what is known of them, if that is not old and not much has changed. Those that
/// have come are measured by themselves: they may be programs that share next to nothing.
fn overlap(resident: &[(u32, u64)], before: Option<Overlap>, now: Instant) -> Overlap {
    let measure = |&(pid, resident): &(u32, u64)| (pid, part(pid, resident));
    let young = before.filter(|before| now.saturating_duration_since(before.at) < OVERLAP_AGE);
    if let Some(mut known) = young {
        let (stayed, came): (Vec<_>, Vec<_>) = resident
            .iter()
            .partition(|(pid, _)| known.parts.contains_key(pid));
        let here = |pid: &u32| stayed.iter().any(|(one, _)| one == pid);
        let gone = known.parts.iter().filter(|(pid, _)| !here(pid));
        let gone = gone.map(|(_, part)| part.twice).max().unwrap_or(0);
        known.parts.retain(|pid, _| here(pid));
        let was: u64 = known.parts.values().map(|part| part.resident).sum();
        let is: u64 = stayed.iter().map(|(_, resident)| resident).sum();
        let came: Vec<(u32, Part)> = came.iter().map(measure).collect();
        let new = came.iter().map(|(_, part)| part.twice).max().unwrap_or(0);
        if [is.abs_diff(was), gone, new]
            .iter()
            .all(|change| *change <= was / OVERLAP_PART)
        {
            known.parts.extend(came);
            return known;
        }
    }
    Overlap {
        parts: resident.iter().map(measure).collect(),
        at: now,
    }
}

/// The times of the processes of a tree, parents first, so that what a child has used is not counted with
/// both. Those that were there before are read even if the tree lacks them: the kernel's list of children may
/// leave one out while others end.
fn all_times(pids: &[u32], before: Option<&Point>) -> HashMap<u32, Times> {
    let read = |pid: &u32| Some((*pid, times(*pid)?));
    let mut found: HashMap<u32, Times> = pids.iter().filter_map(read).collect();
    let left_out: Vec<(u32, Times)> = before
        .into_iter()
        .flat_map(|before| before.processes.keys())
        .filter(|pid| !found.contains_key(pid))
        .filter_map(read)
        .filter(|(_, times)| found.contains_key(&times.parent))
        .collect();
    found.extend(left_out);
    found
}

fn times(pid: u32) -> Option<Times> {
    let stat = Stat::read_any(pid)?;
    let (run, wait) = process::schedule(pid);
    Some(Times {
        cpu: stat.cpu_seconds,
        reaped: stat.reaped_seconds,
        run,
        wait,
        parent: stat.parent,
        started: stat.started,
    })
}

/// The cores that the machine has.
fn machine_cores() -> f64 {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    match count_list(&list) {
        0 => allowed_cores(None),
        cores => f64::from(cores),
    }
}

/// The cores that a process may run on.
fn allowed_cores(pid: Option<u32>) -> f64 {
    let pid = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let status = process::text(format!("/proc/{pid}/status")).unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let cores = list.map_or(0, count_list);
    if cores > 0 {
        return f64::from(cores);
    }
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// How many `0-3,8` are.
fn count_list(list: &str) -> u32 {
    let count = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    list.trim().split(',').filter_map(count).sum()
}

#[cfg(test)]
mod tests;

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
/// Less says nothing: the kernel counts CPU time in hundredths of a second.
const WINDOW_MIN: Duration = Duration::from_millis(200);
/// A process that uses so much of one core, all by itself, cannot use more: with Python, the GIL.
const PINNED: f64 = 0.9;
/// Below this share of a core, running and waiting together, a ratio of the two says nothing.
const RUN_MIN: f64 = 0.02;

/// What processes share is measured again after this time, and when their memory has changed by one part in so
/// many, or one that shares so much has come or gone: at every look it would be a third of what an idle tidegate does.
const OVERLAP_AGE: Duration = Duration::from_secs(60);
const OVERLAP_PART: u64 = 16;

/// The counts at one moment.
#[derive(Clone, Debug)]
struct Point {
    at: Instant,
    processes: HashMap<u32, Times>,
    /// CPU that they and those that have ended have used since the first point, seconds.
    used: f64,
    /// What those that have just ended had used before, and no parent has been seen to have got.
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
    /// Numbers are used again.
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

    /// Adds what was used since the point before. A parent gets all that its child has ever used when it has
    /// waited for it: what was counted while the child was there is taken off. It may get it just after it was
    /// looked at; and never, if it does not wait, so that no more than one point is waited for it.
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
    /// A quota of more says nothing.
    most_cores: f64,
    cpu_limit: Option<f64>,
    memory_limit: Option<u64>,
    history: VecDeque<Point>,
    /// The processes at the last look.
    pids: Vec<u32>,
    /// None if memory is the group's.
    overlap: Option<Overlap>,
}

impl Meter {
    /// Of a process and all that descend from it, as far as it is known, and of its group: none is the whole
    /// machine. `before` is what an earlier one knew.
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
                // Who is in a group that was named may run where tidegate may not.
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
                // The machine is all there is.
                Ok(_) => cgroup::machine_stalls(),
                // In a group that cannot be seen, the machine's would be those of its neighbours.
                Err(_) => Stalls::default(),
            },
        };
        if let Some(before) = self.history.back() {
            point.continue_from(before);
        }
        if let Some(overlap) = &mut self.overlap {
            // One that is quite new may be about to become another program.
            let stayed = pids.iter().filter(|pid| self.pids.contains(pid));
            for pid in stayed {
                let part = || part(*pid, process::resident(*pid));
                overlap.parts.entry(*pid).or_insert_with(part);
            }
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
        // Without a quota it is not the group that bounds them, so only they count.
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
        let (used, limit, hits) = match counts {
            Some(counts) if self.is_of_group(counts.limit, self.root) => {
                (counts.used, self.memory_limit.or(counts.limit), counts.hits)
            }
            _ => {
                let twice = |pid| {
                    let part = self.overlap.as_ref()?.parts.get(&pid);
                    part.map(|part| part.twice)
                };
                let own = self
                    .resident()
                    .map(|(pid, resident)| resident.saturating_sub(twice(pid).unwrap_or(0)));
                (own.sum(), self.memory_limit, 0)
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
        });
        (reading, Some(used))
    }
}

/// What one process counts that others count as well.
fn part(pid: u32, resident: u64) -> Part {
    // Whoever may not read it counts memory that is shared once for each process.
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

/// Of the processes of a tree, parents first, so that what a child has used is not seen with both. Of those that
/// were there before, the kernel's list of children may have left one out as others ended.
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
mod tests {
    use super::*;
    use crate::clock;

    fn meter(cpu_limit: Option<f64>) -> Meter {
        Meter {
            root: Some(1),
            cgroup: Ok(None),
            cores: 4.0,
            most_cores: 4.0,
            cpu_limit,
            memory_limit: None,
            history: VecDeque::new(),
            pids: Vec::new(),
            overlap: None,
        }
    }

    fn point(at: Instant, processes: &[(u32, f64, f64)], group: Option<CpuCounts>) -> Point {
        Point {
            at,
            processes: processes
                .iter()
                .map(|&(pid, cpu, wait)| {
                    let times = Times {
                        cpu,
                        run: cpu,
                        wait,
                        ..Times::default()
                    };
                    (pid, times)
                })
                .collect(),
            used: 0.0,
            owed: 0.0,
            group,
            stalls: Stalls::default(),
        }
    }

    #[test]
    fn what_is_shared_is_measured_again_when_it_is_old_or_memory_has_changed() {
        const MIB: u64 = 1 << 20;
        // Nobody has such a number.
        const GONE: u32 = 1 << 30;
        let (now, own) = (clock::now(), std::process::id());
        let part = |mib, twice| Part {
            resident: mib * MIB,
            twice,
        };
        // Figures that no measurement would give.
        let known = |others: &[(u32, Part)]| Overlap {
            parts: [(own, part(160, 7))]
                .iter()
                .chain(others)
                .copied()
                .collect(),
            at: now,
        };
        let found = |others: &[(u32, Part)], resident: &[(u32, u64)], later| {
            overlap(resident, Some(known(others)), now + later)
        };
        let again = |others: &[(u32, Part)], resident: &[(u32, u64)], later| {
            found(others, resident, later).parts[&own].twice != 7
        };
        let young = OVERLAP_AGE - Duration::from_secs(1);
        assert!(!again(&[], &[(own, 160 * MIB)], young));
        assert!(!again(&[], &[(own, 169 * MIB)], young));
        assert!(again(&[], &[(own, 160 * MIB)], OVERLAP_AGE), "it is old");
        assert!(again(&[], &[(own, 171 * MIB)], young), "it has grown");
        assert!(again(&[], &[(own, 149 * MIB)], young), "it has shrunk");
        // Programs come and go, as large as they may be.
        let program = (GONE, 900 * MIB);
        let with = found(&[], &[(own, 160 * MIB), program], young);
        assert_eq!(
            (with.parts[&own], with.parts[&GONE]),
            (part(160, 7), part(900, 0))
        );
        let without = found(&[(GONE, part(900, MIB))], &[(own, 160 * MIB)], young);
        assert_eq!(without, known(&[]));
        // What shares much with the others changes what is counted twice.
        let worker = (GONE, part(160, 60 * MIB));
        assert!(again(&[worker], &[(own, 160 * MIB)], young), "one has gone");
        let first = overlap(&[(own, 160 * MIB)], None, now);
        assert_eq!(
            (first.parts.len(), first.parts[&own].resident, first.at),
            (1, 160 * MIB, now)
        );
    }

    #[test]
    fn what_a_process_shares_is_known_when_it_stays() {
        let (now, own) = (clock::now(), std::process::id());
        let mut meter = meter(None);
        meter.root = Some(own);
        meter.overlap = Some(Overlap {
            parts: std::collections::BTreeMap::new(),
            at: now,
        });
        let mut is_known = || {
            meter.read(now);
            let known = meter.overlap().expect("it is measured");
            known.parts.contains_key(&own)
        };
        assert!(!is_known(), "it has just been seen");
        assert!(is_known());
    }

    #[test]
    fn without_a_quota_the_processes_count_against_the_cores() {
        let now = clock::now();
        let first = point(now, &[(1, 10.0, 0.0), (2, 5.0, 0.0), (3, 1.0, 0.0)], None);
        // 3 is gone, 4 is new.
        let mut last = point(now, &[(1, 10.95, 0.2), (2, 5.05, 0.3), (4, 0.5, 0.0)], None);
        last.continue_from(&first);
        let cpu = meter(None).cpu(&first, &last, 1.0);
        assert!((cpu.utilisation - 1.5 / 4.0).abs() < 1e-9, "{cpu:?}");
        assert!((cpu.run_delay - 0.5 / 1.5).abs() < 1e-9, "{cpu:?}");
        assert!((cpu.waiting - 0.5).abs() < 1e-9, "{cpu:?}");
        assert_eq!((cpu.pinned, cpu.cores, cpu.throttled), (1, 4.0, 0.0));
        let cpu = meter(Some(0.5)).cpu(&first, &last, 1.0);
        assert!((cpu.utilisation - 3.0).abs() < 1e-9, "{cpu:?}");
    }

    /// What was used from one to the next of these points: processes with what they have used and reaped.
    fn used(points: &[&[(u32, f64, f64)]]) -> Vec<f64> {
        let now = clock::now();
        let mut before: Option<Point> = None;
        let mut found = Vec::new();
        for processes in points {
            let mut next = point(now, &[], None);
            next.processes
                .extend(processes.iter().map(|&(pid, cpu, reaped)| {
                    let times = Times {
                        cpu,
                        reaped,
                        ..Times::default()
                    };
                    (pid, times)
                }));
            if let Some(before) = &before {
                next.continue_from(before);
                found.push(next.used - before.used);
            }
            before = Some(next);
        }
        found
    }

    #[track_caller]
    fn assert_used(points: &[&[(u32, f64, f64)]], expected: &[f64]) {
        let found = used(points);
        let close = |(one, other): (&f64, &f64)| (one - other).abs() < 1e-9;
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(close),
            "{found:?}"
        );
    }

    #[test]
    fn children_that_come_and_go_between_two_looks_count() {
        assert_used(
            &[&[(1, 5.0, 70.0)], &[(1, 5.1, 70.5)], &[(1, 5.1, 70.5)]],
            &[0.6, 0.0],
        );
    }

    #[test]
    fn what_was_counted_of_a_child_is_not_counted_again_with_its_parent() {
        // Seen twice, then waited for.
        assert_used(
            &[
                &[(1, 5.0, 0.0)],
                &[(1, 5.0, 0.0), (2, 0.25, 0.0)],
                &[(1, 5.0, 0.0), (2, 0.5, 0.0)],
                &[(1, 5.0, 0.75)],
            ],
            &[0.25, 0.25, 0.25],
        );
        // A worker of long standing ends, and its own children with it.
        assert_used(
            &[&[(1, 5.0, 9.0), (2, 1000.0, 200.0)], &[(1, 5.0, 1209.5)]],
            &[0.5],
        );
        // A zombie is waited for later, and another child before it is.
        assert_used(
            &[
                &[(1, 5.0, 0.0), (2, 100.0, 0.0)],
                &[(1, 5.0, 0.5), (2, 100.1, 0.0)],
                &[(1, 5.0, 100.6)],
            ],
            &[0.6, 0.0],
        );
        // It ends after its parent was looked at.
        assert_used(
            &[
                &[(1, 5.0, 0.0), (2, 100.0, 0.0)],
                &[(1, 5.1, 0.0)],
                &[(1, 5.2, 100.25)],
            ],
            &[0.1, 0.35],
        );
    }

    #[test]
    fn a_child_that_nobody_waits_for_takes_nothing_off_for_long() {
        assert_used(
            &[
                &[(1, 5.0, 0.0), (2, 100.0, 0.0)],
                &[(1, 5.5, 0.0)],
                &[(1, 5.5, 0.25)],
                &[(1, 5.5, 0.5)],
            ],
            &[0.5, 0.0, 0.25],
        );
    }

    #[test]
    fn the_cpu_of_short_lived_children_is_seen() {
        // No process of its lives long enough to be looked at twice.
        let mut shell = std::process::Command::new("sh")
            .args([
                "-c",
                "while :; do sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done'; done",
            ])
            .spawn()
            .expect("sh starts");
        let (shell_id, discovery) = (shell.id(), Discovery::default());
        let mut meter = Meter::new(Some(shell_id), Ok(None), &discovery, None, clock::now());
        let stat = || Stat::read(shell_id).expect("it runs");
        let start = clock::now();
        meter.read(start);
        let first = stat();
        let mut last = first.clone();
        while last.reaped_seconds < first.reaped_seconds + 0.3
            && clock::now() - start < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(50));
            last = stat();
            meter.read(clock::now());
        }
        let most = stat();
        let used = meter.history.back().map_or(0.0, |point| point.used);
        shell.kill().expect("it can be ended");
        shell.wait().expect("it ends");
        // But for what runs at either end.
        let slack = 0.1;
        let least = last.reaped_seconds - first.reaped_seconds;
        assert!(least >= 0.3 && used >= least - slack, "{used} of {least}");
        let most = most.cpu_seconds + most.reaped_seconds;
        assert!(used <= most + slack, "{used} of {most}");
    }

    #[test]
    fn a_quota_counts_all_who_share_it() {
        let now = clock::now();
        let counts = |used, periods, throttled| {
            Some(CpuCounts {
                used: Some(used),
                quota: Some(2.0),
                periods,
                throttled,
            })
        };
        let first = point(now, &[(1, 1.0, 0.0)], counts(50.0, 100, 0));
        let last = point(now, &[(1, 1.1, 0.0)], counts(53.0, 120, 5));
        let cpu = meter(None).cpu(&first, &last, 2.0);
        assert_eq!(
            (cpu.utilisation, cpu.throttled, cpu.cores),
            (0.75, 0.25, 2.0)
        );
    }

    #[test]
    fn a_quota_of_more_cores_than_there_are_is_no_more_than_those() {
        let now = clock::now();
        let counts = |used| {
            Some(CpuCounts {
                used: Some(used),
                quota: Some(8.0),
                ..CpuCounts::default()
            })
        };
        let first = point(now, &[(1, 1.0, 0.0)], counts(50.0));
        let last = point(now, &[(1, 5.0, 0.0)], counts(54.0));
        let cpu = meter(None).cpu(&first, &last, 1.0);
        assert_eq!((cpu.utilisation, cpu.cores), (1.0, 4.0));
        // What was configured wins over all that is seen.
        let cpu = meter(Some(16.0)).cpu(&first, &last, 1.0);
        assert_eq!((cpu.utilisation, cpu.cores), (0.25, 16.0));
        assert!(machine_cores() >= allowed_cores(None));
    }

    #[test]
    fn a_group_without_quota_counts_where_the_processes_are_not_seen() {
        let now = clock::now();
        let counts = |used| {
            Some(CpuCounts {
                used: Some(used),
                ..CpuCounts::default()
            })
        };
        let first = point(now, &[(1, 1.0, 0.0)], counts(50.0));
        let mut last = point(now, &[(1, 1.4, 0.0)], counts(52.0));
        last.continue_from(&first);
        let mut meter = meter(None);
        assert!((meter.cpu(&first, &last, 1.0).utilisation - 0.1).abs() < 1e-9);
        meter.root = None;
        assert!((meter.cpu(&first, &last, 1.0).utilisation - 0.5).abs() < 1e-9);
    }

    #[test]
    fn an_idle_backend_has_no_run_delay() {
        let now = clock::now();
        let first = point(now, &[(1, 1.0, 0.0)], None);
        let last = point(now, &[(1, 1.001, 0.01)], None);
        assert_eq!(meter(None).cpu(&first, &last, 1.0).run_delay, 0.0);
        // Starved: it hardly runs because it waits.
        let starved = point(now, &[(1, 1.001, 0.9)], None);
        assert!(meter(None).cpu(&first, &starved, 1.0).run_delay > 10.0);
    }

    #[test]
    fn lists_of_cores_are_counted() {
        assert_eq!(count_list(" 0-3,8\n"), 5);
        assert_eq!(count_list("0"), 1);
        assert_eq!(count_list("3-1,x"), 0);
    }

    #[test]
    fn a_process_that_spins_is_pinned() {
        let mut spinner = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("sh starts");
        let discovery = Discovery::default();
        let mut meter = Meter::new(Some(spinner.id()), Ok(None), &discovery, None, clock::now());
        let mut busy = 0.0_f64;
        let start = clock::now();
        // On a crowded machine it may get less than a core; it is busy all the same.
        while busy < 0.05 && clock::now() - start < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(250));
            let gauges = meter.read(clock::now());
            assert_eq!(gauges.processes, [spinner.id()]);
            assert!(gauges.memory_used > Some(0));
            busy = gauges.cpu.map_or(0.0, |cpu| cpu.utilisation * cpu.cores);
        }
        spinner.kill().expect("it can be ended");
        spinner.wait().expect("it ends");
        assert!(busy >= 0.05, "{busy}");
        assert_eq!(meter.read(clock::now()).memory_used, None);
    }

    #[test]
    fn memory_is_the_groups_where_that_has_a_limit_and_nobody_has_named_another() {
        let mut meter = meter(None);
        assert!(meter.is_of_group(Some(1 << 30), Some(1)));
        assert!(!meter.is_of_group(None, Some(1)));
        meter.memory_limit = Some(1 << 29);
        assert!(!meter.is_of_group(Some(1 << 30), Some(1)));
        assert!(meter.is_of_group(None, None), "there is nothing else");
    }

    #[test]
    fn what_was_seen_of_another_process_is_no_history() {
        let now = clock::now();
        let seen = |root| {
            let mut seen = meter(None);
            seen.root = Some(root);
            seen.history.push_back(point(now, &[], None));
            seen
        };
        let mut next = meter(None);
        next.continue_from(seen(2));
        assert!(next.history.is_empty());
        next.continue_from(seen(1));
        assert_eq!(next.history.len(), 1);
    }
}

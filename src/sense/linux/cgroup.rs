//! The backend's cgroup, version 2 or 1: what it may use, what it uses, and what it waits for.
//!
//! A group's limit may be its own or that of a group above it. The figures are taken where the tightest
//! limit is: everybody who shares it counts.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// "No limit" of version 1 is the largest multiple of a page; nothing real is as large.
const UNLIMITED: u64 = 1 << 60;

/// Which files a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// A directory of one hierarchy, and how far up it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    /// The top of the hierarchy that can be seen.
    top: PathBuf,
    /// Its own directory. In version 2 it has a controller's files only if the group above it enables them.
    dir: PathBuf,
}

impl Group {
    /// It and those above it, the top included.
    fn line(&self) -> impl Iterator<Item = &Path> {
        let top = self.top.clone();
        self.dir
            .ancestors()
            .take_while(move |dir| dir.starts_with(&top))
    }

    /// The nearest that has this file.
    fn nearest(&self, file: &str) -> Option<&Path> {
        self.line().find(|dir| dir.join(file).exists())
    }
}

/// Where the backend's figures are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    cpu: Option<Group>,
    /// Version 1 counts CPU time in a hierarchy of its own.
    cpuacct: Option<Group>,
    memory: Option<Group>,
}

/// CPU as counted by a group, all of it ever growing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuCounts {
    /// Seconds used; `None` where the group's use is counted in another hierarchy, in another group.
    pub used: Option<f64>,
    /// Cores it may use; `None` = those of the machine.
    pub quota: Option<f64>,
    /// Enforcement periods, and those in which the quota was used up.
    pub periods: u64,
    pub throttled: u64,
}

/// Memory of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounts {
    /// What cannot be reclaimed, bytes.
    pub used: u64,
    /// What it may use, bytes.
    pub limit: Option<u64>,
    /// How often the limit was hit, ever.
    pub hits: u64,
    /// Processes killed for want of memory, ever.
    pub kills: u64,
}

/// Stall times of a group, seconds, ever growing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    /// Some task waited for CPU.
    pub cpu: Option<f64>,
    /// All tasks waited for memory.
    pub memory: Option<f64>,
}

impl Cgroup {
    /// The group of a process; `None` if it is the root, which is the whole machine. It is looked for in our
    /// own view of the hierarchies and, if it is not there because it belongs to another container, in the
    /// process's view.
    ///
    /// # Errors
    /// One sentence, if it has none, or none that can be seen.
    pub fn of(pid: u32) -> Result<Option<Self>, String> {
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .map_err(|error| format!("/proc/{pid}/cgroup: {error}"))?;
        let views = [
            ("self".to_owned(), PathBuf::from("/")),
            (pid.to_string(), PathBuf::from(format!("/proc/{pid}/root"))),
        ];
        for (whose, root) in views {
            let Ok(mounts) = fs::read_to_string(format!("/proc/{whose}/mountinfo")) else {
                continue;
            };
            let found = locate(&membership, &mounts, &root);
            if found != Self::default() && found.has(pid) {
                return Ok(Some(found));
            }
        }
        let own = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if is_whole_machine(&membership, &mounts(&own)) {
            return Ok(None);
        }
        Err("its group cannot be seen from here".to_owned())
    }

    /// The group at a path: a directory, or as `systemctl` writes it, below the mount.
    ///
    /// # Errors
    /// One sentence, if there is no such group.
    pub fn at(path: &str) -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let mounts = mounts(&own);
        // A full path names one hierarchy; the same group is looked for in the others.
        let below = mounts
            .iter()
            .find_map(|mount| Path::new(path).strip_prefix(&mount.point).ok())
            .unwrap_or(Path::new(path.trim_start_matches('/')));
        let found = Self::pick(&mounts, |mount| Some(mount.point.join(below)));
        if found == Self::default() {
            return Err(format!(
                "{path} is no cgroup with a cpu or memory controller"
            ));
        }
        Ok(found)
    }

    fn pick(mounts: &[Mount], dir: impl Fn(&Mount) -> Option<PathBuf>) -> Self {
        let group = |controller: &str, file_two: &str, file_one: &str| {
            let found = |version: Version, mount: &Mount, file: &str| {
                let dir = dir(mount).filter(|dir| dir.is_dir())?;
                let group = Group {
                    version,
                    top: mount.point.clone(),
                    dir,
                };
                group.nearest(file).is_some().then_some(group)
            };
            let one = mounts
                .iter()
                .filter(|m| m.controllers.iter().any(|c| c == controller));
            one.filter_map(|mount| found(Version::One, mount, file_one))
                .next()
                .or_else(|| {
                    let two = mounts.iter().filter(|mount| mount.version == Version::Two);
                    two.filter_map(|mount| found(Version::Two, mount, file_two))
                        .next()
                })
        };
        Self {
            // The root of version 2 has neither file: the machine is no group.
            cpu: group("cpu", "cpu.max", "cpu.cfs_quota_us"),
            cpuacct: group("cpuacct", "cpu.max", "cpuacct.usage"),
            memory: group("memory", "memory.current", "memory.usage_in_bytes"),
        }
    }

    /// Whether the process is in one of the groups: the path alone may name a stranger's.
    fn has(&self, pid: u32) -> bool {
        let groups = [&self.cpu, &self.cpuacct, &self.memory];
        groups.into_iter().flatten().any(|group| {
            let inside = fs::read_to_string(group.dir.join("cgroup.procs")).unwrap_or_default();
            // Seen from another PID namespace, a member is a 0.
            inside
                .lines()
                .any(|line| line == "0" || line.parse() == Ok(pid))
        })
    }

    /// The tightest quota, and the group that has it; without any, the group itself, whose use is always
    /// counted.
    fn tightest_quota(group: &Group) -> (Option<f64>, &Path) {
        let tightest = group
            .line()
            .filter_map(|dir| Some((quota(group.version, dir)?, dir)))
            .min_by(|(one, _), (other, _)| one.total_cmp(other));
        match tightest {
            Some((quota, dir)) => (Some(quota), dir),
            None => (None, group.dir.as_path()),
        }
    }

    /// The tightest memory limit, and the group that has it; without any, the nearest group that counts
    /// memory.
    fn tightest_limit(group: &Group) -> (Option<u64>, &Path) {
        let tightest = group
            .line()
            .filter_map(|dir| Some((memory_limit(group.version, dir)?, dir)))
            .min_by_key(|(limit, _)| *limit);
        let nearest = || match group.version {
            Version::Two => group.nearest("memory.current"),
            Version::One => None,
        };
        match tightest {
            Some((limit, dir)) => (Some(limit), dir),
            None => (None, nearest().unwrap_or(&group.dir)),
        }
    }

    /// The counts of CPU, where the tightest quota is.
    pub fn cpu(&self) -> Option<CpuCounts> {
        let group = self.cpu.as_ref()?;
        let (quota, dir) = Self::tightest_quota(group);
        let stat = fs::read_to_string(dir.join("cpu.stat")).ok()?;
        let used = match group.version {
            Version::Two => field(&stat, "usage_usec").map(|usec| usec as f64 / 1e6),
            Version::One => self.cpuacct.as_ref().and_then(|accounts| {
                // The same group in the other hierarchy, which may be the same mount.
                let same = accounts.top.join(dir.strip_prefix(&group.top).ok()?);
                let usage = fs::read_to_string(same.join("cpuacct.usage")).ok()?;
                let usage = number(&usage).filter(|_| accounts.dir.starts_with(&same))?;
                Some(usage as f64 / 1e9)
            }),
        };
        Some(CpuCounts {
            used,
            quota,
            periods: field(&stat, "nr_periods").unwrap_or(0),
            throttled: field(&stat, "nr_throttled").unwrap_or(0),
        })
    }

    /// The counts of memory, where the tightest limit is.
    pub fn memory(&self) -> Option<MemoryCounts> {
        let group = self.memory.as_ref()?;
        let (limit, dir) = Self::tightest_limit(group);
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        let stat = read("memory.stat")?;
        let count = |file, name| field(&read(file)?, name);
        let (current, inactive, hits, kills) = match group.version {
            Version::Two => (
                number(&read("memory.current")?)?,
                field(&stat, "inactive_file"),
                read("memory.events").map(|events| {
                    let count = |name| field(&events, name).unwrap_or(0);
                    count("high") + count("max")
                }),
                count("memory.events", "oom_kill"),
            ),
            Version::One => (
                number(&read("memory.usage_in_bytes")?)?,
                field(&stat, "total_inactive_file"),
                read("memory.failcnt").and_then(|count| number(&count)),
                count("memory.oom_control", "oom_kill"),
            ),
        };
        Some(MemoryCounts {
            used: current.saturating_sub(inactive.unwrap_or(0)),
            limit,
            hits: hits.unwrap_or(0),
            kills: kills.unwrap_or(0),
        })
    }

    /// The stall times; only version 2 has them for each group.
    pub fn stalls(&self) -> Stalls {
        let read = |group: &Option<Group>, file: &str, line: &str| {
            let group = group
                .as_ref()
                .filter(|group| group.version == Version::Two)?;
            parse_stall(&fs::read_to_string(group.dir.join(file)).ok()?, line)
        };
        Stalls {
            cpu: read(&self.cpu, "cpu.pressure", "some"),
            memory: read(&self.memory, "memory.pressure", "full"),
        }
    }

    /// Whether it is the whole machine, whose own figures are then the backend's: only version 1 has files at its
    /// root.
    pub fn is_whole_machine(&self) -> bool {
        let mut groups = [&self.cpu, &self.memory].into_iter().flatten();
        groups.all(|group| group.version == Version::One && is_root(group.version, &group.dir))
    }

    /// Where the figures of CPU are from, for people.
    pub fn cpu_source(&self) -> String {
        let group = self.cpu.as_ref();
        group.map_or_else(String::new, |group| {
            describe(group, Self::tightest_quota(group).1)
        })
    }

    /// Where the figures of memory are from, for people: in version 1 that is another hierarchy.
    pub fn memory_source(&self) -> String {
        let group = self.memory.as_ref();
        group.map_or_else(String::new, |group| {
            describe(group, Self::tightest_limit(group).1)
        })
    }
}

fn describe(group: &Group, dir: &Path) -> String {
    let version = match group.version {
        Version::One => 1,
        Version::Two => 2,
    };
    format!("cgroup v{version} {}", dir.display())
}

/// Whether a directory is the root of its hierarchy. To be its mount point is not enough, so two files tell:
/// `cgroup.events` is in no root of version 2, `release_agent` only in a root of version 1.
fn is_root(version: Version, dir: &Path) -> bool {
    match version {
        Version::Two => dir.is_dir() && !dir.join("cgroup.events").exists(),
        Version::One => dir.join("release_agent").exists(),
    }
}

/// Whether a process with this `/proc/PID/cgroup` is in no group at all.
fn is_whole_machine(membership: &str, mounts: &[Mount]) -> bool {
    membership.lines().all(|line| line.ends_with(":/"))
        && (membership.is_empty()
            || mounts
                .iter()
                .any(|mount| is_root(mount.version, &mount.point)))
}

/// Stall times of the whole machine.
pub fn machine_stalls() -> Stalls {
    let read = |what: &str, line: &str| {
        parse_stall(
            &fs::read_to_string(format!("/proc/pressure/{what}")).ok()?,
            line,
        )
    };
    Stalls {
        cpu: read("cpu", "some"),
        memory: read("memory", "full"),
    }
}

/// The cores that a group itself may use; `None` without a quota.
fn quota(version: Version, dir: &Path) -> Option<f64> {
    let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
    match version {
        Version::Two => parse_cpu_max(&read("cpu.max")?),
        Version::One => {
            // -1 is no quota.
            let quota = number(&read("cpu.cfs_quota_us")?)?;
            let period = number(&read("cpu.cfs_period_us")?)?;
            (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
        }
    }
}

fn memory_limit(version: Version, dir: &Path) -> Option<u64> {
    let read = |file: &str| number(&fs::read_to_string(dir.join(file)).ok()?);
    let limit = match version {
        // "max" is no number. Above memory.high it is slowed down until it stands still.
        Version::Two => [read("memory.max"), read("memory.high")]
            .into_iter()
            .flatten()
            .min(),
        Version::One => read("memory.limit_in_bytes"),
    };
    limit.filter(|limit| *limit < UNLIMITED)
}

/// `$MAX $PERIOD`, or `max $PERIOD`.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let mut fields = text.split_ascii_whitespace();
    let quota: f64 = fields.next()?.parse().ok()?;
    let period: f64 = fields.next().unwrap_or("100000").parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// The `total=` of a line of a pressure file, seconds.
fn parse_stall(text: &str, line: &str) -> Option<f64> {
    let line = text
        .lines()
        .find(|found| found.split(' ').next() == Some(line))?;
    let total = line.rsplit_once("total=")?.1.trim();
    Some(total.parse::<u64>().ok()? as f64 / 1e6)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A line `NAME NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| number(value)).flatten()
    })
}

/// One mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// Of version 1.
    controllers: Vec<String>,
    /// The group that the mount shows as its top.
    root: String,
    point: PathBuf,
}

/// The cgroup mounts of a mountinfo, proc_pid_mountinfo(5).
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        let (root, point) = (before.nth(3)?, before.next()?);
        let mut after = after.split(' ');
        let version = match after.next()? {
            "cgroup2" => Version::Two,
            "cgroup" => Version::One,
            _ => return None,
        };
        let controllers = match version {
            Version::Two => Vec::new(),
            Version::One => after.nth(1)?.split(',').map(str::to_owned).collect(),
        };
        Some(Mount {
            version,
            controllers,
            root: root.to_owned(),
            point: PathBuf::from(point.replace("\\040", " ")),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The groups of a process with this `/proc/PID/cgroup`, in hierarchies mounted below `root`.
fn locate(membership: &str, mountinfo: &str, root: &Path) -> Cgroup {
    let mut mounts = mounts(mountinfo);
    for mount in &mut mounts {
        mount.point = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
    }
    let path = |mount: &Mount| {
        membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (controllers, path) = (fields.nth(1)?, fields.next()?);
            let ours = match mount.version {
                Version::Two => controllers.is_empty(),
                Version::One => controllers
                    .split(',')
                    .any(|one| mount.controllers.iter().any(|c| c == one)),
            };
            ours.then_some(path)
        })
    };
    Cgroup::pick(&mounts, |mount| {
        let path = path(mount)?;
        // Above the top of the namespace: not to be seen through this mount, unless this is the view of
        // the process itself, which then is at its top.
        if path.starts_with("/..") {
            return (root != Path::new("/")).then(|| mount.point.clone());
        }
        let below = match mount.root.as_str() {
            "/" => path,
            top => path.strip_prefix(top).unwrap_or(path),
        };
        Some(mount.point.join(below.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests;

//! What the backend's processes do while they are loaded: CPU, memory, and the accept queue, as the
//! kernel shows them to anyone on the same machine. Where it does not (another container, another
//! system), there is less to say and nothing fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{clock, config::Address};

/// Processes looked through for the owner of a socket at most.
const MAX_PROCESSES: usize = 20_000;
/// A memory limit beyond this is none: cgroup v1 writes a huge number for "no limit".
const NO_LIMIT: u64 = 1 << 60;

/// One process of the backend at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessSample {
    /// CPU used since it began, seconds.
    pub cpu: f64,
    /// Time that its present threads were runnable but had no core, seconds.
    pub delay: f64,
    /// Threads now.
    pub threads: u32,
}

/// What could be seen of the backend at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Instant,
    /// The processes, by number; empty when they cannot be seen.
    pub processes: BTreeMap<u32, ProcessSample>,
    /// Memory in use, bytes: of the cgroup that limits it, or else of the processes.
    pub memory: Option<u64>,
}

/// What changes from moment to moment.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// Connections that no worker has accepted yet; None when it cannot be seen.
    pub accept_queue: Option<u32>,
    /// Memory in use, bytes: of the cgroup that limits it, or else of the processes.
    pub memory: Option<u64>,
}

/// Looks at the backend that listens at one address.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The rows of the kernel's table of sockets that are the backend's.
    listens: Vec<(IpAddr, u16)>,
    socket: Option<PathBuf>,
    /// Processes that hold the listening socket.
    owners: BTreeSet<u32>,
    /// Clock ticks a second.
    ticks: f64,
    memory_dir: Option<Cgroup>,
    declared: Option<u64>,
    cores: f64,
}

#[derive(Clone, Debug)]
struct Cgroup {
    dir: PathBuf,
    v2: bool,
}

impl Watch {
    /// Finds the processes that listen at `address`. `declared` is a memory limit that cannot be seen,
    /// in bytes.
    pub fn new(address: &Address, declared: Option<u64>) -> Self {
        let (listens, socket) = match address {
            Address::Tcp { host, port } => {
                let ip = host.trim_matches(['[', ']']).parse().ok();
                let ip = ip.unwrap_or(IpAddr::from([127, 0, 0, 1]));
                (vec![(ip, *port)], None)
            }
            Address::Unix(path) => (Vec::new(), Some(path.clone())),
            Address::Fd(_) => (Vec::new(), None),
        };
        let mut watch = Self {
            listens,
            socket,
            owners: BTreeSet::new(),
            ticks: rustix::param::clock_ticks_per_second() as f64,
            memory_dir: None,
            declared,
            cores: machine_cores(),
        };
        watch.owners = watch.find_owners();
        if let Some(&owner) = watch.owners.iter().next() {
            watch.cores = allowed_cores(owner).unwrap_or(watch.cores);
            watch.memory_dir = own_cgroup(owner);
            if let Some(quota) = cpu_quota(owner) {
                watch.cores = watch.cores.min(quota);
            }
        }
        watch
    }

    /// Whether the backend's processes can be seen at all.
    pub fn sees_processes(&self) -> bool {
        !self.owners.is_empty()
    }

    /// Cores that the backend may use: its quota, its affinity, or the machine's.
    pub fn cores(&self) -> f64 {
        self.cores
    }

    /// The memory that the backend may use, in bytes, when something limits it.
    pub fn memory_limit(&self) -> Option<u64> {
        let seen = self.memory_dir.as_ref().and_then(|group| {
            let file = if group.v2 {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            };
            number(&group.dir.join(file)).filter(|limit| *limit < NO_LIMIT)
        });
        match (seen, self.declared) {
            (Some(seen), Some(declared)) => Some(seen.min(declared)),
            (seen, declared) => seen.or(declared),
        }
    }

    /// Looks now. Costs some milliseconds: not on the thread that makes the load.
    pub fn snapshot(&self) -> Snapshot {
        let mut tree = self.owners.clone();
        let parents = parents();
        // Children of children: until nothing new is found.
        loop {
            let before = tree.len();
            for (&pid, &parent) in &parents {
                if tree.contains(&parent) {
                    tree.insert(pid);
                }
            }
            if tree.len() == before {
                break;
            }
        }
        let processes: BTreeMap<u32, ProcessSample> = tree
            .into_iter()
            .filter_map(|pid| Some((pid, self.process(pid)?)))
            .collect();
        let Glance { memory, .. } = self.glance(&processes.keys().copied().collect::<Vec<_>>());
        Snapshot {
            at: clock::now(),
            processes,
            memory,
        }
    }

    /// Looks only at what changes from moment to moment, of the processes that are known.
    pub fn glance(&self, processes: &[u32]) -> Glance {
        let of_group = self.memory_dir.as_ref().and_then(working_set);
        let of_processes = || {
            let each = processes.iter().filter_map(|&pid| own_memory(&status(pid)));
            (!processes.is_empty()).then(|| each.sum())
        };
        Glance {
            accept_queue: self.accept_queue(),
            memory: of_group.or_else(of_processes),
        }
    }

    fn process(&self, pid: u32) -> Option<ProcessSample> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: f64 = [11, 12]
            .iter()
            .filter_map(|&at| fields.get(at)?.parse::<f64>().ok())
            .sum();
        let (mut ran, mut delay) = (0.0, 0.0);
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().filter_map(Result::ok) {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let mut figures = text
                .split_whitespace()
                .map(|f| f.parse::<f64>().unwrap_or(0.0));
            ran += figures.next().unwrap_or(0.0) / 1e9;
            delay += figures.next().unwrap_or(0.0) / 1e9;
        }
        Some(ProcessSample {
            // Ticks are coarse, but know of the threads that have ended.
            cpu: ran.max(ticks / self.ticks),
            delay,
            threads: u32::try_from(figure(&status(pid), "Threads:")?).unwrap_or(u32::MAX),
        })
    }

    fn accept_queue(&self) -> Option<u32> {
        let rows: Vec<u32> = self.rows().map(|(_, queue)| queue).collect();
        (!rows.is_empty()).then(|| rows.iter().sum())
    }

    /// Inode and queue of each listening TCP socket that is the backend's.
    fn rows(&self) -> impl Iterator<Item = (u64, u32)> {
        ["/proc/net/tcp", "/proc/net/tcp6"]
            .into_iter()
            .filter(|_| !self.listens.is_empty())
            .filter_map(|file| fs::read_to_string(file).ok())
            .flat_map(|table| {
                table
                    .lines()
                    .skip(1)
                    .filter_map(|line| listening(line, &self.listens))
                    .collect::<Vec<_>>()
            })
    }

    fn find_owners(&self) -> BTreeSet<u32> {
        let mut inodes: BTreeSet<u64> = self.rows().map(|(inode, _)| inode).collect();
        if let Some(path) = &self.socket {
            let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
            inodes.extend(table.lines().filter_map(|line| unix_inode(line, path)));
        }
        if inodes.is_empty() {
            return BTreeSet::new();
        }
        let wanted: BTreeSet<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
        let holds = |pid: &u32| {
            let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
                return false;
            };
            files.filter_map(Result::ok).any(|file| {
                fs::read_link(file.path())
                    .is_ok_and(|to| to.to_str().is_some_and(|to| wanted.contains(to)))
            })
        };
        pids().filter(holds).collect()
    }
}

fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

fn figure(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes of a process that no file holds; pages that it still shares with its parent count for both.
fn own_memory(status: &str) -> Option<u64> {
    let shared = figure(status, "RssShmem:").unwrap_or(0);
    Some((figure(status, "RssAnon:")? + shared) * 1024)
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .take(MAX_PROCESSES)
}

fn parents() -> BTreeMap<u32, u32> {
    pids()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            Some((pid, parent.parse().ok()?))
        })
        .collect()
}

/// Inode and queue, if the row of `/proc/net/tcp` listens at one of these addresses.
fn listening(line: &str, at: &[(IpAddr, u16)]) -> Option<(u64, u32)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state) = (fields.get(1)?, fields.get(3)?);
    if *state != "0A" {
        return None;
    }
    let (host, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let ip = address(host)?;
    let ours = at.iter().any(|(wanted, wanted_port)| {
        *wanted_port == port && (ip == *wanted || ip.is_unspecified() || wanted.is_unspecified())
    });
    if !ours {
        return None;
    }
    let (_, queue) = fields.get(4)?.split_once(':')?;
    Some((
        fields.get(9)?.parse().ok()?,
        u32::from_str_radix(queue, 16).ok()?,
    ))
}

/// The kernel writes addresses as words in the byte order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    let words: Vec<u32> = (0..hex.len() / 8)
        .map(|i| u32::from_str_radix(hex.get(i * 8..i * 8 + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    match words.as_slice() {
        [word] => Some(IpAddr::from(word.to_ne_bytes())),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (at, word) in [a, b, c, d].into_iter().enumerate() {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
            }
            Some(std::net::Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

fn unix_inode(line: &str, path: &Path) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    // Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON = 0x10000.
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    (flags & 0x1_0000 != 0 && Path::new(fields.get(7)?) == path)
        .then(|| fields.get(6)?.parse().ok())
        .flatten()
}

fn machine_cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

fn allowed_cores(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut count = 0;
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        count += to.parse::<u32>().ok()? - from.parse::<u32>().ok()? + 1;
    }
    // A mask may name cores that the machine lacks.
    Some(f64::from(count).min(online_cores()?))
}

fn online_cores() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let cores = stat
        .lines()
        .filter(|line| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .count();
    (cores > 0).then_some(cores as f64)
}

/// The path of a controller's group (v1), or of the unified hierarchy ("").
fn group(pid: u32, controller: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = if controller.is_empty() {
            names.is_empty()
        } else {
            names.split(',').any(|name| name == controller)
        };
        found.then(|| path.trim_start_matches('/').to_owned())
    })
}

/// The group that limits the memory of this process, when it is not the root.
fn own_cgroup(pid: u32) -> Option<Cgroup> {
    let limited =
        |dir: &Path, file: &str| number(&dir.join(file)).is_some_and(|limit| limit < NO_LIMIT);
    let v1 = group(pid, "memory").map(|path| Path::new("/sys/fs/cgroup/memory").join(path));
    if let Some(dir) = v1.filter(|dir| limited(dir, "memory.limit_in_bytes")) {
        return Some(Cgroup { dir, v2: false });
    }
    let root = Path::new("/sys/fs/cgroup");
    let path = group(pid, "")?;
    // The nearest that has a limit counts.
    root.join(path)
        .ancestors()
        .take_while(|dir| dir.starts_with(root))
        .find(|dir| limited(dir, "memory.max"))
        .map(|dir| Cgroup {
            dir: dir.to_owned(),
            v2: true,
        })
}

/// Cores that a quota allows.
fn cpu_quota(pid: u32) -> Option<f64> {
    let root = Path::new("/sys/fs/cgroup");
    let v1 = group(pid, "cpu").and_then(|path| {
        let dir = root.join("cpu").join(path);
        let quota = fs::read_to_string(dir.join("cpu.cfs_quota_us")).ok()?;
        let quota: f64 = quota.trim().parse().ok()?;
        (quota > 0.0).then_some(quota / number(&dir.join("cpu.cfs_period_us"))? as f64)
    });
    let v2 = || {
        root.join(group(pid, "")?)
            .ancestors()
            .take_while(|dir| dir.starts_with(root))
            .filter_map(|dir| {
                let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
            })
            .reduce(f64::min)
    };
    v1.or_else(v2)
}

/// What the group uses and cannot give back.
fn working_set(group: &Cgroup) -> Option<u64> {
    let (usage, inactive) = if group.v2 {
        ("memory.current", "inactive_file ")
    } else {
        ("memory.usage_in_bytes", "total_inactive_file ")
    };
    let used = number(&group.dir.join(usage))?;
    let stat = fs::read_to_string(group.dir.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat
        .lines()
        .find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok())
        .unwrap_or(0);
    Some(used.saturating_sub(reclaimable))
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_of_the_kernels_table_are_read() {
        let loopback = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
        assert_eq!(address(&loopback), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(address("00000000"), Some(IpAddr::from([0, 0, 0, 0])));
        assert_eq!(address(&"0".repeat(32)), "::".parse().ok());
        assert_eq!(address("xyz"), None);
        let line = format!(
            "   1: {loopback}:1F90 00000000:0000 0A 00000000:00000007 00:00000000 00000000  0  0 4711 1 0 100"
        );
        let at = [(IpAddr::from([127, 0, 0, 1]), 8080)];
        assert_eq!(listening(&line, &at), Some((4711, 7)));
        assert_eq!(listening(&line, &[(at[0].0, 8081)]), None);
        assert_eq!(listening(&line.replace(" 0A ", " 01 "), &at), None);
        assert_eq!(listening("garbage", &at), None);
        let unix = "0000: 00000002 00000000 00010000 0001 01 815 /run/app.sock";
        assert_eq!(unix_inode(unix, Path::new("/run/app.sock")), Some(815));
        assert_eq!(unix_inode(unix, Path::new("/run/other")), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_very_process_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let watch = Watch::new(
            &Address::Tcp {
                host: "127.0.0.1".into(),
                port,
            },
            Some(1 << 50),
        );
        assert!(watch.sees_processes() && watch.cores() > 0.0);
        assert!(watch.memory_limit().is_some_and(|limit| limit <= 1 << 50));
        let waiting = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let snapshot = watch.snapshot();
        assert_eq!(watch.glance(&[]).accept_queue, Some(1));
        drop(waiting);
        let own = snapshot.processes[&std::process::id()];
        assert!(own.threads > 0);
        assert!(snapshot.memory > Some(0));
    }
}

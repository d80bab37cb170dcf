//! Cgroups of the tests' own, below the one that the test runs in.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use super::children;

/// A cgroup of version 1 or 2, below the test's own; `None` where the test may not make one.
#[derive(Debug)]
pub struct Group {
    pub dirs: Vec<PathBuf>,
    version: u8,
}

impl Group {
    /// With these controllers of version 1, of which `file_one` is a file, or `file_two` in version 2.
    fn make(controllers: &[&str], file_one: &str, file_two: &str) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, nth) = (std::process::id(), MADE.fetch_add(1, Relaxed));
        let name = format!("tidegate-test-{}-{process}-{nth}", controllers[0]);
        let one: Vec<PathBuf> = controllers
            .iter()
            .map(|controller| own_group(controller))
            .collect();
        let (parents, version, file) = if one[0].join("cgroup.clone_children").exists() {
            (one, 1, file_one)
        } else {
            (vec![own_group("")], 2, file_two)
        };
        let mut group = Self {
            dirs: Vec::new(),
            version,
        };
        for parent in parents {
            let dir = parent.join(&name);
            fs::create_dir(&dir).ok()?;
            group.dirs.push(dir);
        }
        group.dirs[0].join(file).exists().then_some(group)
    }

    /// One that can have a quota of CPU time.
    pub fn cpu() -> Option<Self> {
        Self::make(&["cpu", "cpuacct"], "cpu.cfs_quota_us", "cpu.max")
    }

    /// One that can have a limit of memory.
    pub fn memory() -> Option<Self> {
        Self::make(&["memory"], "memory.limit_in_bytes", "memory.max")
    }

    pub fn set_cores(&self, cores: f64) {
        let quota = (cores * 100_000.0) as u64;
        let (file, text) = match self.version {
            1 => ("cpu.cfs_quota_us", quota.to_string()),
            _ => ("cpu.max", format!("{quota} 100000")),
        };
        fs::write(self.dirs[0].join(file), text).expect("a quota");
    }

    pub fn set_memory(&self, bytes: u64) {
        let file = match self.version {
            1 => "memory.limit_in_bytes",
            _ => "memory.max",
        };
        fs::write(self.dirs[0].join(file), bytes.to_string()).expect("a limit");
    }

    /// How often something in it was killed for want of memory.
    pub fn kills(&self) -> Option<u64> {
        ["memory.oom_control", "memory.events"]
            .iter()
            .find_map(|file| {
                let text = fs::read_to_string(self.dirs[0].join(file)).ok()?;
                let line = text.lines().find(|line| line.starts_with("oom_kill "))?;
                line.split(' ').nth(1)?.parse().ok()
            })
    }

    /// Moves a process and its children in.
    pub fn take(&self, pid: u32) {
        for pid in std::iter::once(pid).chain(children(pid)) {
            for dir in &self.dirs {
                fs::write(dir.join("cgroup.procs"), pid.to_string()).expect("it moves");
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // Not before the last process in it is gone.
            for _ in 0..200 {
                if fs::remove_dir(dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The directory of the test's own group.
fn own_group(controller: &str) -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text
        .lines()
        .find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let controllers = fields.nth(1)?;
            controllers
                .split(',')
                .any(|one| one == controller)
                .then(|| fields.next().unwrap_or("/").to_owned())
        })
        .unwrap_or_else(|| "/".to_owned());
    PathBuf::from("/sys/fs/cgroup")
        .join(controller)
        .join(path.trim_start_matches('/'))
}

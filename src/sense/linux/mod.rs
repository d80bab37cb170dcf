//! Linux: sockets by netlink, processes by `/proc`, limits by cgroups.

mod cgroup;
mod listener;
mod meter;
mod netlink;
mod owners;
mod process;

use std::time::Instant;

pub use self::owners::Owners;
use self::{
    cgroup::Cgroup,
    listener::{Listener, Lookup},
    meter::Meter,
    process::Stat,
};
use super::{
    Gauges, ProcessTimes,
    facts::{Before, ChildFacts, ListenerFacts, Overlap, ProcessFacts, is_glibc, is_telling},
};
use crate::{
    clock,
    config::{Address, CgroupSetting, Discovery},
    control::MemoryReading,
};

/// What this platform cannot see at all, one sentence; `None` if there is no such thing.
pub const BLIND: Option<&str> = None;

/// A look at everything, and what is needed to look again.
#[derive(Debug)]
pub struct Survey {
    /// The listening socket, or why it is not known.
    pub listener: Result<ListenerFacts, String>,
    /// The process that owns it, or why it is not known.
    pub process: Result<ProcessFacts, String>,
    /// Where CPU is read, or why not.
    pub cpu: Result<String, String>,
    /// Where memory is read, or why not.
    pub memory: Result<String, String>,
    /// For what is read again and again.
    pub eyes: Eyes,
}

/// The open ends of a survey.
#[derive(Debug, Default)]
pub struct Eyes {
    lookup: Option<Lookup>,
    listener: Option<Listener>,
    meter: Option<Meter>,
    root: Option<u32>,
    /// The root, and those that take over from it.
    masters: Vec<u32>,
    /// Their children that may accept.
    workers: Vec<u32>,
}

/// Looks at everything. `child` is the process that `exec` started, `before` what the last look found. Without
/// either it reads much of `/proc`: milliseconds on a machine with a thousand processes, and not for the thread
/// that serves requests.
pub fn survey(
    address: &Address,
    discovery: &Discovery,
    child: Option<u32>,
    before: &Before,
) -> Survey {
    let mut lookup = Lookup::new(address);
    let listener = lookup
        .as_mut()
        .map_err(|why| why.clone())
        .and_then(|lookup| lookup.find(None));
    let root = owner(&listener, discovery, child, before.owner);
    let masters = root
        .as_ref()
        .map_or(Vec::new(), |root| process::masters(*root));
    let process = root.clone().map(|root| facts(root, &masters, &listener));
    let workers = process.as_ref().map_or(Vec::new(), |process| {
        let listening = process.children.iter().filter(|child| child.listens);
        listening.map(|child| child.pid).collect()
    });
    let group = group(root.as_ref().ok().copied(), discovery);
    // A group that was named is as good as a process.
    let meter = match (&root, &group) {
        (Err(_), Ok(None) | Err(_)) => None,
        _ => Some(Meter::new(
            root.as_ref().ok().copied(),
            group,
            discovery,
            before.overlap.clone(),
            clock::now(),
        )),
    };
    let source = |of: fn(&Meter) -> String| match (&meter, &root) {
        (Some(meter), _) => Ok(of(meter)),
        (None, Err(why)) => Err(why.clone()),
        (None, Ok(_)) => Err(String::new()),
    };
    Survey {
        cpu: source(Meter::cpu_source),
        memory: source(Meter::memory_source),
        process,
        listener: listener
            .as_ref()
            .map_err(Clone::clone)
            .map(|listener| ListenerFacts {
                queued: listener.queued,
                backlog: listener.backlog,
                via: lookup.as_ref().map_or("", |lookup| lookup.via().as_str()),
            }),
        eyes: Eyes {
            lookup: lookup.ok(),
            listener: listener.ok(),
            meter,
            root: root.ok(),
            masters,
            workers,
        },
    }
}

/// A file as the process sees it.
pub fn read_file(pid: u32, path: &str) -> Option<String> {
    process::file(pid, path)
}

/// What a process has used so far.
pub fn times(pid: u32) -> Option<ProcessTimes> {
    let stat = Stat::read(pid)?;
    let (ran, waited) = process::schedule(pid);
    Some(ProcessTimes {
        // Ticks are coarse, but know of the threads that have ended.
        cpu: ran.max(stat.cpu_seconds),
        waited,
        threads: stat.threads,
        parent: stat.parent,
    })
}

/// The process that owns the listener. If several have it open, it is the one that started the others.
/// systemd, which only keeps the sockets of its services open, does not count.
fn owner(
    listener: &Result<Listener, String>,
    discovery: &Discovery,
    child: Option<u32>,
    before: Option<u32>,
) -> Result<u32, String> {
    if !discovery.proc {
        return child.ok_or_else(|| "discovery.proc is off".to_owned());
    }
    let listener = match (listener, child) {
        (Ok(listener), _) => listener,
        (Err(_), Some(child)) if Stat::read(child).is_some() => return Ok(child),
        (Err(why), _) => return Err(why.clone()),
    };
    // First the processes that are known, and their descendants; only then all processes of the machine.
    for known in [child, before].into_iter().flatten() {
        let holding: Vec<u32> = process::tree(known)
            .into_iter()
            .filter(|pid| process::holds(*pid, &listener.inodes))
            .collect();
        if let Some(eldest) = process::eldest(&holding) {
            return Ok(eldest);
        }
    }
    let (holding, denied) = process::holders(&listener.inodes);
    process::eldest(&holding).ok_or_else(|| match denied {
        _ if !holding.is_empty() => "systemd keeps its socket, and has not started it".to_owned(),
        0 => "its process is not to be seen from here (another PID namespace?)".to_owned(),
        denied => format!(
            "its process is not among those that may be looked into ({denied} may not: another user's)"
        ),
    })
}

fn facts(root: u32, masters: &[u32], listener: &Result<Listener, String>) -> ProcessFacts {
    let inodes = listener
        .as_ref()
        .map_or(&[][..], |listener| &listener.inodes);
    let stat = Stat::read(root);
    let child = |pid: u32| {
        Stat::read(pid).map(|_| ChildFacts {
            pid,
            command: process::command(pid),
            listens: inodes.is_empty() || process::holds(pid, inodes),
        })
    };
    ProcessFacts {
        pid: root,
        name: stat
            .as_ref()
            .map_or_else(String::new, |stat| stat.name.clone()),
        command: process::command(root),
        environment: process::environment(root, is_telling),
        allocates_by_glibc: process::file(root, "/proc/self/maps")
            .is_some_and(|maps| is_glibc(&maps)),
        thread_names: process::thread_names(root),
        age: stat.as_ref().and_then(process::age).unwrap_or(0.0),
        children: process::workers(masters)
            .into_iter()
            .filter_map(child)
            .collect(),
    }
}

fn group(root: Option<u32>, discovery: &Discovery) -> Result<Option<Cgroup>, String> {
    match (&discovery.cgroup, root) {
        (CgroupSetting::Auto, Some(root)) => Cgroup::of(root),
        (CgroupSetting::Auto, None) => Err("its process is not known".to_owned()),
        (CgroupSetting::Off, _) => Err("discovery.cgroup is off".to_owned()),
        (CgroupSetting::Path(path), _) => Cgroup::at(path).map(Some),
    }
}

impl Eyes {
    /// Takes over what an earlier survey has learned over time.
    pub fn continue_from(&mut self, before: Self) {
        if let (Some(meter), Some(before)) = (&mut self.meter, before.meter) {
            meter.continue_from(before);
        }
    }

    /// Whether the endpoint is on this machine, and will be seen once somebody listens there.
    pub fn is_here(&self) -> bool {
        self.lookup.is_some()
    }

    /// What the processes share, for the next survey.
    pub fn overlap(&self) -> Option<Overlap> {
        self.meter.as_ref()?.overlap().cloned()
    }

    /// How many wait in the accept queue now; microseconds. An error means that the listener is another one
    /// than before, or gone: it is time for a survey.
    ///
    /// # Errors
    /// See above.
    pub fn accept_queue(&mut self) -> Result<Option<u32>, String> {
        let (Some(lookup), Some(before)) = (&mut self.lookup, &self.listener) else {
            return Ok(None);
        };
        let now = lookup.find(Some(before))?;
        if now.inodes != before.inodes {
            return Err("another socket listens there now".to_owned());
        }
        let queued = now.queued;
        self.listener = Some(now);
        Ok(queued)
    }

    /// CPU and memory now; a fraction of a millisecond.
    pub fn gauges(&mut self, now: Instant) -> Option<Gauges> {
        self.meter.as_mut().map(|meter| meter.read(now))
    }

    /// Whether the owner's workers have changed since the survey, on which the slots depend. `processes` are
    /// those of its tree now; what an app starts besides its workers may come and go with each request, and
    /// does not count.
    pub fn workers_changed(&self, processes: &[u32]) -> bool {
        // A child that is new and holds the socket may accept from it.
        let Some(listener) = &self.listener else {
            return false;
        };
        let is_new = |pid: &u32| !self.workers.contains(pid);
        self.workers.iter().any(|pid| !processes.contains(pid))
            || process::workers(&self.masters)
                .iter()
                .filter(|pid| is_new(pid))
                .any(|pid| process::holds(*pid, &listener.inodes))
    }

    /// Memory alone, for what it was at this very moment; tens of microseconds.
    pub fn refresh_memory(&self, gauges: &mut Gauges) {
        let Some(meter) = &self.meter else { return };
        let (memory, used) = meter.memory();
        gauges.memory_used = used;
        gauges.memory_limit = memory.map(|memory| memory.limit);
        let pressure = gauges.memory.map_or(0.0, |memory| memory.pressure);
        gauges.memory = memory.map(|memory| MemoryReading { pressure, ..memory });
    }

    /// Whether the owner of the listener still runs.
    pub fn owner_lives(&self) -> bool {
        self.root.is_none_or(|root| Stat::read(root).is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_worker_that_comes_or_goes_is_a_change_and_a_program_that_is_run_is_none() {
        // A server that does as it is told.
        let program = "import os, signal, socket, subprocess, sys, time
s = socket.create_server(('127.0.0.1', 0))
print(s.getsockname()[1], flush=True)
pids = {}
for what in map(str.strip, sys.stdin):
    if what == 'run':
        pids[what] = subprocess.Popen(['sleep', '60']).pid
    elif what == 'fork':
        pids[what] = os.fork()
        if pids[what] == 0:
            time.sleep(60)
    else:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    print(pids.get(what, 0), flush=True)";
        let mut server = Command::new("python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut said = BufReader::new(server.stdout.take().expect("its output")).lines();
        let mut next = || -> u32 {
            let line = said.next().expect("a line").expect("a line");
            line.parse().expect("a number")
        };
        let address = Address::connect(&format!("127.0.0.1:{}", next())).expect("an address");
        let mut told = server.stdin.take().expect("its input");
        let mut tell = |what: &str| {
            writeln!(told, "{what}").expect("it reads");
            next()
        };
        let look = || {
            let discovery = Discovery::default();
            survey(&address, &discovery, Some(server.id()), &Before::default()).eyes
        };
        let changed = |eyes: &mut Eyes| {
            let gauges = eyes.gauges(clock::now()).expect("its process is known");
            (
                gauges.processes.len(),
                eyes.workers_changed(&gauges.processes),
            )
        };
        let mut eyes = look();
        assert_eq!(changed(&mut eyes), (1, false));
        tell("run");
        assert_eq!(changed(&mut eyes), (2, false));
        let worker = tell("fork");
        assert_eq!(changed(&mut eyes), (3, true));
        eyes = look();
        assert_eq!(eyes.workers, [worker]);
        assert_eq!(changed(&mut eyes), (3, false));
        tell("kill");
        assert_eq!(changed(&mut eyes), (1, true));
        drop(told);
        server.wait().expect("it ends");
    }
}

//! Processes, as `/proc` shows them. Everything here may vanish between two looks.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::sense::facts::TAKES_OVER;

/// The unit of CPU times in `/proc`: 100 Hz for user space (USER_HZ) on every platform that Rust's Linux
/// targets run on.
pub const TICKS_A_SECOND: f64 = 100.0;
/// Processes of one backend that are looked at; a tree beyond that is something else.
const MOST: usize = 1024;
/// Bytes of a configuration file that are looked at.
const FILE_MAX: u64 = 256 << 10;
/// The service manager, as PID 1 or for a user: it keeps the sockets of the services that it starts open, and
/// serves none of them.
const MANAGER: &str = "systemd";

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    pub name: String,
    pub parent: u32,
    /// CPU time used, seconds.
    pub cpu_seconds: f64,
    /// That of its children, and of theirs, as far as they have ended and were waited for.
    pub reaped_seconds: f64,
    pub threads: u32,
    /// When it was started, seconds after the machine.
    pub started: f64,
    /// A zombie holds nothing any more.
    pub is_zombie: bool,
}

impl Stat {
    /// Of a process that runs.
    pub fn read(pid: u32) -> Option<Self> {
        Self::read_any(pid).filter(|stat| !stat.is_zombie)
    }

    /// Of one that has ended, too, as long as nobody has waited for it.
    pub fn read_any(pid: u32) -> Option<Self> {
        parse_stat(&text(format!("/proc/{pid}/stat"))?)
    }
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the command in parentheses and may contain anything, even `)`.
    let (head, fields) = text.rsplit_once(") ")?;
    // The first one here is field 3 of proc_pid_stat(5).
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |user, system| Some((field(user)? + field(system)?) as f64 / TICKS_A_SECOND);
    Some(Stat {
        name: head.split_once('(')?.1.to_owned(),
        parent: field(4)? as u32,
        cpu_seconds: seconds(14, 15)?,
        reaped_seconds: seconds(16, 17)?,
        threads: field(20)? as u32,
        started: field(22)? as f64 / TICKS_A_SECOND,
        is_zombie: fields.first() == Some(&"Z"),
    })
}

/// A file of `/proc` that has a name in it: the kernel cuts those at 15 bytes, be it within a character.
pub fn text(path: impl AsRef<Path>) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The arguments of a process, the program first; empty for a kernel thread and a zombie.
pub fn command(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    split(&bytes)
}

/// Some variables of a process's environment, as it was started with.
pub fn environment(pid: u32, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    split(&bytes)
        .iter()
        .filter_map(|one| one.split_once('='))
        .filter(|(name, _)| wanted(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn split(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .split(|byte| *byte == 0)
        .map(|one| String::from_utf8_lossy(one).into_owned())
        .collect()
}

/// The names of a process's threads.
pub fn thread_names(pid: u32) -> Vec<String> {
    numbers(format!("/proc/{pid}/task"))
        .filter_map(|thread| text(format!("/proc/{pid}/task/{thread}/comm")))
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// A file as the process sees it: in its root, from its working directory, itself where it says `self`.
pub fn file(pid: u32, path: &str) -> Option<String> {
    if let Some(own) = path.strip_prefix("/proc/self/") {
        return fs::read_to_string(format!("/proc/{pid}/{own}")).ok();
    }
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let path = Path::new(path);
    let full = if path.is_absolute() {
        root.join(path.strip_prefix("/").ok()?)
    } else {
        let inside = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        root.join(inside.strip_prefix("/").ok()?).join(path)
    };
    let meta = fs::metadata(&full).ok()?;
    if !meta.is_file() || meta.len() > FILE_MAX {
        return None;
    }
    fs::read_to_string(full).ok()
}

/// For how long a process has been running, seconds.
pub fn age(stat: &Stat) -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    Some(uptime - stat.started)
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in numbers(format!("/proc/{pid}/task")) {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")) else {
            // A kernel without CONFIG_PROC_CHILDREN.
            return children_by_parent(pid);
        };
        found.extend(
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

/// A process and those that take over from it, each a child of one before.
pub fn masters(master: u32) -> Vec<u32> {
    let takes_over = |pid| {
        environment(pid, |name| name == TAKES_OVER)
            .into_values()
            .next()
    };
    let mut found = vec![master];
    let mut at = 0;
    while at < found.len() {
        let own = takes_over(found[at]);
        // What is forked has its parent's environment.
        let is_master = |pid: &u32| takes_over(*pid).is_some_and(|one| Some(one) != own);
        found.extend(children(found[at]).into_iter().filter(is_master));
        at += 1;
    }
    found
}

/// The children of these masters that are none of them.
pub fn workers(masters: &[u32]) -> Vec<u32> {
    let children = masters.iter().flat_map(|master| children(*master));
    children.filter(|pid| !masters.contains(pid)).collect()
}

fn children_by_parent(pid: u32) -> Vec<u32> {
    numbers("/proc")
        .filter(|&other| Stat::read(other).is_some_and(|stat| stat.parent == pid))
        .collect()
}

/// A process and all that descend from it, itself first.
pub fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() && found.len() < MOST {
        found.extend(children(found[at]));
        at += 1;
    }
    found.truncate(MOST);
    found
}

/// Whether it has one of these sockets open. False, too, for a process of somebody else's.
pub fn holds(pid: u32, inodes: &[u64]) -> bool {
    socket_inodes(pid).is_ok_and(|mut open| open.any(|inode| inodes.contains(&inode)))
}

/// The sockets that a process has open.
pub fn socket_inodes(pid: u32) -> io::Result<impl Iterator<Item = u64>> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(open.filter_map(|entry| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        let inode = target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?;
        inode.parse().ok()
    }))
}

/// All processes that have one of these sockets open, and how many could not be looked into for want of rights.
pub fn holders(inodes: &[u64]) -> (Vec<u32>, usize) {
    let mut denied = 0;
    let mut found = Vec::new();
    for pid in numbers("/proc") {
        match socket_inodes(pid) {
            Ok(mut open) => {
                if open.any(|inode| inodes.contains(&inode)) {
                    found.push(pid);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied += 1,
            Err(_) => {}
        }
    }
    (found, denied)
}

/// Of these processes, the one that the others descend from. If there is more than one such, their common
/// parent if it runs the same command (granian's workers listen, their master does not), or else the oldest.
pub fn eldest(pids: &[u32]) -> Option<u32> {
    let holders = pids.iter().filter_map(|&pid| Some((pid, Stat::read(pid)?)));
    eldest_of(holders.collect(), command)
}

fn eldest_of(mut holders: Vec<(u32, Stat)>, command: fn(u32) -> Vec<String>) -> Option<u32> {
    holders.retain(|(_, stat)| stat.name != MANAGER);
    let known: HashSet<u32> = holders.iter().map(|(pid, _)| *pid).collect();
    holders.retain(|(_, stat)| !known.contains(&stat.parent));
    let (oldest, stat) = holders
        .iter()
        .min_by(|(_, one), (_, other)| one.started.total_cmp(&other.started))?;
    let siblings = holders.len() > 1
        && holders
            .iter()
            .all(|(_, other)| other.parent == stat.parent && other.name == stat.name);
    let forked = siblings && {
        let own = command(*oldest);
        !own.is_empty() && command(stat.parent) == own
    };
    Some(if forked { stat.parent } else { *oldest })
}

/// Time spent running and time spent waiting for a core, over all threads, seconds.
pub fn schedule(pid: u32) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for thread in numbers(format!("/proc/{pid}/task")) {
        let read = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"));
        if let Some((run, wait)) = read.ok().as_deref().and_then(parse_schedule) {
            sum = (sum.0 + run, sum.1 + wait);
        }
    }
    sum
}

/// `/proc/PID/schedstat`: nanoseconds run, nanoseconds waited, slices.
fn parse_schedule(text: &str) -> Option<(f64, f64)> {
    let mut fields = text.split_ascii_whitespace();
    let mut next = || Some(fields.next()?.parse::<u64>().ok()? as f64 / 1e9);
    Some((next()?, next()?))
}

/// Resident memory of a process, bytes.
pub fn resident(pid: u32) -> u64 {
    // In kilobytes, unlike statm, which counts pages of a size that one would have to know.
    let text = text(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&text, "VmRSS:").unwrap_or(0)
}

/// Its share of resident memory, bytes: what is shared counts in parts. The kernel walks its page tables
/// for it.
pub fn proportional(pid: u32) -> Option<u64> {
    kilobytes(
        &fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?,
        "Pss:",
    )
}

/// The figure on the line that begins so, in bytes.
fn kilobytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn numbers(dir: impl AsRef<Path>) -> impl Iterator<Item = u32> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
        os::fd::AsFd,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 5 7 7 0 -1 4194304 1 0 0 0 150 50 300 25 20 0 3 0 4200 9 9";
        let expected = Stat {
            name: "a) b (c".into(),
            parent: 5,
            cpu_seconds: 2.0,
            reaped_seconds: 3.25,
            threads: 3,
            started: 42.0,
            is_zombie: false,
        };
        assert_eq!(parse_stat(stat), Some(expected.clone()));
        let zombie = Stat {
            is_zombie: true,
            ..expected
        };
        assert_eq!(parse_stat(&stat.replace(" S ", " Z ")), Some(zombie));
        assert_eq!(parse_stat("7 (x) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn arguments_are_split_at_zeros() {
        assert_eq!(split(b"a\0\0b c\0"), ["a", "", "b c"]);
        assert!(split(b"").is_empty());
    }

    #[test]
    fn schedules_and_shares_are_read() {
        assert_eq!(
            parse_schedule("1500000000 250000000 7\n"),
            Some((1.5, 0.25))
        );
        assert_eq!(parse_schedule("x"), None);
        let rollup =
            "55d0-7ffc ---p 0 00:00 0 [rollup]\nRss:  900 kB\nPss:    512 kB\nPss_Anon: 1 kB\n";
        assert_eq!(kilobytes(rollup, "Pss:"), Some(512 << 10));
        assert_eq!(kilobytes("Rss: 1 kB", "Pss:"), None);
    }

    #[test]
    fn this_process_is_found_by_its_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let inode = rustix::fs::fstat(listener.as_fd())
            .expect("its file")
            .st_ino;
        let own = std::process::id();
        assert!(holds(own, &[inode]));
        let (found, _) = holders(&[inode]);
        assert!(found.contains(&own), "{found:?}");
        assert_eq!(eldest(&[own]), Some(own));
        drop(listener);
        assert!(!holds(own, &[inode]));
    }

    fn stat(name: &str, parent: u32, started: f64) -> Stat {
        Stat {
            name: name.into(),
            parent,
            cpu_seconds: 0.0,
            reaped_seconds: 0.0,
            threads: 1,
            started,
            is_zombie: false,
        }
    }

    #[test]
    fn a_name_that_is_cut_within_a_character_hides_nothing() {
        let program = "import sys
open('/proc/self/comm', 'wb').write(b'caf\\xc3\\xa9-caf\\xc3\\xa9-ca\\xc3')
print(flush=True)
sys.stdin.read()";
        let mut named = Command::new("python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut said = BufReader::new(named.stdout.take().expect("its output")).lines();
        said.next().expect("a line").expect("a line");
        let cut = "café-café-ca\u{fffd}";
        let stat = Stat::read(named.id()).expect("it runs");
        assert_eq!((stat.name.as_str(), stat.parent), (cut, std::process::id()));
        assert_eq!(thread_names(named.id()), [cut]);
        assert!(resident(named.id()) > 1 << 20);
        drop(named.stdin.take());
        named.wait().expect("it ends");
    }

    #[test]
    fn a_master_that_does_not_listen_may_be_the_first_process() {
        let workers = |master| {
            vec![
                (7, stat("granian", master, 1.0)),
                (8, stat("granian", master, 2.0)),
            ]
        };
        let named = |pid| match pid {
            // The parent is outside of the namespace.
            0 => Vec::new(),
            2 => vec!["init".to_owned()],
            _ => vec!["granian".to_owned()],
        };
        assert_eq!(eldest_of(workers(6), named), Some(6));
        assert_eq!(eldest_of(workers(1), named), Some(1));
        assert_eq!(eldest_of(workers(2), named), Some(7), "another program");
        assert_eq!(eldest_of(workers(0), named), Some(7));
        assert_eq!(eldest_of(workers(6), |_| Vec::new()), Some(7), "unnamed");
    }

    #[test]
    fn a_socket_that_systemd_keeps_is_its_services() {
        let command = |_| Vec::new();
        let service = |systemd: u32| {
            vec![
                (systemd, stat("systemd", 0, 0.0)),
                (70, stat("gunicorn", systemd, 5.0)),
                (71, stat("gunicorn", 70, 6.0)),
            ]
        };
        assert_eq!(eldest_of(service(1), command), Some(70));
        assert_eq!(eldest_of(service(60), command), Some(70), "a user's");
        let before_it_is_started = vec![(1, stat("systemd", 0, 0.0))];
        assert_eq!(eldest_of(before_it_is_started, command), None);
        // The first process of a container is a server like any other.
        let first = vec![(1, stat("gunicorn", 0, 0.0)), (7, stat("gunicorn", 1, 1.0))];
        assert_eq!(eldest_of(first, command), Some(1));
    }

    #[test]
    fn this_process_is_looked_at() {
        let own = std::process::id();
        let stat = Stat::read(own).expect("it runs");
        assert!(age(&stat).is_some_and(|age| (0.0..3600.0).contains(&age)));
        assert!(!command(own).is_empty());
        assert!(resident(own) > 1 << 20);
        // Other tests take memory and give it back meanwhile.
        let before = resident(own);
        let proportional = proportional(own);
        assert!(proportional <= Some(before.max(resident(own)) + (1 << 22)));
        assert!(thread_names(own).len() >= 2);
        let (run, _) = schedule(own);
        assert!(run > 0.0);
        let mut sleeper = Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep starts");
        assert!(tree(own).contains(&sleeper.id()));
        let found = children_by_parent(own);
        assert!(found.contains(&sleeper.id()), "{found:?}");
        sleeper.kill().expect("it can be ended");
        sleeper.wait().expect("it ends");
    }
}

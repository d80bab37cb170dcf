use std::fs;

use super::*;

/// A hierarchy as the kernel would show it, in a directory of its own.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().expect("a directory"));
        for (path, text) in files {
            tree.write(path, text);
        }
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("below")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// As Linux 6.18 writes them.
const CPU_STAT_TWO: &str = "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnice_usec 0\n\
    core_sched.force_idle_usec 0\nnr_periods 120\nnr_throttled 30\nthrottled_usec 910000\nnr_bursts 0\nburst_usec 0\n";
const CPU_STAT_ONE: &str =
    "nr_periods 40\nnr_throttled 10\nthrottled_time 700000000\nnr_bursts 0\nburst_time 0\n";
const MEMORY_STAT_TWO: &str = "anon 300000000\nfile 90000000\ninactive_anon 0\nactive_anon 300000000\ninactive_file 80000000\nactive_file 10000000\n";
const MEMORY_STAT_ONE: &str = "cache 1\ninactive_file 5\nhierarchical_memory_limit 536870912\ntotal_cache 90000000\ntotal_inactive_file 80000000\n";

const MOUNTS_TWO: &str = "\
22 1 0:20 / /proc rw - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
";
const MOUNTS_ONE: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
const MEMBER_TWO: &str = "0::/system.slice/app.service\n";
const MEMBER_ONE: &str = "4:memory:/docker/app\n2:cpu,cpuacct:/docker/app\n0::/\n";

fn two() -> Tree {
    let group = "sys/fs/cgroup/system.slice/app.service";
    let files = [
        ("cpu.max", "200000 100000\n"),
        ("cpu.stat", CPU_STAT_TWO),
        (
            "cpu.pressure",
            "some avg10=1.00 avg60=0.50 avg300=0.10 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        ),
        (
            "memory.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=250000\n",
        ),
        ("memory.current", "400000000\n"),
        ("memory.max", "536870912\n"),
        ("memory.high", "max\n"),
        ("memory.stat", MEMORY_STAT_TWO),
        (
            "memory.events",
            "low 0\nhigh 3\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n",
        ),
        ("cgroup.procs", "77\n"),
    ];
    let tree = Tree::new(&[("sys/fs/cgroup/cgroup.procs", "1\n")]);
    for (file, text) in files {
        tree.write(&format!("{group}/{file}"), text);
    }
    tree
}

#[test]
fn version_two_is_read() {
    let tree = two();
    let group = locate(MEMBER_TWO, MOUNTS_TWO, tree.path());
    assert!(group.has(77) && !group.has(78));
    assert_eq!(
        group.cpu(),
        Some(CpuCounts {
            used: Some(2.5),
            quota: Some(2.0),
            periods: 120,
            throttled: 30,
        })
    );
    assert_eq!(
        group.memory(),
        Some(MemoryCounts {
            used: 320_000_000,
            limit: Some(536_870_912),
            hits: 7,
            kills: 1,
        })
    );
    assert_eq!(
        group.stalls(),
        Stalls {
            cpu: Some(1.5),
            memory: Some(0.25),
        }
    );
    assert!(!group.is_whole_machine());
    for source in [group.cpu_source(), group.memory_source()] {
        assert!(
            source.starts_with("cgroup v2 ") && source.ends_with("app.service"),
            "{source}"
        );
    }
}

#[test]
fn the_tightest_limit_counts_wherever_it_is() {
    let tree = two();
    let above = "sys/fs/cgroup/system.slice";
    tree.write(&format!("{above}/cpu.max"), "50000 100000\n");
    tree.write(
        &format!("{above}/cpu.stat"),
        "usage_usec 9000000\nnr_periods 1\nnr_throttled 1\n",
    );
    tree.write(&format!("{above}/memory.max"), "1073741824\n");
    let group = locate(MEMBER_TWO, MOUNTS_TWO, tree.path());
    let cpu = group.cpu().expect("a quota");
    assert_eq!((cpu.quota, cpu.used), (Some(0.5), Some(9.0)));
    assert_eq!(group.memory().and_then(|m| m.limit), Some(536_870_912));
    // memory.high slows it down before memory.max ends it.
    tree.write(
        "sys/fs/cgroup/system.slice/app.service/memory.high",
        "268435456\n",
    );
    assert_eq!(group.memory().and_then(|m| m.limit), Some(268_435_456));
}

#[test]
fn a_limit_above_counts_where_the_group_has_no_controller_of_its_own() {
    // As systemd makes a plain service in a slice with CPUQuota= and MemoryMax=.
    let (slice, leaf) = (
        "sys/fs/cgroup/system.slice",
        "sys/fs/cgroup/system.slice/app.service",
    );
    let tree = Tree::new(&[("sys/fs/cgroup/cgroup.procs", "1\n")]);
    for (dir, file, text) in [
        (slice, "cpu.max", "50000 100000\n"),
        (slice, "cpu.stat", CPU_STAT_TWO),
        (slice, "memory.current", "400000000\n"),
        (slice, "memory.max", "536870912\n"),
        (slice, "memory.stat", MEMORY_STAT_TWO),
        (leaf, "cgroup.procs", "77\n"),
        (leaf, "cpu.stat", "usage_usec 700000\n"),
        (leaf, "cpu.pressure", "some avg10=0.00 total=500000\n"),
        (leaf, "memory.pressure", "full avg10=0.00 total=250000\n"),
    ] {
        tree.write(&format!("{dir}/{file}"), text);
    }
    let group = locate(MEMBER_TWO, MOUNTS_TWO, tree.path());
    assert!(group.has(77));
    let cpu = group.cpu().expect("a quota");
    assert_eq!((cpu.quota, cpu.used), (Some(0.5), Some(2.5)));
    assert_eq!((cpu.periods, cpu.throttled), (120, 30));
    let memory = group.memory().expect("a limit");
    assert_eq!(
        (memory.limit, memory.used),
        (Some(536_870_912), 320_000_000)
    );
    // What waits is known of the group itself.
    let stalls = group.stalls();
    assert_eq!((stalls.cpu, stalls.memory), (Some(0.5), Some(0.25)));
    for source in [group.cpu_source(), group.memory_source()] {
        assert!(source.ends_with("system.slice"), "{source}");
    }
    tree.write(&format!("{slice}/cpu.max"), "max 100000\n");
    tree.write(&format!("{slice}/memory.max"), "max\n");
    let cpu = group.cpu().expect("its use");
    assert_eq!((cpu.quota, cpu.used), (None, Some(0.7)));
    let memory = group.memory().expect("the nearest that is counted");
    assert_eq!((memory.limit, memory.used), (None, 320_000_000));
    // What is not there has no group above it.
    let nowhere = "0::/system.slice/none.service\n";
    assert_eq!(locate(nowhere, MOUNTS_TWO, tree.path()), Cgroup::default());
}

#[test]
fn without_limits_there_is_no_quota_and_no_bound() {
    let tree = two();
    let group = "sys/fs/cgroup/system.slice/app.service";
    tree.write(&format!("{group}/cpu.max"), "max 100000\n");
    tree.write(&format!("{group}/memory.max"), "max\n");
    let group = locate(MEMBER_TWO, MOUNTS_TWO, tree.path());
    assert_eq!(group.cpu().and_then(|cpu| cpu.quota), None);
    let memory = group.memory().expect("memory");
    assert_eq!((memory.limit, memory.used), (None, 320_000_000));
}

#[test]
fn version_one_is_read() {
    let cpu = "sys/fs/cgroup/cpu,cpuacct/docker/app";
    let memory = "sys/fs/cgroup/memory/docker/app";
    let tree = Tree::new(&[("sys/fs/cgroup/unified/cgroup.procs", "1\n")]);
    for (dir, file, text) in [
        (cpu, "cpu.cfs_quota_us", "150000\n"),
        (cpu, "cpu.cfs_period_us", "100000\n"),
        (cpu, "cpu.stat", CPU_STAT_ONE),
        (cpu, "cpuacct.usage", "3250000000\n"),
        (cpu, "cgroup.procs", "5\n77\n"),
        (memory, "memory.usage_in_bytes", "400000000\n"),
        (memory, "memory.limit_in_bytes", "536870912\n"),
        (memory, "memory.stat", MEMORY_STAT_ONE),
        (memory, "memory.failcnt", "12\n"),
        (
            memory,
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
    ] {
        tree.write(&format!("{dir}/{file}"), text);
    }
    let group = locate(MEMBER_ONE, MOUNTS_ONE, tree.path());
    assert!(group.has(77));
    assert_eq!(
        group.cpu(),
        Some(CpuCounts {
            used: Some(3.25),
            quota: Some(1.5),
            periods: 40,
            throttled: 10,
        })
    );
    assert_eq!(
        group.memory(),
        Some(MemoryCounts {
            used: 320_000_000,
            limit: Some(536_870_912),
            hits: 12,
            kills: 2,
        })
    );
    assert_eq!(group.stalls(), Stalls::default());
    // Each is named by the hierarchy that it is read from.
    assert!(group.cpu_source().ends_with(cpu), "{}", group.cpu_source());
    let source = group.memory_source();
    assert!(source.ends_with(memory), "{source}");
    tree.write(&format!("{cpu}/cpu.cfs_quota_us"), "-1\n");
    tree.write(
        &format!("{memory}/memory.limit_in_bytes"),
        "9223372036854771712\n",
    );
    assert_eq!(group.cpu().and_then(|cpu| cpu.quota), None);
    assert_eq!(group.memory().and_then(|m| m.limit), None);
}

#[test]
fn a_mount_of_a_part_of_the_hierarchy_is_understood() {
    let tree = two();
    // As in a container that shares the host's namespace of groups.
    let mounts = MOUNTS_TWO.replace("0:28 / ", "0:28 /kubepods/pod1 ");
    let group = locate(
        "0::/kubepods/pod1/system.slice/app.service\n",
        &mounts,
        tree.path(),
    );
    assert_eq!(group.cpu().and_then(|cpu| cpu.quota), Some(2.0));
}

#[test]
fn another_containers_group_is_seen_only_through_its_own_eyes() {
    let membership = "0::/../app-container\n";
    assert_eq!(
        locate(membership, MOUNTS_TWO, Path::new("/")),
        Cgroup::default()
    );
    // In its own view it is at the top.
    let tree = Tree::new(&[
        ("sys/fs/cgroup/cpu.max", "100000 100000\n"),
        ("sys/fs/cgroup/cpu.stat", CPU_STAT_TWO),
    ]);
    let group = locate(membership, MOUNTS_TWO, tree.path());
    assert_eq!(group.cpu().and_then(|cpu| cpu.quota), Some(1.0));
}

#[test]
fn the_root_of_the_machine_is_no_group() {
    let tree = Tree::new(&[
        ("sys/fs/cgroup/cpu.stat", CPU_STAT_TWO),
        ("sys/fs/cgroup/cgroup.procs", "77\n"),
    ]);
    assert_eq!(locate("0::/\n", MOUNTS_TWO, tree.path()), Cgroup::default());
    let mut mounts = mounts(MOUNTS_TWO);
    mounts[0].point = tree.path().join("sys/fs/cgroup");
    assert!(is_whole_machine("0::/\n", &mounts));
    assert!(!is_whole_machine("0::/app\n", &mounts));
    // A container to which neither CPU nor memory was delegated.
    tree.write("sys/fs/cgroup/cgroup.events", "populated 1\n");
    assert!(!is_whole_machine("0::/\n", &mounts));
    assert!(!is_whole_machine("0::/\n", &[]), "nothing is mounted");
}

#[test]
fn a_container_that_sees_itself_at_the_top_is_not_the_machine() {
    let dir = "sys/fs/cgroup";
    let tree = Tree::new(&[]);
    for (file, text) in [
        ("cgroup.events", "populated 1\n"),
        ("cgroup.procs", "77\n"),
        ("cpu.max", "max 100000\n"),
        ("cpu.stat", CPU_STAT_TWO),
        ("cpu.pressure", "some avg10=0.00 total=500000\n"),
        ("memory.pressure", "full avg10=0.00 total=250000\n"),
        ("memory.current", "400000000\n"),
    ] {
        tree.write(&format!("{dir}/{file}"), text);
    }
    let group = locate("0::/\n", MOUNTS_TWO, tree.path());
    assert!(group.has(77) && !group.is_whole_machine());
    let stalls = group.stalls();
    assert_eq!((stalls.cpu, stalls.memory), (Some(0.5), Some(0.25)));
}

#[test]
fn of_version_one_the_machine_is_where_the_release_agent_is() {
    let (cpu, memory) = ("sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory");
    let tree = Tree::new(&[]);
    for (dir, file, text) in [
        (cpu, "cpu.cfs_quota_us", "-1\n"),
        (memory, "memory.usage_in_bytes", "400000000\n"),
    ] {
        tree.write(&format!("{dir}/{file}"), text);
    }
    // The container's own groups, mounted as the top.
    let mounts = MOUNTS_ONE
        .replace("0:29 / ", "0:29 /docker/app ")
        .replace("0:32 / ", "0:32 /docker/app ");
    let container = locate(MEMBER_ONE, &mounts, tree.path());
    assert!(container != Cgroup::default() && !container.is_whole_machine());
    assert_eq!(container.stalls(), Stalls::default());
    for dir in [cpu, memory] {
        tree.write(&format!("{dir}/release_agent"), "\n");
    }
    let machine = locate(
        "4:memory:/\n2:cpu,cpuacct:/\n0::/\n",
        MOUNTS_ONE,
        tree.path(),
    );
    assert!(machine.is_whole_machine());
}

#[test]
fn broken_files_are_no_figures() {
    assert_eq!(parse_cpu_max("max 100000\n"), None);
    assert_eq!(parse_cpu_max("50000\n"), Some(0.5));
    assert_eq!(parse_cpu_max("0 100000"), None);
    assert_eq!(parse_cpu_max(""), None);
    assert_eq!(parse_stall("some avg10=0.00 total=x\n", "some"), None);
    assert_eq!(parse_stall("full total=5\n", "some"), None);
    assert_eq!(
        field("nr_periods_x 5\nnr_periods 7\n", "nr_periods"),
        Some(7)
    );
    assert_eq!(mounts("x\n1 2 3 - cgroup2\n- cgroup2 a b\n"), []);
}

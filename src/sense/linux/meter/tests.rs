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
fn what_a_new_process_shares_is_measured_by_the_survey_alone() {
    let (now, own) = (clock::now(), std::process::id());
    let mut meter = meter(None);
    meter.root = Some(own);
    let known = Overlap {
        parts: std::collections::BTreeMap::new(),
        at: now,
    };
    meter.overlap = Some(known.clone());
    for _ in 0..3 {
        let read = meter.read(now);
        assert!(read.processes.contains(&own));
        assert!(read.memory_used.is_some(), "it counts whole");
        assert_eq!(meter.overlap(), Some(&known));
    }
    let root = Some(own);
    let surveyed = Meter::new(root, Ok(None), &Discovery::default(), Some(known), now);
    let parts = &surveyed.overlap().expect("it is measured").parts;
    assert!(parts.contains_key(&own));
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

//! The controller as a whole: which ceiling wins, who is named, shadows and memory.

mod unusual;

use super::*;

fn settings() -> Settings {
    Settings {
        initial: 8,
        ..Settings::default()
    }
}

/// A controller under a load that always reaches the limit, and a clock.
struct Bench {
    controller: Controller,
    now: Instant,
    usage: Usage,
    readings: Readings,
    /// Seconds that a request takes.
    latency: f64,
    outcome: Outcome,
    decisions: Vec<Decision>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = crate::clock::now();
        Bench {
            controller: Controller::new(settings, now),
            now,
            usage: Usage::default(),
            readings: Readings::default(),
            latency: 0.05,
            outcome: Outcome::Success,
            decisions: Vec::new(),
        }
    }

    /// A hundred requests to an idle backend.
    fn idle(&mut self) {
        for _ in 0..100 {
            self.controller.observe(&Sample {
                started: self.now,
                finished: self.now + Duration::from_millis(50),
                in_flight: 1,
                group: Group::default(),
                outcome: self.outcome,
            });
        }
    }

    /// A twentieth of a second in which there are always so many in flight, and nobody waits.
    fn below_the_limit(&mut self, in_flight: u32) {
        let step = 0.05;
        self.now += Duration::from_secs_f64(step);
        self.usage.in_flight = in_flight;
        self.usage.limit = self.controller.limit();
        self.usage.queued = 0;
        self.usage.busy_seconds += step * f64::from(in_flight);
        self.usage.limit_seconds += step * f64::from(self.usage.limit);
        for _ in 0..(step / self.latency * f64::from(in_flight)).ceil() as u32 {
            self.controller.observe(&Sample {
                started: self.now - Duration::from_secs_f64(self.latency),
                finished: self.now,
                in_flight,
                group: Group::default(),
                outcome: self.outcome,
            });
        }
        let decision = self.controller.tick(self.now, &self.usage, &self.readings);
        self.decisions.extend(decision);
    }

    /// What the next look tells: the limit before and now, and why.
    fn told(&mut self) -> Option<(u32, u32, &'static str)> {
        let decision = self.controller.tick(self.now, &self.usage, &self.readings);
        decision.map(|decision| (decision.from, decision.limit, decision.reason))
    }

    /// Runs for so many seconds, with requests one after the other in every place.
    fn run(&mut self, seconds: f64) {
        let mut left = seconds;
        while left > 0.0 {
            let limit = self.controller.limit();
            let step = 0.05;
            self.now += Duration::from_secs_f64(step);
            self.usage.in_flight = limit;
            self.usage.limit = limit;
            self.usage.queued = 3;
            self.usage.busy_seconds += step * f64::from(limit);
            self.usage.limit_seconds += step * f64::from(limit);
            self.usage.saturated_seconds += step;
            for _ in 0..((step / self.latency * f64::from(limit)).ceil() as u32).min(100) {
                self.controller.observe(&Sample {
                    started: self.now - Duration::from_secs_f64(self.latency),
                    finished: self.now,
                    in_flight: limit,
                    group: Group::default(),
                    outcome: self.outcome,
                });
            }
            let decision = self.controller.tick(self.now, &self.usage, &self.readings);
            self.decisions.extend(decision);
            left -= step;
        }
    }

    fn said(&self, reason: &str) -> bool {
        self.decisions.iter().any(|d| d.reason == reason)
    }
}

fn cpu(utilisation: f64, throttled: f64) -> Option<CpuReading> {
    Some(CpuReading {
        utilisation,
        throttled,
        cores: 2.0,
        ..CpuReading::default()
    })
}

fn memory(share: f64) -> Option<MemoryReading> {
    Some(MemoryReading {
        used: (share * 1e9) as u64,
        limit: 1_000_000_000,
        ..MemoryReading::default()
    })
}

#[test]
fn a_busy_cpu_stops_every_law_from_growing() {
    for algorithm in [Algorithm::Aimd, Algorithm::Gradient, Algorithm::Vegas] {
        let with = |utilisation| {
            let mut bench = Bench::new(Settings {
                algorithm,
                ..settings()
            });
            bench.readings.cpu = cpu(utilisation, 0.0);
            bench.run(4.0);
            bench
        };
        let free = with(0.4);
        assert!(free.controller.limit() > 8, "{algorithm:?}");
        let busy = with(0.97);
        assert_eq!(busy.controller.limit(), 8, "{algorithm:?}");
        assert_eq!(busy.controller.bound_by(), BoundBy::Cpu, "{algorithm:?}");
        assert!(busy.said(reason::CPU), "{algorithm:?}");
    }
}

#[test]
fn what_waits_for_more_of_a_quota_is_not_worked_on() {
    let seen = |slots, utilisation, throttled| {
        let (mut ceilings, now) = (ceilings::Ceilings::default(), crate::clock::now());
        let readings = Readings {
            slots,
            cpu: cpu(utilisation, throttled),
            ..Readings::default()
        };
        for i in 0..40 {
            let at = now + Duration::from_millis(i * 50);
            let resources = Resources::default();
            ceilings.note(at, &readings, &Usage::default(), 2.0, &resources);
        }
        ceilings
    };
    let used_up = seen(Some(2), 1.0, 1.0);
    assert_eq!(used_up.worked_on(2, 4.0), Some(1));
    assert_eq!(used_up.worked_on(2, 1.0), Some(2));
    assert_eq!(used_up.worked_on(9, 1.2), Some(2), "no more than slots");
    // Slow with an idle CPU: it may be a database, and all of them are at it.
    assert_eq!(seen(Some(2), 0.5, 0.0).worked_on(2, 4.0), Some(2));
    assert_eq!(seen(None, 1.0, 1.0).worked_on(2, 4.0), None);
}

#[test]
fn work_for_those_who_have_left_is_cut_at_once() {
    let slow = |latency, outcome| {
        let mut bench = Bench::new(Settings {
            max: 8,
            ..settings()
        });
        bench.outcome = outcome;
        bench.idle();
        bench.run(2.0);
        bench.decisions.clear();
        bench.latency = latency;
        let mut left = 3.0;
        while left > 0.0 && bench.controller.limit() == 8 {
            bench.run(0.05);
            left -= 0.05;
        }
        (3.0 - left, bench.controller.limit())
    };
    let (late, high) = slow(0.4, Outcome::Success);
    let (soon, low) = slow(0.4, Outcome::InVain);
    assert!(soon < 0.8 * late, "{soon} s instead of {late}");
    // By Little's law one of the eight is worked on.
    assert!(low <= 3 && low < high, "{low} instead of {high}");
    let (_, same) = slow(0.05, Outcome::InVain);
    assert_eq!(same, 8, "they left for a reason of their own");
}

#[test]
fn a_short_cpu_takes_nothing_from_what_is_worked_on() {
    let mut bench = Bench::new(Settings {
        initial: 4,
        max: 4,
        ..settings()
    });
    bench.idle();
    // By Little's law two and a half of the four.
    bench.latency = 0.08;
    bench.readings.cpu = cpu(1.0, 0.5);
    bench.run(4.0);
    assert!(bench.said(reason::CPU));
    let lowest = bench.decisions.iter().map(|d| d.limit).min();
    assert_eq!(lowest, Some(4));
}

#[test]
fn a_short_cpu_holds_nobody_up_for_a_millisecond() {
    for (latency, grows) in [(0.001, true), (0.02, false)] {
        let mut bench = Bench::new(settings());
        bench.latency = latency;
        bench.readings.cpu = cpu(1.0, 0.0);
        bench.run(4.0);
        assert_eq!(bench.controller.limit() > 8, grows, "{latency} s");
    }
}

#[test]
fn what_waits_for_a_core_says_more_than_a_baseline() {
    // Threads that wait, and latency; an idle backend's is 50 ms.
    let grows = |waiting, latency| {
        let mut bench = Bench::new(settings());
        bench.idle();
        bench.latency = 0.065;
        bench.run(2.0);
        let before = bench.controller.limit();
        bench.latency = latency;
        bench.readings.cpu = cpu(0.95, 0.0).map(|reading| CpuReading { waiting, ..reading });
        bench.run(4.0);
        bench.controller.limit() > before
    };
    assert!(!grows(0.0, 0.065), "unknown: latency says that they wait");
    assert!(grows(1.0, 0.065), "few do");
    assert!(grows(0.0, 0.05), "unknown: latency says that nobody does");
    assert!(!grows(6.0, 0.05), "many do");
}

#[test]
fn the_operator_can_tell_it_to_ignore_them() {
    let resources = Resources {
        cpu: false,
        memory: false,
        ..Resources::default()
    };
    let mut bench = Bench::new(Settings {
        resources,
        ..settings()
    });
    bench.readings.cpu = cpu(1.0, 0.9);
    bench.readings.memory = memory(0.99);
    bench.run(4.0);
    assert!(bench.controller.limit() > 8);
}

#[test]
fn memory_stops_growth_then_shrinks_the_limit_and_is_named() {
    let mut bench = Bench::new(settings());
    bench.readings.memory = memory(0.88);
    bench.run(2.0);
    assert_eq!(bench.controller.limit(), 8);
    assert_eq!(bench.controller.bound_by(), BoundBy::Memory);
    bench.readings.memory = memory(0.94);
    bench.run(0.9);
    assert!(
        bench.controller.limit() <= 5,
        "{}",
        bench.controller.limit()
    );
    assert_eq!(bench.controller.bound_by(), BoundBy::Memory);
    assert!(bench.said(reason::MEMORY));
    let cut = bench.decisions.iter().find(|d| d.limit < d.from);
    let cut = cut.expect("a cut").clone();
    assert_eq!(cut.evidence.readings.memory, memory(0.94));
    bench.run(3.0);
    assert_eq!(bench.controller.limit(), 7, "it did not come back");
    bench.readings.memory = memory(0.5);
    bench.run(5.0);
    assert!(bench.controller.limit() > 8, "it grows again");
}

#[test]
fn the_accept_queue_shows_what_no_latency_does() {
    let mut bench = Bench::new(settings());
    bench.readings.accept_queue = Some(0);
    bench.run(1.0);
    let before = bench.controller.limit();
    assert!(before >= 8);
    // Three workers, whatever is in flight.
    for _ in 0..40 {
        bench.readings.accept_queue = Some(bench.controller.limit().saturating_sub(3));
        bench.run(0.05);
    }
    assert_eq!(bench.controller.limit(), 4);
    assert_eq!(bench.controller.bound_by(), BoundBy::AcceptQueue);
    assert!(bench.said(reason::ACCEPT_QUEUE));
}

#[test]
fn a_leak_is_an_alarm_and_no_cut() {
    let mut bench = Bench::new(Settings {
        max: 8,
        ..settings()
    });
    for i in 0..150 {
        bench.readings.memory = memory(0.6 + 0.0025 * f64::from(i));
        bench.run(1.0);
    }
    assert!(bench.controller.leaking());
    assert!(bench.said(reason::LEAK));
    let alarms = bench.decisions.iter().filter(|d| d.reason == reason::LEAK);
    assert_eq!(alarms.count(), 1);
    assert!(
        bench.controller.limit() >= 4,
        "{}",
        bench.controller.limit()
    );
}

#[test]
fn the_lowest_ceiling_is_named() {
    let mut bench = Bench::new(Settings {
        max: 6,
        ..settings()
    });
    bench.run(1.0);
    assert_eq!(bench.controller.bound_by(), BoundBy::Configured);
    bench.readings.slots = Some(3);
    bench.run(1.0);
    assert_eq!(bench.controller.bound_by(), BoundBy::Workers);
    assert_eq!(bench.controller.limit(), 4);
}

/// Not the workers hold a limit that `limit.min` keeps above them.
#[test]
fn a_least_limit_above_the_ceilings_is_named() {
    for max in [20, 100] {
        let mut bench = Bench::new(Settings {
            min: 20,
            max,
            ..settings()
        });
        let holds = |bench: &Bench| {
            (
                bench.controller.bound_by(),
                bench.controller.configured_by(),
            )
        };
        bench.readings.slots = Some(2);
        bench.run(2.0);
        assert_eq!(bench.controller.limit(), 20);
        let least = (BoundBy::Configured, Some(Setting::Min));
        assert_eq!(holds(&bench), least, "max {max}");
        bench.readings.slots = Some(19);
        bench.run(2.0);
        assert_eq!(bench.controller.limit(), 20);
        assert_ne!(holds(&bench), least, "max {max}");
    }
}

/// It is not what was set by hand that holds the limit once the bounds have left it behind.
#[test]
fn a_bound_that_overrules_a_limit_set_by_hand_is_named() {
    let mut bench = Bench::new(settings());
    let now = bench.now;
    bench.controller.pin(Some(8), now);
    assert_eq!(bench.controller.configured_by(), Some(Setting::Hand));
    for (min, max, limit, by) in [
        (1, 5, 5, Setting::Max),
        (10, 100, 10, Setting::Min),
        (1, 100, 8, Setting::Hand),
    ] {
        let settings = Settings {
            min,
            max,
            ..settings()
        };
        bench.controller.reconfigure(settings, now);
        assert_eq!(bench.controller.limit(), limit);
        assert_eq!(bench.controller.configured_by(), Some(by));
    }
}

/// Latency is stretched below the limit, which is lowered to what is in flight and one more, and no further.
#[test]
fn a_limit_that_stays_is_not_said_to_fall() {
    let mut bench = Bench::new(Settings {
        initial: 6,
        ..settings()
    });
    bench.idle();
    bench.run(2.0);
    bench.latency = 0.1;
    bench.decisions.clear();
    for _ in 0..200 {
        bench.below_the_limit(5);
    }
    let fell = |d: &&Decision| d.reason == reason::LATENCY;
    let falls: Vec<_> = bench.decisions.iter().filter(fell).collect();
    assert!(falls.iter().all(|d| d.limit < d.from), "{falls:#?}");
    assert_eq!(bench.controller.limit(), 6);
    assert!(bench.said(reason::IDLE));
}

/// With its quota used up, more workers would not help, though all of them are busy.
#[test]
fn a_quota_that_is_used_up_is_named_before_the_workers() {
    let mut bench = Bench::new(Settings {
        initial: 2,
        ..settings()
    });
    bench.readings.slots = Some(2);
    bench.readings.cpu = cpu(0.5, 0.0);
    bench.run(2.0);
    assert_eq!(bench.controller.bound_by(), BoundBy::Workers);
    bench.latency = 0.2;
    bench.readings.cpu = cpu(0.97, 1.0);
    bench.run(10.0);
    assert_eq!(bench.controller.bound_by(), BoundBy::Cpu);
}

/// What was seen of the accept queue is of the workers that there were before.
#[test]
fn more_workers_are_used_at_once_though_the_accept_queue_was_seen() {
    let mut bench = Bench::new(Settings {
        initial: 4,
        ..settings()
    });
    bench.readings.slots = Some(3);
    bench.run(1.0);
    bench.latency = 0.07;
    bench.readings.accept_queue = Some(1);
    bench.run(2.0);
    assert_eq!(bench.controller.limit(), 4);
    bench.readings.slots = Some(6);
    bench.readings.accept_queue = Some(0);
    bench.run(0.2);
    assert_eq!(bench.controller.limit(), 7, "before a window closes");
}

#[test]
fn shadows_follow_the_settings_and_leave_the_limit_alone() {
    let shadow = vec![
        Algorithm::Vegas,
        Algorithm::Aimd,
        Algorithm::Vegas,
        Algorithm::Gradient,
    ];
    let run = |shadow: &[Algorithm]| {
        let mut bench = Bench::new(Settings {
            shadow: shadow.to_vec(),
            ..settings()
        });
        bench.run(1.0);
        bench.latency = 0.2;
        bench.run(5.0);
        bench
    };
    let (with, without) = (run(&shadow), run(&[]));
    assert_eq!(with.controller.limit(), without.controller.limit());
    let shadows: Vec<_> = with.controller.shadows().collect();
    let laws: Vec<_> = shadows.iter().map(|(law, _)| *law).collect();
    assert_eq!(laws, [Algorithm::Vegas, Algorithm::Gradient]);
    assert!(shadows.iter().all(|(_, limit)| *limit >= 1));
    let mut controller = with.controller;
    controller.reconfigure(
        Settings {
            algorithm: Algorithm::Vegas,
            shadow: vec![Algorithm::Aimd],
            ..settings()
        },
        with.now,
    );
    let laws: Vec<_> = controller.shadows().map(|(law, _)| law).collect();
    assert_eq!(laws, [Algorithm::Aimd]);
}

#[test]
fn what_is_remembered_is_recalled_unless_it_makes_no_sense() {
    let mut bench = Bench::new(settings());
    bench.readings.slots = Some(20);
    assert_eq!(bench.controller.remember(), None);
    for n in [1, 2, 4, 8, 8, 8] {
        bench.controller.pin(Some(n), bench.now);
        bench.run(3.0);
    }
    bench.controller.pin(None, bench.now);
    let known = bench.controller.remember().expect("it has learned");
    assert!(known.bins.len() >= 4, "{known:?}");

    let fresh = |slots| {
        let mut bench = Bench::new(settings());
        bench.readings.slots = slots;
        bench
            .controller
            .tick(bench.now, &bench.usage, &bench.readings);
        bench.controller
    };
    let now = crate::clock::now();
    let mut next = fresh(Some(20));
    assert!(next.recall(&known, now));
    assert_eq!(next.limit(), known.limit.min(21));
    assert!(next.baseline().is_some());
    assert_eq!(next.curve().count(), known.bins.len());
    assert!(!next.recall(&known, now), "only once");
    assert!(!fresh(Some(3)).recall(&known, now), "another backend");
    for wrong in [f64::NAN, -1.0, 0.0, f64::INFINITY] {
        let mut known = known.clone();
        known.bins[0].latency = wrong;
        assert!(!fresh(None).recall(&known, now));
    }
}

#[test]
fn known_workers_are_not_left_idle_while_the_cpu_idles() {
    let least = |pinned: u32| {
        let mut bench = Bench::new(settings());
        bench.readings.slots = Some(8);
        bench.readings.cpu = Some(CpuReading {
            utilisation: 0.05,
            cores: 2.0,
            pinned,
            ..CpuReading::default()
        });
        // Low load first, so that there is a baseline.
        bench.controller.pin(Some(2), bench.now);
        bench.run(5.0);
        bench.controller.pin(None, bench.now);
        bench.run(5.0);
        // Twice as slow at any load: no reason to do less.
        bench.latency = 0.1;
        bench.decisions.clear();
        bench.run(5.0);
        let limits = bench.decisions.iter().map(|decision| decision.limit);
        limits.min().unwrap()
    };
    assert!(least(0) >= 8, "{}", least(0));
    assert!(least(1) < 8, "a process that wants a core: {}", least(1));
}

/// What a person changes is a decision as well.
#[test]
fn a_change_by_hand_or_by_the_configuration_is_told() {
    let mut bench = Bench::new(settings());
    bench.told();
    bench.controller.pin(Some(3), bench.now);
    bench.controller.pin(Some(5), bench.now);
    assert_eq!(bench.told(), Some((8, 5, reason::CONFIGURED)));
    bench.controller.pin(None, bench.now);
    assert_eq!(bench.told(), Some((5, 8, reason::CONFIGURED)));
    let lower = Settings {
        max: 6,
        ..settings()
    };
    bench.controller.reconfigure(lower, bench.now);
    assert_eq!(bench.told(), Some((8, 6, reason::CONFIGURED)));
    bench.controller.pin(Some(6), bench.now);
    let same = bench.told();
    assert!(same.is_none_or(|(from, to, _)| from == to), "{same:?}");
}

#[test]
fn where_the_limit_begins_is_told() {
    let mut bench = Bench::new(settings());
    bench.told();
    bench.controller.begin(5, bench.now);
    assert_eq!(bench.told(), Some((8, 5, reason::SLOTS)));
    let known = Remembered {
        slots: None,
        limit: 11,
        scale: 1.0,
        cost: 0.05,
        latency: 0.05,
        bins: Vec::new(),
    };
    assert!(bench.controller.recall(&known, bench.now));
    assert_eq!(bench.told(), Some((5, 11, reason::RECALL)));
}

#[test]
fn requests_of_half_a_minute_are_learned_from() {
    let mut bench = Bench::new(Settings {
        initial: 4,
        ..settings()
    });
    for _ in 0..12 {
        let (started, limit) = (bench.now, bench.controller.limit());
        (bench.usage.in_flight, bench.usage.limit) = (limit, limit);
        for _ in 0..30 {
            bench.now += Duration::from_secs(1);
            bench.usage.busy_seconds += f64::from(limit);
            bench.usage.saturated_seconds += 1.0;
            let (now, usage) = (bench.now, bench.usage);
            bench.controller.tick(now, &usage, &Readings::default());
        }
        for _ in 0..limit {
            bench.controller.observe(&Sample {
                started,
                finished: bench.now,
                in_flight: limit,
                group: Group::default(),
                outcome: Outcome::Success,
            });
        }
    }
    assert!(bench.controller.limit() > 4, "latency is flat");
    assert_eq!(bench.controller.bound_by(), BoundBy::Latency);
}

/// What began before the limit was changed, or ended before that could be felt, says nothing of the limit now.
#[test]
fn a_window_holds_what_began_after_the_last_change_and_has_settled() {
    let mut bench = Bench::new(settings());
    let start = bench.now;
    let at = |ms| start + Duration::from_millis(ms);
    bench.controller.pin(Some(4), at(1000));
    let mut closes = |began: u64, ended: u64, looked: u64| {
        for _ in 0..40 {
            bench.controller.observe(&Sample {
                started: at(began),
                finished: at(ended),
                in_flight: 4,
                group: Group::default(),
                outcome: Outcome::Success,
            });
        }
        let usage = Usage {
            in_flight: 4,
            ..Usage::default()
        };
        let tick = |controller: &mut Controller, ms| {
            let before = controller.windows();
            controller.tick(at(ms), &usage, &Readings::default());
            controller.windows() > before
        };
        tick(&mut bench.controller, looked)
    };
    assert!(!closes(1001, 1002, 1003), "it has not settled");
    // It has now.
    assert!(!closes(1003, 1004, 1200));
    assert!(!closes(900, 1300, 1400), "it began before");
    assert!(closes(1250, 1300, 1500));
}

#[test]
fn without_traffic_nothing_holds_the_limit() {
    let at_min = Settings {
        min: 8,
        ..settings()
    };
    let fresh = Bench::new(at_min.clone());
    assert_eq!(fresh.controller.bound_by(), BoundBy::Idle);
    let mut bench = Bench::new(at_min);
    bench.idle();
    bench.latency = 0.2;
    bench.run(10.0);
    assert_ne!(bench.controller.bound_by(), BoundBy::Idle);
    // Nothing comes any more.
    bench.usage.in_flight = 0;
    bench.usage.queued = 0;
    for _ in 0..40 {
        bench.now += Duration::from_millis(50);
        bench
            .controller
            .tick(bench.now, &bench.usage, &bench.readings);
    }
    assert_eq!(bench.controller.bound_by(), BoundBy::Idle);
}

#[test]
fn no_resource_cuts_what_the_operator_holds() {
    let mut bench = Bench::new(settings());
    bench.idle();
    bench.readings.cpu = cpu(1.0, 1.0);
    bench.latency = 0.2;
    bench.controller.pin(Some(20), bench.now);
    let law = bench.controller.law_limit();
    bench.run(10.0);
    assert!(!bench.said(reason::CPU));
    assert_eq!(bench.controller.limit(), 20);
    assert_eq!(bench.controller.law_limit(), law);
}

/// Between `memory_high` and `memory_max` there is no haste, unless the kernel says so: the limit of the cgroup is hit, or
/// everything waits for memory. What was hit before anybody looked is no sign.
#[test]
fn memory_is_brought_down_sooner_when_the_kernel_is_short_of_it() {
    let after = |change: fn(&mut MemoryReading)| {
        let mut bench = Bench::new(settings());
        let mut reading = memory(0.88).expect("a reading");
        reading.hits = 7;
        bench.readings.memory = Some(reading);
        bench.run(2.0);
        assert_eq!(bench.controller.limit(), 8, "it only does not grow");
        change(&mut reading);
        bench.readings.memory = Some(reading);
        bench.run(0.9);
        bench.controller.limit()
    };
    assert_eq!(after(|_| {}), 8);
    assert!(after(|reading| reading.hits += 1) < 8);
    assert!(after(|reading| reading.pressure = 0.06) < 8);
}

/// One answer of overload among many is no overload, and one alone is not either.
#[test]
fn a_few_drops_are_not_yet_an_overload() {
    let with = |every: usize, answers: usize| {
        let mut bench = Bench::new(settings());
        bench.idle();
        let look = |bench: &mut Bench| {
            let Bench {
                controller,
                now,
                usage,
                readings,
                ..
            } = bench;
            controller.tick(*now, usage, readings);
            controller.law_limit()
        };
        look(&mut bench);
        bench.now += Duration::from_secs(3);
        let before = look(&mut bench);
        for i in 0..answers {
            let outcome = match i % every {
                0 => Outcome::Overload,
                _ => Outcome::Success,
            };
            bench.controller.observe(&Sample {
                started: bench.now,
                finished: bench.now + Duration::from_millis(50),
                in_flight: 8,
                group: Group::default(),
                outcome,
            });
        }
        bench.now += Duration::from_secs(3);
        look(&mut bench) < before
    };
    assert!(!with(20, 100), "a twentieth");
    assert!(with(8, 100), "an eighth");
    assert!(!with(9, 9), "one of nine");
}

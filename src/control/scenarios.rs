//! The scenarios of CONTROL §5 that a control law alone can pass or fail, over five seeds.
#![allow(clippy::print_stderr)]

use super::sim::{Backend, Outcomes, Phase, run};
use super::*;

const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];

fn slots(slots: usize, mean: f64, cv: f64) -> Backend {
    Backend {
        slots,
        cores: None,
        routes: vec![(1.0, mean, cv)],
    }
}

fn five(
    settings: &Settings,
    known: bool,
    backend: &Backend,
    phases: &[Phase],
) -> Vec<Vec<Outcomes>> {
    SEEDS
        .iter()
        .map(|&seed| run(settings, known, backend, phases, seed, false))
        .collect()
}

/// Goodput over that of the best fixed limit for each phase by itself: (median, worst) of the seeds.
fn against_best(
    name: &str,
    all: &[Vec<Outcomes>],
    backend: &Backend,
    phases: &[Phase],
    limits: &[u32],
) -> Vec<(f64, f64)> {
    let fixed: Vec<Vec<Vec<Outcomes>>> = limits
        .iter()
        .map(|&initial| {
            let settings = Settings {
                algorithm: Algorithm::Fixed,
                initial,
                ..Settings::default()
            };
            five(&settings, false, backend, phases)
        })
        .collect();
    (0..phases.len())
        .map(|p| {
            let mut ratios: Vec<f64> = (0..SEEDS.len())
                .map(|s| {
                    let best = fixed.iter().map(|runs| runs[s][p].good).max().unwrap();
                    f64::from(all[s][p].good) / f64::from(best.max(1))
                })
                .collect();
            let by_seed: Vec<String> = (ratios.iter().zip(all))
                .map(|(r, run)| format!("{r:.2}@{:.1}", run[p].mean_limit()))
                .collect();
            ratios.sort_by(f64::total_cmp);
            let (median, worst) = (ratios[SEEDS.len() / 2], ratios[0]);
            let o = &all[0][p];
            let mean = all.iter().map(|r| r[p].mean_limit()).sum::<f64>() / SEEDS.len() as f64;
            let refused = all.iter().map(|r| r[p].refused_share()).fold(0.0, f64::max);
            eprintln!(
                "{name:<22} phase {p}: goodput {median:.3} worst {worst:.3}, limit {mean:.1} sd {:.1} in {}..{} end {}, refused <= {refused:.3}, p50 {:.0} p99 {:.0} ms {:?} [{}]",
                o.deviation(), o.lowest, o.highest, o.last,
                1e3 * o.percentile(0.5), 1e3 * o.percentile(0.99), o.reasons, by_seed.join(" "),
            );
            (median, worst)
        })
        .collect()
}

fn auto() -> Settings {
    Settings::default()
}

#[test]
fn double_load_on_two_slots() {
    let backend = slots(2, 0.020, 0.5);
    for (name, phases) in [
        (
            "2x after 30 rps",
            vec![Phase::new(3.0, 30.0), Phase::new(60.0, 200.0)],
        ),
        (
            "2x cold",
            vec![Phase::new(0.01, 200.0), Phase::new(60.0, 200.0)],
        ),
    ] {
        let all = five(&auto(), false, &backend, &phases);
        let (_, worst) = against_best(name, &all, &backend, &phases, &[2, 3, 4, 6, 8])[1];
        assert!(worst >= 0.95, "{worst}");
        for run in &all {
            assert!(run[1].mean_limit() <= 3.6, "{}", run[1].mean_limit());
            assert!(run[1].last <= 5, "{}", run[1].last);
        }
    }
}

#[test]
fn double_load_without_variance_and_with_known_slots() {
    let backend = slots(2, 0.020, 0.0);
    let phases = [Phase::new(30.0, 200.0)];
    let all = five(&auto(), false, &backend, &phases);
    let (_, worst) = against_best("2x constant", &all, &backend, &phases, &[2, 3, 4, 8])[0];
    assert!(worst >= 0.95, "{worst}");
    let all = five(&auto(), true, &backend, &phases);
    let (_, worst) = against_best("2x slots known", &all, &backend, &phases, &[2, 3, 4, 8])[0];
    assert!(worst >= 0.95, "{worst}");
    assert!(all.iter().all(|run| run[0].last <= 3));
}

#[test]
fn long_overload_does_not_drift() {
    let backend = slots(2, 0.020, 0.5);
    let phases = [
        Phase::new(120.0, 200.0),
        Phase::new(300.0, 200.0),
        Phase::new(60.0, 200.0),
    ];
    let all = five(&auto(), false, &backend, &phases);
    let result = against_best("2x for 8 min", &all, &backend, &phases, &[2, 3, 4]);
    for run in &all {
        assert!(
            run[2].mean_limit() <= run[0].mean_limit() + 0.5,
            "{}",
            run[2].mean_limit()
        );
    }
    assert!(result.iter().all(|r| r.1 >= 0.95));
}

#[test]
fn below_capacity_nothing_is_refused() {
    let backend = slots(2, 0.020, 0.5);
    let phases = [
        Phase::new(3.0, 30.0),
        Phase::new(60.0, 65.0),
        Phase::new(60.0, 35.0),
    ];
    let all = five(&auto(), false, &backend, &phases);
    against_best("0.65x then 0.35x", &all, &backend, &phases, &[3, 4, 8]);
    for run in &all {
        assert!(run[1].refused_share() <= 0.01, "{}", run[1].refused_share());
        assert!(
            run[2].refused_share() <= 0.001,
            "{}",
            run[2].refused_share()
        );
        assert!(run[2].highest <= 4, "{}", run[2].highest);
    }
}

#[test]
fn capacity_halves_and_comes_back() {
    for (name, k, mean) in [("2 slots /2", 2, 0.020), ("16 slots /2", 16, 0.100)] {
        let backend = slots(k, mean, 0.5);
        let rps = 1.5 * k as f64 / mean;
        let half = Phase {
            slots: Some(k / 2),
            ..Phase::new(20.0, rps)
        };
        let phases = [Phase::new(20.0, rps), half, Phase::new(20.0, rps)];
        let all = five(&auto(), false, &backend, &phases);
        let limits = [1, 2, 3, 4, 8, 10, 16, 18, 20];
        let result = against_best(name, &all, &backend, &phases, &limits);
        assert!(result[1].1 >= 0.93 && result[2].1 >= 0.90, "{result:?}");
        for run in &all {
            assert!(
                f64::from(run[1].last) <= 2.0 + 0.85 * k as f64,
                "{}",
                run[1].last
            );
        }
    }
}

#[test]
fn a_slower_service_does_not_collapse_the_limit() {
    for (name, k, mean) in [
        ("2 slots 3x slower", 2, 0.020),
        ("16 slots 3x slower", 16, 0.100),
    ] {
        let backend = slots(k, mean, 0.5);
        let rps = 1.5 * k as f64 / mean;
        let slow = Phase {
            slowdown: 3.0,
            ..Phase::new(20.0, rps)
        };
        let phases = [Phase::new(20.0, rps), slow, Phase::new(20.0, rps)];
        let all = five(&auto(), false, &backend, &phases);
        let result = against_best(name, &all, &backend, &phases, &[1, 2, 3, 4, 16, 18, 20]);
        assert!(result[1].1 >= 0.75 && result[2].1 >= 0.92, "{result:?}");
    }
}

#[test]
fn a_large_backend_is_found_quickly() {
    let backend = slots(16, 0.100, 0.5);
    let phases = [Phase::new(5.0, 320.0), Phase::new(30.0, 320.0)];
    let all = five(&auto(), false, &backend, &phases);
    let result = against_best(
        "16 slots from 4",
        &all,
        &backend,
        &phases,
        &[14, 16, 18, 20, 24],
    );
    for run in &all {
        assert!((13..=28).contains(&run[0].last), "{}", run[0].last);
        assert!(
            (13.0..=24.0).contains(&run[1].mean_limit()),
            "{}",
            run[1].mean_limit()
        );
    }
    assert!(result[1].1 >= 0.95);
}

#[test]
fn two_routes_of_different_cost() {
    let backend = Backend {
        slots: 8,
        cores: None,
        routes: vec![(0.95, 0.020, 0.5), (0.05, 0.400, 0.5)],
    };
    let rps = |slow: f64| 2.0 * 8.0 / ((1.0 - slow) * 0.020 + slow * 0.400);
    let mixed = |slow: f64| Phase {
        mix: Some(vec![1.0 - slow, slow]),
        ..Phase::new(30.0, rps(slow))
    };
    let phases = [mixed(0.05), mixed(0.25), mixed(0.05)];
    let all = five(&auto(), false, &backend, &phases);
    let result = against_best("bimodal", &all, &backend, &phases, &[6, 8, 10, 12, 16]);
    assert!(result.iter().all(|r| r.1 >= 0.88), "{result:?}");
}

#[test]
fn random_drops_do_not_collapse_the_limit() {
    let backend = slots(8, 0.050, 0.5);
    let phases = [
        Phase::new(10.0, 320.0),
        Phase {
            drops: 0.1,
            ..Phase::new(40.0, 320.0)
        },
    ];
    let all = five(&auto(), false, &backend, &phases);
    let result = against_best("10% drops", &all, &backend, &phases, &[6, 8, 10, 12]);
    assert!(result[1].1 >= 0.9, "{result:?}");
}

#[test]
fn pauses_are_not_congestion() {
    let backend = slots(8, 0.050, 0.5);
    let phase = Phase {
        pause: Some((6.0, 0.3)),
        ..Phase::new(60.0, 0.6 * 160.0)
    };
    let phases = [Phase::new(5.0, 96.0), phase];
    let settings = Settings {
        initial: 8,
        ..auto()
    };
    let all = five(&settings, false, &backend, &phases);
    let result = against_best("pauses", &all, &backend, &phases, &[8, 10, 12, 16]);
    assert!(result[1].1 >= 0.97, "{result:?}");
}

#[test]
fn low_traffic() {
    let backend = slots(4, 1.0, 0.0);
    let backend = Backend {
        routes: vec![(1.0, 0.7, 0.3)],
        ..backend
    };
    let phases = [Phase::new(120.0, 3.0), Phase::new(60.0, 9.0)];
    let all = five(&auto(), false, &backend, &phases);
    let result = against_best("low traffic", &all, &backend, &phases, &[3, 4, 5, 6]);
    assert!(result.iter().all(|r| r.1 >= 0.9), "{result:?}");
}

#[test]
fn processor_sharing() {
    let backend = Backend {
        slots: 100,
        cores: Some(4.0),
        routes: vec![(1.0, 0.050, 0.5)],
    };
    let phases = [Phase::new(5.0, 40.0), Phase::new(60.0, 160.0)];
    let settings = Settings {
        initial: 100,
        ..auto()
    };
    let all = five(&settings, true, &backend, &phases);
    let result = against_best("sharing from 100", &all, &backend, &phases, &[4, 5, 6, 8]);
    assert!(result[1].1 >= 0.92, "{result:?}");
    assert!(
        all.iter().all(|run| run[1].last <= 12),
        "{}",
        all[0][1].last
    );
}

#[test]
fn the_other_laws_hold_their_own() {
    for algorithm in [Algorithm::Gradient, Algorithm::Vegas] {
        let settings = Settings {
            algorithm,
            ..auto()
        };
        for (k, mean) in [(2, 0.020), (8, 0.050)] {
            let backend = slots(k, mean, 0.5);
            let full = k as f64 / mean;
            let phases = [Phase::new(5.0, 0.4 * full), Phase::new(60.0, 2.0 * full)];
            let all = five(&settings, false, &backend, &phases);
            let name = format!("{} {k} slots", algorithm.as_str());
            let result = against_best(&name, &all, &backend, &phases, &[2, 3, 4, 8, 10]);
            assert!(result[1].1 >= 0.9, "{name}: {result:?}");
            for run in &all {
                let mean = run[1].mean_limit();
                assert!(mean <= 2.5 * k as f64 + 2.0, "{name}: {mean}");
            }
        }
    }
}

/// Every decision of one run, for looking at: `cargo test --lib look -- --ignored --nocapture`.
#[test]
#[ignore = "prints, asserts nothing"]
fn look() {
    let backend = slots(2, 0.020, 0.5);
    let half = Phase {
        slots: Some(1),
        ..Phase::new(20.0, 150.0)
    };
    let phases = [Phase::new(20.0, 150.0), half, Phase::new(20.0, 150.0)];
    let seed = std::env::var("SEED").map_or(1, |s| s.parse().unwrap());
    run(&auto(), false, &backend, &phases, seed, true);
}

/// The price of a sample: `cargo test --release --lib price -- --ignored --nocapture`.
#[test]
#[ignore = "prints, asserts nothing"]
fn price() {
    let base = crate::clock::now();
    let mut controller = Controller::new(auto(), base);
    let (mut at, mut usage) = (base, Usage::default());
    let n = 5_000_000_u32;
    let from = crate::clock::now();
    for i in 0..n {
        at += Duration::from_micros(100);
        controller.observe(&Sample {
            started: at - Duration::from_millis(20),
            finished: at,
            in_flight: 1 + i % 16,
            route: (i % 8) as u16,
            outcome: Outcome::Success,
        });
        if controller.due(at) {
            usage.busy_seconds += 1.0;
            usage.saturated_seconds += 0.1;
            controller.tick(at, &usage, &Readings::default());
        }
    }
    let took = crate::clock::now() - from;
    eprintln!(
        "{:.0} ns a sample, windows included",
        took.as_secs_f64() * 1e9 / f64::from(n)
    );
}

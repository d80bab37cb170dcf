//! The scenarios of `tests/scenarios/`, through the product's gate, queue and law in virtual time,
//! against bounds. The files' own seeds are for looking at and for tuning; these runs use others.
//!
//! `cargo run --release --example simulate -- tests/scenarios/FILE.toml` shows what a test sees.

#[allow(dead_code)]
#[path = "../examples/simulate/sim/mod.rs"]
mod sim;

use std::path::Path;

use sim::{
    oracle::{self, Best, Runs},
    report,
    scenario::Scenario,
};

/// Held out from tuning.
const SEEDS: std::ops::RangeInclusive<u64> = 101..=105;

/// What a phase must come to: in the median of the seeds, and in the worst.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// Goodput over that of the best fixed limit, at least.
    Goodput(usize, f64, f64),
    /// A figure of the report, at most.
    Most(usize, &'static str, f64, f64),
    /// A figure of the report, at least.
    Least(usize, &'static str, f64, f64),
}
use Bound::{Goodput, Least, Most};

/// A run over the held-out seeds, and its oracle.
struct Ran {
    scenario: Scenario,
    runs: Runs,
    best: Vec<Best>,
}

fn run(file: &str) -> Ran {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scenarios")
        .join(file);
    let mut scenario = Scenario::read(&path).expect("the scenario is valid");
    scenario.seeds = SEEDS.collect();
    Ran {
        runs: oracle::product(&scenario),
        best: oracle::oracle(&scenario),
        scenario,
    }
}

impl Ran {
    fn check(&self, bounds: &[Bound]) {
        let missed: Vec<String> = bounds.iter().filter_map(|bound| self.miss(bound)).collect();
        assert!(
            missed.is_empty(),
            "{}\n{}",
            missed.join("\n"),
            report::text(&self.scenario, &self.runs, &self.best),
        );
    }

    fn miss(&self, bound: &Bound) -> Option<String> {
        let figure = |name, phase| report::figure(name, &self.runs, phase).expect("a known figure");
        let (median, worst, met) = match *bound {
            Goodput(phase, least, least_worst) => {
                let (median, worst, _) = report::ratio(&self.runs, &self.best[phase], phase);
                (median, worst, median >= least && worst >= least_worst)
            }
            Most(phase, name, most, most_worst) => {
                let (median, worst) = figure(name, phase);
                (median, worst, median <= most && worst <= most_worst)
            }
            Least(phase, name, least, least_worst) => {
                let (median, worst) = figure(name, phase);
                (median, worst, median >= least && worst >= least_worst)
            }
        };
        (!met).then(|| format!("{bound:?} is missed: median {median:.4}, worst {worst:.4}"))
    }
}

#[test]
fn t02_double_load() {
    run("t02-double-load.toml").check(&[
        Goodput(0, 0.999, 0.998),
        Goodput(1, 0.97, 0.95),
        Goodput(2, 0.97, 0.95),
        Most(2, "p99_ms", 300.0, 320.0),
        Most(2, "in_flight_sd", 1.5, 1.8),
        Least(2, "goodput_per_s", 155.0, 150.0),
    ]);
}

mod format {
    use super::sim::{
        engine,
        law::Product,
        oracle,
        outcome::Outcome,
        report,
        scenario::{Kind, Scenario},
    };

    const CLASS: &str = "[[class]]\nname = \"a\"\nservice_ms = 50.0\n";
    const PHASE: &str = "[[phase]]\nseconds = 5.0\nload = 1.5\n";

    fn error(text: &str) -> String {
        Scenario::parse("s.toml", text).expect_err("it is wrong")
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let scenario = Scenario::parse("s.toml", &format!("{CLASS}{PHASE}")).unwrap();
        assert_eq!(scenario.seeds, [1, 2, 3, 4, 5]);
        assert_eq!(scenario.backend.kind, Kind::Slots);
        // Discovery reports 8 slots.
        assert_eq!(scenario.limit.initial, 8);
        assert!((scenario.phases[0].rps - 1.5 * 8.0 / 0.05).abs() < 1e-9);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, part) in [
            (format!("nmae = 1\n{CLASS}{PHASE}"), 1, "nmae"),
            (format!("{CLASS}{PHASE}burst = 1.0\n"), 7, "burst"),
            (format!("{CLASS}[backend]\nslot = 3\n{PHASE}"), 5, "slot"),
            (format!("{CLASS}[backend]\nslots = 0\n{PHASE}"), 4, "slots"),
            (
                format!("{CLASS}[limit]\nmni = 3\n{PHASE}"),
                5,
                "did you mean",
            ),
            (
                format!("{CLASS}[queue]\nmax_wait = 3\n{PHASE}"),
                5,
                "max_wait",
            ),
            (format!("{CLASS}{PHASE}rps = 3.0\n"), 4, "load or rps"),
            (
                format!("{CLASS}{PHASE}mix = {{ b = 1.0 }}\n"),
                4,
                "b, which is no class",
            ),
            (
                format!("{CLASS}priority = \"urgent\"\n{PHASE}"),
                4,
                "urgent",
            ),
        ] {
            let error = error(&text);
            assert!(error.starts_with(&format!("s.toml:{line}:")), "{error}");
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn limit_and_queue_are_those_of_the_product() {
        let text = format!(
            "[limit]\nalgorithm = \"fixed\"\ninitial = 3\naimd.tolerance = 1.5\n\
             [queue]\nmax_wait = \"100ms\"\ndiscipline = \"fifo\"\n{CLASS}{PHASE}"
        );
        let scenario = Scenario::parse("s.toml", &text).unwrap();
        assert_eq!(scenario.limit.initial, 3);
        assert_eq!(scenario.limit.tolerance, 1.5);
        assert_eq!(scenario.queue.max_wait.as_millis(), 100);
        let runs = oracle::product(&scenario);
        for run in &runs {
            assert_eq!((run[0].limit.least, run[0].limit.most), (3, 3));
            assert_eq!(run[0].over_limit, 0);
        }
    }

    #[test]
    fn load_is_a_share_of_the_first_phases_capacity() {
        let text = "[backend]\nkind = \"sharing\"\nslots = 100\ncores = 4.0\ncpu_share = 0.5\n\
             [[class]]\nname = \"a\"\nservice_ms = 20.0\n[[class]]\nname = \"b\"\nservice_ms = 180.0\n\
             [[phase]]\nseconds = 1.0\nload = 1.0\nmix = { a = 3.0, b = 1.0 }\n\
             [[phase]]\nseconds = 1.0\nload = 0.5\nmix = { b = 1.0 }\nslots = 4\n";
        let scenario = Scenario::parse("s.toml", text).unwrap();
        // 60 ms on average, half of it on one of 4 cores.
        assert!((scenario.phases[0].rps - 4.0 / 0.03).abs() < 1e-9);
        assert!((scenario.phases[1].rps - 2.0 / 0.03).abs() < 1e-9);
    }

    #[test]
    fn one_seed_is_one_run() {
        let text = format!("[client]\nretries = 2\nhonours_retry_after = true\n{CLASS}{PHASE}");
        let scenario = Scenario::parse("s.toml", &text).unwrap();
        let once = |seed| {
            let law: &engine::MakeLaw<'_> = &|now| Box::new(Product::new(&scenario.limit, now));
            format!("{:?}", engine::run(&scenario, seed, law, None))
        };
        assert_eq!(once(7), once(7));
        assert_ne!(once(7), once(8));
        let text = |scenario: &Scenario| {
            report::json(
                scenario,
                &oracle::product(scenario),
                &oracle::oracle(scenario),
            )
            .to_string()
        };
        assert_eq!(text(&scenario), text(&scenario));
    }

    #[test]
    fn every_request_ends_in_one_way() {
        let text = format!(
            "[client]\ntimeout_ms = 70\nretries = 1\n[backend]\nslots = 3\nmemory_per_request = \"1MiB\"\n\
             memory_limit = \"4500KiB\"\nmemory_leak = \"200KiB\"\nrestart_seconds = 0.3\n[limit]\nalgorithm = \"fixed\"\ninitial = 4\n{CLASS}\
             [[phase]]\nseconds = 20.0\nload = 1.5\nburst_on = 1.0\nburst_every = 3.0\nburst_off_load = 0.2\n\
             [[phase]]\nseconds = 20.0\nload = 0.9\ndown_seconds = 2.0\npause_every = 5.0\npause_ms = 400.0\n"
        );
        let scenario = Scenario::parse("s.toml", &text).unwrap();
        for run in oracle::product(&scenario) {
            for phase in &run {
                assert_eq!(
                    phase.offered,
                    phase.good + phase.refused + phase.late + phase.failed + phase.open
                );
                assert!(
                    phase.open <= 40 && phase.good > 0 && phase.failed > 0,
                    "{phase:?}"
                );
            }
            assert!(run[0].killed > 0, "it leaks");
            let any = |count: fn(&Outcome) -> u32| run.iter().any(|phase| count(phase) > 0);
            assert!(
                any(|o| o.wasted) && any(|o| o.late) && any(|o| o.retries),
                "{run:?}"
            );
        }
    }
}

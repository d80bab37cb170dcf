//! The scenario format, and what holds for every run.

use super::sim::{
    engine,
    law::{MakeLaw, Product},
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
        let law: &MakeLaw<'_> = &|now| Box::new(Product::new(&scenario.limit, now));
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

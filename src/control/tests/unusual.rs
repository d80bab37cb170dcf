//! What seldom happens: no answer at all, a hung backend, a law that is replaced, a trial at the wrong moment.

use super::*;

/// Runs until a decision has this reason.
#[track_caller]
fn run_until(bench: &mut Bench, reason: &str) -> Decision {
    for _ in 0..4000 {
        bench.decisions.clear();
        bench.run(0.05);
        if let Some(decision) = bench.decisions.iter().find(|d| d.reason == reason) {
            return decision.clone();
        }
    }
    panic!("never {reason}");
}

/// A backend that is neither idle nor overloaded, for long.
fn settled() -> Bench {
    let mut bench = Bench::new(Settings {
        max: 100,
        ..settings()
    });
    bench.idle();
    bench.run(1.0);
    bench.latency = 0.062;
    bench
}

#[test]
fn a_backend_that_answers_nothing_gets_no_more() {
    let mut bench = Bench::new(settings());
    bench.idle();
    bench.run(2.0);
    let before = bench.controller.limit();
    bench.outcome = Outcome::Overload;
    bench.latency = 2.0;
    bench.run(120.0);
    let limit = bench.controller.limit();
    assert!(limit <= before, "{limit}, and before it was {before}");
}

#[test]
fn a_hung_backend_is_not_idle() {
    let mut bench = Bench::new(settings());
    bench.idle();
    bench.run(2.0);
    let limit = bench.controller.limit();
    (bench.usage.in_flight, bench.usage.queued) = (limit, 5);
    for _ in 0..40 {
        bench.now += Duration::from_secs(1);
        bench.usage.busy_seconds += f64::from(limit);
        bench.usage.saturated_seconds += 1.0;
        bench
            .controller
            .tick(bench.now, &bench.usage, &bench.readings);
    }
    assert_ne!(bench.controller.bound_by(), BoundBy::Idle);
}

#[test]
fn a_limit_that_holds_nobody_back_is_not_taken_for_those_at_work() {
    let mut bench = Bench::new(settings());
    bench.idle();
    // A dry run: 13 in flight, of whom by their latency 7 are worked on.
    bench.latency = 0.05 * 1.87;
    for _ in 0..1200 {
        bench.below_the_limit(13);
        bench.usage.saturated_seconds += 0.05;
    }
    let limit = bench.controller.limit();
    assert!(limit >= 7, "{limit}");
}

#[test]
fn a_law_that_replaces_another_does_not_begin_its_search_anew() {
    for algorithm in [Algorithm::Aimd, Algorithm::Vegas] {
        let mut bench = Bench::new(Settings {
            algorithm: Algorithm::Gradient,
            ..settings()
        });
        bench.idle();
        bench.run(5.0);
        let settings = Settings {
            algorithm,
            ..settings()
        };
        bench.controller.reconfigure(settings, bench.now);
        bench.decisions.clear();
        bench.run(2.0);
        assert!(bench.said(reason::INCREASE), "{algorithm}");
        assert!(!bench.said(reason::SLOW_START), "{algorithm}");
    }
}

#[test]
fn what_is_remembered_is_not_the_limit_of_a_trial() {
    let mut bench = settled();
    let decision = run_until(&mut bench, reason::PROBE_UP);
    assert!(decision.limit > decision.from);
    let known = bench.controller.remember().expect("enough is known");
    assert_eq!(known.limit, decision.from);
}

#[test]
fn drops_end_an_up_probe_at_once() {
    let mut bench = settled();
    let decision = run_until(&mut bench, reason::PROBE_UP);
    bench.outcome = Outcome::Overload;
    bench.decisions.clear();
    while bench.decisions.is_empty() {
        bench.run(0.05);
    }
    let after = &bench.decisions[0];
    assert_eq!(after.reason, reason::RESTORE);
    assert_eq!(after.limit, decision.from);
}

#[test]
fn streams_leave_the_others_what_they_had() {
    let mut bench = Bench::new(Settings {
        max: 100,
        ..settings()
    });
    bench.idle();
    bench.latency = 0.1;
    // Twenty tunnels, and twice as many others as the backend can do.
    bench.usage.streams = 20;
    bench.run(20.0);
    let limit = bench.controller.limit();
    assert!(limit > 20, "{limit}");
    // They end: what the law found for the others stays.
    let windows = bench.controller.windows();
    bench.decisions.clear();
    bench.usage.streams = 0;
    bench.run(0.05);
    assert_eq!(bench.controller.limit(), limit - 20);
    assert!(bench.controller.windows() <= windows + 1);
}

#[test]
fn streams_take_workers_where_those_are_known_and_give_them_back() {
    let mut bench = Bench::new(settings());
    bench.readings.slots = Some(8);
    bench.idle();
    bench.run(3.0);
    let limit = bench.controller.limit();
    bench.usage.streams = 6;
    bench.run(3.0);
    assert_eq!(bench.controller.limit(), limit, "there are no more workers");
    bench.usage.streams = 0;
    bench.run(0.05);
    assert_eq!(bench.controller.limit(), limit);
}

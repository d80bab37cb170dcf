use super::*;
use crate::observe::trace::Fate;
use crate::{
    config::{Class, Sources, load},
    control::Outcome as End,
    observe::{Reason, trace::Entry},
};

/// A request that was answered.
pub(super) fn served(arrived: u64, in_flight: u32, took: f64) -> Entry {
    Entry {
        arrived,
        waited: 0,
        took: (took * 1e6).round() as u32,
        in_flight,
        limit: 4,
        slots: 0,
        lane: 0,
        patience: 0,
        route: 0,
        class: Class::Normal,
        fate: Fate::Served(End::Success),
    }
}

fn config(set: &[(&str, &str)]) -> Config {
    let mut sources = Sources::default();
    for (key, value) in set {
        let value = crate::config::Value::Bare((*value).to_owned());
        sources
            .flags
            .push(((*key).to_owned(), "--set".to_owned(), value));
    }
    load(&sources)
        .map(|loaded| (*loaded.config).clone())
        .unwrap()
}

/// The note of every report.
const ALWAYS: &str = "CPU, memory and the accept queue are not in a trace: nothing of them holds the limit here, \
                      and limit.resources has no effect";

/// Four workers at 50 ms under 120 requests a second: half as many again as they can do. It was
/// recorded with a limit of 8, of which four only waited in the backend, and no queue to speak of.
fn overloaded() -> Trace {
    let mut entries = Vec::new();
    for at in 0..3600_u64 {
        let arrived = at * 1_000_000 / 120;
        let mut entry = served(arrived, 8, 0.1);
        entry.limit = 8;
        match at % 3 {
            0 => {
                entry.fate = Fate::Refused(Reason::QueueFull);
                entry.took = 0;
                entry.in_flight = 0;
            }
            // Now and then there were few.
            _ if at % 30 < 4 => (entry.in_flight, entry.took) = (4, 50_000),
            _ => {}
        }
        entries.push(entry);
    }
    Trace {
        routes: vec!["default".into()],
        entries,
        damaged: 0,
    }
}

#[test]
fn what_happened_is_told_as_it_was() {
    let trace = overloaded();
    let comparison = compare(&trace, &config(&[])).unwrap();
    let was = &comparison.was;
    assert_eq!(
        (comparison.requests, was.answered, was.refusals()),
        (3600, 2400, 1200)
    );
    assert_eq!(was.refused["queue_full"], 1200);
    assert_eq!((was.limits, was.most_in_flight), (Some((8, 8)), 8));
    assert_eq!(was.latency.at(0.95), Some(0.1));
}

#[test]
fn a_limit_at_the_workers_halves_the_time_at_the_backend() {
    let four = config(&[
        ("limit.algorithm", "fixed"),
        ("limit.initial", "4"),
        ("queue.max_wait", "100ms"),
    ]);
    let comparison = compare(&overloaded(), &four).unwrap();
    let would = &comparison.would_be;
    // The backend does 80 a second, whatever the limit.
    let answered = would.answered as f64 / would.seconds;
    assert!((answered / 80.0 - 1.0).abs() < 0.03, "{answered}");
    assert_eq!(would.answered + would.refusals() + would.left, 3600);
    assert!(
        (would.service.at(0.5).unwrap() - 0.05).abs() < 0.003,
        "{:?}",
        would.service.at(0.5)
    );
    assert!(would.wait.at(0.99).unwrap() <= 0.1001);
    assert_eq!((would.limits, would.most_in_flight), (Some((4, 4)), 4));
    assert_eq!(comparison.notes, [ALWAYS]);
}

#[test]
fn a_limit_of_one_wastes_three_workers() {
    let one = config(&[("limit.algorithm", "fixed"), ("limit.initial", "1")]);
    let would = compare(&overloaded(), &one).unwrap().would_be;
    let answered = would.answered as f64 / would.seconds;
    assert!((answered / 20.0 - 1.0).abs() < 0.05, "{answered}");
}

#[test]
fn beyond_what_was_seen_it_says_so() {
    let many = config(&[
        ("limit.algorithm", "fixed"),
        ("limit.initial", "64"),
        ("queue.max_wait", "5s"),
    ]);
    let comparison = compare(&overloaded(), &many).unwrap();
    assert!(comparison.would_be.most_in_flight > 8);
    assert!(
        comparison.notes[0].contains("with 8 at most"),
        "{:?}",
        comparison.notes
    );
    let answered = comparison.would_be.answered as f64;
    assert!(answered / comparison.would_be.seconds > 78.0);
}

#[test]
fn the_law_finds_the_workers_and_a_replay_repeats() {
    let auto = config(&[("limit.initial", "4"), ("queue.max_wait", "200ms")]);
    let first = compare(&overloaded(), &auto).unwrap();
    let again = compare(&overloaded(), &auto).unwrap();
    assert_eq!(first.would_be, again.would_be);
    let limit = first.would_be.mean_limit().unwrap();
    assert!((3.0..=8.0).contains(&limit), "{limit}");
    assert!(!first.would_be.reasons.is_empty());
}

#[test]
fn an_address_that_a_reload_changed_is_no_endpoint_more() {
    let four = config(&[("limit.algorithm", "fixed"), ("limit.initial", "4")]);
    let limits = |of: fn(usize) -> u32| {
        let mut trace = overloaded();
        for (at, entry) in trace.entries.iter_mut().enumerate() {
            entry.lane = of(at);
        }
        compare(&trace, &four).unwrap().would_be.limits
    };
    let reloaded = limits(|at| u32::from(at > 1800));
    assert_eq!(reloaded, Some((4, 4)), "one after the other");
    assert_eq!(limits(|at| at as u32 % 2), Some((8, 8)), "side by side");
}

/// As after a week without traffic, or a clock that was set right from 1970.
#[test]
fn a_pause_of_a_week_is_ten_minutes_and_is_told_of() {
    const WEEK: u64 = 7 * 24 * 3600 * 1_000_000;
    let burst = |from: u64| (0..100).map(move |at| served(from + at * 25_000, 2, 0.05));
    let trace = Trace {
        routes: vec!["default".into()],
        entries: burst(0)
            .chain(burst(WEEK))
            .chain(burst(3000 * WEEK))
            .collect(),
        damaged: 0,
    };
    let comparison = compare(&trace, &config(&[("limit.initial", "4")])).unwrap();
    let (was, would) = (&comparison.was, &comparison.would_be);
    assert!((1200.0..1210.0).contains(&was.seconds), "{}", was.seconds);
    assert_eq!((would.seconds, would.answered), (was.seconds, 300));
    assert!(was.mean_in_flight() > 0.01 && would.mean_in_flight() > 0.01);
    let note =
        "nothing was recorded for more than ten minutes, 2 times: ten minutes of it are left, ";
    let told = comparison.notes.iter().any(|told| told.starts_with(note));
    assert!(told, "{:?}", comparison.notes);
}

/// Two endpoints with a limit of 4 each, which the trace knows with 4 in flight each.
#[test]
fn both_sides_tell_of_all_endpoints_together() {
    let mut trace = overloaded();
    for (at, entry) in trace.entries.iter_mut().enumerate() {
        if let Fate::Served(_) = entry.fate {
            entry.lane = at as u32 % 2;
            (entry.limit, entry.in_flight, entry.took) = (4, 4, 50_000);
        }
    }
    let four = config(&[("limit.algorithm", "fixed"), ("limit.initial", "4")]);
    let comparison = compare(&trace, &four).unwrap();
    for outcome in [&comparison.was, &comparison.would_be] {
        assert_eq!(outcome.limits, Some((8, 8)));
        assert!((outcome.mean_limit().unwrap() - 8.0).abs() < 1e-9);
    }
    assert!(comparison.would_be.most_in_flight > 4);
    assert_eq!(comparison.notes, [ALWAYS]);
}

#[test]
fn routes_take_their_class_and_cap_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.toml");
    std::fs::write(
        &file,
        "[limit]\nalgorithm = \"fixed\"\ninitial = 4\n[[route]]\nname = \"slow\"\npath = \"/slow\"\n\
         class = \"low\"\nmax_in_flight = 1\n",
    )
    .unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let config = load(&sources).unwrap().config;
    let mut trace = overloaded();
    trace.routes = vec!["slow".into()];
    let would = compare(&trace, &config).unwrap().would_be;
    assert_eq!(would.most_in_flight, 1, "its cap");
    assert!(
        would.refused.contains_key("route_limit"),
        "{:?}",
        would.refused
    );
}

#[test]
fn the_impatient_leave_and_deadlines_are_kept() {
    let mut trace = overloaded();
    for entry in &mut trace.entries {
        match entry.fate {
            Fate::Refused(_) => {
                entry.fate = Fate::Left;
                entry.waited = 5_000;
            }
            _ => entry.patience = 60_000,
        }
    }
    let two = [("limit.algorithm", "fixed"), ("limit.initial", "2")];
    let would = compare(&trace, &config(&two)).unwrap().would_be;
    assert!(
        would.left > 0 && would.refused.get("deadline") > Some(&0),
        "{would:?}"
    );
    assert_eq!(would.answered + would.refusals() + would.left, 3600);
    let off = [&two[..], &[("queue.deadline_header", "")]].concat();
    let would = compare(&trace, &config(&off)).unwrap().would_be;
    assert!(
        would.refused.contains_key("queue_timeout") && !would.refused.contains_key("deadline"),
        "{:?}",
        would.refused
    );
}

#[test]
fn a_dry_run_is_replayed_in_earnest() {
    let two = [("limit.algorithm", "fixed"), ("limit.initial", "2")];
    let earnest = compare(&overloaded(), &config(&two)).unwrap();
    let dry = [&two[..], &[("limit.dry_run", "true")]].concat();
    let dry = compare(&overloaded(), &config(&dry)).unwrap();
    assert!(dry.would_be.refusals() > 0);
    assert_eq!(dry.would_be, earnest.would_be);
    assert!(dry.notes[0].starts_with("limit.dry_run is left out of account"));
}

#[test]
fn without_an_initial_limit_it_starts_at_the_first_recorded_one() {
    let mut trace = overloaded();
    // Refused: the limit is that of all endpoints.
    trace.entries[0].limit = 99;
    let starts = |trace: &Trace, set: &[(&str, &str)]| {
        let comparison = compare(trace, &config(set)).unwrap();
        let told =
            comparison.notes[0].starts_with("limit.initial is not set: the limit starts at ");
        let limit = comparison.would_be.parts[0].limit().unwrap();
        ((limit * 10.0).round() / 10.0, told)
    };
    let fixed = ("limit.algorithm", "fixed");
    assert_eq!(starts(&trace, &[fixed]), (8.0, true));
    assert_eq!(starts(&trace, &[fixed, ("limit.max", "5")]), (5.0, true));
    assert_eq!(
        starts(&trace, &[fixed, ("limit.initial", "3")]),
        (3.0, false)
    );
    assert_eq!(
        starts(&trace, &[fixed, ("discovery.slots", "6")]),
        (6.0, false)
    );
    let (auto, told) = starts(&trace, &[]);
    assert!(told && (5.0..11.0).contains(&auto), "{auto}");
    for entry in &mut trace.entries {
        entry.slots = 2;
    }
    assert_eq!(starts(&trace, &[fixed]), (2.0, false));
    // It has long been in force: the law has moved on since.
    assert!(starts(&trace, &[("discovery.slots", "2")]).1);
}

#[test]
fn routes_that_only_one_side_has_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.toml");
    let routes = ["slow", "new", "quiet"].map(|name| format!("[[route]]\nname = \"{name}\"\n"));
    std::fs::write(&file, format!("limit.initial = 4\n{}", routes.concat())).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let config = load(&sources).unwrap().config;
    let mut trace = overloaded();
    trace.routes = ["default", "slow", "gone", "quiet", "long gone"]
        .map(str::to_owned)
        .into();
    for (at, entry) in trace.entries.iter_mut().enumerate() {
        entry.route = at as u16 % 3;
    }
    let notes = compare(&trace, &config).unwrap().notes;
    let told = |text: &str| notes.iter().filter(|note| note.contains(text)).count();
    assert_eq!(
        told("no request of the trace was counted under these routes: new, quiet. "),
        1,
        "{notes:?}"
    );
    assert_eq!(
        told("the configuration lacks these routes of the trace: gone. "),
        1,
        "{notes:?}"
    );
    assert_eq!(notes.last().map(String::as_str), Some(ALWAYS));
}

#[test]
fn both_reports_have_the_figures() {
    let comparison = compare(&overloaded(), &config(&[("limit.initial", "4")])).unwrap();
    let text = text(&comparison);
    assert!(text.starts_with("3600 requests in 30.0 s\n"), "{text}");
    for name in [
        "answered by the backend",
        "  queue_full",
        "latency, p99",
        "limit, mean",
        "0.0 to 3.0",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let json = json(&comparison);
    assert_eq!(json["did_happen"]["answered"], 2400);
    assert_eq!(
        json["would_have"]["parts"].as_array().map(Vec::len),
        Some(10)
    );
}

#[test]
fn a_trace_without_an_answer_is_nothing_to_go_by() {
    let trace = Trace {
        routes: Vec::new(),
        entries: Vec::new(),
        damaged: 0,
    };
    assert_eq!(
        compare(&trace, &config(&[])).unwrap_err(),
        ReplayError::NothingServed
    );
}

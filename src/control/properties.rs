//! Whatever it is told, a controller stays within its bounds and its figures stay numbers.
#![allow(clippy::needless_update)]

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Sample {
        age: u64,
        in_flight: u32,
        route: u16,
        outcome: u8,
    },
    Tick {
        after: u64,
        busy: f64,
        saturated: f64,
        in_flight: u32,
        slots: Option<u32>,
    },
    Pin(Option<u32>),
    Reconfigure(Settings),
}

fn settings() -> impl Strategy<Value = Settings> {
    let share = prop_oneof![0.0..2.0, Just(f64::NAN), Just(f64::INFINITY), Just(-1.0)];
    let count = || prop_oneof![0..200_u32, Just(u32::MAX)];
    (
        0..4_usize,
        count(),
        count(),
        count(),
        share.clone(),
        share.clone(),
        share,
    )
        .prop_map(
            |(law, initial, min, max, increase, decrease, tolerance)| Settings {
                algorithm: Algorithm::ALL[law],
                initial,
                min,
                max,
                increase,
                decrease,
                tolerance,
                resources: Resources::default(),
                shadow: vec![Algorithm::Aimd, Algorithm::Vegas, Algorithm::Gradient],
            },
        )
}

fn event() -> impl Strategy<Value = Event> {
    let odd = || prop_oneof![4 => 0.0..1.0, 1 => Just(f64::NAN), 1 => Just(-5.0), 1 => Just(1e300)];
    prop_oneof![
        40 => (0..2_000_000_u64, any::<u16>(), any::<u16>(), 0..7_u8).prop_map(
            |(age, in_flight, route, outcome)| Event::Sample {
                age, in_flight: u32::from(in_flight), route, outcome
            }
        ),
        20 => (0..3_000_u64, odd(), odd(), any::<u32>(), proptest::option::of(0..100_u32)).prop_map(
            |(after, busy, saturated, in_flight, slots)| Event::Tick {
                after, busy, saturated, in_flight, slots
            }
        ),
        1 => proptest::option::of(any::<u32>()).prop_map(Event::Pin),
        1 => settings().prop_map(Event::Reconfigure),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn stays_within_bounds(first in settings(), events in proptest::collection::vec(event(), 1..400)) {
        let base = crate::clock::now();
        let mut now = base + Duration::from_secs(10);
        let mut settings = first.clone();
        let mut controller = Controller::new(first, now);
        let mut usage = Usage::default();
        let mut known_slots = false;
        for event in events {
            match event {
                Event::Sample { age, in_flight, route, outcome } => controller.observe(&Sample {
                    started: now - Duration::from_micros(age),
                    finished: now,
                    in_flight,
                    group: match route % 3 {
                        0 => Group::Path(route),
                        _ => Group::Route(route % 80),
                    },
                    outcome: match outcome {
                        0 => Outcome::Overload,
                        1 => Outcome::Neutral,
                        2 => Outcome::Excluded,
                        3 => Outcome::InVain,
                        _ => Outcome::Success,
                    },
                }),
                Event::Tick { after, busy, saturated, in_flight, slots } => {
                    now += Duration::from_millis(after);
                    usage.busy_seconds += busy;
                    usage.saturated_seconds += saturated;
                    usage.in_flight = in_flight;
                    known_slots = slots.is_some();
                    let _ = controller.due(now);
                    let decision = controller.tick(now, &usage, &Readings { slots, ..Readings::default() });
                    if let Some(decision) = &decision {
                        prop_assert_eq!(decision.limit, controller.limit());
                        prop_assert!(!explain(decision.reason).is_empty());
                        let e = decision.evidence;
                        for figure in [e.stretch, e.noise, e.throughput, e.limited_share] {
                            prop_assert!(figure.is_finite() && figure >= 0.0, "{:?}", e);
                        }
                    }
                }
                Event::Pin(pin) => controller.pin(pin, now),
                Event::Reconfigure(new) => {
                    let before = controller.limit();
                    let law_limit = controller.law_limit();
                    controller.reconfigure(new.clone(), now);
                    settings = new;
                    let (min, max) = settings.bounds();
                    if settings.algorithm == Algorithm::Aimd && controller.pinned().is_none() {
                        // At most what the law wanted all along, under a ceiling or a pin.
                        prop_assert!((min..=max).contains(&controller.limit()));
                        if before == law_limit && !known_slots {
                            prop_assert_eq!(controller.limit(), before.clamp(min, max));
                        }
                    }
                }
            }
            let (min, max) = settings.bounds();
            prop_assert!((min..=max).contains(&controller.limit()));
            prop_assert!(controller.limit() >= 1);
            for point in controller.curve() {
                prop_assert!(point.stretch.is_finite() && point.throughput.is_finite());
            }
            let _ = (controller.baseline(), controller.stretch(), controller.service_time());
        }
    }
}

#[test]
fn reconfigure_keeps_the_limit() {
    let now = crate::clock::now();
    let mut controller = Controller::new(
        Settings {
            initial: 20,
            ..Settings::default()
        },
        now,
    );
    controller.reconfigure(
        Settings {
            initial: 99,
            ..Settings::default()
        },
        now,
    );
    assert_eq!(controller.limit(), 20);
    controller.reconfigure(
        Settings {
            max: 12,
            ..Settings::default()
        },
        now,
    );
    assert_eq!(controller.limit(), 12);
    assert_eq!(controller.bound_by(), BoundBy::Configured);
    let fixed = Settings {
        algorithm: Algorithm::Fixed,
        initial: 7,
        ..Settings::default()
    };
    controller.reconfigure(fixed, now);
    assert_eq!(
        (controller.limit(), controller.bound_by()),
        (7, BoundBy::Configured)
    );
    controller.reconfigure(
        Settings {
            initial: 50,
            ..Settings::default()
        },
        now,
    );
    assert_eq!(
        (controller.limit(), controller.bound_by()),
        (7, BoundBy::Idle)
    );
    controller.pin(Some(3), now);
    assert_eq!(
        (controller.limit(), controller.bound_by()),
        (3, BoundBy::Configured)
    );
    controller.pin(None, now);
    assert_eq!(controller.limit(), 7);
}

#[test]
fn slots_are_a_ceiling() {
    let now = crate::clock::now();
    let mut controller = Controller::new(
        Settings {
            initial: 20,
            ..Settings::default()
        },
        now,
    );
    let readings = Readings {
        slots: Some(4),
        ..Readings::default()
    };
    let decision = controller.tick(now, &Usage::default(), &readings).unwrap();
    assert_eq!((decision.limit, decision.bound_by), (5, BoundBy::Workers));
    assert_eq!(decision.reason, reason::SLOTS);
    let decision = controller
        .tick(now, &Usage::default(), &Readings::default())
        .unwrap();
    assert_eq!((decision.limit, decision.bound_by), (20, BoundBy::Idle));
}

//! Who waits, who makes place for whom, and what a queue that stands changes of that: the gate's state by itself, which
//! is told the time.

use std::time::{Duration, Instant};

use tidegate::{
    admission::{
        Ask, Cap, Class, ClientKey, Group, Reason,
        state::{Entry, Settings, State, Verdict, Verdicts},
    },
    clock,
};

const MS: Duration = Duration::from_millis(1);
/// What a request takes.
const SERVICE: Duration = Duration::from_millis(20);
const CAPPED: Ask = Ask {
    class: Class::Normal,
    deadline: None,
    group: Group::Route(7),
    cap: Some(Cap { id: 7, max: 1 }),
    client: None,
};

/// A gate in front of one worker, and who has been decided about since.
struct Bench {
    state: State,
    now: Instant,
    out: Verdicts,
    arrivals: u32,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = clock::now();
        let mut out = Verdicts::new();
        let mut state = State::new(settings, now);
        state.add_lane(0, 1, now, &mut out);
        state.set_service_time(SERVICE);
        Self {
            state,
            now,
            out,
            arrivals: 0,
        }
    }

    /// One more comes; they are numbered in this order.
    fn enter(&mut self, ask: &Ask) -> Entry {
        self.arrivals += 1;
        self.state
            .enter(ask, self.arrivals, self.now, &mut self.out)
    }

    /// Why it may not, if it may not.
    fn refusal(&mut self, ask: &Ask) -> Option<Reason> {
        match self.enter(ask) {
            Entry::Refused(refusal) => Some(refusal.reason),
            _ => None,
        }
    }

    fn set_limit(&mut self, limit: u32) {
        self.state.set_limit(0, limit, self.now, &mut self.out);
    }

    fn release(&mut self, cap: Option<Cap>) {
        self.state.release(0, cap, self.now, &mut self.out);
    }

    /// The worker is busy, and so many a service time come for it, for so many service times.
    fn load(&mut self, ask: &Ask, each: u32, times: u32) {
        for _ in 0..times {
            for _ in 0..each {
                self.enter(ask);
                self.now += SERVICE / each;
            }
            self.release(None);
        }
    }

    fn is_standing(&mut self) -> bool {
        self.state.snapshot(self.now).standing
    }

    /// Those who were told so since the last look.
    fn refused(&mut self) -> Vec<(u32, Reason)> {
        let verdicts = self.out.drain(..);
        let refused = verdicts.filter_map(|(number, verdict)| match verdict {
            Verdict::Refused(refusal) => Some((number, refusal.reason)),
            Verdict::Admitted(_) => None,
        });
        refused.collect()
    }
}

fn of(class: Class) -> Ask {
    Ask {
        class,
        ..Ask::default()
    }
}

/// Places for all who come.
fn roomy() -> Settings {
    Settings {
        capacity: 40,
        ..Settings::default()
    }
}

/// Three come for each that goes, until that is known for what it is.
fn under_a_standing_queue(settings: Settings) -> Bench {
    let mut bench = Bench::new(settings);
    bench.load(&Ask::default(), 3, 7);
    assert!(bench.is_standing());
    bench.refused();
    bench
}

#[test]
fn in_a_full_queue_that_stands_the_one_who_has_waited_longest_makes_place_for_a_newcomer() {
    let mut bench = under_a_standing_queue(Settings {
        capacity: 13,
        ..Settings::default()
    });
    // Those who wait have all waited long.
    bench.now += 100 * MS;
    while bench.state.snapshot(bench.now).queued() < 13 {
        assert_eq!(bench.refusal(&Ask::default()), None);
    }
    assert_eq!(bench.refused(), []);
    assert_eq!(bench.refusal(&Ask::default()), None);
    let refused = bench.refused();
    assert!(
        matches!(refused[..], [(_, Reason::QueueFull)]),
        "{refused:?}"
    );
}

#[test]
fn a_queue_that_stands_shortens_no_health_checks_wait() {
    let mut bench = under_a_standing_queue(roomy());
    let checks: Vec<_> = (0..4)
        .map(|_| bench.refusal(&of(Class::Protected)))
        .collect();
    assert_eq!(checks, [None; 4]);
    let another = bench.refusal(&Ask::default());
    assert_eq!(another, Some(Reason::QueueTimeout));
}

#[test]
fn who_is_overtaken_is_refused_unless_it_is_a_health_check_or_waits_for_its_routes_cap() {
    let mut bench = Bench::new(roomy());
    bench.load(&Ask::default(), 3, 12);
    assert!(!bench.refused().is_empty(), "their turn will not come");

    let mut bench = Bench::new(roomy());
    bench.load(&of(Class::Protected), 3, 12);
    assert_eq!(bench.refused(), []);

    let mut bench = Bench::new(roomy());
    bench.set_limit(2);
    bench.enter(&CAPPED);
    bench.enter(&CAPPED);
    bench.load(&Ask::default(), 3, 12);
    let refused = bench.refused();
    assert!(!refused.is_empty());
    let of_the_route = refused.iter().find(|(number, _)| *number == 2);
    assert_eq!(of_the_route, None);
}

/// Its clients have all left, and nobody came for a while: what comes then is a burst.
#[test]
fn a_queue_that_was_given_up_is_not_held_against_the_next() {
    let mut bench = Bench::new(Settings::default());
    bench.enter(&Ask::default());
    let Entry::Queued { seq, .. } = bench.enter(&Ask::default()) else {
        panic!("there is no room");
    };
    bench.state.leave(seq, Class::Normal, bench.now + 10 * MS);
    bench.now += 10_000 * MS;
    for _ in 0..20 {
        bench.enter(&Ask::default());
        bench.now += MS;
    }
    assert!(!bench.is_standing());
}

#[test]
fn no_route_at_its_cap_takes_more_than_half_of_the_places() {
    let mut bench = Bench::new(Settings {
        capacity: 4,
        ..Settings::default()
    });
    let refusals: Vec<_> = (0..4).map(|_| bench.refusal(&CAPPED)).collect();
    // One is in flight, and two wait.
    assert_eq!(refusals, [None, None, None, Some(Reason::RouteLimit)]);
    assert_eq!(bench.refusal(&Ask::default()), None);
}

#[test]
fn who_waits_for_a_routes_cap_waits_for_no_room() {
    let mut bench = Bench::new(Settings::default());
    bench.set_limit(10);
    for _ in 0..4 {
        assert_eq!(bench.refusal(&CAPPED), None);
    }
    assert_eq!(bench.state.snapshot(bench.now).queued(), 3);
    assert_eq!(bench.state.usage(0, bench.now).queued, 0);
}

#[test]
fn a_request_of_a_route_that_takes_long_keeps_the_next_but_one_from_waiting() {
    let mut bench = Bench::new(Settings::default());
    bench.enter(&CAPPED);
    bench.now += 5000 * MS;
    assert_eq!(bench.refusal(&CAPPED), None, "it may be done soon");
    assert_eq!(bench.refusal(&CAPPED), Some(Reason::RouteLimit));
}

/// A reload has lowered it.
#[test]
fn those_who_wait_for_a_routes_cap_are_counted_whatever_it_was() {
    let mut bench = Bench::new(Settings {
        max_wait: 30 * MS,
        ..Settings::default()
    });
    bench.set_limit(10);
    let with = |max| Ask {
        cap: Some(Cap { id: 7, max }),
        ..CAPPED
    };
    for _ in 0..5 {
        assert_eq!(bench.refusal(&with(3)), None);
    }
    // Two wait, and the third would for twice what a request takes.
    assert_eq!(bench.refusal(&with(1)), Some(Reason::RouteLimit));
}

#[test]
fn health_checks_are_nobodys_share_of_the_queue() {
    let mut bench = Bench::new(Settings {
        capacity: 10,
        client_max_share: 0.1,
        ..Settings::default()
    });
    let from = |class| Ask {
        client: Some(ClientKey(1)),
        ..of(class)
    };
    let mut refusals = |class| [0; 3].map(|_| bench.refusal(&from(class)));
    assert_eq!(refusals(Class::Protected), [None; 3]);
    // Two of those wait.
    assert_eq!(refusals(Class::Normal), [Some(Reason::QueueFull); 3]);
}

/// In a dry run: why it would have been refused.
fn would(bench: &mut Bench, ask: &Ask) -> Option<Reason> {
    match bench.enter(ask) {
        Entry::Admitted(admitted) => admitted.would_refuse,
        other => panic!("a dry run lets everybody in: {other:?}"),
    }
}

fn dry_run() -> Settings {
    Settings {
        dry_run: true,
        max_wait: 100 * MS,
        client_max_share: 0.1,
        ..Settings::default()
    }
}

#[test]
fn a_dry_run_would_refuse_no_health_check_for_who_waits() {
    let mut bench = Bench::new(dry_run());
    let others = [0; 20].map(|_| would(&mut bench, &Ask::default()));
    assert_eq!(others[19], Some(Reason::QueueTimeout));
    assert_eq!(would(&mut bench, &of(Class::Protected)), None);
}

#[test]
fn a_dry_run_forgets_who_would_not_wait_any_more() {
    let mut bench = Bench::new(dry_run());
    let from = |client| Ask {
        client: Some(ClientKey(client)),
        ..Ask::default()
    };
    let first = [0; 3].map(|_| would(&mut bench, &from(1)));
    assert_eq!(first, [None, None, Some(Reason::QueueFull)]);
    bench.now += 1000 * MS;
    assert_eq!(would(&mut bench, &from(2)), None);
    assert_eq!(would(&mut bench, &from(1)), None);
}

#[test]
fn a_dry_run_would_have_a_burst_wait_for_its_routes_cap() {
    let mut bench = Bench::new(dry_run());
    bench.set_limit(100);
    let burst = [0; 20].map(|_| would(&mut bench, &CAPPED));
    assert_eq!(burst[..5], [None; 5]);
    assert_eq!(burst[19], Some(Reason::RouteLimit));
}

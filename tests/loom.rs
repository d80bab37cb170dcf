//! The gate under loom: every order in which threads can meet at its lock, for the races by which
//! other limiters lost permits or forgot somebody who waited. In each model, at the end, the requests
//! in flight are the permits alive; a waiter that nobody wakes is a deadlock, which loom reports.
//!
//! ```sh
//! RUSTFLAGS="--cfg tidegate_loom" CARGO_TARGET_DIR=target/loom cargo test --test loom
//! ```
#![cfg(tidegate_loom)]

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use loom::{future::block_on, thread};
use tidegate::{
    admission::{
        Ask, Gate, Refusal,
        gate::{Entered, Permit, Ticket},
        state::Settings,
    },
    clock,
};

const LANE: u32 = 0;

/// Runs the model in every order with at most three preemptions.
fn model(body: impl Fn(Instant) + Send + Sync + 'static) {
    let now = clock::now();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || body(now));
}

fn gate(limit: u32, now: Instant) -> Gate {
    let gate = Gate::new(Settings::default(), now);
    gate.change(|state, out| state.add_lane(LANE, limit, now, out));
    gate
}

fn enter(gate: &Gate, now: Instant) -> Permit {
    match gate.enter(&Ask::default(), now) {
        Entered::Admitted(permit) => permit,
        other => panic!("there is room: {other:?}"),
    }
}

fn queue(gate: &Gate, now: Instant) -> Ticket {
    match gate.enter(&Ask::default(), now) {
        Entered::Queued(ticket, _) => ticket,
        other => panic!("there is no room: {other:?}"),
    }
}

/// Waits for the verdict; a lost wake-up is a deadlock.
fn wait(mut ticket: Ticket, now: Instant) -> Result<Permit, Refusal> {
    block_on(poll_fn(move |cx| ticket.poll(cx, now)))
}

#[track_caller]
fn expect(gate: &Gate, in_flight: u32, now: Instant) {
    let snapshot = gate.snapshot(now);
    assert_eq!(snapshot.in_flight(), in_flight, "in flight");
    assert_eq!(snapshot.queued(), 0, "queued");
}

#[test]
fn a_release_meets_an_arrival() {
    model(|now| {
        let gate = gate(1, now);
        let first = enter(&gate, now);
        let releasing = thread::spawn(move || first.release(now));
        let second = match gate.enter(&Ask::default(), now) {
            Entered::Admitted(permit) => permit,
            Entered::Queued(ticket, _) => wait(ticket, now).expect("the place comes free"),
            Entered::Refused(refusal) => panic!("{refusal:?}"),
        };
        releasing.join().unwrap();
        expect(&gate, 1, now);
        second.release(now);
        expect(&gate, 0, now);
    });
}

#[test]
fn two_arrivals_meet_at_the_last_place() {
    model(|now| {
        let gate = gate(1, now);
        let other = {
            let gate = gate.clone();
            thread::spawn(move || pass(&gate, now))
        };
        pass(&gate, now);
        other.join().unwrap();
        expect(&gate, 0, now);
    });

    fn pass(gate: &Gate, now: Instant) {
        let permit = match gate.enter(&Ask::default(), now) {
            Entered::Admitted(permit) => permit,
            Entered::Queued(ticket, _) => wait(ticket, now).expect("the other one leaves"),
            Entered::Refused(refusal) => panic!("{refusal:?}"),
        };
        assert_eq!(permit.in_flight(), 1, "alone");
        permit.release(now);
    }
}

#[test]
fn a_waiter_that_leaves_with_its_grant_hands_it_on() {
    model(|now| {
        let gate = gate(1, now);
        let first = enter(&gate, now);
        let leaver = queue(&gate, now);
        let next = queue(&gate, now);
        let releasing = thread::spawn(move || first.release(now));
        let leaving = thread::spawn(move || drop(leaver));
        let permit = wait(next, now).expect("the grant is handed on");
        releasing.join().unwrap();
        leaving.join().unwrap();
        expect(&gate, 1, now);
        permit.release(now);
        expect(&gate, 0, now);
    });
}

#[test]
fn a_shrink_meets_releases() {
    model(|now| {
        let gate = gate(2, now);
        let (first, second) = (enter(&gate, now), enter(&gate, now));
        let waiting = queue(&gate, now);
        let shrinking = {
            let gate = gate.clone();
            thread::spawn(move || gate.set_limit(LANE, 1, now))
        };
        let releasing = thread::spawn(move || first.release(now));
        second.release(now);
        let third = wait(waiting, now).expect("both places came free");
        shrinking.join().unwrap();
        releasing.join().unwrap();
        expect(&gate, 1, now);
        assert!(
            matches!(gate.enter(&Ask::default(), now), Entered::Queued(..)),
            "the smaller limit holds"
        );
        third.release(now);
        expect(&gate, 0, now);
    });
}

#[test]
fn growth_meets_a_release() {
    model(|now| {
        let gate = gate(1, now);
        let first = enter(&gate, now);
        let (second, third) = (queue(&gate, now), queue(&gate, now));
        let growing = {
            let gate = gate.clone();
            thread::spawn(move || gate.set_limit(LANE, 2, now))
        };
        let releasing = thread::spawn(move || first.release(now));
        let second = wait(second, now).expect("the first place");
        let third = wait(third, now).expect("the second place");
        growing.join().unwrap();
        releasing.join().unwrap();
        expect(&gate, 2, now);
        drop((second, third));
        expect(&gate, 0, now);
    });
}

#[test]
fn time_runs_out_as_the_grant_arrives() {
    model(|now| {
        let gate = gate(1, now);
        let first = enter(&gate, now);
        let mut ticket = queue(&gate, now);
        let releasing = thread::spawn(move || first.release(now));
        let late = now + Duration::from_secs(1);
        match ticket.expire(late) {
            Some(_) => {
                releasing.join().unwrap();
                expect(&gate, 0, late);
            }
            None => {
                let permit = wait(ticket, late).expect("decided: it may go");
                releasing.join().unwrap();
                expect(&gate, 1, late);
                permit.release(late);
                expect(&gate, 0, late);
            }
        }
    });
}

#[test]
fn a_panic_gives_the_permit_back() {
    model(|now| {
        let gate = gate(1, now);
        let first = enter(&gate, now);
        let waiting = queue(&gate, now);
        let panicking = thread::spawn(move || {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _permit = first;
                // Without the message that a panic prints: it is one for each order.
                resume_unwind(Box::new("as intended"));
            }));
            assert!(caught.is_err());
        });
        let second = wait(waiting, now).expect("the permit came back");
        panicking.join().unwrap();
        expect(&gate, 1, now);
        drop(second);
        expect(&gate, 0, now);
    });
}

#[test]
fn an_endpoint_goes_as_its_permit_comes_back() {
    model(|now| {
        let gate = gate(1, now);
        gate.change(|state, out| state.add_lane(1, 1, now, out));
        let (first, second) = (enter(&gate, now), enter(&gate, now));
        assert_ne!(first.lane(), second.lane());
        let gone = first.lane();
        let waiting = queue(&gate, now);
        let retiring = {
            let gate = gate.clone();
            thread::spawn(move || gate.change(|state, out| state.retire_lane(gone, now, out)))
        };
        let releasing = thread::spawn(move || first.release(now));
        second.release(now);
        let third = wait(waiting, now).expect("one endpoint is left");
        retiring.join().unwrap();
        releasing.join().unwrap();
        expect(&gate, 1, now);
        third.release(now);
        expect(&gate, 0, now);
        assert_eq!(gate.snapshot(now).lanes.len(), 1);
    });
}

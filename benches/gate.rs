//! What admission costs a request. Target: at most 50 ns for the gate itself when nobody waits.
//!
//! ```sh
//! cargo bench --bench gate
//! ```

use std::{
    future::Future, hint::black_box, pin::pin, sync::Arc, task::Context, task::Poll, task::Waker,
};

use divan::Bencher;
use tidegate::{
    admission::{
        AdmissionLayer, Ask, Gate, Limiter,
        gate::{Entered, Permit},
        state::Settings,
    },
    clock,
    control::Outcome,
};

fn main() {
    divan::main();
}

fn gate(lanes: u32) -> Gate {
    let now = clock::now();
    let gate = Gate::new(Settings::default(), now);
    for lane in 0..lanes {
        gate.change(|state, out| state.add_lane(lane, 64, now, out));
    }
    gate
}

fn enter(gate: &Gate) -> Permit {
    match gate.enter(&Ask::default(), clock::now()) {
        Entered::Admitted(permit) => permit,
        other => panic!("there is room: {other:?}"),
    }
}

/// In and out again, the time given; by the number of endpoints.
#[divan::bench(args = [1, 4])]
fn admit_and_release(bencher: Bencher, lanes: u32) {
    let gate = gate(lanes);
    let now = clock::now();
    let ask = Ask::default();
    bencher.bench_local(|| match gate.enter(black_box(&ask), now) {
        Entered::Admitted(permit) => permit.release(now),
        other => panic!("there is room: {other:?}"),
    });
}

/// The same from two threads at once.
#[divan::bench(threads = 2)]
fn admit_and_release_contended(bencher: Bencher) {
    let gate = gate(1);
    let now = clock::now();
    bencher.bench(|| match gate.enter(&Ask::default(), now) {
        Entered::Admitted(permit) => permit.release(now),
        other => panic!("there is room: {other:?}"),
    });
}

/// One waits, the place comes free, it goes.
#[divan::bench]
fn queue_and_hand_over(bencher: Bencher) {
    let now = clock::now();
    let gate = Gate::new(Settings::default(), now);
    gate.change(|state, out| state.add_lane(0, 1, now, out));
    let mut held = Some(enter(&gate));
    let mut cx = Context::from_waker(Waker::noop());
    bencher.bench_local(|| {
        let Entered::Queued(mut ticket, _) = gate.enter(&Ask::default(), now) else {
            panic!("there is no room");
        };
        assert!(ticket.poll(&mut cx, now).is_pending());
        if let Some(permit) = held.take() {
            permit.release(now);
        }
        match ticket.poll(&mut cx, now) {
            Poll::Ready(Ok(permit)) => held = Some(permit),
            other => panic!("it is its turn: {other:?}"),
        }
    });
}

/// All that a request pays: two clock readings, the gate, the sample, the law's lock.
#[divan::bench]
fn acquire_and_complete(bencher: Bencher) {
    let limiter: Arc<Limiter> = AdmissionLayer::builder()
        .fixed(64)
        .build()
        .limiter()
        .clone();
    let mut cx = Context::from_waker(Waker::noop());
    bencher.bench_local(
        || match pin!(limiter.acquire(Ask::default())).poll(&mut cx) {
            Poll::Ready(Ok(permit)) => permit.complete(Outcome::Success),
            other => panic!("there is room: {other:?}"),
        },
    );
}

/// A reading of the clock, for comparison.
#[divan::bench]
fn clock_now() -> std::time::Instant {
    clock::now()
}

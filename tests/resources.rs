//! What the limit does when a real gunicorn's cores or memory run short, in a cgroup of its own.

#![allow(clippy::print_stdout)] // says what it leaves out, and why

mod common;

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use common::{Gunicorn, PATIENCE, Tidegate, cgroup::Group, children, get, until};
use serde_json::Value;
use tidegate::clock;

/// What `/status` shows of the only endpoint.
fn endpoint(tidegate: &Tidegate) -> Value {
    tidegate.status()["backend"]["endpoints"][0].clone()
}

/// Two workers with little to do, and then too much of it while a neighbour takes most of their quota.
#[test]
fn a_quota_that_is_cut_is_named_and_the_limit_follows() {
    let Some(group) = Group::cpu() else {
        println!("skipped: no cgroup can be made here");
        return;
    };
    group.set_cores(0.5);
    let app = Gunicorn::sync(2);
    group.take(app.process.pid());
    let tidegate = Tidegate::to(app.address()).start();
    let mut client = tidegate.client();
    // So many that what a request takes alone is known.
    for _ in 0..60 {
        assert_eq!(client.get("/cpu?ms=5").status, 200);
        thread::sleep(Duration::from_millis(20));
    }
    group.set_cores(0.1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = tidegate.client();
                while !stop.load(Relaxed) {
                    let status = client.get("/cpu?ms=5").status;
                    assert!([200, 503].contains(&status), "{status}");
                }
            });
        }
        let end = clock::now() + PATIENCE;
        let mut followed = false;
        while !followed && clock::now() < end {
            let endpoint = endpoint(&tidegate);
            followed =
                endpoint["bound_by"] == "cpu" && endpoint["limit"].as_u64().expect("a limit") < 3;
            thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Relaxed);
        assert!(followed, "{}", tidegate.status()["backend"]);
    });
    drop(app);
    drop(group);
}

/// Twenty-five requests a second of 20 ms each, whatever becomes of them, and then less CPU than they need: some are
/// refused, so that the others do not wait behind all that is too much.
#[test]
fn a_quota_that_falls_short_of_the_load_makes_nobody_wait_for_long() {
    const EVERY: Duration = Duration::from_millis(40);
    /// When it is cut, when it is judged from, and the end, in requests.
    const CUT: usize = 75;
    const SETTLED: usize = CUT + 125;
    const END: usize = SETTLED + 75;
    let Some(group) = Group::cpu() else {
        println!("skipped: no cgroup can be made here");
        return;
    };
    group.set_cores(1.0);
    let app = Gunicorn::sync(2);
    group.take(app.process.pid());
    let tidegate = Tidegate::to(app.address()).start();
    let target = tidegate.address();
    let mut named = false;
    let answers: Vec<(u16, Duration)> = thread::scope(|scope| {
        let start = clock::now();
        let ask = move || {
            let sent = clock::now();
            (get(target, "/cpu?ms=20").status, sent.elapsed())
        };
        let asked: Vec<_> = (0..END)
            .map(|nth| {
                let at = EVERY * nth as u32;
                thread::sleep(at.saturating_sub(start.elapsed()));
                if nth == CUT {
                    group.set_cores(0.4);
                }
                if nth >= CUT && !named {
                    named = endpoint(&tidegate)["bound_by"] == "cpu";
                }
                scope.spawn(ask)
            })
            .collect();
        let answers = asked.into_iter().map(|one| one.join().expect("an answer"));
        answers.collect()
    });
    let median = |of: &[(u16, Duration)]| {
        let mut served: Vec<Duration> = of
            .iter()
            .filter_map(|(status, took)| (*status == 200).then_some(*took))
            .collect();
        served.sort();
        assert!(
            served.len() >= of.len() / 4,
            "{} of {}",
            served.len(),
            of.len()
        );
        served[served.len() / 2]
    };
    let (before, after) = (median(&answers[..CUT]), median(&answers[SETTLED..]));
    assert!(named, "{}", tidegate.status()["backend"]);
    // The throttled backend alone takes about five times as long; who waits for `queue.max_wait` as well, 25 times.
    assert!(after < 12 * before, "{after:?} after {before:?}");
    drop(app);
    drop(group);
}

/// Thirty-two threads that need 24 MB each would take 768 MB at once, and the kernel would kill the worker.
#[test]
fn a_surge_that_would_not_fit_into_memory_kills_nobody() {
    let Some(group) = Group::memory() else {
        println!("skipped: no cgroup can be made here");
        return;
    };
    group.set_memory(360 << 20);
    let app = Gunicorn::gthread(32);
    group.take(app.process.pid());
    let workers = children(app.process.pid());
    let tidegate = Tidegate::to(app.address()).start();
    until("the limit of memory is seen", || {
        endpoint(&tidegate)["seen"]["memory"]["limit_bytes"] == 360 << 20
    });
    let target = tidegate.address();
    let surge: Vec<u16> = thread::scope(|scope| {
        let ask = || get(target, "/memory?mb=24&ms=300").status;
        let asking: Vec<_> = (0..48)
            .map(|_| scope.spawn(move || (ask(), ask())))
            .collect();
        let answered = asking.into_iter().map(|one| one.join().expect("an answer"));
        answered
            .flat_map(|(first, second)| [first, second])
            .collect()
    });
    let served = surge.iter().filter(|status| **status == 200).count();
    assert!(
        surge.iter().all(|status| [200, 503].contains(status)),
        "{surge:?}"
    );
    assert!(served >= 8, "{served} of {}", surge.len());
    assert_eq!(children(app.process.pid()), workers, "the same worker");
    drop(app);
    drop(group);
}

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

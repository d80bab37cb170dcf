//! Requests go to the worker that has nothing to do, where a worker accepts more than it can work on: real gunicorns
//! with threads.
#![allow(missing_docs)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use common::{Gunicorn, Tidegate, children, until, until_some};
use rustix::process::Signal;
use serde_json::Value;

const WORKERS: u32 = 4;
/// Clients at once, and how often each asks.
const CLIENTS: usize = 12;
const TIMES: usize = 8;

fn steering(tidegate: &Tidegate) -> Value {
    tidegate.status()["backend"]["endpoints"][0]["steering"].clone()
}

/// The workers that it knows, in order.
fn known(tidegate: &Tidegate) -> Vec<u32> {
    let document = steering(tidegate);
    let workers = document["workers"].as_array().cloned().unwrap_or_default();
    let pid = |worker: &Value| worker["pid"].as_u64().expect("a number") as u32;
    let mut pids: Vec<u32> = workers.iter().map(pid).collect();
    pids.sort_unstable();
    pids
}

fn workers(app: &Gunicorn) -> Vec<u32> {
    let mut pids = children(app.process.pid());
    pids.sort_unstable();
    pids
}

/// How many of the requests of many clients each worker has answered.
fn shares(tidegate: &Tidegate) -> BTreeMap<String, usize> {
    let asking = |_| {
        let mut client = tidegate.client();
        let mut answers = Vec::new();
        while answers.len() < TIMES {
            let answer = client.get("/pid?ms=40");
            match answer.status {
                200 => answers.push(answer.text()),
                // The clients are an overload that stays.
                503 => thread::sleep(Duration::from_millis(10)),
                _ => panic!("{answer:?}"),
            }
        }
        answers
    };
    let mut shares = BTreeMap::new();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || asking(number)))
            .collect();
        for client in clients {
            for pid in client.join().expect("answers") {
                *shares.entry(pid).or_default() += 1;
            }
        }
    });
    shares
}

/// Waits until each worker has had its share, or `least` of it: one that got no CPU for a while is late once. How often
/// all clients have asked for that.
#[track_caller]
fn assert_even(tidegate: &Tidegate, least: f64) -> usize {
    let fair = (CLIENTS * TIMES) as f64 / f64::from(WORKERS);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let shares = shares(tidegate);
        let smallest = shares.values().min().copied().unwrap_or(0) as f64;
        let all = shares.len() == WORKERS as usize;
        seen.push(shares);
        if all && smallest >= least * fair {
            return seen.len();
        }
    }
    panic!("{seen:?}, {}", steering(tidegate));
}

/// Without steering one of the workers often has nothing at all: it is a matter of who accepts first.
#[test]
fn kept_connections_are_used_evenly() {
    let tcp = Gunicorn::gthreads(WORKERS, 1);
    let unix = Gunicorn::unix(&["--workers=4", "--worker-class=gthread", "--threads=1"]);
    for app in [tcp, unix] {
        let tidegate = Tidegate::to(app.address())
            .set("backend.keepalive=true")
            .start();
        assert_eq!(known(&tidegate), workers(&app));
        // The first requests find out whose the connections are.
        shares(&tidegate);
        assert_even(&tidegate, 0.75);
        let document = steering(&tidegate);
        for worker in document["workers"].as_array().expect("workers") {
            assert_eq!(worker["in_flight"], 0, "{document}");
            assert!(worker["connections"].as_u64() > Some(0), "{document}");
        }
    }
}

#[test]
fn fresh_connections_are_looked_at_before_they_are_used() {
    let app = Gunicorn::gthreads(WORKERS, 1);
    let tidegate = Tidegate::to(app.address()).start();
    shares(&tidegate);
    let rounds = assert_even(&tidegate, 0.65);
    let document = steering(&tidegate);
    assert!(document["looked"].as_u64() > Some(0), "{document}");
    assert!(
        document["turned_away"].as_u64() <= document["looked"].as_u64(),
        "{document}"
    );
    // What was turned away never was a request.
    let sent = app.started("/pid");
    // (One before that, to see whether gunicorn answers.)
    assert_eq!(sent, 1 + (1 + rounds) * CLIENTS * TIMES);
    for worker in document["workers"].as_array().expect("workers") {
        assert_eq!(worker["connections"], 0, "{document}");
    }
}

#[test]
fn workers_that_are_replaced_are_followed() {
    let mut app = Gunicorn::gthreads(2, 1);
    let tidegate = Tidegate::to(app.address())
        .set("backend.keepalive=true")
        .start();
    let before = workers(&app);
    assert_eq!(known(&tidegate), before);
    shares(&tidegate);
    app.process.signal(Signal::HUP);
    until("the new workers are known", || {
        let now = workers(&app);
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid)) && known(&tidegate) == now
    });
    let answered = shares(&tidegate);
    assert_eq!(answered.values().sum::<usize>(), CLIENTS * TIMES);
}

/// A WebSocket holds a thread for as long as it lasts.
#[test]
fn a_worker_with_a_tunnel_is_busy() {
    let app = Gunicorn::gthreads(2, 1);
    let tidegate = Tidegate::to(app.address())
        .set("backend.keepalive=true")
        .start();
    let open = || {
        let mut tunnel = tidegate.client();
        tunnel.send(
            "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n",
        );
        assert_eq!(tunnel.try_head().expect("a head").status, 101);
        tunnel
    };
    // Where nobody has accepted a connection for long, a request may be sent to whoever it will be.
    let tunnel = until_some("all requests are the other worker's", || {
        let tunnel = open();
        let mut client = tidegate.client();
        client.set_timeout(Duration::from_secs(2));
        let answers: Option<BTreeSet<String>> = (0..8)
            .map(|_| {
                client.ask("/pid?ms=20");
                Some(client.try_response("GET").ok()?.text())
            })
            .collect();
        (answers?.len() == 1).then_some(tunnel)
    });
    let in_flight = || -> Vec<u64> {
        let document = steering(&tidegate);
        let workers = document["workers"].as_array().cloned().unwrap_or_default();
        let count = |worker: &Value| worker["in_flight"].as_u64().expect("a number");
        workers.iter().map(count).collect()
    };
    until("only the tunnel is left", || {
        in_flight().iter().sum::<u64>() == 1
    });
    drop(tunnel);
    until("the tunnel is over", || in_flight() == [0, 0]);
}

#[test]
fn there_is_nothing_to_steer_where_a_worker_accepts_only_what_it_works_on() {
    let sync = Gunicorn::sync(2);
    let single = Gunicorn::gthread(4);
    let several = Gunicorn::gthreads(2, 2);
    let cases = [
        (&sync, "discovery.proc=true"),
        (&single, "discovery.proc=true"),
        (&several, "discovery.proc=false"),
    ];
    for (app, setting) in cases {
        let tidegate = Tidegate::to(app.address()).set(setting).start();
        assert_eq!(tidegate.get("/").status, 200);
        assert_eq!(steering(&tidegate), Value::Null, "{setting}");
    }
    let tidegate = Tidegate::to(several.address()).start();
    assert_eq!(known(&tidegate), workers(&several));
}

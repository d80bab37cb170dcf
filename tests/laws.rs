//! The laws, end to end: chosen, changed by a reload, watched in another's shadow, and their memory
//! across a restart.

mod common;

use std::{fs, io::Write, net::TcpStream, time::Duration};

use common::{Gunicorn, Tidegate, since, try_get, until};
use rustix::process::Signal;
use tidegate::clock;

/// Keeps so many clients busy for that long; how many answers were 200.
fn load(gate: &Tidegate, clients: usize, time: Duration) -> usize {
    let start = clock::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = 0;
                    while since(start) < time {
                        let answer = try_get(gate.address(), "/sleep?ms=10").expect("an answer");
                        assert!([200, 503].contains(&answer.status), "{answer:?}");
                        served += usize::from(answer.status == 200);
                    }
                    served
                })
            })
            .collect();
        let served = clients.into_iter().map(|client| client.join());
        served.map(|served| served.expect("no panic")).sum()
    })
}

/// Keeps four clients busy until so many answers were 200, and for a second at least.
#[track_caller]
fn load_until_served(gate: &Tidegate, least: usize) {
    let mut served = 0;
    until("enough are served", || {
        served += load(gate, 4, Duration::from_secs(1));
        served > least
    });
}

fn endpoint(gate: &Tidegate) -> serde_json::Value {
    gate.status()["backend"]["endpoints"][0].clone()
}

fn shadow(gate: &Tidegate, law: &str) -> f64 {
    gate.metric("tidegate_shadow_limit", &[("law", law)])
}

#[test]
fn a_reload_changes_the_law_and_its_shadows() {
    let app = Gunicorn::sync(2);
    let toml = |law: &str, shadows: &str| {
        format!(
            "[backend]\nendpoints = [\"{}\"]\n[limit]\nalgorithm = \"{law}\"\nshadow = [{shadows}]\n",
            app.address()
        )
    };
    let gate = Tidegate::run()
        .toml(&toml("gradient", "\"aimd\", \"vegas\""))
        .start();
    assert_eq!(endpoint(&gate)["law"], "gradient");
    load_until_served(&gate, 20);
    assert!(shadow(&gate, "aimd") >= 1.0 && shadow(&gate, "vegas") >= 1.0);
    assert!(shadow(&gate, "gradient") == 0.0, "it is in force");
    let decision = gate.status()["decisions"][0].clone();
    assert!(
        decision["evidence"]["ceiling"].as_u64() >= Some(1),
        "{decision}"
    );

    fs::write(gate.file(), toml("vegas", "\"gradient\"")).expect("it is written");
    until("the law is vegas", || endpoint(&gate)["law"] == "vegas");
    load_until_served(&gate, 20);
    assert!(shadow(&gate, "gradient") >= 1.0);
    assert_eq!(
        endpoint(&gate)["shadow_limits"]["aimd"],
        serde_json::Value::Null
    );
}

#[test]
fn a_backend_that_drives_its_clients_away_is_still_measured() {
    let app = Gunicorn::sync(2);
    let gate = Tidegate::to(app.address()).start();
    let canceled = || gate.metric("tidegate_canceled_requests_total", &[]);
    let mut asked = 0;
    // On a machine that pauses, some of them are answered before they have gone.
    while asked < 30 || canceled() < 20.0 {
        assert!(asked < 1000, "nobody has left");
        asked += 1;
        let mut client = TcpStream::connect(gate.address()).expect("it listens");
        client
            .write_all(b"GET /sleep?ms=60 HTTP/1.1\r\nHost: app\r\n\r\n")
            .expect("it reads");
        std::thread::sleep(Duration::from_millis(30));
        // Gone, long before the answer.
    }
    until("the law has samples", || {
        let status = gate.status();
        let decisions = status["decisions"].as_array().expect("a list").clone();
        let samples = |d: &serde_json::Value| d["evidence"]["samples"].as_u64() >= Some(8);
        decisions.iter().any(samples)
    });
}

#[test]
fn what_was_learned_outlives_a_restart() {
    let app = Gunicorn::sync(2);
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("state.json");
    let start = || {
        Tidegate::to(app.address())
            .set(format!("limit.state_file={}", file.display()))
            .start()
    };
    let mut first = start();
    load(&first, 1, Duration::from_secs(2));
    load(&first, 5, Duration::from_secs(2));
    until("there is a baseline", || {
        load(&first, 1, Duration::from_millis(300));
        endpoint(&first)["baseline_seconds"].is_f64()
    });
    first.process.signal(Signal::TERM);
    assert_eq!(first.process.exit_code(), 0);

    let second = start();
    let known = endpoint(&second);
    assert!(known["baseline_seconds"].is_f64(), "{known}");
    assert!(
        !known["capacity_curve"]
            .as_array()
            .expect("a list")
            .is_empty(),
        "{known}"
    );
    assert_eq!(second.events("goes on from limit.state_file").len(), 1);
    drop(second);

    fs::write(&file, "rubbish").expect("it is written");
    let third = start();
    assert_eq!(third.events("learning anew").len(), 1);
    assert_eq!(third.get("/").status, 200);
    assert!(endpoint(&third)["baseline_seconds"].is_null());
}

//! What is told of it: the dry run, the metrics, the limit by hand, readiness.

use super::*;

#[test]
fn a_dry_run_refuses_nothing_and_counts_what_it_would_refuse() {
    let app = Gunicorn::gthread(6);
    let tidegate = Tidegate::to(app.address())
        .limit(1)
        .arg("--dry-run")
        .set("queue.capacity=1")
        .start();
    let answers = at_once(&tidegate, 6, "/sleep?ms=1500");
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(app.most_at_once("/sleep") > 2, "nobody waited");
    let metrics = tidegate.metrics();
    assert!(metrics.sum("tidegate_would_reject_requests_total", &[]) >= 3.0);
    assert_eq!(metrics.sum("tidegate_rejected_requests_total", &[]), 0.0);
    assert_eq!(tidegate.status()["dry_run"], true);
    tidegate.until_idle();
}

#[test]
fn the_metrics_account_for_every_request() {
    let app = Gunicorn::gthread(4);
    let tidegate = Tidegate::to(app.address())
        .limit(2)
        .set("queue.capacity=3")
        .set("queue.max_wait=150ms")
        .start();
    let mut sent = 0;
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    for _ in 0..3 {
        for answer in at_once(&tidegate, 20, "/sleep?ms=60") {
            sent += 1;
            *seen.entry(answer.status).or_default() += 1;
        }
    }
    for path in ["/status?code=404", "/status?code=500", "/"] {
        sent += 1;
        *seen.entry(tidegate.get(path).status).or_default() += 1;
    }
    tidegate.until_idle();
    let count = |status: u16| seen.get(&status).copied().unwrap_or(0) as f64;
    assert!(count(200) > 5.0 && count(503) > 5.0, "{seen:?}");
    let metrics = tidegate.metrics();
    let total = |labels: &[(&str, &str)]| metrics.sum("tidegate_requests_total", labels);
    assert_eq!(total(&[]), f64::from(sent));
    for status in [200, 404, 500] {
        let code = status.to_string();
        assert_eq!(
            total(&[("code", &code), ("source", "backend")]),
            count(status)
        );
    }
    assert_eq!(
        total(&[("code", "503"), ("source", "tidegate")]),
        count(503)
    );
    assert_eq!(total(&[("code", "503"), ("source", "backend")]), 0.0);
    assert_eq!(
        metrics.sum("tidegate_rejected_requests_total", &[]),
        count(503)
    );
    let served = f64::from(sent) - count(503);
    // What a request took is noted when its answer is written, which its client may have seen before that.
    tidegate.until_metric("tidegate_request_seconds_count", &[], f64::from(sent));
    assert_eq!(
        metrics.sum("tidegate_backend_seconds_count", &[]),
        served,
        "a refused request is never observed there"
    );
    assert_eq!(
        metrics.sum(
            "tidegate_queue_wait_seconds_count",
            &[("outcome", "admitted")]
        ),
        served
    );
    assert_eq!(
        metrics.sum("tidegate_first_byte_seconds_count", &[]),
        f64::from(sent)
    );
    assert_eq!(metrics.sum("tidegate_canceled_requests_total", &[]), 0.0);
    assert_eq!(
        metrics.sum("tidegate_backend_connections_total", &[]),
        served
    );
    let totals = &tidegate.status()["totals"];
    assert_eq!(totals["requests"], sent);
    assert_eq!(totals["refused"], count(503) as u64);
}

/// What never was in the queue has not waited.
#[test]
fn only_those_that_waited_are_said_to_have_waited() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.capacity=1")
        .set("queue.max_wait=3s")
        .start();
    let mut held = occupied(&backend, &tidegate);
    let mut waits = tidegate.client();
    waits.ask("/waits");
    tidegate.until_metric(QUEUED, &[], 1.0);
    let full = tidegate.get("/full");
    assert_eq!(full.reason(), "queue_full");
    assert_eq!(waits.response().reason(), "queue_timeout");
    let timeouts = |what: &str| {
        let name = format!("tidegate_queue_wait_seconds_{what}");
        tidegate.metric(&name, &[("outcome", "timeout")])
    };
    assert_eq!(timeouts("count"), 1.0);
    assert!(timeouts("sum") >= 3.0, "{}", timeouts("sum"));
    let queued = |path: &str| {
        until_some("it is in the log", || {
            let entries = tidegate.events("request");
            let entry = entries.into_iter().find(|entry| entry["path"] == path)?;
            entry["queue_ms"].as_f64()
        })
    };
    assert_eq!(queued("/full"), 0.0);
    assert!(queued("/waits") >= 3000.0, "{}", queued("/waits"));
    backend.release(1);
    assert_eq!(held.response().status, 200);
}

#[test]
fn the_limit_can_be_set_by_hand_and_given_back() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut clients: Vec<Client> = (0..3).map(|_| tidegate.client()).collect();
    for client in &mut clients {
        client.ask("/");
    }
    tidegate.until_metric(QUEUED, &[], 2.0);
    assert_eq!(tidegate.status()["bound_by"], "configured");

    let answer = tidegate.admin_post("/limit", "{\"limit\": 3}");
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Who waited goes at once.
    tidegate.until_metric(FLIGHT, &[], 3.0);
    until("all three are there", || backend.requests().len() == 3);
    assert_eq!(tidegate.status()["limit"], 3);

    // A lower one revokes nothing; it holds from the next release on.
    assert_eq!(
        tidegate
            .admin_post("/limit", "{\"limit\": \"auto\"}")
            .status,
        200
    );
    assert_eq!(tidegate.status()["limit"], 1);
    assert_eq!(tidegate.metric(FLIGHT, &[]), 3.0);
    let mut fourth = tidegate.client();
    fourth.ask("/");
    tidegate.until_metric(QUEUED, &[], 1.0);
    backend.release(2);
    tidegate.until_metric(FLIGHT, &[], 1.0);
    assert_eq!(backend.requests().len(), 3, "the fourth still waits");
    backend.release(2);
    for client in clients.iter_mut().chain([&mut fourth]) {
        assert_eq!(client.response().status, 200);
    }

    for wrong in ["{\"limit\": 0}", "{\"limit\": -1}", "nonsense", ""] {
        let answer = tidegate.admin_post("/limit", wrong);
        assert_eq!(answer.status, 400, "{wrong}");
    }
    let answer = tidegate.admin_post("/limit", "{\"limit\": 100000}");
    assert_eq!(answer.status, 422);
    assert_eq!(tidegate.status()["limit"], 1);
    assert_eq!(tidegate.admin_get("/limit").status, 405);
    for direction in ["up", "down"] {
        let labels = [("direction", direction), ("reason", "configured")];
        let changes = tidegate.metric("tidegate_limit_changes_total", &labels);
        assert_eq!(changes, 1.0, "{direction}");
    }
}

#[test]
fn the_adaptive_law_says_what_holds_it_and_refuses_nobody_at_low_load() {
    let app = Gunicorn::gthread(4);
    let tidegate = Tidegate::to(app.address()).start();
    for _ in 0..10 {
        let answers = at_once(&tidegate, 2, "/sleep?ms=10");
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    let status = tidegate.status();
    let bound_by = status["bound_by"].as_str().expect("a word");
    let words = [
        "workers",
        "cpu",
        "memory",
        "latency",
        "accept_queue",
        "errors",
        "configured",
        "idle",
    ];
    assert!(words.contains(&bound_by), "{bound_by}");
    let metrics = tidegate.metrics();
    assert_eq!(
        metrics.sum("tidegate_limit_bound_by", &[]),
        1.0,
        "exactly one reason is 1"
    );
    assert_eq!(metrics.sum("tidegate_rejected_requests_total", &[]), 0.0);
    assert!(status["limit"].as_u64().expect("a number") >= 1);
}

#[test]
fn readyz_follows_the_backend_and_not_the_load() {
    let (listener, address) = common::raw::reserved_port();
    common::raw::refuse(&listener);
    let tidegate = Tidegate::to(&address)
        .limit(1)
        .set("queue.max_wait=1ms")
        .start();
    let ready = || tidegate.admin_get("/readyz?verbose");
    let down = ready();
    assert_eq!(down.status, 503);
    assert!(down.text().contains(&address), "{}", down.text());
    assert_eq!(tidegate.metric("tidegate_ready", &[]), 0.0);
    assert_eq!(tidegate.admin_get("/livez").status, 200);

    common::raw::accept(&listener);
    let backend = Raw::on(listener, |mut conn| {
        conn.request();
        conn.sees_end_within(common::PATIENCE);
    });
    until("it is ready", || ready().status == 200);
    assert_eq!(tidegate.metric("tidegate_ready", &[]), 1.0);
    let mut held = tidegate.client();
    held.ask("/");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    assert_eq!(tidegate.get("/").status, 503, "saturated");
    assert_eq!(ready().status, 200);
    drop((held, backend));
    until("it is not ready any more", || ready().status == 503);
}

#[test]
fn a_standing_overload_is_answered_promptly_one_way_or_the_other() {
    let app = Gunicorn::gthread(4);
    let tidegate = Tidegate::to(app.address())
        .limit(4)
        .set("queue.max_wait=500ms")
        .start();
    let address = tidegate.address().to_owned();
    let outcome: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let load: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let (mut served, mut refused) = (0, 0);
                    for _ in 0..12 {
                        let start = clock::now();
                        match try_get(&address, "/sleep?ms=20").expect("an answer") {
                            answer if answer.status == 200 => served += 1,
                            answer => {
                                assert_eq!(answer.status, 503, "{answer:?}");
                                assert!(since(start) < Duration::from_secs(10));
                                refused += 1;
                            }
                        }
                    }
                    (served, refused)
                })
            })
            .collect();
        load.into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    assert_eq!(app.most_at_once("/sleep"), 4);
    let served: usize = outcome.iter().map(|(served, _)| served).sum();
    assert!(served >= 40, "the workers were kept busy: {outcome:?}");
    tidegate.until_idle();
}

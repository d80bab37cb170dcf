//! The limit, its queue and its refusals, end to end.

mod common;

#[path = "admission/seen.rs"]
mod seen;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{Client, Gunicorn, Held, Raw, Response, Tidegate, since, try_get, until, until_some};
use tidegate::clock;

const FLIGHT: &str = "tidegate_in_flight_requests";
const QUEUED: &str = "tidegate_queued_requests";

/// So many GETs at the same time, each over a connection of its own.
fn at_once(tidegate: &Tidegate, count: usize, path: &str) -> Vec<Response> {
    let mut clients: Vec<Client> = (0..count).map(|_| tidegate.client()).collect();
    for client in &mut clients {
        client.ask(path);
    }
    clients.iter_mut().map(Client::response).collect()
}

/// One request in flight, which the backend holds.
fn occupied(backend: &Held, tidegate: &Tidegate) -> Client {
    let mut client = tidegate.client();
    client.ask("/held");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    until("the backend has it", || !backend.requests().is_empty());
    client
}

/// What the backend was asked for, in the order in which it came.
fn targets(backend: &Held) -> Vec<String> {
    let target = |line: &str| line.split(' ').nth(1).unwrap_or("").to_owned();
    let requests = backend.requests();
    requests
        .iter()
        .map(|request| target(request.line()))
        .collect()
}

#[test]
fn no_more_than_the_limit_run_at_once_and_the_others_wait_their_turn() {
    let app = Gunicorn::gthread(8);
    let tidegate = Tidegate::to(app.address())
        .limit(3)
        .set("queue.max_wait=20s")
        .start();
    let answers = at_once(&tidegate, 24, "/sleep?ms=40");
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(app.most_at_once("/sleep"), 3, "never more, and not fewer");
    let metrics = tidegate.metrics();
    assert_eq!(metrics.sum("tidegate_concurrency_limit", &[]), 3.0);
    assert_eq!(
        metrics.sum(
            "tidegate_queue_wait_seconds_count",
            &[("outcome", "admitted")]
        ),
        24.0
    );
    tidegate.until_idle();
}

#[test]
fn several_data_plane_threads_share_one_limit() {
    let app = Gunicorn::gthread(8);
    let mut tidegate = Tidegate::to(app.address())
        .limit(3)
        .set("server.threads=3")
        .set("queue.max_wait=20s")
        .start();
    let answers = at_once(&tidegate, 18, "/sleep?ms=40");
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(app.most_at_once("/sleep"), 3);
    assert_eq!(tidegate.stop(), 0);
}

#[test]
fn a_full_queue_refuses_with_a_whole_problem_document() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.capacity=2")
        .set("queue.max_wait=20s")
        .start();
    let mut served = vec![occupied(&backend, &tidegate)];
    for _ in 0..2 {
        let mut client = tidegate.client();
        client.ask("/");
        served.push(client);
    }
    tidegate.until_metric(QUEUED, &[], 2.0);
    assert_eq!(tidegate.metric("tidegate_queue_capacity", &[]), 2.0);

    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: app\r\nX-Request-Id: me-1\r\n\r\n");
    let refused = client.response();
    assert_eq!(refused.status, 503);
    assert_eq!(refused.reason(), "queue_full");
    assert_eq!(
        refused.header("content-type").as_deref(),
        Some("application/problem+json")
    );
    assert_eq!(refused.header("cache-control").as_deref(), Some("no-store"));
    assert_eq!(refused.header("x-request-id").as_deref(), Some("me-1"));
    assert!(refused.header("retry-after").is_some());
    let document = refused.json();
    let keys: Vec<&str> = document
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys.into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from(["type", "title", "status", "detail", "reason", "request_id"])
    );
    assert_eq!(document["title"], "Service Unavailable");
    assert_eq!(document["status"], 503);
    assert_eq!(document["reason"], "queue_full");
    assert_eq!(document["request_id"], "me-1");
    // Its connection is still good; and who was there before is served.
    backend.release(4);
    for waiting in &mut served {
        assert_eq!(waiting.response().status, 200);
    }
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn who_waits_for_max_wait_is_refused_then_and_not_before() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=300ms")
        .start();
    let mut held = occupied(&backend, &tidegate);
    let start = clock::now();
    let refused = tidegate.get("/");
    let waited = since(start);
    assert_eq!(
        (refused.status, refused.reason()),
        (503, "queue_timeout".into())
    );
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    assert_eq!(
        tidegate.metric(
            "tidegate_queue_wait_seconds_count",
            &[("outcome", "timeout")]
        ),
        1.0
    );
    backend.release(1);
    assert_eq!(held.response().status, 200);
    assert_eq!(backend.requests().len(), 1, "the refused one never came");
}

#[test]
fn retry_after_is_spread_by_its_jitter_and_can_be_turned_off() {
    let backend = Held::start();
    let mut tidegate = Tidegate::to(backend.address())
        .toml(
            "[limit]\nalgorithm = \"fixed\"\ninitial = 1\n[queue]\nmax_wait = \"1ms\"\n\
             [reject]\nretry_after = \"10s\"\nretry_after_jitter = 0.5",
        )
        .start();
    let _held = occupied(&backend, &tidegate);
    let mut client = tidegate.client();
    let seen: BTreeSet<u32> = (0..40)
        .map(|_| {
            let refused = client.get("/");
            assert_eq!(refused.status, 503);
            let after = refused.header("retry-after").expect("a Retry-After");
            after.parse().expect("whole seconds")
        })
        .collect();
    assert!(
        seen.iter().all(|after| (10..=15).contains(after)),
        "{seen:?}"
    );
    assert!(seen.len() >= 3, "{seen:?}");

    std::fs::write(
        tidegate.file(),
        "[limit]\nalgorithm = \"fixed\"\ninitial = 1\n[queue]\nmax_wait = \"1ms\"\n\
         [reject]\nretry_after = \"off\"\nstatus = 429\nbody = \"text\"",
    )
    .expect("a new configuration");
    assert_eq!(tidegate.admin_post("/reload", "").status, 200);
    let refused = client.get("/");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(refused.reason(), "queue_timeout");
    assert_eq!(
        refused.header("content-type").as_deref(),
        Some("text/plain; charset=utf-8")
    );
    assert!(!refused.text().trim().is_empty());
    assert_eq!(
        tidegate.metric("tidegate_requests_total", &[("code", "429")]),
        1.0
    );
    backend.release(1);
    tidegate.stop();
}

#[test]
fn a_refusal_can_have_the_body_of_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = dir.path().join("busy.html");
    std::fs::write(&page, "<h1>Busy</h1>").expect("a page");
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=1ms")
        .set(format!("reject.body=file:{}", page.display()))
        .start();
    let mut held = occupied(&backend, &tidegate);
    let refused = tidegate.get("/");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.text(), "<h1>Busy</h1>");
    let media_type = refused.header("content-type").expect("a type");
    assert!(media_type.starts_with("text/html"), "{media_type}");
    backend.release(1);
    held.response();
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_in_time() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut held = occupied(&backend, &tidegate);
    let mut client = tidegate.client();
    let mut within = |millis: u32| {
        let start = clock::now();
        client.send(format!(
            "GET / HTTP/1.1\r\nHost: app\r\nX-Request-Timeout-Ms: {millis}\r\n\r\n"
        ));
        let refused = client.response();
        assert_eq!((refused.status, refused.reason()), (503, "deadline".into()));
        since(start)
    };
    assert!(within(0) < Duration::from_secs(5));
    let waited = within(200);
    assert!(
        (Duration::from_millis(100)..Duration::from_secs(10)).contains(&waited),
        "{waited:?}"
    );
    backend.release(1);
    held.response();
    assert_eq!(
        tidegate.metric(
            "tidegate_rejected_requests_total",
            &[("reason", "deadline")]
        ),
        2.0
    );
}

#[test]
fn a_routes_cap_leaves_room_for_the_others() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .toml(
            "[limit]\nalgorithm = \"fixed\"\ninitial = 4\n[queue]\nmax_wait = \"200ms\"\n\
             [[route]]\nname = \"reports\"\npath = \"/reports/*\"\nmax_in_flight = 1",
        )
        .start();
    let mut report = tidegate.client();
    report.ask("/reports/1");
    tidegate.until_metric(FLIGHT, &[], 1.0);
    let refused = tidegate.get("/reports/2");
    assert_eq!(
        (refused.status, refused.reason()),
        (503, "route_limit".into())
    );
    let mut other = tidegate.client();
    other.ask("/");
    tidegate.until_metric(FLIGHT, &[], 2.0);
    backend.release(2);
    assert_eq!(other.response().status, 200);
    assert_eq!(report.response().status, 200);
    let metrics = tidegate.metrics();
    assert_eq!(
        metrics.sum(
            "tidegate_rejected_requests_total",
            &[("route", "reports"), ("reason", "route_limit")]
        ),
        1.0
    );
    assert_eq!(
        metrics.sum("tidegate_requests_total", &[("route", "reports")]),
        2.0
    );
    assert_eq!(
        metrics.sum("tidegate_requests_total", &[("route", "default")]),
        1.0
    );
}

#[test]
fn the_important_go_first_whatever_the_order_of_arrival() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .toml(
            "[limit]\nalgorithm = \"fixed\"\ninitial = 1\n\
             [queue]\nmax_wait = \"20s\"\ndiscipline = \"fifo\"\n\
             [[route]]\nname = \"low\"\npath = \"/low/*\"\nclass = \"low\"\n\
             [[route]]\nname = \"high\"\npath = \"/high\"\nclass = \"high\"\n\
             [[route]]\nname = \"health\"\npath = \"/health\"\nclass = \"protected\"",
        )
        .start();
    let mut held = occupied(&backend, &tidegate);
    let mut waiting = Vec::new();
    for (n, path) in ["/low/1", "/normal", "/low/2", "/high", "/health"]
        .into_iter()
        .enumerate()
    {
        let mut client = tidegate.client();
        client.ask(path);
        tidegate.until_metric(QUEUED, &[], n as f64 + 1.0);
        waiting.push(client);
    }
    assert_eq!(tidegate.metric(QUEUED, &[("class", "low")]), 2.0);
    backend.release(6);
    held.response();
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
    let order = targets(&backend);
    assert_eq!(
        order,
        ["/held", "/health", "/high", "/normal", "/low/1", "/low/2"]
    );
}

#[test]
fn a_client_that_floods_leaves_half_of_the_queue_to_others() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .toml(
            "[limit]\nalgorithm = \"fixed\"\ninitial = 1\n\
             [queue]\ncapacity = 4\nmax_wait = \"20s\"\nclient_key = \"header:X-Tenant\"",
        )
        .start();
    let mut held = occupied(&backend, &tidegate);
    let ask = |tenant: &str| {
        let mut client = tidegate.client();
        client.send(format!(
            "GET / HTTP/1.1\r\nHost: app\r\nX-Tenant: {tenant}\r\n\r\n"
        ));
        client
    };
    let mut flood = [ask("a"), ask("a")];
    tidegate.until_metric(QUEUED, &[], 2.0);
    let refused = ask("a").response();
    assert_eq!(
        (refused.status, refused.reason()),
        (503, "queue_full".into())
    );
    let mut others = [ask("b"), ask("c")];
    tidegate.until_metric(QUEUED, &[], 4.0);
    backend.release(5);
    assert_eq!(held.response().status, 200);
    for client in flood.iter_mut().chain(&mut others) {
        assert_eq!(client.response().status, 200);
    }
    tidegate.until_idle();
}

#[test]
fn a_retry_waits_behind_those_who_ask_for_the_first_time() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=20s")
        .start();
    let mut held = occupied(&backend, &tidegate);
    let mut waiting = Vec::new();
    for (n, (path, field)) in [
        ("/retry", "X-Retry-Count: 1"),
        ("/attempt", "X-Envoy-Attempt-Count: 2"),
        ("/first", "X-Envoy-Attempt-Count: 1"),
        ("/plain", "Accept: */*"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = tidegate.client();
        client.send(format!(
            "GET {path} HTTP/1.1\r\nHost: app\r\n{field}\r\n\r\n"
        ));
        tidegate.until_metric(QUEUED, &[], n as f64 + 1.0);
        waiting.push(client);
    }
    assert_eq!(tidegate.metric(QUEUED, &[("class", "low")]), 2.0);
    backend.release(5);
    held.response();
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
    let order = targets(&backend);
    assert_eq!(order, ["/held", "/first", "/plain", "/retry", "/attempt"]);
}

const HEALTH: &str = "[[route]]\nname = \"health\"\npath = \"/health\"\nclass = \"protected\"";

/// A gate of so many places in front of a backend whose `/health` is protected.
fn checked(backend: &Held, limit: u32, max_wait: &str) -> Tidegate {
    Tidegate::to(backend.address())
        .limit(limit)
        .set(format!("queue.max_wait={max_wait}"))
        .toml(HEALTH)
        .start()
}

#[test]
fn a_health_check_of_a_busy_backend_gets_the_last_real_answer_but_not_for_ever() {
    let backend = Held::start();
    let tidegate = checked(&backend, 1, "20s");
    let mut prober = tidegate.client();
    prober.ask("/health");
    backend.release(1);
    let fresh = prober.response();
    assert_eq!((fresh.status, fresh.header("age")), (200, None));

    let mut slow = tidegate.client();
    slow.ask("/slow");
    until("the backend has it", || backend.requests().len() == 2);
    for _ in 0..2 {
        let recalled = tidegate.get("/health");
        assert_eq!(recalled.status, 200, "a busy backend is not a dead one");
        assert_eq!(recalled.body, fresh.body);
        assert!(recalled.header("age").is_some());
    }
    assert_eq!(
        tidegate.metric(QUEUED, &[("class", "protected")]),
        1.0,
        "one real check is in line"
    );
    assert_eq!(
        tidegate.metric(
            "tidegate_requests_total",
            &[("route", "health"), ("source", "tidegate")]
        ),
        2.0
    );
    // Nothing stands in for a third: it takes its time, and its prober has none.
    let mut missed = tidegate.client();
    missed.ask("/health");
    tidegate.until_metric(QUEUED, &[("class", "protected")], 2.0);
    drop(missed);

    backend.release(2);
    assert_eq!(slow.response().status, 200);
    until("the check in line is answered", || {
        backend.requests().len() == 3
    });
    tidegate.until_idle();
    // On a machine that pauses, the last answer may stand in for one that is late.
    until("the answer is a fresh one", || {
        backend.release(1);
        let answer = tidegate.get("/health");
        assert_eq!(answer.status, 200);
        answer.header("age").is_none()
    });
}

/// A protected route need not be one for health checks.
#[test]
fn a_protected_answer_reaches_nobody_else() {
    let backend = Held::start();
    let tidegate = Tidegate::to(backend.address())
        .toml(
            "[limit]\nalgorithm = \"fixed\"\ninitial = 1\n[queue]\nmax_wait = \"20s\"\n\
             [[route]]\nname = \"account\"\npath = \"/account\"\nclass = \"protected\"",
        )
        .start();
    let mut one = tidegate.client();
    one.send("GET /account HTTP/1.1\r\nHost: app\r\nCookie: user=one\r\n\r\n");
    backend.release(1);
    assert_eq!(one.response().status, 200);
    let mut slow = tidegate.client();
    slow.ask("/slow");
    until("the backend has it", || backend.requests().len() == 2);
    let mut other = tidegate.client();
    other.send("GET /account HTTP/1.1\r\nHost: app\r\nCookie: user=other\r\n\r\n");
    tidegate.until_metric(QUEUED, &[("class", "protected")], 1.0);
    backend.release(2);
    assert_eq!(slow.response().status, 200);
    let answer = other.response();
    assert_eq!((answer.status, answer.header("age")), (200, None));
    assert_eq!(backend.requests().len(), 3, "it was asked");
}

#[test]
fn a_check_at_another_host_is_another_check() {
    // Behind a proxy that is trusted, the host that it was asked for counts as well, and so does all else that an
    // application may go by.
    for (fields, setting) in [
        ("Host: HOST", "headers.via=true"),
        ("Host: app\r\nUser-Agent: HOST", "headers.via=true"),
        (
            "Host: app\r\nX-Forwarded-Host: HOST",
            "headers.trusted_proxies=127.0.0.0/8",
        ),
        // What tidegate adds to a request makes it no other.
        ("Host: HOST", "headers.forwarded=true"),
        ("Host: HOST", "backend.profile=uwsgi"),
    ] {
        let backend = Held::start();
        let tidegate = Tidegate::to(backend.address())
            .limit(1)
            .set("queue.max_wait=20s")
            .set(setting)
            .toml(HEALTH)
            .start();
        let ask = |host: &str| {
            let mut prober = tidegate.client();
            let fields = fields.replace("HOST", host);
            prober.send(format!("GET /health HTTP/1.1\r\n{fields}\r\n\r\n"));
            prober
        };
        let mut one = ask("one");
        backend.release(1);
        assert_eq!(one.response().status, 200);
        let mut slow = tidegate.client();
        slow.ask("/slow");
        until("the backend has it", || backend.requests().len() == 2);
        let again = ask("one").response();
        assert!(again.header("age").is_some(), "{fields}, {setting}");
        let mut other = ask("other");
        tidegate.until_metric(QUEUED, &[("class", "protected")], 2.0);
        backend.release(3);
        assert_eq!(slow.response().status, 200);
        assert_eq!(other.response().header("age"), None, "{fields}, {setting}");
    }
}

/// What a check was in line for in vain is a wait, but no refusal: its prober has its answer.
#[test]
fn a_check_that_is_refused_behind_its_answer_has_waited() {
    let backend = Held::start();
    let tidegate = checked(&backend, 2, "3s");
    let mut prober = tidegate.client();
    prober.ask("/health");
    backend.release(1);
    assert_eq!(prober.response().status, 200);
    // However many others were asked for.
    for n in 0..80 {
        prober.ask(&format!("/health?{n}"));
        backend.release(1);
        assert_eq!(prober.response().status, 200);
    }
    let mut slow = [tidegate.client(), tidegate.client()];
    for client in &mut slow {
        client.ask("/slow");
    }
    tidegate.until_metric(FLIGHT, &[], 2.0);
    let recalled = tidegate.get("/health?79");
    assert_eq!(recalled.status, 200);
    assert!(recalled.header("age").is_some());
    let timeout = [("class", "protected"), ("outcome", "timeout")];
    tidegate.until_metric("tidegate_queue_wait_seconds_count", &timeout, 1.0);
    assert_eq!(
        tidegate.metric("tidegate_rejected_requests_total", &[]),
        0.0
    );
}

#[test]
fn a_check_whose_answer_breaks_off_has_failed() {
    let backend = Raw::start(|mut conn| {
        if conn.request().is_some() {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\nhello");
            // Its head goes on without the rest.
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    // More than is waited for before the head goes on.
    let tidegate = Tidegate::to(backend.address())
        .set("buffers.response=1KiB")
        .toml("[[route]]\nname = \"health\"\npath = \"/health\"\nclass = \"protected\"")
        .start();
    let answer = tidegate.get("/health");
    assert_eq!(
        (answer.status, answer.reason()),
        (502, "backend_reset".into())
    );
}

#[test]
fn several_endpoints_share_the_load_each_under_its_own_limit() {
    let (one, two) = (Held::start(), Held::start());
    let tidegate = Tidegate::to(one.address())
        .backend(two.address())
        .limit(2)
        .set("queue.max_wait=20s")
        .set("log.access=all")
        .start();
    let mut clients: Vec<Client> = (0..5).map(|_| tidegate.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.ask("/");
        until("it has arrived", || {
            let metrics = tidegate.metrics();
            metrics.sum(FLIGHT, &[]) + metrics.sum(QUEUED, &[]) == n as f64 + 1.0
        });
    }
    let metrics = tidegate.metrics();
    for endpoint in [one.address(), two.address()] {
        assert_eq!(metrics.sum(FLIGHT, &[("endpoint", endpoint)]), 2.0);
        assert_eq!(
            metrics.sum("tidegate_concurrency_limit", &[("endpoint", endpoint)]),
            2.0
        );
    }
    assert_eq!(metrics.sum(QUEUED, &[]), 1.0);
    // The fifth goes where a place becomes free.
    two.release(1);
    until("the fifth is there", || two.requests().len() == 3);
    until("the others are there", || one.requests().len() == 2);
    one.release(2);
    two.release(2);
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
    tidegate.until_idle();
    // Each line of the access log says who answered.
    for (endpoint, count) in [(one.address(), 2), (two.address(), 3)] {
        until("its requests are logged", || {
            let lines = tidegate.events("tidegate::access");
            lines
                .iter()
                .filter(|line| line["endpoint"] == endpoint)
                .count()
                == count
        });
    }
}

#[test]
fn an_endpoint_that_is_down_costs_no_request_and_comes_back() {
    let well = Raw::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell".to_vec());
    let (listener, address) = common::raw::reserved_port();
    common::raw::refuse(&listener);
    let tidegate = Tidegate::to(&address)
        .backend(well.address())
        .limit(2)
        .start();
    let mut client = tidegate.client();
    for _ in 0..20 {
        let answer = client.get("/");
        assert_eq!((answer.status, answer.text()), (200, "well".into()));
    }
    client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!(client.response().status, 200, "nothing had been sent yet");
    assert_eq!(
        tidegate.metric("tidegate_backend_up", &[("endpoint", &address)]),
        0.0
    );
    assert_eq!(tidegate.admin_get("/readyz").status, 200, "one is enough");

    common::raw::accept(&listener);
    let back = Raw::on(listener, |mut conn| {
        if conn.request().is_some() {
            conn.ok("back");
        }
    });
    until("the endpoint is used again", || {
        at_once(&tidegate, 4, "/")
            .iter()
            .any(|answer| answer.text() == "back")
    });
    assert!(back.connections() > 0);
    tidegate.until_idle();
}

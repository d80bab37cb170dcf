//! A shutdown in the midst of everything that a client can be doing.

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{
    Client, Raw, Tidegate,
    frames::{self, Http2},
    since, try_get, until,
};
use rustix::process::Signal;
use tidegate::clock;

/// Long enough for whoever ends by himself, on a machine with other things to do.
const GRACE: Duration = Duration::from_secs(8);

/// A backend whose plain answers wait for `open`, whose streams last until the other side ends, and
/// that switches protocols and echoes.
fn backend(open: Arc<AtomicBool>) -> Raw {
    Raw::start(move |mut conn| {
        let Some(request) = conn.request() else {
            return;
        };
        if request.header("upgrade").is_some() {
            conn.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n",
            );
            let mut reader = conn.stream.try_clone().expect("a handle");
            let _ = std::io::copy(&mut reader, &mut conn.stream);
        } else if request.line().contains("/events") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 0\n\n");
            while conn.send(": still here\n\n") {
                std::thread::sleep(Duration::from_millis(50));
            }
        } else {
            until("it is let go", || open.load(Relaxed));
            conn.ok("done");
        }
    })
}

#[test]
fn a_shutdown_loses_nobody_who_was_admitted_and_outlives_nobody() {
    let open = Arc::new(AtomicBool::new(false));
    let backend = backend(open.clone());
    let mut gate = Tidegate::to(backend.address())
        .limit(80)
        .set("queue.max_wait=20s")
        .set(format!("drain.timeout={}ms", GRACE.as_millis()))
        .start();
    let ask = |text: &str| {
        let mut client = gate.client();
        client.send(text);
        client
    };
    let mut streams: Vec<Client> = (0..10)
        .map(|_| ask("GET /events HTTP/1.1\r\nHost: app\r\n\r\n"))
        .collect();
    let upgrade = "GET / HTTP/1.1\r\nHost: app\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n";
    let mut tunnels: Vec<Client> = (0..10).map(|_| ask(upgrade)).collect();
    for client in streams.iter_mut().chain(&mut tunnels) {
        assert!(matches!(
            client.try_head().expect("a head").status,
            200 | 101
        ));
    }
    let plain = "GET /plain HTTP/1.1\r\nHost: app\r\n\r\n";
    let working: Vec<Client> = (0..50).map(|_| ask(plain)).collect();
    let mut h2 = Http2::connect(gate.address(), &[]);
    for stream in 0..10 {
        h2.get(2 * stream + 1, "/plain");
    }
    gate.until_metric("tidegate_in_flight_requests", &[], 80.0);
    let queued: Vec<Client> = (0..50).map(|_| ask(plain)).collect();
    gate.until_metric("tidegate_queued_requests", &[], 50.0);
    let upload = "POST /plain HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhalf.";
    let mut uploads: Vec<Client> = (0..10).map(|_| ask(upload)).collect();
    let mut idle: Vec<Client> = (0..100).map(|_| gate.client()).collect();
    let mut kept = gate.client();
    kept.send("GET / HTTP/1.1\r\nHost: app\r\nContent-Length: x\r\n\r\n");
    assert_eq!(kept.response().status, 400);
    gate.until_metric("tidegate_client_connections", &[("state", "active")], 131.0);

    let told = clock::now();
    gate.process.signal(Signal::TERM);
    gate.until_metric("tidegate_draining", &[], 1.0);
    // Who comes now is not let in, if the door is open at all.
    if let Ok(late) = try_get(gate.address(), "/late") {
        assert_eq!((late.status, &*late.reason()), (503, "draining"));
        assert_eq!(late.header("connection").as_deref(), Some("close"));
    }
    open.store(true, Relaxed);
    for mut client in working.into_iter().chain(queued) {
        let answer = client.response();
        assert_eq!((answer.status, &*answer.text()), (200, "done"));
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
    }
    let mut seen = BTreeMap::<u8, usize>::new();
    for frame in h2.rest() {
        *seen.entry(frame.kind).or_default() += 1;
        assert_ne!(frame.kind, frames::RST_STREAM);
    }
    assert_eq!(seen[&frames::HEADERS], 10, "{seen:?}");
    assert!(seen.contains_key(&frames::GOAWAY), "{seen:?}");
    for client in &mut uploads {
        client.send("whole");
        let answer = client.response_to("POST");
        assert_eq!((answer.status, &*answer.reason()), (503, "draining"));
    }
    for client in &mut tunnels {
        client.send("to the end");
        let echo = client.take_through(b"end").expect("an echo");
        assert_eq!(echo, b"to the end");
    }
    assert_eq!(gate.process.exit_code(), 0);
    let took = since(told);
    assert!(took >= GRACE - Duration::from_millis(100), "{took:?}");
    assert!(took < GRACE + Duration::from_secs(5), "{took:?}");
    for client in tunnels.iter_mut().chain(&mut idle) {
        assert!(client.is_closed());
    }
    for mut client in streams {
        while client.read_some().is_ok_and(|count| count > 0) {}
        let text = String::from_utf8_lossy(&client.taken()).into_owned();
        assert!(text.contains("data: 0\n\n"), "{text}");
    }
}

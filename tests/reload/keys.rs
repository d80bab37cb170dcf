//! Each key that takes effect without a restart.

use std::net::{SocketAddr, TcpStream};

use super::*;

#[test]
fn the_queue() {
    let peer = Peer::start(peers::slow::when_healed);
    let base = format!("[backend]\nendpoints = [\"{}\"]\n", peer.address());
    let limit = "[limit]\nalgorithm = \"fixed\"\ninitial = 1\n";
    let text = |queue: &str| format!("{base}{limit}[queue]\n{queue}");
    let gate = Tidegate::run()
        .toml(&text("capacity = 5\nmax_wait = \"60s\"\n"))
        .start();
    let mut first = gate.client();
    first.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    let mut waiting: Vec<Client> = (0..5).map(|_| gate.client()).collect();
    for client in &mut waiting {
        client.ask("/");
    }
    gate.until_metric("tidegate_queued_requests", &[], 5.0);
    assert_refused(&gate.get("/"), 503, "queue_full");

    change(&gate, &text("capacity = 6\nmax_wait = \"50ms\"\n"));
    assert_eq!(gate.metric("tidegate_queue_capacity", &[]), 6.0);
    let answer = gate.get("/");
    assert_eq!(answer.status, 503);
    let reason = answer.reason();
    assert!(
        reason == "queue_timeout" || reason == "deadline",
        "{reason}"
    );
    // Who waited already keeps the place and the time that were promised.
    assert_eq!(gate.metric("tidegate_queued_requests", &[]), 5.0);

    change(&gate, &text("capacity = 1\nmax_wait = \"60s\"\n"));
    assert_refused(&gate.get("/"), 503, "queue_full");
    peer.heal();
    assert_eq!(first.response().status, 200);
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
}

#[track_caller]
fn assert_refused(answer: &Response, status: u16, reason: &str) {
    assert_eq!((answer.status, &*answer.reason()), (status, reason));
}

#[test]
fn the_limit() {
    let peer = good_peer();
    let (gate, base) = gate(&peer);
    let limit = |gate: &Tidegate| gate.metric("tidegate_concurrency_limit", &[]);
    for (text, now) in [
        ("algorithm = \"fixed\"\ninitial = 7\n", 7.0),
        ("algorithm = \"fixed\"\ninitial = 9\n", 9.0),
        ("algorithm = \"aimd\"\ninitial = 3\nmax = 3\n", 3.0),
        ("algorithm = \"fixed\"\ninitial = 5\nmax = 5\n", 5.0),
    ] {
        change(&gate, &format!("{base}[limit]\n{text}"));
        until("the limit follows", || limit(&gate) == now);
    }
    change(&gate, &format!("{base}[limit]\nmin = 12\n"));
    until("the limit follows", || limit(&gate) >= 12.0);
    assert_eq!(gate.get("/").status, 200);
}

#[test]
fn a_dry_run() {
    let peer = Peer::start(peers::slow::when_healed);
    let base = format!("[backend]\nendpoints = [\"{}\"]\n", peer.address());
    let text = |dry: bool| {
        format!(
            "{base}[limit]\nalgorithm = \"fixed\"\ninitial = 1\ndry_run = {dry}\n[queue]\nmax_wait = \"60s\"\n"
        )
    };
    let gate = Tidegate::run().toml(&text(false)).start();
    let mut clients: Vec<Client> = (0..3).map(|_| gate.client()).collect();
    for client in &mut clients {
        client.ask("/");
    }
    gate.until_metric("tidegate_queued_requests", &[], 2.0);
    change(&gate, &text(true));
    gate.until_metric("tidegate_in_flight_requests", &[], 3.0);
    peer.heal();
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn refusals() {
    let peer = Peer::start(peers::slow::when_healed);
    let base = format!(
        "[backend]\nendpoints = [\"{}\"]\n[limit]\nalgorithm = \"fixed\"\ninitial = 1\n[queue]\ncapacity = 1\nmax_wait = \"60s\"\n",
        peer.address()
    );
    let gate = Tidegate::run().toml(&base).start();
    let mut clients: Vec<Client> = (0..2).map(|_| gate.client()).collect();
    for client in &mut clients {
        client.ask("/");
    }
    gate.until_metric("tidegate_queued_requests", &[], 1.0);
    let answer = gate.get("/");
    assert_refused(&answer, 503, "queue_full");
    assert_eq!(answer.json()["reason"], "queue_full");

    change(
        &gate,
        &format!(
            "{base}[reject]\nstatus = 429\nbody = \"text\"\nretry_after = \"7s\"\nretry_after_jitter = 0.0\n"
        ),
    );
    let answer = gate.get("/");
    assert_refused(&answer, 429, "queue_full");
    assert_eq!(answer.header("retry-after").as_deref(), Some("7"));
    assert!(
        answer
            .header("content-type")
            .is_some_and(|it| it.starts_with("text/plain"))
    );

    let page = gate.dir().join("busy.html");
    fs::write(&page, "<p>Busy.</p>").expect("a file");
    change(
        &gate,
        &format!("{base}[reject]\nbody = \"file:busy.html\"\nretry_after = \"off\"\n"),
    );
    let answer = gate.get("/");
    assert_refused(&answer, 503, "queue_full");
    assert_eq!(answer.text(), "<p>Busy.</p>");
    assert_eq!(answer.header("retry-after"), None);
    peer.heal();
}

#[test]
fn the_routes() {
    let peer = good_peer();
    let (gate, base) = gate(&peer);
    let count = |route: &str| {
        let metrics = gate.metrics();
        let known = metrics.samples().iter().any(|(name, labels, _)| {
            name == "tidegate_requests_total" && labels.get("route").is_some_and(|it| it == route)
        });
        if known {
            metrics.sum("tidegate_requests_total", &[("route", route)])
        } else {
            0.0
        }
    };
    gate.get("/a");
    change(
        &gate,
        &format!("{base}[[route]]\nname = \"a\"\npath = \"/a\"\n"),
    );
    gate.get("/a");
    assert_eq!(count("a"), 1.0);
    change(
        &gate,
        &format!(
            "{base}[[route]]\nname = \"b\"\npath = \"/*\"\n[[route]]\nname = \"a\"\npath = \"/a\"\n"
        ),
    );
    gate.get("/a");
    assert_eq!(
        (count("a"), count("b")),
        (1.0, 1.0),
        "the first that matches"
    );
    change(&gate, &base);
    gate.get("/a");
    assert_eq!((count("a"), count("b")), (1.0, 1.0), "routes that are gone");
}

#[test]
fn the_sizes() {
    let peer = good_peer();
    let (gate, base) = gate(&peer);
    let post = |length: usize| request(gate.address(), "POST", "/", &[], &vec![b'x'; length]);
    assert_eq!(post(2000).status, 200);
    change(
        &gate,
        &format!("{base}[server]\nmax_body_bytes = \"1KiB\"\n"),
    );
    assert_eq!(post(1024).status, 200);
    assert_refused(&post(2000), 413, "body_too_large");
    change(&gate, &base);
    assert_eq!(post(2000).status, 200);
    // What half a body holds of the budget: all that will be kept of it in memory.
    let held = |bytes: f64| {
        let mut client = gate.client();
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2000\r\n\r\nx");
        let direction = [("direction", "request")];
        gate.until_metric("tidegate_buffered_bytes", &direction, bytes);
        drop(client);
        gate.until_metric("tidegate_buffered_bytes", &direction, 0.0);
    };
    held(2000.0);
    change(&gate, &format!("{base}[buffers]\nrequest = \"1KiB\"\n"));
    held(1024.0);
}

#[test]
fn the_time_outs() {
    let peer = Peer::start(peers::silent::forever);
    let (gate, base) = gate(&peer);
    change(
        &gate,
        &format!("{base}response_timeout = \"200ms\"\norphan_max = \"100ms\"\n"),
    );
    assert_refused(&gate.get("/"), 504, "backend_timeout");
    gate.until_idle();

    // A connection has the time-outs that were in force when it was accepted.
    change(
        &gate,
        &format!(
            "{base}[server]\nheader_timeout = \"300ms\"\nidle_timeout = \"300ms\"\nbody_timeout = \"300ms\"\n"
        ),
    );
    let mut slow = gate.client();
    slow.send("GET / HTTP/1.1\r\nHost");
    assert_refused(&slow.response(), 408, "request_timeout");
    let mut slow = gate.client();
    slow.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n");
    assert_refused(&slow.response(), 408, "request_timeout");
    peer.heal();
    let mut idle = gate.client();
    assert_eq!(idle.get("/").status, 200);
    assert!(idle.is_closed(), "after idle_timeout");
}

#[test]
fn the_pause_within_an_answer() {
    let peer = Peer::start(peers::trickle::body(Duration::from_millis(300)));
    let (gate, base) = gate(&peer);
    change(&gate, &format!("{base}read_timeout = \"50ms\"\n"));
    assert_refused(&gate.get("/"), 504, "backend_timeout");
    change(&gate, &base);
    assert_eq!(gate.get("/").text(), "1234567890");
}

#[test]
fn the_number_of_connections() {
    let peer = Peer::start(peers::slow::when_healed);
    let (gate, base) = gate(&peer);
    change(&gate, &format!("{base}[server]\nmax_connections = 2\n"));
    let mut clients = Vec::new();
    for busy in [1.0, 2.0, 2.0] {
        let mut client = gate.client();
        client.ask("/");
        clients.push(client);
        gate.until_metric("tidegate_in_flight_requests", &[], busy);
    }
    let last = clients.last_mut().expect("three");
    last.set_timeout(Duration::from_millis(300));
    assert!(last.read_some().is_err(), "there is no room");
    assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 2.0);
    change(&gate, &base);
    gate.until_metric("tidegate_in_flight_requests", &[], 3.0);
    peer.heal();
    for mut client in clients {
        client.set_timeout(common::PATIENCE);
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn the_deadline_field() {
    let peer = Peer::start(peers::slow::when_healed);
    let base = format!(
        "[backend]\nendpoints = [\"{}\"]\n[limit]\nalgorithm = \"fixed\"\ninitial = 1\n[queue]\nmax_wait = \"60s\"\n",
        peer.address()
    );
    let gate = Tidegate::run().toml(&base).start();
    let mut first = gate.client();
    first.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    change(&gate, &format!("{base}deadline_header = \"X-Patience\"\n"));
    let fields = [("X-Patience", "50")];
    let answer = request(gate.address(), "GET", "/", &fields, &[]);
    assert_refused(&answer, 503, "deadline");
    peer.heal();
    assert_eq!(first.response().status, 200);
}

#[test]
fn chunked_bodies() {
    let app = Gunicorn::sync(1);
    let base = format!("[backend]\nendpoints = [\"{}\"]\n", app.address());
    let gate = Tidegate::run().toml(&base).start();
    let seen = || {
        let mut client = gate.client();
        client.send(
            "POST /echo HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        );
        let answer = client.response_to("POST").json();
        assert_eq!(answer["size"], 5);
        answer["content_length"].clone()
    };
    assert_eq!(seen(), "5");
    change(&gate, &format!("{base}dechunk = false\n"));
    assert!(seen().is_null());
}

#[test]
fn the_header_fields() {
    let app = Gunicorn::sync(1);
    let base = format!("[backend]\nendpoints = [\"{}\"]\n", app.address());
    let gate = Tidegate::run().toml(&base).start();
    let seen = || {
        let fields = [("X-Forwarded-For", "10.1.2.3")];
        let answer = request(gate.address(), "GET", "/echo", &fields, &[]);
        let headers = answer.json()["headers"].clone();
        (answer, headers)
    };
    let (answer, headers) = seen();
    assert_eq!(headers["X-Forwarded-For"], "127.0.0.1");
    assert!(headers.get("X-Request-Start").is_some());
    assert!(headers.get("Forwarded").is_none());
    assert!(headers.get("Via").is_some() && answer.header("via").is_some());
    assert!(answer.header("x-request-id").is_some());
    assert!(answer.header("server-timing").is_none());

    change(
        &gate,
        &format!(
            "{base}[headers]\ntrusted_proxies = [\"127.0.0.0/8\"]\nrequest_id = \"X-Trace\"\n\
             request_start = false\nforwarded = true\nvia = false\nserver_timing = true\n"
        ),
    );
    let (answer, headers) = seen();
    assert_eq!(headers["X-Forwarded-For"], "10.1.2.3, 127.0.0.1");
    assert!(headers.get("X-Request-Start").is_none());
    assert!(headers.get("Forwarded").is_some());
    assert!(headers.get("Via").is_none() && answer.header("via").is_none());
    assert!(answer.header("x-request-id").is_none() && answer.header("x-trace").is_some());
    let timing = answer.header("server-timing").expect("it is asked for");
    let members: Vec<_> = timing
        .split(", ")
        .map(|member| member.split(";dur=").next().expect("a name"))
        .collect();
    assert_eq!(
        members,
        ["tidegate-queue", "tidegate-backend", "tidegate-total"]
    );
}

#[test]
fn the_access_log() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    gate.get("/unseen");
    change(&gate, &format!("{base}[log]\naccess = \"all\"\n"));
    let length = gate.get("/seen").body.len();
    gate.process
        .logged("an access line", |log| log.contains("/seen").then_some(()));
    let lines = gate.events("tidegate::access");
    let seen = lines.iter().find(|line| line["path"] == "/seen");
    let bytes = seen.expect("it is there")["bytes"].as_u64();
    assert_eq!(bytes, Some(length as u64));
    assert!(!gate.log().contains("/unseen"));
    change(&gate, &format!("{base}[log]\naccess = \"off\"\n"));
    gate.get("/unseen");
    change(
        &gate,
        &format!("{base}[log]\nlevel = \"debug\"\naccess = \"off\"\n"),
    );
    // What was to be logged of it would be there before this.
    change(&gate, &format!("{base}[log]\naccess = \"all\"\n"));
    gate.get("/last");
    gate.process
        .logged("the last line", |log| log.contains("/last").then_some(()));
    assert!(!gate.log().contains("/unseen"));
}

#[test]
fn the_memory_for_bodies() {
    let peer = good_peer();
    let base = format!("[backend]\nendpoints = [\"{}\"]\n", peer.address());
    let total = |size: &str| {
        format!("{base}[buffers]\nrequest = \"64KiB\"\nresponse = \"64KiB\"\ntotal = \"{size}\"\n")
    };
    let gate = Tidegate::run().toml(&total("64KiB")).start();
    let held = || gate.metric("tidegate_buffered_bytes", &[("direction", "request")]);
    let post = || {
        let mut client = gate.client();
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 65536\r\n\r\n");
        client
    };
    let mut first = post();
    until("the memory is full", || held() == 65_536.0);
    let mut second = post();
    second.send("x".repeat(65_536));
    change(&gate, &total("1MiB"));
    assert_eq!(second.response().status, 200);
    first.send("x".repeat(65_536));
    assert_eq!(first.response().status, 200);
}

#[test]
fn endpoints_come_and_go_under_load() {
    let peers: Vec<Peer> = (0..3)
        .map(|_| {
            let peer = Peer::start(peers::slow::after(Duration::from_millis(2)));
            peer.heal();
            peer
        })
        .collect();
    let text = |chosen: &[usize]| {
        let list: Vec<String> = chosen
            .iter()
            .map(|&at| format!("\"{}\"", peers[at].address()))
            .collect();
        format!(
            "[backend]\nendpoints = [{}]\n[limit]\nalgorithm = \"fixed\"\ninitial = 1\n\
             [queue]\ndiscipline = \"fifo\"\nmax_wait = \"30s\"\n",
            list.join(", ")
        )
    };
    let gate = Tidegate::run().toml(&text(&[0])).start();
    let load = Load::start(&gate, 6);
    let sets: [&[usize]; 5] = [&[0, 1], &[1], &[1, 2], &[0, 1, 2], &[2]];
    for turn in 0..30 {
        let set = sets[turn % sets.len()];
        change(&gate, &text(set));
        let lanes = gate.status();
        assert!(
            lanes.to_string().contains(&peers[set[0]].address()),
            "{lanes}"
        );
        let served = load.served();
        until("they serve", || load.served() > served + 20);
    }
    load.stop();
    gate.until_idle();
    // Only the one that stayed is asked.
    let before: Vec<usize> = peers.iter().map(Peer::accepted).collect();
    gate.get("/");
    assert_eq!(peers[0].accepted(), before[0]);
    assert_eq!(peers[1].accepted(), before[1]);
    assert!(peers[2].accepted() > before[2]);
}

/// It was not sent there, so it goes where the new configuration says.
#[test]
fn an_endpoint_that_is_taken_out_while_it_is_connected_to() {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.bind(&any.into()).expect("a port");
    socket.listen(1).expect("it listens");
    let address = socket.local_addr().expect("an address");
    let address = address.as_socket().expect("TCP");
    // Connections that nobody accepts, until the kernel takes no more.
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    let text = |address: &str| {
        format!("[backend]\nendpoints = [\"{address}\"]\nconnect_timeout = \"2s\"\n")
    };
    let gate = Tidegate::run().toml(&text(&address.to_string())).start();
    let mut client = gate.client();
    client.ask("/");
    gate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    let peer = good_peer();
    change(&gate, &text(&peer.address()));
    assert_eq!(client.response().status, 200);
    assert_eq!(peer.asked(), 1);
    gate.until_idle();
}

//! Byte by byte: heads, refusals, and which side ends first.

use super::*;

/// A backend that switches at once and then echoes what it reads.
fn echoing() -> Raw {
    Raw::start(|mut conn| {
        if conn.request().is_some() && conn.send(SWITCHED) {
            let mut reader = conn.stream.try_clone().expect("a handle");
            let _ = std::io::copy(&mut reader, &mut conn.stream);
        }
    })
}

/// A tunnel through `gate`, after its 101.
#[track_caller]
fn tunnel(gate: &Tidegate) -> Client {
    let mut client = gate.client();
    client.send(ASK);
    let head = client.try_head().expect("a head");
    assert_eq!(head.status, 101, "{head:?}");
    client
}

#[track_caller]
fn expects(client: &mut Client, text: &str) {
    let got = client.take_through(text.as_bytes()).expect(text);
    assert_eq!(String::from_utf8_lossy(&got), text);
}

#[test]
fn both_heads_keep_what_the_upgrade_needs() {
    let backend = echoing();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.send(ASK);
    let answer = client.try_head().expect("a head");
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("connection").as_deref(), Some("upgrade"));
    assert_eq!(answer.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.header("transfer-encoding"), None);
    let request = &backend.requests()[0];
    assert_eq!(request.header("connection").as_deref(), Some("upgrade"));
    assert_eq!(request.header("upgrade").as_deref(), Some("websocket"));
    assert_eq!(
        request.header("sec-websocket-version").as_deref(),
        Some("13")
    );
    assert!(request.header("x-forwarded-for").is_some());
}

#[test]
fn what_is_no_proper_upgrade_is_not_passed_on() {
    let backend = Raw::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec());
    let gate = Tidegate::to(backend.address()).start();
    for fields in [
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n",
        "Connection: Upgrade\r\nUpgrade:\r\n",
    ] {
        let mut client = gate.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: app\r\n{fields}\r\n"));
        assert_eq!(client.response().status, 200, "{fields}");
        assert_eq!(
            client.get("/").status,
            200,
            "{fields}: the connection stays"
        );
    }
    let mut client = gate.client();
    client.send("GET / HTTP/1.0\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.response().status, 200);
    for request in backend.requests() {
        assert_eq!(request.header("upgrade"), None, "{}", request.head);
        assert_eq!(request.header("http2-settings"), None, "{}", request.head);
    }
}

#[test]
fn a_refused_upgrade_is_an_ordinary_answer() {
    let backend = Raw::answering(|request| match request.header("upgrade") {
        Some(_) => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        None => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.send(ASK);
    let refused = client.response();
    assert_eq!((refused.status, &*refused.text()), (403, "no"));
    let next = client.get("/");
    assert_eq!(
        (next.status, &*next.text()),
        (200, "ok"),
        "the connection stays"
    );
    let posted = ASK
        .replace("GET", "POST")
        .replace("\r\n\r\n", "\r\nContent-Length: 4\r\n\r\nbody");
    client.send(posted);
    assert_eq!(client.response().status, 403);
    assert_eq!(backend.requests()[2].body, b"body");
    nothing_is_left(&gate);
}

#[test]
fn only_the_protocol_that_was_asked_for_is_switched_to() {
    type Fault = Box<dyn Fn(&mut peers::Conn) -> std::io::Result<()> + Send + Sync>;
    let faults: [(&str, Fault); 4] = [
        ("another", Box::new(peers::switches::to("chat"))),
        ("one more", Box::new(peers::switches::to("websocket, chat"))),
        ("HTTP/2", Box::new(peers::switches::to("h2c"))),
        ("none", Box::new(peers::switches::to_nothing)),
    ];
    for (name, fault) in faults {
        let peer = Peer::start(fault);
        let gate = Tidegate::to(&peer.address()).start();
        let mut client = gate.client();
        client.send(ASK);
        let answer = client.response();
        assert_eq!(
            (answer.status, &*answer.reason()),
            (502, "backend_protocol"),
            "{name}"
        );
        assert!(!answer.text().contains("poison"), "{name}");
        peer.heal();
        nothing_is_left(&gate);
        assert_eq!(client.get("/").text(), "good\n", "after {name}");
    }
}

#[test]
fn a_101_that_comes_too_late_is_504() {
    let peer = Peer::start(peers::switches::late(Duration::from_secs(60)));
    let gate = Tidegate::to(&peer.address())
        .set("backend.response_timeout=200ms")
        .set("backend.orphan_max=100ms")
        .start();
    let mut client = gate.client();
    client.send(ASK);
    assert_eq!(client.response().reason(), "backend_timeout");
    nothing_is_left(&gate);
}

/// Whether every thread of it has stopped.
fn has_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    })
}

/// Both are there when tidegate looks: the 101 from the worker, and the reset from the client.
#[test]
fn a_client_that_resets_as_its_101_comes_leaves_nothing() {
    let (switch, switched) = std::sync::mpsc::channel::<()>();
    let (sent, is_out) = std::sync::mpsc::channel::<()>();
    let ends = std::sync::Mutex::new((switched, sent));
    let backend = Raw::start(move |mut conn| {
        if conn.request().is_none() {
            return;
        }
        let ends = ends.lock().expect("one at a time");
        let _ = ends.0.recv();
        assert!(conn.send(SWITCHED));
        let _ = ends.1.send(());
        conn.sees_end_within(common::PATIENCE);
    });
    let mut gate = Tidegate::to(backend.address()).start();
    let mut client = std::net::TcpStream::connect(gate.address()).expect("it accepts");
    client.write_all(ASK.as_bytes()).expect("it reads");
    until("the backend has it", || backend.requests().len() == 1);
    gate.process.signal(Signal::STOP);
    until("it has stopped", || has_stopped(gate.pid()));
    switch.send(()).expect("it waits");
    is_out.recv().expect("the 101 is out");
    let socket = socket2::SockRef::from(&client);
    socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(client);
    gate.process.signal(Signal::CONT);
    nothing_is_left(&gate);
}

#[test]
fn a_backend_that_breaks_off_breaks_the_tunnel_off() {
    let peer = Peer::start(peers::switches::cut);
    let gate = Tidegate::to(&peer.address()).start();
    let mut client = gate.client();
    client.send(ASK);
    // With the RST the kernel may drop what was not read yet.
    if client.try_head().is_ok() {
        while client.read_some().is_ok_and(|count| count > 0) {}
    }
    nothing_is_left(&gate);
}

#[test]
fn the_last_words_of_a_worker_that_did_not_listen_arrive() {
    let backend = Raw::start(|mut conn| {
        if conn.request().is_some() && conn.send(SWITCHED) {
            let mut first = [0];
            let _ = std::io::Read::read_exact(&mut conn.stream, &mut first);
            // What else has come stays unread, so that closing resets the connection.
            conn.send("last words");
            conn.reset();
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    for _ in 0..20 {
        let mut client = tunnel(&gate);
        client.send("x".repeat(1000));
        let _ = client.try_send("y".repeat(1000));
        expects(&mut client, "last words");
        let _ = client.try_send("z".repeat(1000));
        assert!(client.is_closed());
    }
    nothing_is_left(&gate);
}

#[test]
fn not_a_byte_goes_to_the_backend_before_its_101() {
    let (switch, switched) = std::sync::mpsc::channel::<()>();
    let switched = std::sync::Mutex::new(switched);
    let backend = Raw::start(move |mut conn| {
        if conn.request().is_none() {
            return;
        }
        // Its end would be seen within this time, and so would a byte.
        let quiet = !conn.sees_end_within(Duration::from_millis(300));
        let early = conn.early();
        let _ = switched.lock().expect("one at a time").recv();
        assert!(conn.send(format!("{SWITCHED}{quiet} {early};")));
        let mut reader = conn.stream.try_clone().expect("a handle");
        let _ = std::io::copy(&mut reader, &mut conn.stream);
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = gate.client();
    client.send(format!("{ASK}too early"));
    until("the backend has the request", || {
        backend.requests().len() == 1
    });
    switch.send(()).expect("it waits");
    assert_eq!(client.try_head().expect("a head").status, 101);
    expects(&mut client, "true 0;");
    expects(&mut client, "too early");
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn each_side_may_end_first_and_the_other_learns_it() {
    // The client has nothing more to send, and still gets what comes.
    let backend = Raw::start(|mut conn| {
        if conn.request().is_some() && conn.send(SWITCHED) {
            let mut text = String::new();
            let mut reader = conn.stream.try_clone().expect("a handle");
            let _ = std::io::Read::read_to_string(&mut reader, &mut text);
            conn.send(format!("read {text}, and the end"));
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = tunnel(&gate);
    client.send("all").shutdown_write();
    expects(&mut client, "read all, and the end");
    assert!(client.is_closed());
    nothing_is_left(&gate);

    // The backend has nothing more to send, and still gets what comes.
    let (got, gets) = std::sync::mpsc::channel();
    let backend = Raw::start(move |mut conn| {
        if conn.request().is_some() && conn.send(format!("{SWITCHED}bye")) {
            let _ = conn.stream.shutdown(std::net::Shutdown::Write);
            let mut text = String::new();
            let mut reader = conn.stream.try_clone().expect("a handle");
            let _ = std::io::Read::read_to_string(&mut reader, &mut text);
            let _ = got.send(text);
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = tunnel(&gate);
    expects(&mut client, "bye");
    assert!(client.is_closed());
    client.send("until then");
    drop(client);
    let text = gets.recv_timeout(common::PATIENCE).expect("it reads");
    assert_eq!(text, "until then");
    nothing_is_left(&gate);
}

#[test]
fn a_backend_that_has_ended_is_not_held_by_its_client() {
    let backend = Raw::start(|mut conn| {
        if conn.request().is_some() {
            conn.send(SWITCHED);
            conn.close();
        }
    });
    let gate = Tidegate::to(backend.address()).start();
    let mut client = tunnel(&gate);
    assert!(client.is_closed());
    // The client keeps its side open all the while.
    nothing_is_left(&gate);
}

#[test]
fn a_tunnel_has_a_time_limit_of_its_own() {
    let impatient = |gate: Setup| {
        gate.set("backend.response_timeout=200ms")
            .set("backend.read_timeout=200ms")
            .set("server.header_timeout=200ms")
    };
    let backend = echoing();
    let gate = impatient(Tidegate::to(backend.address())).start();
    let mut client = tunnel(&gate);
    std::thread::sleep(Duration::from_millis(700));
    client.send("still here");
    expects(&mut client, "still here");
    drop(client);
    nothing_is_left(&gate);

    let gate = impatient(Tidegate::to(backend.address()))
        .set("server.idle_timeout=1500ms")
        .start();
    let mut client = tunnel(&gate);
    let began = clock::now();
    let mut quiet = began;
    while since(began) < Duration::from_millis(2500) {
        std::thread::sleep(Duration::from_millis(50));
        quiet = clock::now();
        client.send("tick");
        expects(&mut client, "tick");
    }
    assert!(client.is_closed(), "when nothing moves");
    assert!(
        since(quiet) >= Duration::from_millis(1400),
        "{:?}",
        since(quiet)
    );
    nothing_is_left(&gate);
}

#[test]
fn a_side_that_takes_nothing_ends_the_tunnel_and_holds_little() {
    // The client does not read what the backend sends without end.
    let backend = Raw::start(|mut conn| {
        if conn.request().is_some() && conn.send(SWITCHED) {
            while conn.send([b'x'; 65536]) {}
        }
    });
    let gate = Tidegate::to(backend.address())
        .set("server.write_timeout=3s")
        .start();
    gate.metrics();
    let (before, _) = memory(gate.pid());
    let clients: Vec<_> = (0..4).map(|_| tunnel(&gate)).collect();
    is_streaming(&gate, 4.0);
    nothing_is_left(&gate);
    let (_, most) = memory(gate.pid());
    assert!(most < before + (8 << 20), "{before} bytes, then {most}");
    drop(clients);

    // The backend does not read what the client sends.
    let backend = Raw::start(|mut conn| {
        if conn.request().is_some() && conn.send(SWITCHED) {
            std::thread::sleep(common::PATIENCE);
        }
    });
    let gate = Tidegate::to(backend.address())
        .set("server.idle_timeout=500ms")
        .start();
    let mut client = tunnel(&gate);
    while client.try_send([b'x'; 65536]).is_ok() {}
    nothing_is_left(&gate);
}

#[test]
fn megabytes_pass_both_ways_at_once() {
    let backend = echoing();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = tunnel(&gate);
    let mut writer = client.writer();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let upload = std::thread::spawn(move || {
        writer.send(&sent);
        writer.shutdown_write();
    });
    while client.read_some().expect("it goes on") > 0 {}
    assert!(client.taken() == expected, "in order and whole");
    upload.join().expect("no panic");
    nothing_is_left(&gate);
}

#[test]
fn an_upgrade_is_refused_like_any_request_when_there_is_no_room() {
    let backend = echoing();
    let gate = Tidegate::to(backend.address())
        .limit(1)
        .set("queue.max_wait=0s")
        .start();
    let held = tunnel(&gate);
    let refused = request(
        gate.address(),
        "GET",
        "/ws",
        &[("Connection", "upgrade"), ("Upgrade", "websocket")],
        &[],
    );
    assert_eq!(refused.status, 503);
    assert_eq!(backend.connections(), 1);
    drop(held);
    nothing_is_left(&gate);
}

#[test]
fn tunnels_leave_the_limit_of_the_others_alone() {
    let backend = echoing();
    let gate = Tidegate::to(backend.address())
        .set("limit.initial=2")
        .set("limit.max=7")
        .set("queue.max_wait=30s")
        .start();
    let limit = || gate.metric("tidegate_concurrency_limit", &[]);
    assert_eq!(limit(), 2.0);
    let mut open: Vec<_> = (0..5).map(|_| tunnel(&gate)).collect();
    until("there is room for two others", || limit() == 7.0);
    // No more than limit.max, whoever comes.
    open.extend((0..2).map(|_| tunnel(&gate)));
    assert_eq!(limit(), 7.0);
    for client in &mut open {
        client.send("still there\n");
        expects(client, "still there\n");
    }
    drop(open);
    until("the tunnels have ended", || limit() == 2.0);
    nothing_is_left(&gate);
}

#[test]
fn a_route_caps_its_tunnels_and_leaves_the_rest_to_others() {
    let app = Gunicorn::gthread(4);
    let gate = Tidegate::to(app.address())
        .limit(4)
        .toml(
            "[[route]]\nname = \"sockets\"\npath = \"/ws\"\nclass = \"stream\"\nmax_in_flight = 1",
        )
        .start();
    let mut client = WebSocket::open(&gate, "stay");
    client.echoes("one");
    let second = gate.client().send(ASK).response();
    assert_eq!((second.status, &*second.reason()), (503, "route_limit"));
    assert_eq!(gate.get("/").status, 200, "others have their places");
    client.echoes("two");
    drop(client);
    nothing_is_left(&gate);
    let route = [("route", "sockets"), ("code", "101")];
    assert_eq!(gate.metric("tidegate_requests_total", &route), 1.0);
}

#[test]
fn a_kept_connection_and_unix_sockets_become_tunnels_too() {
    let backend = Raw::start(|mut conn| {
        while let Some(request) = conn.request() {
            if request.header("upgrade").is_none() {
                conn.ok("ok");
                continue;
            }
            conn.send(SWITCHED);
            let mut reader = conn.stream.try_clone().expect("a handle");
            let _ = std::io::copy(&mut reader, &mut conn.stream);
            return;
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let socket = format!("unix:{}", dir.path().join("front.sock").display());
    let gate = Tidegate::to(backend.address())
        .set("backend.keepalive=true")
        .set("backend.keepalive_idle=30s")
        .listen(&socket)
        .start();
    let mut client = gate.client();
    assert_eq!(client.get("/").text(), "ok");
    client.send(ASK);
    assert_eq!(client.try_head().expect("a head").status, 101);
    client.send("there");
    expects(&mut client, "there");
    assert_eq!(backend.connections(), 1, "over the same connection");
    assert_eq!(gate.get("/").text(), "ok");
    assert_eq!(backend.connections(), 2, "which is nobody else's any more");
    client.shutdown_write();
    assert!(client.is_closed());
    nothing_is_left(&gate);
}

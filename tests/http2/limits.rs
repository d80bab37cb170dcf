//! Time limits of a connection, and attacks on it.

use super::*;

#[test]
fn a_head_that_does_not_end_ends_the_connection() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("server.header_timeout=300ms")
        .start();
    let head = frame(frames::HEADERS, frames::END_STREAM, 1, &frames::get("/"));
    let begins: [(&str, Vec<u8>); 4] = [
        ("no settings", frames::PREFACE.to_vec()),
        ("half a preface", frames::PREFACE[..20].to_vec()),
        (
            "no CONTINUATION",
            [frames::PREFACE, &frame(4, 0, 0, &[]), &head].concat(),
        ),
        (
            "half a frame",
            [frames::PREFACE, &frame(4, 0, 0, &[]), &head[..12]].concat(),
        ),
    ];
    for (name, bytes) in begins {
        let mut client = Http2::silent(gate.address());
        let began = clock::now();
        client.send(bytes);
        client.rest();
        assert!(since(began) >= Duration::from_millis(250), "{name}");
        assert!(since(began) < Duration::from_secs(10), "{name}");
    }
    nothing_is_left(&gate);
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn a_head_has_its_time_once_in_however_many_frames_it_comes() {
    const TIMEOUT: Duration = Duration::from_millis(1500);
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set(format!("server.header_timeout={}ms", TIMEOUT.as_millis()))
        .start();
    let mut client = Http2::connect(gate.address(), &[]);
    client.send(frame(frames::HEADERS, 0, 1, &[0x82]));
    // More of them, and the parser would end it.
    for _ in 0..3 {
        std::thread::sleep(TIMEOUT * 3 / 4);
        let _ = client.try_send(frame(frames::CONTINUATION, 0, 1, &[]));
    }
    let open = gate.metric("tidegate_client_connections", &[]);
    assert_eq!(open, 0.0, "its time was over long ago");
    nothing_is_left(&gate);
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn large_heads_are_held_of_the_budget() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("buffers.request=64KiB")
        .set("buffers.total=256KiB")
        .start();
    let held = || gate.metric("tidegate_buffered_bytes", &[("direction", "request")]);
    let value = "x".repeat(14_000);
    let post = frames::head("POST", "/", &[("x-large", &value)]);
    // Their bodies are to come.
    let mut client = Http2::connect(gate.address(), &[]);
    for n in 0..18 {
        client.send(frame(
            frames::HEADERS,
            frames::END_HEADERS,
            2 * n + 1,
            &post,
        ));
    }
    until("they are held", || held() > 18.0 * 14_000.0);
    // Many fields are large, too.
    let many: Vec<_> = (0..90).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "")).collect();
    for large in [&[("x-large", &*value)][..], &many] {
        let mut other = Http2::connect(gate.address(), &[]);
        let flags = frames::END_HEADERS | frames::END_STREAM;
        let (large, usual) = (frames::head("GET", "/", large), frames::get("/"));
        other.send(frame(frames::HEADERS, flags, 1, &large));
        let refused = other.next(&[frames::HEADERS]).payload[0];
        assert_ne!(refused, 0x88, "there is no room");
        other.send(frame(frames::HEADERS, flags, 3, &usual));
        assert_eq!(other.next(&[frames::HEADERS]).payload[0], 0x88);
    }
    let memory = [("reason", "memory")];
    assert_eq!(
        gate.metric("tidegate_rejected_requests_total", &memory),
        2.0
    );
    let mut http1 = gate.client();
    http1.send(format!(
        "GET / HTTP/1.1\r\nHost: app\r\nX-Large: {value}\r\n\r\n"
    ));
    assert_eq!(http1.response().reason(), "memory");
    drop(client);
    until("they are gone", || held() == 0.0);
    // In pieces it may become as large as any.
    let mut client = Http2::connect(gate.address(), &[]);
    client.send(frame(frames::HEADERS, frames::END_STREAM, 1, &post));
    until("it is held", || held() > 64.0 * 1024.0);
    client.send(frame(frames::CONTINUATION, frames::END_HEADERS, 1, &[]));
    assert_eq!(client.next(&[frames::HEADERS]).payload[0], 0x88);
    until("it is gone", || held() == 0.0);
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn heads_that_do_not_end_hold_little_and_leave_the_rest_to_others() {
    const MIB: f64 = 1024.0 * 1024.0;
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("buffers.total=8MiB")
        .start();
    let held = || gate.metric("tidegate_buffered_bytes", &[("direction", "request")]);
    let begin = |count: usize, block: &[u8]| -> Vec<Http2> {
        let client = || {
            let mut client = Http2::connect(gate.address(), &[]);
            client.send(frame(frames::HEADERS, frames::END_STREAM, 1, block));
            client
        };
        (0..count).map(|_| client()).collect()
    };
    let tiny = begin(50, &[0x82]);
    until("they are held", || held() > 0.0);
    assert!(held() <= 50.0 * 128.0, "{}", held());
    let large = frames::head("GET", "/", &[("x-large", &"x".repeat(1000))]);
    let mut large = begin(50, &large);
    until("they have their part", || held() > 0.9 * MIB);
    std::thread::sleep(Duration::from_millis(100));
    assert!(held() <= MIB, "{}", held());
    // Others come and go.
    let mut client = gate.client();
    let length = 256 * 1024;
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n"
    ));
    client.send("x".repeat(length));
    assert_eq!(client.response().status, 200);
    // What is held by those that leave is there for those that stay.
    let mut last = large.pop().expect("the last");
    last.send(frame(frames::CONTINUATION, frames::END_HEADERS, 1, &[]));
    drop((large, tiny));
    assert_eq!(last.next(&[frames::HEADERS]).payload[0], 0x88);
    drop((client, last));
    nothing_is_left(&gate);
}

#[test]
fn an_idle_connection_is_told_to_go_and_a_busy_one_is_not_idle() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .set("server.idle_timeout=400ms")
        .set("server.header_timeout=300ms")
        .start();
    let mut client = Http2::connect(gate.address(), &[]);
    client.get(1, "/");
    until("the backend has it", || backend.requests().len() == 1);
    std::thread::sleep(Duration::from_millis(900));
    let quiet = clock::now();
    backend.release(1);
    assert_eq!(client.next(&[frames::DATA]).payload, b"ok");
    let rest = client.rest();
    assert!(
        rest.iter().any(|frame| frame.kind == frames::GOAWAY),
        "{rest:?}"
    );
    assert!(
        since(quiet) >= Duration::from_millis(300),
        "{:?}",
        since(quiet)
    );
    nothing_is_left(&gate);
}

#[test]
fn a_slow_upload_is_408_and_costs_no_permit() {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .set("server.body_timeout=2s")
        .set("server.body_min_rate=100000")
        .start();
    let mut client = Http2::connect(gate.address(), &[]);
    let head = frames::head("POST", "/", &[]);
    client.send(frame(frames::HEADERS, frames::END_HEADERS, 1, &head));
    client.send(frame(frames::DATA, 0, 1, b"x"));
    client.get(3, "/other");
    assert_eq!(
        client.next(&[frames::HEADERS]).stream,
        3,
        "another is not held up"
    );
    assert_eq!(client.next(&[frames::HEADERS]).stream, 1);
    let late = [("reason", "request_timeout")];
    assert_eq!(gate.metric("tidegate_rejected_requests_total", &late), 1.0);
    drop(client);
    nothing_is_left(&gate);
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_window_that_never_opens_is_given_up_in_bounded_memory() {
    let backend = Raw::start(|mut conn| {
        while conn.request().is_some() {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
            if !conn.send(head) || !conn.send("x".repeat(1_000_000)) {
                return;
            }
        }
    });
    let gate = Tidegate::to(backend.address())
        .limit(200)
        .set("server.write_timeout=2s")
        .set("buffers.response=64KiB")
        .set("buffers.total=4MiB")
        .start();
    assert_eq!(gate.get("/").body.len(), 1_000_000);
    let (before, _) = memory(gate.pid());
    for (round, window) in [(1, 0), (2, 1)] {
        let mut client = Http2::connect(gate.address(), &[(frames::INITIAL_WINDOW_SIZE, window)]);
        for stream in 0..100 {
            client.get(2 * stream + 1, "/");
        }
        let all = 101 * round;
        until("all are there", || backend.requests().len() == all);
        for _ in 0..100 {
            client.next(&[frames::RST_STREAM]);
        }
        let (_, most) = memory(gate.pid());
        let grown = most.saturating_sub(before);
        assert!(grown < 24 << 20, "window {window}: {grown} bytes more");
        // The connection is still good.
        client.get(201, "/");
        let head = client.next(&[frames::HEADERS]);
        assert_eq!((head.stream, head.payload[0]), (201, 0x88));
        drop(client);
        nothing_is_left(&gate);
    }
    assert_eq!(gate.get("/").body.len(), 1_000_000);
}

// --- attacks ---

/// One connection's worth of bytes, then what must hold after any attack.
fn survives(name: &str, settings: &[(u16, u32)], attack: impl Fn(u32) -> Vec<u8>, count: u32) {
    let backend = ok();
    let gate = Tidegate::to(backend.address())
        .limit(4)
        .set("queue.max_wait=20s")
        .set("queue.capacity=1000")
        .start();
    assert_eq!(gate.get("/").status, 200);
    let (before, _) = memory(gate.pid());
    let mut client = Http2::connect(gate.address(), settings);
    // Read what comes, or the kernel's buffers are what is measured.
    let mut reader = client.reader();
    let (ended, ends) = mpsc::channel();
    std::thread::spawn(move || {
        reader.rest();
        ended.send(())
    });
    let began = clock::now();
    for chunk in 0..count.div_ceil(100) {
        let bytes: Vec<u8> = (100 * chunk..(100 * chunk + 100).min(count))
            .flat_map(&attack)
            .collect();
        if client.try_send(bytes).is_err() {
            break;
        }
    }
    // Somebody else is served meanwhile and after.
    let healthy = gate.get("/");
    assert_eq!(healthy.status, 200, "{name}");
    let took = since(began);
    let (_, most) = memory(gate.pid());
    let grown = most.saturating_sub(before);
    client.shutdown();
    ends.recv_timeout(PATIENCE).expect("the connection ends");
    assert!(grown < 8 << 20, "{name}: {grown} bytes more");
    assert!(took < Duration::from_secs(20), "{name}: {took:?}");
    is_well(&gate, name);
}

#[track_caller]
fn is_well(gate: &Tidegate, name: &str) {
    nothing_is_left(gate);
    assert_eq!(gate.get("/").status, 200, "after {name}");
    run(async {
        let client = connect(gate.address()).await;
        let answer = get(&client, "/").await.expect("an answer");
        assert_eq!(answer.head.status, StatusCode::OK, "after {name}");
    });
}

#[test]
fn floods_and_bombs_cost_little_and_nobody_else() {
    let head = |stream| {
        let flags = frames::END_HEADERS | frames::END_STREAM;
        frame(frames::HEADERS, flags, stream, &frames::get("/"))
    };
    let cancel = 8_u32.to_be_bytes();
    survives(
        "rapid reset",
        &[],
        |n| {
            [
                head(2 * n + 1),
                frame(frames::RST_STREAM, 0, 2 * n + 1, &cancel),
            ]
            .concat()
        },
        5000,
    );
    survives(
        "CONTINUATION",
        &[],
        |n| match n {
            0 => frame(frames::HEADERS, frames::END_STREAM, 1, &frames::get("/")),
            n => frame(
                frames::CONTINUATION,
                0,
                1,
                &frames::fields(&[(&format!("x-{n}"), &"v".repeat(1000))]),
            ),
        },
        10_000,
    );
    survives(
        "empty CONTINUATION",
        &[],
        |n| match n {
            0 => frame(frames::HEADERS, frames::END_STREAM, 1, &frames::get("/")),
            _ => frame(frames::CONTINUATION, 0, 1, &[]),
        },
        50_000,
    );
    survives(
        "HPACK bomb",
        &[],
        |n| {
            // One large value into the table, and then thousands of references to it.
            let mut block = frames::get("/");
            if n == 0 {
                block.push(0x40);
                block.extend(&frames::fields(&[("x-bomb", &"b".repeat(3900))])[1..]);
            }
            block.extend(vec![0xbe; 8000]);
            let flags = frames::END_HEADERS | frames::END_STREAM;
            frame(frames::HEADERS, flags, 2 * n + 1, &block)
        },
        50,
    );
    survives(
        "SETTINGS",
        &[],
        |n| {
            frame(
                frames::SETTINGS,
                0,
                0,
                &[&[0, 4][..], &n.to_be_bytes()].concat(),
            )
        },
        20_000,
    );
    survives(
        "PING",
        &[],
        |n| frame(frames::PING, 0, 0, &u64::from(n).to_be_bytes()),
        50_000,
    );
    survives(
        "PRIORITY",
        &[],
        |n| frame(frames::PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 16]),
        50_000,
    );
    survives(
        "WINDOW_UPDATE",
        &[],
        |_| frame(frames::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        50_000,
    );
    let post = || {
        let head = frames::head("POST", "/", &[]);
        frame(frames::HEADERS, frames::END_HEADERS, 1, &head)
    };
    survives(
        "empty DATA",
        &[],
        |n| match n {
            0 => post(),
            _ => frame(frames::DATA, 0, 1, &[]),
        },
        20_000,
    );
    survives(
        "DATA of a byte",
        &[],
        |n| match n {
            0 => post(),
            _ => frame(frames::DATA, 0, 1, b"x"),
        },
        20_000,
    );
    survives("1000 streams at once", &[], |n| head(2 * n + 1), 1000);
    survives(
        "streams that break the rules",
        &[],
        |n| {
            let update = frame(frames::WINDOW_UPDATE, 0, 2 * n + 1, &0_u32.to_be_bytes());
            [head(2 * n + 1), update].concat()
        },
        5000,
    );
}

#[test]
fn resets_one_by_one_never_take_more_than_the_limit() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address())
        .limit(2)
        .set("queue.max_wait=20s")
        .start();
    let cancel = 8_u32.to_be_bytes();
    for _ in 0..10 {
        let mut client = Http2::connect(gate.address(), &[]);
        for n in 0..50 {
            let stream = 2 * n + 1;
            client.get(stream, "/");
            client.send(frame(frames::RST_STREAM, 0, stream, &cancel));
            // Its answer means that what came before has been looked at.
            client.send(frame(frames::PING, 0, 0, &[0; 8]));
            client.next(&[frames::PING]);
        }
    }
    gate.until_metric("tidegate_queued_requests", &[], 0.0);
    let in_flight = gate.metric("tidegate_in_flight_requests", &[]);
    assert!(in_flight <= 2.0, "{in_flight}");
    assert!(backend.requests().len() <= 2, "{:?}", backend.requests());
    assert_eq!(gate.metric("tidegate_orphaned_requests", &[]), in_flight);
    backend.release(10);
    nothing_is_left(&gate);
}

#[test]
fn a_stream_after_goaway_is_not_served() {
    let backend = ok();
    let gate = Tidegate::to(backend.address()).start();
    let mut client = Http2::connect(gate.address(), &[]);
    // The client breaks the rules of the connection.
    client.send(frame(frames::SETTINGS, 0, 1, &[]));
    client.get(1, "/");
    let rest = client.rest();
    assert!(
        rest.iter()
            .any(|f| f.kind == frames::GOAWAY && f.code() == 1),
        "{rest:?}"
    );
    assert!(rest.iter().all(|f| f.kind != frames::HEADERS), "{rest:?}");
    nothing_is_left(&gate);
    assert_eq!(backend.requests().len(), 0);
}

//! HTTP/2: what one stream of a connection does to the others, and what the windows of either side hold back.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{
    Held, Raw, Tidegate,
    frames::{self, Http2, frame},
    http2::{Answer, connect, get, nothing_is_left, request, run, send},
    memory, until,
};

const MIB: usize = 1 << 20;

/// How much a window opens.
fn update(stream: u32, bytes: usize) -> Vec<u8> {
    let bytes = u32::try_from(bytes).expect("a window");
    frame(frames::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// A backend that answers with so many bytes, or with the length of what it got.
fn large(bytes: usize) -> Raw {
    Raw::start(move |mut conn| {
        while let Some(request) = conn.request() {
            let answered = match request.body.len() {
                0 => conn.ok(&"x".repeat(bytes)),
                length => conn.ok(&length.to_string()),
            };
            if !answered {
                return;
            }
        }
    })
}

/// What comes without a length goes on in chunks, and counts with their frames there.
#[track_caller]
fn is_in_chunks(answer: &Answer, length: usize) {
    let counted: usize = answer.text().parse().expect("a length");
    assert!(
        (length..length + length / 100).contains(&counted),
        "{counted}"
    );
}

// --- one stream and the others ---

#[test]
fn a_connect_with_a_length_is_refused_like_any_other_and_alone() {
    let backend = Held::start();
    let gate = Tidegate::to(backend.address()).start();
    let connect = |length: &str| {
        frames::fields(&[
            (":method", "CONNECT"),
            (":authority", "app:443"),
            ("content-length", length),
        ])
    };
    let mut client = Http2::connect(gate.address(), &[]);
    client.get(1, "/held");
    until("the backend has it", || backend.requests().len() == 1);
    for (stream, length, flags, data) in [
        (3, "5", frames::END_HEADERS, &b""[..]),
        (5, "5", frames::END_HEADERS, b"hello"),
        (7, "0", frames::END_HEADERS, b""),
        (9, "0", frames::END_HEADERS | frames::END_STREAM, b""),
    ] {
        client.send(frame(frames::HEADERS, flags, stream, &connect(length)));
        if !data.is_empty() {
            client.send(frame(frames::DATA, 0, stream, data));
        }
        let refused = client.next(&[frames::HEADERS, frames::GOAWAY]);
        assert_eq!((refused.kind, refused.stream), (frames::HEADERS, stream));
    }
    // A length that it does not keep is an error of its stream: RFC 9113 8.1.1.
    let flags = frames::END_HEADERS | frames::END_STREAM;
    client.send(frame(frames::HEADERS, flags, 11, &connect("5")));
    let reset = loop {
        let reset = client.next(&[frames::RST_STREAM, frames::GOAWAY]);
        if reset.stream == 11 || reset.kind == frames::GOAWAY {
            break reset;
        }
    };
    assert_eq!((reset.kind, reset.code()), (frames::RST_STREAM, 1));
    let refused = [("reason", "not_implemented")];
    assert_eq!(
        gate.metric("tidegate_rejected_requests_total", &refused),
        4.0
    );
    client.get(13, "/after");
    backend.release(2);
    let mut answered = [0, 0].map(|_| client.next(&[frames::HEADERS]).stream);
    answered.sort_unstable();
    assert_eq!(answered, [1, 13]);
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn a_stalled_stream_does_not_hold_up_its_neighbour() {
    let backend = large(MIB);
    let gate = Tidegate::to(backend.address())
        .limit(4)
        .set("buffers.response=64KiB")
        .start();
    let mut client = Http2::connect(gate.address(), &[(frames::INITIAL_WINDOW_SIZE, 0)]);
    client.send(update(0, 8 * MIB)).get(1, "/").get(3, "/");
    let read = |client: &mut Http2, stream: u32| {
        client.send(update(stream, MIB));
        let (mut bytes, mut ended) = (0, false);
        while !ended {
            let data = client.next(&[frames::DATA, frames::RST_STREAM]);
            assert_eq!((data.kind, data.stream), (frames::DATA, stream));
            bytes += data.payload.len();
            ended = data.flags & frames::END_STREAM != 0;
        }
        assert_eq!(bytes, MIB);
    };
    read(&mut client, 3);
    // The other has waited, and is as whole.
    read(&mut client, 1);
    drop(client);
    nothing_is_left(&gate);
    assert_eq!(gate.metric("tidegate_canceled_requests_total", &[]), 0.0);
}

// --- windows ---

/// What the client's window has no room for is not handed on: a byte of room is a byte that comes, and no piece of
/// the answer waits where nobody counts it.
#[test]
fn not_a_byte_comes_without_room() {
    let backend = large(MIB);
    let gate = Tidegate::to(backend.address())
        .set("server.write_timeout=2s")
        .start();
    let mut client = Http2::connect(gate.address(), &[(frames::INITIAL_WINDOW_SIZE, 1)]);
    client.get(1, "/");
    let first = client.next(&[frames::DATA]);
    assert_eq!(first.payload, b"x");
    client.send(update(1, 2));
    assert_eq!(client.next(&[frames::DATA]).payload, b"xx");
    // Less than a piece of it within the time is no progress.
    let given_up = client.next(&[frames::DATA, frames::RST_STREAM]);
    assert_eq!((given_up.kind, given_up.code()), (frames::RST_STREAM, 8));
    gate.until_metric("tidegate_canceled_requests_total", &[], 1.0);
    drop(client);
    nothing_is_left(&gate);
}

#[test]
fn large_bodies_pass_both_ways_in_bounded_memory() {
    const LENGTH: usize = 32 * MIB;
    let backend = large(LENGTH);
    let gate = Tidegate::to(backend.address()).limit(8).start();
    assert_eq!(gate.get("/").body.len(), LENGTH);
    let (before, _) = memory(gate.pid());
    run(async {
        let client = connect(gate.address()).await;
        let body = vec![b'y'; LENGTH];
        let declared = request("POST", "/").header("content-length", LENGTH);
        let undeclared = request("POST", "/");
        let (down, up, other) = tokio::join!(
            get(&client, "/"),
            send(&client, declared.body(()).expect("a request"), &body),
            send(&client, undeclared.body(()).expect("a request"), &body),
        );
        assert_eq!(down.expect("an answer").body.len(), LENGTH);
        assert_eq!(up.expect("an answer").text(), LENGTH.to_string());
        is_in_chunks(&other.expect("an answer"), LENGTH);
    });
    let (_, most) = memory(gate.pid());
    let grown = most.saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more");
    nothing_is_left(&gate);
}

/// Who does not read is a reason to send no more, for this stream.
#[test]
fn a_body_that_nobody_reads_is_held_back() {
    let (wait, waits) = std::sync::mpsc::channel::<()>();
    let waits = std::sync::Mutex::new(waits);
    let backend = Raw::start(move |mut conn| {
        // Not a byte of it for now.
        let _ = waits.lock().map(|waits| waits.recv());
        while let Some(request) = conn.request() {
            conn.ok(&request.body.len().to_string());
        }
    });
    let gate = Tidegate::to(backend.address())
        .set("buffers.request=64KiB")
        .start();
    run(async {
        let mut client = connect(gate.address()).await;
        let asked = request("POST", "/").body(()).expect("a request");
        let (response, mut stream) = client.send_request(asked, false).expect("a stream");
        let mut sent = 0;
        // Until sockets, buffers and the window are full.
        loop {
            stream.reserve_capacity(16 * 1024);
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx));
            let Ok(room) = tokio::time::timeout(Duration::from_secs(1), room).await else {
                break;
            };
            let room = room.expect("a stream").expect("room");
            stream
                .send_data(Bytes::from(vec![b'z'; room]), false)
                .expect("room");
            sent += room;
            assert!(sent < 64 * MIB, "it is never held back");
        }
        drop(wait);
        stream.reserve_capacity(0);
        stream.send_data(Bytes::new(), true).expect("an end");
        let answer = Answer::read(response.await.expect("an answer")).await;
        is_in_chunks(&answer.expect("an answer"), sent);
    });
    nothing_is_left(&gate);
}

/// What a client may send ahead of whoever reads it is more than it is given by the protocol only where the budget has
/// it: one that takes it all the same is sent away.
#[test]
fn what_comes_ahead_is_held_of_the_budget() {
    let backend = large(MIB);
    let begun = |gate: &Tidegate, lengths: &[&str]| {
        let mut client = Http2::connect(gate.address(), &[]);
        for (n, length) in lengths.iter().enumerate() {
            let head = frames::head("POST", "/", &[("content-length", length)]);
            let stream = 2 * n as u32 + 1;
            client.send(frame(frames::HEADERS, frames::END_HEADERS, stream, &head));
        }
        client
    };
    let held = [("direction", "request")];
    let gate = Tidegate::to(backend.address()).start();
    let mut client = begun(&gate, &["1000", "1000"]);
    let wider = client.next(&[frames::WINDOW_UPDATE]);
    let update = (wider.stream, wider.payload);
    assert_eq!(update, (0, 65_536_u32.to_be_bytes().to_vec()));
    gate.until_metric("tidegate_buffered_bytes", &held, 67_536.0);
    drop(client);
    nothing_is_left(&gate);

    let gate = Tidegate::to(backend.address())
        .set("buffers.total=64KiB")
        .set("buffers.request=64KiB")
        .set("buffers.response=64KiB")
        .start();
    // This one has all of it, and is waited for.
    let mut first = begun(&gate, &["65536"]);
    gate.until_metric("tidegate_buffered_bytes", &held, 65_536.0);
    let mut client = begun(&gate, &["10000"; 8]);
    for n in 0..8 {
        client.send(frame(frames::DATA, 0, 2 * n + 1, &[b'x'; 10_000]));
    }
    let end = client.next(&[frames::GOAWAY, frames::WINDOW_UPDATE]);
    assert_eq!(
        (end.kind, end.code()),
        (frames::GOAWAY, 3),
        "FLOW_CONTROL_ERROR"
    );
    first.send(frame(frames::DATA, 0, 1, &[b'x'; 16_384]));
    drop((client, first));
    nothing_is_left(&gate);
}

/// What was sent of a body that is refused comes out of the connection's window, and goes back into it.
#[test]
fn refused_uploads_leave_no_hole_in_the_connections_window() {
    let backend = large(MIB);
    let gate = Tidegate::to(backend.address())
        .set("server.max_body_bytes=300000")
        .start();
    run(async {
        let client = connect(gate.address()).await;
        // Four times the window.
        for n in 0..80 {
            let asked = request("POST", "/").header("content-length", 400_000);
            let body = vec![b'z'; 400_000];
            let answer = send(&client, asked.body(()).expect("a request"), &body).await;
            assert_eq!(answer.expect("an answer").status(), 413, "{n}");
        }
        let asked = request("POST", "/").header("content-length", 300_000);
        let asked = asked.body(()).expect("a request");
        let answer = send(&client, asked, &vec![b'z'; 300_000]).await;
        assert_eq!(answer.expect("an answer").text(), "300000");
    });
    nothing_is_left(&gate);
}

// --- who takes nothing while others wait for the budget ---

/// Answers of `length` bytes, of which the budget has room for two.
fn crowded(length: usize) -> (Raw, Tidegate) {
    let backend = large(length);
    let gate = Tidegate::to(backend.address())
        .limit(4)
        .set("queue.max_wait=30s")
        .set(format!("buffers.response={length}"))
        .set(format!("buffers.total={}", 5 * length / 2))
        .start();
    (backend, gate)
}

/// Somebody else is, long before `server.write_timeout`.
#[track_caller]
fn is_served(gate: &Tidegate, length: usize) {
    let answer = gate.get("/");
    assert_eq!((answer.status, answer.body.len()), (200, length));
}

#[test]
fn streams_that_take_nothing_make_room_and_one_that_takes_little_does_not() {
    let (_backend, gate) = crowded(MIB);
    let closed = [(frames::INITIAL_WINDOW_SIZE, 0)];
    let mut slow = Http2::connect(gate.address(), &closed);
    slow.get(1, "/").next(&[frames::HEADERS]);
    let mut client = Http2::connect(gate.address(), &closed);
    for n in 0..8 {
        client.get(2 * n + 1, "/");
    }
    let (done, is_done) = std::sync::mpsc::channel();
    let mut opens = slow.reader();
    let opening = std::thread::spawn(move || {
        while is_done.recv_timeout(Duration::from_millis(200)).is_err() {
            opens.send(update(1, 10));
        }
    });
    client.next(&[frames::RST_STREAM]);
    is_served(&gate, MIB);
    done.send(()).expect("it still opens");
    opening.join().expect("it was let");
    slow.send(update(0, MIB)).send(update(1, MIB));
    let mut came = 0;
    while came < MIB {
        let next = slow.next(&[frames::DATA, frames::RST_STREAM]);
        assert_eq!(next.kind, frames::DATA, "after {came} bytes");
        came += next.payload.len();
    }
    drop((client, slow));
    nothing_is_left(&gate);
}

#[test]
fn connections_that_take_nothing_make_room() {
    const CLIENTS: u32 = 5;
    // Much more than the sockets take.
    const LENGTH: usize = 16 * MIB;
    let (_backend, gate) = crowded(LENGTH);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = gate.client();
            client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
            client
        })
        .collect();
    let open = || gate.metric("tidegate_client_connections", &[]);
    until("they are there", || open() == f64::from(CLIENTS));
    until("the first are cut off", || open() < f64::from(CLIENTS));
    is_served(&gate, LENGTH);
    drop(clients);
    nothing_is_left(&gate);
}

// --- ends ---

#[test]
fn an_answer_before_the_end_of_an_upload_is_whole_and_the_rest_is_not_wanted() {
    let backend = large(MIB);
    let gate = Tidegate::to(backend.address())
        .set("server.max_body_bytes=1000")
        .start();
    let mut client = Http2::connect(gate.address(), &[]);
    let head = frames::head("POST", "/", &[("content-length", "5000")]);
    client.send(frame(frames::HEADERS, frames::END_HEADERS, 1, &head));
    assert_eq!(client.next(&[frames::HEADERS]).stream, 1);
    let body = client.next(&[frames::DATA, frames::RST_STREAM]);
    assert_eq!((body.kind, body.flags), (frames::DATA, frames::END_STREAM));
    let reset = client.next(&[frames::RST_STREAM]);
    assert_eq!((reset.stream, reset.code()), (1, 0), "NO_ERROR");
    drop(client);
    nothing_is_left(&gate);
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn an_upload_that_its_client_resets_never_looks_whole() {
    let backend = large(MIB);
    let gate = Tidegate::to(backend.address()).start();
    let mut client = Http2::connect(gate.address(), &[]);
    // CANCEL, and NO_ERROR, which ends a response's body without harm, but not a request's.
    for (stream, code) in [(1, 8_u32), (3, 0)] {
        client.send(frame(
            frames::HEADERS,
            frames::END_HEADERS,
            stream,
            &frames::head("POST", "/", &[]),
        ));
        client.send(frame(frames::DATA, 0, stream, b"half of it"));
        client.send(frame(frames::PING, 0, 0, &[0; 8]));
        client.next(&[frames::PING]);
        client.send(frame(frames::RST_STREAM, 0, stream, &code.to_be_bytes()));
        let canceled = f64::from(stream / 2 + 1);
        gate.until_metric("tidegate_canceled_requests_total", &[], canceled);
    }
    assert_eq!(gate.metric("tidegate_rejected_requests_total", &[]), 0.0);
    drop(client);
    nothing_is_left(&gate);
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn answers_without_a_body_have_none() {
    let backend = Raw::answering(|request| match request.line() {
        line if line.contains("/204") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        line if line.contains("/304") => {
            b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 7\r\n\r\n".to_vec()
        }
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec(),
    });
    let gate = Tidegate::to(backend.address())
        .set("server.max_body_bytes=10")
        .start();
    run(async {
        let client = connect(gate.address()).await;
        for (method, path, status, length) in [
            ("GET", "/204", 204, None),
            ("GET", "/304", 304, Some("7")),
            ("HEAD", "/", 200, Some("1000")),
        ] {
            let asked = request(method, path).body(()).expect("a request");
            let answer = send(&client, asked, b"").await.expect("an answer");
            assert_eq!((answer.status(), answer.body.len()), (status, 0));
            let fields = &answer.head.headers;
            let told = fields
                .get("content-length")
                .map(|told| told.to_str().expect("ASCII"));
            assert_eq!(told, length, "{method} {path}");
            assert!(fields.contains_key("date"));
        }
    });
    // A refusal of HEAD has a length, and nothing of it comes.
    let mut client = Http2::connect(gate.address(), &[]);
    let head = frames::head("HEAD", "/", &[("host", "another")]);
    let flags = frames::END_HEADERS | frames::END_STREAM;
    client.send(frame(frames::HEADERS, flags, 1, &head));
    let refused = client.next(&[frames::HEADERS]);
    assert_eq!(refused.flags & frames::END_STREAM, frames::END_STREAM);
    drop(client);
    nothing_is_left(&gate);
}

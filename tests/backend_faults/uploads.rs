//! Bodies that are on their way to the backend when something goes wrong.

use super::*;

/// The head of an upload that is not completed.
const HALF_SENT: &str = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\n";

/// A client that has sent the head of an upload.
fn post(tidegate: &Tidegate, length: usize) -> Client {
    let mut client = tidegate.client();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n"
    ));
    client
}

fn a_hundred_megabytes(mut client: Client) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let length = 100_000_000;
        let head = format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n");
        let _ = client.try_send(head);
        let piece = vec![b'x'; 1_000_000];
        for _ in 0..length / piece.len() {
            if client.try_send(&piece).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_hundred_megabytes_for_a_backend_that_does_not_read() {
    let peer = Peer::start(peers::deaf::forever);
    let tidegate = Tidegate::to(&peer.address())
        .limit(2)
        .set("backend.response_timeout=700ms")
        .set("backend.orphan_max=300ms")
        .start();
    let (before, _) = memory(tidegate.pid());
    let mut client = tidegate.client();
    let upload = a_hundred_megabytes(client.writer());
    let answer = client.response_to("POST");
    assert_eq!((answer.status, &*answer.reason()), (504, "backend_timeout"));
    drop(client);
    upload.join().expect("it ends");
    let (_, most) = memory(tidegate.pid());
    // 256 KiB for the body, and what reading and writing take; not the body.
    let grown = most.saturating_sub(before) / 1_000_000;
    assert!(grown < 16, "{grown} MB more");
    peer.heal();
    tidegate.until_idle();
    assert_eq!(tidegate.get("/").status, 200);
}

/// All of it lies here, or it comes as the backend takes it: as long as the backend reads, it is not late.
#[test]
fn a_backend_that_reads_slowly_has_its_time_for_the_answer() {
    const LENGTH: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    // It ends with the process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut read, mut part) = (0, vec![0; 64 << 10]);
                // The head is in it. What the kernel has taken at the end no longer moves for tidegate, so that is
                // read at once.
                while read < LENGTH {
                    match stream.read(&mut part) {
                        Ok(0) | Err(_) => return,
                        Ok(some) => read += some,
                    }
                    if read < LENGTH - (6 << 20) {
                        std::thread::sleep(Duration::from_millis(16));
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                let _ = io::copy(&mut stream, &mut io::sink());
            });
        }
    });
    for held in ["64KiB", "32MiB"] {
        let tidegate = Tidegate::to(&address)
            .set("backend.response_timeout=1500ms")
            .set(format!("buffers.request={held}"))
            .start();
        let mut client = tidegate.client();
        let mut writer = client.writer();
        let upload = std::thread::spawn(move || {
            let head = format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {LENGTH}\r\n\r\n");
            writer
                .try_send(head)
                .and_then(|()| writer.try_send(vec![b'x'; LENGTH]))
        });
        let answer = client.response_to("POST");
        assert_eq!((answer.status, &*answer.text()), (200, "ok"), "{held}");
        upload.join().expect("it ends").expect("it is read");
        tidegate.until_idle();
    }
}

/// The backend may have the rest to read for long; its client has its answer.
#[test]
fn who_is_answered_amid_an_upload_is_not_kept() {
    let peer = Peer::start(peers::deaf::forever);
    let tidegate = Tidegate::to(&peer.address())
        .limit(2)
        .set("backend.response_timeout=300ms")
        .set("backend.orphan_max=10m")
        .start();
    let mut client = tidegate.client();
    let upload = a_hundred_megabytes(client.writer());
    let answer = client.response_to("POST");
    assert_eq!((answer.status, &*answer.reason()), (504, "backend_timeout"));
    assert!(client.is_closed());
    upload.join().expect("it ends");
    tidegate.until_metric("tidegate_client_connections", &[("state", "active")], 0.0);
    tidegate.until_metric("tidegate_orphaned_requests", &[], 1.0);
    peer.heal();
    tidegate.until_idle();
}

/// Clients that leave in the middle of an upload that was on its way: no backend may take what it got
/// for a whole request.
#[test]
fn half_an_upload_is_cut_off_and_not_completed() {
    const CLIENTS: usize = 20;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let got = Arc::new(Mutex::new(Vec::new()));
    let begun = Arc::new(AtomicUsize::new(0));
    let (all, begins) = (got.clone(), begun.clone());
    // It ends with the process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (all, begins) = (all.clone(), begins.clone());
            std::thread::spawn(move || {
                // tidegate looks at the start whether somebody is here.
                let mut request = vec![0];
                if stream.read_exact(&mut request).is_err() {
                    return;
                }
                begins.fetch_add(1, SeqCst);
                let _ = stream.read_to_end(&mut request);
                all.lock().expect("no panic").push(request);
            });
        }
    });
    let tidegate = Tidegate::to(&address)
        .limit(20)
        .set("buffers.request=16KiB")
        .set("backend.orphan_max=300ms")
        .start();
    let framings = [
        ("Content-Length: 1000000", String::new()),
        ("Transfer-Encoding: chunked", "fffff\r\n".to_owned()),
    ];
    for (field, before) in framings {
        let clients: Vec<Client> = (0..CLIENTS)
            .map(|_| {
                let mut client = tidegate.client();
                client.send(format!(
                    "POST / HTTP/1.1\r\nHost: app\r\n{field}\r\n\r\n{before}"
                ));
                client.send("x".repeat(200_000));
                client
            })
            .collect();
        until("all are at the backend", || begun.load(SeqCst) == CLIENTS);
        begun.store(0, SeqCst);
        drop(clients);
        until("the backend's connections are closed", || {
            got.lock().expect("no panic").len() == CLIENTS
        });
        for request in got.lock().expect("no panic").drain(..) {
            let end = request.windows(4).position(|four| four == b"\r\n\r\n");
            let body = &request[end.expect("a head") + 4..];
            assert!(body.len() < 400_000, "{field}: {} bytes", body.len());
            assert!(!body.ends_with(b"0\r\n\r\n"), "{field}: it has an end");
        }
        tidegate.until_idle();
    }
    tidegate.until_metric("tidegate_buffered_bytes", &[], 0.0);
}

/// What is on the disk leaves the memory to others.
#[test]
fn a_spooled_upload_holds_little_of_the_budget() {
    let backend = Raw::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec());
    let dir = tempfile::tempdir().expect("a directory");
    let tidegate = Tidegate::to(backend.address())
        .set(format!("buffers.spool_dir={}", dir.path().display()))
        .set("buffers.total=1MiB")
        .set("server.body_timeout=5m")
        .start();
    let mut uploads: Vec<Client> = (0..4).map(|_| post(&tidegate, 1_000_000)).collect();
    let held = || tidegate.metric("tidegate_buffered_bytes", &[("direction", "request")]);
    until("all of it is held", || held() == 1_048_576.0);
    for upload in &mut uploads {
        upload.send("x".repeat(600_000));
    }
    until("they are on the disk", || held() <= 4.0 * 65_536.0);
    let mut other = post(&tidegate, 100_000);
    other.send("x".repeat(100_000));
    assert_eq!(other.response().status, 200);
}

/// Four heads reserve all of the budget; what does not come is not kept for them while others wait.
#[test]
fn heads_without_bodies_do_not_keep_the_budget_from_others() {
    const LENGTH: usize = 262_144;
    let backend = Raw::answering(|request| {
        let length = request.body.len();
        let body = length.to_string();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    });
    let tidegate = Tidegate::to(backend.address())
        .set("buffers.total=1MiB")
        .set("server.body_timeout=5m")
        .start();
    let mut slow: Vec<Client> = (0..4).map(|_| post(&tidegate, LENGTH)).collect();
    let held = || tidegate.metric("tidegate_buffered_bytes", &[("direction", "request")]);
    until("all of it is held", || held() == 1_048_576.0);
    let mut others: Vec<Client> = (0..3).map(|_| post(&tidegate, LENGTH)).collect();
    for other in &mut others {
        other.send("x".repeat(LENGTH));
    }
    for mut other in others {
        let answer = other.response_to("POST");
        assert_eq!((answer.status, &*answer.text()), (200, "262144"));
    }
    // They are served when they do come.
    for client in &mut slow {
        client.send("x".repeat(LENGTH));
    }
    for mut client in slow {
        let answer = client.response_to("POST");
        assert_eq!((answer.status, &*answer.text()), (200, "262144"));
    }
    tidegate.until_metric("tidegate_buffered_bytes", &[], 0.0);
}

/// It is the client that is late, whatever the backend was given: neither its fault nor a sign of load.
#[test]
fn an_upload_that_stalls_is_not_the_backends_time_out() {
    let backend = Raw::start(|mut conn| assert!(conn.request().is_none()));
    let tidegate = Tidegate::to(backend.address())
        .limit(20)
        .set("buffers.request=16KiB")
        .set("backend.response_timeout=300ms")
        .set("backend.orphan_max=10m")
        .start();
    let mut client = tidegate.client();
    client.send(HALF_SENT);
    client.send("x".repeat(200_000));
    let answer = client.response_to("POST");
    assert_eq!((answer.status, &*answer.reason()), (408, "request_timeout"));
    assert!(client.is_closed());
    tidegate.until_idle();
    assert_eq!(tidegate.metric("tidegate_orphaned_requests", &[]), 0.0);
    assert_eq!(tidegate.metric("tidegate_backend_errors_total", &[]), 0.0);
}

/// The worker waits for the rest of an upload that it has begun to answer, and hears at once that there is none.
#[test]
fn an_upload_that_breaks_amid_its_answer_frees_the_worker() {
    let backend = Raw::start(|mut conn| {
        if conn.stream.read_exact(&mut [0]).is_ok() {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
            assert!(conn.request().is_none());
        }
    });
    let tidegate = Tidegate::to(backend.address())
        .set("buffers.request=16KiB")
        .set("backend.read_timeout=10m")
        .set("backend.orphan_max=10m")
        .set("server.body_timeout=3s")
        .set("server.body_min_rate=0")
        .start();
    for leaves in [true, false] {
        let mut client = tidegate.client();
        client.send(HALF_SENT);
        client.send("x".repeat(200_000));
        assert_eq!(client.try_head().expect("a head").status, 200);
        assert_eq!(client.take_chunk().expect("a chunk"), b"abc");
        if !leaves {
            assert!(client.take_chunk().is_err(), "it is too late");
        }
        drop(client);
        tidegate.until_idle();
        tidegate.until_metric("tidegate_orphaned_requests", &[], 0.0);
    }
}

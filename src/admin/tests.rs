//! The server over real sockets, with a tidegate that is a fake.

use std::{
    io::Read,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use std::sync::Arc;

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::config::{self, Address, Mutations};

struct Fake {
    ready: AtomicBool,
    hangs: AtomicBool,
    draining: AtomicBool,
    drained: watch::Sender<bool>,
    limit: Mutex<Option<u32>>,
}

impl Fake {
    fn new() -> Arc<Self> {
        Arc::new(Fake {
            ready: AtomicBool::new(true),
            hangs: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            drained: watch::channel(false).0,
            limit: Mutex::new(None),
        })
    }
}

impl Handle for Fake {
    fn metrics(&self, format: Format) -> String {
        match format {
            Format::Text => "# text\n".repeat(1000),
            Format::OpenMetrics => "# EOF\n".to_owned(),
        }
    }
    fn status(&self) -> Value {
        json!({ "limit": *self.limit.lock().unwrap() })
    }
    fn config(&self) -> (String, Value) {
        ("[server]\n".to_owned(), json!({ "server": {} }))
    }
    fn alive(&self) -> Answer<'_, Result<(), Duration>> {
        let hangs = self.hangs.load(Relaxed);
        Box::pin(async move {
            match hangs {
                true => Err(Duration::from_secs(7)),
                false => Ok(()),
            }
        })
    }
    fn ready(&self) -> Answer<'_, Readiness> {
        let draining = self.draining.load(Relaxed);
        let ready = self.ready.load(Relaxed) && !draining;
        let backend = if ready {
            Ok(())
        } else {
            Err("refused".to_owned())
        };
        let checks = vec![("backend".to_owned(), backend)];
        Box::pin(async move {
            Readiness {
                ready,
                draining,
                checks,
            }
        })
    }
    fn reload(&self) -> Answer<'_, Result<String, String>> {
        Box::pin(async { Err("tidegate.toml:1:1: no".to_owned()) })
    }
    fn drain(&self, _passing: bool) {
        self.draining.store(true, Relaxed);
    }
    fn undrain(&self) -> Result<(), String> {
        self.draining.store(false, Relaxed);
        Ok(())
    }
    fn drained(&self) -> Answer<'_, bool> {
        let mut drained = self.drained.subscribe();
        Box::pin(async move { drained.wait_for(|drained| *drained).await.is_ok() })
    }
    fn set_limit(&self, limit: Option<u32>) -> Result<(), String> {
        if limit.is_some_and(|limit| limit > 1000) {
            return Err("limit.max is 1000".to_owned());
        }
        *self.limit.lock().unwrap() = limit;
        Ok(())
    }
}

struct Server {
    address: SocketAddr,
    fake: Arc<Fake>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(mutations: Mutations) -> Server {
        let listen = Address::Tcp {
            host: "127.0.0.1".into(),
            port: 0,
        };
        let listener = AdminListener::bind(&config::Admin { listen, mutations })
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Fake::new();
        let (stop, stopped) = oneshot::channel::<()>();
        let handle: Arc<dyn Handle> = fake.clone();
        let task = tokio::spawn(serve(listener, handle, async {
            let _ = stopped.await;
        }));
        Server {
            address,
            fake,
            stop,
            task,
        }
    }

    async fn ask(&self, head: &str, body: &str) -> Answered {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        exchange(&mut stream, head, body).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.ask(&format!("GET {path} HTTP/1.1\r\n"), "").await
    }

    async fn post(&self, path: &str, body: &str) -> Answered {
        self.ask(&format!("POST {path} HTTP/1.1\r\n"), body).await
    }
}

struct Answered {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answered {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
    fn has(&self, line: &str) -> bool {
        self.head
            .lines()
            .any(|found| found.eq_ignore_ascii_case(line))
    }
}

async fn exchange(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    head: &str,
    body: &str,
) -> Answered {
    let length = body.len();
    let request = format!(
        "{head}Host: 127.0.0.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let end = answer
        .windows(4)
        .position(|part| part == b"\r\n\r\n")
        .expect("a head")
        + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answered {
        status,
        head,
        body: answer[end..].to_vec(),
    }
}

#[tokio::test]
async fn liveness_and_readiness() {
    let server = Server::start(Mutations::Loopback).await;
    assert_eq!(server.get("/livez").await.status, 200);
    server.fake.hangs.store(true, Relaxed);
    let hanging = server.get("/livez").await;
    assert_eq!(hanging.status, 503);
    assert!(hanging.text().contains("hanging for 7 s"));
    server.fake.hangs.store(false, Relaxed);
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
    server.fake.ready.store(false, Relaxed);
    let unready = server.get("/readyz?verbose").await;
    assert_eq!(unready.status, 503);
    assert_eq!(unready.text(), "[-] backend: refused\nnot ready\n");
    server.fake.draining.store(true, Relaxed);
    assert_eq!(server.get("/readyz").await.text(), "draining\n");
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn metrics_in_the_format_and_coding_that_was_asked_for() {
    let server = Server::start(Mutations::Loopback).await;
    let plain = server.get("/metrics").await;
    assert!(
        plain.has("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{}",
        plain.head
    );
    assert!(plain.text().starts_with("# text"));
    let packed = server
        .ask("GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip\r\n", "")
        .await;
    assert!(packed.has("content-encoding: gzip"));
    assert!(packed.body.len() < plain.body.len());
    let mut unpacked = String::new();
    GzDecoder::new(&packed.body[..])
        .read_to_string(&mut unpacked)
        .unwrap();
    assert_eq!(unpacked, plain.text());
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let open = server
        .ask(&format!("GET /metrics HTTP/1.1\r\n{accept}\r\n"), "")
        .await;
    assert!(
        open.has("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{}",
        open.head
    );
    assert_eq!(open.text(), "# EOF\n");
}

#[tokio::test]
async fn documents_and_the_page() {
    let server = Server::start(Mutations::Loopback).await;
    let status: Value = serde_json::from_slice(&server.get("/status").await.body).unwrap();
    assert_eq!(status, json!({ "limit": null }));
    let toml = server.get("/config").await;
    assert!(toml.has("content-type: text/plain; charset=utf-8") && toml.text() == "[server]\n");
    let json = server
        .ask("GET /config HTTP/1.1\r\nAccept: application/json\r\n", "")
        .await;
    assert!(json.has("content-type: application/json"));
    let page = server.get("/").await;
    assert!(page.head.contains("script-src 'nonce-"));
    assert!(!page.text().contains("{nonce}"));
    for outside in ["http://", "https://", "src=\"", "@import", "url("] {
        assert!(!page.text().contains(outside), "{outside}");
    }
    assert!(!server.get("/").await.text().contains(nonce_of(&page.head)));
}

fn nonce_of(head: &str) -> &str {
    head.split("'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap()
}

#[tokio::test]
async fn wrong_methods_and_paths() {
    let server = Server::start(Mutations::Loopback).await;
    let missing = server.get("/nothing").await;
    assert_eq!(missing.status, 404);
    assert!(missing.has("content-type: application/problem+json"));
    let wrong = server.get("/drain").await;
    assert_eq!(wrong.status, 405);
    assert!(wrong.has("allow: POST"));
    assert!(!server.fake.draining.load(Relaxed));
    let wrong = server.post("/status", "").await;
    assert!(wrong.status == 405 && wrong.has("allow: GET, HEAD"));
    let head = server.ask("HEAD /metrics HTTP/1.1\r\n", "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(head.has("content-length: 7000"), "{}", head.head);
    assert_eq!(
        server.ask("HEAD /drain/wait HTTP/1.1\r\n", "").await.status,
        405
    );
    assert!(!server.fake.draining.load(Relaxed));
}

#[tokio::test]
async fn changes_over_loopback() {
    let server = Server::start(Mutations::Loopback).await;
    assert_eq!(server.post("/limit", r#"{"limit": 8}"#).await.status, 200);
    assert_eq!(*server.fake.limit.lock().unwrap(), Some(8));
    assert_eq!(server.post("/limit", "\"auto\"").await.status, 200);
    assert_eq!(*server.fake.limit.lock().unwrap(), None);
    assert_eq!(server.post("/limit", r#"{"limit": 0}"#).await.status, 400);
    let refused = server.post("/limit", "2000").await;
    assert_eq!(refused.status, 422);
    let problem: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(problem["detail"], "limit.max is 1000");
    assert_eq!(server.post("/reload", "").await.status, 422);
    assert_eq!(server.post("/drain", "").await.status, 200);
    assert!(server.fake.draining.load(Relaxed));
    assert_eq!(server.post("/undrain", "").await.status, 200);
    assert!(!server.fake.draining.load(Relaxed));
}

#[tokio::test]
async fn changes_that_are_not_allowed() {
    let server = Server::start(Mutations::Loopback).await;
    for header in ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site"] {
        let refused = server
            .ask(&format!("POST /drain HTTP/1.1\r\n{header}\r\n"), "")
            .await;
        assert_eq!(refused.status, 403, "{header}");
        let refused = server
            .ask(&format!("GET /drain/wait HTTP/1.1\r\n{header}\r\n"), "")
            .await;
        assert_eq!(refused.status, 403, "{header}");
    }
    // An image on any page sends this.
    let refused = server
        .ask(
            "GET /drain/wait HTTP/1.1\r\nUser-Agent: Mozilla/5.0\r\n",
            "",
        )
        .await;
    assert_eq!(refused.status, 403);
    let off = Server::start(Mutations::Off).await;
    assert_eq!(off.post("/drain", "").await.status, 403);
    assert_eq!(off.get("/drain/wait").await.status, 403);
    assert!(!server.fake.draining.load(Relaxed) && !off.fake.draining.load(Relaxed));
}

#[tokio::test]
async fn a_body_has_a_limit() {
    let server = Server::start(Mutations::Loopback).await;
    // The head alone tells: the server need not read on, and the client may see a reset after it.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /limit HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let _ = stream.write_all(&[b' '; 66_000]).await;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[tokio::test]
async fn waiting_for_a_drain_starts_it_and_survives_the_shutdown() {
    let server = Server::start(Mutations::Loopback).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let waiting =
        tokio::spawn(
            async move { exchange(&mut stream, "GET /drain/wait HTTP/1.1\r\n", "").await },
        );
    while !server.fake.draining.load(Relaxed) {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    // Both at once: the answer must not get lost.
    server.stop.send(()).unwrap();
    server.fake.drained.send_replace(true);
    assert_eq!(waiting.await.unwrap().status, 200);
    timeout(Duration::from_secs(5), server.task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn silent_clients_do_not_keep_others_out() {
    let server = Server::start(Mutations::Loopback).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /livez HT").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(server.get("/livez").await.status, 200);
    // The oldest was sent away.
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(5), silent[0].read_to_end(&mut rest))
        .await
        .unwrap();
}

#[tokio::test]
async fn slow_bodies_do_not_keep_others_out() {
    let server = Server::start(Mutations::Loopback).await;
    let head =
        "POST /limit HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    let mut slow = Vec::new();
    for _ in 0..70 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 100", "its body is wanted");
        slow.push(stream);
    }
    assert_eq!(server.get("/livez").await.status, 200);
    // The latest is still read from.
    let latest = slow.last_mut().expect("one of them");
    latest.write_all(b"        3").await.unwrap();
    let mut answer = String::new();
    while !answer.contains("\"limit\"") {
        let mut part = [0; 4096];
        let read = latest.read(&mut part).await.unwrap();
        assert!(read > 0, "{answer}");
        answer.push_str(std::str::from_utf8(&part[..read]).unwrap());
    }
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_and_a_slow_body_end_in_time() {
    let server = Server::start(Mutations::Loopback).await;
    for (sent, expected) in [
        ("GET /livez HT", ""),
        (
            "POST /limit HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
            "HTTP/1.1 408",
        ),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The clock is paused: it jumps to the next timer whenever nothing else is to be done.
        let _ = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(answer.starts_with(expected.as_bytes()), "{sent}");
    }
}

#[tokio::test]
async fn many_who_wait_for_a_drain_leave_room_for_probes() {
    let server = Server::start(Mutations::Loopback).await;
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream
            .write_all(b"GET /drain/wait HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        waiting.push(stream);
    }
    assert_eq!(server.get("/livez").await.status, 200);
    server.fake.drained.send_replace(true);
    let mut start = [0; 12];
    waiting[0].read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
}

/// Opens a stream of the status and reads until it contains `documents` of them.
async fn streamed(server: &Server, documents: usize) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let ask = "GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    let complete = async {
        // A refusal is one document too.
        while text.matches("}\n").count() < documents {
            let mut part = [0; 4096];
            let read = stream.read(&mut part).await.unwrap();
            text.push_str(std::str::from_utf8(&part[..read]).unwrap());
            if read == 0 {
                break;
            }
        }
    };
    timeout(Duration::from_secs(10), complete).await.unwrap();
    (stream, text)
}

#[tokio::test]
async fn the_status_comes_as_events_until_the_server_closes() {
    let server = Server::start(Mutations::Loopback).await;
    let (mut stream, text) = streamed(&server, 1).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    for part in [
        "content-type: text/event-stream\r\n",
        "cache-control: no-store\r\n",
        "retry: 2000\n\n",
        "data: {\"limit\":null}\n\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The next one is made when it is due, from what is so then.
    *server.fake.limit.lock().unwrap() = Some(7);
    let mut rest = String::new();
    while !rest.contains("data: {\"limit\":7}\n\n") {
        let mut part = [0; 4096];
        let read = timeout(Duration::from_secs(10), stream.read(&mut part));
        let read = read.await.unwrap().unwrap();
        assert!(read > 0, "{rest}");
        rest.push_str(std::str::from_utf8(&part[..read]).unwrap());
    }
    // At the end it says so at once, with the last state of things.
    *server.fake.limit.lock().unwrap() = Some(9);
    server.stop.send(()).unwrap();
    let mut last = String::new();
    let end = timeout(Duration::from_secs(10), stream.read_to_string(&mut last));
    end.await.unwrap().unwrap();
    assert!(last.contains("data: {\"limit\":9}\n\n"), "{last}");
    assert!(last.ends_with("0\r\n\r\n"), "{last}");
    timeout(Duration::from_secs(10), server.task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn streams_have_few_places_which_come_free() {
    let server = Server::start(Mutations::Loopback).await;
    let mut open = Vec::new();
    for _ in 0..events::MAX_STREAMS {
        open.push(streamed(&server, 1).await);
    }
    let events = "GET /status HTTP/1.1\r\nAccept: text/event-stream\r\n";
    let refused = server.ask(events, "").await;
    assert_eq!(refused.status, 503);
    // All else goes on, and HEAD opens nothing.
    assert_eq!(server.get("/status").await.status, 200);
    let head = server.ask(&events.replace("GET", "HEAD"), "").await;
    assert_eq!(head.status, 200);
    assert!(head.has("content-type: application/json"));
    open.pop();
    let again = async {
        loop {
            let (_stream, text) = streamed(&server, 1).await;
            if text.starts_with("HTTP/1.1 200") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), again).await.unwrap();
}

#[tokio::test]
async fn a_kept_connection_serves_again() {
    let server = Server::start(Mutations::Loopback).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..3 {
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok\n") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    // One that a dead process left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let settings = config::Admin {
        listen: Address::Unix(path.clone()),
        mutations: Mutations::Loopback,
    };
    let listener = AdminListener::bind(&settings).await.unwrap();
    assert!(
        AdminListener::bind(&settings).await.is_err(),
        "the address is taken"
    );
    let fake = Fake::new();
    let (stop, stopped) = oneshot::channel::<()>();
    let handle: Arc<dyn Handle> = fake.clone();
    let task = tokio::spawn(serve(listener, handle, async {
        let _ = stopped.await;
    }));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let drained = exchange(&mut stream, "POST /drain HTTP/1.1\r\n", "").await;
    assert_eq!(drained.status, 200);
    assert!(fake.draining.load(Relaxed));
    stop.send(()).unwrap();
    task.await.unwrap();
    assert!(!path.exists());
}

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    backend::Lines,
    config::Profile,
    sense::{Connection, Crew},
};

struct Free;

impl Lease for Free {
    fn told(&self, _: Box<Response<()>>) {}

    fn complete(self, _: Completion, _: Option<StatusCode>, _: Instant) {}
}

/// A backend that keeps its connections.
async fn backend() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn the_wait_for_a_free_worker_is_not_the_backends_time() {
    const USUAL: Duration = Duration::from_millis(30);
    let mut config = Config::default();
    config.backend.keepalive = true;
    config.backend.profile = Profile::GunicornGthread;
    let (metrics, timers) = (Arc::new(Metrics::new()), Timers::default());
    let none = Lines::default();
    let address = backend().await.to_string().parse().expect("an address");
    let of_it = metrics.endpoint("it");
    let endpoint = Endpoint::new(0, address, &config.backend, of_it, clock::now());
    let (endpoint, config) = (Arc::new(endpoint), Arc::new(config));
    let budget = Budget::new(1024 * 1024);
    let delivery = || Delivery {
        endpoint: &endpoint,
        config: &config,
        budget: &budget,
        share: None,
        metrics: &metrics,
        stream: false,
        now: clock::now(),
        timers: &timers,
        added: &none,
    };
    let request = Box::<RequestHead>::default();
    let first = exchange(delivery(), request, RequestBody::Empty, Free).await;
    assert_eq!(first.ok().map(|it| it.status()), Some(StatusCode::OK));
    let crew = Crew {
        master: std::process::id(),
        workers: vec![1],
        slots_each: 1,
    };
    endpoint.staff(Some(&crew));
    let Some(steering) = endpoint.steering() else {
        // The kernel does not say here whose connections are.
        return;
    };
    let elsewhere = Connection::Unix { ours: 0 };
    let before = steering.seat(elsewhere, true);
    tokio::time::sleep(USUAL).await;
    drop(before);
    let _busy = steering.seat(elsewhere, true);
    let delivery = delivery();
    let (link, since) = open(&delivery, true, true).await.expect("a connection");
    assert!(link.reused);
    let waited = since.saturating_duration_since(delivery.now);
    assert!(waited >= USUAL, "{waited:?}");
}

/// Tells how it was completed.
struct Told(tokio::sync::mpsc::UnboundedSender<(Completion, Option<StatusCode>)>);

impl Lease for Told {
    fn told(&self, _: Box<Response<()>>) {}

    fn complete(self, completion: Completion, status: Option<StatusCode>, _: Instant) {
        let _ = self.0.send((completion, status));
    }
}

/// How an exchange is completed that is given up when the backend has the request, and then answers this, without
/// hanging up.
async fn given_up(answer: &'static [u8]) -> (Completion, Option<StatusCode>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (config, timers) = (Arc::new(Config::default()), Timers::default());
    let metrics = Arc::new(Metrics::new());
    let address = address.parse().expect("an address");
    let of_it = metrics.endpoint("it");
    let endpoint = Endpoint::new(0, address, &config.backend, of_it, clock::now());
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let delivery = Delivery {
        share: None,
        endpoint: &Arc::new(endpoint),
        config: &config,
        budget: &Budget::new(1024 * 1024),
        metrics: &metrics,
        stream: false,
        now: clock::now(),
        timers: &timers,
        added: &Lines::default(),
    };
    let request = Box::<RequestHead>::default();
    let exchanged = exchange(delivery, request, RequestBody::Empty, Told(tell));
    let received = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        assert!(stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0));
        stream
    };
    let mut stream = tokio::select! {
        _ = exchanged => panic!("there was no answer"),
        stream = received => stream,
    };
    stream.write_all(answer).await.expect("somebody reads");
    let completed = clock::within(Duration::from_secs(20), told.recv()).await;
    completed.flatten().expect("the backend is done")
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_any_more_was_in_vain() {
    let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let in_vain = (Completion::AnsweredInVain, Some(StatusCode::OK));
    assert_eq!(given_up(whole).await, in_vain);
}

/// It may have no end, and its worker notices that nobody listens.
#[tokio::test]
async fn a_stream_that_nobody_waits_for_any_more_is_not_read() {
    let stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
    assert_eq!(given_up(stream).await.0, Completion::Abandoned);
}

#[test]
fn what_is_no_answer_says_nothing_of_how_busy_the_backend_is() {
    use crate::backend::codec::Malformed;
    let malformed = Error::Protocol(Malformed::StatusLine);
    assert_eq!(Completion::of(&malformed), Completion::Malformed);
    assert_eq!(Completion::of(&Error::Switched), Completion::Malformed);
    let reset = Error::Reset(std::io::ErrorKind::ConnectionReset.into());
    assert_eq!(Completion::of(&reset), Completion::Reset);
}

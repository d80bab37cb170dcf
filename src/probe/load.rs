//! Closed-loop load: so many clients, each of which sends its next request when the last is answered.
//!
//! A request goes over a connection of its own, closed at once when the response is complete, as
//! tidegate does it; with `keepalive` each client keeps its connection.

use std::{
    cell::{Cell, RefCell},
    io::{self, ErrorKind},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{sync::Notify, task::spawn_local, time::timeout};

use super::{
    Target,
    tally::{Outcome, Record},
};
use crate::{
    backend::{Error, connect::connect},
    clock,
};

/// After a request that failed, so that a server that refuses is not hammered.
const PAUSE: Duration = Duration::from_millis(20);
/// For a connection. SYNs that a full backlog drops are sent again after 1 s and 3 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How requests are sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// To whom.
    pub target: Target,
    /// One connection for each client, instead of one for each request.
    pub keepalive: bool,
    /// For a whole response.
    pub timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    stopped: Cell<bool>,
    records: RefCell<Vec<Record>>,
    /// When each client's present request began.
    running: RefCell<Vec<Option<Instant>>>,
    /// What kept a client from connecting, and was not the server's doing.
    shortage: RefCell<Option<Shortage>>,
    short: Notify,
}

/// The probe itself has nothing left to connect with. It says nothing of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the probe itself has nothing left to connect with ({error}): {remedy}")]
pub struct Shortage {
    error: String,
    remedy: &'static str,
}

impl Shortage {
    fn of(error: &io::Error) -> Self {
        let remedy = match error.kind() {
            ErrorKind::AddrNotAvailable => {
                "its ports are used up; wait a minute, or measure a slower view"
            }
            _ => "allow it more open files (ulimit -Hn), or lower --max-concurrency",
        };
        Self {
            error: error.to_string(),
            remedy,
        }
    }
}

/// The clients. They run on the `LocalSet` that created them, until [`Load::stop`].
#[derive(Debug)]
pub struct Load {
    shared: Rc<Shared>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// No client yet.
    pub fn new(plan: Plan) -> Self {
        let shared = Shared {
            plan,
            stopped: Cell::new(false),
            records: RefCell::default(),
            running: RefCell::default(),
            shortage: RefCell::default(),
            short: Notify::new(),
        };
        Self {
            shared: Rc::new(shared),
            clients: Vec::new(),
        }
    }

    /// Clients now.
    pub fn clients(&self) -> u32 {
        self.clients.len() as u32
    }

    /// Adds clients until there are so many.
    pub fn grow(&mut self, clients: u32) {
        for _ in self.clients()..clients {
            let number = self.clients.len();
            self.shared.running.borrow_mut().push(None);
            self.clients
                .push(spawn_local(client(self.shared.clone(), number)));
        }
    }

    /// The requests that have ended since the last call, and since when each of the others runs.
    pub fn take(&self) -> (Vec<Record>, Vec<Instant>) {
        let running = self.shared.running.borrow();
        let running = running.iter().flatten().copied().collect();
        (self.shared.records.take(), running)
    }

    /// Requests that have ended since the last [`Load::take`].
    pub fn ended(&self) -> u64 {
        self.shared.records.borrow().len() as u64
    }

    /// Completes when a client had nothing left to connect with: what is measured from then on is wrong.
    pub fn shortage(&self) -> impl Future<Output = Shortage> + use<> {
        let shared = self.shared.clone();
        async move {
            loop {
                if let Some(shortage) = shared.shortage.take() {
                    return shortage;
                }
                shared.short.notified().await;
            }
        }
    }

    /// No new requests; waits for those that run, at most for `patience`. No client is left when it returns.
    pub async fn stop(mut self, patience: Duration) {
        self.shared.stopped.set(true);
        let all = async {
            for client in &mut self.clients {
                let _ = client.await;
            }
        };
        let _ = timeout(patience, all).await;
        let running = self.clients.iter_mut().filter(|one| !one.is_finished());
        for client in running {
            client.abort();
            let _ = client.await;
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &self.clients {
            client.abort();
        }
    }
}

/// One request, as it is sent by a client.
///
/// # Errors
/// When the probe has nothing left to connect with.
pub async fn once(plan: &Plan) -> Result<Exchanged, Shortage> {
    exchange(plan, &mut None).await
}

/// Why there is no connection, in words: it is tried once more for that.
pub async fn refusal(plan: &Plan) -> String {
    match connect(&plan.target.address, CONNECT_TIMEOUT).await {
        Err(Error::Connect(error))
            if !matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            format!("cannot connect: {error}")
        }
        Err(Error::ConnectTimeout) => "no connection was accepted in time".to_owned(),
        _ => "nothing listens there".to_owned(),
    }
}

async fn client(shared: Rc<Shared>, number: usize) {
    let mut kept = None;
    while !shared.stopped.get() {
        let started = clock::now();
        shared.running.borrow_mut()[number] = Some(started);
        let exchanged = exchange(&shared.plan, &mut kept).await;
        shared.running.borrow_mut()[number] = None;
        let outcome = match exchanged {
            Ok((outcome, _)) => outcome,
            Err(shortage) => {
                shared.shortage.replace(Some(shortage));
                shared.short.notify_one();
                return;
            }
        };
        shared.records.borrow_mut().push(Record {
            started,
            ended: clock::now(),
            outcome,
        });
        if !outcome.answered() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

type Sender = SendRequest<Empty<Bytes>>;

/// A connection whose driver ends with it.
#[derive(Debug)]
struct Link {
    sender: Sender,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How it ended, and the head of the answer, if there was one.
type Exchanged = (Outcome, Option<http::response::Parts>);

async fn exchange(plan: &Plan, kept: &mut Option<Link>) -> Result<Exchanged, Shortage> {
    // A kept connection may have been closed meanwhile: that is no failure of the server's. An answer
    // that has begun and is torn is one.
    if let Some(mut link) = kept.take()
        && link.sender.ready().await.is_ok()
    {
        match timeout(plan.timeout, respond(plan, &mut link)).await {
            Ok((Outcome::Broken, None)) => {}
            Ok(done) => {
                keep(plan, kept, link);
                return Ok(done);
            }
            Err(_) => return Ok((Outcome::Timeout, None)),
        }
    }
    let stream = match connect(&plan.target.address, CONNECT_TIMEOUT).await {
        Ok(stream) => stream,
        Err(Error::Shortage(error)) => return Err(Shortage::of(&error)),
        Err(_) => return Ok((Outcome::Unreachable, None)),
    };
    if !plan.keepalive {
        stream.leave_nothing();
    }
    let Ok((sender, connection)) = handshake(TokioIo::new(stream)).await else {
        return Ok((Outcome::Broken, None));
    };
    let mut link = Link {
        sender,
        driver: spawn_local(async move {
            let _ = connection.await;
        }),
    };
    match timeout(plan.timeout, respond(plan, &mut link)).await {
        Ok(done) => {
            keep(plan, kept, link);
            Ok(done)
        }
        Err(_) => Ok((Outcome::Timeout, None)),
    }
}

fn keep(plan: &Plan, kept: &mut Option<Link>, link: Link) {
    if plan.keepalive && !link.sender.is_closed() {
        *kept = Some(link);
    }
}

async fn respond(plan: &Plan, link: &mut Link) -> Exchanged {
    let Some(request) = request(plan) else {
        return (Outcome::Broken, None);
    };
    let Ok(response) = link.sender.send_request(request).await else {
        return (Outcome::Broken, None);
    };
    let (parts, mut body) = response.into_parts();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return (Outcome::Broken, Some(parts));
        }
    }
    let outcome = match parts.status.as_u16() {
        429 | 503 => Outcome::Refused,
        500.. => Outcome::ServerError,
        400.. => Outcome::ClientError,
        _ => Outcome::Success,
    };
    (outcome, Some(parts))
}

/// None only for a target that [`Target`] would not have let pass.
fn request(plan: &Plan) -> Option<Request<Empty<Bytes>>> {
    let mut request = Request::get(plan.target.path.as_str())
        .header(header::HOST, plan.target.authority.as_str())
        .header(
            header::USER_AGENT,
            concat!("tidegate-probe/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::ACCEPT, "*/*");
    if !plan.keepalive {
        request = request.header(header::CONNECTION, HeaderValue::from_static("close"));
    }
    request.body(Empty::new()).ok()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::LocalSet,
    };

    use super::*;

    const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

    async fn answer(stream: &mut TcpStream, with: &str) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(with.as_bytes()).await.unwrap();
    }

    /// The second request of a kept connection ends with this; what the client sees of it.
    async fn second(with: &'static str) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream, WHOLE).await;
            answer(&mut stream, with).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream, WHOLE).await;
        });
        let plan = Plan {
            target: Target::resolve(&url, false).unwrap(),
            keepalive: true,
            timeout: Duration::from_secs(60),
        };
        let mut kept = None;
        let first = exchange(&plan, &mut kept).await.unwrap();
        assert_eq!(first.0, Outcome::Success);
        assert!(kept.is_some());
        exchange(&plan, &mut kept).await.unwrap().0
    }

    /// Its requests are never answered; yet when it is stopped, they and their connections are gone.
    #[tokio::test]
    async fn no_client_outlives_the_load() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let mut load = Load::new(Plan {
            target: Target::resolve(&url, false).unwrap(),
            keepalive: false,
            timeout: Duration::from_secs(60),
        });
        let shared = Rc::downgrade(&load.shared);
        LocalSet::new()
            .run_until(async {
                load.grow(1);
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_u8().await.unwrap();
                load.stop(Duration::from_millis(1)).await;
                assert_eq!(shared.strong_count(), 0);
                // The end, or a reset, after the rest of the request.
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            })
            .await;
    }

    #[test]
    fn what_is_short_is_told_with_a_remedy() {
        let said = |errno: Errno| Shortage::of(&errno.into()).to_string();
        assert!(said(Errno::MFILE).ends_with("(ulimit -Hn), or lower --max-concurrency"));
        assert!(said(Errno::ADDRNOTAVAIL).contains("ports are used up"));
    }

    #[tokio::test]
    async fn only_what_broke_before_its_head_is_sent_again() {
        let seen = async {
            let torn = second("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi").await;
            (second("").await, torn)
        };
        let seen = LocalSet::new().run_until(seen).await;
        assert_eq!(seen, (Outcome::Success, Outcome::Broken));
    }
}

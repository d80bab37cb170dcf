//! One address of the backend.

use std::{
    io::{self, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;

use super::{
    Error,
    codec::{RequestHead, Signs, Size},
    connect::{Local, Stream, dial},
    link::Link,
    pool::Pool,
    profile::{Excess, Facts, Knowledge, Limits, Source},
    steering::Steering,
};
use crate::{
    config::{Address, Backend, Profile, Protocol},
    observe::{EndpointMetrics, SteeringSnapshot},
    sense::Crew,
    sync::{Mutex, lock},
};

/// Where requests go, and the connections to it.
#[derive(Debug)]
pub struct Endpoint {
    /// The number of its lane in the gate.
    pub id: u32,
    /// Its address.
    pub address: Address,
    /// Its figures.
    pub metrics: Arc<EndpointMetrics>,
    /// Its address once more, if it is one on this machine.
    local: Option<Local>,
    pool: Mutex<Pool>,
    /// Whether [`Pool::steering`] is there.
    steers: AtomicBool,
    knowledge: Knowledge,
    up: AtomicBool,
    /// Since when it accepts no connection in time, milliseconds after `born`; 0 if it did when it was last tried.
    late_since: AtomicU64,
    /// When it last refused a connection, or accepted none in time, microseconds after `born`; 0 if it never did.
    refused: AtomicU64,
    /// Why it does not accept, where it said so when it was last tried.
    refusal: Mutex<Option<Refusal>>,
    /// An upload in chunks was passed on to it that its server may lose.
    streamed_chunks: AtomicBool,
    /// When it was last seen to accept, milliseconds after `born`.
    seen_up: AtomicU64,
    born: Instant,
}

/// What a look at an endpoint found.
#[derive(Debug)]
pub enum Look {
    /// It accepts connections.
    Accepts,
    /// It does not, for this reason.
    Refuses(io::Error),
    /// No answer in time. Its backlog may be full, or its host gone.
    Late,
    /// Nothing: it could not be looked at.
    Nothing,
}

/// Why a connection was refused.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    kind: ErrorKind,
    /// `None` where a name could not be resolved.
    code: Option<i32>,
    text: String,
}

impl Endpoint {
    /// An endpoint that is sent requests until it shows that it does not accept, and is said to be up once it
    /// has accepted.
    pub fn new(
        id: u32,
        address: Address,
        backend: &Backend,
        metrics: Arc<EndpointMetrics>,
        now: Instant,
    ) -> Self {
        metrics.set_up(false);
        let endpoint = Self {
            local: Local::of(&address),
            id,
            address,
            metrics,
            pool: Mutex::new(Pool::default()),
            steers: AtomicBool::new(false),
            knowledge: Knowledge::default(),
            up: AtomicBool::new(true),
            late_since: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refusal: Mutex::new(None),
            streamed_chunks: AtomicBool::new(false),
            seen_up: AtomicU64::new(0),
            born: now,
        };
        if backend.profile != Profile::Auto {
            endpoint.learn(backend.profile, Source::Configured);
        } else if backend.protocol == Protocol::Uwsgi {
            // gunicorn speaks it too.
            endpoint.learn(Profile::Uwsgi, Source::Behaviour);
        }
        endpoint
    }

    /// Notes which server it is, for somebody who found out. A lesser source changes nothing.
    pub fn learn(&self, profile: Profile, source: Source) {
        let news = self.knowledge.learn(profile, source);
        let (profile, source) = self.knowledge.profile();
        self.metrics.set_server(profile.as_str(), source.as_str());
        if news {
            tracing::info!(endpoint = %self.address, profile = profile.as_str(), source = source.as_str(), "the backend is known");
        }
    }

    /// Which server it is, and how that is known.
    pub fn profile(&self) -> (Profile, Source) {
        self.knowledge.profile()
    }

    /// What is known of its server.
    pub fn facts(&self) -> &'static Facts {
        self.knowledge.facts()
    }

    /// Whether an upload in chunks is passed on to it for the first time.
    pub fn is_first_stream_of_chunks(&self) -> bool {
        !self.streamed_chunks.swap(true, Relaxed)
    }

    /// Its server's limits for a request's head, where it is sure that they apply.
    pub fn limits(&self) -> Option<&'static Limits> {
        self.knowledge.limits()
    }

    /// Whether a connection to it may carry more than one request.
    pub(super) fn keeps_connections(&self, backend: &Backend) -> bool {
        backend.keepalive && backend.protocol == Protocol::Http && self.facts().reusable
    }

    /// Says which processes its workers are, or that they are not known. Where a connection stays with the
    /// worker that has accepted it, connections are chosen by their workers.
    pub fn staff(&self, crew: Option<&Crew>) {
        let crew = crew.filter(|_| self.facts().keeps_to_worker);
        let before = self.steering();
        if crew.is_none() && before.is_none() {
            return;
        }
        let same = crew.zip(before);
        if !same.is_some_and(|(crew, before)| before.staff(crew)) {
            let steering = crew.and_then(Steering::of);
            self.steers.store(steering.is_some(), Relaxed);
            lock(&self.pool).steer(steering);
        }
    }

    /// What knows which worker has which of its connections.
    pub(super) fn steering(&self) -> Option<Arc<Steering>> {
        let steers = self.steers.load(Relaxed);
        steers
            .then(|| lock(&self.pool).steering().cloned())
            .flatten()
    }

    /// What each of its workers has, where that decides which connection is taken.
    pub fn steers(&self) -> Option<SteeringSnapshot> {
        Some(self.steering()?.snapshot())
    }

    /// Learns from an answer which server gave it. True if it is worth looking at how the connection ends.
    pub(super) fn recognise(&self, signs: &Signs) -> bool {
        if let Some(profile) = self.knowledge.recognise(signs) {
            self.learn(profile, Source::Header);
        }
        self.knowledge.is_worth_a_look(signs)
    }

    /// Such an answer was followed by the end of the connection, unannounced.
    pub(super) fn ended_silently(&self) {
        if self.knowledge.ended_silently() {
            self.learn(Profile::Uwsgi, Source::Behaviour);
        }
    }

    /// What of a request may be too much for it. (Where that is certain, it is not sent such a request at
    /// all.)
    pub(super) fn suspect(&self, request: &RequestHead, added: Size) -> Option<Excess> {
        self.knowledge.suspect(request, added)
    }

    /// Whether it refused what it was suspected to refuse.
    pub(super) fn tried(&self, refused: bool) {
        self.knowledge.tried(refused);
    }

    /// Whether it may accept connections: it has not refused the last one.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Whether it has ever accepted a connection.
    pub fn was_seen(&self) -> bool {
        self.seen_up.load(Relaxed) > 0
    }

    /// Whether it is known to accept connections.
    pub fn is_seen_up(&self) -> bool {
        self.is_up() && self.was_seen()
    }

    /// Notes whether it accepts connections. True if that is news.
    pub fn set_up(&self, up: bool, now: Instant) -> bool {
        if up {
            if !self.was_seen() {
                self.metrics.set_up(true);
            }
            self.seen_up.store(self.age(now), Relaxed);
        } else {
            self.refused.store(self.micros(now), Relaxed);
        }
        let news = self.up.load(Relaxed) != up && self.up.swap(up, Relaxed) != up;
        if news {
            self.metrics.set_up(up);
            if up {
                *lock(&self.refusal) = None;
            }
        }
        news
    }

    /// Whether it has refused a connection, or accepted none in time, after this one was made, of which no more can be
    /// told then than that it is still there.
    pub fn has_refused_since(&self, made: Instant) -> bool {
        let refused = self.refused.load(Relaxed);
        refused > 0 && self.micros(made) < refused
    }

    /// Whether to prefer others: it is down, or accepted no connection in time when it was last tried.
    pub fn is_doubtful(&self) -> bool {
        self.late_since.load(Relaxed) > 0 || !self.is_up()
    }

    /// Notes that it accepted no connection in time. Returns for how long that has been so.
    pub fn note_late(&self, now: Instant) -> Duration {
        self.refused.store(self.micros(now), Relaxed);
        let now = self.age(now);
        let before = self
            .late_since
            .compare_exchange(0, now, Relaxed, Relaxed)
            .map_or_else(|since| since, |_| now);
        Duration::from_millis(now.saturating_sub(before))
    }

    /// Notes that it accepted a connection in time. True if that is news.
    pub fn note_in_time(&self) -> bool {
        self.late_since.load(Relaxed) > 0 && self.late_since.swap(0, Relaxed) > 0
    }

    /// Whether it is on this machine for all we know: then only a full backlog makes a connection wait.
    pub fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// Milliseconds since `born`, at least one.
    fn age(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.born);
        (age.as_millis() as u64).max(1)
    }

    /// Microseconds since `born`, at least one.
    fn micros(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.born);
        (age.as_micros() as u64).max(1)
    }

    /// Notes why it does not accept connections. True if there was another reason before.
    pub fn note_refusal(&self, error: &io::Error) -> bool {
        let mut refusal = lock(&self.refusal);
        let (kind, code) = (error.kind(), error.raw_os_error());
        if refusal
            .as_ref()
            .is_some_and(|it| (it.kind, it.code) == (kind, code))
        {
            return false;
        }
        let text = error.to_string();
        refusal.replace(Refusal { kind, code, text }).is_some()
    }

    /// Why it does not accept connections, where that is known.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.refusal).as_ref().map(|it| it.text.clone())
    }

    /// Whether it accepted a connection within the last `age`, and has refused none since.
    pub fn seen_up_within(&self, age: Duration, now: Instant) -> bool {
        self.is_seen_up() && self.is_awaited(age, now)
    }

    /// Whether it accepted a connection within the last `age`, or has been known for no longer.
    pub fn is_awaited(&self, age: Duration, now: Instant) -> bool {
        let seen = self.born + Duration::from_millis(self.seen_up.load(Relaxed));
        now.saturating_duration_since(seen) <= age
    }

    /// Connects and hangs up: does it accept, or why not?
    pub async fn probe(&self, timeout: Duration) -> Look {
        match self.dial(timeout).await {
            Ok(_) => Look::Accepts,
            Err(Error::Connect(error)) if error.kind() != ErrorKind::TimedOut => {
                Look::Refuses(error)
            }
            Err(Error::Connect(_) | Error::ConnectTimeout) => Look::Late,
            Err(_) => Look::Nothing,
        }
    }

    /// Closes connections that have been idle for longer than `max_idle`.
    pub fn sweep(&self, max_idle: Duration, now: Instant) {
        lock(&self.pool).sweep(max_idle, now);
    }

    /// Connects to it, if it is on this machine and nothing has to be waited for.
    pub(super) fn connect_at_once(&self) -> Option<Result<Stream, Error>> {
        self.local.as_ref()?.connect()
    }

    /// Connects to it, which may take its time.
    pub(super) async fn dial(&self, timeout: Duration) -> Result<Stream, Error> {
        dial(self.local.as_ref(), &self.address, timeout).await
    }

    /// The read buffer of a closed connection to it, which is likely to be free by now.
    pub(super) fn take_buffer(&self) -> BytesMut {
        lock(&self.pool).take_buffer()
    }

    /// Closes a connection.
    pub(super) fn close_link(&self, link: Box<Link>) {
        if let Some(buffer) = link.close() {
            lock(&self.pool).put_buffer(buffer);
        }
    }

    pub(super) fn take_link(
        &self,
        max_idle: Duration,
        replayable: bool,
        now: Instant,
    ) -> Option<Box<Link>> {
        let mut pool = lock(&self.pool);
        let mut link = pool.take(max_idle, replayable, now)?;
        if let Some(steering) = pool.steering() {
            // The connection may be older than the steering.
            link.sit(steering, true);
        }
        drop(pool);
        link.come_home()
    }

    pub(super) fn put_link(&self, link: Box<Link>, max_idle: Duration, now: Instant) {
        lock(&self.pool).put(link, max_idle, now);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::{clock, config::Config};

    const PATIENCE: Duration = Duration::from_millis(100);

    fn endpoint(listener: &TcpListener) -> Endpoint {
        let address = listener.local_addr().expect("it is bound");
        Endpoint::new(
            0,
            Address::Tcp {
                host: address.ip().to_string(),
                port: address.port(),
            },
            &Config::default().backend,
            Arc::default(),
            clock::now(),
        )
    }

    #[tokio::test]
    async fn a_full_backlog_is_late_and_a_refusal_says_no() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        rustix::net::listen(&listener, 0).expect("it listens");
        let endpoint = endpoint(&listener);
        assert!(matches!(endpoint.probe(PATIENCE).await, Look::Accepts));
        let mut held = Vec::new();
        while !matches!(endpoint.probe(PATIENCE).await, Look::Late) {
            let address = listener.local_addr().expect("it is bound");
            held.extend(TcpStream::connect_timeout(&address, PATIENCE));
            assert!(held.len() < 10, "the backlog is never full");
        }
        drop(held);
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).expect("it listened");
        let refused = endpoint.probe(PATIENCE).await;
        assert!(
            matches!(refused, Look::Refuses(error) if error.kind() == ErrorKind::ConnectionRefused)
        );
    }

    #[test]
    fn only_another_reason_is_news() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = endpoint(&listener);
        let now = clock::now();
        let (missing, denied) = (
            ErrorKind::NotFound.into(),
            ErrorKind::PermissionDenied.into(),
        );
        assert_eq!(endpoint.refusal(), None);
        assert!(!endpoint.note_refusal(&missing), "it is the first");
        assert!(endpoint.set_up(false, now));
        assert!(!endpoint.note_refusal(&missing));
        assert!(endpoint.note_refusal(&denied));
        assert_eq!(endpoint.refusal(), Some(denied.to_string()));
        assert!(endpoint.set_up(true, now));
        assert_eq!(endpoint.refusal(), None);
    }

    #[test]
    fn a_connection_from_before_a_refusal_says_nothing_of_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = endpoint(&listener);
        let now = clock::now();
        let at = |micros| now + Duration::from_micros(micros);
        assert!(!endpoint.has_refused_since(now));
        assert!(endpoint.set_up(false, at(5)));
        assert!(endpoint.has_refused_since(at(4)) && !endpoint.has_refused_since(at(6)));
        endpoint.note_late(at(9));
        assert!(endpoint.has_refused_since(at(6)) && !endpoint.has_refused_since(at(10)));
        assert!(endpoint.set_up(true, at(12)));
        assert!(endpoint.has_refused_since(at(6)), "still");
    }

    #[test]
    fn nobody_is_up_who_has_not_been_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = endpoint(&listener);
        let now = clock::now();
        assert!(endpoint.is_up() && !endpoint.is_seen_up() && !endpoint.metrics.is_up());
        assert!(endpoint.is_awaited(PATIENCE, now), "it may be starting");
        assert!(!endpoint.set_up(true, now));
        assert!(endpoint.is_seen_up() && endpoint.metrics.is_up());
        assert!(endpoint.set_up(false, now));
        assert!(!endpoint.is_seen_up() && !endpoint.metrics.is_up());
        assert!(endpoint.set_up(true, now));
        assert!(endpoint.is_seen_up() && endpoint.metrics.is_up());
    }
}

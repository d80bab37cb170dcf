//! What tidegate knows of one request, from its arrival to the last byte of its answer.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Response, uri::PathAndQuery};

use super::{
    forwarded::{self, Appended},
    live::{Live, LiveRoute, Shared},
    request_id::RequestId,
    state::State,
};
use crate::{
    admission::{Ask, AskFor, Class},
    backend::{self, Lines, RequestBody, RequestHead, Size, Timers},
    buffer::Share,
    clock, observe,
    sync::{Mutex, lock},
};

/// Who is at the other end of a client's connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; `None` for a Unix socket.
    pub ip: Option<IpAddr>,
    /// The same, as a field's value.
    pub forwarded_for: Option<HeaderValue>,
    /// It is the address of who passes a client on without saying which one: nothing that comes is a proxy's word.
    pub unnamed: bool,
    /// The port it connected to, as a field's value.
    pub forwarded_port: HeaderValue,
    /// The forwarding fields that are the same for each of its requests.
    pub lines: Lines,
    /// What its connection is doing.
    pub state: Arc<State>,
    /// The timers of the thread that serves it.
    pub timers: Arc<Timers>,
}

impl Peer {
    /// The client at `address`, connected to our `port`; neither is known of a Unix socket's.
    pub fn new(
        address: Option<SocketAddr>,
        port: Option<u16>,
        state: Arc<State>,
        timers: Arc<Timers>,
    ) -> Self {
        // ::ffff:10.0.0.1 is what a dual-stack listener sees of 10.0.0.1.
        let ip = address.map(|address| address.ip().to_canonical());
        let forwarded_for = ip.and_then(|ip| HeaderValue::from_bytes(&text(ip)).ok());
        let forwarded_port = HeaderValue::from(port.unwrap_or(80));
        Self {
            lines: forwarded::lines(forwarded_for.as_ref(), &forwarded_port),
            ip,
            unnamed: false,
            forwarded_for,
            forwarded_port,
            state,
            timers,
        }
    }
}

/// An address as text. That of IPv4 by hand: each connection has one, and to format it costs more than to
/// judge a small request.
fn text(ip: IpAddr) -> Vec<u8> {
    let IpAddr::V4(ip) = ip else {
        return ip.to_string().into_bytes();
    };
    let mut text = Vec::with_capacity("255.255.255.255".len());
    for octet in ip.octets() {
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
    }
    text
}

/// Shared by the layers of one request.
#[derive(Debug)]
pub struct Context {
    /// The configuration it began with, to the end.
    pub live: Arc<Live>,
    /// When its head was there.
    pub arrived: Instant,
    /// Its client.
    pub peer: Arc<Peer>,
    /// For the access log.
    pub method: Method,
    /// The same; `None` for OPTIONS of the server as a whole.
    pub path: Option<PathAndQuery>,
    /// Its route's place in `live.routes`.
    pub route: usize,
    ask: Ask,
    /// The id it carries, or was given.
    pub request_id: RequestId,
    /// Whether its client speaks HTTP/2.
    pub http2: bool,
    /// What is added to its head, where that does not go into the request's map.
    appended: Option<Appended>,
    phase: AtomicU8,
    asked_nanos: AtomicU64,
    queued_nanos: AtomicU64,
    backend_nanos: AtomicU64,
    attempts: AtomicU8,
    /// The endpoint of the last of them, by its number and one.
    endpoint: AtomicU32,
    /// When the backend was done, nanoseconds after its arrival.
    done_nanos: AtomicU64,
    /// What the backend has said on the way to its answer.
    told: Mutex<Option<Box<Response<()>>>>,
    /// What is left of its head, if it was refused: memory for the next.
    spent: Mutex<Option<Box<RequestHead>>>,
}

impl Context {
    /// At its arrival, with what it will ask of the gate.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        live: Arc<Live>,
        arrived: Instant,
        peer: Arc<Peer>,
        head: &RequestHead,
        route: usize,
        ask: Ask,
        request_id: RequestId,
        http2: bool,
        appended: Option<Appended>,
    ) -> Self {
        Self {
            live,
            arrived,
            peer,
            method: head.method().clone(),
            path: head.uri().path_and_query().cloned(),
            http2,
            route,
            ask,
            request_id,
            appended,
            phase: AtomicU8::new(observe::Phase::Reading as u8),
            asked_nanos: AtomicU64::new(0),
            queued_nanos: AtomicU64::new(0),
            backend_nanos: AtomicU64::new(0),
            attempts: AtomicU8::new(0),
            endpoint: AtomicU32::new(0),
            done_nanos: AtomicU64::new(0),
            told: Mutex::default(),
            spent: Mutex::default(),
        }
    }

    /// Keeps nothing of its head's memory, which is large: it is not accounted for once there is an answer, and this
    /// stays to the answer's last byte.
    pub fn detach(&mut self) {
        let own = |path: &PathAndQuery| PathAndQuery::from_str(path.as_str()).ok();
        self.path = self.path.as_ref().and_then(own);
        self.request_id.detach();
    }

    /// What its client may have of the budget, where that has several answers at once: a trusted proxy has them for
    /// many clients, and is not held to the share of one.
    pub fn share(&self) -> Option<&Arc<Share>> {
        let proxies = &self.live.config.headers.trusted_proxies;
        if !self.http2 || self.peer.is_trusted(proxies) {
            return None;
        }
        self.peer.state.share()
    }

    /// Keeps an interim answer for whoever passes it on.
    pub fn tell(&self, interim: Box<Response<()>>) {
        *lock(&self.told) = Some(interim);
    }

    /// An interim answer that has not been passed on.
    pub fn told(&self) -> Option<Box<Response<()>>> {
        lock(&self.told).take()
    }

    /// What is left of its head, if it was refused.
    pub fn take_spent(&self) -> Option<Box<RequestHead>> {
        lock(&self.spent).take()
    }

    /// Its route.
    pub fn route(&self) -> &LiveRoute {
        &self.live.routes[self.route]
    }

    /// Its class: its route's, or one below that for a retry.
    pub fn class(&self) -> Class {
        self.ask.class
    }

    /// What it asks of the gate.
    pub fn ask(&self) -> Ask {
        self.ask
    }

    /// Notes how far it has come.
    pub fn enter(&self, phase: observe::Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// How far it has come.
    pub fn phase(&self) -> observe::Phase {
        observe::Phase::ALL
            .get(usize::from(self.phase.load(Relaxed)))
            .copied()
            .unwrap_or(observe::Phase::Reading)
    }

    /// Notes that it is at the gate.
    pub fn asks(&self, now: Instant) {
        self.asked_nanos.store(self.age(now).max(1), Relaxed);
        self.enter(observe::Phase::Queued);
    }

    /// When it came to the gate; `None` if it has not.
    pub fn asked(&self) -> Option<Instant> {
        let asked = self.asked_nanos.load(Relaxed);
        (asked > 0).then(|| self.arrived + Duration::from_nanos(asked))
    }

    /// How long it has been at the gate; `None` if it has not come to it.
    pub fn at_gate(&self, now: Instant) -> Option<Duration> {
        let asked = self.asked_nanos.load(Relaxed);
        (asked > 0).then(|| Duration::from_nanos(self.age(now).saturating_sub(asked)))
    }

    /// Nanoseconds since it arrived.
    fn age(&self, now: Instant) -> u64 {
        // A request without a body asks as soon as it has arrived, and a comparison costs less than a
        // subtraction.
        if now <= self.arrived {
            return 0;
        }
        nanos(now.saturating_duration_since(self.arrived))
    }

    /// Notes how long it waited for its permit.
    pub fn waited(&self, wait: Duration) {
        self.queued_nanos.store(nanos(wait), Relaxed);
    }

    /// Notes how long it waited, and was refused in the end.
    pub fn waited_in_vain(&self, wait: Duration) {
        self.queued_nanos.store(nanos(wait).max(1), Relaxed);
    }

    /// How long it waited, if that was in vain.
    pub fn lost(&self) -> Option<Duration> {
        let lost = self.phase() == observe::Phase::Queued;
        Some(self.queue_time()).filter(|waited| lost && !waited.is_zero())
    }

    /// How long it waited for its permit.
    pub fn queue_time(&self) -> Duration {
        Duration::from_nanos(self.queued_nanos.load(Relaxed))
    }

    /// Notes how long the backend had it, and that it is done now.
    pub fn served(&self, took: Duration, now: Instant) {
        self.backend_nanos.store(nanos(took).max(1), Relaxed);
        self.done_nanos.store(self.age(now), Relaxed);
    }

    /// How long after its arrival there was an answer, if that is just now.
    pub fn answered(&self) -> Duration {
        match self.done_nanos.load(Relaxed) {
            // The backend is not done: the answer is passed on as it is made.
            0 => clock::now().saturating_duration_since(self.arrived),
            done => Duration::from_nanos(done),
        }
    }

    /// How long the backend had it, once that is known.
    pub fn backend_time(&self) -> Option<Duration> {
        let nanos = self.backend_nanos.load(Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    /// Notes one more attempt to reach a backend. One at a time.
    pub fn attempt(&self) {
        let before = self.attempts.load(Relaxed);
        self.attempts.store(before.saturating_add(1), Relaxed);
    }

    /// Notes the endpoint of that attempt.
    pub fn goes_to(&self, endpoint: u32) {
        self.endpoint.store(endpoint.wrapping_add(1), Relaxed);
    }

    /// The endpoint of the last attempt, if there was one and it is still configured.
    pub fn endpoint(&self, shared: &Shared) -> Option<String> {
        let noted = self.endpoint.load(Relaxed).checked_sub(1)?;
        let endpoints = shared.endpoints();
        let endpoint = endpoints.iter().find(|endpoint| endpoint.id == noted)?;
        Some(endpoint.address.to_string())
    }

    /// How many attempts there were to reach one; from 255 on, at least so many.
    pub fn attempts(&self) -> u8 {
        self.attempts.load(Relaxed)
    }
}

impl backend::Added for Context {
    fn size(&self) -> Size {
        self.appended
            .as_ref()
            .map_or_else(Size::default, |it| it.size)
    }

    fn write(&self, host: &[u8], out: &mut Vec<u8>) {
        if let Some(appended) = &self.appended {
            let id = &self.request_id;
            appended.write(host, &self.peer, &self.live, id, self.arrived, out);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A request on its way through the layers.
#[derive(Debug)]
pub struct Asked<B> {
    /// What the client sent, cleaned.
    pub head: Box<RequestHead>,
    /// Its body.
    pub body: B,
    /// What is known of it.
    pub context: Arc<Context>,
}

impl<B> Asked<B> {
    /// The same with another body.
    pub fn with<C>(self, body: C) -> Asked<C> {
        Asked {
            head: self.head,
            body,
            context: self.context,
        }
    }
}

/// What a request asks of the gate.
#[derive(Clone, Copy, Debug)]
pub struct AtGate;

impl AskFor<Asked<RequestBody>> for AtGate {
    fn ask(&self, asked: &Asked<RequestBody>) -> Ask {
        asked.context.ask()
    }

    fn now(&self, asked: &Asked<RequestBody>) -> Instant {
        // One without a body has come just now.
        let now = match asked.body.is_empty() {
            true => asked.context.arrived,
            false => clock::now(),
        };
        asked.context.asks(now);
        now
    }

    fn refused(&self, mut asked: Asked<RequestBody>, waited: Option<Duration>) {
        if let Some(waited) = waited {
            asked.context.waited_in_vain(waited);
        }
        backend::empty(&mut asked.head);
        *lock(&asked.context.spent) = Some(asked.head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::{Group, Limiter},
        config::Config,
        observe::Metrics,
        proxy::live::{Shared, queue_settings},
    };

    fn context(head: &RequestHead, id: RequestId) -> Context {
        let (config, metrics, now) = (Config::default(), Arc::new(Metrics::new()), clock::now());
        let limiter = Limiter::new(queue_settings(&config), None, now);
        let live = Shared::new(Arc::new(config), limiter, metrics.clone()).live();
        let state = Arc::new(State::new(metrics, now));
        let peer = Arc::new(Peer::new(None, None, state, Arc::default()));
        let route = &live.routes[0];
        let ask = Ask {
            class: route.class,
            deadline: None,
            group: Group::Route(route.id),
            cap: route.cap,
            client: None,
        };
        Context::new(live, now, peer, head, 0, ask, id, false, None)
    }

    #[test]
    fn attempts_without_end_are_many() {
        let context = context(&RequestHead::default(), RequestId::new());
        for attempt in 1..=300_u16 {
            context.attempt();
            assert_eq!(u16::from(context.attempts()), attempt.min(255));
        }
    }

    #[test]
    fn a_request_that_is_detached_is_called_as_before() {
        let id = RequestId::Sent(HeaderValue::from_static("id-1"));
        let mut context = context(&RequestHead::default(), id);
        context.path = Some(PathAndQuery::from_static("/a?b=%20"));
        context.detach();
        assert_eq!(
            context.path.as_ref().map(PathAndQuery::as_str),
            Some("/a?b=%20")
        );
        assert_eq!(context.request_id.as_str(), "id-1");
    }

    #[test]
    fn addresses_are_written_as_usual() {
        for address in ["0.0.0.0", "127.0.0.1", "255.25.5.100", "::1", "2001:db8::a"] {
            let ip: IpAddr = address.parse().expect("an address");
            assert_eq!(text(ip), address.as_bytes());
        }
    }
}

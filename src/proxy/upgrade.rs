//! Protocols other than HTTP, WebSocket above all: a request may ask for one, and after the
//! backend's 101 bytes pass both ways, whatever they mean.
//!
//! A tunnel keeps its permit: its worker is busy. It ends when both sides have ended, when one of
//! them breaks, after `server.idle_timeout` without a byte either way, or with the drain.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes},
    time::Instant as TokioInstant,
};

use super::{
    io::{ClientIo, take_ahead},
    record::Record,
};
use crate::{
    backend::{Upgraded, members},
    clock,
};

/// What each direction holds at most, bytes.
const BUFFER: usize = 8 * 1024;
/// A worker that has closed its side has mostly closed both, and some wait for ours to close before
/// they are free again: a client that sends nothing does not keep them for longer.
const AFTER_BACKEND: Duration = Duration::from_secs(1);
/// For how long the last bytes may take when a worker breaks off, and at the end of a drain.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a request's `Upgrade` asks for, without what is not for a gateway to pass on: other versions
/// of HTTP. `None` if it asks for nothing, or without saying so in `Connection`: RFC 9110 7.8.
pub fn asked<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    if !headers.contains_key(header::UPGRADE) || request.version() != Version::HTTP_11 {
        return None;
    }
    let connection = |token: &[u8]| token.eq_ignore_ascii_case(b"upgrade");
    if !tokens(headers, &header::CONNECTION).any(connection) {
        return None;
    }
    protocols(headers)
}

/// What a 426 asks its client to switch to, in the same way: RFC 9110 15.5.22. `None` for another answer.
pub fn offered<B>(response: &Response<B>) -> Option<HeaderValue> {
    let asks = response.status() == StatusCode::UPGRADE_REQUIRED;
    asks.then(|| protocols(response.headers())).flatten()
}

/// The protocols that `Upgrade` names, but those that are not for a gateway to pass on.
fn protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut protocols = Vec::new();
    for token in tokens(headers, &header::UPGRADE).filter(|token| !is_http(token)) {
        if !protocols.is_empty() {
            protocols.extend_from_slice(b", ");
        }
        protocols.extend_from_slice(token);
    }
    let asked = HeaderValue::from_bytes(&protocols).ok()?;
    (!asked.is_empty()).then_some(asked)
}

/// Passes the question, or the answer, on.
pub fn insert(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocols);
}

/// Passes on what is offered; the connection may end all the same.
pub fn offer(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocols);
}

fn tokens<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| members(line.as_bytes()))
        .filter(|token| !token.is_empty())
}

/// `h2c`, `h2`, `HTTP/2.0` and their like, which a backend would answer with frames.
fn is_http(token: &[u8]) -> bool {
    let name = token.split(|&byte| byte == b'/').next().unwrap_or(token);
    [&b"http"[..], b"h2c", b"h2", b"h3"]
        .iter()
        .any(|http| name.eq_ignore_ascii_case(http))
}

/// The worker's side of a tunnel, and its account.
pub struct Tunnel {
    backend: Upgraded,
    record: Record,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tunnel({:?})", self.backend)
    }
}

impl Tunnel {
    pub fn new(backend: Upgraded, record: Record) -> Box<Self> {
        Box::new(Self { backend, record })
    }

    /// Passes bytes both ways to the end, or until `closing` says that the time is over.
    pub async fn run(
        self: Box<Self>,
        mut client: Box<ClientIo>,
        idle_timeout: Duration,
        closing: impl Fn() -> bool + Send + Sync,
    ) {
        let Self {
            backend,
            mut record,
        } = *self;
        let (from_client, from_backend) = (Progress::default(), Progress::default());
        client.open();
        let mut client = End::new(client, Bytes::new(), from_client.clone(), false);
        let Upgraded {
            stream,
            first,
            busy,
        } = backend;
        let mut backend = End::new(stream, first, from_backend.clone(), true);
        {
            let mut copy = pin!(copy_bidirectional_with_sizes(
                &mut client,
                &mut backend,
                BUFFER,
                BUFFER
            ));
            let mut moved = 0;
            let mut since = clock::now();
            let mut timer = pin!(tokio::time::sleep(idle_timeout));
            poll_fn(|cx| {
                if closing() || copy.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let broken = from_backend.is_broken();
                let now_moved = match broken {
                    true => from_backend.bytes(),
                    false => from_backend.bytes() + from_client.bytes(),
                };
                if now_moved != moved {
                    moved = now_moved;
                    since = clock::now();
                }
                let may_pause = match (broken, from_backend.has_ended()) {
                    (true, _) => LAST_WORDS,
                    (_, true) => idle_timeout.min(AFTER_BACKEND),
                    _ => idle_timeout,
                };
                let due = TokioInstant::from_std(since + may_pause);
                // Only ever brought forward here: a timer that fires early is set again.
                if timer.deadline() > due {
                    timer.as_mut().reset(due);
                }
                while timer.as_mut().poll(cx).is_ready() {
                    if clock::overslept(timer.as_mut()) {
                        since += timer
                            .deadline()
                            .into_std()
                            .saturating_duration_since(due.into_std());
                        continue;
                    }
                    if due <= TokioInstant::from_std(clock::now()) {
                        return Poll::Ready(());
                    }
                    timer.as_mut().reset(due);
                }
                Poll::Pending
            })
            .await;
        }
        // The worker is free when its socket is closed.
        drop(backend);
        drop(busy);
        record.end(from_backend.bytes());
        let _ = tokio::time::timeout(LAST_WORDS, client.shutdown()).await;
        if let Some(lingering) = client.inner.linger(&closing) {
            lingering.await;
        }
    }
}

/// How far one direction of a tunnel has come.
#[derive(Clone, Debug, Default)]
struct Progress(Arc<Figures>);

#[derive(Debug, Default)]
struct Figures {
    bytes: AtomicU64,
    ended: AtomicBool,
    broken: AtomicBool,
}

impl Progress {
    fn bytes(&self) -> u64 {
        self.0.bytes.load(Relaxed)
    }

    fn has_ended(&self) -> bool {
        self.0.ended.load(Relaxed)
    }

    fn is_broken(&self) -> bool {
        self.0.broken.load(Relaxed)
    }
}

/// One end of a tunnel, that says what was read from it.
struct End<S> {
    inner: S,
    /// What the HTTP side has read beyond its own end.
    first: Bytes,
    progress: Progress,
    /// Whether it may break without harm to what it has said before: a worker that closes without
    /// having read everything resets the connection, and its last words are there all the same.
    forgiving: bool,
}

impl<S> End<S> {
    fn new(inner: S, first: Bytes, progress: Progress, forgiving: bool) -> Self {
        Self {
            inner,
            first,
            progress,
            forgiving,
        }
    }

    /// A failure that is forgiven is an end of what is read, and swallows what is written.
    fn forgive<T>(&self, result: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(_)) if self.forgiving => {
                self.progress.0.broken.store(true, Relaxed);
                Poll::Ready(Ok(instead))
            }
            other => other,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for End<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if !take_ahead(&mut this.first, buf) {
            let result = Pin::new(&mut this.inner).poll_read(cx, buf);
            ready!(this.forgive(result, ()))?;
        }
        let count = buf.filled().len() - before;
        this.progress.0.bytes.fetch_add(count as u64, Relaxed);
        this.progress.0.ended.store(count == 0, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for End<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.forgive(result, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.forgive(result, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.forgive(result, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_by(fields: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::get("/").body(()).expect("a request");
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().expect("a name");
            let value = HeaderValue::from_str(value).expect("a value");
            request.headers_mut().append(name, value);
        }
        let asked = asked(&request)?;
        asked.to_str().ok().map(str::to_owned)
    }

    #[test]
    fn an_upgrade_is_asked_for_in_two_fields() {
        let both = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(asked_by(&both).as_deref(), Some("websocket"));
        assert_eq!(asked_by(&both[1..]), None, "without Connection");
        assert_eq!(asked_by(&both[..1]), None, "without Upgrade");
        let closes = [("connection", "close"), ("upgrade", "websocket")];
        assert_eq!(asked_by(&closes), None);
        let several = [
            ("connection", "close"),
            ("connection", "upgrade"),
            ("upgrade", "a/1 ,,b"),
            ("upgrade", "c"),
        ];
        assert_eq!(asked_by(&several).as_deref(), Some("a/1, b, c"));
    }

    #[test]
    fn other_versions_of_http_are_never_asked_for() {
        for http in ["h2c", "H2C", "HTTP/2.0", "h2", "http"] {
            let alone = [("connection", "upgrade"), ("upgrade", http)];
            assert_eq!(asked_by(&alone), None, "{http}");
            let among = [
                ("connection", "upgrade"),
                ("upgrade", http),
                ("upgrade", "websocket"),
            ];
            assert_eq!(asked_by(&among).as_deref(), Some("websocket"), "{http}");
        }
    }

    #[test]
    fn a_426_says_what_to() {
        let offered_by = |status: u16, protocols: &str| {
            let response = Response::builder()
                .status(status)
                .header("upgrade", protocols);
            let offered = offered(&response.body(()).expect("an answer"))?;
            offered.to_str().ok().map(str::to_owned)
        };
        assert_eq!(
            offered_by(426, "h2c, websocket").as_deref(),
            Some("websocket")
        );
        assert_eq!(offered_by(426, "HTTP/2.0"), None);
        assert_eq!(offered_by(400, "websocket"), None);
    }

    #[test]
    fn http_1_0_has_no_upgrades() {
        let mut request = Request::get("/")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(())
            .expect("a request");
        assert!(asked(&request).is_some());
        *request.version_mut() = Version::HTTP_10;
        assert!(asked(&request).is_none());
    }
}

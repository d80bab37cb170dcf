//! A real client of HTTP/2.

use std::future::Future;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use serde_json::Value;

use super::{PATIENCE, Tidegate};

/// Runs a real client's part of a test.
#[track_caller]
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, work).await })
        .expect("in time")
}

/// A real client's connection.
pub async fn connect(address: &str) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await;
    let (sender, connection) = h2::client::handshake(stream.expect("it accepts"))
        .await
        .expect("a handshake");
    tokio::spawn(connection);
    sender.ready().await.expect("room for a stream")
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub head: http::response::Parts,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub async fn read(response: Response<h2::RecvStream>) -> Result<Self, h2::Error> {
        let (head, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while let Some(data) = incoming.data().await {
            let data = data?;
            incoming.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        let trailers = incoming.trailers().await?;
        Ok(Self {
            head,
            body,
            trailers,
        })
    }

    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A request with its body, in frames that fit the window.
pub async fn send(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
) -> Result<Answer, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (response, mut stream) = sender.send_request(request, body.is_empty())?;
    let upload = async move {
        let mut rest = Bytes::copy_from_slice(body);
        while !rest.is_empty() {
            stream.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
            let Some(Ok(room)) = room else { return };
            let piece = rest.split_to(room.min(rest.len()));
            if stream.send_data(piece, rest.is_empty()).is_err() {
                return;
            }
        }
    };
    let (response, ()) = tokio::join!(response, upload);
    Answer::read(response?).await
}

pub fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("http://app{path}"))
}

pub async fn get(sender: &SendRequest<Bytes>, path: &str) -> Result<Answer, h2::Error> {
    send(
        sender,
        request("GET", path).body(()).expect("a request"),
        b"",
    )
    .await
}

/// What must hold when no client is left.
#[track_caller]
pub fn nothing_is_left(gate: &Tidegate) {
    gate.until_idle();
    for gauge in [
        "tidegate_orphaned_requests",
        "tidegate_streaming_requests",
        "tidegate_buffered_bytes",
        "tidegate_client_connections",
    ] {
        gate.until_metric(gauge, &[], 0.0);
    }
    assert!(!gate.log().contains("panic"), "{}", gate.log());
}

/// The next interim answer, before the answer.
pub async fn interim(response: &mut h2::client::ResponseFuture) -> Option<Response<()>> {
    let next = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
    next.map(|interim| interim.expect("an interim answer"))
}

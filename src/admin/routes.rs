//! From a request to its answer.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    Format, Handle,
    events::Events,
    guard::{self, Peer},
    negotiate, page,
    respond::{Reply, compressed, field, json as document, problem, text},
    server::Busy,
};
use crate::config::Mutations;

/// The longest body that is read, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a backend may take to be judged before `/readyz` says no. Kubelets wait a second.
const READY_TIMEOUT: Duration = Duration::from_millis(900);

/// What the requests of one connection share.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) handle: Arc<dyn Handle>,
    pub(super) mutations: Mutations,
    pub(super) peer: Peer,
    /// Places for those who wait for a drain; they wait long, and may not take every connection.
    pub(super) waiters: Arc<Semaphore>,
    /// Places for streams of the status.
    pub(super) streams: Arc<Semaphore>,
    /// Whether the server is closing.
    pub(super) closing: watch::Receiver<bool>,
    /// Whether a whole request of this connection is being worked on; one whose body is still coming is none.
    pub(super) busy: Arc<AtomicBool>,
}

/// How many may wait for a drain at once.
pub(super) const MAX_WAITERS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Post,
}

/// Answers a request.
pub(super) async fn answer<B>(desk: &Desk, request: http::Request<B>) -> Reply
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (request, body) = request.into_parts();
    let path = request.uri.path();
    let (verb, allow) = match path {
        "/" | "/livez" | "/readyz" | "/metrics" | "/status" | "/config" => (Verb::Get, "GET, HEAD"),
        // It starts a drain, so HEAD, which must be harmless, is not for it.
        "/drain/wait" => (Verb::Get, "GET"),
        "/reload" | "/drain" | "/undrain" | "/limit" => (Verb::Post, "POST"),
        _ => return problem(StatusCode::NOT_FOUND, "There is nothing here."),
    };
    if !allow
        .split(", ")
        .any(|method| request.method.as_str() == method)
    {
        let detail = format!("{path} takes {allow}.");
        let mut refusal = problem(StatusCode::METHOD_NOT_ALLOWED, &detail);
        refusal
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static(allow));
        return refusal;
    }
    if verb == Verb::Get {
        let _busy = Busy::new(&desk.busy);
        return get(desk, &request).await;
    }
    if let Err(why) = guard::may_mutate(desk.mutations, desk.peer, &request) {
        return problem(StatusCode::FORBIDDEN, why);
    }
    match read(body).await {
        Ok(body) => {
            let _busy = Busy::new(&desk.busy);
            post(desk, &request, &body).await
        }
        Err(refusal) => *refusal,
    }
}

async fn get(desk: &Desk, request: &Parts) -> Reply {
    let handle = &desk.handle;
    let accept = field(&request.headers, header::ACCEPT).unwrap_or_default();
    match request.uri.path() {
        "/livez" => match handle.alive().await {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(without) => {
                let detail = format!(
                    "A thread that serves clients has been hanging for {} s.",
                    without.as_secs()
                );
                tracing::error!("{detail}");
                problem(StatusCode::SERVICE_UNAVAILABLE, &detail)
            }
        },
        "/readyz" => readiness(desk, request).await,
        "/metrics" => {
            let format = Format::negotiate(accept);
            compressed(
                format.content_type(),
                handle.metrics(format),
                &request.headers,
            )
        }
        "/status" if negotiate::wants_events(accept) && request.method != Method::HEAD => {
            events(desk)
        }
        "/status" => {
            let body = format!("{:#}\n", handle.status());
            compressed("application/json", body, &request.headers)
        }
        "/config" => {
            let (toml, json) = handle.config();
            if negotiate::prefers_json(accept) {
                compressed("application/json", format!("{json:#}\n"), &request.headers)
            } else {
                compressed("text/plain; charset=utf-8", toml, &request.headers)
            }
        }
        "/drain/wait" => drain_wait(desk, request).await,
        _ => page::page(),
    }
}

fn events(desk: &Desk) -> Reply {
    let Ok(place) = Arc::clone(&desk.streams).try_acquire_owned() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "Too many streams are open already; GET /status has the same as JSON.",
        );
    };
    Events::reply(Arc::clone(&desk.handle), desk.closing.clone(), place)
}

async fn readiness(desk: &Desk, request: &Parts) -> Reply {
    let readiness = timeout(READY_TIMEOUT, desk.handle.ready())
        .await
        .unwrap_or_else(|_| {
            let late = (
                "backend".to_owned(),
                Err("did not answer in time".to_owned()),
            );
            super::Readiness {
                checks: vec![late],
                ..super::Readiness::default()
            }
        });
    let (status, word) = match (readiness.ready, readiness.draining) {
        (true, _) => (StatusCode::OK, "ready"),
        (false, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let query = request.uri.query().unwrap_or_default();
    let verbose = query
        .split('&')
        .any(|item| matches!(item, "verbose" | "verbose=" | "verbose=1" | "verbose=true"));
    let mut body = String::new();
    if verbose {
        for (name, verdict) in &readiness.checks {
            let line = match verdict {
                Ok(()) => format!("[+] {name}: ok\n"),
                Err(why) => format!("[-] {name}: {why}\n"),
            };
            body.push_str(&line);
        }
    }
    body.push_str(word);
    body.push('\n');
    text(status, body)
}

async fn drain_wait(desk: &Desk, request: &Parts) -> Reply {
    if let Err(why) = guard::is_no_browser(request) {
        return problem(StatusCode::FORBIDDEN, why);
    }
    if desk.mutations == Mutations::Off && !desk.handle.ready().await.draining {
        // Rather a failed hook, after which the kubelet sends TERM, than one that never ends.
        return problem(
            StatusCode::FORBIDDEN,
            "No drain is under way, and admin.mutations = \"off\" does not let this start one.",
        );
    }
    tracing::info!(peer = %desk.peer, "draining, as asked for by GET /drain/wait");
    desk.handle.drain(true);
    let Ok(_place) = desk.waiters.try_acquire() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "Too many wait for the drain already.",
        );
    };
    if !desk.handle.drained().await {
        return problem(
            StatusCode::CONFLICT,
            "The drain was undone (POST /undrain): new requests are taken again.",
        );
    }
    text(StatusCode::OK, "drained\n")
}

async fn post(desk: &Desk, request: &Parts, body: &[u8]) -> Reply {
    let handle = &desk.handle;
    match request.uri.path() {
        "/reload" => match handle.reload().await {
            Ok(message) => done(&json!({ "reloaded": true, "message": message })),
            Err(why) => problem(StatusCode::UNPROCESSABLE_ENTITY, &why),
        },
        "/drain" => {
            tracing::info!(peer = %desk.peer, "draining, as asked for by hand; POST /undrain serves again");
            handle.drain(false);
            done(&json!({ "draining": true }))
        }
        "/undrain" => match handle.undrain() {
            Ok(()) => {
                tracing::info!(peer = %desk.peer, "serving again, as asked for by hand");
                done(&json!({ "draining": false }))
            }
            Err(why) => problem(StatusCode::CONFLICT, &why),
        },
        _ => match parse_limit(body) {
            Ok(limit) => match handle.set_limit(limit) {
                Ok(()) => done(&json!({ "limit": limit.map_or(json!("auto"), Value::from) })),
                Err(why) => problem(StatusCode::UNPROCESSABLE_ENTITY, &why),
            },
            Err(why) => problem(StatusCode::BAD_REQUEST, why),
        },
    }
}

fn done(value: &Value) -> Reply {
    document(StatusCode::OK, value)
}

/// `{"limit": N}`, `{"limit": "auto"}`, or the bare value.
fn parse_limit(body: &[u8]) -> Result<Option<u32>, &'static str> {
    const USAGE: &str =
        "The body must be {\"limit\": N} with N of at least 1, {\"limit\": \"auto\"} or \"auto\".";
    let body: Value = serde_json::from_slice(body).map_err(|_| USAGE)?;
    let limit = match &body {
        Value::Object(fields) if fields.len() == 1 => fields.get("limit").ok_or(USAGE)?,
        bare => bare,
    };
    match limit {
        Value::String(word) if word == "auto" => Ok(None),
        Value::Number(number) => {
            let number = number
                .as_u64()
                .and_then(|number| u32::try_from(number).ok());
            number.filter(|number| *number > 0).map(Some).ok_or(USAGE)
        }
        _ => Err(USAGE),
    }
}

async fn read<B>(body: B) -> Result<Bytes, Box<Reply>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let refuse = |status, detail: &str| {
        let mut refusal = problem(status, detail);
        // What is left of the body is not read.
        refusal
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
        Box::new(refusal)
    };
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "A body may have 64 KiB here.",
        )),
        Ok(Err(_)) => Err(refuse(
            StatusCode::BAD_REQUEST,
            "The body could not be read.",
        )),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            "The body took too long.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_limit;

    #[test]
    fn limits_in_all_their_forms() {
        assert_eq!(parse_limit(br#"{"limit": 8}"#), Ok(Some(8)));
        assert_eq!(parse_limit(br#"{"limit": "auto"}"#), Ok(None));
        assert_eq!(parse_limit(br#""auto""#), Ok(None));
        assert_eq!(parse_limit(b" 3 "), Ok(Some(3)));
        for wrong in [
            "",
            "auto",
            "{}",
            "0",
            "-1",
            "1.5",
            "null",
            "[1]",
            "4294967296",
            r#"{"limit": 0}"#,
            r#"{"limit": "8"}"#,
            r#"{"limit": 8, "x": 1}"#,
            r#"{"x": 8}"#,
        ] {
            assert!(parse_limit(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}

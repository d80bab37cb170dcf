//! An adaptive limit in front of any HTTP service, without the proxy: [`AdmissionLayer`] around a
//! service that can work on four requests at a time, 50 ms each (80 a second).
//!
//! ```sh
//! cargo run --example tower_service
//! curl -i http://127.0.0.1:3000/
//! # Too much at once: some are answered, the others refused at once or after a short wait.
//! seq 400 | xargs -P 100 -I{} curl -s -o /dev/null -w '%{http_code} after %{time_total} s\n' \
//!     http://127.0.0.1:3000/{} | sort | uniq -c
//! ```
//!
//! Every second it prints the limit that was found, and who is in flight and waits.

use std::{convert::Infallible, error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::{Either, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate::{
    admission::{AdmissionError, AdmissionLayer, Refusal},
    clock,
};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};
use tower::{ServiceBuilder, ServiceExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let layer = AdmissionLayer::builder()
        .max_wait(Duration::from_millis(300))
        .build()
        // Holds the permit until the body is written, not only until the head is there.
        .hold_body();
    report(layer.limiter().clone());

    // Four workers: what they cannot take at once waits inside the service, unseen, unless
    // something in front of it keeps the rest out.
    let workers = Arc::new(Semaphore::new(4));
    let service = ServiceBuilder::new()
        .layer(layer)
        .service_fn(move |request: Request<Incoming>| work(workers.clone(), request));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    say(&format!("listening on http://{}", listener.local_addr()?));
    loop {
        let (stream, _) = listener.accept().await?;
        // Clones share one limit.
        let service = service.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let service = service.clone();
                async move {
                    Ok::<_, Infallible>(match service.oneshot(request).await {
                        Ok(response) => response.map(Either::Left),
                        Err(AdmissionError::Refused(refusal)) => {
                            refused(refusal).map(Either::Right)
                        }
                        Err(AdmissionError::Inner(never)) => match never {},
                    })
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer);
            // A client that went away is nobody's trouble.
            let _ = connection.await;
        });
    }
}

async fn work(
    workers: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let _worker = workers.acquire().await;
    sleep(Duration::from_millis(50)).await;
    let text = format!("hello from {}\n", request.uri().path());
    Ok(Response::new(text.into()))
}

/// 503, why, and when it is worth trying again.
fn refused(refusal: Refusal) -> Response<Full<Bytes>> {
    let seconds = refusal.retry_after().as_secs() + 1;
    let mut response = Response::new(format!("{refusal}\n").into());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response
}

fn report(limiter: Arc<tidegate::admission::Limiter>) {
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(1)).await;
            let now = limiter.snapshot(clock::now());
            say(&format!(
                "limit {}, in flight {}, queued {}",
                now.limit(),
                now.in_flight(),
                now.queued()
            ));
        }
    });
}

#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}

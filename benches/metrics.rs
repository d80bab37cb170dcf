//! What counting costs a request, and what a scrape costs. Target: at most 2 ms for a scrape with every
//! route there is, which runs on a thread of its own.
//!
//! ```sh
//! cargo bench --bench metrics
//! ```

use std::time::Duration;

use divan::{Bencher, black_box, counter::BytesCount};
use tidegate::{
    config::Class,
    observe::{Format, Metrics, Reason, Snapshot, Source, WaitOutcome},
};

fn main() {
    divan::main();
}

/// So many routes, each with requests of a few kinds.
fn metrics(routes: usize) -> Metrics {
    let metrics = Metrics::new();
    for number in 0..routes {
        let route = metrics.route(&format!("route-{number}"));
        for code in [200, 201, 302, 404, 500] {
            route.request(code, Source::Backend);
        }
        route.request(503, Source::Tidegate);
        route.rejected(Reason::QueueTimeout);
        route.request_seconds(Duration::from_millis(number as u64));
    }
    metrics
}

/// All that is counted for one request that was served.
#[divan::bench]
fn one_request(bencher: Bencher) {
    let metrics = Metrics::new();
    let route = metrics.route("default");
    let took = Duration::from_millis(30);
    bencher.bench_local(|| {
        let took = black_box(took);
        metrics.connections_idle.decrement();
        metrics.connections_active.increment();
        metrics.queue_wait(Class::Normal, WaitOutcome::Admitted, Duration::ZERO);
        route.backend_seconds(took);
        route.request(200, Source::Backend);
        route.first_byte_seconds(took);
        route.request_seconds(took);
        metrics.connections_active.decrement();
        metrics.connections_idle.increment();
    });
}

/// The whole exposition, by the number of routes.
#[divan::bench(args = [1, 16, 64])]
fn scrape(bencher: Bencher, routes: usize) {
    let metrics = metrics(routes);
    let snapshot = Snapshot::default();
    let length = metrics.render(&snapshot, Format::Text).len();
    bencher
        .counter(BytesCount::new(length))
        .bench_local(|| metrics.render(black_box(&snapshot), Format::Text));
}

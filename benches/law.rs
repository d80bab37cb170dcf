//! What the control law costs a request. Target: at most 200 ns a sample, decisions included.
//!
//! ```sh
//! cargo bench --bench law
//! ```

use std::time::Duration;

use divan::Bencher;
use tidegate::{
    clock,
    limit::{Controller, Outcome, Readings, Sample, Settings, Usage},
};

fn main() {
    divan::main();
}

/// One sample of a busy backend, with its share of the decisions; by the number of routes.
#[divan::bench(args = [1, 8])]
fn sample(bencher: Bencher, routes: u16) {
    let mut at = clock::now();
    let mut controller = Controller::new(Settings::default(), at);
    let mut usage = Usage::default();
    let mut n = 0_u32;
    bencher.bench_local(|| {
        n = n.wrapping_add(1);
        at += Duration::from_micros(100);
        controller.observe(&Sample {
            started: at - Duration::from_millis(20),
            finished: at,
            in_flight: 1 + n % 16,
            route: n as u16 % routes,
            outcome: Outcome::Success,
        });
        if controller.due(at) {
            usage.busy_seconds += 1.0;
            usage.saturated_seconds += 0.1;
            controller.tick(at, &usage, &Readings::default());
        }
        controller.limit()
    });
}

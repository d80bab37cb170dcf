//! What the control laws cost. Target: at most 200 ns for a request, all told: its sample, and its
//! share of the decisions.
//!
//! ```sh
//! cargo bench --bench law
//! ```

use std::time::{Duration, Instant};

use divan::{Bencher, counter::ItemsCount};
use tidegate::limit::{Algorithm, Controller, Group, Outcome, Readings, Sample, Settings, Usage};

fn main() {
    divan::main();
}

/// A backend under load: 10 000 requests a second of eight routes, up to 16 at once.
struct Load {
    controller: Controller,
    now: Instant,
    usage: Usage,
    number: u32,
}

impl Load {
    fn new(algorithm: Algorithm, shadow: &[Algorithm]) -> Self {
        let now = tidegate::clock::now();
        let settings = Settings {
            algorithm,
            shadow: shadow.to_vec(),
            ..Settings::default()
        };
        let mut load = Load {
            controller: Controller::new(settings, now),
            now,
            usage: Usage::default(),
            number: 0,
        };
        for _ in 0..10_000 {
            load.request();
        }
        load
    }

    fn sample(&mut self) -> Sample {
        self.number = self.number.wrapping_add(1);
        self.now += Duration::from_micros(100);
        Sample {
            started: self.now - Duration::from_micros(1500 + u64::from(self.number % 7) * 100),
            finished: self.now,
            in_flight: 1 + self.number % 16,
            // As most are: without a route.
            group: Group::Path((self.number % 8) as u16),
            outcome: Outcome::Success,
        }
    }

    /// All that the law does for one request, as the limiter asks for it.
    fn request(&mut self) {
        let sample = self.sample();
        self.controller.observe(&sample);
        if self.controller.due(self.now) {
            self.decide();
        }
    }

    fn decide(&mut self) {
        self.usage.in_flight = 16;
        self.usage.busy_seconds += 0.1 * 16.0;
        self.usage.saturated_seconds += 0.1;
        divan::black_box(
            self.controller
                .tick(self.now, &self.usage, &Readings::default()),
        );
    }
}

/// A request, with its share of the decisions; by law.
#[divan::bench(args = Algorithm::ALL)]
fn request(bencher: Bencher, law: Algorithm) {
    let mut load = Load::new(law, &[]);
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| load.request());
}

/// The same with two others in the shadow of the default law.
#[divan::bench]
fn request_with_shadows(bencher: Bencher) {
    let mut load = Load::new(Algorithm::Aimd, &[Algorithm::Gradient, Algorithm::Vegas]);
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| load.request());
}

/// One sample alone.
#[divan::bench]
fn sample(bencher: Bencher) {
    let mut load = Load::new(Algorithm::Aimd, &[]);
    bencher.bench_local(|| {
        let sample = load.sample();
        load.controller.observe(divan::black_box(&sample));
    });
}

/// One decision: a window of a tenth of a second closes. Its samples are not counted.
#[divan::bench]
fn decision(bencher: Bencher) {
    bencher
        .with_inputs(|| {
            let mut load = Load::new(Algorithm::Aimd, &[]);
            while !load.controller.due(load.now) {
                let sample = load.sample();
                load.controller.observe(&sample);
            }
            load
        })
        .bench_local_refs(Load::decide);
}

/// A look that finds nothing to do: every 50 ms while something is in flight.
#[divan::bench]
fn look(bencher: Bencher) {
    let mut load = Load::new(Algorithm::Aimd, &[]);
    let (usage, readings) = (load.usage, Readings::default());
    bencher.bench_local(|| {
        load.now += Duration::from_nanos(10);
        load.controller.tick(load.now, &usage, &readings)
    });
}

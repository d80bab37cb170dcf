//! Runs a scenario through tidegate's own gate, queue and control law, in virtual time, and reports
//! what came of it beside the best fixed limit.
//!
//! ```sh
//! cargo run --release --example simulate -- tests/scenarios/t02-double-load.toml
//! cargo run --release --example simulate -- FILE.toml --seeds 20 --format json
//! cargo run --release --example simulate -- --peers --seeds 101-105 tests/scenarios/*.toml
//! ```
//!
//! # What it reports
//!
//! For each phase, as the median and the worst over the seeds: requests offered and answered within
//! the client's deadline (goodput), and as shares of those offered: refused, late (the client gave
//! up), failed (answered with a 503 by the backend, lost with it when it went down, or sent to it
//! while it was), wasted (completed by the backend after the client had given up); the median and
//! 99th percentile latency of admitted requests, in which those who gave up count with their
//! time-out; mean and standard deviation of the limit and of what was in flight. The same for the
//! *oracle*: the best fixed limit with the same queue, found by sweep for each phase by itself (one
//! limit for all seeds). A request counts in the phase in which it arrives; those still under way
//! when it ends are its `open` ones, so that no backlog flatters a phase. One seed gives the same run
//! on every machine, and every law and limit is offered the very same requests.
//!
//! `--peers` runs other limiters' laws, written anew from their published rules, through the same
//! scenarios, as they come (what is over the limit is refused at once) and with tidegate's queue.
//!
//! # The scenario format
//!
//! TOML. An unknown key is an error. What is shown is the default, except in `[[class]]`, where
//! `name` and `service_ms` are required, and in `[[phase]]`, where `seconds` and one of `load` and
//! `rps` are.
//!
//! ```toml
//! name = "unnamed"
//! seeds = [1, 2, 3, 4, 5]
//! tidegates = 1             # in front of the one backend, each with a law and a queue of its own
//!
//! [backend]
//! kind = "slots"            # slots: N servers on one FIFO
//!                           # sharing: processor sharing among `slots` threads on `cores`; a
//!                           # request computes, waits, and computes again
//! slots = 8
//! cores = 8.0               # sharing: cores; cpu_share of each request's work competes for them
//! cpu_share = 1.0           # the rest is waiting that needs no core
//! thrash = 0.0              # sharing: efficiency lost for each computing request beyond the cores
//! accept_queue_visible = true   # whether the law may read the backlog
//! slots_known = true            # whether discovery reports `slots`, within a second; if not, the
//!                               # limit starts at 2 x cores
//! memory_per_request = "0B"     # of each that is being worked on
//! memory_limit = "0B"       # 0 = none; crossing it kills the backend for restart_seconds
//! memory_base = "0B"        # in use with nothing in flight
//! memory_leak = "0B"        # a second, until the next restart
//! memory_arenas = 0         # parts of its heap, each used by some of the requests; each keeps the memory of
//! memory_kept = 1           # the last so many for the next ones; 0 arenas = what is freed is given back
//! restart_seconds = 3.0
//!
//! [[class]]                 # at least one
//! name = "fast"
//! service_ms = 20.0         # mean of a lognormal
//! cv = 0.5                  # its coefficient of variation; 0 = constant
//! priority = "normal"       # protected, high, normal, low, stream
//! route = "fast"            # classes of one route are the same to the law; without one, the name
//! paths = 0                 # more: of no route; they ask for so many paths, which the law may tell apart
//!
//! [client]
//! timeout_ms = 1000         # patience, for each attempt
//! retries = 0               # at once, after a refusal or a time-out
//! honours_retry_after = false   # after a refusal, wait as long as it says
//!
//! [limit]                   # any keys of these sections of tidegate.toml
//! [queue]                   # (the clients send no deadline header)
//!
//! [[phase]]
//! seconds = 30.0
//! load = 2.0                # x the capacity of the unchanged backend with the first phase's mix
//!                           # or: rps = 120.0
//! burst_on = 0.0            # seconds of each burst_every at `load`, else at `burst_off_load`;
//! burst_every = 0.0         # 0 = no bursts
//! burst_off_load = 0.0
//! slots = 8                 # a change of the backend from here on
//! cores = 8.0               # likewise
//! slowdown = 1.0            # service times x this, in this phase
//! pause_every = 0.0         # all servers stop for pause_ms
//! pause_ms = 0.0
//! down_seconds = 0.0        # at the start of the phase: it loses what it has, refuses connections
//! errors = 0.0              # share of the requests that it answers with a 503 when it is done
//! mix = { fast = 1.0 }      # weights of the classes; left out: as in the phase before, at first
//!                           # the same for all
//! ```
//!
//! # What is simulated, and how
//!
//! Arrivals are Poisson. `load = 1.0` is `slots / mean service time` requests a second, and for
//! `sharing` at most `cores / (cpu_share x mean service time)`. The gate, the queue and the law are
//! the product's modules, driven as its limiter and tuner drive them: a look at the law every 50 ms
//! (250 ms while idle) and whenever a window is due. A permit is held until the backend is done,
//! whether the client still waits or not. As in the product, what the backend answers is a sample
//! even if the client has left, a lost request is a sign of overload, and one that finds the backend
//! down fails at once and says nothing of load.

// Some of it is for the tests.
#[allow(dead_code)]
mod sim;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, ValueEnum};

use sim::{
    compare, engine,
    law::{MakeLaw, Product},
    oracle, report,
    scenario::Scenario,
};

/// Runs scenarios through tidegate's gate, queue and control law in virtual time.
#[derive(Debug, Parser)]
struct Options {
    /// Scenario files.
    #[arg(required = true, value_name = "SCENARIO.toml")]
    scenarios: Vec<PathBuf>,
    /// Seeds instead of the file's: a number N for 1 to N, or FROM-TO.
    #[arg(long, value_parser = seeds)]
    seeds: Option<Seeds>,
    /// How to say it.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Compare with the laws of other limiters, over all the scenarios together.
    #[arg(long)]
    peers: bool,
    /// Print each decision of the first seed's run, and nothing else.
    #[arg(long)]
    decisions: bool,
}

#[derive(Clone, Debug)]
struct Seeds(Vec<u64>);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn seeds(text: &str) -> Result<Seeds, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let (from, to) = match text.split_once('-') {
        Some((from, to)) => (number(from)?, number(to)?),
        None => (1, number(text)?),
    };
    if from > to || to - from >= 10_000 {
        return Err("from 1 to 10000 seeds".to_owned());
    }
    Ok(Seeds((from..=to).collect()))
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(io::stderr(), "{message}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let mut scenarios = Vec::new();
    for path in &options.scenarios {
        let mut scenario = Scenario::read(path)?;
        if let Some(Seeds(seeds)) = &options.seeds {
            scenario.seeds.clone_from(seeds);
        }
        scenarios.push(scenario);
    }
    if options.peers {
        let comparison = compare::compare(&scenarios);
        return match options.format {
            Format::Text => say(&comparison.text()),
            Format::Json => say(&format!("{:#}\n", comparison.json())),
        };
    }
    let mut documents = Vec::new();
    for scenario in &scenarios {
        if options.decisions {
            print_decisions(scenario);
            continue;
        }
        let runs = oracle::product(scenario);
        let best = oracle::oracle(scenario);
        match options.format {
            Format::Text => say(&report::text(scenario, &runs, &best))?,
            Format::Json => documents.push(report::json(scenario, &runs, &best)),
        }
    }
    if let Format::Json = options.format {
        // One scenario is one document, several are a list.
        let document = match documents.len() {
            1 => documents.remove(0),
            _ => documents.into(),
        };
        say(&format!("{document:#}\n"))?;
    }
    Ok(())
}

fn say(text: &str) -> Result<(), String> {
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|error| error.to_string())
}

fn print_decisions(scenario: &Scenario) {
    let law: &MakeLaw<'_> = &|now| Box::new(Product::new(&scenario.limit, now));
    let mut out = io::stdout().lock();
    let watch = move |at: f64, tidegate: usize, d: &tidegate::limit::Decision| {
        let e = d.evidence;
        let _ = writeln!(
            out,
            "{at:9.3} #{tidegate} {:>3} -> {:<3} {:<11} {:?} n={} drops={} stretch={:.2}±{:.2} X={:.2} limited={:.2} mean={:.1} ms",
            d.from,
            d.limit,
            d.reason,
            d.bound_by,
            e.samples,
            e.drops,
            e.stretch,
            e.noise,
            e.throughput,
            e.limited_share,
            e.mean_latency.as_secs_f64() * 1e3,
        );
    };
    engine::run(scenario, scenario.seeds[0], law, Some(Box::new(watch)));
}

//! Runs over all seeds, and the oracle: the best fixed limit with the same queue, found by sweep for
//! each phase by itself.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tidegate::limit::{Algorithm, Settings};

use super::{
    engine,
    law::{MakeLaw, Product},
    outcome::Outcome,
    scenario::Scenario,
};

/// By seed, the phases.
pub type Runs = Vec<Vec<Outcome>>;

/// The best fixed limit of one phase.
#[derive(Clone, Debug)]
pub struct Best {
    /// One limit for all seeds: the one with the most good answers in all.
    pub limit: u32,
    /// What it came to, by seed.
    pub outcomes: Vec<Outcome>,
}

/// How many limits of each phase go on to the next seed; from there, so many as the last says are tried on
/// all that are left. (On the first seed all are.)
const GO_ON: [usize; 2] = [5, 3];
/// Steps of the sweep, as a factor.
const STEP: f64 = 1.35;
/// The sweep goes up to this many times the largest knee, and 8 more.
const FAR: f64 = 3.0;

/// The scenario as it is, over its seeds, on the product's law.
pub fn product(scenario: &Scenario) -> Runs {
    let settings = &scenario.limit;
    all_seeds(scenario, &|now| Box::new(Product::new(settings, now)))
}

/// The same on any law.
pub fn all_seeds(scenario: &Scenario, law: &MakeLaw<'_>) -> Runs {
    side_by_side(scenario.seeds.len(), |at| {
        engine::run(scenario, scenario.seeds[at], law, None)
    })
}

/// The best fixed limit of each phase. The first seeds say which limits are in question, all of
/// them which is best.
pub fn oracle(scenario: &Scenario) -> Vec<Best> {
    let limits = candidates(scenario);
    let all: Vec<usize> = (0..limits.len()).collect();
    // By phase, places in `limits`.
    let mut in_question = vec![all; scenario.phases.len()];
    let mut runs: Vec<Runs> = vec![Runs::new(); limits.len()];
    let mut seeds = scenario.seeds.as_slice();
    let mut rounds = GO_ON.iter();
    while !seeds.is_empty() {
        let round = rounds.next();
        let (tried, left) = seeds.split_at(round.map_or(seeds.len(), |_| 1));
        seeds = left;
        let mut places = in_question.concat();
        places.sort_unstable();
        places.dedup();
        let chosen: Vec<u32> = places.iter().map(|&at| limits[at]).collect();
        for (&at, more) in places.iter().zip(fixed(scenario, &chosen, tried)) {
            runs[at].extend(more);
        }
        if let Some(&most) = round {
            for (phase, places) in in_question.iter_mut().enumerate() {
                // Of equals the lowest comes first: the sort is stable.
                places.sort_by_key(|&at| std::cmp::Reverse(good(&runs[at], phase)));
                places.truncate(most);
                places.sort_unstable();
            }
        }
    }
    (in_question.iter().enumerate())
        .map(|(phase, places)| {
            let best = (places.iter().rev())
                .max_by_key(|&&at| good(&runs[at], phase))
                .copied()
                .unwrap_or(0);
            Best {
                limit: limits[best],
                outcomes: runs[best].iter().map(|run| run[phase].clone()).collect(),
            }
        })
        .collect()
}

/// Good answers of a phase over all seeds.
fn good(runs: &Runs, phase: usize) -> u64 {
    runs.iter().map(|run| u64::from(run[phase].good)).sum()
}

/// Runs with each of the limits, over the seeds.
fn fixed(scenario: &Scenario, limits: &[u32], seeds: &[u64]) -> Vec<Runs> {
    let mut runs = side_by_side(limits.len() * seeds.len(), |at| {
        let (limit, seed) = (limits[at / seeds.len()], seeds[at % seeds.len()]);
        let settings = Settings {
            algorithm: Algorithm::Fixed,
            initial: limit,
            min: 1,
            max: limit,
            ..scenario.limit.clone()
        };
        let law: &MakeLaw<'_> = &|now| Box::new(Product::new(&settings, now));
        engine::run(scenario, seed, law, None)
    })
    .into_iter();
    (limits.iter())
        .map(|_| runs.by_ref().take(seeds.len()).collect())
        .collect()
}

/// Limits from 1 to far beyond the knee: in steps, and densely about the knee of each phase.
fn candidates(scenario: &Scenario) -> Vec<u32> {
    let share = |knee: f64| knee / scenario.tidegates as f64;
    let knees: Vec<f64> = (scenario.phases.iter())
        .map(|phase| share(scenario.knee(phase)))
        .collect();
    let most = knees.iter().copied().fold(1.0, f64::max) * FAR + 8.0;
    let mut limits: Vec<u32> = vec![1, 2, 3];
    let mut step = 4.0;
    while step < most {
        limits.push(step as u32);
        step = (step * STEP).max(step + 1.0);
    }
    for knee in knees {
        let knee = knee.ceil() as u32;
        limits.extend([knee, knee + 1, knee + 2]);
    }
    limits.sort_unstable();
    limits.dedup();
    limits
}

/// Results in order, computed on all cores.
pub fn side_by_side<T: Send>(jobs: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs));
    thread::scope(|scope| {
        for _ in 0..cores.min(jobs) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Relaxed);
                    if at >= jobs {
                        return;
                    }
                    let result = job(at);
                    done.lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((at, result));
                }
            });
        }
    });
    let mut done = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

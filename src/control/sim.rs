//! A small deterministic discrete-event simulator: Poisson clients, a gate with a short bounded
//! queue, and a backend. Virtual time, one seed, no threads.
#![allow(clippy::print_stderr, clippy::needless_update)]

use std::collections::VecDeque;
use std::time::Duration;

use super::*;

/// The backend: FIFO slots, or processor sharing of `cores` among up to `slots`.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) slots: usize,
    pub(super) cores: Option<f64>,
    /// (share of traffic, mean service seconds, coefficient of variation), one a route.
    pub(super) routes: Vec<(f64, f64, f64)>,
}

/// A stretch of time under one regime.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    pub(super) seconds: f64,
    pub(super) rps: f64,
    pub(super) slots: Option<usize>,
    pub(super) slowdown: f64,
    pub(super) drops: f64,
    /// (every, length) of stop-the-world pauses, seconds.
    pub(super) pause: Option<(f64, f64)>,
    pub(super) mix: Option<Vec<f64>>,
}

impl Phase {
    pub(super) fn new(seconds: f64, rps: f64) -> Self {
        Phase {
            seconds,
            rps,
            slots: None,
            slowdown: 1.0,
            drops: 0.0,
            pause: None,
            mix: None,
        }
    }
}

/// What a phase came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcomes {
    pub(super) offered: u32,
    pub(super) good: u32,
    pub(super) refused: u32,
    pub(super) latencies: Vec<f64>,
    pub(super) limit_area: f64,
    pub(super) limit_squared: f64,
    pub(super) lowest: u32,
    pub(super) highest: u32,
    pub(super) last: u32,
    pub(super) seconds: f64,
    pub(super) reasons: std::collections::BTreeMap<&'static str, u32>,
}

impl Outcomes {
    pub(super) fn mean_limit(&self) -> f64 {
        self.limit_area / self.seconds
    }
    pub(super) fn deviation(&self) -> f64 {
        (self.limit_squared / self.seconds - self.mean_limit().powi(2))
            .max(0.0)
            .sqrt()
    }
    pub(super) fn refused_share(&self) -> f64 {
        f64::from(self.refused) / f64::from(self.offered.max(1))
    }
    pub(super) fn percentile(&self, p: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
            .get((p * (sorted.len() as f64 - 1.0).max(0.0)) as usize)
            .copied()
            .unwrap_or(0.0)
    }
}

/// Clients give up after this, seconds, or after five service times.
const PATIENCE: f64 = 1.0;

#[derive(Clone, Copy)]
struct Job {
    arrived: f64,
    started: f64,
    in_flight: u32,
    route: usize,
    left: f64,
}

struct Gate {
    in_flight: u32,
    queue: VecDeque<(f64, usize, f64)>,
    usage: Usage,
    at: f64,
}

impl Gate {
    fn integrate(&mut self, t: f64, limit: u32) {
        let dt = t - self.at;
        self.usage.busy_seconds += dt * f64::from(self.in_flight);
        self.usage.limit_seconds += dt * f64::from(limit);
        if self.in_flight >= limit || !self.queue.is_empty() {
            self.usage.saturated_seconds += dt;
        }
        self.at = t;
    }
}

/// Runs the phases one after the other; `print` shows every decision.
pub(super) fn run(
    settings: &Settings,
    slots_known: bool,
    backend: &Backend,
    phases: &[Phase],
    seed: u64,
    print: bool,
) -> Vec<Outcomes> {
    let base = crate::clock::now();
    let instant = |t: f64| base + Duration::from_secs_f64(t);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut luck = fastrand::Rng::with_seed(!seed);
    let mut controller = Controller::new(settings.clone(), base);
    let mut gate = Gate {
        in_flight: 0,
        queue: VecDeque::new(),
        usage: Usage::default(),
        at: 0.0,
    };
    let mut running: Vec<Job> = Vec::new();
    let mut backlog: VecDeque<Job> = VecDeque::new();
    let slowest = backend.routes.iter().map(|r| r.1).fold(0.0, f64::max);
    let patience = PATIENCE.max(5.0 * slowest);
    let (mut t, mut results) = (0.0_f64, Vec::new());
    let mut next_tick = 0.05;
    for phase in phases {
        let end = t + phase.seconds;
        let origin = t;
        let slots = phase.slots.unwrap_or(backend.slots);
        let readings = Readings {
            slots: slots_known.then_some(slots as u32),
            ..Readings::default()
        };
        let shares: Vec<f64> = phase
            .mix
            .clone()
            .unwrap_or_else(|| backend.routes.iter().map(|r| r.0).collect());
        let mut out = Outcomes {
            lowest: controller.limit(),
            highest: controller.limit(),
            seconds: phase.seconds,
            ..Outcomes::default()
        };
        let mut next_arrival = t + exponential(&mut rng, phase.rps);
        loop {
            // Fill the slots.
            while running.len() < slots && !backlog.is_empty() {
                running.extend(backlog.pop_front());
            }
            let n = running.len() as f64;
            let paused = phase.pause.and_then(|(every, length)| {
                let within = (t - origin) % every;
                // Each pause is at the end of its period.
                (within >= every - length - 1e-9).then_some(every - within)
            });
            let rate = match (paused, backend.cores) {
                (Some(_), _) => 0.0,
                (None, Some(cores)) => (cores / n.max(1.0)).min(1.0) / phase.slowdown,
                (None, None) => 1.0 / phase.slowdown,
            };
            let edge = match (phase.pause, paused) {
                (_, Some(left)) => t + left.max(1e-6),
                (Some((every, length)), None) => t + every - length - (t - origin) % every,
                (None, _) => f64::INFINITY,
            };
            let shortest = running
                .iter()
                .map(|job| job.left)
                .fold(f64::INFINITY, f64::min);
            let next_done = if rate > 0.0 {
                t + shortest / rate
            } else {
                f64::INFINITY
            };
            let wait = max_wait(&controller);
            let next_expiry = gate.queue.front().map_or(f64::INFINITY, |q| q.0 + wait);
            let next = next_arrival
                .min(next_done)
                .min(next_expiry)
                .min(next_tick)
                .min(edge)
                .min(end)
                .max(t);
            for job in &mut running {
                job.left -= (next - t) * rate;
            }
            let limit = controller.limit();
            out.limit_area += (next - t) * f64::from(limit);
            out.limit_squared += (next - t) * f64::from(limit).powi(2);
            t = next;
            gate.integrate(t, limit);
            if t >= end {
                break;
            }
            if t >= next_expiry {
                while gate.queue.front().is_some_and(|q| q.0 + wait <= t) {
                    gate.queue.pop_front();
                    out.refused += 1;
                }
            }
            if t >= next_done {
                let done = running.iter().position(|job| job.left <= 1e-9);
                if let Some(job) = done.map(|i| running.remove(i)) {
                    gate.in_flight -= 1;
                    let dropped = luck.f64() < phase.drops;
                    controller.observe(&Sample {
                        started: instant(job.started),
                        finished: instant(t),
                        in_flight: job.in_flight,
                        route: job.route as u16,
                        outcome: if dropped {
                            Outcome::Overload
                        } else {
                            Outcome::Success
                        },
                    });
                    if !dropped && t - job.arrived <= patience {
                        out.good += 1;
                        out.latencies.push(t - job.arrived);
                    }
                }
            }
            if t >= next_arrival {
                out.offered += 1;
                // Drawn here, so that each law is offered the very same requests.
                let route = pick(&mut rng, &shares);
                let work = lognormal(&mut rng, backend.routes[route].1, backend.routes[route].2);
                next_arrival = t + exponential(&mut rng, phase.rps);
                if gate.queue.len() < (10 * limit as usize).min(1024) {
                    gate.queue.push_back((t, route, work));
                } else {
                    out.refused += 1;
                }
            }
            if t >= next_tick || controller.due(instant(t)) {
                next_tick = t + 0.05;
                gate.usage.in_flight = gate.in_flight;
                gate.usage.limit = controller.limit();
                gate.usage.queued = gate.queue.len() as u32;
                if let Some(d) = controller.tick(instant(t), &gate.usage, &readings) {
                    *out.reasons.entry(d.reason).or_default() += 1;
                    if print {
                        let e = d.evidence;
                        eprintln!(
                            "{t:8.2} {:>3}->{:<3} {:<11} {:?} n={} d={} S={:.2}±{:.2} X={:.2} lim={:.2} b={:?}",
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
                            controller.baseline(),
                        );
                    }
                }
            }
            while gate.in_flight < controller.limit() {
                let Some((arrived, route, left)) = gate.queue.pop_front() else {
                    break;
                };
                gate.in_flight += 1;
                let in_flight = gate.in_flight;
                backlog.push_back(Job {
                    arrived,
                    started: t,
                    in_flight,
                    route,
                    left,
                });
            }
            out.lowest = out.lowest.min(controller.limit());
            out.highest = out.highest.max(controller.limit());
        }
        out.last = controller.limit();
        results.push(out);
    }
    results
}

/// A standing queue needs two or three service times (CONTROL §4.5.1).
fn max_wait(controller: &Controller) -> f64 {
    let service = controller.service_time().map_or(0.0, |d| d.as_secs_f64());
    (2.5 * service).clamp(0.05, 0.5)
}

fn exponential(rng: &mut fastrand::Rng, rate: f64) -> f64 {
    -(1.0 - rng.f64()).ln() / rate
}

fn lognormal(rng: &mut fastrand::Rng, mean: f64, cv: f64) -> f64 {
    if cv == 0.0 {
        return mean;
    }
    let variance = (1.0 + cv * cv).ln();
    let (u, v) = (1.0 - rng.f64(), rng.f64());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    mean * (variance.sqrt() * normal - 0.5 * variance).exp()
}

fn pick(rng: &mut fastrand::Rng, shares: &[f64]) -> usize {
    let mut at = rng.f64() * shares.iter().sum::<f64>();
    for (i, share) in shares.iter().enumerate() {
        at -= share;
        if at < 0.0 {
            return i;
        }
    }
    shares.len() - 1
}

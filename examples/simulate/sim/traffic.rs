//! Who asks, when, and for how much work. Drawn without a look at the law, so that every law and
//! every fixed limit is offered the very same requests, and the backend the very same work: the
//! n-th request of a class that it gets takes the n-th draw, whichever request that is. So two limits
//! differ by what they do, and not by their luck with the requests that they let in.

use fastrand::Rng;

use super::scenario::{Phase, RequestClass};

/// One request as its client means it, whatever becomes of its attempts.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Seconds since the start.
    pub at: f64,
    /// Index of its class.
    pub class: usize,
    /// Which tidegate it is sent to.
    pub proxy: usize,
}

/// Poisson arrivals, phase by phase.
#[derive(Debug)]
pub struct Traffic {
    rng: Rng,
    proxies: usize,
    at: f64,
}

impl Traffic {
    pub fn new(seed: u64, proxies: usize) -> Self {
        Traffic {
            rng: Rng::with_seed(seed),
            proxies,
            at: 0.0,
        }
    }

    /// The next arrival before `end`, in a phase that began at `begin`.
    pub fn next(&mut self, phase: &Phase, begin: f64, end: f64) -> Option<Arrival> {
        self.at = self.at.max(begin);
        loop {
            let (rps, edge) = rate(phase, self.at - begin);
            let edge = (begin + edge).min(end);
            // Poisson arrivals forget: at an edge the next gap is drawn anew.
            let gap = -(1.0 - self.rng.f64()).ln() / rps;
            if rps > 0.0 && self.at + gap < edge {
                self.at += gap;
                break;
            }
            self.at = edge;
            if self.at >= end {
                return None;
            }
        }
        let class = pick(&mut self.rng, &phase.mix);
        Some(Arrival {
            at: self.at,
            class,
            proxy: self.rng.usize(..self.proxies),
        })
    }
}

/// How much work a class's requests are.
#[derive(Debug)]
pub struct Work {
    rng: Rng,
    mean: f64,
    cv: f64,
}

impl Work {
    pub fn new(seed: u64, index: usize, class: &RequestClass) -> Self {
        let salt = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Work {
            rng: Rng::with_seed(seed ^ salt),
            mean: class.service_ms / 1e3,
            cv: class.cv,
        }
    }

    /// Seconds at the unchanged backend.
    pub fn next(&mut self) -> f64 {
        lognormal(&mut self.rng, self.mean, self.cv)
    }
}

/// The rate so long after the phase began, and until when it holds.
fn rate(phase: &Phase, since: f64) -> (f64, f64) {
    if phase.burst_on <= 0.0 || phase.burst_every <= phase.burst_on {
        return (phase.rps, f64::INFINITY);
    }
    let mut start = (since / phase.burst_every).floor() * phase.burst_every;
    // Rounding must not leave us before an edge that we are at.
    if start + phase.burst_every <= since + 1e-9 {
        start += phase.burst_every;
    }
    if since + 1e-9 < start + phase.burst_on {
        (phase.rps, start + phase.burst_on)
    } else {
        (phase.rps_off, start + phase.burst_every)
    }
}

fn lognormal(rng: &mut Rng, mean: f64, cv: f64) -> f64 {
    let (u, v) = (1.0 - rng.f64(), rng.f64());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    let variance = (1.0 + cv * cv).ln();
    mean * (variance.sqrt() * normal - 0.5 * variance).exp()
}

fn pick(rng: &mut Rng, shares: &[f64]) -> usize {
    let mut at = rng.f64() * shares.iter().sum::<f64>();
    let mut last = 0;
    for (i, &share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
        at -= share;
        last = i;
        if at < 0.0 {
            break;
        }
    }
    last
}

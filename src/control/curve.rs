//! The learned curve of latency over concurrency: capacity "in parallel
//! requests" is this curve, not a number.

use std::time::{Duration, Instant};

use super::Group;
use super::kinds::{KINDS, Kinds};
use super::memory::RememberedBin;

/// Bins of the curve: four an octave, up to 65 535 in flight.
const BINS: usize = 64;
/// Memory of a bin, in samples.
const MEMORY: f64 = 150.0;
/// Time in which the weight of a silent bin halves...
const HALF_LIFE: Duration = Duration::from_secs(60);
/// ... but what it says of low load counts in full for this long.
const SILENT: Duration = Duration::from_secs(60);
/// The baseline comes from bins at or below this share of the limit.
pub(super) const LOW_SHARE: f64 = 0.55;
/// The lowest bins are pooled until they hold this many samples, of equal cost.
const ENOUGH: f64 = 60.0;
/// What an older baseline counts for beside a few new samples.
const PRIOR: f64 = 30.0;
/// The same of one that is in doubt.
const DOUBTED: f64 = 6.0;
/// Fewer samples than this give no baseline.
const LEAST: f64 = 6.0;
/// Low bins older than this no longer count as fresh.
const FRESH: Duration = Duration::from_secs(15);
/// What a rebase leaves of the weight of the bins it has set.
const KEPT: f64 = 30.0;
/// Bins fed within this time know of the change that a rebase is about.
const REBASED: Duration = Duration::from_secs(10);
/// The least that a correction of the costs leaves of a bin's.
const CORRECTED_LEAST: f64 = 0.05;
/// Fresh low samples that make a dip unnecessary.
const FRESH_SAMPLES: f64 = 8.0;

/// One point of the capacity curve, for the status page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// Requests in flight when a request starts, itself included.
    pub in_flight: u32,
    /// Latency over the unloaded latency of the same routes; 1 = no queueing.
    pub stretch: f64,
    /// Requests a second of the recent mix of routes that this concurrency sustains, by Little's law.
    pub throughput: f64,
    /// Samples behind the point, discounted; at most 150.
    pub weight: f64,
}

/// The unloaded latency of one unit of cost, and the samples it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Baseline {
    pub(super) scale: f64,
    pub(super) weight: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    in_flight: f64,
    latency: f64,
    cost: f64,
    cost_squared: f64,
    weight: f64,
    at: Option<Instant>,
}

impl Bin {
    fn ratio(&self) -> f64 {
        self.latency / self.cost
    }

    /// What is left of its weight after a silence of this length.
    fn faded(&self, silence: Duration) -> f64 {
        self.weight * 0.5_f64.powf(silence.as_secs_f64() / HALF_LIFE.as_secs_f64())
    }

    fn silence(&self, now: Instant) -> Duration {
        self.at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// What it counts for now beside other bins.
    fn counts(&self, now: Instant) -> f64 {
        match self.silence(now).checked_sub(SILENT) {
            Some(silence) => self.faded(silence),
            None => self.weight,
        }
    }
}

/// Latency per unit of cost, by requests in flight.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    bins: [Bin; BINS],
    /// The last baseline, for limits so low that nothing lower was ever measured.
    remembered: Option<Baseline>,
    /// The last baseline that rests on samples enough: where low load has given only a few, they
    /// count beside it, not instead of it.
    prior: Option<Baseline>,
}

impl Curve {
    pub(super) fn new() -> Self {
        Curve {
            bins: [Bin::default(); BINS],
            remembered: None,
            prior: None,
        }
    }

    /// Adds one answer: latency and cost in seconds.
    pub(super) fn add(&mut self, in_flight: u32, latency: f64, cost: f64, now: Instant) {
        let bin = &mut self.bins[index(in_flight)];
        let silence = bin.silence(now);
        if silence > Duration::from_millis(250) {
            bin.weight = bin.faded(silence);
        }
        bin.weight = (bin.weight + 1.0).min(MEMORY);
        let gain = 1.0 / bin.weight;
        bin.in_flight += gain * (f64::from(in_flight.max(1)) - bin.in_flight);
        bin.latency += gain * (latency - bin.latency);
        bin.cost += gain * (cost - bin.cost);
        bin.cost_squared += gain * (cost * cost - bin.cost_squared);
        bin.at = Some(now);
    }

    /// Latency per unit of cost at this load, if measured.
    pub(super) fn ratio(&self, in_flight: u32) -> Option<f64> {
        let bin = &self.bins[index(in_flight)];
        (bin.weight >= FRESH_SAMPLES).then(|| bin.ratio())
    }

    /// The highest concurrency that counts as low under this limit.
    pub(super) fn low(limit: u32) -> u32 {
        ((f64::from(limit) * LOW_SHARE) as u32).max(1)
    }

    /// The unloaded latency of one unit of cost: the lowest bins first, until they hold enough. A backend that is never
    /// quiet any more, and is slower than when it was, is measured at the least load that it has now.
    pub(super) fn baseline(&mut self, limit: u32, now: Instant) -> Option<Baseline> {
        let (mut weight, mut latency, mut cost, mut squares) = (0.0, 0.0, 0.0, 0.0);
        // A hundred cheap requests and an expensive one weigh little more than the one.
        let mut effective = 0.0;
        for bin in &self.bins[..=index(Self::low(limit))] {
            let counts = bin.counts(now);
            weight += counts;
            latency += counts * bin.latency;
            cost += counts * bin.cost;
            squares += counts * bin.cost_squared;
            effective = if squares > 0.0 {
                cost * cost / squares
            } else {
                0.0
            };
            if effective >= ENOUGH {
                break;
            }
        }
        if weight >= LEAST && latency > 0.0 && cost > 0.0 && effective > 0.0 {
            let measured = Baseline {
                scale: latency / cost,
                weight: effective.max(1.0),
            };
            self.remembered = Some(match self.prior {
                Some(prior) if effective < ENOUGH => {
                    let kept = prior.weight.min(PRIOR).min(ENOUGH - effective);
                    let weight = measured.weight + kept;
                    Baseline {
                        scale: (measured.weight * measured.scale + kept * prior.scale) / weight,
                        weight,
                    }
                }
                _ => measured,
            });
            if effective >= ENOUGH {
                self.prior = Some(measured);
            }
        }
        self.remembered
    }

    /// Whether too little is known of low load, or too long ago.
    pub(super) fn stale(&self, limit: u32, now: Instant) -> bool {
        let fresh: f64 = self.bins[..=index(Self::low(limit))]
            .iter()
            .filter(|bin| {
                bin.at
                    .is_some_and(|at| now.saturating_duration_since(at) < FRESH)
            })
            .map(|bin| bin.weight)
            .sum();
        fresh < FRESH_SAMPLES
    }

    /// The backend as a whole got slower or faster by this factor: at this load and below, the
    /// latency of one unit of cost is `scale` from now on.
    pub(super) fn rebase(&mut self, scale: f64, factor: f64, in_flight: f64, now: Instant) {
        let known = index(in_flight.round() as u32);
        for (i, bin) in self.bins.iter_mut().enumerate() {
            let fresh = bin
                .at
                .is_some_and(|at| now.saturating_duration_since(at) < REBASED);
            if i <= known {
                bin.latency = scale * bin.cost;
                bin.weight = bin.weight.min(KEPT);
            } else {
                if !fresh {
                    bin.latency *= factor;
                }
                // More load is not answered sooner: a bin that says so was only inferred.
                bin.latency = bin.latency.max(scale * bin.cost);
            }
        }
        self.remembered = Some(Baseline {
            scale,
            weight: KEPT,
        });
        self.prior = self.remembered;
    }

    /// The requests of each kind cost so much more (or less) than they were taken to when they were added. Returns the
    /// factor by which that moves the baseline.
    pub(super) fn correct(
        &mut self,
        origins: &Origins,
        corrections: &[f64; KINDS],
        now: Instant,
    ) -> f64 {
        let before = self.lowest(now);
        for (index, bin) in self.bins.iter_mut().enumerate() {
            if bin.cost > 0.0 && bin.weight >= 1.0 {
                let more = origins.mean(index, bin.weight, corrections);
                let factor = (1.0 + more / bin.cost).max(CORRECTED_LEAST);
                bin.cost *= factor;
                bin.cost_squared *= factor * factor;
            }
        }
        let (Some(before), Some(after)) = (before, self.lowest(now)) else {
            return 1.0;
        };
        for known in [&mut self.remembered, &mut self.prior]
            .into_iter()
            .flatten()
        {
            known.scale *= after / before;
        }
        after / before
    }

    /// Latency per unit of cost of the lowest bins that hold samples at all.
    fn lowest(&self, now: Instant) -> Option<f64> {
        let (mut weight, mut latency, mut cost) = (0.0, 0.0, 0.0);
        for bin in &self.bins {
            let counts = bin.counts(now);
            weight += counts;
            latency += counts * bin.latency;
            cost += counts * bin.cost;
            if weight >= LEAST {
                break;
            }
        }
        (latency > 0.0 && cost > 0.0).then(|| latency / cost)
    }

    /// Whether low load has never been measured under such a limit: what counts as the baseline was
    /// measured at a higher load, and is an upper bound.
    pub(super) fn unmeasured(&self, limit: u32) -> bool {
        let low = &self.bins[..=index(Self::low(limit))];
        low.iter().map(|bin| bin.weight).sum::<f64>() < LEAST
    }

    /// What is known of low load is only an upper bound: the next samples count for more.
    pub(super) fn doubt(&mut self, limit: u32) {
        for bin in &mut self.bins[..=index(Self::low(limit))] {
            bin.weight = bin.weight.min(1.0);
        }
        if let Some(prior) = &mut self.prior {
            prior.weight = prior.weight.min(DOUBTED);
        }
    }

    /// Its bins, for a later process.
    pub(super) fn remember(&self) -> Vec<RememberedBin> {
        self.bins
            .iter()
            .filter(|bin| bin.weight >= 1.0 && bin.latency > 0.0 && bin.cost > 0.0)
            .map(|bin| RememberedBin {
                in_flight: bin.in_flight,
                latency: bin.latency,
                cost: bin.cost,
                cost_squared: bin.cost_squared,
                weight: bin.weight,
            })
            .collect()
    }

    /// Takes an earlier process's bins. They count for half: the backend may have changed.
    pub(super) fn recall(&mut self, scale: f64, bins: &[RememberedBin], now: Instant) {
        for known in bins {
            self.bins[index(known.in_flight.round() as u32)] = Bin {
                in_flight: known.in_flight,
                latency: known.latency,
                cost: known.cost,
                cost_squared: known.cost_squared,
                weight: 0.5 * known.weight.min(MEMORY),
                at: Some(now),
            };
        }
        self.remembered = Some(Baseline {
            scale,
            weight: KEPT,
        });
    }

    /// The curve in words of the status page, given the unloaded latency of one unit of cost, and the
    /// cost of a request.
    pub(super) fn points(&self, scale: f64, cost: f64) -> impl Iterator<Item = CurvePoint> {
        self.bins
            .iter()
            .filter(|bin| bin.weight >= 1.0 && bin.latency > 0.0 && bin.cost > 0.0)
            .map(move |bin| CurvePoint {
                in_flight: bin.in_flight.round() as u32,
                stretch: bin.ratio() / scale,
                throughput: bin.in_flight / (bin.ratio() * cost),
                weight: bin.weight,
            })
    }
}

/// Which kinds of requests the samples of each bin were, the last of each as far back as the bin remembers.
#[derive(Clone, Debug)]
pub(super) struct Origins {
    kinds: Box<[[u16; MEMORY as usize]; BINS]>,
    /// Where the next one goes.
    next: [u8; BINS],
}

impl Origins {
    /// Stands for a sample of a route, or of an earlier process.
    const OTHER: u16 = u16::MAX;

    pub(super) fn new() -> Self {
        Origins {
            kinds: Box::new([[Self::OTHER; MEMORY as usize]; BINS]),
            next: [0; BINS],
        }
    }

    /// Notes what [`Curve::add`] is given.
    pub(super) fn note(&mut self, in_flight: u32, group: Group) {
        let bin = index(in_flight);
        let next = &mut self.next[bin];
        self.kinds[bin][usize::from(*next)] = match group {
            Group::Path(hash) => Kinds::index(hash) as u16,
            Group::Route(_) => Self::OTHER,
        };
        *next = if usize::from(*next) + 1 < MEMORY as usize {
            *next + 1
        } else {
            0
        };
    }

    /// The mean of what there is for each kind, over a bin's samples of this weight.
    fn mean(&self, bin: usize, weight: f64, of_kind: &[f64; KINDS]) -> f64 {
        let samples = (weight.round() as usize).clamp(1, MEMORY as usize);
        let (after, before) = self.kinds[bin].split_at(usize::from(self.next[bin]));
        let latest = after.iter().rev().chain(before.iter().rev()).take(samples);
        let sum: f64 = latest
            .filter_map(|kind| of_kind.get(usize::from(*kind)))
            .sum();
        sum / samples as f64
    }
}

/// The quarter octave of a count: 1, 2, 3 and 4 have bins of their own.
fn index(in_flight: u32) -> usize {
    let n = in_flight.clamp(1, (1 << 16) - 1);
    let octave = n.ilog2();
    // The mantissa in 16 bits, against 2^(1/4), 2^(1/2) and 2^(3/4).
    let mantissa = n << (16 - octave);
    let quarter = [77_936, 92_682, 110_218]
        .iter()
        .filter(|&&edge| mantissa >= edge)
        .count();
    octave as usize * 4 + quarter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_quarter_octaves() {
        for n in 1..65_536_u32 {
            assert_eq!(index(n), (4.0 * f64::from(n).log2() + 1e-9) as usize, "{n}");
        }
        assert_eq!(index(0), 0);
        assert_eq!(index(u32::MAX), BINS - 1);
    }

    #[test]
    fn the_baseline_comes_from_low_load_only() {
        let now = crate::clock::now();
        let mut curve = Curve::new();
        for _ in 0..500 {
            curve.add(4, 0.040, 0.020, now);
        }
        assert_eq!(curve.baseline(4, now), None);
        assert!(curve.stale(4, now));
        for _ in 0..10 {
            curve.add(2, 0.020, 0.020, now);
        }
        assert!((curve.baseline(4, now).unwrap().scale - 1.0).abs() < 1e-9);
        assert!(!curve.stale(4, now));
        assert!(curve.stale(4, now + FRESH));
        let points: Vec<_> = curve.points(1.0, 0.020).collect();
        assert_eq!(points.len(), 2);
        assert!((points[0].throughput - 100.0).abs() < 1e-6);
        assert!(
            (points[1].throughput - 100.0).abs() < 1e-6,
            "no gain past the knee"
        );
        assert!((points[1].stretch - 2.0).abs() < 1e-6);
    }

    #[test]
    fn what_was_measured_of_the_wrong_costs_is_corrected() {
        let now = crate::clock::now();
        let mut curve = Curve::new();
        // Low load had only cheap requests; all were taken to cost the same.
        let mut origins = Origins::new();
        // The kind 5 of long ago no longer counts.
        for (in_flight, latency, kind, samples) in [
            (1, 0.020, 5, 200),
            (1, 0.020, 3, 150),
            (6, 0.020, 3, 75),
            (6, 0.400, 5, 75),
        ] {
            for _ in 0..samples {
                curve.add(in_flight, latency, 0.040, now);
                origins.note(in_flight, Group::Path(kind));
            }
        }
        assert!((curve.baseline(4, now).unwrap().scale - 0.5).abs() < 1e-9);
        let mut corrections = [0.0; KINDS];
        (corrections[3], corrections[5]) = (-0.020, 0.360);
        curve.correct(&origins, &corrections, now);
        assert!((curve.baseline(4, now).unwrap().scale - 1.0).abs() < 1e-9);
        assert!((curve.ratio(6).unwrap() - 1.0).abs() < 0.05);
    }

    #[test]
    fn a_rebase_leaves_no_bin_quicker_than_those_of_less_load() {
        let now = crate::clock::now();
        let mut curve = Curve::new();
        for in_flight in [1, 2, 3, 6] {
            for _ in 0..100 {
                curve.add(in_flight, 0.050, 0.050, now);
            }
        }
        // Inferred at six in flight, then measured at three.
        curve.rebase(2.0, 2.0, 6.0, now);
        curve.rebase(3.0, 1.5, 3.0, now);
        for limit in [4, 8, 12] {
            let scale = curve.baseline(limit, now).unwrap().scale;
            assert!((scale - 3.0).abs() < 1e-9, "limit {limit}: {scale}");
        }
    }
}

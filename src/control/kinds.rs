//! Which of the requests that no route tells apart differ in cost. They come with a hash of what they ask
//! for; those of one hash are a kind. Most kinds cost about the same, or tell nothing: all of them have one cost
//! in common, and only a kind whose requests have proved to be cheaper or more expensive gets its own.

/// Kinds told apart; hashes share them.
pub(super) const KINDS: usize = 256;
/// Memory of a kind's cost, in samples.
const MEMORY: f64 = 100.0;
/// Memory of the cost that all have in common, in samples.
/// Shorter than a kind's: after a sudden slowdown, those seen less often would seem cheaper.
const COMMON_MEMORY: f64 = 50.0;
/// Memory of the variance, in samples: longer, so that the rare expensive ones are in it.
const VARIANCE_MEMORY: f64 = 300.0;
/// Fewer samples of a kind prove nothing.
const LEAST: f64 = 8.0;
/// A kind stands apart when it differs from the others by this factor...
const FAR: f64 = 1.5;
/// ... and this many standard errors: one of many kinds differs by chance now and then.
const ERRORS: f64 = 5.0;
/// It is one of the others again when it differs by no more than this factor.
const NEAR: f64 = 1.25;
/// What a window leaves of the counts of late.
const LATE: f64 = 0.9;

/// What is known of one kind. Costs are over the common one at the time, so that a backend that gets slower, or
/// is measured anew, changes none.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    /// Samples, up to [`MEMORY`].
    weight: f64,
    /// Mean cost, and of its square.
    cost: f64,
    squared: f64,
    /// Samples of late, for its share of the traffic.
    late: f64,
    is_apart: bool,
}

impl Kind {
    fn variance(&self) -> f64 {
        (self.squared - self.cost * self.cost).max(0.0)
    }
}

/// Sums over the kinds that are not apart.
#[derive(Clone, Copy, Debug, Default)]
struct Common {
    weight: f64,
    cost: f64,
    late: f64,
}

impl Common {
    fn without(&self, kind: &Kind) -> Common {
        Common {
            weight: self.weight - kind.weight,
            cost: self.cost - kind.weight * kind.cost,
            late: self.late - kind.late,
        }
    }

    fn mean(&self) -> f64 {
        self.cost / self.weight
    }
}

/// A kind that differs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Apart {
    pub(super) kind: usize,
    /// Its cost over the one that it had in common with the others until now.
    pub(super) own: f64,
    /// What the others' cost is without it, over the same.
    pub(super) rest: f64,
}

/// The kinds.
#[derive(Clone, Debug)]
pub(super) struct Kinds {
    kinds: [Kind; KINDS],
    /// The common cost, and the variance of one request's over it.
    mean: f64,
    variance: f64,
    /// Samples behind them, up to [`COMMON_MEMORY`].
    weight: f64,
    /// The same, up to [`VARIANCE_MEMORY`].
    weight_of_variance: f64,
}

impl Kinds {
    pub(super) fn new() -> Self {
        Kinds {
            kinds: [Kind::default(); KINDS],
            mean: 0.0,
            variance: 0.0,
            weight: 0.0,
            weight_of_variance: 0.0,
        }
    }

    /// The kind of a hash.
    pub(super) fn index(hash: u16) -> usize {
        usize::from(hash) % KINDS
    }

    pub(super) fn is_apart(&self, kind: usize) -> bool {
        self.kinds[kind].is_apart
    }

    /// Which are.
    pub(super) fn apart(&self) -> [bool; KINDS] {
        std::array::from_fn(|kind| self.kinds[kind].is_apart)
    }

    /// Takes one request's cost.
    pub(super) fn note(&mut self, kind: usize, cost: f64) {
        let one = &mut self.kinds[kind];
        if self.weight == 0.0 {
            self.mean = cost;
        }
        if !one.is_apart {
            self.weight = (self.weight + 1.0).min(COMMON_MEMORY);
            self.mean += (cost - self.mean) / self.weight;
        }
        let cost = cost / self.mean;
        if !one.is_apart {
            self.weight_of_variance = (self.weight_of_variance + 1.0).min(VARIANCE_MEMORY);
            self.variance += ((cost - 1.0).powi(2) - self.variance) / self.weight_of_variance;
        }
        one.late += 1.0;
        one.weight = (one.weight + 1.0).min(MEMORY);
        one.cost += (cost - one.cost) / one.weight;
        one.squared += (cost * cost - one.squared) / one.weight;
    }

    /// If a kind has proved to differ, it is apart from now on, one at a time: what all have in
    /// common is another cost without it.
    pub(super) fn part(&mut self) -> Option<Apart> {
        if self.weight == 0.0 {
            return None;
        }
        let common = self.common();
        let far = |kind: &Kind| {
            if kind.is_apart || kind.weight < LEAST {
                return None;
            }
            let others = common.without(kind);
            if others.weight < LEAST {
                return None;
            }
            let ratio = kind.cost / others.mean();
            // Of a few samples without the rare expensive one, their own variance tells too little.
            let error =
                kind.variance().max(self.variance) / kind.weight + self.variance / others.weight;
            let errors = (kind.cost - others.mean()).abs() / error.sqrt().max(1e-9);
            // Of two kinds either differs from the other: the smaller one goes.
            let is_smaller = 2.0 * kind.late <= common.late;
            let is_far = errors > ERRORS && !(1.0 / FAR..=FAR).contains(&ratio);
            is_far.then_some((is_smaller, errors))
        };
        let errors = self.kinds.iter().enumerate();
        let (at, _) = errors
            .filter_map(|(at, kind)| Some((at, far(kind)?)))
            .max_by(|(_, a), (_, b)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))?;
        let kind = self.kinds[at];
        let others = common.without(&kind);
        let rest = others.mean();
        let before = (others.late * rest + kind.late * kind.cost) / common.late;
        self.kinds[at].is_apart = true;
        self.mean *= rest;
        let mut variance = 0.0;
        for kind in &mut self.kinds {
            kind.cost /= rest;
            kind.squared /= rest * rest;
            if !kind.is_apart {
                variance += kind.weight * ((kind.cost - 1.0).powi(2) + kind.variance());
            }
        }
        self.variance = variance / others.weight;
        Some(Apart {
            kind: at,
            own: kind.cost / before,
            rest: rest / before,
        })
    }

    /// A window has closed. Those that no longer differ are like the others again.
    pub(super) fn join(&mut self) {
        let common = self.common();
        for kind in &mut self.kinds {
            kind.late *= LATE;
            if kind.is_apart && common.weight >= LEAST {
                let ratio = kind.cost / common.mean();
                kind.is_apart = !(1.0 / NEAR..=NEAR).contains(&ratio);
            }
        }
    }

    fn common(&self) -> Common {
        let mut common = Common::default();
        for kind in self.kinds.iter().filter(|kind| !kind.is_apart) {
            common.weight += kind.weight;
            common.cost += kind.weight * kind.cost;
            common.late += kind.late;
        }
        common
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// Costs of so many requests, each with a kind, in windows of 30.
    fn learn(
        kinds: &mut Kinds,
        requests: usize,
        mut next: impl FnMut() -> (usize, f64),
    ) -> Vec<Apart> {
        let mut parted = Vec::new();
        for i in 0..requests {
            let (kind, cost) = next();
            kinds.note(kind, cost);
            if i % 30 == 29 {
                kinds.join();
                parted.extend(kinds.part());
            }
        }
        parted
    }

    /// Between half and three halves.
    fn noise(rng: &mut Rng) -> f64 {
        0.5 + rng.f64()
    }

    #[test]
    fn a_kind_that_differs_gets_a_cost_of_its_own_and_the_others_one_without_it() {
        let mut rng = Rng::with_seed(1);
        let mut kinds = Kinds::new();
        let parted = learn(&mut kinds, 600, || match rng.f64() < 0.05 {
            true => (7, 0.4 * noise(&mut rng)),
            false => (rng.usize(8..KINDS), 0.02 * noise(&mut rng)),
        });
        let [apart] = parted[..] else {
            panic!("{parted:?}");
        };
        assert_eq!(apart.kind, 7);
        assert!(kinds.is_apart(7));
        let ratio = apart.own / apart.rest;
        assert!((14.0..28.0).contains(&ratio), "{ratio}");
        let mean = 0.95 * apart.rest + 0.05 * apart.own;
        assert!((0.7..1.3).contains(&mean), "of the same mix: {mean}");
    }

    #[test]
    fn of_two_kinds_the_one_with_less_traffic_parts() {
        let mut rng = Rng::with_seed(2);
        let mut kinds = Kinds::new();
        let parted = learn(&mut kinds, 600, || match rng.f64() < 0.3 {
            true => (1, 0.01 * noise(&mut rng)),
            false => (2, 0.1 * noise(&mut rng)),
        });
        let parted: Vec<usize> = parted.iter().map(|apart| apart.kind).collect();
        assert_eq!(parted, [1]);
    }

    #[test]
    fn kinds_that_tell_nothing_stay_together() {
        for seed in 0..20 {
            let mut rng = Rng::with_seed(seed);
            let mut kinds = Kinds::new();
            // Each kind has the rare expensive ones; and the backend gets slower and quicker as a whole.
            let mut number = 0;
            let parted = learn(&mut kinds, 20_000, || {
                number += 1;
                let slower = if number / 5_000 % 2 == 1 { 3.0 } else { 1.0 };
                let dear = if rng.f64() < 0.05 { 20.0 } else { 1.0 };
                (rng.usize(..KINDS), 0.02 * dear * slower * noise(&mut rng))
            });
            assert_eq!(parted, [], "seed {seed}");
        }
    }

    #[test]
    fn a_sudden_slowdown_makes_none_differ_that_is_seen_less_often() {
        for (share, slower) in [(0.05, 3.0), (0.05, 4.0), (0.1, 4.0)] {
            for seed in 0..20 {
                let mut rng = Rng::with_seed(seed);
                let mut kinds = Kinds::new();
                let mut number = 0;
                let parted = learn(&mut kinds, 4_000, || {
                    number += 1;
                    let slower = if number > 2_000 { slower } else { 1.0 };
                    let kind = usize::from(rng.f64() < share);
                    (kind, 0.02 * slower * noise(&mut rng))
                });
                assert_eq!(parted, [], "{share} of all, {slower}, seed {seed}");
            }
        }
    }

    #[test]
    fn the_quick_majority_parts_where_all_others_are_slow() {
        let mut rng = Rng::with_seed(4);
        let mut kinds = Kinds::new();
        let parted = learn(&mut kinds, 2_000, || match rng.f64() < 0.6 {
            true => (0, 0.02 * noise(&mut rng)),
            false => (rng.usize(1..7), 0.4 * noise(&mut rng)),
        });
        assert!(!parted.is_empty());
        assert!(kinds.is_apart(0) || (1..7).all(|kind| kinds.is_apart(kind)));
    }

    #[test]
    fn a_kind_that_differs_no_longer_is_one_of_the_others_again() {
        let mut rng = Rng::with_seed(3);
        let mut kinds = Kinds::new();
        for (dear, is_apart) in [(10.0, true), (1.0, false)] {
            learn(&mut kinds, 3_000, || match rng.f64() < 0.2 {
                true => (1, 0.02 * dear * noise(&mut rng)),
                false => (2, 0.02 * noise(&mut rng)),
            });
            assert_eq!(kinds.is_apart(1), is_apart);
        }
    }
}

//! What a request of each route costs, relative to the others.
//!
//! Only the ratios between routes live here; the scale lives in the [`Curve`](super::curve::Curve).
//! So a backend that gets slower as a whole changes no cost, and a change in the mix of routes
//! changes no stretch.

use super::Group;
use super::kinds::{Apart, KINDS, Kinds};

/// Places of costs: of routes, of what has none, and of its kinds that differ from the rest of it.
pub(super) const PLACES: usize = ROUTES + 1 + KINDS;
/// Routes told apart; the rest share the last place.
const ROUTES: usize = 64;
/// The place of requests without a route, but for the kinds that differ.
const UNROUTED: usize = ROUTES;
/// Memory of a route's cost measured at low load, in samples.
const LOW_MEMORY: u32 = 50;
/// Gain of a sample measured under load, once the cost is known from low load.
const LOADED_GAIN: f64 = 0.005;
/// Memory while nothing is known from low load, in samples.
const LOADED_MEMORY: u32 = 100;
/// What was learned under load counts for as many samples as it rests on, up to so many, beside the first
/// ones measured at low load: of a route with a wide spread, one sample says little.
const LOADED_PRIOR: u32 = 10;
/// What a kind cost as one of many counts for as many samples, when it gets a cost of its own.
const APART_PRIOR: u32 = 8;
/// What a window leaves of the weight of the mix before it. Of the window alone, a rare and expensive request that turns
/// out to be more expensive still would make all others cheaper.
const RECENT: f64 = 0.5;
/// Low-load samples after which a cost counts as known.
const KNOWN: u32 = 10;
/// The least cost, in seconds: keeps every ratio finite.
const LEAST: f64 = 1e-6;

/// The learned cost of each route, in (relative) unloaded seconds.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    /// In use: constant within a window, so that what is measured with it can be compared.
    cost: [f64; PLACES],
    /// Being learned, taken over by [`normalise`](Self::normalise).
    next: [f64; PLACES],
    low: [u32; PLACES],
    loaded: [u32; PLACES],
    /// Samples of late.
    seen: [f64; PLACES],
    kinds: Kinds,
}

impl Routes {
    pub(super) fn new() -> Self {
        Routes {
            cost: [0.0; PLACES],
            next: [0.0; PLACES],
            low: [0; PLACES],
            loaded: [0; PLACES],
            seen: [0.0; PLACES],
            kinds: Kinds::new(),
        }
    }

    /// The place of a request.
    pub(super) fn place(group: Group) -> usize {
        match group {
            Group::Route(route) => usize::from(route).min(ROUTES - 1),
            Group::Path(hash) => UNROUTED + 1 + Kinds::index(hash),
        }
    }

    /// The place with the cost of the requests of this one: the common one, for a kind that is not apart.
    fn costed(&self, place: usize) -> usize {
        match place.checked_sub(UNROUTED + 1) {
            Some(kind) if !self.kinds.is_apart(kind) => UNROUTED,
            _ => place,
        }
    }

    /// The cost of a request with this place; 0 while unknown.
    pub(super) fn cost(&self, place: usize) -> f64 {
        self.cost[self.costed(place)]
    }

    /// Learns from one answer: its latency over the stretch expected at its load, in cost units.
    pub(super) fn learn(&mut self, place: usize, cost: f64, low: bool) {
        let cost = cost.max(LEAST);
        if let Some(kind) = place.checked_sub(UNROUTED + 1) {
            self.kinds.note(kind, cost);
        }
        let index = self.costed(place);
        self.seen[index] += 1.0;
        if self.cost[index] == 0.0 {
            self.cost[index] = cost;
            self.next[index] = cost;
        }
        let gain = if low {
            self.low[index] = (self.low[index] + 1).min(LOW_MEMORY);
            1.0 / f64::from(self.low[index] + self.loaded[index].min(LOADED_PRIOR))
        } else {
            self.loaded[index] = (self.loaded[index] + 1).min(LOADED_MEMORY);
            if self.low[index] >= KNOWN {
                LOADED_GAIN
            } else {
                1.0 / f64::from(self.loaded[index])
            }
        };
        self.next[index] += gain * (cost - self.next[index]);
    }

    /// Takes over what was learned, with the mean cost of the recent mix kept what it was, so that
    /// costs stay relative. If some kinds have a cost of their own from now on, or no longer, says how much more (or
    /// less) the requests of each kind cost than they were taken to until now.
    pub(super) fn normalise(&mut self) -> Option<[f64; KINDS]> {
        let (mut old, mut new) = (0.0, 0.0);
        for i in 0..PLACES {
            let seen = self.seen[i];
            old += seen * self.cost[i];
            new += seen * self.next[i];
        }
        if old > 0.0 && new > 0.0 {
            let ratio = old / new;
            for cost in self.next.iter_mut().filter(|cost| **cost > 0.0) {
                *cost = (*cost * ratio).max(LEAST);
            }
        }
        let corrections = self.review();
        self.cost = self.next;
        self.seen.iter_mut().for_each(|seen| *seen *= RECENT);
        corrections
    }

    /// Which kinds differ has to be looked at again.
    fn review(&mut self) -> Option<[f64; KINDS]> {
        let was_apart = self.kinds.apart();
        let common = self.next[UNROUTED];
        self.kinds.join();
        let apart = self.kinds.part();
        if let Some(Apart { kind, own, rest }) = apart {
            let place = UNROUTED + 1 + kind;
            self.next[place] = common * own;
            self.next[UNROUTED] = common * rest;
            // What they cost at low load was measured of both together.
            (self.low[place], self.loaded[place]) = (0, APART_PRIOR);
            self.low[UNROUTED] = 0;
            self.loaded[UNROUTED] = self.loaded[UNROUTED].max(APART_PRIOR);
        }
        let is_apart = self.kinds.apart();
        if is_apart == was_apart {
            return None;
        }
        for kind in (0..KINDS).filter(|kind| !is_apart[*kind]) {
            self.seen[UNROUTED + 1 + kind] = 0.0;
        }
        Some(std::array::from_fn(|kind| {
            let place = UNROUTED + 1 + kind;
            // One that was apart has the cost that it had, even if it is not used any more.
            let before = if was_apart[kind] {
                self.next[place]
            } else {
                common
            };
            self.next[self.costed(place)] - before
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slower_backend_changes_no_ratio() {
        let mut routes = Routes::new();
        for slowness in [1.0, 3.0] {
            for _ in 0..100 {
                for _ in 0..20 {
                    routes.learn(0, 0.02 * slowness, true);
                    routes.learn(1, 0.4 * slowness, true);
                }
                routes.normalise();
            }
            assert!((routes.cost(1) / routes.cost(0) - 20.0).abs() < 0.5);
            assert!((routes.cost(0) + routes.cost(1) - 0.42).abs() < 1e-6);
        }
        assert_eq!(Routes::place(Group::Route(9999)), ROUTES - 1);
    }

    #[test]
    fn a_kind_that_differs_has_a_cost_of_its_own_until_it_does_no_longer() {
        let mut routes = Routes::new();
        let [quick, slow] = [1, 2].map(|hash| Routes::place(Group::Path(hash)));
        let learn = |routes: &mut Routes, cost: f64| {
            let mut all = Vec::new();
            for _ in 0..60 {
                // The scale is the curve's: latency over cost.
                let scale = (0.8 * 0.02 + 0.2 * cost)
                    / (0.8 * routes.cost(quick) + 0.2 * routes.cost(slow)).max(1e-3);
                for i in 0..30 {
                    let (place, cost) = if i % 5 == 0 {
                        (slow, cost)
                    } else {
                        (quick, 0.02)
                    };
                    routes.learn(place, cost / scale, true);
                }
                all.extend(routes.normalise());
            }
            all
        };
        let [corrections] = learn(&mut routes, 0.2)[..] else {
            panic!("it parts once");
        };
        let ratio = routes.cost(slow) / routes.cost(quick);
        assert!((9.0..11.0).contains(&ratio), "{ratio}");
        assert!(corrections[1] < 0.0 && corrections[2] > 0.0);
        let mean = 0.8 * corrections[1] + 0.2 * corrections[2];
        assert!(mean.abs() < 0.1 * corrections[2], "the mix costs the same");
        let joined = learn(&mut routes, 0.02);
        assert_eq!(joined.len(), 1);
        assert!(joined[0][2] < 0.0, "it was taken to cost more");
        assert_eq!(routes.cost(slow), routes.cost(quick));
    }

    #[test]
    fn one_sample_at_low_load_does_not_make_a_cost() {
        let mut routes = Routes::new();
        for _ in 0..50 {
            routes.learn(0, 0.02, false);
            routes.learn(1, 0.4, false);
        }
        routes.learn(0, 0.02, true);
        routes.learn(1, 0.1, true);
        routes.normalise();
        let ratio = routes.cost(1) / routes.cost(0);
        assert!(ratio > 15.0, "{ratio}");
    }
}

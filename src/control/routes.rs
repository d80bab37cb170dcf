//! What a request of each route costs, relative to the others.
//!
//! Only the ratios between routes live here; the scale lives in the [`Curve`](super::curve::Curve).
//! So a backend that gets slower as a whole changes no cost, and a change in the mix of routes
//! changes no stretch.

/// Routes told apart; the rest share the last place.
pub(super) const ROUTES: usize = 64;
/// Memory of a route's cost measured at low load, in samples.
const LOW_MEMORY: u32 = 50;
/// Gain of a sample measured under load, once the cost is known from low load.
const LOADED_GAIN: f64 = 0.005;
/// Memory while nothing is known from low load, in samples.
const LOADED_MEMORY: u32 = 100;
/// What was learned under load counts for as many samples as it rests on, up to so many, beside the first
/// ones measured at low load: of a route with a wide spread, one sample says little.
const LOADED_PRIOR: u32 = 10;
/// Low-load samples after which a cost counts as known.
const KNOWN: u32 = 10;
/// The least cost, in seconds: keeps every ratio finite.
const LEAST: f64 = 1e-6;

/// The learned cost of each route, in (relative) unloaded seconds.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    /// In use: constant within a window, so that what is measured with it can be compared.
    cost: [f64; ROUTES],
    /// Being learned, taken over by [`normalise`](Self::normalise).
    next: [f64; ROUTES],
    low: [u32; ROUTES],
    loaded: [u32; ROUTES],
    /// Samples since then.
    seen: [u32; ROUTES],
}

impl Routes {
    pub(super) fn new() -> Self {
        Routes {
            cost: [0.0; ROUTES],
            next: [0.0; ROUTES],
            low: [0; ROUTES],
            loaded: [0; ROUTES],
            seen: [0; ROUTES],
        }
    }

    /// The place of a route.
    pub(super) fn index(route: u16) -> usize {
        usize::from(route).min(ROUTES - 1)
    }

    /// The cost of a route; 0 while unknown.
    pub(super) fn cost(&self, index: usize) -> f64 {
        self.cost[index]
    }

    /// Learns from one answer: its latency over the stretch expected at its load, in cost units.
    pub(super) fn learn(&mut self, index: usize, cost: f64, low: bool) {
        let cost = cost.max(LEAST);
        self.seen[index] = self.seen[index].saturating_add(1);
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
    /// costs stay relative.
    pub(super) fn normalise(&mut self) {
        let (mut old, mut new) = (0.0, 0.0);
        for i in 0..ROUTES {
            let seen = f64::from(self.seen[i]);
            old += seen * self.cost[i];
            new += seen * self.next[i];
        }
        if old > 0.0 && new > 0.0 {
            let ratio = old / new;
            for cost in self.next.iter_mut().filter(|cost| **cost > 0.0) {
                *cost = (*cost * ratio).max(LEAST);
            }
        }
        self.cost = self.next;
        self.seen = [0; ROUTES];
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
        assert_eq!(Routes::index(9999), ROUTES - 1);
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

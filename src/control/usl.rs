//! The Universal Scalability Law: a capacity curve in three numbers.
//!
//! Throughput at `n` requests in flight is
//!
//! ```text
//! X(n) = λ·n / (1 + σ·(n − 1) + κ·n·(n − 1))
//! ```
//!
//! λ is the throughput of one request at a time, σ the part of the work that waits for others
//! (contention: workers, a lock, the GIL), κ what requests cost one another (coherency: thrashing,
//! paging, switching). Source: N. J. Gunther, *Guerrilla Capacity Planning*, Springer 2007.
//!
//! `n / X(n)` is latency, and linear in `1/λ`, `σ/λ` and `κ/λ`: the fit is one weighted least-squares
//! problem with no negative coefficients, solved exactly. Errors count relative to the latency.

/// Different concurrencies without which there is no fit: it has three unknowns.
const LEAST_POINTS: usize = 3;
/// From the least to the greatest concurrency measured: less than this says little of a curve.
const LEAST_SPAN: f64 = 2.0;
/// Different concurrencies that make a fit certain.
const ENOUGH_POINTS: f64 = 6.0;

/// A measured point of the curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Mean requests in flight.
    pub in_flight: f64,
    /// Requests completed a second.
    pub throughput: f64,
    /// How much the point counts, relative to the others: its number of samples, say.
    pub weight: f64,
}

/// A fitted curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usl {
    /// λ: requests a second, one at a time.
    pub lambda: f64,
    /// σ: contention, 0 = none, 1 = only one at a time gets on.
    pub sigma: f64,
    /// κ: coherency, 0 = none.
    pub kappa: f64,
    /// The greatest concurrency that was measured.
    pub measured: f64,
    /// How far the fit may be trusted, 0 to 1: less with few points, a narrow range, points off the
    /// curve, or a peak beyond what was measured.
    pub confidence: f64,
}

impl Usl {
    /// Requests a second at this concurrency.
    pub fn throughput(&self, in_flight: f64) -> f64 {
        let n = in_flight.max(0.0);
        self.lambda * n
            / (1.0 + self.sigma * (n - 1.0).max(0.0) + self.kappa * n * (n - 1.0).max(0.0))
    }

    /// N*: the concurrency with the highest throughput, beyond which it falls; `None` when it only
    /// flattens out (κ = 0).
    pub fn peak(&self) -> Option<f64> {
        let peak = ((1.0 - self.sigma).max(0.0) / self.kappa).sqrt();
        (self.kappa > 0.0 && peak.is_finite()).then_some(peak.max(1.0))
    }

    /// X(N*): the most requests a second; without a peak, what the curve approaches. `None` when
    /// nothing in the measured range limits it (σ = κ = 0).
    pub fn most(&self) -> Option<f64> {
        match self.peak() {
            Some(peak) => Some(self.throughput(peak)),
            None => (self.sigma > 0.0).then(|| self.lambda / self.sigma),
        }
    }

    /// The knee: the concurrency at which the most throughput would be reached if nobody waited.
    /// Beyond it latency grows faster than throughput (L. Kleinrock's operating point). `None` when
    /// nothing in the measured range limits the throughput.
    pub fn knee(&self) -> Option<f64> {
        self.most()
            .map(|most| (most / self.lambda).max(1.0))
            .filter(|knee| knee.is_finite())
    }
}

/// Fits the law to measured points. `None` with fewer than three different concurrencies, or when no
/// curve with a finite throughput fits. Points without a positive finite figure are ignored.
pub fn fit(points: &[Point]) -> Option<Usl> {
    let usable = |p: &&Point| {
        [p.in_flight, p.throughput, p.weight]
            .iter()
            .all(|v| v.is_finite() && *v > 0.0)
    };
    let points: Vec<Point> = points.iter().filter(usable).copied().collect();
    let mut different: Vec<f64> = points.iter().map(|p| p.in_flight).collect();
    different.sort_by(f64::total_cmp);
    different.dedup_by(|a, b| (*a - *b).abs() <= 0.01 * *b);
    let (lowest, highest) = (*different.first()?, *different.last()?);
    if different.len() < LEAST_POINTS {
        return None;
    }
    // All combinations of coefficients that may be zero; the best of those without a negative one.
    let [latency, contention, coherency] = [[true, true], [true, false], [false, true], [false; 2]]
        .into_iter()
        .filter_map(|used| least_squares(&points, used))
        .min_by(|(_, a), (_, b)| a.total_cmp(b))?
        .0;
    let lambda = 1.0 / latency;
    let mut usl = Usl {
        lambda,
        sigma: (contention * lambda).min(1.0),
        kappa: coherency * lambda,
        measured: highest,
        confidence: 0.0,
    };
    if !(lambda.is_finite() && usl.kappa.is_finite()) {
        return None;
    }
    let explained = 1.0 - mean_error(&usl, &points);
    let count = (different.len() as f64 / ENOUGH_POINTS).min(1.0);
    let span = (highest / lowest / LEAST_SPAN).min(1.0);
    let reached = usl.knee().map_or(0.5, |knee| (highest / knee).min(1.0));
    usl.confidence = (explained * count * span * reached).clamp(0.0, 1.0);
    Some(usl)
}

/// Weighted mean error of the curve's throughput, as a share of the measured one.
fn mean_error(usl: &Usl, points: &[Point]) -> f64 {
    let weight: f64 = points.iter().map(|p| p.weight).sum();
    let error = |p: &Point| (usl.throughput(p.in_flight) / p.throughput - 1.0).abs();
    points.iter().map(|p| p.weight * error(p)).sum::<f64>() / weight
}

/// The coefficients `[1/λ, σ/λ, κ/λ]`, those not `used` being zero, and the error that remains.
/// `None` if one is negative.
fn least_squares(points: &[Point], used: [bool; 2]) -> Option<([f64; 3], f64)> {
    let row = |p: &Point| {
        let n = p.in_flight;
        let beyond = (n - 1.0).max(0.0);
        let on = |used: bool, value: f64| if used { value } else { 0.0 };
        [1.0, on(used[0], beyond), on(used[1], n * beyond)]
    };
    let (mut matrix, mut right) = ([[0.0; 3]; 3], [0.0; 3]);
    for p in points {
        let latency = p.in_flight / p.throughput;
        let (row, weight) = (row(p), p.weight / (latency * latency));
        for i in 0..3 {
            right[i] += weight * row[i] * latency;
            for j in 0..3 {
                matrix[i][j] += weight * row[i] * row[j];
            }
        }
    }
    for (i, used) in used.into_iter().enumerate() {
        if !used {
            matrix[i + 1][i + 1] = 1.0;
        }
    }
    let solution = solve(matrix, right)?;
    if solution[0] <= 0.0 || solution.iter().any(|c| *c < 0.0) {
        return None;
    }
    let error = |p: &Point| {
        let latency = p.in_flight / p.throughput;
        let fitted: f64 = row(p).iter().zip(solution).map(|(a, b)| a * b).sum();
        p.weight * (fitted / latency - 1.0).powi(2)
    };
    Some((solution, points.iter().map(error).sum()))
}

/// Three equations with three unknowns, by elimination with pivots.
fn solve(mut matrix: [[f64; 3]; 3], mut right: [f64; 3]) -> Option<[f64; 3]> {
    for column in 0..3 {
        let pivot = (column..3).max_by(|&a, &b| {
            let size = |row: usize| matrix[row][column].abs();
            size(a).total_cmp(&size(b))
        })?;
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        let lead = matrix[column];
        if lead[column].abs() < 1e-12 {
            return None;
        }
        for row in column + 1..3 {
            let factor = matrix[row][column] / lead[column];
            for (value, above) in matrix[row].iter_mut().zip(lead) {
                *value -= factor * above;
            }
            right[row] -= factor * right[column];
        }
    }
    let mut solution = [0.0; 3];
    for row in (0..3).rev() {
        let known: f64 = (row + 1..3).map(|j| matrix[row][j] * solution[j]).sum();
        solution[row] = (right[row] - known) / matrix[row][row];
    }
    solution.iter().all(|c| c.is_finite()).then_some(solution)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points(law: impl Fn(f64) -> f64, at: &[u32]) -> Vec<Point> {
        at.iter()
            .map(|&n| Point {
                in_flight: f64::from(n),
                throughput: law(f64::from(n)),
                weight: 10.0,
            })
            .collect()
    }

    #[test]
    fn workers_without_anything_shared_flatten_out_at_their_number() {
        for workers in [2.0_f64, 4.0, 8.0] {
            let curve = |n: f64| 50.0 * n.min(workers);
            let usl = fit(&points(curve, &[1, 2, 3, 4, 6, 8, 12, 16, 24, 32])).unwrap();
            let knee = usl.knee().unwrap();
            assert!(
                (0.7..=1.45).contains(&(knee / workers)),
                "{workers}: {knee} {usl:?}"
            );
            assert!(usl.confidence > 0.75, "{usl:?}");
        }
    }

    #[test]
    fn thrashing_has_a_peak() {
        let truth = Usl {
            lambda: 100.0,
            sigma: 0.05,
            kappa: 0.002,
            measured: 64.0,
            confidence: 1.0,
        };
        let usl = fit(&points(|n| truth.throughput(n), &[1, 2, 4, 8, 16, 32, 64])).unwrap();
        assert!((usl.peak().unwrap() - 21.8).abs() < 0.1, "{usl:?}");
        assert!((usl.most().unwrap() / truth.throughput(21.8) - 1.0).abs() < 1e-3);
        assert!(usl.confidence > 0.95, "{usl:?}");
        assert!(usl.throughput(64.0) < usl.most().unwrap());
    }

    #[test]
    fn without_a_limit_in_sight_there_is_no_knee_and_little_confidence() {
        let usl = fit(&points(|n| 10.0 * n, &[1, 2, 3, 4])).unwrap();
        assert_eq!((usl.peak(), usl.knee()), (None, None));
        assert!(usl.confidence < 0.5, "{usl:?}");
        assert_eq!(fit(&points(|n| 10.0 * n, &[1, 2])), None);
        assert_eq!(fit(&[]), None);
    }

    proptest! {
        #[test]
        fn finds_any_law_again(lambda in 0.1..1e4_f64, sigma in 0.0..1.0_f64, kappa in 0.0..0.1_f64) {
            let truth = Usl { lambda, sigma, kappa, measured: 100.0, confidence: 1.0 };
            let measured = points(|n| truth.throughput(n), &[1, 2, 4, 8, 16, 32, 64, 100]);
            let usl = fit(&measured).unwrap();
            for p in &measured {
                prop_assert!((usl.throughput(p.in_flight) / p.throughput - 1.0).abs() < 1e-3, "{usl:?}");
            }
        }

        #[test]
        fn whatever_it_is_given_its_figures_are_numbers(raw in proptest::collection::vec((any::<f64>(), any::<f64>(), any::<f64>()), 0..20)) {
            let given: Vec<Point> = raw.iter().map(|&(in_flight, throughput, weight)| Point { in_flight, throughput, weight }).collect();
            if let Some(usl) = fit(&given) {
                prop_assert!((0.0..=1.0).contains(&usl.confidence));
                prop_assert!(usl.lambda > 0.0 && usl.sigma >= 0.0 && usl.kappa >= 0.0);
            }
        }
    }
}

//! Where more requests at once stop bringing more. Pure.

use super::step::Step;
use crate::control::usl::{self, Point, Usl};

/// This share of the best throughput is as good as the best: a measurement repeats to some percent.
const NEAR: f64 = 0.9;
/// A step with more failures than this shows what the backend refuses, not what it can do.
const TOO_MANY_ERRORS: f64 = 0.1;
/// With so many times the clients of the knee it would have been seen to grow.
const FAR: f64 = 1.4;
/// Steps with fewer than so many times the clients of another are too close to it to say whether it grows.
const APART: f64 = 1.15;
/// Of the growth in clients: throughput that grows by less than this share of it does not grow.
const FLAT: f64 = 0.3;
/// Memory that grows by less than this with each request does not grow: allocators breathe.
const LEAST_MEMORY: f64 = 64.0 * 1024.0;

/// The answer to the question.
///
/// Where workers are taken one by one, throughput rises in a straight line and then not at all, and
/// the knee is the corner. Where a CPU fills up slowly there is no corner: the knee is where the
/// straight line would meet the best throughput (L. Kleinrock's operating point), beyond which
/// latency grows faster than throughput.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knee {
    /// Requests in parallel.
    pub clients: u32,
    /// Requests a second there.
    pub throughput: f64,
    /// The median latency there, seconds.
    pub p50: Option<f64>,
    /// The best throughput in units of that of one request alone: the slots that the backend behaves
    /// as if it had.
    pub equivalent: f64,
    /// The best throughput of all.
    pub most: f64,
    /// Whether more clients were seen not to bring more; else the knee lies beyond.
    pub reached: bool,
}

/// Finds the knee among the steps, in order of clients. None without a step that went well.
pub fn find(steps: &[Step]) -> Option<Knee> {
    let (clients, most) = (wanted(steps)?, best(steps)?);
    // Its own step, or when there was no time for one the last before it.
    let at = steps
        .iter()
        .rfind(|step| sound(step) && step.clients <= clients)?;
    let last = steps.iter().rfind(|step| sound(step))?;
    let failed_beyond = steps
        .last()
        .is_some_and(|step| !sound(step) && step.clients > at.clients);
    Some(Knee {
        clients: at.clients,
        throughput: at.throughput(),
        p50: at.tally.latency.map(|latency| latency.p50),
        equivalent: equivalent(steps)?,
        most,
        reached: failed_beyond
            || f64::from(last.clients) >= FAR * f64::from(at.clients)
            || (last.clients > at.clients && flat(steps, last)),
    })
}

/// Whether the last step brought next to nothing over the one before it.
fn flat(steps: &[Step], last: &Step) -> bool {
    let more = |step: &Step| f64::from(last.clients) / f64::from(step.clients.max(1));
    let before = steps
        .iter()
        .rfind(|step| sound(step) && more(step) >= APART);
    before.is_some_and(|before| {
        last.throughput() / before.throughput() - 1.0 < FLAT * (more(before) - 1.0)
    })
}

/// The most clients of a step that went well.
pub(super) fn most_clients(steps: &[Step]) -> u32 {
    let good = steps.iter().filter(|step| sound(step));
    good.map(|step| step.clients).max().unwrap_or(0)
}

/// The number of clients at the knee, whether or not there was a step with so many.
pub(super) fn wanted(steps: &[Step]) -> Option<u32> {
    let flat = steps[first_near_best(steps)?].clients;
    let crossing = equivalent(steps)?.round().max(1.0);
    Some(flat.min(crossing as u32))
}

/// The best throughput over that of one request that meets no other.
fn equivalent(steps: &[Step]) -> Option<f64> {
    Some(best(steps)? / alone(steps)?.0)
}

/// Throughput of a request alone: the best throughput for each client of any step, because chance
/// only ever makes it worse. And the step that says so.
pub(super) fn alone(steps: &[Step]) -> Option<(f64, &Step)> {
    let each = |step: &Step| step.throughput() / f64::from(step.clients.max(1));
    steps
        .iter()
        .filter(|step| sound(step))
        .map(|step| (each(step), step))
        .max_by(|a, b| a.0.total_cmp(&b.0))
}

fn sound(step: &Step) -> bool {
    step.tally.error_share() <= TOO_MANY_ERRORS && step.throughput() > 0.0
}

/// The best throughput of a step that went well.
pub(super) fn best(steps: &[Step]) -> Option<f64> {
    let good = steps.iter().filter(|step| sound(step));
    good.map(Step::throughput).reduce(f64::max)
}

/// The first step that is as good as the best.
pub(super) fn first_near_best(steps: &[Step]) -> Option<usize> {
    let best = best(steps)?;
    steps
        .iter()
        .position(|step| sound(step) && step.throughput() >= NEAR * best)
}

/// The Universal Scalability Law through the steps that went well.
pub fn law(steps: &[Step]) -> Option<Usl> {
    let points: Vec<Point> = steps
        .iter()
        .filter(|step| sound(step))
        .map(|step| Point {
            in_flight: f64::from(step.clients),
            throughput: step.throughput(),
            weight: (step.tally.answered as f64).clamp(1.0, 100.0),
        })
        .collect();
    usl::fit(&points)
}

/// Memory that each request in flight takes, bytes: the slope through the steps. None when memory
/// cannot be seen or does not grow.
pub fn memory_per_request(steps: &[Step]) -> Option<f64> {
    let points: Vec<(f64, f64)> = steps
        .iter()
        .filter_map(|step| Some((f64::from(step.clients), step.memory? as f64)))
        .collect();
    if points.len() < 2 {
        return None;
    }
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let both: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let slope = both / spread.max(1e-9);
    (slope >= LEAST_MEMORY).then_some(slope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tally::{Errors, Tally};

    fn steps(curve: &[(u32, f64)]) -> Vec<Step> {
        curve
            .iter()
            .map(|&(clients, throughput)| Step {
                clients,
                tally: Tally {
                    throughput,
                    answered: 50,
                    ..Tally::default()
                },
                ..Step::default()
            })
            .collect()
    }

    #[test]
    fn a_plateau_begins_at_the_knee() {
        let measured = [
            (1, 19.5),
            (2, 38.9),
            (3, 58.0),
            (4, 76.1),
            (6, 79.0),
            (8, 77.2),
        ];
        let knee = find(&steps(&measured)).unwrap();
        assert_eq!((knee.clients, knee.reached), (4, true));
        assert!((knee.equivalent - 4.05).abs() < 0.01, "{knee:?}");
        let knee = find(&steps(&measured[..4])).unwrap();
        assert_eq!((knee.clients, knee.reached), (4, false));
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn a_plateau_that_has_just_begun_is_one() {
        let six = [
            (1, 19.5),
            (2, 38.9),
            (3, 58.0),
            (4, 77.5),
            (6, 116.0),
            (8, 119.0),
        ];
        let reached = |curve: &[(u32, f64)]| {
            let knee = find(&steps(curve)).unwrap();
            (knee.clients, knee.reached)
        };
        assert_eq!(reached(&six), (6, true));
        assert_eq!(reached(&six[..5]), (6, false));
        // A step that is hardly a step says nothing by itself.
        assert_eq!(reached(&[&six[..5], &[(7, 135.0)]].concat()), (7, false));
        let many = [(16, 320.0), (24, 480.0), (32, 640.0), (33, 640.0)];
        assert_eq!(reached(&many), (32, false));
    }

    #[test]
    fn without_a_corner_it_is_where_waiting_begins_to_outweigh() {
        let law = |n: u32| 18.0 * f64::from(n) / (1.0 + f64::from(n) / 40.0);
        let curve = [1_u32, 2, 4, 8, 16, 32, 64, 128, 256].map(|n| (n, law(n)));
        let mut measured = steps(&curve);
        let wanted = wanted(&measured).unwrap();
        assert!((30..=40).contains(&wanted), "{wanted}");
        assert_eq!(find(&measured).unwrap().clients, 32);
        measured.insert(6, steps(&[(wanted, law(wanted))])[0].clone());
        assert_eq!(find(&measured).unwrap().clients, wanted);
    }

    #[test]
    fn a_fall_does_not_move_the_knee() {
        let knee = find(&steps(&[(1, 50.0), (2, 95.0), (4, 60.0), (8, 30.0)])).unwrap();
        assert_eq!((knee.clients, knee.reached), (2, true));
    }

    #[test]
    fn throughput_among_failures_does_not_count() {
        let mut measured = steps(&[(1, 10.0), (2, 20.0), (4, 400.0)]);
        measured[2].tally.errors = Errors {
            server: 50,
            ..Errors::default()
        };
        let knee = find(&measured).unwrap();
        assert_eq!((knee.clients, knee.reached), (2, true));
    }

    #[test]
    fn memory_grows_by_the_slope_or_not_at_all() {
        let mut measured = steps(&[(1, 1.0), (2, 2.0), (4, 4.0)]);
        assert_eq!(memory_per_request(&measured), None);
        for step in &mut measured {
            step.memory = Some(100_000_000 + 20_000_000 * u64::from(step.clients));
        }
        assert!((memory_per_request(&measured).unwrap() - 2e7).abs() < 1.0);
        for step in &mut measured {
            step.memory = Some(100_000_000 + 1000 * u64::from(step.clients));
        }
        assert_eq!(memory_per_request(&measured), None);
    }

    #[test]
    fn the_law_fits_what_was_measured() {
        let law = law(&steps(&[
            (1, 20.0),
            (2, 38.0),
            (4, 68.0),
            (8, 105.0),
            (16, 130.0),
        ]))
        .unwrap();
        assert!((law.lambda / 20.0 - 1.0).abs() < 0.1, "{law:?}");
        assert!(law.confidence > 0.5, "{law:?}");
        assert_eq!(super::law(&[]), None);
    }
}

//! How many clients next, and when it is enough. Pure.

use super::{knee, step::Step};

/// Throughput that grows by less than this from step to step does not grow.
const GROWTH: f64 = 1.05;
/// Steps beyond the knee that show that it is one.
const BEYOND: usize = 2;
/// A step in which more than this share of the requests failed is the last but one.
const BROKEN: f64 = 0.5;
/// Memory is not driven beyond this share of its limit.
pub const MEMORY_MAX: f64 = 0.92;

/// Why the sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// More clients do not bring more.
    Past,
    /// The most clients allowed, and it still grows.
    Bound,
    /// Another step would have used up the memory.
    Memory,
    /// Most requests failed.
    Errors,
    /// With more clients requests take too long for a step.
    Slow,
    /// Somebody interrupted it.
    Interrupted,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Measure with so many clients.
    Step(u32),
    /// It is enough.
    Done(End),
}

/// 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: two an octave.
pub fn levels(max: u32) -> impl Iterator<Item = u32> {
    let octaves = (0..31).flat_map(|k| [1_u32 << k, (1 << k) + (1 << k) / 2]);
    let mut last = 0;
    let ladder = octaves.filter(move |&n| {
        let new = n > last;
        last = last.max(n);
        new
    });
    ladder
        .take_while(move |&n| n < max)
        .chain(std::iter::once(max))
}

/// The next step, given those that were measured, in order.
pub fn next(steps: &[Step], max: u32, memory_limit: Option<u64>) -> Next {
    let Some(last) = steps.last() else {
        return Next::Step(1);
    };
    if past(steps) {
        return Next::Done(End::Past);
    }
    let broken = |step: &Step| step.tally.error_share() > BROKEN;
    if steps
        .iter()
        .rev()
        .take(2)
        .filter(|step| broken(step))
        .count()
        == 2
        || (broken(last) && last.tally.answered == 0)
    {
        return Next::Done(End::Errors);
    }
    let Some(level) = levels(max).find(|&n| n > last.clients) else {
        return Next::Done(End::Bound);
    };
    match room(steps, memory_limit) {
        Some(most) if most <= last.clients => Next::Done(End::Memory),
        Some(most) if most < level => Next::Step(most),
        _ => Next::Step(level),
    }
}

/// The most clients that the memory has room for, when that is known.
fn room(steps: &[Step], memory_limit: Option<u64>) -> Option<u32> {
    let limit = memory_limit? as f64 * MEMORY_MAX;
    let last = steps.last()?;
    let used = last.memory? as f64;
    if used >= limit {
        return Some(last.clients);
    }
    let each = knee::memory_per_request(steps)?;
    (each > 0.0).then(|| last.clients.saturating_add(((limit - used) / each) as u32))
}

/// Whether the knee has been passed: twice as many clients, and at least two more steps, brought next to
/// nothing.
fn past(steps: &[Step]) -> bool {
    let Some(knee) = knee::first_near_best(steps) else {
        return false;
    };
    let beyond = &steps[knee + 1..];
    let at = &steps[knee];
    beyond.len() >= BEYOND
        && beyond
            .last()
            .is_some_and(|last| last.clients >= at.clients * 2)
        && beyond
            .iter()
            .rev()
            .take(BEYOND)
            .all(|step| step.throughput() < at.throughput() * GROWTH.powi(2))
}

/// The steps on which the knee hangs, and which a disturbance would move: the first, and the last before
/// the throughput is near its best.
pub fn doubtful(steps: &[Step]) -> Vec<u32> {
    let knee = knee::first_near_best(steps).unwrap_or(0);
    let mut found: Vec<u32> = steps
        .iter()
        .take(1)
        .chain(&steps[knee.saturating_sub(1)..knee])
        .map(|step| step.clients)
        .collect();
    found.dedup();
    found
}

/// The number of clients at the knee, if there was no step with so many: it is worth one.
pub fn refine(steps: &[Step]) -> Option<u32> {
    let wanted = knee::wanted(steps)?;
    steps
        .iter()
        .all(|step| step.clients != wanted)
        .then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tally::{Errors, Tally};

    fn step(clients: u32, throughput: f64) -> Step {
        Step {
            clients,
            tally: Tally {
                throughput,
                answered: 100,
                ..Tally::default()
            },
            ..Step::default()
        }
    }

    /// The steps that a backend with this curve would see, and why it ended.
    fn sweep(max: u32, limit: Option<u64>, of: impl Fn(u32) -> Step) -> (Vec<Step>, End) {
        let mut steps = Vec::new();
        loop {
            match next(&steps, max, limit) {
                Next::Step(n) => {
                    assert!(n <= max && steps.last().is_none_or(|s: &Step| s.clients < n));
                    steps.push(of(n));
                }
                Next::Done(end) => return (steps, end),
            }
        }
    }

    fn clients(steps: &[Step]) -> Vec<u32> {
        steps.iter().map(|step| step.clients).collect()
    }

    #[test]
    fn levels_are_two_an_octave_and_end_at_the_bound() {
        assert_eq!(levels(1).collect::<Vec<_>>(), [1]);
        assert_eq!(levels(10).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 8, 10]);
        assert_eq!(
            levels(24).collect::<Vec<_>>(),
            [1, 2, 3, 4, 6, 8, 12, 16, 24]
        );
        assert!(levels(u32::MAX).count() < 70);
    }

    #[test]
    fn it_ends_soon_after_the_knee() {
        for (workers, expected) in [(1, 3), (2, 4), (4, 8), (8, 16), (16, 32)] {
            let (steps, end) = sweep(256, None, |n| step(n, 20.0 * f64::from(n.min(workers))));
            assert_eq!(
                (steps.last().unwrap().clients, end),
                (expected, End::Past),
                "{workers}"
            );
        }
    }

    #[test]
    fn it_ends_at_the_bound_while_it_grows() {
        let (steps, end) = sweep(20, None, |n| step(n, f64::from(n)));
        assert_eq!(clients(&steps), [1, 2, 3, 4, 6, 8, 12, 16, 20]);
        assert_eq!(end, End::Bound);
        assert_eq!(refine(&steps), None);
    }

    #[test]
    fn it_does_not_run_into_the_memory_limit() {
        // 100 MB, and 50 MB for each request, of 512 MB: 7 fit below 92 %.
        let (steps, end) = sweep(256, Some(512_000_000), |n| Step {
            memory: Some(100_000_000 + 50_000_000 * u64::from(n)),
            ..step(n, f64::from(n))
        });
        assert_eq!((steps.last().unwrap().clients, end), (7, End::Memory));
    }

    #[test]
    fn it_ends_when_most_requests_fail() {
        let (steps, end) = sweep(256, None, |n| {
            let mut step = step(n, f64::from(n));
            if n >= 8 {
                step.tally.errors = Errors {
                    refused: 200,
                    ..Errors::default()
                };
            }
            step
        });
        assert_eq!((steps.last().unwrap().clients, end), (12, End::Errors));
    }

    #[test]
    fn the_knee_between_two_steps_gets_a_step_of_its_own() {
        let (steps, _) = sweep(256, None, |n| step(n, 20.0 * f64::from(n.min(10))));
        assert_eq!(refine(&steps), Some(10));
        let (steps, _) = sweep(256, None, |n| step(n, 20.0 * f64::from(n.min(8))));
        assert_eq!(refine(&steps), None);
        assert_eq!(refine(&[]), None);
        assert_eq!(doubtful(&steps), [1, 6]);
        assert_eq!(doubtful(&steps[..1]), [1]);
        assert!(doubtful(&[]).is_empty());
    }
}

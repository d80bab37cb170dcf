//! The one place that reads a clock. Everything else is handed the time, so that it can be tested
//! and simulated without one.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::time::Sleep;

/// A timer that goes off this late means that the process did not run meanwhile.
const OVERSLEPT: Duration = Duration::from_millis(100);
/// A reading of the wall clock is used for this long: adding the time since then is cheaper than another
/// reading.
const WALL_FRESH: Duration = Duration::from_millis(10);
/// The most that a wait is prolonged for a time in which this process did not run.
const MADE_UP_MAX: Duration = Duration::from_secs(10);

/// The monotonic time, by which everything is measured and every timer is set.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    // tokio's clock is the system's, except in tests that pause it.
    tokio::time::Instant::now().into_std()
}

/// Whether a timer went off so late that this process must have been stopped or starved meanwhile. If so, it
/// has been set again for as long as it was late, 10 s at most: what it waited for may have come meanwhile,
/// or may be about to.
pub fn overslept(mut timer: Pin<&mut Sleep>) -> bool {
    let now = now();
    let late = now.saturating_duration_since(timer.deadline().into_std());
    if late < OVERSLEPT || !timer.is_elapsed() {
        return false;
    }
    timer.as_mut().reset((now + late.min(MADE_UP_MAX)).into());
    true
}

/// Waits for no longer than `time`, not counting that in which this process did not run; `None` if it
/// is over.
pub async fn within<F: Future>(time: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = pin!(tokio::time::sleep(time));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        while timer.as_mut().poll(cx).is_ready() {
            if !overslept(timer.as_mut()) {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    })
    .await
}

/// CPU time that the calling thread has used: what a piece of work costs, however crowded the machine is.
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

thread_local! {
    /// The last look at both clocks.
    static WALL: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// What the wall clock said at that time, which was just now, since the Unix epoch.
pub fn wall(at: Instant) -> Duration {
    let from = |(seen, wall): (Instant, Duration)| {
        let (early, late) = if at < seen { (at, seen) } else { (seen, at) };
        let between = late.saturating_duration_since(early);
        let told = match at < seen {
            true => wall.saturating_sub(between),
            false => wall + between,
        };
        (between, told)
    };
    match WALL.get().map(from) {
        Some((between, told)) if between < WALL_FRESH => told,
        _ => {
            let look = (now(), since_epoch());
            WALL.set(Some(look));
            from(look).1
        }
    }
}

/// The wall clock, since the Unix epoch. For log lines, headers and metrics that name a date;
/// never for a duration.
#[allow(clippy::disallowed_methods)]
pub fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_at_the_same_pace() {
        let (seen, then) = (now(), Duration::from_secs(1_000_000));
        WALL.set(Some((seen, then)));
        // As long as a look is fresh, nothing is added to it but what has passed since.
        for nanos in [0, 1, 999, 1_000_000, 9_999_999] {
            let step = Duration::from_nanos(nanos);
            assert_eq!(wall(seen + step), then + step);
            assert_eq!(wall(seen - step), then - step);
        }
        assert_eq!(WALL.get(), Some((seen, then)));
        // Then another one is taken, and counts at once.
        let later = Duration::from_millis(500);
        for at in [seen + WALL_FRESH, seen + later, seen - later] {
            WALL.set(Some((seen, then)));
            let told = wall(at);
            let (looked, clock) = WALL.get().expect("a look");
            assert_ne!(clock, then);
            assert!(looked >= seen);
            assert_eq!(
                told + looked.duration_since(seen),
                clock + at.duration_since(seen) - seen.duration_since(at)
            );
        }
    }
}

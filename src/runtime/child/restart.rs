//! When a child that died is started again.

use std::time::Duration;

use super::Exit;
use crate::config::Restart;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// The restart policy with its memory: the first restart comes after 100 ms, each further one after
/// twice the pause, up to 10 s. A child that ran for 10 s has recovered, and the pauses start anew.
#[derive(Clone, Copy, Debug)]
pub struct Restarts {
    policy: Restart,
    next: Duration,
}

impl Restarts {
    /// No restart has happened yet.
    pub fn new(policy: Restart) -> Self {
        Self {
            policy,
            next: FIRST,
        }
    }

    /// The pause before the next start, or `None` if this exit is the end. `uptime` is how long the
    /// child had run; 0 if it could not even be started.
    pub fn after(&mut self, exit: Exit, uptime: Duration) -> Option<Duration> {
        let again = match self.policy {
            Restart::Never => false,
            Restart::OnFailure => !exit.success(),
            Restart::Always => true,
        };
        if !again {
            return None;
        }
        if uptime >= LONGEST {
            self.next = FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Exit = Exit::Code(0);
    const BADLY: Exit = Exit::Signal(9);

    #[test]
    fn the_policy_decides_which_exit_is_the_end() {
        let again = |policy, exit| Restarts::new(policy).after(exit, Duration::ZERO).is_some();
        assert!(!again(Restart::Never, WELL) && !again(Restart::Never, BADLY));
        assert!(!again(Restart::OnFailure, WELL) && again(Restart::OnFailure, BADLY));
        assert!(again(Restart::OnFailure, Exit::Code(3)));
        assert!(again(Restart::Always, WELL) && again(Restart::Always, BADLY));
    }

    #[test]
    fn pauses_double_up_to_ten_seconds() {
        let mut restarts = Restarts::new(Restart::Always);
        let pauses: Vec<_> = (0..9)
            .filter_map(|_| restarts.after(BADLY, Duration::from_secs(1)))
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(
            pauses,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
    }

    #[test]
    fn a_child_that_ran_well_starts_anew() {
        let mut restarts = Restarts::new(Restart::OnFailure);
        for _ in 0..5 {
            restarts.after(BADLY, Duration::ZERO);
        }
        assert_eq!(restarts.after(BADLY, Duration::from_secs(60)), Some(FIRST));
        assert_eq!(restarts.after(BADLY, Duration::ZERO), Some(FIRST * 2));
    }
}

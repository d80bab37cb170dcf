//! The least that an answer of late took: what no request can be expected to stay below.

use std::time::Duration;

/// Of the last so many answers, and of up to as many before them.
const ANSWERS: u32 = 64;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quickest {
    /// Of the last few answers, and of those before them.
    now: Option<Duration>,
    before: Option<Duration>,
    answers: u32,
}

impl Quickest {
    /// An answer took so long.
    pub(super) fn note(&mut self, took: Duration) {
        if self.answers == ANSWERS {
            (self.before, self.now, self.answers) = (self.now, None, 0);
        }
        self.answers += 1;
        self.now = Some(self.now.map_or(took, |least| least.min(took)));
    }

    /// None before the first answer.
    pub(super) fn get(&self) -> Option<Duration> {
        self.now.into_iter().chain(self.before).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let ms = Duration::from_millis;
        let mut quickest = Quickest::default();
        assert_eq!(quickest.get(), None);
        quickest.note(ms(10));
        for _ in 0..100 {
            quickest.note(ms(200));
        }
        assert_eq!(quickest.get(), Some(ms(10)));
        for _ in 0..64 {
            quickest.note(ms(200));
        }
        assert_eq!(quickest.get(), Some(ms(200)));
        quickest.note(ms(20));
        assert_eq!(quickest.get(), Some(ms(20)), "at once");
    }
}

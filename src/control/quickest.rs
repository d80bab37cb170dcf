//! The least that an answer of late took: what no request can be expected to stay below.

/// Of the last so many answers, and of up to as many before them.
const ANSWERS: u32 = 64;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quickest {
    /// Of the last few answers, and of those before them, seconds.
    now: Option<f64>,
    before: Option<f64>,
    answers: u32,
}

impl Quickest {
    /// An answer took so many seconds.
    pub(super) fn note(&mut self, took: f64) {
        if self.answers == ANSWERS {
            (self.before, self.now, self.answers) = (self.now, None, 0);
        }
        self.answers += 1;
        self.now = Some(self.now.map_or(took, |least| least.min(took)));
    }

    /// In seconds; none before the first answer.
    pub(super) fn get(&self) -> Option<f64> {
        self.now.into_iter().chain(self.before).reduce(f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut quickest = Quickest::default();
        assert_eq!(quickest.get(), None);
        quickest.note(0.01);
        for _ in 0..100 {
            quickest.note(0.2);
        }
        assert_eq!(quickest.get(), Some(0.01));
        for _ in 0..64 {
            quickest.note(0.2);
        }
        assert_eq!(quickest.get(), Some(0.2));
        quickest.note(0.02);
        assert_eq!(quickest.get(), Some(0.02), "at once");
    }
}

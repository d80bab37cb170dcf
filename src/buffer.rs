//! One budget for every byte that tidegate holds for somebody else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Pause between attempts to get a piece of the budget: nobody tells when there is room again.
pub const BUDGET_PAUSE: Duration = Duration::from_millis(20);

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the backend.
    Request,
    /// From the backend to the client.
    Response,
}

/// What is buffered only in the hope of freeing a worker takes at most one part in so many of the budget,
const SHARE: u64 = 16;
/// and each of those who hold it one part in so many of what is left of that. With the defaults the first
/// gets 256 KiB, and three hundred of them have some 27 KiB each.
const SPREAD: u64 = 16;
/// What all sharers (see [`Reservation::share`]) together have on its way from one buffer to another is one
/// part in so many of the budget.
const IN_HAND: u64 = 64;

/// What is held for long, and may or may not help, is taken only while less than one part in so many of the
/// budget is in use.
const AMPLE: u64 = 8;
/// Heads that are not complete take at most one part in so many of the budget.
const HEADS: u64 = 8;

/// The answers over one client's connection have this part of the budget at most, or two of them what they need.
const CLIENT: u64 = 8;
/// It is full when less than this part of that is left.
const SPARE: u64 = 8;

/// What the answers over one connection hold of a [`Budget`], of which one client shall not have all.
#[derive(Debug)]
pub struct Share {
    held: AtomicU64,
    /// The most that one of them takes: two may be held however small the budget is.
    answer: u64,
}

impl Share {
    /// None yet. One of them takes at most `answer` bytes.
    pub fn new(answer: u64) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicU64::new(0),
            answer,
        })
    }

    /// Whether so little is left of what it may have of this budget that the next answer is not likely to fit.
    pub fn is_full(&self, budget: &Budget) -> bool {
        let most = self.most(budget);
        self.held.load(Relaxed) > most - most / SPARE
    }

    /// Whether so many bytes are more than it may have besides what it has.
    fn lacks(&self, bytes: u64, budget: &Budget) -> bool {
        self.held.load(Relaxed).saturating_add(bytes) > self.most(budget)
    }

    fn most(&self, budget: &Budget) -> u64 {
        let part = budget.total.load(Relaxed) / CLIENT;
        part.max(self.answer.saturating_mul(2))
    }
}

/// Bounds the buffered bytes of all requests and responses together; `buffers.total`.
#[derive(Debug)]
pub struct Budget {
    total: AtomicU64,
    request: AtomicU64,
    response: AtomicU64,
    /// Of that, what is held for heads that are not whole.
    heads: AtomicU64,
    /// How many share: see [`Reservation::share`].
    sharers: AtomicU64,
    /// How many wait until there is room for them.
    waiting: AtomicU64,
}

/// One who waits for room, until it is dropped.
#[derive(Debug)]
pub struct Waiting(Arc<Budget>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Self {
            total: AtomicU64::new(total),
            request: AtomicU64::new(0),
            response: AtomicU64::new(0),
            heads: AtomicU64::new(0),
            sharers: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        })
    }

    /// Changes the bound. What is held already stays.
    pub fn set_total(&self, total: u64) {
        self.total.store(total, Relaxed);
    }

    /// Bytes held in that direction.
    pub fn used(&self, direction: Direction) -> u64 {
        self.cell(direction).load(Relaxed)
    }

    /// How much may be held now of what may help and may not: `most` while little is held, and the
    /// less the more is. Never less than `least`. In bytes.
    pub fn room(&self, direction: Direction, least: u64, most: u64) -> u64 {
        let share = self.total.load(Relaxed) / SHARE;
        let free = share.saturating_sub(self.used(direction));
        (free / SPREAD).clamp(least.min(most), most)
    }

    /// Whether somebody waits for room.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// An empty reservation, to be grown.
    pub fn reservation(self: &Arc<Self>, direction: Direction) -> Reservation {
        Reservation {
            budget: self.clone(),
            direction,
            bytes: 0,
            shares: false,
            is_head: false,
            within: None,
        }
    }

    /// The same for a head while it is not whole: all of those have an eighth of the budget, or one of them what it
    /// needs.
    pub fn for_head(self: &Arc<Self>) -> Reservation {
        let mut head = self.reservation(Direction::Request);
        head.is_head = true;
        head
    }

    fn cell(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Request => &self.request,
            Direction::Response => &self.response,
        }
    }
}

/// Bytes taken from a [`Budget`]; they go back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    direction: Direction,
    bytes: u64,
    shares: bool,
    is_head: bool,
    within: Option<Arc<Share>>,
}

impl Reservation {
    /// The same, which is empty, but not beyond that share.
    pub fn within(mut self, share: Option<&Arc<Share>>) -> Self {
        debug_assert!(self.bytes == 0, "what it has would not be counted");
        self.within = share.cloned();
        self
    }

    /// Whether it is the share that has no room for so many bytes more.
    pub fn is_beyond_share(&self, bytes: u64) -> bool {
        let share = self.within.as_ref();
        share.is_some_and(|share| share.lacks(bytes, &self.budget))
    }

    /// From now on it counts among those whose final size is unknown.
    pub fn share(&mut self) {
        if !std::mem::replace(&mut self.shares, true) {
            self.budget.sharers.fetch_add(1, Relaxed);
        }
    }

    /// How much one of those may take at once: `most` while they are few, and the less the more they are.
    /// Never less than `least`. In bytes.
    pub fn piece(&self, least: u64, most: u64) -> u64 {
        let sharers = self.budget.sharers.load(Relaxed).max(1);
        let all = self.budget.total.load(Relaxed) / IN_HAND;
        (all / sharers).clamp(least.min(most), most)
    }

    /// Takes `bytes` more; false, and nothing taken, if the budget does not have them.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let budget = &self.budget;
        let cell = budget.cell(self.direction);
        // The check and the addition are not one step, so each of several racing threads can overshoot the
        // bound once: it is a bound for memory, not an invariant.
        let used = budget.request.load(Relaxed) + budget.response.load(Relaxed);
        if used.saturating_add(bytes) > budget.total.load(Relaxed) {
            return false;
        }
        if self.is_beyond_share(bytes) {
            return false;
        }
        if self.is_head {
            let heads = budget.heads.load(Relaxed);
            let alone = heads == self.bytes;
            if !alone && heads.saturating_add(bytes) > budget.total.load(Relaxed) / HEADS {
                return false;
            }
            budget.heads.fetch_add(bytes, Relaxed);
        }
        if let Some(share) = &self.within {
            share.held.fetch_add(bytes, Relaxed);
        }
        cell.fetch_add(bytes, Relaxed);
        self.bytes += bytes;
        true
    }

    /// The same, but only while there is plenty: with them, no more than an eighth of the budget may be in
    /// use.
    pub fn grow_early(&mut self, bytes: u64) -> bool {
        let budget = &self.budget;
        let used = budget.request.load(Relaxed) + budget.response.load(Relaxed);
        used.saturating_add(bytes) <= budget.total.load(Relaxed) / AMPLE && self.grow(bytes)
    }

    /// Gives `bytes` back, at most what was taken.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if let Some(share) = &self.within {
            share.held.fetch_sub(bytes, Relaxed);
        }
        if self.is_head {
            self.budget.heads.fetch_sub(bytes, Relaxed);
        }
        self.budget.cell(self.direction).fetch_sub(bytes, Relaxed);
    }

    /// From now on somebody waits for room.
    pub fn wait(&self) -> Waiting {
        self.budget.waiting.fetch_add(1, Relaxed);
        Waiting(self.budget.clone())
    }

    /// Whether somebody waits for room.
    pub fn is_wanted(&self) -> bool {
        self.budget.is_wanted()
    }

    /// What it is taken from.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// See [`Budget::room`].
    pub fn room(&self, least: u64, most: u64) -> u64 {
        self.budget.room(self.direction, least, most)
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
        if self.shares {
            self.budget.sharers.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(100);
        let mut one = budget.reservation(Direction::Request);
        let mut other = budget.reservation(Direction::Response);
        assert!(one.grow(60));
        assert!(!other.grow(41), "both directions share the budget");
        assert!(other.grow(40));
        one.shrink(1000);
        assert_eq!(one.bytes(), 0);
        drop(other);
        assert_eq!(budget.used(Direction::Request), 0);
        assert_eq!(budget.used(Direction::Response), 0);
    }

    #[test]
    fn one_client_has_an_eighth_or_what_two_answers_need() {
        let budget = Budget::new(800);
        let share = Share::new(40);
        let answer = || budget.reservation(Direction::Response).within(Some(&share));
        let (mut one, mut other) = (answer(), answer());
        assert!(one.grow(70) && !other.grow(31) && other.is_beyond_share(31));
        assert!(!share.is_full(&budget));
        assert!(other.grow(30) && share.lacks(1, &budget) && share.is_full(&budget));
        assert!(budget.reservation(Direction::Response).grow(700));
        one.shrink(20);
        assert!(!share.lacks(20, &budget));
        drop((one, other));
        assert!(!share.lacks(100, &budget));
        assert_eq!(budget.used(Direction::Response), 0);
        budget.set_total(8);
        assert!(!share.lacks(80, &budget) && share.lacks(81, &budget));
        // There, it is the budget that has no room.
        assert!(!answer().grow(9) && !answer().is_beyond_share(9));
    }

    #[test]
    fn early_is_while_little_is_held() {
        let budget = Budget::new(800);
        let mut one = budget.reservation(Direction::Request);
        assert!(one.grow_early(100));
        assert!(!one.grow_early(1) && one.grow(1));
        drop(one);
        let mut other = budget.reservation(Direction::Response);
        assert!(other.grow(60));
        let mut one = budget.reservation(Direction::Request);
        assert!(!one.grow_early(41) && one.grow_early(40));
    }

    #[test]
    fn heads_have_an_eighth_or_one_what_it_needs() {
        let budget = Budget::new(800);
        let (mut one, mut other) = (budget.for_head(), budget.for_head());
        assert!(one.grow(50) && one.grow(150), "alone");
        assert!(!other.grow(1));
        one.shrink(150);
        assert!(!other.grow(51) && other.grow(50));
        assert!(!one.grow(1));
        assert!(budget.reservation(Direction::Request).grow(700));
        drop(other);
        assert!(one.grow(700));
    }

    #[test]
    fn the_more_share_the_less_each_takes_at_once() {
        const KIB: u64 = 1024;
        let budget = Budget::new(64 * KIB * KIB);
        let sharer = || {
            let mut one = budget.reservation(Direction::Response);
            one.share();
            one.share();
            one
        };
        let first = sharer();
        let piece = || first.piece(16 * KIB, 64 * KIB);
        assert_eq!(piece(), 64 * KIB);
        let others: Vec<_> = (0..31).map(|_| sharer()).collect();
        assert_eq!(piece(), 32 * KIB);
        let many: Vec<_> = (0..300).map(|_| sharer()).collect();
        assert_eq!(piece(), 16 * KIB);
        drop((others, many));
        assert_eq!(piece(), 64 * KIB);
    }

    #[test]
    fn the_more_is_held_the_less_each_may_hold() {
        const KIB: u64 = 1024;
        let budget = Budget::new(64 * KIB * KIB);
        let room = || budget.room(Direction::Response, 16 * KIB, 256 * KIB);
        assert_eq!(room(), 256 * KIB, "the first");
        let mut held: Vec<Reservation> = Vec::new();
        for _ in 0..300 {
            let mut one = budget.reservation(Direction::Response);
            assert!(one.grow(room()));
            held.push(one);
        }
        let each = budget.used(Direction::Response) / 300;
        assert!(each < 30 * KIB, "{each}");
        assert_eq!(room(), 16 * KIB, "the least");
        assert_eq!(budget.room(Direction::Response, 16 * KIB, 4 * KIB), 4 * KIB);
        held.clear();
        assert_eq!(room(), 256 * KIB, "as before");
    }
}

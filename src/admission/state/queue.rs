//! Who waits: a queue for each class, each in the order of arrival.

use std::{collections::VecDeque, time::Instant};

use super::{CLASSES, Seq};
use crate::{
    admission::{Cap, ClientKey, Reason},
    config::Class,
};

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) seq: Seq,
    /// The waiter's slot in the gate.
    pub(super) key: u32,
    pub(super) cap: Option<Cap>,
    /// Whether it waits for its route's cap.
    pub(super) capped: bool,
    pub(super) client: Option<ClientKey>,
    pub(super) since: Instant,
    pub(super) expires: Instant,
    /// What is said if time runs out.
    pub(super) reason: Reason,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Queue {
    classes: [VecDeque<Waiting>; CLASSES],
    len: usize,
    /// How many wait of each route with a cap of its own.
    capped: Vec<(Cap, usize)>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn by_class(&self) -> [u32; CLASSES] {
        std::array::from_fn(|class| self.classes[class].len() as u32)
    }

    pub(super) fn push(&mut self, class: Class, waiting: Waiting) {
        if let Some(cap) = waiting.cap {
            match self.capped.iter_mut().find(|(known, _)| *known == cap) {
                Some((_, count)) => *count += 1,
                None => self.capped.push((cap, 1)),
            }
        }
        self.classes[class as usize].push_back(waiting);
        self.len += 1;
    }

    /// How many are held up by their routes' caps.
    pub(super) fn held_up(&self, held_up: impl Fn(Option<Cap>) -> bool) -> usize {
        let routes = self.capped.iter().filter(|(cap, _)| held_up(Some(*cap)));
        routes.map(|(_, count)| count).sum()
    }

    /// How many wait of the route with this cap.
    pub(super) fn of_route(&self, cap: Cap) -> usize {
        let routes = self.capped.iter().filter(|(known, _)| known.id == cap.id);
        routes.map(|(_, count)| count).sum()
    }

    /// Takes out one that gives up, if it is still there.
    pub(super) fn leave(&mut self, class: Class, seq: Seq) -> Option<Waiting> {
        let queue = &self.classes[class as usize];
        let at = queue.binary_search_by_key(&seq, |w| w.seq).ok()?;
        self.remove(class as usize, at)
    }

    /// How many places a client has.
    pub(super) fn places_of(&self, client: ClientKey) -> usize {
        let waiting = self.classes.iter().flatten();
        waiting.filter(|w| w.client == Some(client)).count()
    }

    /// How many go before an arrival of this class: not those who came before `fresh_from`, nor those whom
    /// their routes' caps hold up.
    pub(super) fn ahead_of(
        &self,
        class: Class,
        fresh_from: Option<Instant>,
        held_up: impl Fn(Option<Cap>) -> bool,
    ) -> usize {
        let ahead = self.classes[..=class as usize].iter();
        ahead
            .map(|queue| {
                let stale = stale(queue, fresh_from);
                let fresh = queue.len() - stale;
                if self.capped.is_empty() {
                    return fresh;
                }
                fresh - queue.range(stale..).filter(|w| held_up(w.cap)).count()
            })
            .sum()
    }

    /// Whether their routes' caps hold up all waiters of this class or a higher one.
    pub(super) fn all_held_up(&self, class: Class, held_up: impl Fn(Option<Cap>) -> bool) -> bool {
        self.len == 0
            || self.classes[..=class as usize]
                .iter()
                .flatten()
                .all(|w| held_up(w.cap))
    }

    /// Takes out the oldest of a class, if it is out of time.
    pub(super) fn take_late(&mut self, class: usize, now: Instant) -> Option<Waiting> {
        let late = self.classes[class].front()?.expires <= now;
        late.then(|| self.remove(class, 0))?
    }

    /// Takes out the oldest of a class who came no earlier than `fresh_from`; failing that, the newest of
    /// the others.
    pub(super) fn take_next(
        &mut self,
        class: usize,
        fresh_from: Option<Instant>,
        held_up: impl Fn(Option<Cap>) -> bool,
    ) -> Option<Waiting> {
        let queue = &self.classes[class];
        let fresh = stale(queue, fresh_from);
        let next = (fresh..queue.len())
            .chain((0..fresh).rev())
            .find(|&at| !held_up(queue[at].cap))?;
        self.remove(class, next)
    }

    /// Takes out one of a class who came before that, except those who wait for their routes' caps.
    pub(super) fn take_before(&mut self, class: usize, before: Instant) -> Option<Waiting> {
        let at = self.first_before(class, before)?;
        self.remove(class, at)
    }

    /// The lowest class, not above this one, out of which [`take_before`](Self::take_before) would take somebody.
    pub(super) fn lowest_before(&self, class: Class, before: Instant) -> Option<usize> {
        (class as usize..CLASSES)
            .rev()
            .find(|&at| self.first_before(at, before).is_some())
    }

    fn first_before(&self, class: usize, before: Instant) -> Option<usize> {
        let mut old = self.classes[class].iter().take_while(|w| w.since < before);
        old.position(|w| !w.capped)
    }

    /// The lowest class below this one in which somebody waits.
    pub(super) fn lowest_below(&self, class: Class) -> Option<usize> {
        (class as usize + 1..CLASSES)
            .rev()
            .find(|&at| !self.classes[at].is_empty())
    }

    /// Takes out the newest of a class.
    pub(super) fn take_newest(&mut self, class: usize) -> Option<Waiting> {
        let last = self.classes[class].len().checked_sub(1)?;
        self.remove(class, last)
    }

    fn remove(&mut self, class: usize, at: usize) -> Option<Waiting> {
        let waiting = self.classes[class].remove(at)?;
        self.len -= 1;
        if let Some(at) = self
            .capped
            .iter()
            .position(|(cap, _)| Some(*cap) == waiting.cap)
        {
            self.capped[at].1 -= 1;
            if self.capped[at].1 == 0 {
                self.capped.swap_remove(at);
            }
        }
        Some(waiting)
    }
}

/// How many of a queue came before that.
fn stale(queue: &VecDeque<Waiting>, fresh_from: Option<Instant>) -> usize {
    fresh_from.map_or(0, |from| queue.partition_point(|w| w.since < from))
}

//! The workers, the connections that each has, and which of those are in use. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// What is known of all connections to one endpoint.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Requests that a worker can run at once.
    slots_each: u32,
    workers: Vec<Worker>,
    seats: HashMap<u64, Seat>,
    /// Counts connections.
    opened: u64,
    /// Counts requests.
    turns: u64,
    /// For how long a request has its connection, mostly: a moving mean.
    usual: Option<Duration>,
}

/// One request is one part in so many of the mean.
const MEMORY: u32 = 16;
/// What takes longer, a stream for example, counts as this long.
const MOST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Worker {
    pid: u32,
    /// When it was last given a request, in turns.
    turn: u64,
}

/// One connection.
#[derive(Clone, Copy, Debug)]
struct Seat {
    /// Whose it is, once that is known.
    worker: Option<u32>,
    /// Since when it has had a request.
    busy: Option<Instant>,
}

/// A worker at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) pid: u32,
    /// Requests on its connections.
    pub(super) in_flight: u32,
    /// Its connections, idle or not.
    pub(super) connections: u32,
    turn: u64,
}

impl Table {
    /// These are the workers from now on.
    pub(super) fn staff(&mut self, pids: &[u32], slots_each: u32) {
        self.slots_each = slots_each;
        self.workers.retain(|worker| pids.contains(&worker.pid));
        for &pid in pids {
            self.enrol(pid);
        }
    }

    fn enrol(&mut self, pid: u32) {
        if !self.workers.iter().any(|worker| worker.pid == pid) {
            self.workers.push(Worker { pid, turn: 0 });
        }
    }

    /// A new connection, and since when it has a request.
    pub(super) fn open(&mut self, busy: Option<Instant>) -> u64 {
        self.opened += 1;
        let seat = Seat { worker: None, busy };
        self.seats.insert(self.opened, seat);
        self.opened
    }

    /// Whose it is. One that was not among the workers has come since.
    pub(super) fn place(&mut self, id: u64, pid: u32) {
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        seat.worker = Some(pid);
        self.enrol(pid);
        self.take_turn(pid);
    }

    /// An idle connection gets a request.
    pub(super) fn take(&mut self, id: u64, now: Instant) {
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        seat.busy = Some(now);
        if let Some(pid) = seat.worker {
            self.take_turn(pid);
        }
    }

    fn take_turn(&mut self, pid: u32) {
        self.turns += 1;
        // One that accepts no more may still have connections.
        let worker = self.workers.iter_mut().find(|worker| worker.pid == pid);
        if let Some(worker) = worker {
            worker.turn = self.turns;
        }
    }

    /// Its request is over.
    pub(super) fn park(&mut self, id: u64, now: Instant) {
        let since = self.seats.get_mut(&id).and_then(|seat| seat.busy.take());
        if let Some(since) = since {
            let time = now.saturating_duration_since(since).min(MOST);
            self.usual = Some(match self.usual {
                Some(usual) => (usual * (MEMORY - 1) + time) / MEMORY,
                None => time,
            });
        }
    }

    /// It is gone, and what it had of a request is over.
    pub(super) fn close(&mut self, id: u64, now: Instant) {
        self.park(id, now);
        self.seats.remove(&id);
    }

    /// It is gone, and was not used.
    pub(super) fn discard(&mut self, id: u64) {
        self.seats.remove(&id);
    }

    /// For how long a request has its connection, mostly.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.usual
    }

    /// Which of these idle connections, the latest used first, is the best for another request; `None` for a new
    /// one, if there is none or if all are of workers without a free slot while another has one and it
    /// `may_open`.
    ///
    /// The best is that of the worker with the fewest requests, and of several of the one that was given its last
    /// one the longest ago: it is likely done first, and the connections of all stay in use. A connection
    /// whose worker is not known comes after those of workers with a free slot.
    pub(super) fn choose(
        &self,
        idle: impl Iterator<Item = Option<u64>>,
        may_open: bool,
    ) -> Option<usize> {
        let loads = self.loads();
        let rank = |(at, id): (usize, Option<u64>)| {
            let seat = id.and_then(|id| self.seats.get(&id));
            let load = loads.of(seat.and_then(|seat| seat.worker));
            load.map_or((false, true, 0, 0, at), |load| {
                let full = load.in_flight >= self.slots_each;
                (full, false, load.in_flight, load.turn, at)
            })
        };
        let (full, .., at) = idle.enumerate().map(rank).min()?;
        let better = full && may_open && loads.has_room(self.slots_each);
        (!better).then_some(at)
    }

    /// Whether a worker may have more requests than slots, as far as is known: there are connections of which
    /// nobody knows whose they are.
    pub(super) fn is_tight(&self) -> bool {
        let loads = self.loads();
        let most = loads.workers.iter().map(|load| load.in_flight).max();
        loads.unplaced > 0 && most.unwrap_or(0) + loads.unplaced > self.slots_each
    }

    /// Whether there are as many requests as slots, whoever has them.
    pub(super) fn is_full(&self) -> bool {
        let busy = self.seats.values().filter(|seat| seat.busy.is_some());
        busy.count() >= self.workers.len() * self.slots_each as usize
    }

    /// Whether it is known whose it is.
    pub(super) fn is_placed(&self, id: u64) -> bool {
        let seat = self.seats.get(&id);
        seat.is_some_and(|seat| seat.worker.is_some())
    }

    /// Whether the worker of this connection has more requests than slots while another has one free.
    pub(super) fn is_crowded(&self, id: u64) -> bool {
        let loads = self.loads();
        let worker = self.seats.get(&id).and_then(|seat| seat.worker);
        let over = |load: &Load| load.in_flight > self.slots_each;
        loads.of(worker).is_some_and(over) && loads.has_room(self.slots_each)
    }

    /// What each worker has.
    pub(super) fn loads(&self) -> Loads {
        let idle = |worker: &Worker| Load {
            pid: worker.pid,
            in_flight: 0,
            connections: 0,
            turn: worker.turn,
        };
        let mut loads = Loads {
            workers: self.workers.iter().map(idle).collect(),
            unplaced: 0,
        };
        for seat in self.seats.values() {
            let of = |load: &&mut Load| Some(load.pid) == seat.worker;
            match loads.workers.iter_mut().find(of) {
                Some(load) => {
                    load.connections += 1;
                    load.in_flight += u32::from(seat.busy.is_some());
                }
                None => loads.unplaced += u32::from(seat.busy.is_some()),
            }
        }
        loads
    }
}

/// All workers at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loads {
    pub(super) workers: Vec<Load>,
    /// Requests on connections of which nobody knows whose they are.
    unplaced: u32,
}

impl Loads {
    fn of(&self, worker: Option<u32>) -> Option<&Load> {
        let load = |load: &&Load| Some(load.pid) == worker;
        self.workers.iter().find(load)
    }

    /// Whether some worker is certain to have a free slot: there are more free ones than requests whose
    /// worker is not known.
    fn has_room(&self, slots_each: u32) -> bool {
        let free = |load: &Load| slots_each.saturating_sub(load.in_flight);
        self.workers.iter().map(free).sum::<u32>() > self.unplaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    /// Workers 1 to `count` of so many slots.
    fn table(count: u32, slots_each: u32) -> Table {
        let mut table = Table::default();
        let pids: Vec<u32> = (1..=count).collect();
        table.staff(&pids, slots_each);
        table
    }

    /// A connection of this worker, idle.
    fn idle(table: &mut Table, pid: u32) -> u64 {
        let id = table.open(Some(clock::now()));
        table.place(id, pid);
        table.park(id, clock::now());
        id
    }

    fn choose(table: &Table, idle: &[u64]) -> Option<u64> {
        let at = table.choose(idle.iter().copied().map(Some), true)?;
        Some(idle[at])
    }

    #[test]
    fn requests_go_to_each_worker_in_turn() {
        let mut table = table(3, 2);
        let all = [1, 2, 3, 1].map(|pid| idle(&mut table, pid));
        let mut order = Vec::new();
        let mut left = all.to_vec();
        while let Some(id) = choose(&table, &left) {
            table.take(id, clock::now());
            left.retain(|other| *other != id);
            order.push(id);
        }
        // Worker 1 was served last when its second connection was made.
        assert_eq!(order, [all[1], all[2], all[0], all[3]]);
        for id in order {
            table.park(id, clock::now());
        }
        assert_eq!(choose(&table, &all), Some(all[1]), "the longest ago");
    }

    #[test]
    fn a_new_connection_is_wanted_only_while_a_worker_has_a_free_slot() {
        let mut table = table(2, 1);
        assert_eq!(choose(&table, &[]), None);
        let [first, second] = [1, 1].map(|pid| idle(&mut table, pid));
        table.take(first, clock::now());
        assert_eq!(choose(&table, &[second]), None, "worker 2 does nothing");
        let still = [second].into_iter().map(Some);
        assert_eq!(table.choose(still, false), Some(0), "but none may be made");
        // Somebody is on his way there, as far as one can tell.
        let unknown = table.open(Some(clock::now()));
        assert_eq!(choose(&table, &[second]), Some(second));
        assert!(table.is_full(), "wherever it is");
        table.place(unknown, 2);
        assert_eq!(choose(&table, &[second]), Some(second), "both are full");
        table.park(unknown, clock::now());
        assert_eq!(choose(&table, &[second, unknown]), Some(unknown));
    }

    #[test]
    fn a_new_connection_is_looked_at_only_if_its_worker_may_be_full() {
        let mut table = table(2, 2);
        let one = table.open(Some(clock::now()));
        let two = table.open(Some(clock::now()));
        assert!(!table.is_tight(), "two fit with whoever has them");
        let three = table.open(Some(clock::now()));
        assert!(table.is_tight());
        table.place(one, 1);
        table.place(two, 1);
        assert!(table.is_tight());
        assert!(!table.is_crowded(three), "nobody knows");
        table.place(three, 1);
        assert!(table.is_crowded(three) && table.is_crowded(one));
        table.close(one, clock::now());
        assert!(!table.is_crowded(three));
        let others = [2, 2].map(|pid| {
            let id = table.open(Some(clock::now()));
            table.place(id, pid);
            id
        });
        let more = table.open(Some(clock::now()));
        table.place(more, 1);
        assert!(!table.is_crowded(more), "it is no better elsewhere");
        table.close(others[0], clock::now());
        assert!(table.is_crowded(more));
    }

    #[test]
    fn workers_come_and_go() {
        let mut table = table(2, 1);
        let [first, second] = [1, 2].map(|pid| idle(&mut table, pid));
        table.take(first, clock::now());
        table.staff(&[2, 3], 1);
        let pids = |table: &Table| -> Vec<(u32, u32)> {
            let loads = table.loads();
            let pair = |load: &Load| (load.pid, load.connections);
            loads.workers.iter().map(pair).collect()
        };
        assert_eq!(pids(&table), [(2, 1), (3, 0)]);
        // What is still with the one that has gone is nobody's.
        assert_eq!(table.loads().unplaced, 1);
        table.park(first, clock::now());
        table.take(first, clock::now());
        assert_eq!(pids(&table), [(2, 1), (3, 0)], "nor does it come back");
        table.close(first, clock::now());
        let new = idle(&mut table, 4);
        assert_eq!(pids(&table), [(2, 1), (3, 0), (4, 1)]);
        for id in [second, new] {
            table.close(id, clock::now());
        }
        table.place(second, 2);
        table.take(second, clock::now());
        table.park(second, clock::now());
        assert_eq!(pids(&table), [(2, 0), (3, 0), (4, 0)], "it is closed");
    }

    #[test]
    fn how_long_requests_take_is_a_mean_of_those_that_were_sent() {
        let mut table = table(2, 1);
        let now = clock::now();
        let after = |millis| now + Duration::from_millis(millis);
        let id = table.open(Some(now));
        assert_eq!(table.usual(), None);
        table.park(id, after(160));
        assert_eq!(table.usual(), Some(Duration::from_millis(160)));
        table.take(id, now);
        table.close(id, now);
        assert_eq!(table.usual(), Some(Duration::from_millis(150)));
        let unused = table.open(Some(now));
        table.discard(unused);
        table.close(unused, after(999));
        assert_eq!(table.usual(), Some(Duration::from_millis(150)));
    }
}

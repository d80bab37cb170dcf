//! Sends each request to a worker with a free slot.
//!
//! A connection belongs to the process that has accepted it. Servers with threads or an event loop accept more than
//! they can work on, and often the same process is the first to do so: of twelve connections to four workers one may
//! have seven, and then half of the machine waits while requests queue in one worker, where nobody sees them. So we ask
//! the kernel whose each connection is, as soon as that could matter, count what is in flight at each worker, and
//! choose among kept connections by that. A connection that turns out to be a busy worker's, while another worker has
//! nothing to do, is closed before anything is sent on it, and others are made. And what is more than all workers can
//! run waits here until one of them has a slot free, instead of in the one that it would be sent to now.

mod table;

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use self::table::Table;
use crate::{
    clock,
    observe::{SteeringSnapshot, WorkerSnapshot},
    sense::{Connection, Crew, Owners},
    sync::{Mutex, MutexGuard, lock},
};

/// When the first connection for a request turns out to be a busy worker's, so many are made at the same
/// time, in up to three rounds. Made one after the other, they would all go to the same worker, the first to
/// wake up. While it accepts one, others get the next.
pub(super) const SEARCH: [usize; 3] = [2, 4, 4];
/// How long a request waits until its connection's worker is known: half of what a request takes, within these bounds.
/// A worker accepts within a millisecond or two unless something keeps it from running.
const PATIENCE_LEAST: Duration = Duration::from_millis(5);
const PATIENCE_MOST: Duration = Duration::from_millis(50);
/// After a search in vain none is begun for so long, which is about what it took.
const REST: Duration = Duration::from_millis(20);
/// When it could not be found out in time which worker has a connection, this many times in a row, then it
/// cannot be seen here, or nothing accepts: no search is begun for the longer time.
const UNSEEN_MOST: u32 = 16;
const REST_LONG: Duration = Duration::from_secs(10);
/// Where requests take less than this, waiting behind one is no worse than a search, which takes a few
/// connections at a millisecond each.
const WORTH: Duration = Duration::from_millis(5);
/// The pause between two looks at connections that nobody has accepted yet, which doubles each time up to
/// `PAUSE_MOST`. After `GIVE_UP` they are no longer looked at.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MOST: Duration = Duration::from_millis(4);
const GIVE_UP: Duration = Duration::from_millis(100);

/// Who has which connection to one endpoint.
#[derive(Debug)]
pub(super) struct Steering {
    master: u32,
    state: Mutex<State>,
    owners: Mutex<Owners>,
    /// A request is over.
    over: Notify,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    /// Connections that nobody has asked about.
    unasked: HashMap<u64, Connection>,
    /// Those that are to be looked at, and whether somebody does.
    asked: Vec<Question>,
    looking: bool,
    /// No search is begun before this time.
    rested: Option<Instant>,
    /// How often in a row it was not known in time which worker has a connection.
    unseen: u32,
    /// How many new connections were looked at before anything was sent, and how many of them were turned away.
    looked: u64,
    turned_away: u64,
}

/// Whose is this connection?
#[derive(Debug)]
struct Question {
    seat: u64,
    connection: Connection,
    until: Instant,
    /// Whoever waits for the answer is woken when the last of these is dropped.
    _answer: Option<Arc<oneshot::Sender<()>>>,
}

impl Steering {
    /// For these workers. `None` where it cannot be seen which of them accepts a connection.
    pub(super) fn of(crew: &Crew) -> Option<Arc<Self>> {
        let steering = Self {
            master: crew.master,
            state: Mutex::default(),
            owners: Mutex::new(Owners::of(crew.master)?),
            over: Notify::new(),
        };
        steering.staff(crew);
        Some(Arc::new(steering))
    }

    /// Takes over the workers as they are now. False if they are another server's.
    pub(super) fn staff(&self, crew: &Crew) -> bool {
        let same = crew.master == self.master;
        if same {
            let mut state = lock(&self.state);
            state.table.staff(&crew.workers, crew.slots_each);
        }
        same
    }

    /// Which of these idle connections, the latest used first, is to be taken: see [`Table::choose`].
    pub(super) fn choose<'a>(
        self: &Arc<Self>,
        idle: impl Iterator<Item = Option<&'a Seat>>,
        now: Instant,
    ) -> Option<usize> {
        let state = lock(&self.state);
        let ids = idle.map(|seat| seat.filter(|seat| seat.is_of(self)).map(|seat| seat.id));
        state.table.choose(ids, !state.rests(now))
    }

    /// Waits until there are fewer requests than slots, but not for longer than a request mostly takes. The time then.
    pub(super) async fn wait_for_room(&self) -> Instant {
        let is_full = |state: &State, now| state.is_worth_it(now) && state.table.is_full();
        let begun = clock::now();
        let end = {
            let state = lock(&self.state);
            match state.table.usual() {
                Some(usual) if is_full(&state, begun) => begun + usual,
                _ => return begun,
            }
        };
        loop {
            // Registered before the check below, so that a request which ends from here on wakes it. Of
            // several waiters that are not registered yet, only one would be woken.
            let mut over = pin!(self.over.notified());
            over.as_mut().enable();
            let now = clock::now();
            if now >= end || !is_full(&lock(&self.state), now) {
                return now;
            }
            clock::within(end - now, over).await;
        }
    }

    /// A seat for a connection, which carries a request or not.
    pub(super) fn seat(self: &Arc<Self>, connection: Connection, busy: bool) -> Seat {
        let now = clock::now();
        let mut state = lock(&self.state);
        let id = state.table.open(busy.then_some(now));
        state.unasked.insert(id, connection);
        Seat {
            steering: self.clone(),
            id,
        }
    }

    /// For a connection on which nothing was sent yet: whether it should not be used, since its worker is
    /// busy and another is not. Waits until that is known, for a moment.
    pub(super) async fn is_crowded(self: &Arc<Self>, seat: &Seat) -> bool {
        let now = clock::now();
        let known = {
            let mut state = lock(&self.state);
            if !state.is_worth_it(now) || !state.table.is_tight() {
                return false;
            }
            self.ask(&mut state, &[seat.id], now)
        };
        let mut state = self.hear(known, &[seat.id]).await;
        let crowded = state.table.is_crowded(seat.id);
        if crowded {
            state.turned_away += 1;
            state.table.discard(seat.id);
        }
        crowded
    }

    /// Of several connections on which nothing was sent, the one to be taken: see [`Table::choose`]. Waits until it is
    /// known whose they are, for a moment.
    pub(super) async fn pick(self: &Arc<Self>, seats: &[u64]) -> Option<usize> {
        let known = self.ask(&mut lock(&self.state), seats, clock::now());
        let mut state = self.hear(known, seats).await;
        let at = state.table.choose(seats.iter().copied().map(Some), true);
        state.turned_away += (seats.len() - usize::from(at.is_some())) as u64;
        state.table.take(*seats.get(at?)?, clock::now());
        at
    }

    /// Waits until it is known whose these are, for a moment.
    async fn hear(&self, known: oneshot::Receiver<()>, seats: &[u64]) -> MutexGuard<'_, State> {
        let usual = lock(&self.state).table.usual();
        let patience = usual.map_or(PATIENCE_MOST, |usual| {
            (usual / 2).clamp(PATIENCE_LEAST, PATIENCE_MOST)
        });
        let _ = clock::within(patience, known).await;
        let mut state = lock(&self.state);
        state.looked += seats.len() as u64;
        state.unseen = match seats.iter().any(|seat| state.table.is_placed(*seat)) {
            true => 0,
            false => state.unseen + 1,
        };
        if state.unseen >= UNSEEN_MOST {
            state.unseen = 0;
            state.rested = Some(clock::now() + REST_LONG);
        }
        state
    }

    /// A search was in vain: which connection is taken does not matter for a while.
    pub(super) fn rest(&self, now: Instant) {
        lock(&self.state).rested = Some(now + REST);
    }

    /// Asks about all connections that nobody has asked about, some of which are waited for.
    fn ask(
        self: &Arc<Self>,
        state: &mut State,
        awaited: &[u64],
        now: Instant,
    ) -> oneshot::Receiver<()> {
        let (answer, known) = oneshot::channel();
        let answer = Arc::new(answer);
        let unasked = std::mem::take(&mut state.unasked);
        let questions = unasked.into_iter().map(|(seat, connection)| Question {
            seat,
            connection,
            until: now + GIVE_UP,
            _answer: awaited.contains(&seat).then(|| answer.clone()),
        });
        state.asked.extend(questions);
        if !state.asked.is_empty() && !std::mem::replace(&mut state.looking, true) {
            let this = self.clone();
            // It blocks, if only for some hundred microseconds.
            tokio::task::spawn_blocking(move || this.look());
        }
        known
    }

    /// Answers all questions.
    fn look(&self) {
        let mut open: Vec<Question> = Vec::new();
        let mut pause = PAUSE;
        loop {
            {
                let mut state = lock(&self.state);
                if !state.asked.is_empty() {
                    pause = PAUSE;
                }
                open.append(&mut state.asked);
                if open.is_empty() {
                    state.looking = false;
                    return;
                }
            }
            let connections: Vec<Connection> = open.iter().map(|it| it.connection).collect();
            let owners = lock(&self.owners).whose(&connections);
            let now = clock::now();
            let mut state = lock(&self.state);
            let mut owners = owners.into_iter();
            open.retain(|question| {
                let owner = owners.next().flatten();
                if let Some(pid) = owner {
                    state.table.place(question.seat, pid);
                }
                owner.is_none() && now < question.until
            });
            drop(state);
            if !open.is_empty() {
                thread::sleep(pause);
                pause = (2 * pause).min(PAUSE_MOST);
            }
        }
    }

    /// What is to be seen of it.
    pub(super) fn snapshot(&self) -> SteeringSnapshot {
        let state = lock(&self.state);
        let loads = state.table.loads();
        let workers = loads.workers.iter().map(|load| WorkerSnapshot {
            pid: load.pid,
            in_flight: load.in_flight,
            connections: load.connections,
        });
        SteeringSnapshot {
            workers: workers.collect(),
            looked: state.looked,
            turned_away: state.turned_away,
        }
    }
}

impl State {
    /// Whether it matters enough which worker has a request.
    fn is_worth_it(&self, now: Instant) -> bool {
        let long = self.table.usual().is_none_or(|usual| usual >= WORTH);
        long && !self.rests(now)
    }

    fn rests(&self, now: Instant) -> bool {
        self.rested.is_some_and(|rested| now < rested)
    }
}

/// A connection's place at a worker, for as long as there is the connection.
#[derive(Debug)]
pub(super) struct Seat {
    steering: Arc<Steering>,
    id: u64,
}

impl Seat {
    /// Whether it was given by this.
    pub(super) fn is_of(&self, steering: &Arc<Steering>) -> bool {
        Arc::ptr_eq(&self.steering, steering)
    }

    /// Its number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Another request begins.
    pub(super) fn take(&self, now: Instant) {
        let mut state = lock(&self.steering.state);
        state.table.take(self.id, now);
        if state.table.is_tight() {
            // For those that come next.
            self.steering.ask(&mut state, &[], now);
        }
    }

    /// The request is over.
    pub(super) fn park(&self, now: Instant) {
        lock(&self.steering.state).table.park(self.id, now);
        self.steering.over.notify_one();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let now = clock::now();
        let mut state = lock(&self.steering.state);
        state.table.close(self.id, now);
        state.unasked.remove(&self.id);
        drop(state);
        self.steering.over.notify_one();
    }
}

//! When to look at what. Under load the accept queue, and memory that has a limit, are read at each tick, CPU now and
//! then; idle, all three once a second; everything else when something has changed, and every ten seconds.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    Accepts, Crew, Findings, Gauges, Slots, Source, facts::Before, facts::in_one_line,
    learned::Learned, look_again, platform::Eyes, server::accepts,
};
use crate::{
    clock,
    config::{Address, Config, Profile, hide_secrets},
    control::{NEGLIGIBLE, Readings},
    observe::{Sight, Signals},
    sync::{Mutex, lock},
};

/// Between two looks at everything.
const LOOK: Duration = Duration::from_secs(10);
/// ... while nothing listens yet at an address of this machine. (For another address nothing will ever be
/// seen, and each look would resolve the name anew.)
const LOOK_MISSING: Duration = Duration::from_secs(1);
/// ... but at least this much, even if something has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Fewer slots are believed when they are still fewer after this time: a worker that is replaced is
/// missing for a moment. (Between gunicorn's last sight of one and the next there were 1 to 6 ms.)
const CONFIRM: Duration = Duration::from_millis(200);
/// ... and none at all after this time: a server that is restarted is missing for longer.
const CONFIRM_NONE: Duration = Duration::from_secs(5);
/// Between two readings of CPU and memory, under load and idle.
const GAUGES_BUSY: Duration = Duration::from_millis(250);
const GAUGES_IDLE: Duration = Duration::from_secs(1);
/// However long readings take, they use no more than one part in so many of a core, under load and when idle.
const COST_BUSY: u32 = 200;
const COST_IDLE: u32 = 2000;
/// Looks at everything may exceed that share by what it comes to in this time: the replacement of a worker
/// needs two at once.
const LOOKS_AHEAD: Duration = Duration::from_secs(10);
/// The first look, at all endpoints, holds the start up for no longer than this.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(3);

/// All endpoints, watched.
#[derive(Debug, Default)]
pub struct Senses {
    watches: Mutex<BTreeMap<u32, Watch>>,
    /// The process that `exec` started; 0 = none.
    child: AtomicU32,
}

/// What the proxy knows of an endpoint by what it answers.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// The server that answers like this.
    pub answers_as: Profile,
    /// Requests that wait for one.
    pub in_flight: u32,
    /// What a request takes of late, if that is known.
    pub took: Option<Duration>,
}

/// Something that the control law should know.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// What the law is told from now on.
    pub readings: Readings,
    /// The slots, if they are known now and were not before.
    pub first_slots: Option<u32>,
    /// The server, where its process or the server itself tells.
    pub profile: Option<Profile>,
    /// Those who accept, if there are several and they are known.
    pub crew: Option<Crew>,
}

impl Senses {
    /// The child of `exec` has started, and this is its process.
    pub fn set_child(&self, pid: u32) {
        self.child.store(pid, Relaxed);
    }

    fn child(&self) -> Option<u32> {
        Some(self.child.load(Relaxed)).filter(|pid| *pid > 0)
    }

    /// Looks at an endpoint as far as it is time to. `id` tells endpoints apart. Takes microseconds; what takes longer
    /// goes to a thread of its own, and is news later.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn tick(
        &self,
        id: u32,
        address: &Address,
        config: &Arc<Config>,
        answers: Answers,
        now: Instant,
    ) -> Option<News> {
        let child = self.child();
        let mut watches = lock(&self.watches);
        let watch = watches
            .entry(id)
            .or_insert_with(|| Watch::new(address.clone(), now));
        watch.answers_as = answers.answers_as;
        watch.is_quick = answers.took.is_some_and(|took| took < NEGLIGIBLE);
        watch.tick(config, child, answers.in_flight, now)
    }

    /// The first look at these endpoints, at all of them at once, waited for; what is news, by their ids.
    pub async fn first_look<'a>(
        &self,
        endpoints: impl IntoIterator<Item = (u32, &'a Address)>,
        config: &Arc<Config>,
    ) -> Vec<(u32, News)> {
        let child = self.child();
        let end = clock::now() + FIRST_LOOK_MAX;
        let begin = |(id, address): (u32, &'a Address)| {
            let looking = spawn_look(address, config, child, Before::default());
            (id, address, looking)
        };
        let looks: Vec<_> = endpoints.into_iter().map(begin).collect();
        let mut all = Vec::new();
        for (id, address, looking) in looks {
            if let Ok(Ok(found)) = tokio::time::timeout_at(end.into(), looking).await
                && let Some(news) = self.first_found(id, address, config, child, found)
            {
                all.push((id, news));
            }
        }
        all
    }

    fn first_found(
        &self,
        id: u32,
        address: &Address,
        config: &Arc<Config>,
        child: Option<u32>,
        (findings, eyes, _): Found,
    ) -> Option<News> {
        let now = clock::now();
        let mut watches = lock(&self.watches);
        let watch = watches
            .entry(id)
            .or_insert_with(|| Watch::new(address.clone(), now));
        watch.looked_with = Some((config.clone(), child));
        watch.found(findings, eyes, now);
        watch.read_queue(config, 0, now);
        watch.read_gauges(false, now);
        watch.news()
    }

    /// Forgets the endpoints that are gone.
    pub fn retain(&self, known: impl Fn(u32) -> bool) {
        lock(&self.watches).retain(|id, _| known(*id));
    }

    /// What is seen of an endpoint.
    pub fn sight(&self, id: u32) -> Option<Sight> {
        lock(&self.watches).get(&id).map(Watch::sight)
    }

    /// The slots of an endpoint and who says so, if they are known.
    pub fn slots(&self, id: u32) -> Option<Slots> {
        lock(&self.watches).get(&id)?.slots_in_force()
    }

    /// All that the last look at an endpoint found.
    pub fn findings(&self, id: u32) -> Option<Arc<Findings>> {
        lock(&self.watches).get(&id)?.findings.clone()
    }
}

/// What a look has found, and the CPU time that it took.
type Found = (Findings, Eyes, Duration);

fn spawn_look(
    address: &Address,
    config: &Arc<Config>,
    child: Option<u32>,
    before: Before,
) -> oneshot::Receiver<Found> {
    let (address, config) = (address.clone(), config.clone());
    let (sender, looking) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let start = clock::thread_cpu();
        let (findings, eyes) = look_again(&address, &config, child, &before);
        let cost = clock::thread_cpu().saturating_sub(start);
        // Whoever asked may have gone.
        let _ = sender.send((findings, eyes, cost));
    });
    looking
}

/// One endpoint.
#[derive(Debug)]
struct Watch {
    address: Address,
    findings: Option<Arc<Findings>>,
    eyes: Eyes,
    looking: Option<oneshot::Receiver<Found>>,
    /// What the last look went by.
    looked_with: Option<(Arc<Config>, Option<u32>)>,
    looked: Option<Instant>,
    /// The time by which the looks so far will have cost no more than their share.
    paid_until: Instant,
    /// The server by its answers.
    answers_as: Profile,
    /// Whether it answers so quickly that it does not matter how many are in front.
    is_quick: bool,
    next_look: Instant,
    next_gauges: Instant,
    next_queue: Instant,
    next_memory: Instant,
    /// The slots in force.
    slots: Option<Slots>,
    /// Since when fewer are seen.
    fewer_since: Option<Instant>,
    learned: Learned,
    crew: Option<Crew>,
    queued: Option<u32>,
    /// Whether something was in flight at the last look.
    busy: bool,
    gauges: Gauges,
    told: Option<(Readings, Option<Profile>)>,
    knew_slots: bool,
}

impl Watch {
    fn new(address: Address, now: Instant) -> Self {
        Self {
            address,
            findings: None,
            eyes: Eyes::default(),
            looking: None,
            looked_with: None,
            looked: None,
            paid_until: now,
            answers_as: Profile::Auto,
            is_quick: false,
            next_look: now,
            next_gauges: now,
            next_queue: now,
            next_memory: now,
            slots: None,
            fewer_since: None,
            learned: Learned::default(),
            crew: None,
            queued: None,
            busy: false,
            gauges: Gauges::default(),
            told: None,
            knew_slots: false,
        }
    }

    fn tick(
        &mut self,
        config: &Arc<Config>,
        child: Option<u32>,
        in_flight: u32,
        now: Instant,
    ) -> Option<News> {
        if let Some(looking) = &mut self.looking {
            match looking.try_recv() {
                Ok((findings, eyes, cost)) => {
                    self.looking = None;
                    self.paid_until = self.paid_until.max(now) + cost * COST_BUSY;
                    self.found(findings, eyes, now);
                }
                Err(oneshot::error::TryRecvError::Empty) => {}
                // It panicked; another look may fare better.
                Err(oneshot::error::TryRecvError::Closed) => self.looking = None,
            }
        }
        let changed = self.looked_with.as_ref().is_none_or(|(with, of)| {
            *of != child
                || (!Arc::ptr_eq(with, config)
                    && (with.discovery != config.discovery
                        || with.backend.profile != config.backend.profile))
        });
        if changed {
            self.configure(config);
            self.next_look = now;
            self.paid_until = now;
        }
        let may_look = self.paid_until <= now + LOOKS_AHEAD;
        if self.looking.is_none() && now >= self.next_look && may_look {
            self.looked_with = Some((config.clone(), child));
            let findings = self.findings.as_ref();
            let before = Before {
                owner: findings.and_then(|findings| Some(findings.process.as_ref().ok()?.pid)),
                overlap: self.eyes.overlap(),
            };
            self.looking = Some(spawn_look(&self.address, config, child, before));
            self.next_look = now + LOOK;
        }
        self.read_queue(config, in_flight, now);
        self.read_gauges(in_flight > 0, now);
        self.news()
    }

    /// The configuration is another one: what it says holds at once, what it said no longer.
    fn configure(&mut self, config: &Config) {
        self.told = None;
        match config.discovery.slots {
            0 if self
                .slots
                .as_ref()
                .is_some_and(|known| known.source == Source::Configured) =>
            {
                self.slots = None;
            }
            0 => {}
            count => {
                self.slots = Some(Slots {
                    count,
                    source: Source::Configured,
                    because: "discovery.slots".to_owned(),
                });
            }
        }
    }

    fn read_queue(&mut self, config: &Config, in_flight: u32, now: Instant) {
        if !config.discovery.accept_queue {
            self.queued = None;
            return;
        }
        let busy = in_flight > 0;
        // Load that begins is looked at at once.
        let begins = busy && !self.busy;
        self.busy = busy;
        if now < self.next_queue && !begins {
            return;
        }
        let before = clock::thread_cpu();
        match self.eyes.accept_queue() {
            Ok(queued) => self.queued = queued,
            Err(_) => {
                self.queued = None;
                self.look_soon(now);
            }
        }
        let cost = clock::thread_cpu().saturating_sub(before);
        self.next_queue = now + pause(Duration::ZERO, GAUGES_IDLE, busy, cost);
        if let Some(queued) = self.queued.filter(|_| self.queue_matters()) {
            self.learned.note(in_flight, queued);
        }
    }

    fn read_gauges(&mut self, busy: bool, now: Instant) {
        if now < self.next_gauges {
            self.read_memory(busy, now);
            return;
        }
        let before = clock::thread_cpu();
        self.gauges = self.eyes.gauges(now).unwrap_or_default();
        let changed = self.eyes.workers_changed(&self.gauges.processes);
        let cost = clock::thread_cpu().saturating_sub(before);
        self.next_gauges = now + pause(GAUGES_BUSY, GAUGES_IDLE, busy, cost);
        if changed || !self.eyes.owner_lives() {
            self.look_soon(now);
        }
    }

    /// Memory under load is read as often as requests in flight are: what a request needs is learned from both
    /// at the same moment.
    fn read_memory(&mut self, busy: bool, now: Instant) {
        if !busy || now < self.next_memory || self.gauges.memory.is_none() {
            return;
        }
        let before = clock::thread_cpu();
        self.eyes.refresh_memory(&mut self.gauges);
        let cost = clock::thread_cpu().saturating_sub(before);
        self.next_memory = now + pause(Duration::ZERO, GAUGES_IDLE, busy, cost);
    }

    fn look_soon(&mut self, now: Instant) {
        let earliest = self.looked.map_or(now, |looked| looked + LOOK_AGAIN);
        self.next_look = self.next_look.min(earliest.max(now));
    }

    fn found(&mut self, findings: Findings, mut eyes: Eyes, now: Instant) {
        let before = self.findings.take();
        let same =
            |of: fn(&Findings) -> Option<u32>| before.as_deref().and_then(of) == of(&findings);
        if !same(|findings| Some(findings.process.as_ref().ok()?.pid)) {
            self.learned = Learned::default();
        }
        eyes.continue_from(std::mem::take(&mut self.eyes));
        self.eyes = eyes;
        self.looked = Some(now);
        if findings.listener.is_err() && self.eyes.is_here() {
            self.next_look = self.next_look.min(now + LOOK_MISSING);
        }
        self.settle_slots(findings.slots(), now);
        let crew = Crew::of(&findings);
        if crew != self.crew {
            self.crew = crew;
            self.told = None;
        }
        self.findings = Some(Arc::new(findings));
    }

    /// More slots are believed at once, fewer when they stay fewer.
    fn settle_slots(&mut self, seen: Option<Slots>, now: Instant) {
        let patience = match (&self.slots, &seen) {
            // What the configuration says, or said, is not a matter of patience.
            (Some(known), _) if known.source == Source::Configured => Duration::ZERO,
            (Some(known), Some(seen))
                if seen.count < known.count && seen.source != Source::Configured =>
            {
                CONFIRM
            }
            (Some(_), None) => CONFIRM_NONE,
            _ => Duration::ZERO,
        };
        let since = *self.fewer_since.get_or_insert(now);
        if now.saturating_duration_since(since) < patience {
            self.next_look = self.next_look.min(since + patience);
            return;
        }
        self.fewer_since = None;
        if self.slots == seen {
            return;
        }
        match &seen {
            Some(slots) => tracing::info!(
                endpoint = %self.address,
                slots = slots.count,
                source = slots.source.as_str(),
                because = slots.because,
                "the backend's slots are known"
            ),
            None => tracing::info!(
                endpoint = %self.address,
                "the backend's slots are not known: the limit goes by what is measured"
            ),
        }
        self.slots = seen;
    }

    /// The slots in force: those that were found, or those that were learned.
    fn slots_in_force(&self) -> Option<Slots> {
        self.slots.clone().or_else(|| {
            let count = self.learned.slots().filter(|_| !self.is_quick)?;
            Some(Slots {
                count,
                source: Source::Learned,
                because: "so many were accepted while others waited".to_owned(),
            })
        })
    }

    /// Whether a wait in the accept queue matters, and can be seen there.
    fn queue_matters(&self) -> bool {
        self.queue_is_telling() && !self.is_quick
    }

    /// Whether the accept queue says something of load.
    fn queue_is_telling(&self) -> bool {
        let Some(findings) = &self.findings else {
            return false;
        };
        let accepts = match findings.accepts {
            Accepts::Unknown => accepts(self.answers_as),
            known => known,
        };
        accepts != Accepts::Eagerly
    }

    fn news(&mut self) -> Option<News> {
        let slots = self.slots_in_force().map(|slots| slots.count);
        let readings = Readings {
            slots,
            accept_queue: self.queued.filter(|_| self.queue_matters()),
            cpu: self.gauges.cpu,
            memory: self.gauges.memory,
        };
        let server = self.findings.as_ref();
        let server = server.and_then(|findings| findings.ladder.server.as_ref());
        let profile = server.map(|server| server.profile);
        if self.told == Some((readings, profile)) {
            return None;
        }
        self.told = Some((readings, profile));
        let first_slots = slots.filter(|_| !self.knew_slots);
        self.knew_slots |= slots.is_some();
        Some(News {
            readings,
            first_slots,
            profile,
            crew: self.crew.clone(),
        })
    }

    fn sight(&self) -> Sight {
        let slots = self.slots_in_force();
        Sight {
            signals: Signals {
                accept_queue: self.queued.is_some() && self.queue_is_telling(),
                cpu: self.gauges.cpu.is_some(),
                memory: self.gauges.memory.is_some(),
                psi: self.gauges.stalls,
                slots: slots.is_some(),
            },
            accept_queue: self.queued,
            cpu_ratio: self.gauges.cpu.map(|cpu| cpu.utilisation),
            memory_bytes: self.gauges.memory_used,
            memory_limit_bytes: self.gauges.memory_limit,
            document: self.document(slots),
        }
    }

    /// For `/status`.
    fn document(&self, slots: Option<Slots>) -> Value {
        let Some(findings) = &self.findings else {
            return Value::Null;
        };
        let server = findings
            .ladder
            .server
            .as_ref()
            .map(|server| json!({ "name": server.name, "recognised_by": server.how }));
        let source = |source: &Result<String, String>| match source {
            Ok(source) => (Some(source.clone()), None),
            Err(why) => (None, Some(why.clone())),
        };
        let (cpu_source, cpu_missing) = source(&findings.cpu);
        let (memory_source, memory_missing) = source(&findings.memory);
        // Everybody may read it.
        let process = findings.process.as_ref().ok().map(|process| {
            json!({
                "pid": process.pid,
                "command": in_one_line(&hide_secrets(&process.command)),
            })
        });
        json!({
            "profile": findings.profile.as_str(),
            "server": server,
            "process": process,
            "slots": slots.map(|slots| json!({
                "count": slots.count,
                "source": slots.source.as_str(),
                "because": slots.because,
            })),
            "sources": findings.ladder.rungs.iter().map(|rung| json!({
                "source": rung.source.as_str(),
                "slots": rung.outcome.as_ref().ok().map(|count| count.slots),
                "says": match &rung.outcome {
                    Ok(count) => &count.because,
                    Err(why) => why,
                },
            })).collect::<Vec<_>>(),
            "accept_queue": {
                "queued": self.queued,
                "telling": self.queue_is_telling(),
                "source": findings.listener.as_ref().ok().map(|listener| listener.via),
                "missing": findings.listener.as_ref().err(),
            },
            "cpu": {
                "source": cpu_source,
                "missing": cpu_missing,
                "utilisation": self.gauges.cpu.map(|cpu| cpu.utilisation),
                "cores": self.gauges.cpu.map(|cpu| cpu.cores),
                "throttled": self.gauges.cpu.map(|cpu| cpu.throttled),
                "run_delay": self.gauges.cpu.map(|cpu| cpu.run_delay),
                "waiting": self.gauges.cpu.map(|cpu| cpu.waiting),
                "pressure": self.gauges.cpu.map(|cpu| cpu.pressure),
                "pinned": self.gauges.cpu.map(|cpu| cpu.pinned),
            },
            "memory": {
                "source": memory_source,
                "missing": memory_missing,
                "used_bytes": self.gauges.memory_used,
                "limit_bytes": self.gauges.memory_limit,
                "pressure": self.gauges.memory.map(|memory| memory.pressure),
                "hits": self.gauges.memory.map(|memory| memory.hits),
                "kills": self.gauges.memory.map(|memory| memory.kills),
            },
        })
    }
}

/// Until the next reading, given what this one cost.
fn pause(often: Duration, seldom: Duration, busy: bool, cost: Duration) -> Duration {
    if busy {
        often.max(cost * COST_BUSY)
    } else {
        seldom.max(cost * COST_IDLE)
    }
}

#[cfg(test)]
mod tests;

//! What holds the throughput where it is, and what one more of anything would bring. Pure.

use super::{
    knee::{self, Knee},
    step::{Step, Usage},
    sweep::End,
};

/// CPU that is used or waited for, of the CPU there is: beyond this it is all used.
const FULL: f64 = 0.85;
/// Cores that one process uses or waits for: beyond this it has a core to itself and no more.
const PINNED: f64 = 0.8;
/// Cores that it must also have used for that, or would have on a quiet machine: on a busy machine, even a
/// process that mostly sleeps waits long for a core.
const BUSY: f64 = 0.6;
/// A single process that does many requests at once, and wants this much of a core, has no more to
/// give: its one loop or its one lock is what they wait for.
const HALF: f64 = 0.5;
/// With so many times as many requests in parallel as there are workers, a worker does several at once.
const SHARED: f64 = 1.5;
/// How far the measured parallelism may be from the number of slots to be explained by it.
const SAME: f64 = 0.35;
/// A share of the memory that counts as nearly all of it.
const MEMORY_FULL: f64 = 0.85;
/// On the average so many connections wait to be accepted: all workers are busy.
const WAITING: f64 = 0.5;

/// What more requests in parallel would need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binds {
    /// Every worker or thread holds a request.
    Workers,
    /// Every core that the backend may use is busy.
    Cpu,
    /// Each process runs Python on one core at a time.
    Gil,
    /// There is no room for another request in memory.
    Memory,
    /// Requests wait for something behind the backend that serves only so many at once.
    Downstream,
    /// Most requests fail.
    Errors,
    /// Nothing, as far as it was measured.
    Nothing,
    /// Something that cannot be seen from here.
    Unknown,
}

impl Binds {
    /// As it is written in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::Cpu => "cpu",
            Self::Gil => "gil",
            Self::Memory => "memory",
            Self::Downstream => "downstream",
            Self::Errors => "errors",
            Self::Nothing => "nothing",
            Self::Unknown => "unknown",
        }
    }
}

/// All that the verdict rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// Where throughput stops growing.
    pub knee: Knee,
    /// Why the sweep ended.
    pub end: End,
    /// The most clients of a step that went well.
    pub clients: u32,
    /// The processes at the knee and beyond, on the average.
    pub loaded: Option<Usage>,
    /// Connections waiting to be accepted beyond the knee, on the average.
    pub accept_queue: Option<f64>,
    /// The most memory that was used, over what may be used.
    pub memory_share: Option<f64>,
    /// Requests in parallel that the backend is known to have room for.
    pub slots: Option<u32>,
    /// Whether the backend is known to take any number of requests at once.
    pub unbounded: bool,
    /// Endpoints that share the requests; of more than one nothing else is known.
    pub endpoints: usize,
    /// Cores that the backend may use.
    pub cores: Option<f64>,
    /// CPU seconds of one request.
    pub cpu_per_request: Option<f64>,
    /// Cores that the backend would use at its best if nobody else wanted them.
    pub quiet_cores: Option<f64>,
    /// Throughput of one request at a time.
    pub single: f64,
}

/// What the backend has, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowed {
    /// Requests in parallel that it has room for.
    pub slots: Option<u32>,
    /// Whether it is known to take any number of requests at once.
    pub unbounded: bool,
    /// Cores.
    pub cores: Option<f64>,
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Endpoints that share the requests.
    pub endpoints: usize,
}

/// Gathers what the steps say.
pub fn evidence(steps: &[Step], knee: Knee, end: End, allowed: Allowed) -> Evidence {
    let loaded: Vec<&Step> = steps.iter().filter(|s| s.clients >= knee.clients).collect();
    let beyond = loaded.iter().filter(|s| s.clients > knee.clients);
    let queues: Vec<f64> = beyond.filter_map(|step| step.accept_queue).collect();
    let usages: Vec<&Usage> = loaded.iter().filter_map(|s| s.usage.as_ref()).collect();
    let mean = |of: fn(&Usage) -> f64| {
        usages.iter().map(|usage| of(usage)).sum::<f64>() / usages.len().max(1) as f64
    };
    let most = |of: fn(&Usage) -> u32| usages.iter().map(|u| of(u)).max().unwrap_or(0);
    let usage = (!usages.is_empty()).then(|| Usage {
        cores: mean(|u| u.cores),
        wanted: mean(|u| u.wanted),
        workers: most(|u| u.workers),
        per_worker: mean(|u| u.per_worker),
        threads: most(|u| u.threads),
    });
    let worked: f64 = loaded.iter().map(|s| s.throughput()).sum();
    let memory = steps.iter().filter_map(|step| step.memory).max();
    let cpu_per_request = usage.as_ref().and_then(|usage| {
        let each = usage.cores * usages.len() as f64 / worked;
        (each.is_finite() && each > 0.0).then_some(each)
    });
    let alone = knee::alone(steps);
    // Latency without load, less the time in which others had the core.
    let quiet = alone.and_then(|(rate, step)| {
        let delayed = step.usage.as_ref().map_or(0.0, |u| u.wanted - u.cores);
        Some((1.0 / rate - delayed / step.throughput()).max(cpu_per_request?))
    });
    Evidence {
        knee,
        end,
        clients: knee::most_clients(steps),
        quiet_cores: quiet
            .zip(cpu_per_request)
            .map(|(latency, cpu)| knee.equivalent * cpu / latency),
        cpu_per_request,
        loaded: usage,
        accept_queue: (!queues.is_empty())
            .then(|| queues.iter().sum::<f64>() / queues.len() as f64),
        memory_share: memory
            .zip(allowed.memory)
            .map(|(used, limit)| used as f64 / (limit as f64).max(1.0)),
        slots: allowed.slots,
        unbounded: allowed.unbounded,
        endpoints: allowed.endpoints,
        cores: allowed.cores,
        single: alone.map_or(0.0, |(rate, _)| rate),
    }
}

impl Evidence {
    /// Whether each worker has a core to itself, and uses all of it.
    pub(super) fn pinned(&self) -> bool {
        let quiet = self.quiet_cores.unwrap_or(0.0);
        self.loaded.as_ref().is_some_and(|usage| {
            let workers = f64::from(usage.workers.max(1));
            usage.per_worker >= PINNED && usage.cores.max(quiet) / workers >= BUSY
        })
    }

    /// Whether all the CPU that the backend may use is used, or would be if others did not have it.
    fn full(&self) -> bool {
        let quiet = self.quiet_cores.unwrap_or(0.0);
        let computes = quiet >= BUSY * self.knee.equivalent.max(1.0);
        self.loaded
            .as_ref()
            .zip(self.cores)
            .is_some_and(|(usage, cores)| {
                usage.wanted >= FULL * cores
                    && (usage.cores.max(quiet) >= BUSY * cores || computes)
                    && f64::from(usage.workers) >= 0.75 * cores
            })
    }
}

/// What binds.
pub fn binds(evidence: &Evidence) -> Binds {
    let parallel = evidence.knee.equivalent;
    let queued = evidence.accept_queue.is_some_and(|queue| queue >= WAITING);
    if evidence.end == End::Memory
        || evidence
            .memory_share
            .is_some_and(|share| share >= MEMORY_FULL)
    {
        return Binds::Memory;
    }
    if evidence.full() {
        return Binds::Cpu;
    }
    let workers = |usage: &Usage| f64::from(usage.workers.max(1));
    if let (Some(usage), true) = (&evidence.loaded, evidence.pinned()) {
        // A worker with one thread that pins its core is just busy.
        let shares = parallel > SHARED * workers(usage);
        return if usage.threads > 1 || shares {
            Binds::Gil
        } else {
            Binds::Workers
        };
    }
    if evidence.end == End::Errors {
        return Binds::Errors;
    }
    let same = |slots: f64| (parallel / slots - 1.0).abs() <= SAME;
    let known = evidence.slots.map(f64::from);
    if !evidence.knee.reached {
        // With as many clients as there are slots it has nothing to grow into.
        return match known {
            Some(slots) if same(slots) && f64::from(evidence.clients) >= slots => Binds::Workers,
            _ => Binds::Nothing,
        };
    }
    match known {
        Some(slots) if same(slots) => return Binds::Workers,
        // There would have been room for more.
        Some(slots) if parallel < slots && !queued => return Binds::Downstream,
        _ => {}
    }
    let Some(usage) = &evidence.loaded else {
        return if queued {
            Binds::Workers
        } else {
            Binds::Unknown
        };
    };
    if evidence.unbounded {
        // Its threads are as many as its requests, and its backlog is long when it has no time to accept.
        return if usage.wanted >= HALF * workers(usage) {
            Binds::Gil
        } else {
            Binds::Downstream
        };
    }
    // In some servers each thread works, in others one of them only listens.
    let threads = f64::from(usage.threads.max(1));
    let explained = [1.0, threads - 1.0, threads]
        .into_iter()
        .map(|threads| threads * workers(usage))
        .any(same);
    if explained {
        return Binds::Workers;
    }
    let shares = parallel > SHARED * workers(usage);
    match queued {
        _ if shares && usage.wanted >= HALF * workers(usage) => Binds::Gil,
        true => Binds::Workers,
        false => Binds::Downstream,
    }
}

/// What one more of something would bring, in requests a second; None when it cannot be said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OneMore {
    /// One more worker process.
    pub worker: Option<f64>,
    /// One more thread in each worker.
    pub thread: Option<f64>,
    /// One more core.
    pub core: Option<f64>,
}

/// See [`OneMore`].
pub fn one_more(evidence: &Evidence, binds: Binds) -> OneMore {
    let best = evidence.knee.most;
    let workers = evidence
        .loaded
        .as_ref()
        .map_or(1.0, |usage| f64::from(usage.workers.max(1)));
    // What all cores together could do, if nothing else held them.
    let ceiling = evidence
        .cores
        .zip(evidence.cpu_per_request)
        .map(|(cores, each)| cores / each);
    let capped = |gain: f64| ceiling.map_or(gain, |ceiling| gain.min((ceiling - best).max(0.0)));
    let nothing = OneMore {
        worker: Some(0.0),
        thread: Some(0.0),
        core: Some(0.0),
    };
    match binds {
        Binds::Workers => {
            OneMore {
                worker: Some(capped(best / workers)),
                // A thread shares the core that its worker has used up already.
                thread: Some(if evidence.pinned() {
                    0.0
                } else {
                    capped(evidence.single * workers)
                }),
                core: Some(0.0),
            }
        }
        Binds::Gil => OneMore {
            worker: Some(capped(best / workers)),
            ..nothing
        },
        Binds::Cpu => OneMore {
            core: evidence.cores.map(|cores| best / cores.max(1.0)),
            ..nothing
        },
        Binds::Downstream | Binds::Memory => nothing,
        Binds::Nothing | Binds::Errors | Binds::Unknown => OneMore::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(workers: u32, threads: u32, cores: f64, wanted: f64) -> Usage {
        Usage {
            cores,
            wanted,
            workers,
            per_worker: wanted / f64::from(workers),
            threads,
        }
    }

    fn seen(parallel: f64, loaded: Usage, queue: f64) -> Evidence {
        Evidence {
            knee: Knee {
                clients: parallel.round() as u32,
                throughput: 20.0 * parallel,
                p50: Some(0.05),
                equivalent: parallel,
                most: 20.0 * parallel,
                reached: true,
            },
            end: End::Past,
            clients: 2 * parallel.round() as u32,
            cpu_per_request: Some(loaded.cores / (20.0 * parallel)),
            quiet_cores: Some(loaded.cores),
            loaded: Some(loaded),
            accept_queue: Some(queue),
            memory_share: Some(0.3),
            slots: None,
            unbounded: false,
            endpoints: 1,
            cores: Some(4.0),
            single: 20.0,
        }
    }

    fn close(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 1e-6)
    }

    #[test]
    fn waiting_workers_that_are_all_taken() {
        let evidence = seen(4.0, usage(4, 1, 0.2, 0.2), 3.0);
        assert_eq!(binds(&evidence), Binds::Workers);
        let more = one_more(&evidence, Binds::Workers);
        assert!(close(more.worker, 20.0) && close(more.thread, 80.0) && close(more.core, 0.0));
        // Threads take connections before they have time for them: no queue.
        for evidence in [
            seen(8.2, usage(2, 5, 0.3, 0.3), 0.0),
            seen(4.0, usage(1, 5, 0.2, 0.2), 0.0),
            seen(4.0, usage(1, 4, 0.2, 0.2), 0.0),
        ] {
            assert_eq!(binds(&evidence), Binds::Workers, "{evidence:?}");
        }
    }

    #[test]
    fn threads_that_share_one_core_are_held_by_the_gil() {
        let evidence = seen(1.1, usage(1, 5, 0.95, 1.0), 0.0);
        assert_eq!(binds(&evidence), Binds::Gil);
        let more = one_more(&evidence, Binds::Gil);
        assert!(close(more.worker, 22.0) && close(more.thread, 0.0) && close(more.core, 0.0));
        // Greenlets: one thread, but many requests.
        assert_eq!(binds(&seen(40.0, usage(1, 1, 0.9, 0.95), 0.0)), Binds::Gil);
        // One request at a time: the worker is busy, and there are cores for another.
        let evidence = seen(1.0, usage(1, 1, 0.95, 1.0), 2.0);
        assert_eq!(binds(&evidence), Binds::Workers);
        let more = one_more(&evidence, Binds::Workers);
        assert!(close(more.worker, 20.0) && close(more.thread, 0.0));
    }

    #[test]
    fn on_a_busy_machine_waiting_for_a_core_is_not_work() {
        // Four sleeping threads, each of which waits long for a core when it wakes.
        let sleepers = Evidence {
            quiet_cores: Some(0.1),
            ..seen(4.3, usage(1, 5, 0.08, 1.2), 0.0)
        };
        assert_eq!(binds(&sleepers), Binds::Workers);
        // One that computes all the time, and gets a quarter of a core.
        let computing = Evidence {
            quiet_cores: Some(0.9),
            ..seen(1.2, usage(1, 1, 0.22, 0.98), 2.0)
        };
        assert_eq!(binds(&computing), Binds::Workers);
        assert!(computing.pinned() && !sleepers.pinned());
        // Four that compute, of which others on the machine leave hardly one running.
        let crowded = Evidence {
            quiet_cores: Some(1.0),
            cores: Some(2.0),
            slots: Some(4),
            ..seen(1.1, usage(4, 1, 0.7, 2.6), 0.2)
        };
        assert_eq!(binds(&crowded), Binds::Cpu);
        let threaded = Evidence {
            unbounded: true,
            ..seen(68.0, usage(1, 69, 0.4, 0.7), 10.0)
        };
        assert_eq!(binds(&threaded), Binds::Gil);
        // A thread for each request, all of them held up by the one that accepts.
        let server = Evidence {
            quiet_cores: Some(0.45),
            ..seen(36.0, usage(1, 60, 0.4, 0.7), 30.0)
        };
        assert_eq!(binds(&server), Binds::Gil);
    }

    #[test]
    fn all_cores_busy_is_cpu() {
        let evidence = seen(4.0, usage(8, 1, 3.5, 7.0), 4.0);
        assert_eq!(binds(&evidence), Binds::Cpu);
        let more = one_more(&evidence, Binds::Cpu);
        assert!(close(more.core, 20.0) && close(more.worker, 0.0));
    }

    #[test]
    fn more_slots_than_parallelism_is_something_behind_them() {
        assert_eq!(
            binds(&seen(3.0, usage(1, 17, 0.1, 0.1), 0.0)),
            Binds::Downstream
        );
        assert_eq!(
            binds(&seen(3.0, usage(8, 1, 0.1, 0.1), 0.0)),
            Binds::Downstream
        );
    }

    #[test]
    fn slots_that_are_known_are_believed() {
        let known = |parallel, slots| Evidence {
            slots: Some(slots),
            ..seen(parallel, usage(2, 17, 0.1, 0.1), 0.0)
        };
        assert_eq!(binds(&known(7.6, 8)), Binds::Workers);
        assert_eq!(binds(&known(3.0, 8)), Binds::Downstream);
        // Also where it was not seen to end, unless there were fewer clients than slots.
        let until = |clients| {
            let known = known(6.1, 6);
            let knee = Knee {
                reached: false,
                ..known.knee
            };
            binds(&Evidence {
                knee,
                clients,
                ..known
            })
        };
        assert_eq!(until(8), Binds::Workers);
        assert_eq!(until(5), Binds::Nothing);
    }

    #[test]
    fn memory_errors_nothing_and_the_unseen() {
        let plain = seen(6.0, usage(1, 17, 0.1, 0.1), 0.0);
        let full = Evidence {
            memory_share: Some(0.9),
            ..plain.clone()
        };
        assert_eq!(binds(&full), Binds::Memory);
        let stopped = Evidence {
            end: End::Memory,
            ..plain.clone()
        };
        assert_eq!(binds(&stopped), Binds::Memory);
        let failing = Evidence {
            end: End::Errors,
            ..plain.clone()
        };
        assert_eq!(binds(&failing), Binds::Errors);
        let growing = Evidence {
            knee: Knee {
                reached: false,
                ..plain.knee
            },
            ..plain.clone()
        };
        assert_eq!(binds(&growing), Binds::Nothing);
        let blind = Evidence {
            loaded: None,
            accept_queue: None,
            ..plain
        };
        assert_eq!(binds(&blind), Binds::Unknown);
        assert_eq!(one_more(&blind, Binds::Unknown), OneMore::default());
    }
}

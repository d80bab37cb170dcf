//! Conclusions in words, and as configuration. Pure.

use std::fmt::Write as _;

use super::{
    binds::{Binds, Evidence, OneMore},
    knee::Knee,
    sweep::End,
};

/// `limit.max` where nothing else is said.
const DEFAULT_MAX: u32 = 1000;

/// The answer, in a sentence.
pub fn answer(knee: &Knee, binds: Binds) -> String {
    let requests = if knee.clients == 1 {
        "request"
    } else {
        "requests"
    };
    let latency = knee
        .p50
        .map(|p50| format!(" at a median of {}", seconds(p50)))
        .unwrap_or_default();
    let beyond = if binds == Binds::Memory {
        "memory has no room for more".to_owned()
    } else if !knee.reached && binds != Binds::Workers {
        "and more may be possible: it still grows".to_owned()
    } else if knee.most > 1.15 * knee.throughput {
        format!(
            "more bring up to {}, but each of them waits longer",
            rate(knee.most)
        )
    } else {
        "more only wait".to_owned()
    };
    format!(
        "{} {requests} in parallel, {} requests a second{latency}; {beyond}.",
        knee.clients,
        rate(knee.throughput)
    )
}

/// What binds, in a sentence.
pub fn because(binds: Binds, evidence: &Evidence) -> String {
    let usage = evidence.loaded.as_ref();
    let workers = usage.map_or(0, |usage| usage.workers);
    let plural = if workers == 1 { "" } else { "es" };
    let cores = usage.map_or(0.0, |usage| usage.cores);
    let allowed = evidence.cores.unwrap_or(0.0);
    match binds {
        Binds::Workers if evidence.pinned() => format!(
            "{workers} busy process{plural}, one request in each, and each keeps one core to itself."
        ),
        Binds::Workers => {
            let queue = match evidence.accept_queue {
                Some(queue) if queue >= 0.5 => format!(
                    " Beyond them {queue:.1} connections waited in the listen backlog, on the average, where nobody sees them."
                ),
                _ => " What is beyond them waits inside the server.".to_owned(),
            };
            let idle = if usage.is_some() {
                format!(" The CPU is idle ({cores:.2} of {allowed:.1} cores).")
            } else {
                String::new()
            };
            format!("Every worker or thread holds a request and waits with it.{idle}{queue}")
        }
        Binds::Cpu => format!(
            "All the CPU there is: the backend used {cores:.1} of {allowed:.1} cores and wanted {:.1}.",
            usage.map_or(0.0, |usage| usage.wanted)
        ),
        Binds::Gil => format!(
            "{workers} process{plural} with one core each: within one, only one thread runs Python at a time (the GIL), whatever their number."
        ),
        Binds::Memory => format!(
            "Memory: {:.0} % of the limit was in use, and another request needs more than is left.",
            evidence.memory_share.unwrap_or(0.0) * 100.0
        ),
        Binds::Downstream => format!(
            "Neither CPU ({cores:.2} of {allowed:.1} cores) nor threads: requests wait for something that serves {:.0} at a time, such as a connection pool, a lock or another service.",
            evidence.knee.equivalent
        ),
        Binds::Errors => "Most requests failed beyond this.".to_owned(),
        Binds::Nothing if evidence.end == End::Interrupted => {
            "Nothing yet: it was interrupted while throughput still grew.".to_owned()
        }
        Binds::Nothing if evidence.end == End::Slow => {
            "Nothing yet: throughput still grew when requests began to take too long for a step.".to_owned()
        }
        Binds::Nothing => "Nothing yet: throughput still grew at the last step. Raise --max-concurrency to go on.".to_owned(),
        Binds::Unknown if evidence.endpoints > 1 => format!(
            "{} endpoints share the requests; to learn what binds one of them, measure it by itself.",
            evidence.endpoints
        ),
        Binds::Unknown => "The backend's processes cannot be seen from here; run the probe on the same machine, as the same user, to learn why.".to_owned(),
    }
}

/// What one more of each would bring, a line for each that is known.
pub fn what_if(more: &OneMore) -> Vec<String> {
    let line = |name: &str, gain: Option<f64>| {
        let gain = gain?;
        Some(if gain < 0.05 {
            format!("one more {name}: nothing")
        } else {
            format!(
                "one more {name}: about {} requests a second more",
                rate(gain)
            )
        })
    };
    [
        line("worker", more.worker),
        line("thread in each worker", more.thread),
        line("core", more.core),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Limits for the configuration file, with a comment on where they come from.
pub fn recommended(knee: &Knee, binds: Binds, slots: Option<u32>, url: &str) -> String {
    let mut toml = String::new();
    let clients = knee.clients.max(1);
    // A comment must stay on its line, whatever the URL.
    let url: String = url.chars().filter(|c| !c.is_control()).collect();
    let _ = writeln!(
        toml,
        "# Measured with `tidegate probe --url {url}`: {clients} in parallel, {}/s.",
        rate(knee.throughput)
    );
    match binds {
        Binds::Workers => {
            // Where they are known, they are known better than by a stop-watch.
            let slots = slots.unwrap_or(clients);
            let _ = writeln!(toml, "[discovery]\nslots = {slots}");
            if slots > DEFAULT_MAX {
                let most = slots.saturating_add(1);
                let _ = writeln!(toml, "\n[limit]\nmax = {most}");
            }
        }
        Binds::Memory => {
            let _ = writeln!(toml, "[limit]\ninitial = {clients}\nmax = {clients}");
        }
        Binds::Nothing => {
            let _ = writeln!(
                toml,
                "# It still grew: this is where to start, not where to end.\n[limit]\ninitial = {clients}"
            );
            if clients > DEFAULT_MAX {
                let _ = writeln!(toml, "max = {}", clients.saturating_mul(2));
            }
        }
        _ => {
            let _ = writeln!(
                toml,
                "[limit]\ninitial = {clients}\nmax = {}",
                clients.saturating_mul(2)
            );
        }
    }
    toml
}

/// Three significant digits.
pub(super) fn rate(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A latency for people.
pub(super) fn seconds(value: f64) -> String {
    match value * 1000.0 {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1000.0),
        ms if ms >= 99.95 => format!("{ms:.0} ms"),
        ms => format!("{ms:.1} ms"),
    }
}

/// A size for people.
pub(super) fn size(bytes: f64) -> String {
    let mib = bytes / 1024.0 / 1024.0;
    match mib {
        mib if mib >= 10_240.0 => format!("{:.1} GiB", mib / 1024.0),
        mib if mib >= 99.95 => format!("{mib:.0} MiB"),
        mib => format!("{mib:.1} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Config, Sources, load};
    use crate::probe::binds::{self, Allowed};

    const KNEE: Knee = Knee {
        clients: 4,
        throughput: 78.24,
        p50: Some(0.0512),
        equivalent: 3.97,
        most: 79.1,
        reached: true,
    };

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [rate(1234.5), rate(78.24), rate(3.456)],
            ["1234", "78.2", "3.46"]
        );
        assert_eq!(
            [seconds(0.0512), seconds(0.5), seconds(12.3)],
            ["51.2 ms", "500 ms", "12.3 s"]
        );
        assert_eq!(
            [size(1e6), size(5e8), size(2e10)],
            ["1.0 MiB", "477 MiB", "18.6 GiB"]
        );
    }

    #[test]
    fn the_answer_is_a_sentence() {
        assert_eq!(
            answer(&KNEE, Binds::Workers),
            "4 requests in parallel, 78.2 requests a second at a median of 51.2 ms; more only wait."
        );
        let soft = Knee {
            most: 120.0,
            ..KNEE
        };
        assert!(
            answer(&soft, Binds::Cpu)
                .ends_with("; more bring up to 120, but each of them waits longer.")
        );
        let growing = Knee {
            clients: 1,
            reached: false,
            p50: None,
            ..KNEE
        };
        assert_eq!(
            answer(&growing, Binds::Nothing),
            "1 request in parallel, 78.2 requests a second; and more may be possible: it still grows."
        );
    }

    #[test]
    fn who_interrupts_it_has_not_chosen_too_few_clients() {
        let nothing = |end| {
            let knee = Knee {
                reached: false,
                ..KNEE
            };
            let evidence = binds::evidence(&[], knee, end, Allowed::default());
            because(Binds::Nothing, &evidence)
        };
        assert!(nothing(End::Bound).contains("--max-concurrency"));
        assert!(!nothing(End::Interrupted).contains("--max-concurrency"));
        assert!(!nothing(End::Slow).contains("--max-concurrency"));
        let all_taken = Knee {
            reached: false,
            ..KNEE
        };
        assert!(answer(&all_taken, Binds::Workers).ends_with("; more only wait."));
    }

    #[test]
    fn gains_are_told_and_so_is_their_absence() {
        let more = OneMore {
            worker: Some(19.6),
            thread: Some(0.0),
            core: None,
        };
        assert_eq!(
            what_if(&more),
            [
                "one more worker: about 19.6 requests a second more",
                "one more thread in each worker: nothing"
            ]
        );
        assert!(what_if(&OneMore::default()).is_empty());
    }

    /// What a file with this text configures, or none.
    fn read(toml: Option<&str>) -> Arc<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        let sources = Sources {
            file: toml.map(|toml| {
                std::fs::write(&file, toml).unwrap();
                file.clone()
            }),
            ..Sources::default()
        };
        let loaded = load(&sources).unwrap_or_else(|problem| panic!("{toml:?}: {problem}"));
        loaded.config
    }

    #[test]
    fn the_recommendation_is_a_valid_configuration() {
        assert_eq!(read(None).limit.max, DEFAULT_MAX);
        for binds in [
            Binds::Workers,
            Binds::Cpu,
            Binds::Gil,
            Binds::Memory,
            Binds::Downstream,
            Binds::Errors,
            Binds::Nothing,
            Binds::Unknown,
        ] {
            for clients in [4, DEFAULT_MAX, 1500] {
                let knee = Knee { clients, ..KNEE };
                let toml = recommended(&knee, binds, None, "http://127.0.0.1:8000/\n[x]");
                let config = read(Some(&toml));
                let (limit, slots) = (config.limit.initial, config.discovery.slots);
                assert_eq!(limit.max(slots), clients, "{toml}");
                assert!(config.limit.max >= clients, "{toml}");
            }
        }
    }
}

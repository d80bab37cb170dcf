//! Conclusions: one sentence, what can be read, what could be better. Pure.

use super::{Manners, Recognised, Refusal, Signal};
use crate::{
    config::{Address, Discovery, Profile, format_size},
    sense::{Accepts, Crew, Findings, Gauges, Server, Slots, Source},
};

/// All that a conclusion may rest on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'a> {
    pub(super) endpoint: &'a Address,
    /// What tidegate was told of it.
    pub(super) given: &'a Discovery,
    pub(super) findings: &'a Findings,
    pub(super) gauges: &'a Gauges,
    pub(super) manners: &'a Manners,
    pub(super) server: Option<&'a Recognised>,
    pub(super) profile: Profile,
}

impl Evidence<'_> {
    fn name(&self) -> &str {
        self.server
            .map_or("A server that is not known", |server| &server.name)
    }

    /// Whether tidegate can choose among its workers: see `docs/backends.md`.
    pub(super) fn is_steered(&self) -> bool {
        self.profile == Profile::GunicornGthread && Crew::of(self.findings).is_some()
    }

    fn backlog(&self) -> Option<u32> {
        self.findings.listener.as_ref().ok()?.backlog
    }

    /// Whether the server is known to have no slots that could be counted.
    pub(super) fn is_unbounded(&self) -> bool {
        let server = self.findings.ladder.server.as_ref();
        server.is_some_and(Server::is_unbounded) && self.findings.slots().is_none()
    }

    /// Whether requests beyond the slots wait in the backlog.
    fn accepts(&self) -> Accepts {
        match self.findings.accepts {
            Accepts::Unknown if super::known::accepts_eagerly(self.server) => Accepts::Eagerly,
            Accepts::Unknown => crate::sense::server::accepts(self.profile),
            known => known,
        }
    }
}

/// The verdict.
pub(super) fn sentence(evidence: &Evidence<'_>) -> String {
    if evidence.manners.head.is_none() {
        match &evidence.manners.refusal {
            Some(Refusal::Denied) => {
                return format!(
                    "This user may not connect to {}: permission denied. It has to be allowed to write to the socket file, and to enter the directories above it.",
                    evidence.endpoint
                );
            }
            Some(Refusal::Other(why)) => {
                return format!("Cannot connect to {}: {why}.", evidence.endpoint);
            }
            Some(Refusal::Absent | Refusal::Slow) | None => {}
        }
        let there = evidence.findings.listener.is_ok()
            || evidence
                .manners
                .asked
                .first()
                .is_some_and(|asked| asked.answer != super::Answer::Unreachable);
        return if there {
            format!(
                "{} accepts connections but did not answer a request: all of its workers may be busy, or it speaks neither HTTP nor uWSGI's protocol.",
                evidence.endpoint
            )
        } else {
            format!("Nothing listens at {}.", evidence.endpoint)
        };
    }
    let name = evidence.name();
    if let Some(Slots { count, because, .. }) = evidence.findings.slots() {
        let plural = if count == 1 { "request" } else { "requests" };
        let beyond = match (evidence.accepts(), evidence.backlog()) {
            (Accepts::WhenIdle, Some(backlog)) => {
                format!("waits in a backlog of {backlog} that no one sees")
            }
            (Accepts::WhenIdle, None) => {
                "waits in the listen backlog, where no one sees it".to_owned()
            }
            (Accepts::Eagerly, _) => "waits inside the server, where no one sees it".to_owned(),
            (Accepts::Unknown, _) => "waits, in the listen backlog or inside the server".to_owned(),
        };
        return format!(
            "{name}, {because}: {count} {plural} in parallel; the {} {beyond}.",
            ordinal(count.saturating_add(1))
        );
    }
    let why = evidence
        .findings
        .ladder
        .server
        .as_ref()
        .and_then(|server| server.slots.as_ref().err());
    match why {
        Some(why) => format!("{name}: {why}; tidegate finds the limit by measuring."),
        None => format!(
            "{name}: how many requests it runs in parallel cannot be seen from here; tidegate finds the limit by measuring."
        ),
    }
}

fn ordinal(number: u32) -> String {
    const WORDS: [&str; 12] = [
        "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
        "tenth", "eleventh", "twelfth",
    ];
    match WORDS.get(number.saturating_sub(1) as usize) {
        Some(word) => (*word).to_owned(),
        None => {
            let ending = match (number % 100, number % 10) {
                (11..=13, _) => "th",
                (_, 1) => "st",
                (_, 2) => "nd",
                (_, 3) => "rd",
                _ => "th",
            };
            format!("{number}{ending}")
        }
    }
}

/// What tidegate can read here, and how to get the rest.
pub(super) fn signals(evidence: &Evidence<'_>) -> Vec<Signal> {
    const SAME_NETWORK: &str =
        "run tidegate where the backend listens: in its network namespace (a sidecar shares it)";
    const SAME_PIDS: &str = "let tidegate see its processes: the same user and PID namespace (in Kubernetes, shareProcessNamespace: true)";
    let findings = evidence.findings;
    let signal = |name, available, how: String| Signal {
        name,
        available,
        how,
    };
    let slots = match findings.slots() {
        Some(slots) => signal(
            "slots",
            true,
            format!(
                "{} by {} ({})",
                slots.count,
                slots.source.as_str(),
                slots.because
            ),
        ),
        None => {
            // The rungs that need no configuration; the other ones are ways to get there.
            let why = |wanted| {
                let rung = findings
                    .ladder
                    .rungs
                    .iter()
                    .find(|rung| rung.source == wanted)?;
                rung.outcome.as_ref().err()
            };
            let why = why(Source::Proc).map_or("no source knows them", String::as_str);
            let ways = if evidence.is_unbounded() {
                ""
            } else if evidence.server.is_some() && evidence.profile == Profile::Generic {
                "; set discovery.slots if you know them"
            } else {
                "; name gunicorn's control socket (discovery.gunicorn_control_socket) or uWSGI's stats server (discovery.uwsgi_stats), or set discovery.slots"
            };
            signal("slots", false, format!("{why}{ways}"))
        }
    };
    let queue = match &findings.listener {
        Ok(listener) => match (listener.queued, evidence.accepts()) {
            (Some(_), Accepts::Eagerly) => signal(
                "accept_queue",
                false,
                "it is readable, but says nothing: this server accepts more than it can work on".to_owned(),
            ),
            (Some(queued), _) => signal(
                "accept_queue",
                true,
                format!("{queued} waiting now, by {}", listener.via),
            ),
            (None, _) => signal(
                "accept_queue",
                false,
                "the kernel does not show it for this socket; a TCP socket on the loopback interface has one".to_owned(),
            ),
        },
        Err(why) => signal("accept_queue", false, format!("{why}; {SAME_NETWORK}")),
    };
    let cpu = match &findings.cpu {
        Ok(source) => signal("cpu", true, source.clone()),
        Err(why) => signal(
            "cpu",
            false,
            format!("{why}; {SAME_PIDS}, or name its cgroup with discovery.cgroup"),
        ),
    };
    let memory = match (&findings.memory, evidence.gauges.memory) {
        (Ok(source), Some(_)) => signal("memory", true, source.clone()),
        (Ok(source), None) => signal(
            "memory",
            false,
            format!("{source}, but no limit is known; give it one, or set discovery.memory_limit"),
        ),
        (Err(why), _) => signal(
            "memory",
            false,
            format!(
                "{why}; {SAME_PIDS}, and set discovery.memory_limit (in Kubernetes, by resourceFieldRef)"
            ),
        ),
    };
    let psi = if evidence.gauges.stalls {
        signal("psi", true, "pressure stall information".to_owned())
    } else {
        signal(
            "psi",
            false,
            "this kernel shows no pressure stall information of it (CONFIG_PSI, cgroup v2)"
                .to_owned(),
        )
    };
    vec![slots, queue, cpu, memory, psi]
}

/// What could be better.
pub(super) fn advice(evidence: &Evidence<'_>) -> Vec<String> {
    let mut advice = Vec::new();
    let slots = evidence.findings.slots().map(|slots| slots.count);
    let cores = evidence.gauges.cpu.map(|cpu| cpu.cores);
    let pinned = evidence.gauges.cpu.map_or(0, |cpu| cpu.pinned);
    match evidence.profile {
        Profile::GunicornSync if pinned > 0 => advice.push(format!(
            "Threads would not help: {pinned} of its processes keep one core each busy. More workers help as far as there are cores{}.",
            cores.map_or(String::new(), |cores| format!(" ({cores:.1} here)"))
        )),
        Profile::GunicornSync => advice.push(
            "For views that wait (for a database, for another service) threads are cheaper than workers: --worker-class gthread --threads N. For views that compute, only more workers help, and only as far as there are cores.".to_owned(),
        ),
        Profile::GunicornGthread => {
            if workers(evidence).is_some_and(|workers| workers > 1) && !evidence.is_steered() {
                advice.push(
                    "Each worker takes connections that it has no thread for, so a request may wait behind a busy worker while another is idle. One gunicorn with one worker for each socket, all of them in backend.endpoints, avoids that: tidegate then sends to the one with room.".to_owned(),
                );
            }
            if pinned > 0 {
                advice.push(format!(
                    "{pinned} of its processes keep one core each busy: more threads would only take turns (the GIL); more workers help as far as there are cores."
                ));
            }
        }
        Profile::GunicornGevent => advice.push(
            "It takes up to 1000 requests for each worker; one that computes holds up all others of its worker. The limit that tidegate finds is that of its CPU.".to_owned(),
        ),
        Profile::Uwsgi => {
            let silent = [evidence.manners.line_limit, evidence.manners.field_limit];
            let least = silent.into_iter().flatten().map(|(size, _)| size).min();
            if let Some(size) = least {
                advice.push(format!(
                    "A head of {size} bytes is dropped without an answer: --buffer-size {} takes larger ones.",
                    (2 * size).next_power_of_two().min(65_535)
                ));
            }
            advice.push(
                "--die-on-term kills requests in flight; --hook-master-start \"unix_signal:15 gracefully_kill_them_all\" lets them finish.".to_owned(),
            );
        }
        Profile::Waitress => advice.push(
            "It reads requests whole and buffers answers, so slow clients cost it no thread; --threads is the number of requests in parallel.".to_owned(),
        ),
        Profile::Werkzeug => advice.push(
            "This is Flask's development server. In production, gunicorn does the same with a bound and several processes.".to_owned(),
        ),
        Profile::ModWsgi => advice.push(
            "What waits for one of its daemons waits in Apache, for up to queue-timeout (45 s by default): a limit in front keeps that short.".to_owned(),
        ),
        Profile::Auto | Profile::Generic => guests(evidence, &mut advice),
    }
    if let (Some(slots), Some(cores), Profile::GunicornSync | Profile::Uwsgi) =
        (slots, cores, evidence.profile)
        && f64::from(slots) > 4.0 * cores + 1.0
    {
        advice.push(format!(
            "{slots} slots share {cores:.1} cores: fine if views wait most of the time, too many if they compute."
        ));
    }
    if let Some(limit) = evidence
        .gauges
        .memory_limit
        .filter(|_| keeps_memory(evidence))
    {
        let fewer = match evidence.profile {
            Profile::GunicornGthread => {
                " Over kept connections (backend.keepalive = true) fewer threads are used at all."
            }
            _ => "",
        };
        advice.push(format!(
            "Its allocator keeps what large requests have freed, for each thread by itself, and {} is all there is: MALLOC_TRIM_THRESHOLD_=131072 in its environment gives large blocks back at once, MALLOC_ARENA_MAX=2 lets its threads share the small ones.{fewer}",
            format_size(limit)
        ));
    }
    if evidence.backlog().is_some_and(|backlog| backlog < 16) {
        advice.push(format!(
            "Its backlog of {} is short: beyond it connections are dropped and tried again after a second. tidegate's limit keeps it from filling.",
            evidence.backlog().unwrap_or(0)
        ));
    }
    if let Some(super::Answer::Status(code @ 500..)) = evidence.manners.looked() {
        advice.push(format!(
            "GET / was answered with {code}: what is said of its habits may be those of an error page."
        ));
    }
    if evidence.manners.head.is_some() && evidence.manners.uwsgi {
        // What stands at the URL is tidegate, whose own processes say nothing.
        advice.push(format!(
            "To measure it, through tidegate with the configuration below: tidegate probe --url http://127.0.0.1:8080/ --backend {}",
            evidence.endpoint
        ));
    } else if evidence.manners.head.is_some() {
        advice.push(format!(
            "To measure it: tidegate probe --url {}",
            match evidence.endpoint {
                Address::Unix(path) => format!("unix:{}:/", path.display()),
                address => format!("http://{address}/"),
            }
        ));
    }
    advice
}

/// Of the servers that have no profile of their own.
fn guests(evidence: &Evidence<'_>, advice: &mut Vec<String>) {
    let is = |name| evidence.server.is_some_and(|server| server.is(name));
    if is("hypercorn") {
        advice.push(
            "Where an app's answer has no body (HEAD, 204, 304, OPTIONS), its WSGI adapter answers 500; a2wsgi's does not: hypercorn with an ASGI app that wraps yours.".to_owned(),
        );
    } else if is("bjoern") {
        advice.push(
            "One process runs one request at a time; for more, fork it after bjoern.listen(): all of them accept from the same backlog.".to_owned(),
        );
    } else if is("gevent.pywsgi") || is("eventlet") {
        advice.push(
            "A greenlet that computes holds up all others. The limit that tidegate finds is that of its CPU.".to_owned(),
        );
    }
}

/// Whether threads allocate by the GNU C library, and nothing has been said to it.
fn keeps_memory(evidence: &Evidence<'_>) -> bool {
    let Ok(process) = &evidence.findings.process else {
        return false;
    };
    let slots = evidence.findings.slots();
    let threads = slots.is_some_and(|slots| slots.because.contains("thread"));
    let told = |name: &String| name.starts_with("MALLOC_") || name == "GLIBC_TUNABLES";
    process.allocates_by_glibc && threads && !process.environment.keys().any(told)
}

/// Worker processes, where the number of slots says so.
fn workers(evidence: &Evidence<'_>) -> Option<u32> {
    let slots = evidence.findings.slots()?;
    let (first, rest) = slots.because.split_once(' ')?;
    rest.starts_with("workers").then(|| first.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_words_and_then_numbers() {
        let all = [1, 3, 12, 13, 21, 22, 23, 101, 111, 112].map(ordinal);
        assert_eq!(
            all,
            [
                "first", "third", "twelfth", "13th", "21st", "22nd", "23rd", "101st", "111th",
                "112th"
            ]
        );
    }
}

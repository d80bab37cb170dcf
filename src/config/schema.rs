//! Every key of the configuration, in one table.
//!
//! The parser, the "did you mean", the names of the environment variables, `tidegate config` and
//! the comparison of two configurations at a reload are all driven by [`KEYS`].

use std::time::Duration;

use super::check::{self, Check};

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number, from and to.
    Integer(u64, u64),
    /// `"auto"`, or a whole number, from and to.
    AutoOrInteger(u64, u64),
    /// One of a few numbers.
    Numbers(&'static [u64]),
    /// A number, from and to.
    Float(f64, f64),
    /// A string as `"5s"`, from and to.
    Duration(Duration, Duration),
    /// One of the words, or a duration.
    WordOrDuration(&'static [&'static str]),
    /// Bytes, or a string as `"64KiB"`, from and to.
    Size(u64, u64),
    /// One of the words.
    Enum(&'static [&'static str]),
    /// A string that passes the check.
    Text(Check),
    /// A list of strings that each pass the check.
    Texts(Check),
    /// An address to listen on, not a passed socket.
    Listen,
    /// At least one address to listen on.
    Listens,
    /// At least one address to connect to.
    Endpoints,
    /// A list of IP addresses and CIDRs.
    Networks,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted, as `limit.aimd.increase`; a key of `[[route]]` is `route.name`.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its default, as an environment variable would give it.
    pub default: &'static str,
    /// Does a reload change it without dropping a request?
    pub hot: bool,
    /// One sentence, with the unit.
    pub doc: &'static str,
}

impl Key {
    /// The table it is in: `limit.aimd` for `limit.aimd.increase`.
    pub fn section(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }

    /// The last part of its path.
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// Its default, as TOML.
    pub fn default_toml(&self) -> String {
        super::typed::default(self).to_string()
    }

    const fn hot(self) -> Key {
        Key { hot: true, ..self }
    }
}

/// The table of routes: its keys are per route, and come from the file only.
pub const ROUTE: &str = "route";

/// The keys of one route.
pub fn route_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.section() == ROUTE)
}

/// All keys but those of routes.
pub fn plain_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.section() != ROUTE)
}

/// The key with this dotted path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Is it the name of a table, as `limit` or `limit.aimd`?
pub fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.section() == path
            || key
                .section()
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// The names of all tables, each once, in the order of [`KEYS`].
pub fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = KEYS.iter().map(Key::section).collect();
    sections.dedup();
    sections
}

/// The environment variable of a key: `TIDEGATE_LIMIT__AIMD__INCREASE`.
pub fn env_name(path: &str) -> String {
    format!("TIDEGATE_{}", path.replace('.', "__").to_ascii_uppercase())
}

const fn key(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key {
        path,
        kind,
        default,
        hot: false,
        doc,
    }
}

const ZERO: Duration = Duration::ZERO;
/// A timeout of nothing would fail every request.
const TICK: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
/// No backend sustains more requests at once.
const MANY: u64 = 100_000;

/// Every key, in the order of the documentation.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("server.listen", Kind::Listens, "0.0.0.0:8080",
        "Where clients connect: host:port, :port, unix:/path or fd:NAME for socket activation."),
    key("server.threads", Kind::AutoOrInteger(1, 256), "1",
        "Data-plane threads; \"auto\" is one per core."),
    key("server.http2", Kind::Bool, "true",
        "Accept HTTP/2 with prior knowledge (h2c) beside HTTP/1.1."),
    key("server.max_connections", Kind::Integer(1, 1_000_000), "4096",
        "Client connections at once.").hot(),
    key("server.header_timeout", Kind::Duration(TICK, DAY), "15s",
        "How long a client may take for the whole request head.").hot(),
    key("server.body_timeout", Kind::Duration(TICK, DAY), "15s",
        "How far a request's body may be behind body_min_rate.").hot(),
    key("server.body_min_rate", Kind::Size(0, GIB), "500",
        "Bytes a second that a client must send while its body is waited for; with 0 it may pause for body_timeout.").hot(),
    key("server.write_timeout", Kind::Duration(TICK, DAY), "60s",
        "How long a client may take none of its response.").hot(),
    key("server.idle_timeout", Kind::Duration(TICK, DAY), "75s",
        "How long a client's connection is kept without a request.").hot(),
    key("server.max_header_bytes", Kind::Size(8 * KIB, 16 * KIB * KIB), "64KiB",
        "Bytes of a request head; a longer one is answered with 431, or 414 if it is the target."),
    key("server.max_body_bytes", Kind::Size(0, u64::MAX), "0",
        "Bytes of a request body, 0 = unlimited; a longer one is answered with 413.").hot(),
    key("server.proxy_protocol", Kind::Enum(&["off", "v1", "v2", "auto"]), "off",
        "The PROXY protocol that comes before a client's first request; with trusted_proxies, from those only."),

    key("admin.listen", Kind::Listen, "127.0.0.1:9180",
        "Where the admin server listens: metrics, status, dashboard."),
    key("admin.mutations", Kind::Enum(&["loopback", "off"]), "loopback",
        "Who may POST to the admin server."),

    key("backend.endpoints", Kind::Endpoints, "127.0.0.1:8000",
        "The workers' addresses: host:port or unix:/path; several have one limit each.").hot(),
    key("backend.profile", Kind::Enum(&["auto", "gunicorn-sync", "gunicorn-gthread", "gunicorn-gevent", "uwsgi", "mod_wsgi", "waitress", "werkzeug", "generic"]), "auto",
        "What the backend is, when it can't be found out."),
    key("backend.protocol", Kind::Enum(&["http", "uwsgi"]), "http",
        "What the backend speaks."),
    key("backend.keepalive", Kind::Bool, "false",
        "Reuse connections to the backend; for servers with an event loop, and for several gthread workers."),
    key("backend.keepalive_idle", Kind::Duration(ZERO, DAY), "1s",
        "How long an unused connection to the backend is kept; below the backend's own timeout."),
    key("backend.connect_timeout", Kind::Duration(TICK, DAY), "1s",
        "How long a connection to the backend may take.").hot(),
    key("backend.response_timeout", Kind::Duration(TICK, DAY), "60s",
        "How long the backend may take for the response head; then 504.").hot(),
    key("backend.read_timeout", Kind::Duration(TICK, DAY), "60s",
        "How long the backend may pause between bytes of a response.").hot(),
    key("backend.dechunk", Kind::Bool, "true",
        "Give the backend a Content-Length in place of a chunked body.").hot(),
    key("backend.orphan_max", Kind::Duration(ZERO, DAY), "120s",
        "How long a slot stays taken after a timeout or an abort.").hot(),

    key("discovery.slots", Kind::Integer(0, MANY), "0",
        "Requests that each endpoint can run in parallel; 0 = discover.").hot(),
    key("discovery.gunicorn_control_socket", Kind::Text(check::any), "",
        "The path of gunicorn's control socket."),
    key("discovery.uwsgi_stats", Kind::Text(check::stats), "",
        "The address of uWSGI's stats server: host:port or unix:/path."),
    key("discovery.proc", Kind::Bool, "true",
        "Look in /proc at the process that owns the backend's socket."),
    key("discovery.accept_queue", Kind::Bool, "true",
        "Read the kernel's accept queue of the backend's socket."),
    key("discovery.cgroup", Kind::Text(check::cgroup), "auto",
        "The backend's cgroup: auto, off, or a path."),
    key("discovery.cpu_limit", Kind::Text(check::cores), "",
        "Cores of the backend, when they can't be seen, as \"2\" or \"500m\"."),
    key("discovery.memory_limit", Kind::Text(check::memory), "",
        "Memory of the backend, when it can't be seen, as \"512MiB\"."),

    key("limit.algorithm", Kind::Enum(&["aimd", "gradient", "vegas", "fixed"]), "aimd",
        "The law that sets the limit.").hot(),
    key("limit.initial", Kind::Integer(0, MANY), "0",
        "Requests at once of each endpoint to start with; 0 = the backend's slots if known, else 2 x cores.").hot(),
    key("limit.min", Kind::Integer(1, MANY), "1",
        "The limit of an endpoint is never below this.").hot(),
    key("limit.max", Kind::Integer(1, MANY), "1000",
        "The limit of an endpoint is never above this.").hot(),
    key("limit.dry_run", Kind::Bool, "false",
        "Compute and export the limit, but never queue and never refuse.").hot(),
    key("limit.shadow", Kind::Texts(check::law), "",
        "Laws that are computed beside the real one and exported.").hot(),
    key("limit.state_file", Kind::Text(check::any), "",
        "A file that keeps the learned curve across restarts.").hot(),

    key("limit.aimd.increase", Kind::Float(0.01, 100.0), "1.0",
        "How far the limit goes at each step up; 1 = half a request, or 3 % of the limit if that is more.").hot(),
    key("limit.aimd.decrease", Kind::Float(0.05, 0.99), "0.7",
        "The factor of the limit when the backend drops requests.").hot(),
    key("limit.aimd.tolerance", Kind::Float(1.01, 100.0), "1.35",
        "Latency over baseline above which the limit falls.").hot(),

    key("limit.resources.cpu", Kind::Bool, "true",
        "Let the backend's CPU bound the limit.").hot(),
    key("limit.resources.cpu_high", Kind::Float(0.0, 1.0), "0.9",
        "The share of the CPU quota above which the limit doesn't grow.").hot(),
    key("limit.resources.memory", Kind::Bool, "true",
        "Let the backend's memory bound the limit.").hot(),
    key("limit.resources.memory_high", Kind::Float(0.0, 1.0), "0.85",
        "The share of the memory limit above which the limit doesn't grow.").hot(),
    key("limit.resources.memory_max", Kind::Float(0.0, 1.0), "0.92",
        "The share of the memory limit above which the limit shrinks.").hot(),

    key("queue.capacity", Kind::Integer(0, MANY), "0",
        "Requests that wait at most; 0 = 10 x limit, at most 1024.").hot(),
    key("queue.max_wait", Kind::Duration(ZERO, DAY), "500ms",
        "How long a request waits at most; 0s refuses at once.").hot(),
    key("queue.discipline", Kind::Enum(&["adaptive-lifo", "fifo"]), "adaptive-lifo",
        "Who is next: adaptive-lifo lets newcomers overtake those who have waited long while the queue doesn't drain.").hot(),
    key("queue.deadline_header", Kind::Text(check::header_name), "X-Request-Timeout-Ms",
        "The request header with the milliseconds that its client still waits; \"\" = off.").hot(),
    key("queue.client_key", Kind::Text(check::client_key), "",
        "What tells clients apart in the queue: ip, or header:Name; \"\" = off.").hot(),
    key("queue.client_max_share", Kind::Float(0.0, 1.0), "0.5",
        "The share of the places in the queue that one client may own.").hot(),

    key("route.name", Kind::Text(check::route_name), "",
        "Required, unique: it is a metric label.").hot(),
    key("route.path", Kind::Text(check::route_path), "/*",
        "Exact, or a prefix ending in \"/*\"; percent-encoded or not.").hot(),
    key("route.methods", Kind::Texts(check::method), "",
        "Methods as \"GET\"; empty = any.").hot(),
    key("route.header", Kind::Text(check::header_match), "",
        "A header that the request must have: \"Name: value\" or \"Name\"; \"\" = any request.").hot(),
    key("route.class", Kind::Enum(&["protected", "high", "normal", "low", "stream"]), "normal",
        "protected (health checks) goes first in the queue, high and low order it, stream is long-lived.").hot(),
    key("route.max_in_flight", Kind::Integer(0, MANY), "0",
        "Requests of this route at once; 0 = no cap.").hot(),

    key("reject.status", Kind::Numbers(&[503, 429]), "503",
        "The status of a refusal.").hot(),
    key("reject.body", Kind::Text(check::reject_body), "problem+json",
        "The body of a refusal: problem+json, text, or file:PATH.").hot(),
    key("reject.retry_after", Kind::WordOrDuration(&["auto", "off"]), "auto",
        "The Retry-After of a refusal: auto, a duration, or off.").hot(),
    key("reject.retry_after_jitter", Kind::Float(0.0, 1.0), "0.5",
        "The share of Retry-After that is random.").hot(),

    key("buffers.request", Kind::Size(0, 64 * GIB), "256KiB",
        "Bytes of one request's body in memory.").hot(),
    key("buffers.response", Kind::Size(0, 64 * GIB), "256KiB",
        "Bytes of one response's body in memory.").hot(),
    key("buffers.total", Kind::Size(64 * KIB, 1024 * GIB), "64MiB",
        "Bytes of all bodies and large heads in memory together.").hot(),
    key("buffers.spool_dir", Kind::Text(check::any), "",
        "The directory for bodies that don't fit in memory; \"\" = no disk.").hot(),
    key("buffers.spool_max", Kind::Size(0, 1024 * GIB), "64MiB",
        "Bytes of one body on disk.").hot(),

    key("headers.trusted_proxies", Kind::Networks, "",
        "Peers whose forwarding headers are believed: IP addresses and CIDRs. Whoever comes over a Unix socket is.").hot(),
    key("headers.request_id", Kind::Text(check::own_header_name), "X-Request-Id",
        "The header with a request's id; \"\" = off.").hot(),
    key("headers.request_start", Kind::Bool, "true",
        "Send X-Request-Start: t=<epoch microseconds> to the backend.").hot(),
    key("headers.forwarded", Kind::Bool, "false",
        "Send RFC 7239 Forwarded beside X-Forwarded-*.").hot(),
    key("headers.via", Kind::Bool, "true",
        "Add Via to requests and responses.").hot(),
    key("headers.server_timing", Kind::Bool, "false",
        "Add Server-Timing to responses: time queued, time in the backend so far, and time since the request's head.").hot(),

    key("drain.delay", Kind::Duration(ZERO, DAY), "0s",
        "How long to keep serving after TERM, while endpoints are updated."),
    key("drain.timeout", Kind::Duration(ZERO, DAY), "25s",
        "How long to wait then for requests to end."),

    key("process.command", Kind::Texts(check::any), "",
        "The command of exec and its arguments, when none follow --."),
    key("process.restart", Kind::Enum(&["never", "on-failure", "always"]), "never",
        "When the command is started again."),
    key("process.ready_path", Kind::Text(check::ready_path), "",
        "The path that answers 2xx or 3xx when the command is ready; \"\" = its socket accepts."),

    key("log.format", Kind::Enum(&["auto", "text", "json"]), "auto",
        "How a line is written: auto is text on a terminal, JSON elsewhere."),
    key("log.level", Kind::Text(check::log_filter), "info",
        "A level, or a tracing filter as \"info,tidegate::proxy=debug\".").hot(),
    key("log.access", Kind::Enum(&["off", "errors", "all"]), "errors",
        "Which requests are logged.").hot(),

    key("trace.file", Kind::Text(check::any), "",
        "A file to record what each request met in, for replay; \"\" = none. At most 14 MiB, the latest."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_key_is_there_once_and_explained() {
        let mut seen = HashSet::new();
        for key in KEYS {
            assert!(seen.insert(key.path), "{} twice", key.path);
            assert!(key.doc.ends_with('.'), "{}", key.path);
            assert!(
                !is_section(key.path) && is_section(key.section()),
                "{}",
                key.path
            );
        }
        // Dedup suffices only while a table's keys stand together.
        let sections = sections();
        assert_eq!(
            sections.len(),
            sections.iter().collect::<HashSet<_>>().len()
        );
    }

    #[test]
    fn variables_are_named_after_keys() {
        assert_eq!(
            env_name("limit.aimd.increase"),
            "TIDEGATE_LIMIT__AIMD__INCREASE"
        );
    }
}

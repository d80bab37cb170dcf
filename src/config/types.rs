//! The typed configuration. Sections and fields are named as in the TOML file.

use std::{path::PathBuf, time::Duration};

use super::Address;

/// The whole configuration, validated. Sections and fields are named as in the TOML file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[server]`: the clients' side.
    pub server: Server,
    /// `[admin]`: the admin server.
    pub admin: Admin,
    /// `[backend]`: the workers' side.
    pub backend: Backend,
    /// `[discovery]`: what is known of the backend.
    pub discovery: Discovery,
    /// `[limit]`: the concurrency limit.
    pub limit: Limit,
    /// `[queue]`: who waits, and for how long.
    pub queue: Queue,
    /// `[[route]]`, in the file's order: the first match wins.
    pub routes: Vec<Route>,
    /// `[reject]`: what a refused client sees.
    pub reject: Reject,
    /// `[buffers]`: the memory for bodies.
    pub buffers: Buffers,
    /// `[headers]`: what is added to requests and responses.
    pub headers: Headers,
    /// `[drain]`: the way out.
    pub drain: Drain,
    /// `[process]`: the command of `exec`.
    pub process: Process,
    /// `[log]`: what is logged.
    pub log: Log,
    /// `[trace]`: what is recorded.
    pub trace: Trace,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Where clients connect; never empty.
    pub listen: Vec<Address>,
    /// Data-plane threads, at least 1 ("auto" is resolved to the cores).
    pub threads: usize,
    /// HTTP/2 with prior knowledge beside HTTP/1.1.
    pub http2: bool,
    /// Client connections at once.
    pub max_connections: usize,
    /// For the whole request head.
    pub header_timeout: Duration,
    /// Grace for the request's body, after which `body_min_rate` holds.
    pub body_timeout: Duration,
    /// Bytes a second.
    pub body_min_rate: u64,
    /// A response write without progress.
    pub write_timeout: Duration,
    /// A kept-alive connection without a request.
    pub idle_timeout: Duration,
    /// Bytes of a request head.
    pub max_header_bytes: usize,
    /// 0 = unlimited.
    pub max_body_bytes: u64,
    /// What comes before a client's first request.
    pub proxy_protocol: ProxyProtocol,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where the admin server listens.
    pub listen: Address,
    /// Who may POST.
    pub mutations: Mutations,
}

/// `[backend]`
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// The workers' addresses; never empty.
    pub endpoints: Vec<Address>,
    /// What the backend is; [`Profile::Auto`] = to be found out.
    pub profile: Profile,
    /// What the backend speaks.
    pub protocol: Protocol,
    /// Reuse connections to the backend.
    pub keepalive: bool,
    /// How long an unused connection is kept.
    pub keepalive_idle: Duration,
    /// To a connection.
    pub connect_timeout: Duration,
    /// To the response head.
    pub response_timeout: Duration,
    /// Between bytes of the response.
    pub read_timeout: Duration,
    /// Give the backend a Content-Length for chunked bodies.
    pub dechunk: bool,
    /// How long a slot stays taken after a timeout or an abort.
    pub orphan_max: Duration,
}

/// `[discovery]`
#[derive(Clone, Debug, PartialEq)]
pub struct Discovery {
    /// 0 = unknown.
    pub slots: u32,
    /// gunicorn's control socket.
    pub gunicorn_control_socket: Option<PathBuf>,
    /// uWSGI's stats server.
    pub uwsgi_stats: Option<Address>,
    /// Look at the process that owns the backend's socket.
    pub proc: bool,
    /// Read the kernel's accept queue.
    pub accept_queue: bool,
    /// Where the backend's CPU and memory are read.
    pub cgroup: CgroupSetting,
    /// Cores that the backend may use.
    pub cpu_limit: Option<f64>,
    /// Memory that the backend may use, bytes.
    pub memory_limit: Option<u64>,
}

impl Default for Discovery {
    /// Everything is to be found out.
    fn default() -> Self {
        Self {
            slots: 0,
            gunicorn_control_socket: None,
            uwsgi_stats: None,
            proc: true,
            accept_queue: true,
            cgroup: CgroupSetting::Auto,
            cpu_limit: None,
            memory_limit: None,
        }
    }
}

/// `discovery.cgroup`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupSetting {
    /// That of the backend's process.
    Auto,
    /// None.
    Off,
    /// This one: a directory, or a path below the mount of the cgroups.
    Path(String),
}

/// `[limit]`
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The law.
    pub algorithm: Algorithm,
    /// 0 = the slots if known, else 2 x cores.
    pub initial: u32,
    /// The limit is never below this, at least 1.
    pub min: u32,
    /// The limit is never above this.
    pub max: u32,
    /// Compute and export, never queue, never refuse.
    pub dry_run: bool,
    /// Laws that are computed beside the real one and exported.
    pub shadow: Vec<Algorithm>,
    /// Where the learned curve is kept across restarts; empty = nowhere.
    pub state_file: String,
    /// The parameters of the law `aimd`.
    pub aimd: Aimd,
    /// How far the backend's resources bound the limit.
    pub resources: Resources,
}

/// `[limit.resources]`
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// Whether the CPU does.
    pub cpu: bool,
    /// The share of the CPU quota above which the limit doesn't grow.
    pub cpu_high: f64,
    /// Whether the memory does.
    pub memory: bool,
    /// The share of the memory limit above which the limit doesn't grow.
    pub memory_high: f64,
    /// The share of the memory limit above which the limit shrinks.
    pub memory_max: f64,
}

/// `[limit.aimd]`
#[derive(Clone, Debug, PartialEq)]
pub struct Aimd {
    /// Scales a step up: 1 = half a request, or 3 % of the limit if that is more.
    pub increase: f64,
    /// The factor of the limit when the backend drops requests, below 1.
    pub decrease: f64,
    /// Latency stretch above which the limit falls, above 1.
    pub tolerance: f64,
}

/// `[queue]`
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// 0 = 10 x limit, at most 1024.
    pub capacity: usize,
    /// How long a request waits at most.
    pub max_wait: Duration,
    /// Who is next.
    pub discipline: Discipline,
    /// Empty = off.
    pub deadline_header: String,
    /// What tells clients apart.
    pub client_key: ClientKeySource,
    /// The share of the places that one client may own, 0 to 1.
    pub client_max_share: f64,
}

/// `queue.client_key`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientKeySource {
    /// Nothing: all clients alike.
    Off,
    /// The client's address; of IPv6, the first 64 bits.
    Ip,
    /// The value of a request's field.
    Header(String),
}

/// One `[[route]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Unique: it is a metric label.
    pub name: String,
    /// Exact, or a prefix ending in `/*`.
    pub path: String,
    /// Empty = any.
    pub methods: Vec<String>,
    /// `Name: value`, `Name`, or empty.
    pub header: String,
    /// How its requests are treated.
    pub class: Class,
    /// 0 = no cap.
    pub max_in_flight: u32,
}

/// `[reject]`
#[derive(Clone, Debug, PartialEq)]
pub struct Reject {
    /// 503 or 429.
    pub status: u16,
    /// The body of a refusal.
    pub body: RejectBody,
    /// The `Retry-After` field of a refusal.
    pub retry_after: RetryAfter,
    /// The share of `Retry-After` that is random, 0 to 1.
    pub retry_after_jitter: f64,
}

/// `reject.body`
#[derive(Clone, Debug, PartialEq)]
pub enum RejectBody {
    /// RFC 9457.
    ProblemJson,
    /// One line of plain text.
    Text,
    /// The file's content, read when the configuration is loaded, and its media type by extension.
    File {
        /// Where it was read from, absolute.
        path: PathBuf,
        /// What was in it.
        content: Vec<u8>,
        /// For `Content-Type`.
        media_type: &'static str,
    },
}

/// `reject.retry_after`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// From the queue's state.
    Auto,
    /// Always this.
    Fixed(Duration),
    /// No such field.
    Off,
}

/// `[buffers]`, all in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffers {
    /// Per request, in memory.
    pub request: u64,
    /// Per response, in memory.
    pub response: u64,
    /// All requests and responses together.
    pub total: u64,
    /// None = no disk.
    pub spool_dir: Option<PathBuf>,
    /// Per body, on disk.
    pub spool_max: u64,
}

/// `[headers]`
#[derive(Clone, Debug, PartialEq)]
pub struct Headers {
    /// Peers whose forwarding fields are believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Empty = off.
    pub request_id: String,
    /// `X-Request-Start: t=<epoch microseconds>` to the backend.
    pub request_start: bool,
    /// RFC 7239 `Forwarded` beside `X-Forwarded-*`.
    pub forwarded: bool,
    /// `Via` on requests and responses.
    pub via: bool,
    /// `Server-Timing` on responses.
    pub server_timing: bool,
}

/// `[drain]`
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// Keep serving while endpoints are updated.
    pub delay: Duration,
    /// Then wait at most this for requests to end.
    pub timeout: Duration,
}

/// `[process]`
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// The command and its arguments; may be empty.
    pub command: Vec<String>,
    /// When it is started again.
    pub restart: Restart,
    /// Empty = the socket accepts.
    pub ready_path: String,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// How an event is written.
    pub format: LogFormat,
    /// A `tracing` filter, as `info` or `info,tidegate::proxy=debug`.
    pub level: String,
    /// Which requests are logged.
    pub access: Access,
}

/// `[trace]`
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Where each request is recorded, for `replay`.
    pub file: Option<PathBuf>,
}

/// An enum that is a word in the configuration.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &[$name] = &[$($name::$variant,)+];

            /// The word for it in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }

            pub(super) fn from_word(word: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|one| one.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// `server.proxy_protocol`: what comes before a client's first request.
    ProxyProtocol {
        /// Nothing.
        Off = "off",
        /// A line of text.
        V1 = "v1",
        /// A binary header.
        V2 = "v2",
        /// One or the other.
        Auto = "auto",
    }
}

words! {
    /// `admin.mutations`: who may POST to the admin server.
    Mutations {
        /// Peers on the loopback interface or a unix socket.
        Loopback = "loopback",
        /// Nobody.
        Off = "off",
    }
}

words! {
    /// `backend.profile`: which server the backend is.
    #[derive(Hash)]
    Profile {
        /// Not said: to be found out.
        Auto = "auto",
        /// gunicorn with sync workers: one request each.
        GunicornSync = "gunicorn-sync",
        /// gunicorn with threads: each worker accepts more than it can run.
        GunicornGthread = "gunicorn-gthread",
        /// gunicorn with greenlets.
        GunicornGevent = "gunicorn-gevent",
        /// uWSGI.
        Uwsgi = "uwsgi",
        /// Apache with mod_wsgi.
        ModWsgi = "mod_wsgi",
        /// waitress.
        Waitress = "waitress",
        /// Flask's development server.
        Werkzeug = "werkzeug",
        /// Any other: nothing is assumed.
        Generic = "generic",
    }
}

words! {
    /// `backend.protocol`: what the backend speaks.
    Protocol {
        /// HTTP/1.1.
        Http = "http",
        /// uWSGI's own: a packet of variables, then the body; the answer is HTTP.
        Uwsgi = "uwsgi",
    }
}

words! {
    /// `limit.algorithm`: the law that sets the limit.
    Algorithm {
        /// Additive increase, multiplicative decrease.
        Aimd = "aimd",
        /// By the ratio of the usual latency to the present one.
        Gradient = "gradient",
        /// By the queue inside the backend, as latency tells of it.
        Vegas = "vegas",
        /// The limit stays at `initial`.
        Fixed = "fixed",
    }
}

words! {
    /// `queue.discipline`: who is next.
    Discipline {
        /// First come, first served; newcomers overtake those who have waited long while the queue doesn't drain.
        AdaptiveLifo = "adaptive-lifo",
        /// First come, first served.
        Fifo = "fifo",
    }
}

words! {
    /// `route.class`: how a request is treated.
    #[derive(Hash, PartialOrd, Ord)]
    Class {
        /// Before all others: health checks.
        Protected = "protected",
        /// Before `normal`.
        High = "high",
        /// The class of a request that no route matches.
        Normal = "normal",
        /// After `normal`.
        Low = "low",
        /// Long-lived: left out of latency samples.
        Stream = "stream",
    }
}

words! {
    /// `process.restart`: when the command of `exec` is started again.
    Restart {
        /// tidegate ends with it.
        Never = "never",
        /// When it ended with anything but 0.
        OnFailure = "on-failure",
        /// Whenever it ended.
        Always = "always",
    }
}

words! {
    /// `log.format`
    LogFormat {
        /// Text on a terminal, JSON elsewhere.
        Auto = "auto",
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// `log.access`: which requests are logged.
    Access {
        /// None.
        Off = "off",
        /// Those that failed or were refused.
        Errors = "errors",
        /// Each.
        All = "all",
    }
}

//! TOML, environment and flags become one validated, immutable [`Config`].
#![allow(missing_docs)]

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// The whole configuration, validated. Sections and fields are named as in the TOML file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub backend: Backend,
    pub discovery: Discovery,
    pub limit: Limit,
    pub queue: Queue,
    pub routes: Vec<Route>,
    pub reject: Reject,
    pub buffers: Buffers,
    pub headers: Headers,
    pub drain: Drain,
    pub process: Process,
    pub log: Log,
}

/// An address to listen on or to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`; the host may be a name, resolved when connecting.
    Tcp { host: String, port: u16 },
    /// `unix:/path`
    Unix(PathBuf),
    /// `fd:NAME`, a socket that systemd passed (listening only).
    Fd(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub listen: Vec<Address>,
    /// Data-plane threads, at least 1 ("auto" is resolved to the cores).
    pub threads: usize,
    pub http2: bool,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// Bytes a second.
    pub body_min_rate: u64,
    pub write_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_header_bytes: usize,
    /// 0 = unlimited.
    pub max_body_bytes: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub listen: Address,
    pub mutations: Mutations,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutations {
    Loopback,
    Off,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub endpoints: Vec<Address>,
    pub keepalive: bool,
    pub keepalive_idle: Duration,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub read_timeout: Duration,
    pub dechunk: bool,
    pub orphan_max: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Discovery {
    /// 0 = unknown.
    pub slots: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Aimd,
    Fixed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    pub algorithm: Algorithm,
    /// 0 = the slots if known, else 2 x cores.
    pub initial: u32,
    pub min: u32,
    pub max: u32,
    pub dry_run: bool,
    pub aimd: Aimd,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Aimd {
    pub increase: f64,
    pub decrease: f64,
    pub tolerance: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// 0 = 10 x limit, at most 1024.
    pub capacity: usize,
    pub max_wait: Duration,
    pub discipline: Discipline,
    /// Empty = off.
    pub deadline_header: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discipline {
    AdaptiveLifo,
    Fifo,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub name: String,
    /// Exact, or a prefix ending in `/*`.
    pub path: String,
    /// Empty = any.
    pub methods: Vec<String>,
    /// `Name: value`, `Name`, or empty.
    pub header: String,
    pub class: Class,
    /// 0 = no cap.
    pub max_in_flight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Protected,
    High,
    Normal,
    Low,
    Stream,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reject {
    /// 503 or 429.
    pub status: u16,
    pub body: RejectBody,
    pub retry_after: RetryAfter,
    pub retry_after_jitter: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RejectBody {
    ProblemJson,
    Text,
    /// The file's content, read when the configuration is loaded, and its media type by extension.
    File { path: PathBuf, content: Vec<u8>, media_type: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    Auto,
    Fixed(Duration),
    Off,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Buffers {
    pub request: u64,
    pub response: u64,
    pub total: u64,
    /// None = no disk.
    pub spool_dir: Option<PathBuf>,
    pub spool_max: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Headers {
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Empty = off.
    pub request_id: String,
    pub request_start: bool,
    pub forwarded: bool,
    pub via: bool,
    pub server_timing: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    pub delay: Duration,
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub command: Vec<String>,
    pub restart: Restart,
    /// Empty = the socket accepts.
    pub ready_path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Never,
    OnFailure,
    Always,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Off,
    Errors,
    All,
}

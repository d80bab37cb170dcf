//! Settings become the typed [`Config`].

use std::{
    io,
    num::NonZero,
    path::{Path, PathBuf},
    thread::available_parallelism,
    time::Duration,
};

use super::{
    address::Address,
    check,
    load::read_small,
    origin::Origin,
    problem::Report,
    resolve::{RouteSettings, Settings},
    rules,
    typed::Typed,
    types::*,
    units::parse_size,
};

/// Builds the configuration; None (and a report) when something is wrong.
///
/// A relative path in `reject.body` is taken from `base`; the settings hold it absolute afterwards.
pub(super) fn build(
    settings: &mut Settings,
    routes: &[RouteSettings],
    base: &Path,
    report: &mut Report,
) -> Option<Config> {
    rules::apply(settings, routes, report);
    let body = reject_body(settings, base, report)?;
    if !report.is_empty() {
        return None;
    }
    let s = &*settings;
    Some(Config {
        server: Server {
            listen: s.addresses("server.listen"),
            threads: match &s.get("server.threads").value {
                Typed::Integer(threads) => usize_of(*threads),
                _ => available_parallelism().map_or(1, NonZero::get),
            },
            http2: s.bool("server.http2"),
            max_connections: s.usize("server.max_connections"),
            header_timeout: s.duration("server.header_timeout"),
            body_timeout: s.duration("server.body_timeout"),
            body_min_rate: s.u64("server.body_min_rate"),
            write_timeout: s.duration("server.write_timeout"),
            idle_timeout: s.duration("server.idle_timeout"),
            max_header_bytes: s.usize("server.max_header_bytes"),
            max_body_bytes: s.u64("server.max_body_bytes"),
            proxy_protocol: s.word("server.proxy_protocol", ProxyProtocol::from_word),
        },
        admin: Admin {
            listen: s.address("admin.listen"),
            mutations: s.word("admin.mutations", Mutations::from_word),
        },
        backend: Backend {
            endpoints: s.addresses("backend.endpoints"),
            profile: s.word("backend.profile", Profile::from_word),
            protocol: s.word("backend.protocol", Protocol::from_word),
            keepalive: s.bool("backend.keepalive"),
            keepalive_idle: s.duration("backend.keepalive_idle"),
            connect_timeout: s.duration("backend.connect_timeout"),
            response_timeout: s.duration("backend.response_timeout"),
            read_timeout: s.duration("backend.read_timeout"),
            dechunk: s.bool("backend.dechunk"),
            orphan_max: s.duration("backend.orphan_max"),
        },
        discovery: Discovery {
            slots: s.u32("discovery.slots"),
            gunicorn_control_socket: match s.text("discovery.gunicorn_control_socket") {
                "" => None,
                path => Some(PathBuf::from(path.strip_prefix("unix:").unwrap_or(path))),
            },
            uwsgi_stats: check::stats_address(s.text("discovery.uwsgi_stats"))
                .ok()
                .flatten(),
            proc: s.bool("discovery.proc"),
            accept_queue: s.bool("discovery.accept_queue"),
            cgroup: match s.text("discovery.cgroup") {
                "auto" => CgroupSetting::Auto,
                "off" => CgroupSetting::Off,
                path => CgroupSetting::Path(path.to_owned()),
            },
            cpu_limit: check::parse_cores(s.text("discovery.cpu_limit")),
            memory_limit: parse_size(s.text("discovery.memory_limit")),
        },
        limit: Limit {
            algorithm: s.word("limit.algorithm", Algorithm::from_word),
            initial: s.u32("limit.initial"),
            min: s.u32("limit.min"),
            max: s.u32("limit.max"),
            dry_run: s.bool("limit.dry_run"),
            aimd: Aimd {
                increase: s.f64("limit.aimd.increase"),
                decrease: s.f64("limit.aimd.decrease"),
                tolerance: s.f64("limit.aimd.tolerance"),
            },
            shadow: s
                .texts("limit.shadow")
                .iter()
                .filter_map(|word| Algorithm::from_word(word))
                .collect(),
            state_file: s.text("limit.state_file").to_owned(),
            resources: Resources {
                cpu: s.bool("limit.resources.cpu"),
                cpu_high: s.f64("limit.resources.cpu_high"),
                memory: s.bool("limit.resources.memory"),
                memory_high: s.f64("limit.resources.memory_high"),
                memory_max: s.f64("limit.resources.memory_max"),
            },
        },
        queue: Queue {
            capacity: s.usize("queue.capacity"),
            max_wait: s.duration("queue.max_wait"),
            discipline: s.word("queue.discipline", Discipline::from_word),
            deadline_header: s.text("queue.deadline_header").to_owned(),
            client_key: match s.text("queue.client_key") {
                "" => ClientKeySource::Off,
                "ip" => ClientKeySource::Ip,
                header => {
                    ClientKeySource::Header(header.trim_start_matches("header:").trim().to_owned())
                }
            },
            client_max_share: s.f64("queue.client_max_share"),
        },
        routes: routes
            .iter()
            .map(|route| self::route(&route.settings))
            .collect(),
        reject: Reject {
            status: u16::try_from(s.u64("reject.status")).unwrap_or(u16::MAX),
            body,
            retry_after: match &s.get("reject.retry_after").value {
                Typed::Duration(duration) => RetryAfter::Fixed(*duration),
                Typed::Text(word) if word == "off" => RetryAfter::Off,
                _ => RetryAfter::Auto,
            },
            retry_after_jitter: s.f64("reject.retry_after_jitter"),
        },
        buffers: Buffers {
            request: s.u64("buffers.request"),
            response: s.u64("buffers.response"),
            total: s.u64("buffers.total"),
            spool_dir: match s.text("buffers.spool_dir") {
                "" => None,
                dir => Some(PathBuf::from(dir)),
            },
            spool_max: s.u64("buffers.spool_max"),
        },
        headers: Headers {
            trusted_proxies: match &s.get("headers.trusted_proxies").value {
                Typed::Networks(networks) => networks.clone(),
                _ => s.mismatch("headers.trusted_proxies"),
            },
            request_id: s.text("headers.request_id").to_owned(),
            request_start: s.bool("headers.request_start"),
            forwarded: s.bool("headers.forwarded"),
            via: s.bool("headers.via"),
            server_timing: s.bool("headers.server_timing"),
        },
        drain: Drain {
            delay: s.duration("drain.delay"),
            timeout: s.duration("drain.timeout"),
        },
        process: Process {
            command: s.texts("process.command"),
            restart: s.word("process.restart", Restart::from_word),
            ready_path: s.text("process.ready_path").to_owned(),
        },
        log: Log {
            format: s.word("log.format", LogFormat::from_word),
            level: s.text("log.level").to_owned(),
            access: s.word("log.access", Access::from_word),
        },
        trace: Trace {
            file: match s.text("trace.file") {
                "" => None,
                file => Some(PathBuf::from(file)),
            },
        },
    })
}

fn route(s: &Settings) -> Route {
    Route {
        name: s.text("route.name").to_owned(),
        path: s.text("route.path").to_owned(),
        methods: s.texts("route.methods"),
        header: s.text("route.header").to_owned(),
        class: s.word("route.class", Class::from_word),
        max_in_flight: s.u32("route.max_in_flight"),
    }
}

fn reject_body(settings: &mut Settings, base: &Path, report: &mut Report) -> Option<RejectBody> {
    const KEY: &str = "reject.body";
    let given = match settings.text(KEY) {
        "problem+json" => return Some(RejectBody::ProblemJson),
        "text" => return Some(RejectBody::Text),
        other => other.strip_prefix("file:").unwrap_or(other).to_owned(),
    };
    let origin: Origin = settings.get(KEY).origin.clone();
    let path = base.join(&given);
    let path = std::path::absolute(&path).unwrap_or(path);
    let content = match read_small(&path) {
        Ok(content) => content,
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => {
                    "write an absolute path, or one that begins at the configuration file's directory (without a \
                     file, at the working directory)"
                }
                io::ErrorKind::PermissionDenied => "let the user that runs tidegate read it",
                io::ErrorKind::IsADirectory => "name a file in it",
                _ => "name a file that can be",
            };
            let message = format!(
                "\"file:{given}\" cannot be read ({}): {error}; {remedy}",
                path.display()
            );
            report.value(&origin, KEY, &message);
            return None;
        }
    };
    settings.refine(KEY, Typed::Text(format!("file:{}", path.display())));
    let media_type = media_type(&path);
    Some(RejectBody::File {
        path,
        content,
        media_type,
    })
}

fn media_type(path: &Path) -> &'static str {
    let extension = path
        .extension()
        .and_then(|ext| ext.to_str())
        .unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        _ => "text/plain; charset=utf-8",
    }
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Typed access. A key that is not of the asked kind is a mistake in this module, seen by the test that loads
/// the defaults.
impl Settings {
    fn mismatch<T>(&self, key: &str) -> T {
        unreachable!("{key} is not of this kind: {:?}", self.get(key).value)
    }

    fn bool(&self, key: &str) -> bool {
        match self.get(key).value {
            Typed::Bool(flag) => flag,
            _ => self.mismatch(key),
        }
    }

    pub(super) fn u64(&self, key: &str) -> u64 {
        match self.get(key).value {
            Typed::Integer(number) | Typed::Size(number) => number,
            _ => self.mismatch(key),
        }
    }

    fn usize(&self, key: &str) -> usize {
        usize_of(self.u64(key))
    }

    fn u32(&self, key: &str) -> u32 {
        u32::try_from(self.u64(key)).unwrap_or(u32::MAX)
    }

    pub(super) fn f64(&self, key: &str) -> f64 {
        match self.get(key).value {
            Typed::Float(number) => number,
            _ => self.mismatch(key),
        }
    }

    fn duration(&self, key: &str) -> Duration {
        match self.get(key).value {
            Typed::Duration(duration) => duration,
            _ => self.mismatch(key),
        }
    }

    pub(super) fn text(&self, key: &str) -> &str {
        match &self.get(key).value {
            Typed::Text(text) => text,
            _ => self.mismatch(key),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        match &self.get(key).value {
            Typed::Texts(texts) => texts.clone(),
            _ => self.mismatch(key),
        }
    }

    pub(super) fn address(&self, key: &str) -> Address {
        match &self.get(key).value {
            Typed::Address(address) => address.clone(),
            _ => self.mismatch(key),
        }
    }

    pub(super) fn addresses(&self, key: &str) -> Vec<Address> {
        match &self.get(key).value {
            Typed::Addresses(addresses) => addresses.clone(),
            _ => self.mismatch(key),
        }
    }

    fn word<T>(&self, key: &str, from_word: fn(&str) -> Option<T>) -> T {
        from_word(self.text(key)).unwrap_or_else(|| self.mismatch(key))
    }
}

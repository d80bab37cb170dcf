//! The servers that tell little or nothing of themselves.

use super::{Accepts, Args, Count, ReadFile, Server, counted, unbounded};
use crate::{
    config::Profile,
    sense::facts::{DEVELOPMENT, ProcessFacts},
};

/// waitress's default of `--threads`.
const WAITRESS_THREADS: u32 = 4;
/// `WSGIDaemonProcess`'s default of `threads`.
const MOD_WSGI_THREADS: u32 = 15;
/// cheroot's default of `--threads`.
const CHEROOT_THREADS: u32 = 10;
/// trio's default of `to_thread`.
const TRIO_THREADS: u32 = 40;

pub(super) fn recognise(
    process: &ProcessFacts,
    args: &Args,
    read: &ReadFile<'_>,
) -> Option<Server> {
    let known = |profile, name, accepts, slots| {
        Some(Server {
            profile,
            name,
            how: "command line",
            accepts,
            slots,
        })
    };
    match args.program.as_str() {
        "waitress-serve" | "waitress" => {
            let threads = args
                .value(&["--threads"])
                .map_or(Some(WAITRESS_THREADS), |n| n.parse().ok());
            let slots = threads.ok_or_else(|| "its --threads is not a number".to_owned());
            let slots = slots.and_then(|threads| Count::new(threads, counted(threads, "thread")));
            known(Profile::Waitress, "waitress", Accepts::Eagerly, slots)
        }
        "flask" if args.has(&["run"]) => werkzeug(args, "command line"),
        "granian" => known(
            Profile::Generic,
            "granian",
            Accepts::Eagerly,
            granian(process, args),
        ),
        "hypercorn" => known(
            Profile::Generic,
            "hypercorn",
            Accepts::Eagerly,
            hypercorn(args, read),
        ),
        "uvicorn" => known(
            Profile::Generic,
            "uvicorn",
            Accepts::Eagerly,
            Err("the app decides (behind a2wsgi: 10 at a time in each worker)".to_owned()),
        ),
        "cheroot" => {
            let threads = args
                .value(&["--threads"])
                .map_or(Some(CHEROOT_THREADS), |n| n.parse().ok());
            let slots = threads.ok_or_else(|| "its --threads is not a number".to_owned());
            let slots = slots.and_then(|threads| Count::new(threads, counted(threads, "thread")));
            known(Profile::Generic, "cheroot", Accepts::Eagerly, slots)
        }
        // A proxy of its own: what is behind it is not to be seen here.
        name @ ("nginx" | "haproxy" | "envoy" | "traefik" | "caddy") => {
            let name = ["nginx", "haproxy", "envoy", "traefik", "caddy"]
                .into_iter()
                .find(|known| *known == name)?;
            known(
                Profile::Generic,
                name,
                Accepts::Eagerly,
                Err("it is a proxy: the workers are behind it".to_owned()),
            )
        }
        "httpd" | "apache2" | "mod_wsgi-express" => apache(process, args, read),
        _ => embedded(process, args),
    }
}

/// Its threads for WSGI apps are half of the connections that it accepts at a time: 512 with the default
/// backlog of 1024, which is no bound.
fn granian(process: &ProcessFacts, args: &Args) -> Result<Count, String> {
    let option = |option: &str, variable: &str| {
        let variable = process.environment.get(variable).map(String::as_str);
        args.value(&[option]).or(variable)
    };
    let number = |name: &str, variable: &str| match option(name, variable).map(str::parse::<u32>) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(format!("its {name} is not a number")),
    };
    let interface = option("--interface", "GRANIAN_INTERFACE").unwrap_or("rsgi");
    if !interface.eq_ignore_ascii_case("wsgi") {
        return Err("the app decides".to_owned());
    }
    let workers = number("--workers", "GRANIAN_WORKERS")?.unwrap_or(1);
    let threads = number("--blocking-threads", "GRANIAN_BLOCKING_THREADS")?;
    let pressure = number("--backpressure", "GRANIAN_BACKPRESSURE")?;
    match threads.or(pressure.map(|pressure| (pressure / 2).max(1))) {
        Some(threads) => Count::product(workers, threads),
        None => Err(unbounded("as many threads as are needed, up to 512")),
    }
}

/// A WSGI app runs in the event loop's executor: asyncio's by default, or trio's.
fn hypercorn(args: &Args, read: &ReadFile<'_>) -> Result<Count, String> {
    let wsgi = args.rest.iter().any(|word| word.starts_with("wsgi:"));
    if !wsgi {
        return Err(
            "whether the app is a WSGI one, which runs in a pool of threads, cannot be seen: \
             \"wsgi:\" before its name says so"
                .to_owned(),
        );
    }
    let workers = match args.value(&["-w", "--workers"]).map(str::parse::<u32>) {
        None => 1,
        // 0 is one, in the master's own process.
        Some(Ok(workers)) => workers.max(1),
        Some(Err(_)) => return Err("its --workers is not a number".to_owned()),
    };
    let threads = match args.value(&["-k", "--worker-class"]) {
        Some("trio") => TRIO_THREADS,
        _ => cores(read)
            .map(|cores| (cores + 4).min(32))
            .ok_or_else(|| "its executor decides by the number of cores".to_owned())?,
    };
    Count::product(workers, threads)
}

/// The cores of the machine, as Python counts them.
fn cores(read: &ReadFile<'_>) -> Option<u32> {
    let text = read("/sys/devices/system/cpu/online")?;
    text.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
            (last + 1).checked_sub(first)
        })
        .sum()
}

/// A server inside of the app's own program.
fn embedded(process: &ProcessFacts, args: &Args) -> Option<Server> {
    if DEVELOPMENT
        .iter()
        .any(|name| process.environment.contains_key(*name))
    {
        return werkzeug(args, "environment");
    }
    // From Python 3.14 on, threads tell the kernel their names.
    let threads = process
        .thread_names
        .iter()
        .filter(|name| name.starts_with("waitress-"))
        .count();
    if threads > 0 {
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        return Some(Server {
            profile: Profile::Waitress,
            name: "waitress",
            how: "names of its threads",
            accepts: Accepts::Eagerly,
            slots: Count::new(threads, counted(threads, "thread")),
        });
    }
    None
}

/// By the extension modules that it has loaded.
pub(super) fn by_libraries(process: &ProcessFacts, read: &ReadFile<'_>) -> Option<Server> {
    let maps = read("/proc/self/maps")?;
    let server = |name, accepts, slots| Server {
        profile: Profile::Generic,
        name,
        how: "libraries",
        accepts,
        slots,
    };
    if maps.contains("/_bjoern.") {
        // Whoever wants several forks it, and all of them listen.
        let children = process.children.iter().filter(|child| child.listens);
        let processes = u32::try_from(children.count()).unwrap_or(u32::MAX).max(1);
        let slots = Count::product(processes, 1);
        return Some(server("bjoern", Accepts::WhenIdle, slots));
    }
    maps.contains("/gevent/_gevent_").then(|| {
        let why = unbounded("a greenlet for each connection, unless it was given a pool");
        server("gevent.pywsgi", Accepts::Eagerly, Err(why))
    })
}

fn werkzeug(args: &Args, how: &'static str) -> Option<Server> {
    let one = args.has(&["--without-threads"]);
    Some(Server {
        profile: Profile::Werkzeug,
        name: "Werkzeug",
        how,
        accepts: if one {
            Accepts::WhenIdle
        } else {
            Accepts::Eagerly
        },
        slots: if one {
            Count::new(1, "--without-threads")
        } else {
            Err(unbounded("a thread for each request"))
        },
    })
}

/// Apache, if mod_wsgi's daemons are among its children or in its configuration.
fn apache(process: &ProcessFacts, args: &Args, read: &ReadFile<'_>) -> Option<Server> {
    let config = args.value(&["-f"]).and_then(read).unwrap_or_default();
    let in_force = in_force(&config, args);
    let daemons: Vec<(u32, u32)> = in_force
        .iter()
        .filter_map(|line| daemon_process(line))
        .collect();
    let titled = process
        .children
        .iter()
        .filter(|child| {
            child
                .command
                .first()
                .is_some_and(|title| title.starts_with("(wsgi:"))
        })
        .count();
    if daemons.is_empty() && titled == 0 && !config.contains("wsgi_module") {
        return None;
    }
    let slots = match daemons.as_slice() {
        [] => Err("its WSGIDaemonProcess cannot be read; set discovery.slots".to_owned()),
        daemons => {
            let slots = daemons
                .iter()
                .map(|(processes, threads)| processes.saturating_mul(*threads))
                .sum();
            let groups: Vec<String> = daemons
                .iter()
                .map(|(p, t)| {
                    format!(
                        "{} x {}",
                        if *p == 1 {
                            "1 process".to_owned()
                        } else {
                            format!("{p} processes")
                        },
                        counted(*t, "thread")
                    )
                })
                .collect();
            Count::new(slots, groups.join(" and "))
        }
    };
    Some(Server {
        profile: Profile::ModWsgi,
        name: "mod_wsgi",
        how: "command line",
        accepts: Accepts::Eagerly,
        slots,
    })
}

/// The directives of an Apache configuration, continued lines joined, without those under an `<IfDefine>` that
/// the command line does not meet.
fn in_force(config: &str, args: &Args) -> Vec<String> {
    let config = config.replace("\\\n", " ");
    let mut conditions = Vec::new();
    let mut found = Vec::new();
    for line in config.lines().map(str::trim) {
        if let Some(condition) = line.strip_prefix("<IfDefine ") {
            let condition = condition.trim_end_matches('>').trim();
            let (name, wanted) = match condition.strip_prefix('!') {
                Some(name) => (name.trim(), false),
                None => (condition, true),
            };
            let defined = args.has(&[&format!("-D{name}")]);
            conditions.push(defined == wanted);
        } else if line.starts_with("</IfDefine>") {
            conditions.pop();
        } else if conditions.iter().all(|met| *met) {
            found.push(line.to_owned());
        }
    }
    found
}

/// Processes and threads of a line `WSGIDaemonProcess name processes=2 threads=5`.
fn daemon_process(line: &str) -> Option<(u32, u32)> {
    let line = line.trim_start();
    let options = line.strip_prefix("WSGIDaemonProcess ")?;
    let value = |name: &str, default| {
        let found = options
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.map_or(Some(default), |value| {
            value.trim_matches(['"', '\'']).parse().ok()
        })
    };
    Some((value("processes", 1)?, value("threads", MOD_WSGI_THREADS)?))
}

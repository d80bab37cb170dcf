//! The servers that tell little or nothing of themselves.

use super::{Accepts, Args, Count, ReadFile, Server, counted};
use crate::{config::Profile, sense::facts::ProcessFacts};

/// waitress's default of `--threads`.
const WAITRESS_THREADS: u32 = 4;
/// `WSGIDaemonProcess`'s default of `threads`.
const MOD_WSGI_THREADS: u32 = 15;

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
    let unbounded = |what: &str| Err(format!("it has no bound: {what}"));
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
        "granian" => {
            let number = |option: &str, variable: &str| {
                let variable = process.environment.get(variable).map(String::as_str);
                args.value(&[option]).or(variable).map(str::parse::<u32>)
            };
            let threads = number("--blocking-threads", "GRANIAN_BLOCKING_THREADS");
            let workers = number("--workers", "GRANIAN_WORKERS").unwrap_or(Ok(1));
            let slots = match (workers, threads) {
                (Ok(workers), Some(Ok(threads))) => Count::product(workers, threads),
                _ => Err("it chooses its number of threads by itself".to_owned()),
            };
            known(Profile::Generic, "granian", Accepts::Eagerly, slots)
        }
        "hypercorn" => known(
            Profile::Generic,
            "hypercorn",
            Accepts::Eagerly,
            unbounded("its executor decides"),
        ),
        "uvicorn" => known(
            Profile::Generic,
            "uvicorn",
            Accepts::Eagerly,
            unbounded("the app decides"),
        ),
        "cheroot" => known(
            Profile::Generic,
            "cheroot",
            Accepts::Eagerly,
            Err("its number of threads cannot be seen".to_owned()),
        ),
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

/// A server inside of the app's own program.
fn embedded(process: &ProcessFacts, args: &Args) -> Option<Server> {
    if process
        .environment
        .keys()
        .any(|name| name.starts_with("WERKZEUG_"))
    {
        return werkzeug(args, "environment");
    }
    // From Python 3.14 on, threads tell the kernel their names.
    let threads = process
        .thread_names
        .iter()
        .filter(|name| name.starts_with("waitress-"))
        .count();
    (threads > 0).then(|| Server {
        profile: Profile::Waitress,
        name: "waitress",
        how: "names of its threads",
        accepts: Accepts::Eagerly,
        slots: Count::new(
            u32::try_from(threads).unwrap_or(u32::MAX),
            counted(u32::try_from(threads).unwrap_or(u32::MAX), "thread"),
        ),
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
            Err("it has no bound: a thread for each request".to_owned())
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

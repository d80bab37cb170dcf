//! gunicorn, by its master process.
//!
//! Its settings come from `WEB_CONCURRENCY`, the configuration file, `GUNICORN_CMD_ARGS` and the command
//! line, the later ones winning. The file is Python: what it sets to a literal is known, what it computes or
//! fetches from elsewhere is not, and then nothing is guessed. Workers are counted, because TTIN and TTOU change their number.

mod python;

use self::python::assigned;
use super::{Accepts, Args, Count, ReadFile, Server, read_at_start, unbounded};
use crate::{config::Profile, sense::facts::ProcessFacts};

/// A master starts its workers one after the other; so long, seconds, it may have fewer than it should.
const YOUNG: f64 = 5.0;

/// What is known of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Setting {
    /// Its default.
    Unset,
    Known(String),
    /// By an expression.
    Computed,
}

impl Setting {
    /// What a stronger source says, if it says something.
    fn or_stronger(self, stronger: Option<&str>) -> Self {
        stronger.map_or(self, |value| Self::Known(value.to_owned()))
    }

    fn number(&self, default: u32) -> Option<u32> {
        match self {
            Self::Unset => Some(default),
            Self::Known(text) => text.trim().parse().ok(),
            Self::Computed => None,
        }
    }
}

/// The variable with arguments.
const ARGUMENTS: &str = "GUNICORN_CMD_ARGS";
/// What it is recognised by where there is no command line any more.
const TITLE: &str = "process title";

pub(super) fn recognise(
    process: &ProcessFacts,
    args: &Args,
    read: &ReadFile<'_>,
) -> Option<Server> {
    let title = process.command.first();
    let how = match args.program.as_str() {
        "gunicorn" | "gunicorn_paster" => "command line",
        _ if title.is_some_and(|title| title.starts_with("gunicorn: ")) => TITLE,
        _ => return None,
    };
    server(process, args, read, how)
}

/// Started by a program of the app's own. Only if it can be no other server: an image may set the variable for whatever
/// is run of it.
pub(super) fn by_environment(
    process: &ProcessFacts,
    args: &Args,
    read: &ReadFile<'_>,
) -> Option<Server> {
    let has_workers = process.children.iter().any(|child| child.listens);
    let is_set = process.environment.contains_key(ARGUMENTS);
    (is_set && has_workers)
        .then(|| server(process, args, read, "environment"))
        .flatten()
}

fn server(
    process: &ProcessFacts,
    args: &Args,
    read: &ReadFile<'_>,
    how: &'static str,
) -> Option<Server> {
    let titled = how == TITLE;
    let by_variable = process.environment.get(ARGUMENTS);
    let from_variable = by_variable
        .map(|text| Args::of_text(text))
        .unwrap_or_default();
    let file = config_file(process, args, &from_variable, read);
    let setting = |names: &[&str], key: &str| {
        let of_file = match &file {
            File::None => Setting::Unset,
            File::Missing(_) | File::Module => Setting::Computed,
            File::Text(text) => assigned(text, key),
        };
        // Without a command line there is no telling what stood there.
        let of_file = if titled { Setting::Computed } else { of_file };
        of_file
            .or_stronger(from_variable.value(names))
            .or_stronger(args.value(names))
    };
    let class = setting(&["-k", "--worker-class"], "worker_class");
    let threads = setting(&["--threads"], "threads");
    let configured = match setting(&["-w", "--workers"], "workers") {
        Setting::Unset => process
            .environment
            .get("WEB_CONCURRENCY")
            .map_or(Setting::Unset, |value| Setting::Known(value.clone())),
        other => other,
    };
    let workers = workers(process, configured.number(1));
    let class = match &class {
        Setting::Unset => Some("sync"),
        Setting::Known(name) => Some(name.as_str()),
        Setting::Computed => None,
    };
    // `sync` with several threads is gthread.
    let class = match (class, threads.number(1)) {
        (Some("sync"), Some(threads)) if threads > 1 => Some("gthread"),
        (class, _) => class,
    };
    let unknown = |what: &str| {
        let why = match &file {
            File::Missing(path) => format!("its configuration file {path} was not found"),
            _ => format!("its {what} cannot be read off its command line or configuration file"),
        };
        Err(format!(
            "{why}; name its control socket, or set discovery.slots"
        ))
    };
    let (profile, accepts, slots) = match class {
        Some("sync") if threads == Setting::Computed => (
            Profile::Generic,
            Accepts::Unknown,
            unknown("number of threads"),
        ),
        Some("sync") => (
            Profile::GunicornSync,
            Accepts::WhenIdle,
            Count::product(workers, 1),
        ),
        Some("gthread") => (
            Profile::GunicornGthread,
            Accepts::Eagerly,
            match threads.number(1) {
                Some(threads) => Count::product(workers, threads.max(1)),
                None => unknown("number of threads"),
            },
        ),
        // Its loop is blocked by a request, so it accepts no other.
        Some("tornado") => (
            Profile::Generic,
            Accepts::WhenIdle,
            Count::product(workers, 1),
        ),
        Some(class) if class.contains("gevent") || class == "eventlet" => (
            Profile::GunicornGevent,
            Accepts::Eagerly,
            Err(unbounded(
                "a greenlet for each connection, so its CPU is the bound",
            )),
        ),
        Some(class) => (
            Profile::Generic,
            Accepts::Eagerly,
            Err(format!("its worker class {class} is not known")),
        ),
        None => (Profile::Generic, Accepts::Unknown, unknown("worker class")),
    };
    Some(Server {
        profile,
        name: "gunicorn",
        how,
        accepts,
        slots,
    })
}

fn workers(process: &ProcessFacts, configured: Option<u32>) -> u32 {
    let counted = process
        .children
        .iter()
        .filter(|child| child.listens)
        .count();
    let counted = u32::try_from(counted).unwrap_or(u32::MAX);
    match configured {
        Some(configured) if process.age < YOUNG => configured.max(counted),
        _ => counted,
    }
}

enum File {
    None,
    /// It was named so.
    Missing(String),
    /// A module of Python, which is found where Python finds it.
    Module,
    Text(String),
}

fn config_file(process: &ProcessFacts, args: &Args, variable: &Args, read: &ReadFile<'_>) -> File {
    let names = ["-c", "--config"];
    match args.value(&names).or_else(|| variable.value(&names)) {
        Some(named) if named.starts_with("python:") => File::Module,
        Some(named) => {
            let path = named.strip_prefix("file:").unwrap_or(named);
            let found = read_at_start(process, path, read);
            found.map_or_else(|| File::Missing(path.to_owned()), File::Text)
        }
        None => {
            let found = read_at_start(process, "gunicorn.conf.py", read);
            found.map_or(File::None, File::Text)
        }
    }
}

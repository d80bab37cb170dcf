//! uWSGI, by its master or its first worker.

use super::{Accepts, Args, Count, ReadFile, Server, read_at_start, unbounded};
use crate::{config::Profile, sense::facts::ProcessFacts};

pub(super) fn recognise(
    process: &ProcessFacts,
    args: &Args,
    read: &ReadFile<'_>,
) -> Option<Server> {
    let titled = process
        .command
        .first()
        .is_some_and(|title| title.starts_with("uWSGI "));
    let how = match args.program.as_str() {
        "uwsgi" | "pyuwsgi" | "uwsgi-core" | "uwsgi_python3" => "command line",
        _ if titled || process.name.starts_with("uwsgi") => "process name",
        _ => return None,
    };
    let ini = args
        .value(&["--ini"])
        .or_else(|| {
            args.rest
                .iter()
                .map(String::as_str)
                .find(|word| word.ends_with(".ini"))
        })
        .and_then(|path| read_at_start(process, path, read));
    let setting = |names: &[&str]| -> Option<String> {
        let long: Vec<String> = names
            .iter()
            .filter(|name| name.len() > 1)
            .map(|name| format!("--{name}"))
            .collect();
        let short = names
            .iter()
            .filter(|name| name.len() == 1)
            .map(|name| format!("-{name}"));
        let options: Vec<String> = long.into_iter().chain(short).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let variable = |name: &&str| {
            let name = format!("UWSGI_{}", name.replace('-', "_").to_ascii_uppercase());
            process.environment.get(&name).cloned()
        };
        args.value(&options)
            .map(str::to_owned)
            .or_else(|| ini.as_deref().and_then(|ini| ini_value(ini, names)))
            .or_else(|| names.iter().find_map(variable))
    };
    let number = |names: &[&str]| setting(names).map(|value| value.trim().parse::<u32>());
    let processes = number(&["processes", "workers", "p"]);
    let threads = number(&["threads"]);
    let loops = setting(&["gevent"]).or_else(|| setting(&["async"]));
    let (accepts, slots) = match (processes, threads, loops) {
        (_, _, Some(_)) => (
            Accepts::Eagerly,
            Err(unbounded(
                "a loop (gevent or async), so its CPU is the bound",
            )),
        ),
        (Some(Ok(processes)), threads, None) if !matches!(threads, Some(Err(_))) => {
            let threads = threads.and_then(Result::ok).unwrap_or(1);
            (Accepts::WhenIdle, Count::product(processes, threads))
        }
        // Without the option it is one process.
        (None, Some(Ok(threads)), None) => (Accepts::WhenIdle, Count::product(1, threads)),
        (None, None, None)
            if how == "command line" && ini.is_some() == has_ini(args) && !has_other(args) =>
        {
            (Accepts::WhenIdle, Count::product(1, 1))
        }
        _ => (
            Accepts::WhenIdle,
            Err(
                "its processes and threads cannot be read off its command line or ini file; \
                 name its stats server in discovery.uwsgi_stats, or set discovery.slots"
                    .to_owned(),
            ),
        ),
    };
    Some(Server {
        profile: Profile::Uwsgi,
        name: "uWSGI",
        how,
        accepts,
        slots,
    })
}

fn has_ini(args: &Args) -> bool {
    args.value(&["--ini"]).is_some() || args.rest.iter().any(|word| word.ends_with(".ini"))
}

/// Whether it has a configuration in another form.
fn has_other(args: &Args) -> bool {
    let forms = [
        "--yaml",
        "--xml",
        "--json",
        "--emperor",
        "--include",
        "--inherit",
    ];
    forms.iter().any(|form| args.value(&[form]).is_some())
        || args.rest.iter().any(|word| {
            [".yaml", ".yml", ".xml", ".json"]
                .iter()
                .any(|end| word.ends_with(end))
        })
}

/// A key's value in the section `[uwsgi]`.
fn ini_value(ini: &str, names: &[&str]) -> Option<String> {
    let mut inside = false;
    let mut found = None;
    for line in ini.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.starts_with("uwsgi]");
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let key = key.trim().replace('_', "-");
            if names.contains(&key.as_str()) {
                found = Some(value.trim().to_owned());
            }
        }
    }
    found
}

//! The layers, one over the other: default < file < environment < flag.

use std::collections::BTreeMap;

use super::{
    address::Address,
    file::{Entry, FileLayer, unknown_key},
    load::Sources,
    origin::Origin,
    problem::{Report, closest, did_you_mean},
    schema::{self, Key},
    typed::{self, Typed},
    value::Value,
};

/// The value of a key, and who set it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) value: Typed,
    pub(super) origin: Origin,
}

/// Every key of a table with its value: of the whole configuration, or of one route.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings(BTreeMap<&'static str, Setting>);

/// One route, and where its table starts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RouteSettings {
    pub(super) origin: Origin,
    pub(super) settings: Settings,
}

impl Settings {
    fn defaults(keys: impl Iterator<Item = &'static Key>) -> Settings {
        let setting = |key: &'static Key| Setting {
            value: typed::default(key),
            origin: Origin::Default,
        };
        Settings(keys.map(|key| (key.path, setting(key))).collect())
    }

    /// # Panics
    /// When there is no such key in the schema: a mistake in this module.
    pub(super) fn get(&self, path: &str) -> &Setting {
        self.0
            .get(path)
            .unwrap_or_else(|| unreachable!("{path} is in the schema"))
    }

    pub(super) fn set(&mut self, path: &'static str, value: Typed, origin: Origin) {
        self.0.insert(path, Setting { value, origin });
    }

    /// Takes a value for a key, if it is what the key takes; else the layer below stays.
    fn apply(&mut self, entry: &Entry, label: &str, report: &mut Report) {
        let Entry { key, value, origin } = entry;
        match typed::typed(&key.kind, value) {
            Ok(value) => {
                self.set(key.path, value, origin.clone());
            }
            Err(faults) => {
                for fault in faults {
                    let origin = match (origin, fault.position) {
                        (Origin::File { path, .. }, Some(position)) => &Origin::File {
                            path: path.clone(),
                            position,
                        },
                        _ => origin,
                    };
                    report.value(origin, label, &fault.message);
                }
            }
        }
    }
}

/// The layers as one; what is wrong in any of them goes to the report.
pub(super) fn resolve(
    file: &FileLayer,
    sources: &Sources,
    report: &mut Report,
) -> (Settings, Vec<RouteSettings>) {
    let mut settings = Settings::defaults(schema::plain_keys());
    if let Some(address) = &sources.backend {
        let endpoints = Typed::Addresses(vec![address.clone()]);
        settings.set("backend.endpoints", endpoints, Origin::Default);
    }
    for entry in &file.entries {
        settings.apply(entry, entry.key.path, report);
    }
    for entry in environment(sources, report) {
        settings.apply(&entry, entry.key.path, report);
    }
    for (path, name, value) in &sources.flags {
        let origin = Origin::Flag { name: name.clone() };
        if let Some(key) = settable(path, &origin, report) {
            settings.apply(
                &Entry {
                    key,
                    value: value.clone(),
                    origin,
                },
                path,
                report,
            );
        }
    }
    make_room_for_limit(&mut settings);
    if sources.for_exec_too && settings.get("process.command").value != Typed::Texts(Vec::new()) {
        leave_to_exec(&mut settings);
    }

    let mut routes = Vec::with_capacity(file.routes.len());
    for route in &file.routes {
        let mut settings = Settings::defaults(schema::route_keys());
        for entry in &route.entries {
            settings.apply(entry, entry.key.path, report);
        }
        routes.push(RouteSettings {
            origin: route.origin.clone(),
            settings,
        });
    }
    (settings, routes)
}

/// The key, unless it is unknown or a route's.
fn settable(path: &str, origin: &Origin, report: &mut Report) -> Option<&'static Key> {
    let is_route = path == schema::ROUTE || path.starts_with("route.");
    if is_route {
        report.plain(
            origin,
            Some(path),
            "routes are set in the configuration file only",
        );
        return None;
    }
    let key = schema::find(path);
    if key.is_none() {
        report.plain(origin, Some(path), unknown_key(path));
    }
    key
}

/// The short names of variables.
const SHORT: &[(&str, &str)] = &[
    ("TIDEGATE_LISTEN", "server.listen"),
    ("TIDEGATE_BACKEND", "backend.endpoints"),
    ("TIDEGATE_ADMIN", "admin.listen"),
];

fn environment(sources: &Sources, report: &mut Report) -> Vec<Entry> {
    let mut short = Vec::new();
    let mut long = Vec::new();
    for (name, text) in &sources.env {
        let Some(rest) = name.strip_prefix("TIDEGATE_") else {
            continue;
        };
        let origin = Origin::Env { name: name.clone() };
        let entry = |key| Entry {
            key,
            value: Value::Bare(text.clone()),
            origin: origin.clone(),
        };
        if let Some((_, path)) = SHORT.iter().find(|(one, _)| one == name) {
            // An empty short form is how a compose file says "not set".
            if !text.trim().is_empty() {
                short.extend(schema::find(path).map(entry));
            }
        } else if let Some(key) =
            schema::plain_keys().find(|key| schema::env_name(key.path) == *name)
        {
            long.push(entry(key));
        } else if rest == "ROUTE" || rest.starts_with("ROUTE__") {
            report.plain(
                &origin,
                None,
                "routes are set in the configuration file only",
            );
        } else if rest.contains("__")
            || schema::plain_keys().any(|key| key.path.replace('.', "_").eq_ignore_ascii_case(rest))
        {
            // With one underscore between section and key it is nobody else's variable either.
            let names: Vec<_> = schema::plain_keys()
                .map(|key| schema::env_name(key.path))
                .collect();
            // Compared without the common prefix, which would make all names alike.
            let lower: Vec<_> = names
                .iter()
                .map(|name| name["TIDEGATE_".len()..].to_ascii_lowercase())
                .collect();
            let meant = closest(rest, lower.iter().map(String::as_str))
                .and_then(|meant| lower.iter().position(|one| one == meant))
                .map(|index| names[index].as_str());
            report.plain(
                &origin,
                None,
                format!("unknown variable{}", did_you_mean(meant)),
            );
        }
    }
    // The long form is the more exact one: it wins.
    short.extend(long);
    short
}

/// A backend that nobody has named gets a free port.
fn leave_to_exec(settings: &mut Settings) {
    const KEY: &str = "backend.endpoints";
    if settings.get(KEY).origin == Origin::Default {
        let free = Typed::Addresses(vec![Address::any()]);
        settings.set(KEY, free, Origin::Default);
    }
}

/// `--limit 2000` is a limit of 2000, whatever min and max are.
fn make_room_for_limit(settings: &mut Settings) {
    let initial = settings.get("limit.initial").clone();
    let is_flag = matches!(&initial.origin, Origin::Flag { name } if name == "--limit");
    let Typed::Integer(limit) = initial.value else {
        return;
    };
    if !is_flag || limit == 0 {
        return;
    }
    if matches!(settings.get("limit.min").value, Typed::Integer(min) if min > limit) {
        settings.set("limit.min", Typed::Integer(limit), initial.origin.clone());
    }
    if matches!(settings.get("limit.max").value, Typed::Integer(max) if max < limit) {
        settings.set("limit.max", Typed::Integer(limit), initial.origin);
    }
}

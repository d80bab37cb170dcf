//! What must hold between keys.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    address::Address,
    origin::Origin,
    problem::Report,
    resolve::{RouteSettings, Settings},
    typed::Typed,
};

/// The label of requests that no route matches.
pub(crate) const UNROUTED: &str = "default";

/// Checks all rules; what is broken goes to the report, at the key that was set last.
pub(super) fn apply(settings: &Settings, routes: &[RouteSettings], report: &mut Report) {
    limits(settings, report);
    buffers(settings, report);
    addresses(settings, report);
    names(routes, report);
}

/// Reports at whichever of the two keys was set by the higher layer: that one broke the rule.
fn broken(s: &Settings, report: &mut Report, key: &str, other: &str, relation: &str, remedy: &str) {
    let (at, with) = (s.get(key), s.get(other));
    let (value, limit) = (&at.value, &with.value);
    if with.origin.rank().0 > at.origin.rank().0 {
        let message = format!("{key} ({value}) is {relation} it ({limit}); {remedy}");
        report.value(&with.origin, other, &message);
    } else {
        let message = format!("{value} is {relation} {other} ({limit}); {remedy}");
        report.value(&at.origin, key, &message);
    }
}

fn limits(s: &Settings, report: &mut Report) {
    let (initial, min, max) = (
        s.u64("limit.initial"),
        s.u64("limit.min"),
        s.u64("limit.max"),
    );
    if min > max {
        broken(
            s,
            report,
            "limit.min",
            "limit.max",
            "above",
            "lower one or raise the other",
        );
    } else if initial != 0 && initial < min {
        broken(
            s,
            report,
            "limit.initial",
            "limit.min",
            "below",
            "raise it, or write 0 for the default",
        );
    } else if initial > max {
        broken(
            s,
            report,
            "limit.initial",
            "limit.max",
            "above",
            "lower it, or write 0 for the default",
        );
    }
    if s.f64("limit.resources.memory_high") > s.f64("limit.resources.memory_max") {
        let (high, max) = ("limit.resources.memory_high", "limit.resources.memory_max");
        broken(
            s,
            report,
            high,
            max,
            "above",
            "lower one or raise the other",
        );
    }
}

fn buffers(s: &Settings, report: &mut Report) {
    for key in ["buffers.request", "buffers.response"] {
        if s.u64(key) > s.u64("buffers.total") {
            broken(
                s,
                report,
                key,
                "buffers.total",
                "above",
                "lower one or raise the other",
            );
        }
    }
}

fn addresses(s: &Settings, report: &mut Report) {
    let listens = s.addresses("server.listen");
    let admin = s.address("admin.listen");
    for listen in &listens {
        // Two free ports are not the same.
        let free = matches!(listen, Address::Tcp { port: 0, .. });
        if *listen == admin && !free {
            let message = format!("\"{admin}\" is in server.listen too; choose another port");
            report.value(&s.get("admin.listen").origin, "admin.listen", &message);
        } else if listen.reaches(&admin) || admin.reaches(listen) {
            let message = format!(
                "server.listen \"{listen}\" and admin.listen \"{admin}\" are one port; choose another for one of them"
            );
            let (at, key) = later(s, "admin.listen", "server.listen");
            report.value(at, key, &message);
        }
        for endpoint in s.addresses("backend.endpoints") {
            if listen.reaches(&endpoint) {
                let message = format!(
                    "\"{endpoint}\" is where tidegate itself listens (server.listen \"{listen}\"); \
                     write the workers' address"
                );
                let (at, key) = later(s, "backend.endpoints", "server.listen");
                report.value(at, key, &message);
            }
        }
    }
    for endpoint in s.addresses("backend.endpoints") {
        if admin.reaches(&endpoint) {
            let message = format!(
                "\"{endpoint}\" is where tidegate's admin server listens (admin.listen \"{admin}\"); \
                 write the workers' address"
            );
            let (at, key) = later(s, "backend.endpoints", "admin.listen");
            report.value(at, key, &message);
        }
    }
}

/// Of two keys that clash, that which was set by the higher layer; the first if they are of one.
fn later<'a>(
    s: &'a Settings,
    one: &'static str,
    other: &'static str,
) -> (&'a Origin, &'static str) {
    let (first, second) = (&s.get(one).origin, &s.get(other).origin);
    if second.rank().0 > first.rank().0 {
        (second, other)
    } else {
        (first, one)
    }
}

fn names(routes: &[RouteSettings], report: &mut Report) {
    let mut known: HashMap<&str, &Origin> = HashMap::with_capacity(routes.len());
    for route in routes {
        let name = route.settings.get("route.name");
        if name.value == Typed::Text(String::new()) {
            let message = "is missing: it is a metric label; write name = \"...\"";
            report.value(&route.origin, "route.name", message);
        } else if name.value == Typed::Text(UNROUTED.to_owned()) {
            let message = format!(
                "{} is what requests are counted under that no route matches; choose another name",
                name.value
            );
            report.value(&name.origin, "route.name", &message);
        } else {
            match known.entry(route.settings.text("route.name")) {
                Entry::Vacant(new) => {
                    new.insert(&name.origin);
                }
                Entry::Occupied(first) => {
                    let message = format!(
                        "{} is the name of another route ({}); choose a unique one",
                        name.value,
                        first.get()
                    );
                    report.value(&name.origin, "route.name", &message);
                }
            }
        }
    }
}

//! A configuration for the backend that was examined: what tidegate was told of it, and beyond that only what it
//! would not find out by itself. Pure.

use std::{fmt::Write as _, time::Duration};

use super::{Keep, verdict::Evidence};
use crate::{
    config::{CgroupSetting, Discovery, Profile, format_size},
    sense::Source,
};

/// From here on the default of `backend.keepalive_idle`, 1 s, is short enough.
const ENOUGH: Duration = Duration::from_millis(900);

/// TOML that `tidegate check` accepts.
pub(super) fn toml(evidence: &Evidence<'_>) -> String {
    let mut out = String::new();
    let name = evidence
        .server
        .map_or("a server that is not known", |s| &s.name);
    // A comment must stay on its line, whatever the server calls itself.
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let _ = writeln!(
        out,
        "# For {name} at {}, by tidegate doctor.",
        evidence.endpoint
    );
    let _ = writeln!(
        out,
        "[backend]\nendpoints = [{}]",
        quoted(&evidence.endpoint.to_string())
    );
    if evidence.manners.uwsgi {
        let _ = writeln!(out, "protocol = \"uwsgi\"");
    }
    let by_process = evidence.findings.ladder.server.is_some();
    if !by_process && !matches!(evidence.profile, Profile::Auto | Profile::Generic) {
        let _ = writeln!(out, "profile = \"{}\"", evidence.profile);
    }
    let event_loop = super::known::has_loop(evidence.profile, evidence.server);
    if (event_loop || evidence.is_steered())
        && let Some(idle) = evidence.manners.keep.and_then(Keep::idle)
    {
        let _ = writeln!(out, "keepalive = true");
        if idle < ENOUGH {
            let millis = idle.as_millis() / 10 * 10;
            let _ = writeln!(out, "keepalive_idle = \"{millis}ms\"");
        }
    }
    let discovery = &mut String::new();
    match evidence.findings.slots() {
        Some(slots) if slots.source == Source::Configured => {
            let _ = writeln!(discovery, "slots = {}", slots.count);
        }
        Some(slots) => {
            let _ = writeln!(
                discovery,
                "# slots = {}            # {}, found by tidegate itself: {}",
                slots.count,
                slots.because,
                slots.source.as_str()
            );
        }
        None if evidence.is_unbounded() => {}
        None => {
            let _ = writeln!(
                discovery,
                "# slots = 4            # workers x threads, if you know them better than they can be seen"
            );
        }
    }
    told(evidence.given, discovery);
    if evidence.findings.cpu.is_err() && evidence.given.cpu_limit.is_none() {
        let _ = writeln!(
            discovery,
            "# cpu_limit = \"2\"      # its cores, which cannot be seen from here"
        );
    }
    if evidence.gauges.memory.is_none() && evidence.given.memory_limit.is_none() {
        let _ = writeln!(
            discovery,
            "# memory_limit = \"512MiB\"   # its memory, of which no limit can be seen from here"
        );
    }
    if !discovery.is_empty() {
        let _ = write!(out, "\n[discovery]\n{discovery}");
    }
    out
}

/// Without what it was told, it would not find all of this again. The slots are among what was found.
fn told(given: &Discovery, out: &mut String) {
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key} = {value}");
    };
    if let Some(path) = &given.gunicorn_control_socket {
        let path = quoted(&path.display().to_string());
        line("gunicorn_control_socket", path);
    }
    if let Some(address) = &given.uwsgi_stats {
        line("uwsgi_stats", quoted(&address.to_string()));
    }
    if !given.proc {
        line("proc", "false".to_owned());
    }
    if !given.accept_queue {
        line("accept_queue", "false".to_owned());
    }
    match &given.cgroup {
        CgroupSetting::Auto => {}
        CgroupSetting::Off => line("cgroup", quoted("off")),
        CgroupSetting::Path(path) => line("cgroup", quoted(path)),
    }
    if let Some(cores) = given.cpu_limit {
        line("cpu_limit", quoted(&cores.to_string()));
    }
    if let Some(bytes) = given.memory_limit {
        line("memory_limit", quoted(&format_size(bytes)));
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

//! Who is alive, as `/proc` tells it.

use std::fs;

/// What is needed of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    pid: i32,
    dead: bool,
    parent: i32,
    group: i32,
}

/// Whether the group has a member that is not a zombie. Without a `/proc`: perhaps.
pub(super) fn alive_in_group(group: i32) -> bool {
    let mut any = false;
    let found = all()
        .inspect(|_| any = true)
        .any(|stat| stat.group == group && !stat.dead);
    found || !any
}

/// The zombies among the children of a process.
pub(super) fn dead_children(parent: i32) -> Vec<i32> {
    all()
        .filter(|stat| stat.parent == parent && stat.dead)
        .map(|stat| stat.pid)
        .collect()
}

fn all() -> impl Iterator<Item = Stat> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let pid: i32 = name.to_str()?.parse().ok()?;
            // Names are bytes and may be anything.
            let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
            parse(pid, &String::from_utf8_lossy(&text))
        })
}

/// `PID (NAME) STATE PARENT GROUP ...`, where the name may hold spaces and parentheses.
fn parse(pid: i32, text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X" | "x");
    Some(Stat {
        pid,
        dead,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        assert_eq!(
            parse(42, "42 (a) S 1 (b)) Z 7 40 40 0 -1"),
            Some(Stat {
                pid: 42,
                dead: true,
                parent: 7,
                group: 40
            })
        );
        assert_eq!(
            parse(42, "42 (sh) S 7 40 40"),
            Some(Stat {
                pid: 42,
                dead: false,
                parent: 7,
                group: 40
            })
        );
        assert_eq!(parse(42, ""), None);
    }

    #[test]
    fn this_process_is_alive() {
        let group = rustix::process::getpgrp().as_raw_nonzero().get();
        assert!(alive_in_group(group));
    }
}

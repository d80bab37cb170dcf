//! The `process_*` metrics that every Prometheus client exports, from `/proc/self`. Where there is
//! no `/proc`, they are absent.

use std::fs;

use super::exposition::{Exposition, Kind};

/// The unit of CPU times in `/proc`: fixed at 100 Hz for user space on every platform Rust's Linux
/// targets run on (USER_HZ), whatever the kernel's own tick.
const TICKS_A_SECOND: f64 = 100.0;

/// The figures of this process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    cpu_seconds: f64,
    start_ticks: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
}

/// Writes the metrics of this process.
pub fn render(exposition: &mut Exposition) {
    if let Some(figures) = read() {
        exposition
            .family(
                Kind::Counter,
                "process_cpu_seconds_total",
                "CPU time used, user and system.",
            )
            .sample(&[], figures.cpu_seconds);
        exposition
            .family(
                Kind::Gauge,
                "process_resident_memory_bytes",
                "Memory in RAM.",
            )
            .sample(&[], figures.resident_bytes);
        exposition
            .family(
                Kind::Gauge,
                "process_virtual_memory_bytes",
                "Address space.",
            )
            .sample(&[], figures.virtual_bytes);
        if let Some(boot) = boot_seconds() {
            exposition
                .family(
                    Kind::Gauge,
                    "process_start_time_seconds",
                    "When the process started, since the Unix epoch.",
                )
                .sample(&[], boot + figures.start_ticks / TICKS_A_SECOND);
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself, open for this count.
        let open = entries.count().saturating_sub(1) as u64;
        exposition
            .family(Kind::Gauge, "process_open_fds", "Open file descriptors.")
            .sample(&[], open);
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        exposition
            .family(
                Kind::Gauge,
                "process_max_fds",
                "How many file descriptors may be open.",
            )
            .sample(&[], limit);
    }
}

fn read() -> Option<Figures> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    parse(&stat, &status)
}

fn parse(stat: &str, status: &str) -> Option<Figures> {
    // The second field is the command in parentheses and may contain anything, even `)`.
    let (_, fields) = stat.rsplit_once(") ")?;
    // The first one here is field 3 of proc_pid_stat(5).
    let field = |number: usize| fields.split(' ').nth(number - 3)?.parse::<f64>().ok();
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Figures {
        cpu_seconds: (field(14)? + field(15)?) / TICKS_A_SECOND,
        start_ticks: field(22)?,
        resident_bytes: kibibytes("VmRSS:")? * 1024,
        virtual_bytes: kibibytes("VmSize:")? * 1024,
    })
}

/// When the machine was started, in seconds since the Unix epoch.
fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 150 50 0 0 20 0 1 0 4200 9 9";
        let status = "Name:\tx\nVmSize:\t  2048 kB\nVmRSS:\t   1024 kB\n";
        assert_eq!(
            parse(stat, status),
            Some(Figures {
                cpu_seconds: 2.0,
                start_ticks: 4200.0,
                resident_bytes: 1 << 20,
                virtual_bytes: 2 << 20,
            })
        );
        assert_eq!(parse("", ""), None);
        assert_eq!(parse("7 (x) S 1", status), None);
    }
}

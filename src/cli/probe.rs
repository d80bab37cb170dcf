//! `tidegate probe`: how many parallel requests does the backend sustain?

use std::{
    fs,
    io::{self, IsTerminal, Write},
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use tokio::{runtime::Builder, signal, task::LocalSet};

use super::{
    ProbeArgs, ProbeFormat,
    admin_client::{FAILURE, complain, print},
};
use crate::{
    config::{self, Address, Origin},
    probe::{self, Plan, Report, Settings, Step, Target},
    runtime::raise_descriptors,
};

/// The exit code of a command line or a configuration that cannot be used.
const USAGE: u8 = 2;

/// Measures and prints. Exits with 0 also when it was interrupted after a step or more, but not without an answer:
/// what there is by then is printed in any case.
pub fn run(args: &ProbeArgs) -> ExitCode {
    let settings = match settings(args) {
        Ok(settings) => settings,
        Err(problem) => {
            complain(&problem);
            return ExitCode::from(USAGE);
        }
    };
    match measure(&settings) {
        Ok(report) => {
            let mut failed = false;
            if let Some(file) = &args.svg
                && let Err(error) = write(file, &probe::svg(&report))
            {
                complain(&format!("{}: {error}", file.display()));
                failed = true;
            }
            let text = match args.format {
                ProbeFormat::Text => probe::text(&report),
                ProbeFormat::Json => format!("{:#}\n", probe::json(&report)),
            };
            let printed = print(&text);
            if failed || report.knee.is_none() {
                FAILURE
            } else {
                printed
            }
        }
        Err(problem) => {
            complain(&problem);
            FAILURE
        }
    }
}

fn settings(args: &ProbeArgs) -> Result<Settings, String> {
    let loaded = config::load(&args.options.sources_to_look_at())
        .map_err(|problems| problems.to_string())?;
    let config = &loaded.config;
    let target = Target::resolve(&args.url, args.yes_remote).map_err(|e| e.to_string())?;
    let named = loaded.origins.get("backend.endpoints") != &Origin::Default;
    let known: &[Address] = if named {
        &config.backend.endpoints
    } else {
        &[]
    };
    let (watch, endpoints) = watched(known, &target.address);
    Ok(Settings {
        watch,
        endpoints,
        plan: Plan {
            target,
            keepalive: config.backend.keepalive,
            timeout: config.backend.response_timeout + config.backend.read_timeout,
        },
        max_clients: args.max_concurrency,
        step: args.step,
        config: loaded.config.clone(),
    })
}

/// Whose processes to watch, and among how many endpoints the requests are divided. What stands between is measured,
/// what stands behind it is watched; an endpoint that is itself measured has nothing to do with the others.
fn watched(endpoints: &[Address], target: &Address) -> (Address, usize) {
    match endpoints.first() {
        Some(first) if !endpoints.iter().any(|one| leads_to(one, target)) => {
            (resolved(first.clone()), endpoints.len())
        }
        _ => (target.clone(), 1),
    }
}

/// Whether an endpoint is this address, which has no names any more.
fn leads_to(endpoint: &Address, target: &Address) -> bool {
    let (Address::Tcp { host, port }, Address::Tcp { host: ip, .. }) = (endpoint, target) else {
        return endpoint == target;
    };
    let ends = |host: &str| (host, *port).to_socket_addrs().ok();
    let same = |found: SocketAddr| {
        found.ip().to_string() == *ip
            && matches!(target, Address::Tcp { port, .. } if *port == found.port())
    };
    endpoint == target || ends(host).is_some_and(|mut all| all.any(same))
}

/// The kernel's tables know numbers only.
fn resolved(address: Address) -> Address {
    let Address::Tcp { host, port } = &address else {
        return address;
    };
    let found = (host.as_str(), *port).to_socket_addrs().ok();
    let ip = found.and_then(|mut all| all.find(SocketAddr::is_ipv4));
    match ip {
        Some(ip) => Address::Tcp {
            host: ip.ip().to_string(),
            port: *port,
        },
        None => address,
    }
}

fn measure(settings: &Settings) -> Result<Report, String> {
    raise_descriptors(u64::from(settings.max_clients));
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let interrupted = async {
        if signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let mut progress = Progress::new(settings);
    let measured = LocalSet::new().block_on(
        &runtime,
        probe::run(settings, |n, step| progress.show(n, step), interrupted),
    );
    progress.clear();
    measured.map_err(|error| format!("{}: {error}", settings.plan.target))
}

/// One line on a terminal, drawn over; elsewhere nothing.
struct Progress {
    shown: bool,
    most: u32,
    step: Duration,
    last: String,
}

impl Progress {
    fn new(settings: &Settings) -> Self {
        Self {
            shown: io::stderr().is_terminal(),
            most: settings.max_clients,
            step: settings.step,
            last: String::new(),
        }
    }

    fn show(&mut self, clients: u32, step: Option<&Step>) {
        if !self.shown {
            return;
        }
        if let Some(step) = step {
            self.last = format!(
                "; {clients}: {:.1}/s{}",
                step.throughput(),
                step.tally
                    .latency
                    .map_or(String::new(), |l| format!(", p50 {:.1} ms", l.p50 * 1000.0)),
            );
            return;
        }
        let _ = write!(
            io::stderr(),
            "\r\u{1b}[K{} {clients} of at most {} clients for {}{}",
            bar(clients, self.most),
            self.most,
            humantime::format_duration(self.step),
            self.last
        );
    }

    fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}

/// Steps are two an octave, so the bar grows by octaves too.
fn bar(clients: u32, most: u32) -> String {
    const WIDTH: usize = 20;
    let octaves = |n: u32| f64::from(n.max(1)).log2() + 1.0;
    let full = (octaves(clients) / octaves(most) * WIDTH as f64).round() as usize;
    let full = full.min(WIDTH);
    format!("[{}{}]", "#".repeat(full), " ".repeat(WIDTH - full))
}

/// Writes the file whole or not at all, so that nobody ever looks at half a picture.
fn write(file: &Path, content: &str) -> io::Result<()> {
    // A link leads to where the picture is kept; a device or a pipe stays what it is.
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if file.exists() && !file.is_file() {
        return fs::write(file, content);
    }
    let mut new = tempfile::NamedTempFile::new_in(config::folder(file))?;
    new.write_all(content.as_bytes())?;
    // Readable as any file that is made in the usual way.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        new.as_file().set_permissions(mode)?;
    }
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn the_bar_is_full_at_the_bound() {
        assert_eq!(bar(1, 1), format!("[{}]", "#".repeat(20)));
        assert_eq!(bar(1, 256).matches('#').count(), 2);
        assert_eq!(bar(256, 256).matches('#').count(), 20);
    }

    #[test]
    fn the_endpoint_at_the_url_is_watched() {
        let at = |text: &str| Address::connect(text).unwrap();
        let (a, b) = (at("127.0.0.1:8001"), at("127.0.0.1:8002"));
        let both = [a.clone(), b.clone()];
        assert_eq!(watched(&both, &b), (b.clone(), 1));
        assert_eq!(
            watched(&[a.clone(), at("localhost:8002")], &b),
            (b.clone(), 1)
        );
        // tidegate stands there, and one or two behind it.
        let gate = at("127.0.0.1:8080");
        assert_eq!(watched(&both, &gate), (a.clone(), 2));
        assert_eq!(watched(&both[..1], &gate), (a, 1));
        assert_eq!(watched(&[], &gate), (gate.clone(), 1));
        let socket = at("unix:/run/app.sock");
        assert_eq!(watched(&[b, socket.clone()], &socket), (socket, 1));
    }

    #[test]
    fn a_picture_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.svg");
        write(&file, "one").unwrap();
        write(&file, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        assert!(write(&dir.path().join("none/a.svg"), "x").is_err());
        // In the place of a device: what goes wrong here must not cost the machine its own.
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut taken = File::options().read(true).write(true).open(&pipe).unwrap();
        for target in ["a.svg", "pipe"] {
            let link = dir.path().join("link");
            symlink(target, &link).unwrap();
            write(&link, "three").unwrap();
            assert!(link.is_symlink(), "{target}");
            std::fs::remove_file(&link).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "three");
        let mut three = [0; 5];
        taken.read_exact(&mut three).unwrap();
        assert_eq!(&three, b"three");
    }
}

//! What the end-to-end tests share: the real binary, a real gunicorn, a scripted backend and a raw
//! HTTP client. Nothing here sleeps to synchronise: it polls, with a deadline, and fails with the
//! log. Whatever is started is ended when its value is dropped, also by a panic.
#![allow(dead_code, unused_imports, missing_docs, clippy::print_stdout)]

pub mod app;
pub mod browser;
pub mod cases;
pub mod cgroup;
pub mod client;
pub mod dice;
pub mod frames;
pub mod http2;
pub mod metrics;
pub mod ports;
pub mod process;
pub mod raw;
pub mod servers;
pub mod venv;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tidegate::clock;

pub use app::Gunicorn;
pub use client::{Client, Response, get, request, try_get};
pub use metrics::Metrics;
pub use process::Process;
pub use raw::{Held, Raw};

/// Long enough that only a broken test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until it is so.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    until_some(what, || done().then_some(()));
}

/// Waits until there is one.
#[track_caller]
pub fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = clock::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            clock::now() - start < PATIENCE,
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `work` on so many lanes at once, and says what failed on any of them.
pub fn on_lanes(lanes: usize, work: impl Fn(usize) -> Vec<String> + Sync) -> Vec<String> {
    std::thread::scope(|scope| {
        let work = &work;
        let lanes: Vec<_> = (0..lanes)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        lanes
            .into_iter()
            .flat_map(|lane| lane.join().expect("a lane does not fail"))
            .collect()
    })
}

/// Since `start`.
pub fn since(start: Instant) -> Duration {
    clock::now().saturating_duration_since(start)
}

/// Whether the process runs: neither gone nor a zombie.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    })
}

/// The living children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&candidate| {
            fs::read_to_string(format!("/proc/{candidate}/stat")).is_ok_and(|stat| {
                stat.rsplit_once(')').is_some_and(|(_, rest)| {
                    let mut fields = rest.split_whitespace();
                    let state = fields.next();
                    state != Some("Z") && fields.next() == Some(pid.to_string().as_str())
                })
            })
        })
        .collect()
}

/// All living descendants of a process.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut at = 0;
    while at < found.len() {
        found.extend(children(found[at]));
        at += 1;
    }
    found
}

/// Resident memory of a process now, and the most it ever was, in bytes.
pub fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let figure = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    (figure("VmRSS:"), figure("VmHWM:"))
}

/// What a process's descriptors are: "socket:[123]" and so on.
pub fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        .collect()
}

/// `tidegate` with nothing of this process's environment that would configure it.
pub fn tidegate_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os() {
        let ours = name
            .to_str()
            .is_some_and(|name| name.starts_with("TIDEGATE_"));
        if ours || name == "RUST_LOG" || name == "PORT" || name == "NOTIFY_SOCKET" {
            command.env_remove(name);
        }
    }
    command
}

/// A short command of `tidegate`: its exit code, standard output and standard error.
#[track_caller]
pub fn tidegate(args: &[&str]) -> (i32, String, String) {
    let child = tidegate_command()
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tidegate starts");
    let output = child.wait_with_output().expect("tidegate ends");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// How a `tidegate` is to be started.
#[derive(Debug)]
pub struct Setup {
    verb: &'static str,
    args: Vec<String>,
    env: Vec<(String, String)>,
    listen: bool,
    command: Vec<String>,
    toml: String,
}

impl Setup {
    /// `--backend`
    pub fn backend(self, address: &str) -> Self {
        self.arg("--backend").arg(address)
    }

    /// `--limit`
    pub fn limit(self, limit: u32) -> Self {
        self.arg("--limit").arg(limit.to_string())
    }

    /// `--set`
    pub fn set(self, assignment: impl Into<String>) -> Self {
        self.arg("--set").arg(assignment)
    }

    /// `--listen`, instead of a port of 127.0.0.1.
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = false;
        self.arg("--listen").arg(address)
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The content of the configuration file.
    pub fn toml(mut self, text: &str) -> Self {
        self.toml.push_str(text);
        self.toml.push('\n');
        self
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Tidegate {
        let mut tidegate = self.launch();
        tidegate.wait_ready();
        tidegate
    }

    /// Starts it.
    #[track_caller]
    pub fn launch(self) -> Tidegate {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("tidegate.toml");
        let mut command = tidegate_command();
        command.arg(self.verb).args(&self.args);
        if self.listen {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(["--admin", "127.0.0.1:0", "--log-format", "json"]);
        if !self.toml.is_empty() {
            fs::write(&file, &self.toml).expect("a configuration file");
            command.arg("--config").arg(&file);
        }
        if !self.command.is_empty() {
            command.arg("--").args(&self.command);
        }
        // Where the tests' application notes its requests, if it is the command.
        command.env("APP_DIR", dir.path()).envs(self.env);
        Tidegate {
            process: Process::start("tidegate", &mut command),
            listen: Vec::new(),
            admin: String::new(),
            file,
            dir,
        }
    }
}

/// A running `tidegate`.
#[derive(Debug)]
pub struct Tidegate {
    pub process: Process,
    listen: Vec<String>,
    admin: String,
    file: PathBuf,
    dir: tempfile::TempDir,
}

impl Tidegate {
    /// `tidegate run`
    pub fn run() -> Setup {
        Setup {
            verb: "run",
            args: Vec::new(),
            env: Vec::new(),
            listen: true,
            command: Vec::new(),
            toml: String::new(),
        }
    }

    /// `tidegate run --backend ADDRESS`
    pub fn to(address: &str) -> Setup {
        Self::run().backend(address)
    }

    /// `tidegate exec -- COMMAND`
    pub fn exec<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Setup {
        Setup {
            verb: "exec",
            command: command.into_iter().map(Into::into).collect(),
            ..Self::run()
        }
    }

    /// Waits for the log to say that it serves, and where.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let ready = self.process.logged("\"tidegate is ready\"", |log| {
            log.lines()
                .find(|line| line.contains("tidegate is ready"))
                .and_then(|line| serde_json::from_str::<Value>(line).ok())
        });
        let field = |key: &str| {
            let value = ready.get(key).or_else(|| ready.get("fields")?.get(key));
            value
                .and_then(Value::as_str)
                .unwrap_or_else(|| panic!("no {key} in {ready}"))
                .to_owned()
        };
        self.listen = field("listen").split(", ").map(str::to_owned).collect();
        self.admin = field("admin");
    }

    /// Where it listens for clients; the first, if there are several.
    pub fn address(&self) -> &str {
        &self.listen[0]
    }

    pub fn addresses(&self) -> &[String] {
        &self.listen
    }

    /// Where it listens for its operators.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its configuration file: written by [`Setup::toml`], to be overwritten for a reload.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A directory that goes with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The lines of its log as JSON whose message contains `text`.
    pub fn events(&self, text: &str) -> Vec<Value> {
        self.log()
            .lines()
            .filter(|line| line.contains(text))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// A connection to it.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// GET over a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        get(self.address(), path)
    }

    /// GET from the admin server.
    #[track_caller]
    pub fn admin_get(&self, path: &str) -> Response {
        get(&self.admin, path)
    }

    /// POST to the admin server.
    #[track_caller]
    pub fn admin_post(&self, path: &str, body: &str) -> Response {
        request(
            &self.admin,
            "POST",
            path,
            &[("Content-Type", "application/json")],
            body.as_bytes(),
        )
    }

    /// `/metrics`
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let response = self.admin_get("/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        Metrics::parse(&response.text())
    }

    /// One metric, summed over what the labels leave open.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().sum(name, labels)
    }

    /// `/status`
    #[track_caller]
    pub fn status(&self) -> Value {
        self.admin_get("/status").json()
    }

    /// Waits until a metric has this value.
    #[track_caller]
    pub fn until_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut last = f64::NAN;
        let start = clock::now();
        while since(start) < PATIENCE {
            last = self.metric(name, labels);
            if last == value {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{name}{labels:?} is {last}, not {value}");
    }

    /// Waits until nothing is in flight and nothing waits.
    #[track_caller]
    pub fn until_idle(&self) {
        self.until_metric("tidegate_in_flight_requests", &[], 0.0);
        self.until_metric("tidegate_queued_requests", &[], 0.0);
    }

    /// TERM, then its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        self.process.stop()
    }
}

//! A real gunicorn with the Flask application of `tests/apps`.

use std::{fs, path::Path, process::Command};

use super::{Process, children, try_get, until, venv::venv};

/// The command line of a gunicorn with the tests' application, without `--bind`.
pub fn gunicorn_command(args: &[&str]) -> Vec<String> {
    let gunicorn = venv().join("gunicorn");
    let apps = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps");
    let mut command = vec![gunicorn.to_str().expect("text").to_owned()];
    let fixed = [
        "--no-control-socket",
        "--chdir",
        apps,
        "--graceful-timeout",
        "5",
    ];
    command.extend(fixed.iter().chain(args).map(|&arg| arg.to_owned()));
    command.push("app:app".to_owned());
    command
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Gunicorn {
    pub process: Process,
    address: String,
    dir: tempfile::TempDir,
}

impl Gunicorn {
    /// `sync` workers on a port of their own.
    pub fn sync(workers: u32) -> Self {
        Self::start(&["--workers", &workers.to_string()])
    }

    /// One `gthread` worker.
    pub fn gthread(threads: u32) -> Self {
        Self::gthreads(1, threads)
    }

    /// So many `gthread` workers, of so many threads each.
    pub fn gthreads(workers: u32, threads: u32) -> Self {
        let (workers, threads) = (workers.to_string(), threads.to_string());
        let threads = ["--worker-class", "gthread", "--threads", &threads];
        Self::start(&[&threads[..], &["--workers", &workers]].concat())
    }

    /// On a port of its own.
    pub fn start(args: &[&str]) -> Self {
        Self::bound("127.0.0.1:0", args)
    }

    /// On a Unix socket of its own.
    pub fn unix(args: &[&str]) -> Self {
        Self::bound("", args)
    }

    /// In this control group.
    #[track_caller]
    pub fn within(group: &Path, args: &[&str]) -> Self {
        let procs = group.join("cgroup.procs").display().to_string();
        let enter = ["sh", "-c", "echo $$ >\"$0\"; exec \"$@\"", procs.as_str()];
        Self::launched(&enter, "127.0.0.1:0", args)
    }

    /// At this address; an empty one is a Unix socket.
    #[track_caller]
    pub fn bound(bind: &str, args: &[&str]) -> Self {
        Self::launched(&[], bind, args)
    }

    #[track_caller]
    fn launched(before: &[&str], bind: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = format!("unix:{}", dir.path().join("app.sock").display());
        let bind = if bind.is_empty() { &socket } else { bind };
        let mut args = args.to_vec();
        args.extend(["--bind", bind]);
        let mut command: Vec<String> = before.iter().map(|&part| part.to_owned()).collect();
        command.extend(gunicorn_command(&args));
        let mut process = Process::start(
            "gunicorn",
            Command::new(&command[0])
                .args(&command[1..])
                .env("APP_DIR", dir.path())
                .env_remove("GUNICORN_CMD_ARGS")
                .env_remove("PORT"),
        );
        // "Listening at: http://127.0.0.1:40001 (123)"
        let address = process.logged("gunicorn's address", |log| {
            let (_, rest) = log.split_once("Listening at: ")?;
            let (address, _) = rest.split_once(' ')?;
            Some(match address.strip_prefix("http://") {
                Some(tcp) => tcp.to_owned(),
                None => format!("unix:{}", address.trim_start_matches("unix:")),
            })
        });
        let gunicorn = Self {
            process,
            address,
            dir,
        };
        until("gunicorn answers", || {
            try_get(&gunicorn.address, "/pid").is_ok_and(|answer| answer.status == 200)
        });
        // The first worker answers before the last one is forked.
        until("all of gunicorn's workers are there", || {
            children(gunicorn.process.pid()).len() >= workers(&args)
        });
        gunicorn
    }

    /// `host:port` or `unix:/path`
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How many requests for this path have begun.
    pub fn started(&self, path: &str) -> usize {
        let line = format!("+ {path}");
        self.events().lines().filter(|known| *known == line).count()
    }

    /// The most requests for this path that ran at the same time.
    pub fn most_at_once(&self, path: &str) -> usize {
        let (mut now, mut most) = (0_usize, 0);
        for event in self.events().lines() {
            match event.split_once(' ') {
                Some(("+", of)) if of == path => now += 1,
                Some(("-", of)) if of == path => now -= 1,
                _ => {}
            }
            most = most.max(now);
        }
        most
    }

    fn events(&self) -> String {
        fs::read_to_string(self.dir.path().join("events")).unwrap_or_default()
    }
}

/// How many workers a command line asks for.
fn workers(args: &[&str]) -> usize {
    let asked = args.iter().enumerate().find_map(|(at, arg)| {
        let rest = arg.strip_prefix("--workers")?;
        rest.strip_prefix('=').or_else(|| args.get(at + 1).copied())
    });
    asked.map_or(1, |count| count.parse().expect("a number of workers"))
}

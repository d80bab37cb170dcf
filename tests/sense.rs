//! What tidegate sees of real servers from outside: their slots, their accept queue, their CPU and memory.

#![allow(clippy::print_stdout)] // says what it leaves out, and why

mod common;

use std::{fs, path::PathBuf, process::Command, sync::OnceLock};

use common::{
    Client, Gunicorn, Process, Tidegate, app::gunicorn_command, cgroup::Group, children, since,
    until, until_some, venv::venv,
};
use rustix::process::Signal;
use serde_json::Value;
use tidegate::{clock, sense};

/// What `/status` shows of the only endpoint.
fn endpoint(tidegate: &Tidegate) -> Value {
    tidegate.status()["backend"]["endpoints"][0].clone()
}

/// Waits until the slots are so many, by this source.
#[track_caller]
fn until_slots(tidegate: &Tidegate, slots: u64, source: &str) {
    until(&format!("{source} says {slots} slots"), || {
        let endpoint = endpoint(tidegate);
        endpoint["slots"] == slots && endpoint["slots_source"] == source
    });
}

fn seen(tidegate: &Tidegate, pointer: &str) -> Value {
    let endpoint = endpoint(tidegate);
    endpoint["seen"]
        .pointer(pointer)
        .cloned()
        .unwrap_or_default()
}

#[test]
fn the_slots_of_a_gunicorn_are_seen_before_the_first_request() {
    let app = Gunicorn::sync(2);
    let tidegate = Tidegate::to(app.address()).start();
    let status = tidegate.status();
    let endpoint = &status["backend"]["endpoints"][0];
    assert_eq!(endpoint["slots"], 2);
    assert_eq!(endpoint["slots_source"], "proc");
    assert_eq!(endpoint["seen"]["profile"], "gunicorn-sync");
    // What is known of that server's habits is in force.
    assert_eq!(endpoint["profile"], "gunicorn-sync");
    assert_eq!(endpoint["profile_source"], "process");
    assert_eq!(endpoint["seen"]["process"]["pid"], app.process.pid());
    // That is where the limit starts, and what holds it there.
    assert_eq!(status["limit"], 2);
    assert_eq!(status["bound_by"], "workers");
    let metrics = tidegate.metrics();
    assert_eq!(
        metrics.sum("tidegate_backend_slots", &[("source", "proc")]),
        2.0
    );
    let available = |signal| metrics.sum("tidegate_signal_available", &[("signal", signal)]);
    assert_eq!((available("slots"), available("accept_queue")), (1.0, 1.0));
}

#[test]
fn workers_that_come_and_go_are_followed() {
    let mut app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address()).start();
    until_slots(&tidegate, 1, "proc");
    app.process.signal(Signal::TTIN);
    until_slots(&tidegate, 2, "proc");
    app.process.signal(Signal::TTIN);
    until_slots(&tidegate, 3, "proc");
    app.process.signal(Signal::TTOU);
    until_slots(&tidegate, 2, "proc");
    assert_eq!(children(app.process.pid()).len(), 2);
}

#[test]
fn an_upgrade_counts_the_workers_of_both_masters() {
    let mut app = Gunicorn::sync(3);
    let tidegate = Tidegate::to(app.address()).start();
    until_slots(&tidegate, 3, "proc");
    let old = app.process.pid();
    let of_old = children(old);
    app.process.signal(Signal::USR2);
    until_slots(&tidegate, 6, "proc");
    let master = |pid: &u32| !of_old.contains(pid);
    let new = children(old).into_iter().find(master).expect("a new one");
    until("it has its workers", || children(new).len() == 3);
    // The old ones go. Their master stays, for a way back.
    app.process.signal(Signal::TTOU);
    until_slots(&tidegate, 5, "proc");
    app.process.signal(Signal::TTOU);
    until_slots(&tidegate, 4, "proc");
}

#[test]
fn threads_count_and_hide_the_accept_queue() {
    let app = Gunicorn::start(&["--workers", "2", "--threads", "3"]);
    let tidegate = Tidegate::to(app.address()).start();
    until_slots(&tidegate, 6, "proc");
    assert_eq!(seen(&tidegate, "/profile"), "gunicorn-gthread");
    assert_eq!(seen(&tidegate, "/accept_queue/telling"), false);
    let metrics = tidegate.metrics();
    let signal = [("signal", "accept_queue")];
    assert_eq!(metrics.sum("tidegate_signal_available", &signal), 0.0);
}

#[test]
fn a_unix_socket_is_as_good() {
    let app = Gunicorn::unix(&["--workers", "2"]);
    let tidegate = Tidegate::to(app.address()).start();
    until_slots(&tidegate, 2, "proc");
    assert_eq!(seen(&tidegate, "/accept_queue/queued"), 0);
    assert_eq!(seen(&tidegate, "/accept_queue/source"), "netlink");
}

#[test]
fn a_socket_of_systemd_is_no_process_of_systemd() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps/activate.py");
    let named = "import runpy, sys
open('/proc/self/comm', 'w').write('systemd')
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')";
    let dir = tempfile::tempdir().expect("a directory");
    let mut manager = Process::start(
        "activate.py",
        Command::new("python3")
            .args(["-c", named, script, "http"])
            .args(gunicorn_command(&["--workers", "2"]))
            .env("APP_DIR", dir.path())
            .env_remove("GUNICORN_CMD_ARGS")
            .env_remove("PORT"),
    );
    let address = manager.logged("gunicorn's address", |log| {
        let (_, rest) = log.split_once("Listening at: http://")?;
        Some(rest.split_once(' ')?.0.to_owned())
    });
    let tidegate = Tidegate::to(&address).start();
    until_slots(&tidegate, 2, "proc");
    let gunicorn = children(manager.pid());
    assert_eq!(seen(&tidegate, "/process/pid"), gunicorn[0]);
}

#[test]
fn what_the_kernel_holds_for_busy_workers_is_counted() {
    for app in [Gunicorn::sync(1), Gunicorn::unix(&["--workers", "1"])] {
        let tidegate = Tidegate::to(app.address()).limit(4).start();
        let mut clients: Vec<Client> = (0..4).map(|_| tidegate.client()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.ask(if number == 0 {
                "/sleep?ms=2500"
            } else {
                "/pid"
            });
            until("the worker is busy", || app.started("/sleep") == 1);
        }
        // One is with the worker, three are in nobody's hands.
        // The queue is not among the metrics before somebody has looked.
        let are_seen = |count: f64| {
            let metrics = tidegate.metrics();
            let mut samples = metrics.samples().iter();
            samples
                .any(|(name, _, value)| name == "tidegate_backend_accept_queue" && *value == count)
        };
        until("three are in the queue", || are_seen(3.0));
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
        until("nobody is in the queue", || are_seen(0.0));
    }
}

#[test]
fn the_configuration_wins_and_can_be_changed_while_running() {
    let app = Gunicorn::sync(2);
    let tidegate = Tidegate::run()
        .toml(&format!(
            "[backend]\nendpoints = [\"{}\"]\n[discovery]\nslots = 5\n",
            app.address()
        ))
        .start();
    until_slots(&tidegate, 5, "configured");
    assert_eq!(tidegate.status()["limit"], 5);
    let text = fs::read_to_string(tidegate.file()).expect("the file");
    fs::write(tidegate.file(), text.replace("slots = 5", "slots = 0")).expect("written");
    until_slots(&tidegate, 2, "proc");
    fs::write(tidegate.file(), text.replace("slots = 5", "slots = 7")).expect("written");
    until_slots(&tidegate, 7, "configured");
}

#[test]
fn nothing_is_looked_at_that_was_switched_off() {
    let app = Gunicorn::sync(2);
    let tidegate = Tidegate::to(app.address())
        .set("discovery.proc=false")
        .set("discovery.accept_queue=false")
        .start();
    until("it has looked", || seen(&tidegate, "/profile") == "generic");
    let metrics = tidegate.metrics();
    for signal in ["slots", "accept_queue", "cpu", "memory", "psi"] {
        let labels = [("signal", signal)];
        assert_eq!(
            metrics.sum("tidegate_signal_available", &labels),
            0.0,
            "{signal}"
        );
    }
    assert_eq!(endpoint(&tidegate)["slots"], Value::Null);
}

#[test]
fn gunicorns_control_socket_is_asked_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("ctl");
    let socket = socket.to_str().expect("text");
    // Later options win, so the tests' own --no-control-socket has to go.
    let mut command =
        gunicorn_command(&["--workers", "2", "--threads", "4", "--bind", "127.0.0.1:0"]);
    command.retain(|arg| arg != "--no-control-socket");
    command.extend(["--control-socket", socket].map(str::to_owned));
    let mut app = Process::start(
        "gunicorn",
        Command::new(&command[0])
            .args(&command[1..])
            .env("APP_DIR", dir.path()),
    );
    let address = app.logged("its address", |log| {
        let (_, rest) = log.split_once("Listening at: http://")?;
        Some(rest.split_once(' ')?.0.to_owned())
    });
    let tidegate = Tidegate::to(&address)
        .set(format!("discovery.gunicorn_control_socket={socket}"))
        .start();
    until_slots(&tidegate, 8, "control_socket");
    assert_eq!(seen(&tidegate, "/server/recognised_by"), "control socket");
    app.signal(Signal::TTIN);
    until_slots(&tidegate, 12, "control_socket");
}

/// uWSGI as a ready-made package, beside the tests' own environment; `None` where there is none for this
/// Python.
fn uwsgi() -> Option<(PathBuf, PathBuf)> {
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("uwsgi");
        let installed = Command::new(venv().join("python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-input",
            ])
            .args(["--only-binary", ":all:", "--upgrade", "--target"])
            .arg(&dir)
            .arg("pyuwsgi~=2.0.30")
            .status();
        installed
            .is_ok_and(|status| status.success())
            .then_some(dir)
    });
    let dir = dir.clone()?;
    Some((dir.join("bin/uwsgi"), dir))
}

#[test]
fn uwsgis_stats_server_is_asked_and_its_command_line_read() {
    let Some((program, packages)) = uwsgi() else {
        println!("skipped: no uWSGI for this Python");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("app.sock");
    let stats = dir.path().join("stats");
    let apps = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps");
    let paths: Vec<PathBuf> = [packages, venv().join("../lib")]
        .into_iter()
        .chain(
            fs::read_dir(venv().join("../lib"))
                .expect("lib")
                .map(|entry| entry.expect("an entry").path().join("site-packages")),
        )
        .collect();
    let mut app = Process::start(
        "uwsgi",
        Command::new(venv().join("python"))
            .arg(program)
            .arg("--http-socket")
            .arg(&socket)
            .arg("--stats")
            .arg(&stats)
            .args([
                "--master",
                "--need-app",
                "--die-on-term",
                "--processes",
                "2",
                "--threads",
                "3",
            ])
            .args(["--chdir", apps, "--module", "app:app"])
            .env("PYTHONPATH", std::env::join_paths(paths).expect("paths"))
            .env("APP_DIR", dir.path()),
    );
    app.logged("its workers", |log| {
        log.contains("spawned uWSGI worker 2").then_some(())
    });
    let address = format!("unix:{}", socket.display());
    let by_stats = Tidegate::to(&address)
        .set(format!("discovery.uwsgi_stats=unix:{}", stats.display()))
        .start();
    until_slots(&by_stats, 6, "uwsgi_stats");
    assert_eq!(seen(&by_stats, "/profile"), "uwsgi");
    let by_process = Tidegate::to(&address).start();
    until_slots(&by_process, 6, "proc");
    assert_eq!(seen(&by_process, "/accept_queue/telling"), true);
    assert_eq!(by_process.get("/pid").status, 200);
}

#[test]
fn a_child_of_exec_is_seen_and_followed_through_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = gunicorn_command(&["--workers", "2", "--bind", "{addr}"]);
    command.extend([
        "--env".to_owned(),
        format!("APP_DIR={}", dir.path().display()),
    ]);
    let tidegate = Tidegate::exec(command)
        .set("process.restart=always")
        .start();
    until_slots(&tidegate, 2, "proc");
    until("the limit follows", || tidegate.status()["limit"] == 2);
    let master = |tidegate: &Tidegate| seen(tidegate, "/process/pid").as_u64();
    let first = master(&tidegate).expect("its process");
    let pid = rustix::process::Pid::from_raw(i32::try_from(first).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, Signal::KILL).expect("it runs");
    until("the next one is seen", || {
        master(&tidegate).is_some_and(|next| next != first)
    });
    until_slots(&tidegate, 2, "proc");
}

#[test]
fn slots_are_learned_where_nothing_can_be_looked_at() {
    let app = Gunicorn::sync(2);
    let tidegate = Tidegate::to(app.address())
        .set("discovery.proc=false")
        .set("limit.min=6")
        .start();
    let mut clients: Vec<Client> = (0..6).map(|_| tidegate.client()).collect();
    let start = clock::now();
    while endpoint(&tidegate)["slots_source"] != "learned" {
        assert!(since(start) < common::PATIENCE, "{}", tidegate.status());
        for client in &mut clients {
            client.ask("/sleep?ms=100");
        }
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    }
    assert_eq!(endpoint(&tidegate)["slots"], 2);
}

#[test]
fn cpu_and_memory_of_the_processes_are_measured() {
    let app = Gunicorn::sync(1);
    let tidegate = Tidegate::to(app.address())
        .set("discovery.memory_limit=1GiB")
        .set("discovery.cpu_limit=1")
        .start();
    let mut client = tidegate.client();
    // Never mind how much of a core a crowded machine leaves it.
    let ratio = until_some("it is seen to work", || {
        client.ask("/cpu?ms=300");
        assert_eq!(client.response().status, 200);
        seen(&tidegate, "/cpu/utilisation")
            .as_f64()
            .filter(|ratio| *ratio > 0.1)
    });
    assert!(ratio < 1.5, "{ratio}");
    assert!(tidegate.metric("tidegate_backend_cpu_ratio", &[]) > 0.0);
    let metrics = tidegate.metrics();
    assert_eq!(
        metrics.sum("tidegate_backend_memory_limit_bytes", &[]),
        (1_u64 << 30) as f64
    );
    let used = metrics.sum("tidegate_backend_memory_bytes", &[]);
    let resident: u64 = std::iter::once(app.process.pid())
        .chain(children(app.process.pid()))
        .map(|pid| common::memory(pid).0)
        .sum();
    // What the two processes share counts once.
    assert!(
        used > resident as f64 * 0.4 && used < resident as f64 * 1.2,
        "{used} of {resident}"
    );
    for signal in ["cpu", "memory"] {
        let labels = [("signal", signal)];
        assert_eq!(
            metrics.sum("tidegate_signal_available", &labels),
            1.0,
            "{signal}"
        );
    }
}

#[test]
fn the_quota_of_a_real_cgroup_is_seen_and_followed() {
    let Some(group) = Group::cpu() else {
        println!("skipped: no cgroup can be made here");
        return;
    };
    // So little that a crowded machine has it to give.
    group.set_cores(0.05);
    let app = Gunicorn::sync(1);
    group.take(app.process.pid());
    let tidegate = Tidegate::to(app.address()).start();
    let mut client = tidegate.client();
    let mut spin = |what: &str, done: &dyn Fn(&Value) -> bool| {
        until(what, || {
            client.ask("/cpu?ms=20");
            assert_eq!(client.response().status, 200);
            done(&seen(&tidegate, "/cpu"))
        });
    };
    spin("the quota is seen to be used up", &|cpu| {
        cpu["cores"] == 0.05 && cpu["utilisation"].as_f64() > Some(0.5)
    });
    spin("throttling is seen", &|cpu| {
        cpu["throttled"].as_f64() > Some(0.0)
    });
    group.set_cores(0.1);
    spin("the new quota is seen", &|cpu| cpu["cores"] == 0.1);
    let source = seen(&tidegate, "/cpu/source");
    assert!(
        source
            .as_str()
            .is_some_and(|source| source.starts_with("cgroup v")),
        "{source}"
    );
    // The same group by its path, where nothing else is looked at.
    let by_path = Tidegate::to(app.address())
        .set("discovery.proc=false")
        .set(format!("discovery.cgroup={}", group.dirs[0].display()))
        .start();
    until("its quota is seen", || seen(&by_path, "/cpu/cores") == 0.1);
    assert_eq!(seen(&by_path, "/process"), Value::Null);
    drop(app);
    drop(group);
}

#[test]
fn the_memory_of_a_real_cgroup_is_seen_and_followed() {
    let Some(group) = Group::memory() else {
        println!("skipped: no cgroup can be made here");
        return;
    };
    group.set_memory(256 << 20);
    let app = Gunicorn::sync(1);
    group.take(app.process.pid());
    let tidegate = Tidegate::to(app.address()).start();
    let limit = |tidegate: &Tidegate| seen(tidegate, "/memory/limit_bytes").as_u64();
    until("the limit is seen", || limit(&tidegate) == Some(256 << 20));
    let source = seen(&tidegate, "/memory/source");
    assert!(
        source
            .as_str()
            .is_some_and(|source| source.starts_with("cgroup v")),
        "{source}"
    );
    group.set_memory(128 << 20);
    until("the new limit is seen", || {
        limit(&tidegate) == Some(128 << 20)
    });
    // What the worker takes from now on is counted there.
    let used = || {
        seen(&tidegate, "/memory/used_bytes")
            .as_u64()
            .expect("in use")
    };
    let before = used();
    let mut client = tidegate.client();
    client.ask("/memory?mb=32&ms=3000");
    until("more is in use", || used() > before + (16 << 20));
    assert_eq!(client.response().status, 200);
    drop(app);
    drop(group);
}

#[test]
fn one_look_tells_all() {
    let app = Gunicorn::sync(3);
    let config = tidegate::config::load(&tidegate::config::Sources::default())
        .expect("the defaults")
        .config;
    let address = tidegate::config::Address::connect(app.address()).expect("an address");
    let findings = sense::look(&address, &config, None);
    assert_eq!(findings.slots().map(|slots| slots.count), Some(3));
    let text = findings.text();
    for line in [
        "server: gunicorn, profile gunicorn-sync, by its command line",
        "slots by configured: discovery.slots is 0",
        "slots by proc: 3 (3 workers, one request each)",
        "accept queue: 0, by netlink",
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }
}

//! What tidegate and systemd tell each other: notifications, the watchdog, and sockets.

mod common;

use std::{
    os::unix::net::UnixDatagram,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use common::{
    Gunicorn, Held, PATIENCE, Process, Tidegate, children, get, ports::own_address,
    tidegate_command, try_get, until, until_some,
};
use rustix::process::{Pid, Signal, kill_process};

/// The socket on which a service manager is told.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self {
            socket,
            path: path.to_str().expect("text").to_owned(),
            _dir: dir,
        }
    }

    /// The next message that is not of the watchdog.
    #[track_caller]
    fn told(&self) -> String {
        loop {
            let message = self.next();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    #[track_caller]
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    }

    #[track_caller]
    fn watched(&self) {
        for _ in 0..3 {
            while self.next() != "WATCHDOG=1" {}
        }
    }
}

#[test]
fn the_manager_is_told_of_readiness_reloads_and_the_end_and_that_all_is_well() {
    let backend = Held::start();
    let manager = Manager::new();
    let mut tidegate = Tidegate::to(backend.address())
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "100000")
        .toml("[queue]\nmax_wait = \"20s\"")
        .start();
    assert_eq!(manager.told(), "READY=1\nSTATUS=serving");
    manager.watched();

    tidegate.process.signal(Signal::HUP);
    let reloading = manager.told();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(manager.told(), "READY=1\nSTATUS=serving");

    // A mistake is told, and is no reason to be restarted.
    std::fs::write(tidegate.file(), "[queue]\nmax_wait = 1").expect("a file");
    let failed = until_some("the mistake is told", || {
        Some(manager.told()).filter(|told| told.starts_with("READY=1"))
    });
    assert!(
        failed.contains("the changed configuration is wrong"),
        "{failed}"
    );

    // The drain is not mistaken for a hang.
    let mut client = tidegate.client();
    client.ask("/held");
    tidegate.until_metric("tidegate_in_flight_requests", &[], 1.0);
    tidegate.process.signal(Signal::TERM);
    let stopping = until_some("the end is told", || {
        Some(manager.told()).filter(|told| told.starts_with("STOPPING"))
    });
    assert_eq!(stopping, "STOPPING=1\nSTATUS=draining");
    manager.watched();
    backend.release(1);
    assert_eq!(client.response().status, 200);
    assert_eq!(tidegate.process.exit_code(), 0);
}

#[test]
fn a_reload_before_it_is_ready_does_not_make_it_so() {
    let manager = Manager::new();
    let mut tidegate = Tidegate::exec(["sleep", "600"])
        .env("NOTIFY_SOCKET", &manager.path)
        .launch();
    let logged = |tidegate: &mut Tidegate, text: &str| {
        tidegate
            .process
            .logged(text, |log| log.contains(text).then_some(()));
    };
    logged(&mut tidegate, "started the backend");
    tidegate.process.signal(Signal::HUP);
    logged(&mut tidegate, "configuration reloaded");
    tidegate.stop();
    assert_eq!(manager.told(), "STOPPING=1\nSTATUS=draining");
}

#[test]
fn a_restart_on_a_socket_of_systemd_refuses_nobody() {
    let app = Gunicorn::gthread(8);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps/activate.py");
    let tidegate = tidegate_command();
    let mut command = Command::new("python3");
    command.args([script, "http"]).arg(tidegate.get_program());
    command.args(["run", "--listen", "fd:http", "--admin", "127.0.0.1:0"]);
    command.args(["--log-format", "json", "--backend", app.address()]);
    for (unwanted, _) in tidegate.get_envs() {
        command.env_remove(unwanted);
    }
    let mut manager = Process::start("activate.py", &mut command);
    let port = manager.logged("the port", |log| {
        let (_, rest) = log.split_once("listening on ")?;
        rest.split_once('\n').map(|(port, _)| port.to_owned())
    });
    let address = format!("127.0.0.1:{port}");
    let ready = |log: &str| log.matches("tidegate is ready").count();
    manager.logged("the first one", |log| (ready(log) == 1).then_some(()));

    let stop = Arc::new(AtomicBool::new(false));
    // Half of them on connections that they keep as long as they may.
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let (address, stop) = (address.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                let mut kept = None;
                while !stop.load(Relaxed) {
                    let path = "/sleep?ms=20";
                    if number % 2 == 0 {
                        answers.push(get(&address, path).status);
                        continue;
                    }
                    let mut client = kept
                        .take()
                        .unwrap_or_else(|| common::Client::connect(&address));
                    let answer = client.get(path);
                    answers.push(answer.status);
                    let closes = answer.header("connection").is_some_and(|it| it == "close");
                    kept = (!closes).then_some(client);
                }
                answers
            })
        })
        .collect();
    for generation in 1..=3 {
        let before = app.started("/sleep");
        until("there is load", || app.started("/sleep") > before + 30);
        let mut kept = common::Client::connect(&address);
        assert_eq!(kept.get("/pid").status, 200);
        let mut long = common::Client::connect(&address);
        long.ask("/slow-body?ms=2000");
        until("it is at work", || app.started("/slow-body") == generation);
        let children = children(manager.pid());
        let [child] = children[..] else {
            panic!("not one child: {children:?}");
        };
        let pid = Pid::from_raw(child.cast_signed()).expect("a pid");
        kill_process(pid, Signal::TERM).expect("a signal");
        manager.logged("the drain", |log| {
            (log.matches("draining;").count() == generation).then_some(())
        });
        // A connection from before gets its answer too, which is the last on it.
        let answer = kept.get("/pid");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
        assert_eq!(long.response().status, 200);
        manager.logged("its successor", |log| {
            (ready(log) == generation + 1).then_some(())
        });
    }
    stop.store(true, Relaxed);
    let mut answers = 0;
    for client in clients {
        let statuses = client.join().expect("no client fails");
        assert!(statuses.iter().all(|&status| status == 200), "{statuses:?}");
        answers += statuses.len();
    }
    assert!(answers > 90, "{answers}");
    let log = manager.log();
    assert_eq!(log.matches("ended with 0").count(), 3, "{log}");
}

#[test]
fn a_socket_that_nobody_asked_for_is_told_of_and_not_passed_on() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps/activate.py");
    let tidegate = tidegate_command();
    let mut command = Command::new("python3");
    command.args([script, "spare:http:other"]);
    command.arg(tidegate.get_program());
    command.args(["exec", "--listen", "fd:http", "--admin", "127.0.0.1:0"]);
    let open = "echo \"open: $(ls -l /proc/$$/fd | tr '\\n' ' ')\"; exec sleep 600";
    command.args(["--log-format", "json", "--", "sh", "-c", open]);
    for (unwanted, _) in tidegate.get_envs() {
        command.env_remove(unwanted);
    }
    let mut manager = Process::start("activate.py", &mut command);
    let open = manager.logged("what the command has", |log| {
        log.lines()
            .find_map(|line| line.strip_prefix("open: ").map(str::to_owned))
    });
    assert!(!open.contains("socket:"), "{open}");
    let log = manager.log();
    for (name, told) in [("spare", 1), ("http", 0), ("other", 1)] {
        let line = |line: &&str| {
            line.contains("server.listen does not name") && line.contains(&format!("\"{name}\""))
        };
        assert_eq!(log.lines().filter(line).count(), told, "{name}: {log}");
    }
}

#[test]
fn systemd_s_own_tool_activates_it_with_sockets_by_name() {
    let found = Command::new("systemd-socket-activate")
        .arg("--version")
        .output();
    if found.is_err() {
        // Not on every developer's machine.
        assert!(
            std::env::var_os("CI").is_none(),
            "systemd-socket-activate is missing"
        );
        return;
    }
    let app = Gunicorn::sync(1);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("web.sock");
    let path = path.to_str().expect("text");
    let addresses = [own_address(), own_address()].map(|address| address.to_string());
    let mut command = Command::new("systemd-socket-activate");
    command.args(["-l", path, "-l", &addresses[0], "-l", &addresses[1]]);
    // All sockets of a unit have one name.
    command.args(["--fdname=web:local:local", "-E", "PATH"]);
    command.arg(tidegate_command().get_program());
    // Not in the order in which they are passed.
    command.args(["run", "--listen", "fd:local", "--listen", "fd:web"]);
    command.args(["--admin", "127.0.0.1:0", "--backend", app.address()]);
    let mut process = Process::start("systemd-socket-activate", &mut command);
    process.logged("all sockets", |log| {
        (log.matches("Listening on").count() == 3).then_some(())
    });
    // It starts tidegate when somebody comes, who is served.
    for address in &addresses {
        assert_eq!(get(address, "/pid").status, 200, "{address}");
    }
    assert_eq!(get(&format!("unix:{path}"), "/pid").status, 200);
    assert_eq!(process.stop(), 0);
    // The file is systemd's, and stays for the next start.
    assert!(std::path::Path::new(path).exists());
    assert!(try_get(&format!("unix:{path}"), "/pid").is_err());
}

#[test]
fn a_socket_that_was_not_passed_is_a_clear_mistake() {
    let output = tidegate_command()
        .args(["run", "--listen", "fd:http", "--backend", "127.0.0.1:9"])
        .env("LISTEN_FDNAMES", "other")
        .output()
        .expect("tidegate runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("no socket named http was passed"), "{told}");
    assert!(told.contains("start the socket unit, or set"), "{told}");
}

//! A new configuration while clients are being served: nobody notices, except that it is in force.

#![allow(clippy::print_stdout)] // the figures are for reports

mod common;

#[path = "reload/keys.rs"]
mod keys;
mod peers;

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{
    Client, Gunicorn, Response, Tidegate,
    frames::{self, Http2},
    request, until,
};
use peers::Peer;
use rustix::process::Signal;

/// One request or message after the other over a connection that stays, until it is stopped.
trait Talk: Send + 'static {
    /// Sends one and has its answer; what is wrong, if anything is.
    fn exchange(&mut self, number: u32) -> Result<(), String>;
}

impl Talk for Client {
    fn exchange(&mut self, _: u32) -> Result<(), String> {
        self.ask("/");
        match self.try_response("GET") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }
}

impl Talk for Http2 {
    fn exchange(&mut self, number: u32) -> Result<(), String> {
        let stream = 2 * number + 1;
        self.get(stream, "/");
        let mut answered = false;
        loop {
            let frame = self.next(&[
                frames::HEADERS,
                frames::DATA,
                frames::RST_STREAM,
                frames::GOAWAY,
            ]);
            match frame.kind {
                // 200, as HPACK has it in its table.
                frames::HEADERS => answered = frame.payload.contains(&0x88),
                frames::DATA => {
                    let size = (frame.payload.len() as u32).to_be_bytes();
                    if !frame.payload.is_empty() {
                        self.send(frames::frame(frames::WINDOW_UPDATE, 0, 0, &size));
                    }
                }
                _ => return Err(format!("{frame:?}")),
            }
            if frame.flags & frames::END_STREAM != 0 {
                return answered.then_some(()).ok_or_else(|| format!("{frame:?}"));
            }
        }
    }
}

struct WebSocket(Client);

impl WebSocket {
    #[track_caller]
    fn open(gate: &Tidegate) -> Self {
        let mut client = gate.client();
        client.send(
            "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n",
        );
        assert_eq!(client.try_head().expect("an answer").status, 101);
        Self(client)
    }
}

impl Talk for WebSocket {
    fn exchange(&mut self, number: u32) -> Result<(), String> {
        let text = format!("message {number}");
        // A text, masked with nothing; it comes back unmasked.
        let mut message = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        message.extend_from_slice(text.as_bytes());
        let echo = self
            .0
            .try_send(message)
            .and_then(|()| self.0.take_through(text.as_bytes()));
        match echo {
            Ok(echo) if echo.len() == 2 + text.len() && echo[0] == 0x81 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }
}

/// Clients that are served until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(gate: &Tidegate, clients: usize) -> Self {
        Self::of((0..clients).map(|_| gate.client()).collect())
    }

    fn of<T: Talk>(clients: Vec<T>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let clients = clients
            .into_iter()
            .map(|mut client| {
                let (stop, served, failures) = (stop.clone(), served.clone(), failures.clone());
                std::thread::spawn(move || {
                    let mut number = 0;
                    while !stop.load(Relaxed) {
                        if let Err(failure) = client.exchange(number) {
                            failures.lock().expect("whole").push(failure);
                            return;
                        }
                        number += 1;
                        served.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        Self {
            stop,
            served,
            failures,
            clients,
        }
    }

    fn served(&self) -> usize {
        self.served.load(Relaxed)
    }

    #[track_caller]
    fn stop(self) {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            client.join().expect("no panic");
        }
        let failures = self.failures.lock().expect("whole");
        let served = self.served.load(Relaxed);
        assert!(failures.is_empty(), "{served} served, but: {failures:#?}");
    }
}

/// How many reloads there have been, good ones and bad ones.
fn reloads(gate: &Tidegate) -> (f64, f64) {
    let metrics = gate.metrics();
    let of = |result| metrics.sum("tidegate_config_reloads_total", &[("result", result)]);
    (of("ok"), of("error"))
}

/// Puts a configuration in force by changing the file, and waits until it was read.
#[track_caller]
fn change(gate: &Tidegate, toml: &str) {
    change_to(gate, gate.file(), toml, true);
}

#[track_caller]
fn change_to(gate: &Tidegate, file: &Path, toml: &str, good: bool) {
    let (ok, error) = reloads(gate);
    replace(file, toml);
    until("the file is read", || {
        let now = reloads(gate);
        if good { now.0 > ok } else { now.1 > error }
    });
}

/// What the log has said from byte `before` on, once all of these are in it: the metrics tell of a
/// reload before the log does.
#[track_caller]
fn said_since(gate: &mut Tidegate, before: usize, all: &[&str]) -> String {
    gate.process.logged(&format!("{all:?}"), |log| {
        let said = &log[before..];
        all.iter()
            .all(|one| said.contains(one))
            .then(|| said.to_owned())
    })
}

/// As editors and deployments do it: never half a file.
fn replace(file: &Path, toml: &str) {
    let new = file.with_extension("new");
    fs::write(&new, toml).expect("it is written");
    fs::rename(&new, file).expect("it is put in place");
}

fn good_peer() -> Peer {
    let peer = Peer::start(peers::closes::at_once);
    peer.heal();
    peer
}

/// A tidegate with a file that names its backend and nothing else, and that file's text.
fn gate(peer: &Peer) -> (Tidegate, String) {
    let base = format!("[backend]\nendpoints = [\"{}\"]\n", peer.address());
    (Tidegate::run().toml(&base).start(), base)
}

/// `TIDEGATE_RELOADS=1000` makes them a thousand.
#[test]
fn reloads_under_load_lose_nothing() {
    let count = std::env::var("TIDEGATE_RELOADS").ok();
    let count: u32 = count.map_or(200, |count| count.parse().expect("a number"));
    let app = Gunicorn::gthreads(2, 8);
    let base = |wait: u32| {
        format!(
            "[backend]\nendpoints = [\"{}\"]\n[limit]\nalgorithm = \"fixed\"\ninitial = 12\n\
             [queue]\ndiscipline = \"fifo\"\nmax_wait = \"{wait}s\"\n",
            app.address()
        )
    };
    let mut gate = Tidegate::run().toml(&base(20)).start();
    let sockets = Load::of((0..4).map(|_| WebSocket::open(&gate)).collect());
    let streams = (0..3).map(|_| Http2::connect(gate.address(), &[]));
    let loads = [Load::start(&gate, 3), Load::of(streams.collect()), sockets];
    let opened = 10.0;
    gate.until_metric("tidegate_client_connections", &[], opened);
    let broken = [
        "[backend\n",
        "[queue]\nmax_wait = \"soon\"\n",
        "[queue]\nmaxwait = \"1s\"\n",
        "[limit]\nmin = 0\n",
    ];
    let mut expected = (0.0, 0.0);
    for turn in 0..count {
        let good = turn % 2 == 0;
        let text = match good {
            true => base(20 + turn % 40),
            false => broken[(turn / 2) as usize % broken.len()].to_owned(),
        };
        replace(gate.file(), &text);
        // The file's change is a reload too: how many there are in all is left open.
        if turn % 4 < 2 {
            gate.process.signal(Signal::HUP);
        }
        let before = expected;
        until("it was read", || {
            expected = reloads(&gate);
            if good {
                expected.0 > before.0
            } else {
                expected.1 > before.1
            }
        });
    }
    let half = f64::from(count / 2);
    assert!(expected.0 >= half && expected.1 >= half, "{expected:?}");
    // No connection was closed, and none was made again.
    assert_eq!(gate.metric("tidegate_client_connections", &[]), opened);
    for load in loads {
        println!("{} exchanges", load.served());
        assert!(load.served() > 50, "{} is no load", load.served());
        load.stop();
    }
    change(&gate, &base(7));
    assert_eq!(effective(&gate, "queue", "max_wait"), "7s");
    assert_eq!(gate.metric("tidegate_config_reload_success", &[]), 1.0);
    gate.until_idle();
    assert!(!gate.log().contains("panic"));
}

/// A key of `/config`.
fn effective(gate: &Tidegate, section: &str, key: &str) -> String {
    let text = gate.admin_get("/config").text();
    let start = text
        .find(&format!("[{section}]"))
        .unwrap_or_else(|| panic!("no {section} in {text}"));
    text[start..]
        .lines()
        .find_map(|line| {
            let (name, rest) = line.split_once('=')?;
            (name.trim() == key).then(|| {
                let value = rest.split('#').next().unwrap_or_default().trim();
                value.trim_matches('"').to_owned()
            })
        })
        .unwrap_or_else(|| panic!("no {key} in {text}"))
}

#[test]
fn a_bad_file_changes_nothing_and_says_where_it_is_bad() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    change(&gate, &format!("{base}[queue]\nmax_wait = \"3s\"\n"));
    assert_eq!(gate.metric("tidegate_config_reload_success", &[]), 1.0);

    let bad = format!("{base}[queue]\ncapacity = 3\nmax_wait = \"soon\"\n");
    change_to(&gate, gate.file(), &bad, false);
    assert_eq!(gate.metric("tidegate_config_reload_success", &[]), 0.0);
    assert_eq!(effective(&gate, "queue", "max_wait"), "3s");
    assert_eq!(effective(&gate, "queue", "capacity"), "0");
    assert_eq!(gate.get("/").status, 200);
    let place = format!("{}:5:12", gate.file().display());
    let said = gate.process.logged("the problem", |log| {
        let line = log.lines().find(|line| line.contains(&place))?;
        Some(line.to_owned())
    });
    assert!(said.contains("queue.max_wait"), "{said}");

    // HUP reads it again, and finds it as bad.
    let (_, errors) = reloads(&gate);
    gate.process.signal(Signal::HUP);
    until("HUP was heard", || reloads(&gate).1 > errors);

    for (text, hint) in [
        (format!("{base}[queue]\nmaxwait = \"1s\"\n"), "max_wait"),
        (format!("{base}[queue\n"), ":3:"),
        (
            format!("{base}[limit]\ninitial = 5\nmin = 9\nmax = 3\n"),
            "limit.m",
        ),
    ] {
        let before = gate.log().len();
        change_to(&gate, gate.file(), &text, false);
        said_since(&mut gate, before, &[hint]);
        assert_eq!(effective(&gate, "queue", "max_wait"), "3s");
    }

    change(&gate, &format!("{base}[queue]\nmax_wait = \"4s\"\n"));
    assert_eq!(gate.metric("tidegate_config_reload_success", &[]), 1.0);
    assert_eq!(effective(&gate, "queue", "max_wait"), "4s");
}

/// What was read by then is not to be forgotten: the file is not tried again because of the same bytes.
#[test]
fn a_reload_that_was_asked_for_is_done_though_whoever_asked_has_left() {
    let peer = good_peer();
    let (gate, _) = gate(&peer);
    let (before, _) = reloads(&gate);
    for _ in 0..10 {
        let mut client = Client::connect(gate.admin());
        client.send("POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        client.leave();
    }
    until("all of them are done", || reloads(&gate).0 == before + 10.0);
}

#[test]
fn a_file_that_is_deleted_changes_nothing() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    change(&gate, &format!("{base}[queue]\nmax_wait = \"3s\"\n"));
    let (ok, _) = reloads(&gate);
    fs::remove_file(gate.file()).expect("it was there");
    // HUP insists, and there is nothing to read.
    gate.process.signal(Signal::HUP);
    until("HUP was heard", || reloads(&gate).1 > 0.0);
    assert_eq!(reloads(&gate).0, ok);
    assert_eq!(effective(&gate, "queue", "max_wait"), "3s");
    assert_eq!(gate.get("/").status, 200);
    change(&gate, &format!("{base}[queue]\nmax_wait = \"4s\"\n"));
    assert_eq!(effective(&gate, "queue", "max_wait"), "4s");
}

/// Editors truncate a file and write it then; who reads in between must not take that for a wish.
#[test]
fn a_file_without_a_key_changes_nothing() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    let good = format!("{base}[queue]\nmax_wait = \"3s\"\n");
    change(&gate, &good);
    for blank in ["", " \n\n", "# [queue]\n# max_wait = \"9s\"\n", "[queue]\n"] {
        let before = gate.log().len();
        let (_, errors) = reloads(&gate);
        // In its place, as such an editor does.
        fs::write(gate.file(), blank).expect("it is written");
        until("the file is read", || reloads(&gate).1 > errors);
        said_since(&mut gate, before, &["the file is empty"]);
        assert_eq!(gate.metric("tidegate_config_reload_success", &[]), 0.0);
        assert_eq!(effective(&gate, "queue", "max_wait"), "3s");
        assert_eq!(gate.get("/").status, 200);
        let (ok, _) = reloads(&gate);
        fs::write(gate.file(), &good).expect("it is written");
        until("the file is read", || reloads(&gate).0 > ok);
    }
    assert_eq!(effective(&gate, "queue", "max_wait"), "3s");
}

#[test]
fn the_swap_of_a_config_map_applies() {
    let peer = good_peer();
    let mount = tempfile::tempdir().expect("a directory");
    let version = |number: u32| {
        let dir = mount.path().join(format!("..{number}"));
        fs::create_dir(&dir).expect("a directory");
        let text = format!(
            "[backend]\nendpoints = [\"{}\"]\n[queue]\nmax_wait = \"{number}s\"\n",
            peer.address()
        );
        fs::write(dir.join("tidegate.toml"), text).expect("a file");
    };
    let data = mount.path().join("..data");
    version(1);
    symlink("..1", &data).expect("a link");
    let file = mount.path().join("tidegate.toml");
    symlink("..data/tidegate.toml", &file).expect("a link");
    let gate = Tidegate::run()
        .arg("--config")
        .arg(file.to_str().expect("text"))
        .start();
    assert_eq!(effective(&gate, "queue", "max_wait"), "1s");
    for number in 2..6 {
        version(number);
        let next = mount.path().join("..data_tmp");
        symlink(format!("..{number}"), &next).expect("a link");
        fs::rename(&next, &data).expect("the swap");
        fs::remove_dir_all(mount.path().join(format!("..{}", number - 1))).expect("it goes");
        until("it is in force", || {
            effective(&gate, "queue", "max_wait") == format!("{number}s")
        });
    }
    assert!(!gate.log().contains("WARN"), "{}", gate.log());
}

#[test]
fn keys_that_need_a_restart_are_named_and_stay() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    let new = base.replace(
        "[backend]\n",
        "[server]\nthreads = 2\nmax_header_bytes = \"8KiB\"\n[drain]\ntimeout = \"1s\"\n\
         [backend]\nkeepalive = true\n",
    );
    let before = gate.log().len();
    change(&gate, &format!("{new}[queue]\nmax_wait = \"3s\"\n"));
    assert_eq!(
        effective(&gate, "queue", "max_wait"),
        "3s",
        "the others apply"
    );
    let keys = [
        "server.threads",
        "server.max_header_bytes",
        "drain.timeout",
        "backend.keepalive",
    ];
    let said = said_since(&mut gate, before, &keys);
    assert!(!said.contains("queue.max_wait"), "{said}");
    assert!(!said.contains("server.listen"), "{said}");
    // The old values are in force: each request has a connection of its own, and long heads pass.
    let long = "x".repeat(20_000);
    for _ in 0..2 {
        let answer = request(gate.address(), "GET", "/", &[("X-Long", &long)], &[]);
        assert_eq!(answer.status, 200);
    }
    assert_eq!(peer.accepted(), 2);
    // So they are what is shown, and each reload says again what is not in force.
    assert_eq!(effective(&gate, "server", "threads"), "1");
    assert_eq!(effective(&gate, "drain", "timeout"), "25s");
    let before = gate.log().len();
    change(&gate, &format!("{new}[queue]\nmax_wait = \"4s\"\n"));
    said_since(&mut gate, before, &keys);
    assert_eq!(effective(&gate, "server", "threads"), "1");
    // Who goes back to what runs needs no restart.
    let before = gate.log().len();
    change(&gate, &format!("{base}[queue]\nmax_wait = \"5s\"\n"));
    let said = said_since(&mut gate, before, &["configuration reloaded"]);
    assert!(!said.contains("restart"), "{said}");
}

/// The watcher's, and that of whoever asks for it as well.
#[test]
fn one_change_is_one_reload() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    let text = |wait: &str| format!("{base}[queue]\nmax_wait = \"{wait}\"\n");
    for (wait, expected) in [("3s", (1.0, 0.0)), ("soon", (1.0, 1.0))] {
        replace(gate.file(), &text(wait));
        gate.process.signal(Signal::HUP);
        until("it was read", || reloads(&gate) == expected);
        // As long as the watcher may take to see it.
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(reloads(&gate), expected);
    }
    // What is asked for is done.
    gate.process.signal(Signal::HUP);
    until("it was read again", || reloads(&gate) == (1.0, 2.0));
}

#[test]
fn a_file_that_is_there_again_is_in_force_again() {
    let peer = good_peer();
    let (mut gate, _) = gate(&peer);
    let away = gate.file().with_extension("away");
    for quick in [true, false] {
        fs::rename(gate.file(), &away).expect("it goes");
        gate.process.signal(Signal::HUP);
        gate.until_metric("tidegate_config_reload_success", &[], 0.0);
        if !quick {
            std::thread::sleep(Duration::from_millis(400));
        }
        fs::rename(&away, gate.file()).expect("it comes back");
        gate.until_metric("tidegate_config_reload_success", &[], 1.0);
    }
}

/// A limit that is not raised is a number of clients that is in the file and nowhere else.
#[cfg(target_os = "linux")]
#[test]
fn more_clients_get_their_descriptors() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let peer = good_peer();
    let (gate, base) = gate(&peer);
    let pid = Pid::from_raw(gate.process.pid().cast_signed());
    let few = Rlimit {
        current: Some(64),
        ..getrlimit(Resource::Nofile)
    };
    prlimit(pid, Resource::Nofile, few).expect("it is a child of ours");
    let connect = |clients: u32| -> Vec<Client> {
        let served = (0..clients).map(|_| {
            let mut client = gate.client();
            assert_eq!(client.get("/").status, 200);
            client
        });
        served.collect()
    };
    let open = || gate.metric("tidegate_client_connections", &[]);
    let clients = connect(30);
    assert!(open() <= 16.0, "{}", open());
    drop(clients);
    gate.until_metric("tidegate_client_connections", &[], 0.0);

    change(&gate, &format!("{base}[server]\nmax_connections = 200\n"));
    let wanted = few.maximum.map_or(1424, |hard| hard.min(1424));
    assert_eq!(gate.metric("process_max_fds", &[]), wanted as f64);
    let _clients = connect(30);
    assert_eq!(open(), 30.0);
}

#[test]
fn a_file_that_cannot_be_read_is_told_once() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    let before = gate.log().len();
    let long = format!("{base}#{}\n", "x".repeat(1 << 20));
    change_to(&gate, gate.file(), &long, false);
    said_since(&mut gate, before, &["it has more than 1MiB"]);
    assert_eq!(gate.metric("tidegate_config_reload_success", &[]), 0.0);
    // It is as it was, whatever happens beside it.
    let (_, errors) = reloads(&gate);
    fs::write(gate.file().with_extension("other"), "").expect("it is written");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(reloads(&gate).1, errors);
    // The same as before is news after that.
    change(&gate, &base);
    assert_eq!(gate.metric("tidegate_config_reload_success", &[]), 1.0);
}

/// Opening it for reading waits for somebody who opens it for writing.
#[test]
fn a_pipe_in_the_place_of_a_file_makes_nobody_wait() {
    let peer = good_peer();
    let (mut gate, base) = gate(&peer);
    let pipe = gate.dir().join("pipe");
    let make = |at: &Path| {
        let made = std::process::Command::new("mkfifo").arg(at).status();
        assert!(made.expect("mkfifo runs").success());
    };
    make(&pipe);
    let body = format!("{base}[reject]\nbody = \"file:{}\"\n", pipe.display());
    change_to(&gate, gate.file(), &body, false);
    fs::remove_file(gate.file()).expect("it goes");
    make(gate.file());
    let (_, errors) = reloads(&gate);
    gate.process.signal(Signal::HUP);
    until("HUP was heard", || reloads(&gate).1 > errors);
    // The watcher may have seen it before HUP was heard.
    until("both are told", || {
        gate.log().matches("it is no regular file").count() >= 2
    });
    assert_eq!(gate.get("/").status, 200);
    assert_eq!(gate.stop(), 0);
}

#[test]
fn the_command_of_exec_is_the_backend_unless_the_file_names_another() {
    let peer = Peer::start(peers::slow::after(Duration::ZERO));
    let server = [
        "python3",
        "-m",
        "http.server",
        "--bind",
        "127.0.0.1",
        "{port}",
    ];
    let silent = "[log]\naccess = \"off\"\n";
    let gate = Tidegate::exec(server).toml(silent).start();
    let endpoint = || {
        let endpoint = gate.status()["backend"]["endpoints"][0]["endpoint"].to_string();
        let shown = gate.admin_get("/config").text();
        assert!(
            shown.contains(&format!("endpoints = [{endpoint}]")),
            "{shown}"
        );
        endpoint
    };
    let own = endpoint();
    let other = format!("{:?}", peer.address());
    let named = format!("{silent}[backend]\nendpoints = [{other}]\n");
    for round in 0..2 {
        change(&gate, &format!("{named}# {round}\n"));
        assert_eq!(endpoint(), other);
    }
    change(&gate, silent);
    assert_eq!(endpoint(), own);
}

//! `tidegate probe` against real servers whose answer is known: how many requests in parallel, and
//! what binds. Views that sleep give the same answer on a slow machine; a machine that is busy with
//! other things spoils a measurement now and then, so a wrong answer is measured again, and only
//! one that stays wrong is a failure.

#![allow(clippy::print_stdout)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use common::{
    Gunicorn, Process, Tidegate,
    cgroup::Group,
    servers::{self, Server},
    tidegate, tidegate_command, until,
};
use rustix::process::Signal;
use serde_json::Value;

/// Attempts until a measurement counts as wrong.
const ATTEMPTS: u32 = 4;

/// Measurements that run side by side would measure one another.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn probe(address: &str, path: &str, more: &[&str]) -> Value {
    let url = match address.strip_prefix("unix:") {
        Some(socket) => format!("unix:{socket}:{path}"),
        None => format!("http://{address}{path}"),
    };
    let mut args = vec![
        "probe", "--url", &url, "--step", "250ms", "--format", "json",
    ];
    args.extend(more);
    let (code, out, err) = tidegate(&args);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// Measures until `right`, but not for ever.
#[track_caller]
fn measured(address: &str, path: &str, more: &[&str], right: impl Fn(&Value) -> bool) -> Value {
    let _turn = alone();
    let mut seen = String::new();
    for _ in 0..ATTEMPTS {
        let report = probe(address, path, more);
        if right(&report) {
            return report;
        }
        seen += &format!("{report}\n");
    }
    panic!("wrong {ATTEMPTS} times:\n{seen}");
}

/// The workers or threads that it has, found by a view that sleeps.
#[track_caller]
fn finds(address: &str, slots: std::ops::RangeInclusive<u64>) -> Value {
    measured(address, "/sleep?ms=25", &[], |report| {
        report["knee"]["concurrency"]
            .as_u64()
            .is_some_and(|knee| slots.contains(&knee))
            && report["bound_by"] == "workers"
            && report["end"] == "knee_past"
    })
}

fn figure(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn one_sync_worker_is_one_request() {
    finds(Gunicorn::sync(1).address(), 1..=1);
}

#[test]
fn two_sync_workers_are_two_and_the_third_waits_in_the_backlog() {
    let app = Gunicorn::sync(2);
    let report = finds(app.address(), 2..=2);
    let steps = report["steps"].as_array().unwrap();
    let last = steps.last().unwrap();
    if cfg!(target_os = "linux") {
        let waiting = figure(&last["concurrency"]) - 2.0;
        assert!(
            (figure(&last["accept_queue"]) - waiting).abs() < 0.6,
            "{last}"
        );
        assert!(
            figure(&last["memory_bytes"]) > 10e6 && last["backend_workers"] == 2,
            "{last}"
        );
    }
    assert!(
        report["recommended_toml"]
            .as_str()
            .unwrap()
            .contains("slots = 2")
    );
    // Another worker brings as much as each of the two.
    let more = figure(&report["one_more"]["worker"]);
    let half = figure(&report["knee"]["max_throughput"]) / 2.0;
    assert!((more / half - 1.0).abs() < 0.1 || more < half, "{report}");
    assert_eq!(report["one_more"]["core"], 0.0);
}

#[test]
fn four_sync_workers_are_four_also_on_a_unix_socket() {
    finds(Gunicorn::unix(&["--workers", "4"]).address(), 4..=4);
}

#[test]
fn four_threads_are_four_while_they_wait() {
    finds(Gunicorn::gthread(4).address(), 4..=4);
}

/// They are eight only while each worker gets four: a worker also takes connections that it has no
/// thread for.
#[test]
fn two_workers_of_four_threads_are_nearly_eight() {
    let app = Gunicorn::gthreads(2, 4);
    finds(app.address(), 6..=9);
}

#[test]
fn four_threads_of_waitress_are_four() {
    if let Some(app) = Server::tcp(servers::WAITRESS, &["--threads=4"]) {
        finds(app.address(), 4..=4);
    }
}

#[test]
fn two_processes_of_two_threads_of_uwsgi_are_four() {
    if let Some(app) = Server::tcp(servers::UWSGI_HTTP, &["--processes", "2", "--threads", "2"]) {
        finds(app.address(), 4..=4);
    }
}

#[test]
fn the_development_server_without_threads_is_one() {
    if let Some(app) = Server::tcp(servers::FLASK_ONE_THREAD, &[]) {
        finds(app.address(), 1..=1);
    }
}

/// Neither has a bound of its own: its one process fills its core, or on a machine that is busy nothing is
/// found to bind it at all, but never its workers.
#[track_caller]
fn finds_many(address: &str) {
    let most = ["--max-concurrency", "32"];
    let report = measured(address, "/sleep?ms=50", &most, |report| {
        report["knee"]["concurrency"].as_u64() >= Some(10)
            && ["gil", "cpu", "nothing"]
                .iter()
                .any(|one| report["bound_by"] == *one)
    });
    assert_eq!(report["known_slots"], Value::Null);
}

#[test]
fn the_development_server_with_threads_is_many() {
    if let Some(app) = Server::tcp(servers::FLASK, &[]) {
        finds_many(app.address());
    }
}

#[test]
fn greenlets_are_many() {
    if let Some(app) = Server::tcp(servers::GUNICORN_GEVENT, &[]) {
        finds_many(app.address());
    }
}

const LITTLE: u64 = 250 << 20;

/// 16 threads, but memory for nine requests of 20 MiB: it stops before the app is killed.
fn memory_binds(app: &Gunicorn, more: &[&str]) {
    let report = measured(app.address(), "/memory?mb=20&ms=60", more, |report| {
        report["bound_by"] == "memory"
            && report["knee"]["concurrency"]
                .as_u64()
                .is_some_and(|knee| (5..=10).contains(&knee))
    });
    assert_eq!(report["end"], "memory");
    let each = figure(&report["memory_per_request_bytes"]) / f64::from(1 << 20);
    assert!((14.0..=26.0).contains(&each), "{each} MiB: {report}");
    let steps = report["steps"].as_array().unwrap();
    assert!(
        steps
            .iter()
            .all(|step| figure(&step["memory_bytes"]) < LITTLE as f64)
    );
    let toml = report["recommended_toml"].as_str().unwrap();
    assert!(
        toml.contains(&format!("max = {}", report["knee"]["concurrency"])),
        "{toml}"
    );
}

#[test]
fn memory_binds_where_there_is_little_of_it() {
    if cfg!(target_os = "linux") {
        let limit = ["--set", "discovery.memory_limit=250MiB"];
        memory_binds(&Gunicorn::gthread(16), &limit);
    }
}

/// The same with a limit that the kernel would enforce, and that nobody tells.
#[test]
fn memory_binds_in_a_control_group_and_nothing_is_killed() {
    let Some(group) = Group::memory() else {
        println!("left out: no control group can be made here");
        return;
    };
    group.set_memory(LITTLE);
    let dir = group.dirs[0].clone();
    let app = Gunicorn::within(&dir, &["--worker-class", "gthread", "--threads", "16"]);
    memory_binds(&app, &[]);
    assert_eq!(group.kills().unwrap_or(0), 0);
    drop(app);
    drop(group);
    assert!(!dir.exists(), "it is removed");
}

#[test]
fn four_threads_that_compute_are_one_because_of_the_gil() {
    let app = Gunicorn::gthread(4);
    let report = measured(app.address(), "/cpu?ms=10", &[], |report| {
        report["knee"]["concurrency"]
            .as_u64()
            .is_some_and(|knee| knee <= 2)
            && report["bound_by"] == "gil"
    });
    assert_eq!(report["one_more"]["thread"], 0.0);
    assert_eq!(report["one_more"]["core"], 0.0);
}

#[test]
fn through_tidegate_its_limit_is_the_answer_and_the_backend_is_watched() {
    let app = Gunicorn::sync(4);
    let gate = Tidegate::to(app.address()).limit(2).start();
    let report = measured(
        gate.address(),
        "/sleep?ms=25",
        &["--backend", app.address(), "--max-concurrency", "8"],
        |report| report["knee"]["concurrency"] == 2,
    );
    if cfg!(target_os = "linux") {
        assert!(figure(&report["steps"][0]["backend_cores"]) < 0.5);
        // A worker takes a moment to accept.
        let queued = figure(&report["steps"][3]["accept_queue"]);
        assert!(queued < 0.5, "tidegate holds the rest: {queued}");
    }
}

#[test]
fn it_says_what_it_found_in_words_and_draws_it() {
    let _turn = alone();
    let app = Gunicorn::sync(1);
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("curve.svg");
    let url = format!("http://{}/sleep?ms=20", app.address());
    let (code, out, err) = tidegate(&[
        "probe",
        "--url",
        &url,
        "--step",
        "200ms",
        "--max-concurrency",
        "4",
        "--svg",
        svg.to_str().unwrap(),
    ]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with(&format!("{url} (gunicorn)")), "{out}");
    for part in [
        "throughput",
        "requests in parallel: * measured",
        "bound by",
        "tidegate probe",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let picture = fs::read_to_string(svg).unwrap();
    assert!(
        picture.starts_with("<svg ") && picture.contains("<polyline"),
        "{picture}"
    );
    // The recommendation is at the end, and can be used as it is.
    let file = dir.path().join("tidegate.toml");
    let at = out.find("# Measured with").expect("a recommendation");
    fs::write(&file, &out[at..]).unwrap();
    let (code, _, err) = tidegate(&["check", "-c", file.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
}

#[test]
fn an_interrupt_ends_it_with_what_there_is() {
    let _turn = alone();
    let app = Gunicorn::sync(1);
    let url = format!("http://{}/sleep?ms=20", app.address());
    let mut probe = Process::start(
        "probe",
        tidegate_command().args([
            "probe", "--url", &url, "--step", "300ms", "--format", "json",
        ]),
    );
    // The first step is over when a second client is there.
    until("the second step runs", || {
        app.most_at_once("/sleep") >= 1 && app.started("/sleep") > 25
    });
    probe.signal(Signal::INT);
    let code = probe.exit_code();
    let report: Value = serde_json::from_str(&probe.log()).unwrap();
    if report["end"] != "knee_past" {
        assert_eq!(report["end"], "interrupted");
        let warnings = report["warnings"].to_string();
        assert!(warnings.contains("interrupted"), "{warnings}");
    }
    assert_eq!(
        code,
        i32::from(report["steps"].as_array().unwrap().is_empty())
    );
}

/// A server that takes any number of requests at once, each for 100 ms. It ends with the test.
fn unbounded() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut head = BufReader::new(&stream).lines().map_while(Result::ok);
    if head.any(|line| line.is_empty()) {
        drop(head);
        thread::sleep(Duration::from_millis(100));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    }
}

/// That it may open too few files says nothing of the backend. What it may have, it takes.
#[test]
fn files_that_it_may_not_open_are_not_the_backends_fault() {
    let _turn = alone();
    let url = format!("http://{}/", unbounded());
    let limited = |limits: &str| {
        let exec = format!("ulimit {limits} && exec \"$@\"");
        let mut command = Command::new("/bin/sh");
        command.env_clear();
        command.args(["-c", &exec, "sh"]);
        command.arg(tidegate_command().get_program());
        command.args(["probe", "--url", &url, "--step", "50ms"]);
        command.args(["--max-concurrency", "32"]);
        let output = command.output().expect("it starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, out, err) = limited("-n 20");
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    for part in [
        "the probe itself has nothing left",
        "ulimit -Hn",
        "--max-concurrency",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let (code, out, err) = limited("-Sn 20");
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(!out.contains("requests failed"), "{out}");
}

/// Without an answer it fails, and with that of a redirect it says so.
#[test]
fn what_is_not_the_view_is_told_of() {
    let _turn = alone();
    let app = Gunicorn::sync(1);
    let asked = |path: &str| {
        let url = format!("http://{}{path}", app.address());
        let (code, out, err) = tidegate(&["probe", "--url", &url, "--step", "50ms"]);
        assert_eq!(err, "");
        (code, out)
    };
    let (code, out) = asked("/status?code=500");
    assert_eq!(code, 1, "{out}");
    for part in ["Nothing was measured.", "the first answer was 500"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, out) = asked("/status?code=302");
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("note: the first answer was 302"), "{out}");
}

#[test]
fn strangers_and_the_absent_are_not_measured() {
    let (code, _, err) = tidegate(&["probe", "--url", "http://192.0.2.1:8000/"]);
    assert_eq!(code, 2);
    assert!(err.contains("--yes-remote"), "{err}");
    let (code, _, err) = tidegate(&["probe", "--url", "https://127.0.0.1/"]);
    assert_eq!(code, 2);
    assert!(err.contains("plain HTTP"), "{err}");
    let (listener, free) = common::raw::reserved_port();
    common::raw::refuse(&listener);
    let (code, out, err) = tidegate(&["probe", "--url", &format!("http://{free}/")]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("nothing listens there"), "{err}");
    // A path that leads through a file.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let url = format!("unix:{}/app.sock:/", file.path().display());
    let (code, _, err) = tidegate(&["probe", "--url", &url]);
    assert_eq!(code, 1);
    assert!(err.contains("Not a directory"), "{err}");
}

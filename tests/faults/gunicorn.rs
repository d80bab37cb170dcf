//! gunicorn and its workers: killed, stopped, recycled, told to reload.

use super::*;

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(pid, signal).expect("a signal");
}

/// A request in flight, in a thread of its own.
fn in_the_background(gate: &Tidegate, path: &'static str) -> JoinHandle<Response> {
    let address = gate.address().to_owned();
    std::thread::spawn(move || common::get(&address, path))
}

#[test]
fn a_worker_is_killed() {
    let app = Gunicorn::sync(1);
    let gate = Tidegate::to(app.address()).start();
    let before = Before::of(&gate);
    let request = in_the_background(&gate, "/sleep?ms=30000");
    until("the worker has it", || app.started("/sleep") == 1);
    for worker in children(app.process.pid()) {
        signal(worker, Signal::KILL);
    }
    let answer = request.join().expect("no panic");
    assert_eq!((answer.status, &*answer.reason()), (502, "backend_reset"));
    // The master starts another, and the kernel holds the request until then.
    assert_eq!(gate.get("/").status, 200);
    before.holds_again(&gate);
}

#[test]
fn the_master_and_its_workers_are_killed() {
    // An address of its own, so that nobody else is given the port meanwhile.
    let mut app = Gunicorn::bound("127.77.1.1:0", &["--workers", "2"]);
    let address = app.address().to_owned();
    let gate = Tidegate::to(&address).start();
    let before = Before::of(&gate);
    assert_eq!(gate.get("/").status, 200);
    let request = in_the_background(&gate, "/sleep?ms=30000");
    until("the worker has it", || app.started("/sleep") == 1);
    app.process.kill();
    let answer = request.join().expect("no panic");
    assert_eq!((answer.status, &*answer.reason()), (502, "backend_reset"));
    // A worker that dies a moment later than the others still listened.
    until("nobody listens", || TcpStream::connect(&address).is_err());
    for _ in 0..10 {
        let answer = gate.get("/");
        assert_eq!(
            (answer.status, &*answer.reason()),
            (502, "backend_unreachable")
        );
    }
    before.holds_again(&gate);

    let next = Gunicorn::bound(&address, &["--workers", "2"]);
    let back = clock::now();
    until("it serves again", || gate.get("/").status == 200);
    assert!(since(back) < Duration::from_secs(5), "{:?}", since(back));
    assert_eq!(gate.metric("tidegate_backend_up", &[]), 1.0);
    before.holds_again(&gate);
    drop(next);
}

#[test]
fn a_worker_is_stopped() {
    let app = Gunicorn::sync(1);
    let worker = children(app.process.pid())[0];
    for orphan_max in ["60s", "600ms"] {
        let gate = Tidegate::to(app.address())
            .set("backend.response_timeout=400ms")
            .set(format!("backend.orphan_max={orphan_max}"))
            .start();
        let before = Before::of(&gate);
        signal(worker, Signal::STOP);
        let answer = gate.get("/");
        assert_eq!((answer.status, &*answer.reason()), (504, "backend_timeout"));
        if orphan_max == "60s" {
            gate.until_metric("tidegate_orphaned_requests", &[], 1.0);
            assert_eq!(gate.metric("tidegate_in_flight_requests", &[]), 1.0);
            signal(worker, Signal::CONT);
            before.holds_again(&gate);
        } else {
            before.holds_again(&gate);
            signal(worker, Signal::CONT);
        }
        until("the worker works again", || gate.get("/").status == 200);
    }
}

/// GETs by some clients that keep their connections, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<usize>>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    fn start(gate: &Tidegate, clients: usize, path: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let clients = (0..clients)
            .map(|_| {
                let (stop, failures) = (stop.clone(), failures.clone());
                let mut client = gate.client();
                std::thread::spawn(move || {
                    let mut served = 0;
                    while !stop.load(Relaxed) {
                        client.ask(path);
                        match client.try_response("GET") {
                            Ok(answer) if answer.status == 200 => served += 1,
                            other => {
                                failures.lock().expect("whole").push(format!("{other:?}"));
                                return served;
                            }
                        }
                    }
                    served
                })
            })
            .collect();
        Self {
            stop,
            clients,
            failures,
        }
    }

    /// How many were served; fails if one was not.
    #[track_caller]
    fn stop(self) -> usize {
        self.stop.store(true, Relaxed);
        let served = self
            .clients
            .into_iter()
            .map(|it| it.join().expect("no panic"));
        let served = served.sum();
        let failures = self.failures.lock().expect("whole");
        assert!(failures.is_empty(), "{served} served, but: {failures:#?}");
        served
    }
}

#[test]
fn gunicorn_is_told_to_reload_under_load() {
    for class in ["sync", "gthread"] {
        let threads = ["--threads", "2"];
        let mut args = vec!["--workers", "2", "--worker-class", class];
        args.extend(
            (class == "gthread")
                .then_some(threads)
                .into_iter()
                .flatten(),
        );
        let mut app = Gunicorn::start(&args);
        let gate = Tidegate::to(app.address())
            .set("queue.max_wait=30s")
            .set(format!("backend.keepalive={}", class == "gthread"))
            .start();
        let before = Before::of(&gate);
        let load = Load::start(&gate, 4, "/");
        for _ in 0..3 {
            let workers = children(app.process.pid());
            app.process.signal(Signal::HUP);
            until("the old workers are gone", || {
                let now = children(app.process.pid());
                now.len() >= 2 && !workers.iter().any(|old| now.contains(old))
            });
        }
        load.stop();
        until("idle connections are closed", || {
            !before.has_more_open(&gate)
        });
        before.holds_again(&gate);
    }
}

#[test]
fn gunicorn_recycles_its_workers() {
    for keepalive in [false, true] {
        let app = Gunicorn::start(&[
            "--workers",
            "2",
            "--worker-class",
            "gthread",
            "--threads",
            "2",
            "--max-requests",
            "40",
        ]);
        let gate = Tidegate::to(app.address())
            .set("queue.max_wait=30s")
            .set(format!("backend.keepalive={keepalive}"))
            .start();
        let first = children(app.process.pid());
        let load = Load::start(&gate, 4, "/");
        until("every worker was recycled, more than once", || {
            app.started("/") > 250
        });
        load.stop();
        until("other workers run", || {
            let now = children(app.process.pid());
            now.len() == 2 && !first.iter().any(|old| now.contains(old))
        });
        gate.until_idle();
    }
}

#[test]
fn a_unix_socket_comes_late_goes_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.sock");
    let address = format!("unix:{}", path.display());
    let gate = Tidegate::to(&address).start();
    let before = Before::of(&gate);
    for _ in 0..2 {
        let answer = gate.get("/");
        assert_eq!(
            (answer.status, &*answer.reason()),
            (502, "backend_unreachable")
        );
        before.holds_again(&gate);
        let mut app = Gunicorn::bound(&address, &["--workers", "1"]);
        let back = clock::now();
        until("it serves", || gate.get("/").status == 200);
        assert!(since(back) < Duration::from_secs(5));
        app.process.kill();
        let _ = fs::remove_file(&path);
    }
}

//! The life of a pod, rehearsed with real processes in the order in which Kubernetes does things, and
//! with the configuration that `deploy/kubernetes` ships.

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::Signal;

use common::{Client, Gunicorn, Tidegate, get, try_get, until};

const CONFIG_MAP: &str = include_str!("../deploy/kubernetes/components/sidecar/tidegate.toml");
const FLIGHT: &str = "tidegate_in_flight_requests";

/// Where the app will listen: nobody does yet.
fn app_address() -> String {
    common::ports::own_address().to_string()
}

fn sidecar(app: &str) -> common::Setup {
    Tidegate::to(app).toml(CONFIG_MAP)
}

/// Clients of the Service: half of them keep their connections for as long as they may.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: &str, clients: usize, path: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients)
            .map(|number| {
                let (address, stop) = (address.to_owned(), stop.clone());
                std::thread::spawn(move || {
                    let mut answers = Vec::new();
                    let mut kept: Option<Client> = None;
                    while !stop.load(Relaxed) {
                        let mut client = kept.take().unwrap_or_else(|| Client::connect(&address));
                        let answer = client.get(path);
                        let closes = answer.header("connection").is_some_and(|it| it == "close");
                        kept = (number % 2 == 0 && !closes).then_some(client);
                        if answer.status != 200 {
                            // As a client should, and so that refusals are no load of their own.
                            std::thread::sleep(Duration::from_millis(20));
                        }
                        answers.push(format!("{} {}", answer.status, answer.reason()));
                    }
                    answers
                })
            })
            .collect();
        Self { stop, clients }
    }

    /// What all of them were answered. A connection that broke would be a panic of its client.
    fn stop(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.clients
            .into_iter()
            .flat_map(|client| client.join().expect("no request is lost"))
            .collect()
    }
}

#[track_caller]
fn all_served(answers: &[String], least: usize) {
    let failed: Vec<_> = answers.iter().filter(|it| *it != "200 ").collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(answers.len() >= least, "{}", answers.len());
}

#[test]
fn a_pod_with_a_native_sidecar_comes_and_goes_and_no_request_fails() {
    rehearse(false);
}

/// Its containers are told to end at the same time, each after its own hook.
#[test]
fn a_pod_with_a_classic_sidecar_comes_and_goes_and_no_request_fails() {
    rehearse(true);
}

#[track_caller]
fn rehearse(classic: bool) {
    let address = app_address();
    // The sidecar first. Its start and its life ask nothing of the app, its readiness does.
    let mut tidegate = sidecar(&address).set("drain.delay=4s").start();
    assert_eq!(tidegate.admin_get("/livez").status, 200);
    assert_eq!(tidegate.admin_get("/readyz").status, 503);

    let mut app = Gunicorn::bound(&address, &["--workers", "4"]);
    until("the pod is ready", || {
        tidegate.admin_get("/readyz").status == 200
    });
    let load = Load::start(tidegate.address(), 6, "/sleep?ms=20");
    until("there is load", || app.started("/sleep") > 50);

    // The pod is deleted. At once the preStop hooks are called...
    let mut slow = tidegate.client();
    slow.ask("/slow-body?ms=8000");
    until("it is at work", || app.started("/slow-body") == 1);
    let hooks: Vec<_> = (0..if classic { 2 } else { 1 })
        .map(|_| {
            let admin = tidegate.admin().to_owned();
            std::thread::spawn(move || get(&admin, "/drain/wait").status)
        })
        .collect();
    until("the pod is not ready", || {
        tidegate.admin_get("/readyz").status == 503
    });
    // ...while requests still come for as long as it takes to tell everybody.
    let before = app.started("/sleep");
    until("requests still come", || app.started("/sleep") > before + 5);
    all_served(&load.stop(), 55);

    // They are answered when all is finished: the slow one too.
    for hook in &hooks {
        assert!(!hook.is_finished(), "the hook did not wait");
    }
    assert_eq!(slow.response().status, 200);
    for hook in hooks {
        assert_eq!(hook.join().expect("an answer"), 200);
    }
    assert_eq!(tidegate.metric(FLIGHT, &[]), 0.0);

    // Only now the app is told to end, and when it has ended, tidegate is.
    if classic {
        tidegate.process.signal(Signal::TERM);
    }
    assert_eq!(app.process.stop(), 0);
    assert_eq!(tidegate.stop(), 0);
}

/// What the kubelet does: a new directory, and a link that is swapped in one step.
fn mount(directory: &Path, generation: u32, text: &str) {
    let new = format!("..{generation}");
    fs::create_dir(directory.join(&new)).expect("a directory");
    fs::write(directory.join(&new).join("tidegate.toml"), text).expect("a file");
    let next = directory.join("..data_tmp");
    symlink(&new, &next).expect("a link");
    fs::rename(&next, directory.join("..data")).expect("the swap");
    if generation > 1 {
        fs::remove_dir_all(directory.join(format!("..{}", generation - 1))).expect("the old one");
    }
}

#[test]
fn a_config_map_is_changed_under_load_and_no_request_fails() {
    let app = Gunicorn::gthread(8);
    let volume = tempfile::tempdir().expect("a temporary directory");
    mount(volume.path(), 1, CONFIG_MAP);
    let file = volume.path().join("tidegate.toml");
    symlink("..data/tidegate.toml", &file).expect("a link");
    let tidegate = Tidegate::to(app.address())
        .arg("--config")
        .arg(file.to_str().expect("text"))
        .set("queue.max_wait=10s")
        .start();
    let load = Load::start(tidegate.address(), 8, "/sleep?ms=10");
    let goes_on = || {
        let before = app.started("/sleep");
        until("the load goes on", || app.started("/sleep") > before + 30);
    };
    let reloads =
        |result: &str| tidegate.metric("tidegate_config_reloads_total", &[("result", result)]);
    goes_on();

    // A fixed one, for else the law has a mind of its own.
    let limit =
        |limit: u32| format!("{CONFIG_MAP}\n[limit]\nalgorithm = \"fixed\"\ninitial = {limit}\n");
    mount(volume.path(), 2, &limit(3));
    tidegate.until_metric("tidegate_concurrency_limit", &[], 3.0);
    goes_on();

    // A mistake changes nothing but the metric that tells of it.
    mount(
        volume.path(),
        3,
        &format!("{CONFIG_MAP}\n[limit]\nmaxx = 5\n"),
    );
    tidegate.until_metric("tidegate_config_reload_success", &[], 0.0);
    assert_eq!(tidegate.metric("tidegate_concurrency_limit", &[]), 3.0);
    goes_on();

    let ok = reloads("ok");
    mount(volume.path(), 4, &limit(2));
    tidegate.until_metric("tidegate_config_reload_success", &[], 1.0);
    tidegate.until_metric("tidegate_concurrency_limit", &[], 2.0);
    assert!(reloads("ok") > ok && reloads("error") >= 1.0);
    goes_on();
    all_served(&load.stop(), 120);
}

#[test]
fn the_app_alone_is_restarted_and_the_pod_serves_again() {
    let address = app_address();
    let mut tidegate = sidecar(&address).set("drain.delay=0s").start();
    let mut app = Gunicorn::bound(&address, &["--workers", "2"]);
    until("the pod is ready", || {
        tidegate.admin_get("/readyz").status == 200
    });
    let load = Load::start(tidegate.address(), 4, "/sleep?ms=20");
    until("there is load", || app.started("/sleep") > 20);

    // A liveness probe of the app has failed: its hook, its TERM, and its next start. tidegate is told
    // of none of it.
    assert_eq!(get(tidegate.admin(), "/drain/wait").status, 200);
    assert_eq!(app.process.stop(), 0);
    let app = Gunicorn::bound(&address, &["--workers", "2"]);
    until("the pod is ready again", || {
        tidegate.admin_get("/readyz").status == 200
    });
    until("the load is served again", || app.started("/sleep") > 20);

    let answers = load.stop();
    assert!(answers.last().is_some_and(|last| last == "200 "));
    // Who came in between was told at once, and why.
    let refused: Vec<_> = answers.iter().filter(|it| *it != "200 ").collect();
    assert!(!refused.is_empty());
    for answer in refused {
        assert!(
            ["503 draining", "502 backend_unreachable"].contains(&answer.as_str()),
            "{answer}"
        );
    }
    tidegate.until_idle();
    assert!(try_get(tidegate.address(), "/pid").is_ok_and(|it| it.status == 200));
    assert_eq!(tidegate.stop(), 0);
}

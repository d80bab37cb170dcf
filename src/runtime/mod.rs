//! The process: threads, signals, drain, reload and the child process. Only this module knows all the others
//! that serve requests, and ties them together.

mod backend;
pub mod child;
mod drain;
mod handle;
mod notify;
mod process;
mod pulse;
mod reload;
mod state_file;
mod threads;

pub(crate) use process::raise_descriptors;

use std::{
    cell::Cell,
    fmt,
    io::{self, ErrorKind},
    process::ExitCode,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::{
    backend::Backend,
    drain::{Drain, Way},
    handle::Running,
    pulse::Heart,
    reload::{Cause, Settings},
    threads::DataPlane,
};
use crate::{
    admin::{self, AdminListener},
    admission::Limiter,
    clock,
    config::{self, Address, Loaded, Sources, Tried},
    observe::{
        Metrics,
        log::LogControl,
        trace::{Recorder, StartError},
    },
    proxy::{self, Listener, Shared},
    sense::{self, Senses},
    tuner,
};

/// Between two writes of `limit.state_file`.
const KEEP_EVERY: Duration = Duration::from_secs(30);
/// How long the last answers of the admin server may hold up the end.
const FAREWELL: Duration = Duration::from_millis(300);
/// Two requests to stop within this time count as one: `timeout` signals its child, and then its own process
/// group.
const SAME_SIGNAL: Duration = Duration::from_millis(50);

/// What ends `run` and `exec` badly.
#[derive(Debug)]
enum Failure {
    /// Exit code 1.
    Runtime(String),
    /// Exit code 2.
    Config(String),
    /// Exit code 3.
    Bind(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(text) | Self::Config(text) | Self::Bind(text) => f.write_str(text),
        }
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Runtime(_) => 1,
            Self::Config(_) => 2,
            Self::Bind(_) => 3,
        }
    }
}

/// Fronts a backend until a signal ends it: `tidegate run`, or with `exec`, `tidegate exec`.
pub fn run(sources: Sources, exec: bool) -> ExitCode {
    let started = clock::now();
    match start(sources, exec, started) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

/// Tells whoever typed the command; the log may not be there yet, or not be read.
#[allow(clippy::print_stderr)]
fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "tidegate: {text}");
}

fn start(sources: Sources, exec: bool, started: Instant) -> Result<u8, Failure> {
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Runtime(format!("cannot start a runtime: {error}")))?;
    let code = control.block_on(async {
        // Before all that takes time: process 1 loses a signal that it does not handle.
        let mut signals = Signals::new().map_err(|error| Failure::Runtime(error.to_string()))?;
        let preparing = tokio::task::spawn_blocking(|| prepare(sources));
        let prepared = tokio::select! {
            prepared = preparing => prepared.map_err(|error| Failure::Runtime(error.to_string()))??,
            // There is nothing to drain yet.
            () = signals.stop_early() => return Ok(0),
        };
        serve(prepared, signals, exec, started).await
    })?;
    // What still runs on this thread has nobody left to work for.
    control.shutdown_timeout(Duration::from_millis(100));
    Ok(code)
}

/// What is read and tried before anything is served.
struct Prepared {
    sources: Sources,
    tried: Tried,
    loaded: Loaded,
    log: LogControl,
    /// Told of when the file may have changed.
    changed: mpsc::UnboundedReceiver<()>,
    _watcher: Option<config::watch::Watcher>,
}

/// The disk may keep this waiting.
fn prepare(sources: Sources) -> Result<Prepared, Failure> {
    // Before anything is read, so that no later change is missed.
    let (changes, changed) = mpsc::unbounded_channel();
    let tried = Tried::default();
    let file = sources.path();
    let piped = file.as_deref().is_some_and(config::is_pipe);
    let watcher = file.filter(|_| !piped).map(|path| {
        config::watch::watch(&path, tried.clone(), move || {
            let _ = changes.send(());
        })
    });
    let loaded = config::load_noting(&sources, &tried)
        .map_err(|problems| Failure::Config(problems.to_string()))?;
    let log = crate::observe::log::init(&loaded.config.log).map_err(Failure::Config)?;
    if let Some(Err(error)) = &watcher {
        tracing::warn!(%error, "the configuration file is not watched; HUP still reloads it");
    }
    if piped {
        tracing::warn!(
            "the configuration came through a pipe, which is read once: to reload it takes a file"
        );
    }
    process::raise_descriptor_limit(&loaded.config);
    process::try_spool(&loaded.config);
    state_file::try_write(&loaded.config);
    Ok(Prepared {
        sources,
        tried,
        loaded,
        log,
        changed,
        _watcher: watcher.and_then(Result::ok),
    })
}

/// Everything between the start and the end of the process, on the control thread.
async fn serve(
    prepared: Prepared,
    mut signals: Signals,
    exec: bool,
    started: Instant,
) -> Result<u8, Failure> {
    // As near to the start of the runtime's own clock as can be.
    let zero = clock::now();
    let Prepared {
        mut sources,
        tried,
        mut loaded,
        log,
        mut changed,
        _watcher,
    } = prepared;
    let listeners = bind(&loaded)?;
    let admin = bind_admin(&loaded).await?;
    let admin_address = match admin.local_addr() {
        Some(address) => Address::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        },
        None => loaded.config.admin.listen.clone(),
    };
    proxy::close_unused();
    let mut backend = Backend::prepare(&loaded, exec)?;
    if let Some(address) = backend.address() {
        loaded = loaded.with_backend(address);
        // From now on it is where the backend is when nobody names an endpoint.
        sources.backend = Some(address.clone());
    }
    let config = loaded.config.clone();

    let metrics = Arc::new(Metrics::new());
    let limiter = new_limiter(&config, &metrics);
    let shared = Shared::new(config, limiter, metrics);
    let settings = Arc::new(Settings::new((sources, tried), loaded, log, shared.clone()));
    if let Some(file) = &shared.live().config.trace.file {
        let recorder = Recorder::start(file).map_err(|error| cannot_trace(&error))?;
        let _ = shared.trace.set(recorder);
    }
    let drain = Drain::new(shared.clone());
    let means = Arc::new(tuner::Means::default());
    let senses = Arc::new(Senses::default());
    if let Some(blind) = sense::BLIND {
        tracing::warn!("{blind}");
    }
    let running = Arc::new(Running {
        shared: shared.clone(),
        settings: settings.clone(),
        drain: drain.clone(),
        means: means.clone(),
        senses: senses.clone(),
        started,
        admin: admin_address.clone(),
        serving: Arc::default(),
        threads: OnceLock::new(),
        heart: Heart::default(),
    });
    let up = running.serving.clone();
    tokio::spawn(tuner::run(shared.clone(), means, senses.clone(), up, zero));
    let (farewell, leaving) = tokio::sync::oneshot::channel::<()>();
    let admin = tokio::spawn(admin::serve(admin, running.clone(), async {
        let _ = leaving.await;
    }));

    let data_plane = DataPlane::start(&shared, listeners)?;
    tokio::spawn(notify::watchdog(data_plane.handles().to_vec()));
    let _ = running.threads.set(data_plane.handles().to_vec());
    backend.start(&senses).await.map_err(Failure::Runtime)?;
    // Clients are accepted, which a command that does not listen delays for a while; then it is up.
    let accepting = Cell::new(false);
    let open = data_plane.door();
    let accept = || {
        accepting.set(true);
        open();
    };
    let mut serving = false;
    let readiness = backend.readiness();
    let child = backend.address().map(ToString::to_string);
    let mut ready = std::pin::pin!(async {
        readiness.wait(&shared, accept).await;
        tuner::first_look(&shared, &senses).await;
        state_file::recall(&shared, child.as_deref());
        accept();
        tuner::first_visit(&shared).await;
    });
    let mut keep = tokio::time::interval(KEEP_EVERY);
    let mut keeper = state_file::Keeper::new(child.clone());
    let code = loop {
        tokio::select! {
            () = &mut ready, if !serving => {
                serving = true;
                running.serving.store(true, Relaxed);
                announce(&shared, &data_plane, &admin_address);
            }
            code = backend.exited(&shared, &senses) => {
                notify::stopping();
                if accepting.get() {
                    tracing::info!("draining, as the backend has ended; a signal ends this at once");
                    tokio::select! {
                        () = drain.finish(Way::Bereft) => {}
                        () = signals.stop(&running) => tracing::warn!("ended by a signal"),
                    }
                    data_plane.close();
                }
                break code;
            }
            signal = signals.next() => match signal {
                Signal::Stop => {
                    tracing::info!("draining; a second signal ends this at once");
                    notify::stopping();
                    if !accepting.get() {
                        break tokio::select! {
                            code = backend.stop() => code,
                            () = signals.stop(&running) => {
                                tracing::warn!("ended by a second signal");
                                backend.kill().await
                            }
                        };
                    }
                    let way = match data_plane.hand_over() {
                        true => Way::HandedOver,
                        false => Way::Refusing,
                    };
                    let stopped = tokio::select! {
                        () = drain.finish(way) => true,
                        () = signals.stop(&running) => false,
                    };
                    break if stopped {
                        data_plane.close();
                        tokio::select! {
                            code = backend.stop() => code,
                            () = signals.stop(&running) => backend.kill().await,
                        }
                    } else {
                        tracing::warn!("ended by a second signal");
                        // First: whoever kills us next is in a hurry, and would leave it behind.
                        let code = backend.kill().await;
                        data_plane.close();
                        code
                    };
                }
                Signal::Reload => reload(&settings, Cause::Asked("HUP"), serving),
                Signal::ReopenLogs => tell_no_file(),
                Signal::DumpState => running.log_state(),
            },
            _ = keep.tick(), if serving => keeper.save(&shared),
            Some(()) = changed.recv() => reload(&settings, Cause::FileChanged, serving),
        }
    };
    if serving {
        keeper.finish(&shared).await;
    }
    let traced = shared.clone();
    let trace = tokio::task::spawn_blocking(move || traced.trace.get().map(Recorder::finish));
    let _ = tokio::time::timeout(FAREWELL, trace).await;
    // Who waits for the drain, or listens to the status, hears of the end.
    let _ = farewell.send(());
    let _ = tokio::time::timeout(FAREWELL, admin).await;
    Ok(code)
}

/// In a task of its own, so that the next signal is heard however long reading the file takes. The service
/// manager takes the end of a reload for readiness, so it hears of reloads only once tidegate is serving.
fn reload(settings: &Arc<Settings>, cause: Cause, serving: bool) {
    let settings = settings.clone();
    tokio::spawn(async move {
        if serving {
            notify::reloading();
        }
        let result = settings.try_reload(cause).await;
        if serving {
            notify::reloaded(result.is_ok());
        }
    });
}

fn tell_no_file() {
    tracing::info!("the log goes to standard error: there is no file to reopen");
}

fn bind(loaded: &Loaded) -> Result<Vec<Listener>, Failure> {
    let mut listeners = Vec::new();
    let all = &loaded.config.server.listen;
    for address in all {
        let bound = Listener::bind(address, all)
            .map_err(|error| cannot_listen(address, &error, "--listen or server.listen"))?;
        listeners.extend(bound);
    }
    Ok(listeners)
}

async fn bind_admin(loaded: &Loaded) -> Result<AdminListener, Failure> {
    let admin = &loaded.config.admin;
    AdminListener::bind(admin)
        .await
        .map_err(|error| cannot_listen(&admin.listen, &error, "--admin or admin.listen"))
}

fn cannot_trace(error: &StartError) -> Failure {
    let kind = match error {
        StartError::Io { error, .. } => Some(error.kind()),
        _ => None,
    };
    let remedy = match kind {
        Some(ErrorKind::NotFound) => "; make its directory, or name another file",
        Some(ErrorKind::PermissionDenied) => {
            "; let the user that runs tidegate write there, or name another file"
        }
        _ => "",
    };
    Failure::Runtime(format!("trace.file: {error}{remedy}"))
}

fn cannot_listen(address: &Address, error: &io::Error, with: &str) -> Failure {
    let remedy = match (error.kind(), address) {
        (ErrorKind::NotFound, Address::Unix(_)) => "make its directory, or ",
        (ErrorKind::AlreadyExists, Address::Unix(_)) => "remove it, or ",
        (ErrorKind::PermissionDenied, Address::Unix(_)) => {
            "let the user that runs tidegate write to its directory, or "
        }
        (ErrorKind::PermissionDenied, Address::Tcp { .. }) => {
            "grant CAP_NET_BIND_SERVICE for a port below 1024, or "
        }
        _ => "",
    };
    let last = match address {
        Address::Fd(_) => "start the socket unit, or set another address with",
        _ => "choose another address with",
    };
    Failure::Bind(format!(
        "cannot listen on {address}: {error}; {remedy}{last} {with}"
    ))
}

fn new_limiter(config: &config::Config, metrics: &Arc<Metrics>) -> Limiter {
    let figures = metrics.clone();
    let on_decision = move |lane: &crate::admission::Lane, decision: &crate::control::Decision| {
        if decision.reason == crate::control::reason::LEAK {
            tracing::warn!(
                endpoint = lane.label(),
                bytes = decision.evidence.readings.memory.map(|memory| memory.used),
                "the backend's memory grows while its requests do not: it leaks"
            );
        }
        if decision.limit == decision.from {
            return;
        }
        let up = decision.limit > decision.from;
        figures
            .endpoint(lane.label())
            .limit_change(up, decision.reason);
        let evidence = &decision.evidence;
        tracing::debug!(
            endpoint = lane.label(),
            from = decision.from,
            to = decision.limit,
            reason = decision.reason,
            bound_by = crate::observe::labels::bound_by(decision.bound_by),
            stretch = evidence.stretch,
            noise = evidence.noise,
            throughput = evidence.throughput,
            limited_share = evidence.limited_share,
            samples = evidence.samples,
            drops = evidence.drops,
            in_flight = evidence.in_flight,
            law_limit = evidence.law_limit,
            ceiling = evidence.ceiling,
            accept_queue = evidence.readings.accept_queue,
            cpu = evidence.readings.cpu.map(|cpu| cpu.utilisation),
            memory = evidence.readings.memory.map(|memory| memory.used),
            "limit changed"
        );
    };
    Limiter::new(
        proxy::queue_settings(config),
        Some(Box::new(on_decision)),
        clock::now(),
    )
}

fn announce(shared: &Shared, data_plane: &DataPlane, admin: &Address) {
    let live = shared.live();
    let endpoints: Vec<String> = live
        .config
        .backend
        .endpoints
        .iter()
        .map(ToString::to_string)
        .collect();
    tracing::info!(
        listen = data_plane.addresses().join(", "),
        backend = endpoints.join(", "),
        %admin,
        limit = shared.limiter.snapshot(clock::now()).limit(),
        dry_run = live.config.limit.dry_run,
        "tidegate is ready"
    );
    notify::ready();
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug)]
enum Signal {
    Stop,
    Reload,
    ReopenLogs,
    DumpState,
}

struct Signals {
    /// When the last TERM or INT came that counted.
    stopped: Option<Instant>,
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
    usr1: tokio::signal::unix::Signal,
    usr2: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            stopped: None,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Signal {
        loop {
            let signal = tokio::select! {
                _ = self.term.recv() => Signal::Stop,
                _ = self.int.recv() => Signal::Stop,
                _ = self.hup.recv() => Signal::Reload,
                _ = self.usr1.recv() => Signal::ReopenLogs,
                _ = self.usr2.recv() => Signal::DumpState,
            };
            if matches!(signal, Signal::Stop) {
                let now = clock::now();
                let again = |at| now.saturating_duration_since(at) < SAME_SIGNAL;
                if self.stopped.is_some_and(again) {
                    continue;
                }
                self.stopped = Some(now);
            }
            return signal;
        }
    }

    /// The first TERM or INT, while there is nothing yet that the others could be for.
    async fn stop_early(&mut self) {
        while !matches!(self.next().await, Signal::Stop) {}
    }

    /// Waits for the next TERM or INT during a drain. Other signals mean what they always do, but systemd,
    /// which has been told that the process is stopping, hears no more of reloads.
    async fn stop(&mut self, running: &Running) {
        loop {
            match self.next().await {
                Signal::Stop => return,
                Signal::Reload => {
                    let settings = running.settings.clone();
                    tokio::spawn(async move { settings.try_reload(Cause::Asked("HUP")).await });
                }
                Signal::ReopenLogs => tell_no_file(),
                Signal::DumpState => running.log_state(),
            }
        }
    }
}

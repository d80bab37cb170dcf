//! The data plane's threads: each has a runtime of its own and shares nothing but the limiter.

use std::{io, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::{
    runtime::{Handle, Runtime},
    sync::{mpsc, watch},
};

use super::Failure;
use crate::{
    clock,
    proxy::{Acceptor, Connections, Listener, Open, Phase, Shared, Worker, serve_accepted},
};

/// For how long connections are given to end after a drain.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// For how long who has been accepted already is given to find room, when the data plane is closed.
const LAST_ROOM: Duration = Duration::from_millis(100);
/// For how long the threads are waited for when it is closed: one that hangs does not hold up the end.
const JOIN: Duration = Duration::from_millis(1500);

/// How far the data plane has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Bound; the kernel holds the clients.
    Waiting,
    Accepting,
    /// Clients of sockets that we were given are left to our successor.
    HandedOver,
    Closed,
}

/// The running data plane.
#[derive(Debug)]
pub struct DataPlane {
    addresses: Vec<String>,
    /// Every listener was given to us, and stays when we are gone.
    inherited: bool,
    stage: watch::Sender<Stage>,
    connections: Vec<Arc<Connections>>,
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
}

impl DataPlane {
    /// Starts the threads; nothing is accepted yet.
    ///
    /// # Errors
    /// If a thread or a runtime cannot be made, or one cannot listen.
    pub fn start(shared: &Arc<Shared>, listeners: Vec<Listener>) -> Result<Self, Failure> {
        let addresses = listeners.iter().map(Listener::local_address).collect();
        let inherited = listeners.iter().all(Listener::is_inherited);
        let (stage, stages) = watch::channel(Stage::Waiting);
        let count = shared.live().config.server.threads.max(1);
        let mut workers = vec![Worker {
            connections: Arc::default(),
            sender: None,
        }];
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for number in 1..count {
            let (sender, accepted) = mpsc::unbounded_channel();
            let worker = Worker {
                connections: Arc::default(),
                sender: Some(sender),
            };
            let connections = worker.connections.clone();
            workers.push(worker);
            let (shared, stages) = (shared.clone(), stages.clone());
            let runtime = runtime().map_err(no_thread)?;
            let (handle, thread) = spawn(number, runtime, async move {
                tokio::spawn(let_go(shared.clone(), connections.clone()));
                tokio::spawn(serve_accepted(accepted, shared));
                finish(stages, &connections).await;
            })
            .map_err(no_thread)?;
            handles.push(handle);
            threads.push(thread);
        }
        let connections: Vec<_> = workers.iter().map(|w| w.connections.clone()).collect();
        let acceptor = Arc::new(Acceptor::new(shared.clone(), workers));
        let own = connections[0].clone();
        let runtime = runtime().map_err(no_thread)?;
        let listeners = match open(&runtime, listeners) {
            Ok(listeners) => listeners,
            Err(failure) => {
                // It must not be waited for in here, which is a runtime's too.
                runtime.shutdown_background();
                return Err(failure);
            }
        };
        let let_go = let_go(shared.clone(), own.clone());
        let (handle, thread) = spawn(0, runtime, async move {
            tokio::spawn(let_go);
            accept(&acceptor, listeners, stages.clone()).await;
            finish(stages, &own).await;
        })
        .map_err(no_thread)?;
        handles.push(handle);
        threads.push(thread);
        Ok(Self {
            addresses,
            inherited,
            stage,
            connections,
            handles,
            threads,
        })
    }

    /// The runtimes of its threads.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// The addresses that are listened on.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// A function that lets the clients in.
    pub fn door(&self) -> impl Fn() + use<> {
        let stage = self.stage.clone();
        move || {
            stage.send_if_modified(|stage| {
                let shut = *stage == Stage::Waiting;
                if shut {
                    *stage = Stage::Accepting;
                }
                shut
            });
        }
    }

    /// Stops accepting from sockets that we were given: clients that come from now on wait in their backlog
    /// for our successor. Says whether all sockets are such, so that nobody has to be refused.
    pub fn hand_over(&self) -> bool {
        self.stage.send_replace(Stage::HandedOver);
        self.inherited
    }

    /// Stops accepting, lets idle connections close, and ends the threads.
    pub fn close(mut self) {
        self.stage.send_replace(Stage::Closed);
        for connections in &self.connections {
            connections.wake_all();
        }
        let until = clock::now() + JOIN;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                if clock::now() >= until {
                    let name = thread.thread().name();
                    tracing::warn!(name, "a thread hangs: it is not waited for");
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

fn open(runtime: &Runtime, listeners: Vec<Listener>) -> Result<Vec<Open>, Failure> {
    let _within = runtime.enter();
    let open = listeners.into_iter().map(|listener| {
        let address = listener.local_address();
        let open = listener.open();
        open.map_err(|error| Failure::Bind(format!("cannot listen on {address}: {error}")))
    });
    open.collect()
}

fn no_thread(error: io::Error) -> Failure {
    Failure::Runtime(format!("cannot start a thread: {error}"))
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn spawn(
    number: usize,
    runtime: Runtime,
    work: impl Future<Output = ()> + Send + 'static,
) -> io::Result<(Handle, JoinHandle<()>)> {
    let handle = runtime.handle().clone();
    let thread = std::thread::Builder::new()
        .name(format!("data-{number}"))
        .spawn(move || {
            runtime.block_on(work);
            runtime.shutdown_timeout(Duration::from_millis(50));
        })?;
    Ok((handle, thread))
}

async fn accept(
    acceptor: &Arc<Acceptor>,
    listeners: Vec<Open>,
    mut stages: watch::Receiver<Stage>,
) {
    let open = stages.wait_for(|stage| *stage != Stage::Waiting).await;
    if !open.is_ok_and(|stage| *stage == Stage::Accepting) {
        return;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        let (acceptor, mut stages) = (acceptor.clone(), stages.clone());
        tasks.spawn(async move {
            let is_inherited = listener.is_inherited;
            let over = async {
                let is_over = |stage: &Stage| match stage {
                    Stage::Waiting | Stage::Accepting => false,
                    Stage::HandedOver => is_inherited,
                    Stage::Closed => true,
                };
                let _ = stages.wait_for(is_over).await;
            };
            acceptor.run(listener, over).await;
        });
    }
    let _ = stages.wait_for(|stage| *stage == Stage::Closed).await;
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_ROOM, ended).await;
    // Dropping the tasks closes the sockets.
    tasks.shutdown().await;
}

/// Wakes the connections each time that requests begin to be refused: those that are idle end then.
async fn let_go(shared: Arc<Shared>, connections: Arc<Connections>) {
    loop {
        let changed = shared.phase_change();
        if shared.phase() == Phase::Draining {
            connections.wake_all();
        }
        changed.await;
    }
}

/// Waits for the end, then for the connections that are still open, for a little while.
async fn finish(mut stages: watch::Receiver<Stage>, connections: &Connections) {
    let _ = stages.wait_for(|stage| *stage == Stage::Closed).await;
    let empty = async {
        while connections.open() > 0 {
            connections.wake_all();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, empty).await;
}

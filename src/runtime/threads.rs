//! The data plane's threads: each has a runtime of its own and shares nothing but the limiter.

use std::{io, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use crate::proxy::{Acceptor, Connections, Listener, Shared, Worker, serve_accepted};

/// For how long connections are given to end after a drain.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How far the data plane has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Bound; the kernel holds the clients.
    Waiting,
    Accepting,
    /// Whoever comes through a socket that we were given is left to our successor.
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
    /// If a thread or a runtime cannot be made.
    pub fn start(shared: &Arc<Shared>, listeners: Vec<Listener>) -> io::Result<Self> {
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
            let (handle, thread) = spawn(number, async move {
                tokio::spawn(serve_accepted(accepted, shared));
                finish(stages, &connections).await;
            })?;
            handles.push(handle);
            threads.push(thread);
        }
        let connections: Vec<_> = workers.iter().map(|w| w.connections.clone()).collect();
        let acceptor = Arc::new(Acceptor::new(shared.clone(), workers));
        let own = connections[0].clone();
        let (handle, thread) = spawn(0, async move {
            accept(&acceptor, listeners, stages.clone()).await;
            finish(stages, &own).await;
        })?;
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

    /// What lets the clients in.
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

    /// Stops accepting from sockets that we were given: who comes from now on waits in their backlog
    /// for our successor. Whether that is everybody, so that nobody has to be refused.
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
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(
    number: usize,
    work: impl Future<Output = ()> + Send + 'static,
) -> io::Result<(Handle, JoinHandle<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
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
    listeners: Vec<Listener>,
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
            let is_inherited = listener.is_inherited();
            let accepted = tokio::select! {
                biased;
                _ = stages.wait_for(|stage| *stage == Stage::HandedOver), if is_inherited => Ok(()),
                ended = acceptor.run(listener) => ended,
            };
            if let Err(error) = accepted {
                tracing::error!(%error, "cannot accept connections");
            }
        });
    }
    let _ = stages.wait_for(|stage| *stage == Stage::Closed).await;
    // Dropping the tasks closes the sockets.
    tasks.shutdown().await;
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

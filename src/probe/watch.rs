//! What the backend's processes do while they are loaded, as far as [`crate::sense`] can see them. Where it
//! cannot (another machine, another container), there is less to say and nothing fails.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use crate::{
    clock,
    config::{Address, Config, Profile},
    sense::{Gaze, ProcessTimes},
    sync::{Mutex, lock},
};

/// What could be seen at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Instant,
    /// The processes, by number; empty when they cannot be seen.
    pub processes: BTreeMap<u32, ProcessTimes>,
    /// Memory in use, bytes.
    pub memory: Option<u64>,
}

/// What changes from moment to moment.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// Connections that no worker has accepted yet; None when it cannot be seen.
    pub accept_queue: Option<u32>,
    /// Memory in use, bytes.
    pub memory: Option<u64>,
}

/// Looks at the backend at one address, away from the thread that makes the load: that one would send no
/// request meanwhile.
#[derive(Clone, Debug)]
pub struct Watch {
    gaze: Arc<Mutex<Gaze>>,
}

impl Watch {
    /// Finds the processes that listen there.
    pub async fn new(address: Address, config: Arc<Config>) -> Self {
        let gaze = off_thread(move || {
            let mut gaze = Gaze::new(&address, &config);
            // CPU is known from the second look on.
            gaze.gauges();
            gaze
        });
        Self {
            gaze: Arc::new(Mutex::new(gaze.await)),
        }
    }

    /// The requests in parallel that the backend is known to have room for, as far as that is known.
    pub fn slots(&self) -> Option<u32> {
        Some(lock(&self.gaze).findings().slots()?.count)
    }

    /// Whether the server is a known one that takes any number of requests at once.
    pub fn is_unbounded(&self) -> bool {
        let gaze = lock(&self.gaze);
        let findings = gaze.findings();
        let known = findings.ladder.server.is_some() && findings.slots().is_none();
        known
            && matches!(
                findings.profile,
                Profile::GunicornGevent | Profile::Werkzeug
            )
    }

    /// Cores, and memory in bytes, that the backend may use. To be asked some time after the beginning.
    pub async fn limits(&self) -> (Option<f64>, Option<u64>) {
        let gauges = self.look(Gaze::gauges).await;
        (gauges.cpu.map(|cpu| cpu.cores), gauges.memory_limit)
    }

    /// Looks at everything.
    pub async fn snapshot(&self) -> Snapshot {
        self.look(|gaze| {
            let gauges = gaze.gauges();
            let times = |pid: &u32| Some((*pid, Gaze::times(*pid)?));
            Snapshot {
                processes: gauges.processes.iter().filter_map(times).collect(),
                memory: gauges.memory_used,
                at: clock::now(),
            }
        })
        .await
    }

    /// Looks at what changes quickly.
    pub async fn glance(&self) -> Glance {
        self.look(|gaze| Glance {
            accept_queue: gaze.accept_queue(),
            memory: gaze.gauges().memory_used,
        })
        .await
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Gaze) -> T + Send + 'static,
    ) -> T {
        let gaze = self.gaze.clone();
        off_thread(move || look(&mut lock(&gaze))).await
    }
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::{Sources, load};

    #[tokio::test]
    async fn this_very_process_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = load(&Sources::default()).unwrap().config;
        let endpoint = Address::connect(&address.to_string()).unwrap();
        let watch = Watch::new(endpoint, config).await;
        let waiting = TcpStream::connect(address).unwrap();
        assert_eq!(watch.glance().await.accept_queue, Some(1));
        drop(waiting);
        let snapshot = watch.snapshot().await;
        assert!(snapshot.processes[&std::process::id()].threads > 0);
        assert!(snapshot.memory > Some(0));
    }
}

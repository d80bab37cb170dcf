//! How many parallel requests does this backend sustain? The probe measures it: steps of rising
//! concurrency against the real thing, until more clients bring no more.
//!
//! `target` says what may be measured, `load` makes the load, `watch` looks at the backend's
//! processes, `tally` and `step` turn both into figures. `sweep` decides how it goes on; `knee`,
//! `binds` and `advice` draw the conclusions; `report`, `plot` and `svg` show them. All but the first
//! three are pure.

mod advice;
mod binds;
mod knee;
mod load;
mod plot;
mod report;
mod step;
mod svg;
mod sweep;
mod tally;
mod target;
mod watch;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

pub use advice::recommended;
pub use binds::{Binds, Evidence, OneMore};
pub use knee::Knee;
pub use load::{Plan, Shortage};
pub use report::{Report, json, text};
pub use step::{Step, Usage};
pub use svg::svg;
pub use sweep::End;
pub use tally::{Errors, Latency, Outcome, Tally};
pub use target::{Target, TargetError};
use watch::Watch;

use crate::{
    clock,
    config::{Address, Config},
};

/// The share of a step that passes before it is measured.
const WARM_UP: f64 = 0.25;
/// Steps are this much longer at most, when single requests take longer than a step.
const STRETCHED: f64 = 5.0;
/// Pauses between looks at memory and accept queue.
const LOOK: Duration = Duration::from_millis(100);
/// How long the last requests may take after the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// What to measure, and how far to go.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How requests are sent.
    pub plan: Plan,
    /// Whose processes to watch; the target's own address, unless something stands between.
    pub watch: Address,
    /// Clients at most, at least 1.
    pub max_clients: u32,
    /// How long each step is measured.
    pub step: Duration,
    /// How the backend is looked at: `[discovery]`.
    pub config: Arc<Config>,
}

/// Why nothing was measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The first request was not answered.
    #[error("the first request was not answered: {0}")]
    Unanswered(String),
    /// What was measured would say something of the probe, not of the backend.
    #[error(transparent)]
    Shortage(#[from] Shortage),
}

/// Measures. `progress` is told of each step that begins, and of each that has ended. When
/// `interrupted` completes, what there is by then is the result. Runs within a `LocalSet`.
///
/// # Errors
/// When the first request is not answered, or the probe has nothing left to connect with.
pub async fn run(
    settings: &Settings,
    mut progress: impl FnMut(u32, Option<&Step>),
    interrupted: impl Future<Output = ()>,
) -> Result<Report, ProbeError> {
    let (outcome, head) = load::once(&settings.plan).await?;
    match outcome {
        Outcome::Unreachable => {
            let why = load::refusal(&settings.plan).await;
            return Err(ProbeError::Unanswered(why));
        }
        Outcome::Broken => return Err(ProbeError::Unanswered("the connection broke".to_owned())),
        Outcome::Timeout => return Err(ProbeError::Unanswered("it took too long".to_owned())),
        _ => {}
    }
    let head = head.as_ref();
    let watch = Watch::new(settings.watch.clone(), settings.config.clone()).await;
    let mut sweep = Sweep {
        settings,
        watch: watch.clone(),
        load: load::Load::new(settings.plan.clone()),
        steps: Vec::new(),
    };
    let short = sweep.load.shortage();
    let measured = async {
        sweep.warm_up().await;
        let (_, memory_limit) = sweep.watch.limits().await;
        loop {
            let clients = match sweep::next(&sweep.steps, settings.max_clients, memory_limit) {
                sweep::Next::Step(clients) => clients,
                sweep::Next::Done(end) => return end,
            };
            progress(clients, None);
            let step = sweep.measure(clients).await;
            progress(clients, Some(&step));
            sweep.steps.push(step);
        }
    };
    let mut interrupted = pin!(interrupted);
    let mut end = tokio::select! {
        end = measured => end,
        shortage = short => return Err(shortage.into()),
        () = &mut interrupted => End::Interrupted,
    };
    let Sweep {
        load, mut steps, ..
    } = sweep;
    load.stop(FAREWELL).await;
    if end == End::Past {
        // On a machine that does other things too, a step may be worse than the backend is, but never better.
        for clients in sweep::doubtful(&steps) {
            let step = alone(
                settings,
                &watch,
                &steps,
                clients,
                &mut progress,
                interrupted.as_mut(),
            )
            .await?;
            let Some(step) = step else {
                end = End::Interrupted;
                break;
            };
            if let Some(known) = steps.iter_mut().find(|known| known.clients == clients)
                && step.throughput() > known.throughput()
            {
                *known = step;
            }
        }
    }
    if let Some(clients) = sweep::refine(&steps).filter(|_| end != End::Interrupted) {
        match alone(
            settings,
            &watch,
            &steps,
            clients,
            &mut progress,
            interrupted,
        )
        .await?
        {
            // Where nothing was answered there is nothing to show.
            Some(step) if step.tally.answered == 0 => {}
            Some(step) => {
                let at = steps.partition_point(|known| known.clients < clients);
                steps.insert(at, step);
            }
            None => end = End::Interrupted,
        }
    }
    let (cores, memory_limit) = watch.limits().await;
    let field = |name| {
        let value = head.and_then(|head| head.headers.get(name))?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Ok(report::conclude(report::Measured {
        target: settings.plan.target.to_string(),
        keepalive: settings.plan.keepalive,
        server: field(http::header::SERVER),
        location: field(http::header::LOCATION),
        first_status: head.map_or(0, |head| head.status.as_u16()),
        step: settings.step,
        steps,
        end,
        slots: watch.slots(),
        unbounded: watch.is_unbounded(),
        cores,
        memory_limit,
    }))
}

/// A step by itself, after the sweep, which tells how long requests take. None when it was interrupted.
async fn alone(
    settings: &Settings,
    watch: &Watch,
    known: &[Step],
    clients: u32,
    progress: &mut impl FnMut(u32, Option<&Step>),
    interrupted: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Step>, ProbeError> {
    let mut sweep = Sweep {
        settings,
        watch: watch.clone(),
        load: load::Load::new(settings.plan.clone()),
        steps: known.to_vec(),
    };
    progress(clients, None);
    let short = sweep.load.shortage();
    let step = tokio::select! {
        step = sweep.measure(clients) => Some(step),
        shortage = short => return Err(shortage.into()),
        () = interrupted => None,
    };
    if let Some(step) = &step {
        progress(clients, Some(step));
    }
    sweep.load.stop(FAREWELL).await;
    Ok(step)
}

struct Sweep<'a> {
    settings: &'a Settings,
    watch: Watch,
    load: load::Load,
    steps: Vec<Step>,
}

impl Sweep<'_> {
    /// Lets every worker import what it imports at its first request.
    async fn warm_up(&mut self) {
        self.load.grow(1);
        sleep(self.settings.step.mul_f64(WARM_UP)).await;
    }

    /// How long requests will take with so many clients, by what is known so far.
    fn expected_latency(&self, clients: u32) -> Duration {
        Duration::from_secs_f64(expected_latency(&self.steps, clients))
            .min(self.settings.step.mul_f64(STRETCHED / 2.0))
    }

    async fn measure(&mut self, clients: u32) -> Step {
        self.load.grow(clients);
        let latency = self.expected_latency(clients);
        sleep(self.settings.step.mul_f64(WARM_UP).max(latency)).await;
        self.load.take();

        let window = self.settings.step.max(latency * 2);
        let own = own_cpu();
        let before = self.watch.snapshot().await;
        let from = clock::now();
        let (mut queues, mut memory) = (Vec::new(), before.memory);
        loop {
            let left = window.saturating_sub(since(from));
            if left.is_zero() {
                break;
            }
            sleep(left.min(LOOK)).await;
            let glance = self.watch.glance().await;
            queues.extend(glance.accept_queue);
            memory = memory.max(glance.memory);
        }
        let to = clock::now();
        let (records, running) = self.load.take();
        let after = self.watch.snapshot().await;
        memory = memory.max(after.memory);
        let own_cores = (own_cpu() - own) / since(from).as_secs_f64().max(1e-9);
        Step {
            clients,
            seconds: to.saturating_duration_since(from).as_secs_f64(),
            tally: tally::tally(&records, &running, from, to),
            usage: step::usage(&before, &after),
            accept_queue: (!queues.is_empty())
                .then(|| queues.iter().copied().map(f64::from).sum::<f64>() / queues.len() as f64),
            memory,
            own_cores,
        }
    }
}

/// By the step with as many clients, or else the next one with fewer: in proportion, at most. Seconds.
fn expected_latency(steps: &[Step], clients: u32) -> f64 {
    let fewer = steps.iter().rev().filter(|step| step.clients <= clients);
    let known = fewer.chain(steps).find_map(|step| {
        let latency = step.tally.latency?;
        Some((step.clients.max(1), latency.mean))
    });
    known.map_or(0.0, |(known, mean)| {
        mean * f64::from(clients.max(known)) / f64::from(known)
    })
}

fn since(start: Instant) -> Duration {
    clock::now().saturating_duration_since(start)
}

/// CPU that this process has used, seconds.
fn own_cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::Notify,
        task::{LocalSet, spawn_local},
    };

    use super::*;
    use crate::config::{self, Sources};

    /// One after the other, 5 ms each.
    async fn serve(listener: TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            sleep(Duration::from_millis(5)).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    }

    #[test]
    fn how_long_requests_take_is_known_also_for_a_step_that_goes_back() {
        let step = |clients, mean: Option<f64>| Step {
            clients,
            tally: Tally {
                latency: mean.map(|mean| Latency {
                    mean,
                    ..Latency::default()
                }),
                ..Tally::default()
            },
            ..Step::default()
        };
        let steps = [step(2, Some(3.0)), step(4, Some(5.0)), step(6, None)];
        let expected = [1, 2, 3, 4, 8].map(|clients| expected_latency(&steps, clients));
        assert_eq!(expected, [3.0, 3.0, 4.5, 5.0, 10.0]);
        assert_eq!(expected_latency(&[], 3), 0.0);
    }

    #[tokio::test]
    async fn an_interrupt_also_ends_the_steps_after_the_sweep() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let target = Target::resolve(&url, false).unwrap();
        let settings = Settings {
            watch: target.address.clone(),
            plan: Plan {
                target,
                keepalive: false,
                timeout: Duration::from_secs(60),
            },
            max_clients: 256,
            step: Duration::from_millis(100),
            config: config::load(&Sources::default()).unwrap().config,
        };
        let interrupt = Notify::new();
        let (mut most, mut begun) = (0, 0);
        // The first step that goes back is one after the sweep.
        let progress = |clients, step: Option<&Step>| {
            if step.is_none() && clients <= most {
                begun += 1;
                interrupt.notify_one();
            }
            most = most.max(clients);
        };
        let report = LocalSet::new()
            .run_until(async {
                spawn_local(serve(listener));
                run(&settings, progress, interrupt.notified()).await
            })
            .await
            .unwrap();
        assert_eq!(json(&report)["end"], "interrupted");
        assert_eq!(begun, 1);
    }
}

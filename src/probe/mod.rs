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
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::watch::{Receiver, channel},
    time::sleep,
};

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
/// Pauses between looks at memory and accept queue.
const LOOK: Duration = Duration::from_millis(100);
/// How long the last requests may take after the end; longer when they are known to, and something is still to be
/// measured.
const FAREWELL: Duration = Duration::from_secs(5);

/// What to measure, and how far to go.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How requests are sent.
    pub plan: Plan,
    /// Whose processes to watch; the target's own address, unless something stands between.
    pub watch: Address,
    /// Endpoints among which what stands at the target divides the requests; 1 when it is the backend itself.
    pub endpoints: usize,
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
    /// No step could hold two requests.
    #[error(
        "a request takes {} or more, too long for steps of {}, which last for {} at most: measure with --step {}, or a \
         faster view",
        in_words(*.took), in_words(*.step), in_words(step::longest(*.step)),
        in_words(step::long_enough(*.step, *.took))
    )]
    Slow {
        /// So long at least.
        took: Duration,
        /// As long as a step was to be.
        step: Duration,
    },
    /// What was measured would say something of the probe, not of the backend.
    #[error(transparent)]
    Shortage(#[from] Shortage),
}

/// To a tenth of a second.
fn in_words(time: Duration) -> humantime::FormattedDuration {
    let tenths = (time.as_secs_f64() * 10.0).round() as u64;
    humantime::format_duration(if tenths < 10 {
        time
    } else {
        Duration::from_millis(100 * tenths)
    })
}

/// Measures. `progress` is told of each step that begins, and of each that has ended. When
/// `interrupted` completes, what there is by then is the result. Runs within a `LocalSet`.
///
/// # Errors
/// When the first request is not answered, or takes too long for a step, or the probe has nothing left to connect with.
pub async fn run(
    settings: &Settings,
    progress: impl FnMut(u32, Option<&Step>),
    interrupted: impl Future<Output = ()>,
) -> Result<Report, ProbeError> {
    let (tell, told) = channel(false);
    let hear = async {
        interrupted.await;
        tell.send_replace(true);
        pending::<Infallible>().await
    };
    tokio::select! {
        done = measure(settings, progress, Interrupt(told)) => done,
        never = hear => match never {},
    }
}

/// What stays so once it has happened, whoever asks.
struct Interrupt(Receiver<bool>);

impl Interrupt {
    /// Completes when it has happened, at once if it has before.
    fn heard(&self) -> impl Future<Output = ()> + use<> {
        let mut told = self.0.clone();
        async move {
            if told.wait_for(|&happened| happened).await.is_err() {
                pending::<()>().await;
            }
        }
    }
}

async fn measure(
    settings: &Settings,
    mut progress: impl FnMut(u32, Option<&Step>),
    interrupt: Interrupt,
) -> Result<Report, ProbeError> {
    let began = clock::now();
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
    let first = since(began);
    let head = head.as_ref();
    let watch = Watch::new(settings.watch.clone(), settings.config.clone()).await;
    let mut sweep = Sweep {
        settings,
        watch: watch.clone(),
        load: load::Load::new(settings.plan.clone()),
        steps: Vec::new(),
        single: first,
    };
    let short = sweep.load.shortage();
    let measured = async {
        sweep.warm_up().await?;
        let (_, memory_limit) = sweep.watch.limits().await;
        loop {
            let clients = match sweep::next(&sweep.steps, settings.max_clients, memory_limit) {
                sweep::Next::Step(clients) => clients,
                sweep::Next::Done(end) => return Ok::<End, ProbeError>(end),
            };
            progress(clients, None);
            let step = sweep.measure(clients).await;
            if step.is_thin() {
                return Ok(End::Slow);
            }
            progress(clients, Some(&step));
            sweep.steps.push(step);
        }
    };
    let mut end = tokio::select! {
        end = measured => end?,
        shortage = short => return Err(shortage.into()),
        () = interrupt.heard() => End::Interrupted,
    };
    let patience = match end {
        End::Interrupted | End::Slow => FAREWELL,
        _ => sweep.farewell(),
    };
    let Sweep {
        load,
        mut steps,
        single,
        ..
    } = sweep;
    tokio::select! {
        () = load.stop(patience) => {}
        () = interrupt.heard(), if end != End::Interrupted => end = End::Interrupted,
    }
    let mut alone = async |steps: &[Step], clients| {
        let sweep = Sweep {
            settings,
            watch: watch.clone(),
            load: load::Load::new(settings.plan.clone()),
            steps: steps.to_vec(),
            single,
        };
        alone(sweep, clients, &mut progress, &interrupt).await
    };
    if end == End::Past {
        // On a machine that does other things too, a step may be worse than the backend is, but never better.
        for clients in sweep::doubtful(&steps) {
            let Some(step) = alone(&steps, clients).await? else {
                end = End::Interrupted;
                break;
            };
            if let Some(known) = steps.iter_mut().find(|known| known.clients == clients)
                && !step.is_thin()
                && step.throughput() > known.throughput()
            {
                *known = step;
            }
        }
    }
    if let Some(clients) = sweep::refine(&steps).filter(|_| end != End::Interrupted) {
        match alone(&steps, clients).await? {
            // Where nothing was answered there is nothing to show.
            Some(step) if step.tally.answered == 0 || step.is_thin() => {}
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
        endpoints: settings.endpoints,
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
    mut sweep: Sweep<'_>,
    clients: u32,
    progress: &mut impl FnMut(u32, Option<&Step>),
    interrupt: &Interrupt,
) -> Result<Option<Step>, ProbeError> {
    progress(clients, None);
    let short = sweep.load.shortage();
    let step = tokio::select! {
        step = sweep.measure(clients) => Some(step),
        shortage = short => return Err(shortage.into()),
        () = interrupt.heard() => None,
    };
    if let Some(step) = &step {
        progress(clients, Some(step));
    }
    let patience = sweep.farewell();
    tokio::select! {
        () = sweep.load.stop(patience) => {}
        // It has been heard, or will be before the next step.
        () = async { interrupt.heard().await; sleep(FAREWELL).await } => {}
    }
    Ok(step)
}

struct Sweep<'a> {
    settings: &'a Settings,
    watch: Watch,
    load: load::Load,
    steps: Vec<Step>,
    /// How long a request took that met no other.
    single: Duration,
}

impl Sweep<'_> {
    /// Lets a worker import what it imports at its first request, and learns how long one takes after that.
    async fn warm_up(&mut self) -> Result<(), ProbeError> {
        let step = self.settings.step;
        let (least, most) = (step.mul_f64(WARM_UP), step::longest(step) / 2);
        self.load.grow(1);
        let from = clock::now();
        loop {
            let past = since(from);
            if past >= least && self.load.ended() > 0 {
                break;
            }
            if past >= most {
                let took = self.single.max(past);
                return Err(ProbeError::Slow { took, step });
            }
            let next = if past < least { least } else { most };
            sleep((next - past).min(LOOK)).await;
        }
        if let Some(last) = self.load.take().0.last() {
            self.single = last.ended.saturating_duration_since(last.started);
        }
        Ok(())
    }

    /// How long the clients' last requests may take.
    fn farewell(&self) -> Duration {
        FAREWELL.max(self.expected_latency(self.load.clients()) * 2)
    }

    /// How long requests will take with so many clients, by what is known so far.
    fn expected_latency(&self, clients: u32) -> Duration {
        Duration::from_secs_f64(expected_latency(&self.steps, self.single, clients))
            .min(step::longest(self.settings.step) / 2)
    }

    async fn measure(&mut self, clients: u32) -> Step {
        self.load.grow(clients);
        let latency = self.expected_latency(clients);
        sleep(self.settings.step.mul_f64(WARM_UP).max(latency)).await;
        self.load.take();

        let window = step::window(self.settings.step, latency);
        let longest = step::longest(self.settings.step);
        let own = own_cpu();
        let before = self.watch.snapshot().await;
        let from = clock::now();
        let (mut queues, mut memory) = (Vec::new(), before.memory);
        loop {
            let past = since(from);
            let enough = self.load.ended() >= step::enough(clients);
            if past >= longest || (past >= window && enough) {
                break;
            }
            let next = if past < window { window } else { longest };
            sleep((next - past).min(LOOK)).await;
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

/// By the step with as many clients, or else the next one with fewer, or a single request: in proportion, at most.
/// Seconds.
fn expected_latency(steps: &[Step], single: Duration, clients: u32) -> f64 {
    let fewer = steps.iter().rev().filter(|step| step.clients <= clients);
    let known = fewer.chain(steps).find_map(|step| {
        let latency = step.tally.latency?;
        Some((step.clients.max(1), latency.mean))
    });
    let (known, mean) = known.unwrap_or((1, single.as_secs_f64()));
    mean * f64::from(clients.max(known)) / f64::from(known)
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
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
        sync::{Notify, Semaphore},
        task::{LocalSet, spawn_local},
    };

    use super::*;
    use crate::config::{self, Sources};

    /// So many at once, each of which takes so long.
    async fn serve(listener: UnixListener, slots: usize, each: Duration) {
        let slots = Arc::new(Semaphore::new(slots));
        loop {
            let slot = slots.clone().acquire_owned().await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            spawn_local(async move {
                let _slot = slot;
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                sleep(each).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await;
            });
        }
    }

    /// A socket on which what is sent is there at once, also by a clock that does not wait, and what to measure it with.
    fn settings(step: Duration) -> (TempDir, UnixListener, Settings) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let url = format!("unix:{}:/", socket.display());
        let target = Target::resolve(&url, false).unwrap();
        let settings = Settings {
            watch: target.address.clone(),
            endpoints: 1,
            plan: Plan {
                target,
                keepalive: false,
                timeout: Duration::from_secs(60),
            },
            max_clients: 256,
            step,
            config: config::load(&Sources::default()).unwrap().config,
        };
        (dir, listener, settings)
    }

    /// What is found out of a server with two slots.
    async fn two(each: Duration, step: Duration) -> Result<Report, ProbeError> {
        let (_dir, listener, settings) = settings(step);
        LocalSet::new()
            .run_until(async {
                spawn_local(serve(listener, 2, each));
                run(&settings, |_, _| {}, std::future::pending()).await
            })
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn views_slower_than_a_step_have_as_many_slots_as_fast_ones() {
        let step = Duration::from_millis(200);
        for each in [20, 200, 600, 900, 1200] {
            let report = two(Duration::from_millis(each), step).await.unwrap();
            let knee = report.knee.unwrap();
            assert_eq!(
                (knee.clients, report.end),
                (2, End::Past),
                "{each} ms: {report:?}"
            );
            let most = 2000.0 / each as f64;
            assert!((knee.most / most - 1.0).abs() < 0.1, "{each} ms: {knee:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn views_too_slow_for_any_step_are_not_measured_but_told_of() {
        let step = Duration::from_millis(100);
        let refused = two(Duration::from_secs(4), step).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a request takes 4s or more, too long for steps of 100ms, which last for 3s at most: measure with --step 1s, or a faster view"
        );
        // Those that fit alone do not when they wait for one another.
        let report = two(Duration::from_millis(1400), step).await.unwrap();
        assert_eq!(report.end, End::Slow, "{report:?}");
        let knee = report.knee.unwrap();
        assert!(knee.clients <= 2 && knee.most < 1.6, "{knee:?}");
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
        let expected =
            [1, 2, 3, 4, 8].map(|clients| expected_latency(&steps, Duration::ZERO, clients));
        assert_eq!(expected, [3.0, 3.0, 4.5, 5.0, 10.0]);
        assert_eq!(expected_latency(&[], Duration::from_secs(2), 3), 6.0);
    }

    #[tokio::test]
    async fn an_interrupt_also_ends_the_steps_after_the_sweep() {
        let (_dir, listener, settings) = settings(Duration::from_millis(100));
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
                spawn_local(serve(listener, 1, Duration::from_millis(5)));
                run(&settings, progress, interrupt.notified()).await
            })
            .await
            .unwrap();
        assert_eq!(json(&report)["end"], "interrupted");
        assert_eq!(begun, 1);
    }
}

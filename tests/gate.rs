//! The asynchronous side of admission, on paused time: waiting, giving up, shrinking under load, and
//! the tower layer.

#[path = "gate/queue.rs"]
mod queue;

use std::{
    convert::Infallible,
    future::{Future, pending, poll_fn, ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use tidegate::{
    admission::{
        Acquire, AdmissionError, AdmissionLayer, Admitted, Ask, Builder, Cap, Class, ClientKey,
        Discipline, Limiter, Permit, Reason, Refusal, gate::Entered, state::State,
    },
    clock,
    control::{self, Outcome, Readings},
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const MS: Duration = Duration::from_millis(1);

fn fixed(limit: u32) -> Builder {
    AdmissionLayer::builder().fixed(limit)
}

fn limiter(builder: Builder) -> Arc<Limiter> {
    builder.build().limiter().clone()
}

fn in_flight(limiter: &Limiter) -> u32 {
    limiter.snapshot(clock::now()).in_flight()
}

fn queued(limiter: &Limiter) -> u32 {
    limiter.snapshot(clock::now()).queued()
}

async fn admitted(limiter: &Arc<Limiter>) -> Permit {
    limiter
        .acquire(Ask::default())
        .await
        .expect("there is room")
}

/// In the queue, without a task.
fn waiting(limiter: &Arc<Limiter>, ask: Ask) -> Acquire {
    let mut acquire = limiter.acquire(ask);
    assert!(poll(&mut acquire).is_pending());
    acquire
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn who_finds_room_goes_and_who_does_not_waits_for_a_place() {
    let limiter = limiter(fixed(2));
    let (first, _second) = (admitted(&limiter).await, admitted(&limiter).await);
    assert_eq!(first.waited(), None);
    let third = tokio::spawn(limiter.acquire(Ask::default()));
    sleep(30 * MS).await;
    assert_eq!((in_flight(&limiter), queued(&limiter)), (2, 1));
    first.complete(Outcome::Success);
    let third = third.await.unwrap().expect("it got the place");
    assert_eq!(third.waited(), Some(30 * MS));
    assert_eq!((in_flight(&limiter), queued(&limiter)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_the_bound() {
    let limiter = limiter(fixed(1).max_wait(200 * MS));
    let _held = admitted(&limiter).await;
    let start = clock::now();
    let refusal = limiter.acquire(Ask::default()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::QueueTimeout);
    let waited = clock::now() - start;
    assert!(waited >= 200 * MS && waited <= 202 * MS, "{waited:?}");
    assert_eq!((in_flight(&limiter), queued(&limiter)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_bound_of_zero_means_no_queue_and_one_without_end_is_fine() {
    let none = limiter(fixed(1).max_wait(Duration::ZERO));
    let _held = admitted(&none).await;
    assert!(matches!(
        poll(&mut none.acquire(Ask::default())),
        Poll::Ready(Err(_))
    ));

    let endless = limiter(fixed(1).max_wait(Duration::MAX));
    let held = admitted(&endless).await;
    let waiting = tokio::spawn(endless.acquire(Ask::default()));
    sleep(Duration::from_secs(24 * 3600)).await;
    drop(held);
    drop(waiting.await.unwrap().expect("its turn, a day later"));
}

#[tokio::test(start_paused = true)]
async fn giving_up_frees_the_place_at_every_stage() {
    let limiter = limiter(fixed(1));
    let held = admitted(&limiter).await;

    // Before it asked.
    drop(limiter.acquire(Ask::default()));
    assert_eq!((in_flight(&limiter), queued(&limiter)), (1, 0));

    // In the queue.
    let leaver = waiting(&limiter, Ask::default());
    assert_eq!(queued(&limiter), 1);
    drop(leaver);
    assert_eq!((in_flight(&limiter), queued(&limiter)), (1, 0));

    // With a grant that it has not seen: the next in line gets it.
    let leaver = waiting(&limiter, Ask::default());
    let next = tokio::spawn(limiter.acquire(Ask::default()));
    sleep(MS).await;
    drop(held);
    assert_eq!((in_flight(&limiter), queued(&limiter)), (1, 1));
    drop(leaver);
    let next = next.await.unwrap().expect("the grant is handed on");
    assert_eq!((in_flight(&limiter), queued(&limiter)), (1, 0));
    drop(next);
    assert_eq!(in_flight(&limiter), 0);
}

/// A future may be polled by one task and then by another, as by a `select!` that is moved.
#[tokio::test(start_paused = true)]
async fn whoever_waits_now_is_woken_and_not_who_did_before() {
    struct Woken(AtomicU32);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let limiter = limiter(fixed(1));
    let held = admitted(&limiter).await;
    let mut acquire = limiter.acquire(Ask::default());
    let tasks = [0; 2].map(|_| Arc::new(Woken(AtomicU32::new(0))));
    for task in &tasks {
        let waker = Waker::from(task.clone());
        let polled = Pin::new(&mut acquire).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
    }
    drop(held);
    assert_eq!(tasks.map(|task| task.0.load(Relaxed)), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_decisions_are_kept() {
    let limiter = limiter(AdmissionLayer::builder());
    for number in 0..150 {
        limiter.pin(Some(3 + number % 2), clock::now());
    }
    let decisions = limiter.lanes()[0].decisions();
    assert_eq!(decisions.len(), 100);
    assert_eq!(decisions[99].limit, 4, "the latest");
}

#[tokio::test(start_paused = true)]
async fn a_route_at_its_cap_leaves_room_to_others() {
    let limiter = limiter(fixed(2).max_wait(100 * MS));
    let ask = Ask {
        cap: Some(Cap { id: 7, max: 1 }),
        ..Ask::default()
    };
    let _first = limiter.acquire(ask).await.unwrap();
    let second = tokio::spawn(limiter.acquire(ask));
    sleep(MS).await;
    let _other = admitted(&limiter).await;
    let refusal = second.await.unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::RouteLimit);
}

/// A route of long requests that is flooded while the others have little to do.
#[tokio::test(start_paused = true)]
async fn a_flood_at_a_routes_cap_is_that_routes_alone() {
    let limiter = limiter(fixed(4));
    limiter
        .gate()
        .change(|state, _| state.set_service_time(20 * MS));
    let slow = Ask {
        cap: Some(Cap { id: 7, max: 1 }),
        ..Ask::default()
    };
    let mut fates = [Vec::new(), Vec::new()];
    let mut random = fastrand::Rng::with_seed(1);
    // 150 of the slow ones a second, 90 of the others, for ten seconds.
    for _ in 0..2400 {
        sleep(Duration::from_secs_f64(-(1.0 - random.f64()).ln() / 240.0)).await;
        let (which, ask, work) = match random.f64() * 240.0 < 150.0 {
            true => (1, slow, 200 * MS),
            false => (0, Ask::default(), 20 * MS),
        };
        let limiter = limiter.clone();
        fates[which].push(tokio::spawn(async move {
            let start = clock::now();
            match limiter.acquire(ask).await {
                Ok(permit) => {
                    sleep(work).await;
                    permit.complete(Outcome::Success);
                    Ok(())
                }
                Err(refusal) => Err((refusal, clock::now() - start)),
            }
        }));
    }
    let [others, flood] = fates;
    let mut refused = 0;
    let all = others.len();
    for fate in others {
        refused += usize::from(fate.await.unwrap().is_err());
    }
    assert!(refused * 100 <= all, "{refused} of {all}");
    let (mut served, mut at_once, mut all) = (0, 0, 0);
    for fate in flood {
        match fate.await.unwrap() {
            Ok(()) => served += 1,
            Err((refusal, waited)) => {
                assert_eq!(refusal.reason, Reason::RouteLimit);
                // One is done each fifth of a second, and two or three wait.
                assert!(refusal.drain_time >= 150 * MS, "{refusal:?}");
                all += 1;
                at_once += usize::from(waited.is_zero());
            }
        }
    }
    assert!(served >= 45, "{served}");
    assert!(at_once * 100 >= 90 * all, "{at_once} of {all}");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_routes_cap_is_not_saturation() {
    let limiter = limiter(fixed(2));
    let capped = Ask {
        cap: Some(Cap { id: 7, max: 1 }),
        ..Ask::default()
    };
    let saturated = || {
        limiter.snapshot(clock::now()).lanes[0]
            .usage
            .saturated_seconds
    };
    let _only = limiter.acquire(capped).await.expect("the cap has room");
    let _next = waiting(&limiter, capped);
    sleep(100 * MS).await;
    assert_eq!(saturated(), 0.0, "there is room");
    let _other = admitted(&limiter).await;
    sleep(100 * MS).await;
    assert!((saturated() - 0.1).abs() < 0.01, "{}", saturated());
}

#[tokio::test(start_paused = true)]
async fn a_panic_gives_the_permit_back() {
    let limiter = limiter(fixed(1));
    let permit = admitted(&limiter).await;
    let next = tokio::spawn(limiter.acquire(Ask::default()));
    sleep(MS).await;
    let task = tokio::spawn(async move {
        let _permit = permit;
        std::panic::resume_unwind(Box::new("as intended"));
    });
    assert!(task.await.unwrap_err().is_panic());
    let _next = next.await.unwrap().expect("the permit came back");
    assert_eq!((in_flight(&limiter), queued(&limiter)), (1, 0));
}

/// 60 clients that ask again as soon as they are answered; a limit cut from 20 to 2 holds as soon as
/// those in flight are done (tower-acc 0.1.1 stayed at 20 for good, as waiters took every permit that
/// came back before it could be withdrawn).
#[tokio::test(start_paused = true)]
async fn a_cut_is_in_force_within_one_service_time() {
    const SERVICE: Duration = Duration::from_millis(50);
    let limiter = limiter(fixed(20).max_wait(Duration::from_secs(60)));
    let working = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for number in 0..60 {
        let (limiter, working) = (limiter.clone(), working.clone());
        clients.spawn(async move {
            sleep(number * MS).await;
            loop {
                if let Ok(permit) = limiter.acquire(Ask::default()).await {
                    working.fetch_add(1, Relaxed);
                    sleep(SERVICE).await;
                    working.fetch_sub(1, Relaxed);
                    permit.complete(Outcome::Success);
                } else {
                    sleep(MS).await;
                }
            }
        });
    }
    sleep(500 * MS).await;
    assert_eq!(working.load(Relaxed), 20);
    assert!(queued(&limiter) > 0, "under load");

    limiter.pin(Some(2), clock::now());
    sleep(SERVICE + 2 * MS).await;
    for _ in 0..200 {
        assert!(in_flight(&limiter) <= 2 && working.load(Relaxed) <= 2);
        sleep(3 * MS).await;
    }
    assert_eq!(working.load(Relaxed), 2, "and no lower than that");

    limiter.pin(Some(20), clock::now());
    sleep(2 * MS).await;
    assert_eq!(working.load(Relaxed), 20, "growth is at once");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_cannot_be_met_is_refused() {
    let limiter = limiter(fixed(1));
    let ask = |left: Duration| Ask {
        deadline: Some(clock::now() + left),
        ..Ask::default()
    };
    let late = limiter.acquire(ask(Duration::ZERO)).await.unwrap_err();
    assert_eq!(late.reason, Reason::Deadline, "over already");

    let now = clock::now();
    let service_time = |time| {
        limiter
            .gate()
            .change(|state, _| state.set_service_time(time));
    };
    service_time(100 * MS);
    let held = limiter.acquire(ask(99 * MS)).await;
    let _held = held.expect("there is room, and a mean is no bound");
    let short = limiter.acquire(ask(99 * MS)).await.unwrap_err();
    assert_eq!(short.reason, Reason::Deadline, "shorter than the work");
    assert_eq!(clock::now(), now, "at once");

    // It may wait for as long as there is time for the work left.
    let start = clock::now();
    let waited = limiter.acquire(ask(150 * MS)).await.unwrap_err();
    assert_eq!(waited.reason, Reason::Deadline);
    let waited = clock::now() - start;
    assert!(waited >= 50 * MS && waited <= 52 * MS, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn one_slow_endpoint_of_several_does_not_make_all_of_them_slow() {
    let limiter = limiter(fixed(1));
    let now = clock::now();
    limiter.gate().change(|state, out| {
        state.add_lane(1, 1, now, out);
        state.set_service_time_of(0, 20 * MS);
        state.set_service_time_of(1, 2000 * MS);
    });
    let ask = Ask {
        deadline: Some(now + 500 * MS),
        ..Ask::default()
    };
    let enter = || limiter.gate().enter(&ask, now);
    let _held = [enter(), enter()];
    let next = enter();
    assert!(matches!(next, Entered::Queued(..)), "{next:?}");
}

/// One that is down, or on its way out with somebody's tunnel, has room for nobody.
#[tokio::test(start_paused = true)]
async fn the_limit_and_saturation_are_those_of_endpoints_in_use() {
    let limiter = limiter(fixed(2));
    let now = clock::now();
    let gate = limiter.gate();
    let six = control::Settings {
        algorithm: control::Algorithm::Fixed,
        initial: 6,
        ..control::Settings::default()
    };
    limiter.add_lane(1, "other".to_owned(), six, Readings::default(), now);
    let tunnel = admitted(&limiter).await;
    let other = admitted(&limiter).await;
    assert_ne!(tunnel.lane().id(), other.lane().id());
    assert_eq!(limiter.snapshot(now).limit(), 8);

    let gone = tunnel.lane().id();
    for retire in [false, true] {
        gate.change(|state, out| match retire {
            false => state.set_healthy(gone, false, now, out),
            true => state.retire_lane(gone, now, out),
        });
        let before = limiter.snapshot(clock::now());
        let limit = before.limit();
        assert_eq!(limit, if gone == 0 { 6 } else { 2 });
        assert!(!before.is_full());
        let mut held = Vec::new();
        while !limiter.snapshot(clock::now()).is_full() {
            held.push(admitted(&limiter).await);
        }
        sleep(1000 * MS).await;
        let after = limiter.snapshot(clock::now());
        let limits = after.usage.limit_seconds - before.usage.limit_seconds;
        assert!((limits - f64::from(limit)).abs() < 0.01, "{limits}");
        let saturated = after.usage.saturated_seconds - before.usage.saturated_seconds;
        assert!((saturated - 1.0).abs() < 0.01, "{saturated}");
    }
    drop((tunnel, other));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_no_answer_has_met_is_tried_again_by_one() {
    let limiter = limiter(AdmissionLayer::builder());
    let ask = || Ask {
        deadline: Some(clock::now() + 1000 * MS),
        ..Ask::default()
    };
    let answered = async |permit: Permit, took| {
        sleep(took).await;
        permit.complete(Outcome::Success);
        limiter.tick(clock::now());
    };
    answered(admitted(&limiter).await, 1500 * MS).await;
    let _stream = admitted(&limiter).await;
    let _one = limiter.acquire(ask()).await.expect("it may take less now");
    let refused = limiter.acquire(ask()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Deadline, "one is enough to tell");

    sleep(1000 * MS).await;
    let another = limiter.acquire(ask()).await.expect("now and then");
    let refused = limiter.acquire(ask()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Deadline, "it is not answered yet");
    answered(another, 20 * MS).await;
    let again = limiter.acquire(ask()).await;
    assert!(again.is_ok(), "it takes less: {again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_refuses_nobody_and_says_whom_it_would_have() {
    let limiter = limiter(fixed(2).capacity(3).dry_run(true));
    let mut permits = Vec::new();
    for _ in 0..10 {
        permits.push(admitted(&limiter).await);
    }
    assert_eq!((in_flight(&limiter), queued(&limiter)), (10, 0));
    let would: Vec<_> = permits.iter().map(Permit::would_refuse).collect();
    // Two at once, three in the queue that would be, the rest too many.
    assert_eq!(would[..5], [None; 5]);
    assert_eq!(would[5..], [Some(Reason::QueueFull); 5]);
    let late = Ask {
        deadline: Some(clock::now()),
        ..Ask::default()
    };
    let late = limiter.acquire(late).await.expect("refuses nobody");
    assert_eq!(late.would_refuse(), Some(Reason::Deadline));
    drop((permits, late));
    assert_eq!(in_flight(&limiter), 0);
}

/// Twice what the limit can do, at a backend that can do all of it.
#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_whom_the_limit_could_not_serve_in_time() {
    let limiter = limiter(fixed(2).dry_run(true));
    let known = |state: &mut State, _: &mut _| state.set_service_time(100 * MS);
    let mut tasks = JoinSet::new();
    for _ in 0..400 {
        // The law has measured nothing yet, and its ticks would say so.
        limiter.gate().change(known);
        let permit = limiter
            .acquire(Ask::default())
            .await
            .expect("refuses nobody");
        tasks.spawn(async move {
            let would = permit.would_refuse();
            sleep(100 * MS).await;
            drop(permit);
            would
        });
        sleep(25 * MS).await;
    }
    let would = tasks.join_all().await;
    let late = would
        .iter()
        .filter(|it| **it == Some(Reason::QueueTimeout))
        .count();
    let other = would.iter().flatten().count() - late;
    // Half of them, but for those that would still be in the queue.
    assert!((170..=200).contains(&late), "{late}");
    assert_eq!(other, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_knows_the_share_of_a_client() {
    let limiter = limiter(fixed(1).capacity(4).dry_run(true));
    let known = |state: &mut State, _: &mut _| state.set_service_time(100 * MS);
    limiter.gate().change(known);
    let mut permits = Vec::new();
    for client in [1, 1, 1, 1, 2] {
        let ask = Ask {
            client: Some(ClientKey(client)),
            ..Ask::default()
        };
        permits.push(limiter.acquire(ask).await.expect("refuses nobody"));
    }
    let would: Vec<_> = permits.iter().map(Permit::would_refuse).collect();
    // One goes, two wait in half of the places, and one comes too late.
    assert_eq!(would, [None, None, None, Some(Reason::QueueFull), None]);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_knows_the_caps_of_routes() {
    let limiter = limiter(fixed(10).dry_run(true));
    let ask = Ask {
        cap: Some(Cap { id: 7, max: 1 }),
        ..Ask::default()
    };
    let ask = || async { limiter.acquire(ask).await.expect("refuses nobody") };
    // Short ones have their turn in time.
    for _ in 0..20 {
        let pair = (ask().await, ask().await);
        sleep(10 * MS).await;
        assert_eq!((pair.0.would_refuse(), pair.1.would_refuse()), (None, None));
        drop(pair);
        sleep(10 * MS).await;
    }
    // One that stays for long leaves no place to others, and other routes alone.
    let _long = ask().await;
    sleep(20_000 * MS).await;
    assert_eq!(ask().await.would_refuse(), Some(Reason::RouteLimit));
    assert_eq!(admitted(&limiter).await.would_refuse(), None);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_goes_serves_whom_it_was_granted_to() {
    let limiter = limiter(fixed(1));
    let held = admitted(&limiter).await;
    let mut granted = waiting(&limiter, Ask::default());
    drop(held);
    limiter.retire_lane(0, clock::now());
    let Poll::Ready(Ok(permit)) = poll(&mut granted) else {
        panic!("it was let in before the endpoint went");
    };
    assert_eq!(in_flight(&limiter), 1);
    drop(permit);
    assert_eq!(limiter.snapshot(clock::now()).lanes.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_more_important_go_first_and_the_least_important_make_place() {
    let limiter = limiter(fixed(1).capacity(2));
    let held = admitted(&limiter).await;
    let ask = |class| Ask {
        class,
        ..Ask::default()
    };
    let mut low = waiting(&limiter, ask(Class::Low));
    let mut normal = waiting(&limiter, ask(Class::Normal));
    let mut high = waiting(&limiter, ask(Class::High));
    let evicted = poll(&mut low);
    assert!(
        matches!(&evicted, Poll::Ready(Err(refusal)) if refusal.reason == Reason::QueueFull),
        "{evicted:?}"
    );
    drop(held);
    assert!(poll(&mut normal).is_pending());
    let Poll::Ready(Ok(permit)) = poll(&mut high) else {
        panic!("the most important goes first");
    };
    drop(permit);
    assert!(poll(&mut normal).is_ready());
}

#[tokio::test(start_paused = true)]
async fn no_client_owns_more_than_its_share_of_the_queue() {
    let limiter = limiter(fixed(1).capacity(8));
    let _held = admitted(&limiter).await;
    let ask = |client| Ask {
        client: Some(ClientKey(client)),
        ..Ask::default()
    };
    let mut flood: Vec<_> = (0..8).map(|_| limiter.acquire(ask(1))).collect();
    let refused = flood.iter_mut().filter_map(|acquire| match poll(acquire) {
        Poll::Ready(Err(refusal)) => Some(refusal.reason),
        _ => None,
    });
    assert_eq!(refused.collect::<Vec<_>>(), [Reason::QueueFull; 4]);
    // The other half is for others, and for those whom nothing tells apart.
    let mut others = [
        waiting(&limiter, ask(2)),
        waiting(&limiter, ask(3)),
        waiting(&limiter, Ask::default()),
        waiting(&limiter, Ask::default()),
    ];
    assert_eq!(queued(&limiter), 8);
    assert!(others.iter_mut().all(|acquire| poll(acquire).is_pending()));
    // Who leaves makes room for its own next.
    drop(flood.remove(0));
    assert!(poll(&mut limiter.acquire(ask(1))).is_pending());
}

// The queue under load.

/// What became of one request: how long it was at the gate, and whether it passed.
type Fate = (Duration, Result<(), Refusal>);

/// Sends requests at random times, `rate` a second, to a backend of `slots` that need about 20 ms for
/// each.
async fn open_loop(limiter: &Arc<Limiter>, slots: usize, rate: f64, time: Duration) -> Vec<Fate> {
    let mut random = fastrand::Rng::with_seed(7);
    let backend = Arc::new(Semaphore::new(slots));
    let mut requests = JoinSet::new();
    let end = clock::now() + time;
    let mut next = clock::now();
    while next < end {
        next += Duration::from_secs_f64(-random.f64().max(1e-9).ln() / rate);
        tokio::time::sleep_until(next.into()).await;
        let work = random.u32(15..=25) * MS;
        requests.spawn(one(limiter.clone(), backend.clone(), work));
    }
    requests.join_all().await
}

async fn one(limiter: Arc<Limiter>, backend: Arc<Semaphore>, work: Duration) -> Fate {
    let start = clock::now();
    let permit = match limiter.acquire(Ask::default()).await {
        Ok(permit) => permit,
        Err(refusal) => return (clock::now() - start, Err(refusal)),
    };
    let waited = clock::now() - start;
    let _slot = backend.acquire().await;
    sleep(work).await;
    permit.complete(Outcome::Success);
    (waited, Ok(()))
}

fn percentile(times: impl Iterator<Item = Duration>, percent: usize) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

#[tokio::test(start_paused = true)]
async fn under_a_standing_queue_waits_are_short_and_refusals_quick() {
    let limiter = limiter(fixed(2).max_wait(500 * MS));
    open_loop(&limiter, 2, 80.0, Duration::from_secs(5)).await; // It learns the service time.
    let fates = open_loop(&limiter, 2, 200.0, Duration::from_secs(60)).await;

    let passed = fates.iter().filter(|(_, result)| result.is_ok()).count();
    let waits = || fates.iter().filter(|f| f.1.is_ok()).map(|f| f.0);
    let refusals = || fates.iter().filter(|f| f.1.is_err()).map(|f| f.0);
    let figures = format!(
        "{passed} of {} passed, waits {:?} (p50) {:?} (p99), refusals after {:?} (p50) {:?} (p90)",
        fates.len(),
        percentile(waits(), 50),
        percentile(waits(), 99),
        percentile(refusals(), 50),
        percentile(refusals(), 90),
    );
    assert!(
        passed >= 60 * 95,
        "95 of the 98 a second it could do: {figures}"
    );
    // One who works and two who wait are 30 ms.
    assert!(percentile(waits(), 50) <= 35 * MS, "{figures}");
    assert!(percentile(waits(), 99) <= 75 * MS, "{figures}");
    assert!(percentile(refusals(), 50) <= MS, "on arrival: {figures}");
    // Whoever is overtaken all the same is neither kept for nothing nor answered late.
    assert!(percentile(refusals(), 99) <= 150 * MS, "{figures}");
    assert!(waits().max() <= Some(250 * MS), "{:?}", waits().max());
}

/// Who waits inside the backend is at hand for a worker, and the queue in front need not be as long.
#[tokio::test(start_paused = true)]
async fn what_waits_inside_the_backend_need_not_wait_in_front() {
    let run = async |slots: Option<u32>| {
        let limiter = limiter(fixed(3).max_wait(500 * MS));
        limiter.lanes()[0].set_readings(Readings {
            slots,
            ..Readings::default()
        });
        open_loop(&limiter, 2, 60.0, Duration::from_secs(5)).await; // It learns the service time.
        let fates = open_loop(&limiter, 2, 160.0, Duration::from_secs(60)).await;
        let waits = || fates.iter().filter(|f| f.1.is_ok()).map(|f| f.0);
        let (p50, p99) = (percentile(waits(), 50), percentile(waits(), 99));
        (waits().count(), p50, p99)
    };
    let (unknown, known) = (run(None).await, run(Some(2)).await);
    let figures = format!("(passed, p50, p99): {unknown:?}, with known slots {known:?}");
    assert!(known.0 >= 60 * 95, "of 100 a second: {figures}");
    assert!(known.1 <= unknown.1 && known.2 < unknown.2, "{figures}");
}

/// One who has been overtaken waits on while those who come leave something.
#[tokio::test(start_paused = true)]
async fn a_burst_over_a_calm_load_is_worked_off() {
    let limiter = limiter(fixed(2).capacity(100).max_wait(800 * MS));
    open_loop(&limiter, 2, 40.0, Duration::from_secs(5)).await; // It learns the service time.
    let backend = Arc::new(Semaphore::new(2));
    for _ in 0..10 {
        let calm = open_loop(&limiter, 2, 30.0, Duration::from_secs(2));
        let (refused, _) = tokio::join!(burst(&limiter, &backend, 30, 20 * MS), calm);
        assert_eq!(refused, 0);
    }
}

/// Threads that began together end together: between two such waves nobody is done, which is no slow pace
/// and no pause.
#[tokio::test(start_paused = true)]
async fn waves_of_completions_are_a_steady_pace() {
    let limiter = limiter(fixed(16).max_wait(500 * MS));
    let wave = |rate, seconds| {
        let limiter = limiter.clone();
        async move {
            let mut requests = JoinSet::new();
            let backend = Arc::new(Semaphore::new(16));
            let mut random = fastrand::Rng::with_seed(3);
            let end = clock::now() + Duration::from_secs(seconds);
            while clock::now() < end {
                sleep(Duration::from_secs_f64(-random.f64().max(1e-9).ln() / rate)).await;
                requests.spawn(one(limiter.clone(), backend.clone(), 100 * MS));
            }
            requests.join_all().await
        }
    };
    wave(50.0, 5).await; // It learns the service time.
    let fates = wave(320.0, 30).await;
    let passed = fates.iter().filter(|(_, result)| result.is_ok()).count();
    let waits = || fates.iter().filter(|f| f.1.is_ok()).map(|f| f.0);
    let refusals = || fates.iter().filter(|f| f.1.is_err()).map(|f| f.0);
    let figures = format!(
        "{passed} of {} passed, waits {:?} (p50) {:?} (p99), refusals after {:?} (p50) {:?} (p75)",
        fates.len(),
        percentile(waits(), 50),
        percentile(waits(), 99),
        percentile(refusals(), 50),
        percentile(refusals(), 75),
    );
    assert!(passed >= 150 * 30, "of 160 a second: {figures}");
    assert!(percentile(refusals(), 75) <= MS, "on arrival: {figures}");
    assert!(percentile(waits(), 99) <= 250 * MS, "{figures}");
}

#[tokio::test(start_paused = true)]
async fn below_the_capacity_nobody_is_refused() {
    let limiter = limiter(fixed(2).max_wait(500 * MS));
    let fates = open_loop(&limiter, 2, 65.0, Duration::from_secs(60)).await;
    let refused = fates.iter().filter(|(_, result)| result.is_err()).count();
    assert_eq!(refused, 0, "of {}", fates.len());
}

async fn burst(
    limiter: &Arc<Limiter>,
    backend: &Arc<Semaphore>,
    size: usize,
    work: Duration,
) -> usize {
    let mut requests = JoinSet::new();
    for _ in 0..size {
        requests.spawn(one(limiter.clone(), backend.clone(), work));
    }
    let fates = requests.join_all().await;
    fates.iter().filter(|(_, result)| result.is_err()).count()
}

#[tokio::test(start_paused = true)]
async fn a_burst_that_drains_refuses_nobody() {
    for discipline in [Discipline::AdaptiveLifo, Discipline::Fifo] {
        let limiter = limiter(fixed(2).capacity(100).discipline(discipline));
        let backend = Arc::new(Semaphore::new(2));
        for _ in 0..20 {
            // 2 go, 38 wait: the last for 19 x 20 ms.
            assert_eq!(
                burst(&limiter, &backend, 40, 20 * MS).await,
                0,
                "{discipline:?}"
            );
            sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_not_judged_by_the_pace_before_a_rest() {
    let limiter = limiter(fixed(2).capacity(100).max_wait(Duration::from_secs(60)));
    // The backend hung: ten seconds for each request.
    let backend = Arc::new(Semaphore::new(2));
    assert_eq!(burst(&limiter, &backend, 12, 10_000 * MS).await, 0);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(burst(&limiter, &backend, 40, 20 * MS).await, 0);
}

// The tower layer.

fn echo() -> impl Service<u32, Response = u32, Error = Infallible, Future: Send> + Clone {
    service_fn(|n: u32| async move {
        sleep(20 * MS).await;
        Ok(n)
    })
}

fn full() -> Builder {
    fixed(1).max_wait(Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn the_layer_holds_the_permit_until_the_answer() {
    let layer = full().build();
    let limiter = layer.limiter().clone();
    let service = ServiceBuilder::new().layer(layer).service(echo());
    let first = tokio::spawn(service.clone().oneshot(1));
    sleep(MS).await;
    assert_eq!(in_flight(&limiter), 1);
    let refused = service.clone().oneshot(2).await.unwrap_err();
    assert!(matches!(refused, AdmissionError::Refused(_)), "{refused}");
    assert_eq!(first.await.unwrap().unwrap(), 1);
    assert_eq!(in_flight(&limiter), 0);
    assert_eq!(service.oneshot(3).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_nobody_waits_for_gives_the_permit_back() {
    let layer = full().build();
    let limiter = layer.limiter().clone();
    let service = layer.layer(service_fn(|()| pending::<Result<(), Infallible>>()));
    assert!(timeout(10 * MS, service.oneshot(())).await.is_err());
    assert_eq!(in_flight(&limiter), 0);
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_layer_share_one_limit() {
    let layer = fixed(3).max_wait(Duration::ZERO).build();
    let services = [layer.clone().layer(echo()), layer.layer(echo())];
    let mut calls = JoinSet::new();
    for n in 0..8 {
        calls.spawn(services[n % 2].clone().oneshot(n as u32));
    }
    let passed = calls.join_all().await.iter().filter(|r| r.is_ok()).count();
    assert_eq!(passed, 3);
}

#[tokio::test(start_paused = true)]
async fn readiness_reserves_nothing() {
    let layer = full().build();
    let limiter = layer.limiter().clone();
    let mut services: Vec<_> = (0..10).map(|_| layer.layer(echo())).collect();
    for service in &mut services {
        poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    }
    assert_eq!((in_flight(&limiter), queued(&limiter)), (0, 0));
    // Nor does a call that is not polled.
    let _call = services[0].call(1);
    assert_eq!(in_flight(&limiter), 0);
    assert_eq!(services[1].call(2).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_keeps_the_permit_to_its_end() {
    let layer = full().build().hold_body();
    let limiter = layer.limiter().clone();
    let service = layer.layer(service_fn(|()| {
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(
            "tide",
        ))))
    }));
    let response = service.clone().oneshot(()).await.unwrap();
    assert_eq!(in_flight(&limiter), 1);
    let mut body = response.into_body();
    body.frame().await.expect("a frame").unwrap();
    assert_eq!(in_flight(&limiter), 0, "that was the last frame");
    drop(body);

    let response = service.clone().oneshot(()).await.unwrap();
    assert_eq!(in_flight(&limiter), 1);
    drop(response);
    assert_eq!(in_flight(&limiter), 0, "nobody reads the rest");
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_keeps_no_permit() {
    let layer = full().build().hold_body();
    let limiter = layer.limiter().clone();
    let service = layer.layer(service_fn(|()| {
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        ready(Ok::<_, Infallible>(response))
    }));
    let _response = service.oneshot(()).await.unwrap();
    assert_eq!(in_flight(&limiter), 0);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_is_a_sign_of_overload() {
    let limit_after = async |answer: Result<(), &'static str>| {
        let layer = AdmissionLayer::builder().build();
        let limiter = layer.limiter().clone();
        let service = layer.layer(service_fn(move |()| async move {
            sleep(10 * MS).await;
            answer
        }));
        for _ in 0..1000 {
            let calls: JoinSet<_> = (0..4).map(|_| service.clone().oneshot(())).collect();
            calls.join_all().await;
            limiter.tick(clock::now());
        }
        limiter.snapshot(clock::now()).limit()
    };
    let (good, bad) = (limit_after(Ok(())).await, limit_after(Err("full")).await);
    assert!(bad < good, "{bad} after errors, {good} after answers");
}

#[tokio::test(start_paused = true)]
async fn a_permit_can_be_handed_over() {
    let layer = full().build().hand_over();
    let limiter = layer.limiter().clone();
    let service = layer.layer(service_fn(|admitted: Admitted<u32>| async move {
        Ok::<_, Infallible>((admitted.request, admitted.permit))
    }));
    let (request, permit) = service.clone().oneshot(5).await.unwrap();
    assert_eq!((request, in_flight(&limiter)), (5, 1));
    assert!(service.clone().oneshot(6).await.is_err());
    sleep(10 * MS).await;
    assert_eq!(permit.complete(Outcome::Success), 10 * MS);
    assert!(service.oneshot(7).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_layer_asks_what_the_request_says() {
    let layer = fixed(1).build().ask(|late: &bool| Ask {
        deadline: late.then(clock::now),
        ..Ask::default()
    });
    let service = layer.layer(service_fn(|_: bool| ready(Ok::<_, Infallible>(()))));
    assert!(service.clone().oneshot(false).await.is_ok());
    let Err(AdmissionError::Refused(refusal)) = service.oneshot(true).await else {
        panic!("it is too late");
    };
    assert_eq!(refusal.reason, Reason::Deadline);
}

//! What the service manager is told: `sd_notify(3)`. Without one (`NOTIFY_SOCKET` is not set)
//! nothing is sent.

use sd_notify::NotifyState;
use tokio::{runtime::Handle, time};

/// Clients are let in.
pub fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The configuration is being read again; [`reloaded`] follows.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        send(&[NotifyState::Reloading, now]);
    }
}

/// The reload is over. A wrong configuration is no failure of the service: the one before serves on.
pub fn reloaded(ok: bool) {
    let status = if ok {
        "serving"
    } else {
        "serving; the changed configuration is wrong, and the one before stays in force"
    };
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The way out has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Says twice in each period of the manager's watchdog that the process is alive, as long as every
/// thread is. Returns if there is no watchdog.
pub async fn watchdog(threads: Vec<Handle>) {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = time::interval(period / 2);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        pulse(&threads).await;
        send(&[NotifyState::Watchdog]);
    }
}

/// Done when every thread has run something new: one that hangs keeps it waiting. A thread that has
/// ended does not.
async fn pulse(threads: &[Handle]) {
    for thread in threads {
        let _ = thread.spawn(std::future::ready(())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread, time::Duration};

    #[tokio::test]
    async fn a_thread_that_hangs_has_no_pulse() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let threads = vec![Handle::current(), runtime.handle().clone()];
        let (go_on, hang) = mpsc::channel::<()>();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                let _ = hang.recv();
                let _ = ended.await;
            });
        });
        let early = time::timeout(Duration::from_millis(50), pulse(&threads)).await;
        assert!(early.is_err(), "it hangs, and yet there is a pulse");

        go_on.send(()).expect("it waits for this");
        pulse(&threads).await;

        end.send(()).expect("it waits for this");
        thread.join().expect("it ends");
        pulse(&threads).await;
    }
}

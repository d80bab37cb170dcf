//! What the service manager is told: `sd_notify(3)`. Without one (`NOTIFY_SOCKET` is not set)
//! nothing is sent.

use sd_notify::NotifyState;
use tokio::{runtime::Handle, time};

use super::pulse::pulse;

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

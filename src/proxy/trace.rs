//! What goes into the trace of `trace.file`, of each request that came to the gate.

use std::time::{Duration, Instant};

use super::{context::Context, live::Shared};
use crate::{
    admission::Permit,
    clock,
    control::Outcome,
    observe::{
        Reason,
        trace::{Entry, Fate},
    },
};

/// A request that has a permit; nothing where no trace is recorded. The permit tells for as long as it
/// is alive, so it is asked before the end.
pub fn begun(shared: &Shared, context: &Context, permit: &Permit) -> Option<Entry> {
    shared.trace.get()?;
    let lane = permit.lane();
    let entry = Entry {
        waited: micros(context.queue_time()),
        in_flight: permit.in_flight(),
        limit: lane.with_controller(|law| law.limit()),
        slots: lane.readings().slots.unwrap_or(0),
        lane: lane.id(),
        ..at_gate(shared, context)?
    };
    Some(entry)
}

/// The backend is done with it.
pub fn served(
    shared: &Shared,
    context: &Context,
    begun: Option<Entry>,
    outcome: Outcome,
    took: Duration,
) {
    if let Some(entry) = begun {
        let took = micros(took);
        let fate = Fate::Served(outcome);
        note(
            shared,
            context,
            Entry {
                took,
                fate,
                ..entry
            },
        );
    }
}

/// The gate has refused it.
pub fn refused(shared: &Shared, context: &Context, reason: Reason) {
    unserved(shared, context, Fate::Refused(reason));
}

/// Its client has left the queue.
pub fn left(shared: &Shared, context: &Context) {
    unserved(shared, context, Fate::Left);
}

fn unserved(shared: &Shared, context: &Context, fate: Fate) {
    if shared.trace.get().is_none() {
        return;
    }
    let now = clock::now();
    if let Some(entry) = at_gate(shared, context) {
        let entry = Entry {
            waited: micros(context.at_gate(now).unwrap_or_default()),
            limit: shared.limiter.snapshot(now).limit(),
            fate,
            ..entry
        };
        note(shared, context, entry);
    }
}

fn at_gate(shared: &Shared, context: &Context) -> Option<Entry> {
    let asked: Instant = context.asked()?;
    let patience = context.ask().deadline.map_or(0, |deadline| {
        micros(deadline.saturating_duration_since(asked)).max(1)
    });
    Some(Entry {
        arrived: shared.trace.get()?.micros(asked),
        waited: 0,
        took: 0,
        in_flight: 0,
        limit: 0,
        slots: 0,
        lane: 0,
        patience,
        route: 0,
        class: context.class(),
        fate: Fate::Left,
    })
}

fn note(shared: &Shared, context: &Context, entry: Entry) {
    if let Some(trace) = shared.trace.get() {
        trace.note(&context.route().name, entry);
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

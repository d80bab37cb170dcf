//! The open connections of a data-plane thread: how many there are, and who has to go when there are too
//! many.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    time::Instant,
};

use tokio::sync::Notify;

use super::state::{Activity, State};
use crate::{
    backend::Timers,
    sync::{Mutex, lock},
};

/// The open connections of one data-plane thread.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    /// To tell them that something has changed, a drain for example.
    places: Mutex<Places>,
    closed: Notify,
    timers: Arc<Timers>,
}

#[derive(Debug, Default)]
struct Places {
    all: Vec<Option<Place>>,
    free: Vec<usize>,
}

/// An open connection.
#[derive(Debug)]
struct Place {
    waker: Waker,
    state: Arc<State>,
}

impl Connections {
    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Makes every connection look at the phase again.
    pub fn wake_all(&self) {
        let places = lock(&self.places);
        let wakers: Vec<Waker> = places.iter().map(|p| p.waker.clone()).collect();
        drop(places);
        for waker in wakers {
            waker.wake();
        }
    }

    /// Ready when one has closed since.
    pub async fn one_closed(&self) {
        self.closed.notified().await;
    }

    /// Since when the connection has been idle that has been so for the longest; if none is, the one
    /// that has taken the longest for a head.
    pub fn oldest(&self) -> Option<(bool, Instant)> {
        let places = lock(&self.places);
        places.iter().filter_map(Place::rank).min()
    }

    /// Closes the one that [`Connections::oldest`] speaks of.
    pub fn close_oldest(&self) {
        let places = lock(&self.places);
        let oldest = places
            .iter()
            .filter_map(|place| Some((place.rank()?, place)))
            .min_by_key(|&(rank, _)| rank);
        let waker = oldest.map(|(_, place)| {
            place.state.evict();
            place.waker.clone()
        });
        drop(places);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells this one when something has changed, until what it gets is dropped.
    pub fn register(self: &Arc<Self>, waker: Waker, state: Arc<State>) -> Registered {
        let place = Place { waker, state };
        let mut places = lock(&self.places);
        let at = places.free.pop().unwrap_or_else(|| {
            places.all.push(None);
            places.all.len() - 1
        });
        places.all[at] = Some(place);
        Registered {
            connections: self.clone(),
            at,
        }
    }

    /// The timers of what its requests wait for.
    pub fn timers(&self) -> &Arc<Timers> {
        &self.timers
    }

    /// Counts one more, from before its task has run.
    pub fn count(self: &Arc<Self>) -> Counted {
        self.open.fetch_add(1, Relaxed);
        Counted(self.clone())
    }
}

/// A connection that counts as open.
#[derive(Debug)]
pub struct Counted(Arc<Connections>);

impl Counted {
    /// Among which.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.closed.notify_one();
    }
}

/// A connection that is told.
#[derive(Debug)]
pub struct Registered {
    connections: Arc<Connections>,
    at: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut places = lock(&self.connections.places);
        let place = places.all[self.at].take();
        places.free.push(self.at);
        drop(places);
        drop(place);
    }
}

impl Places {
    fn iter(&self) -> impl Iterator<Item = &Place> {
        self.all.iter().flatten()
    }
}

impl Place {
    /// Who goes first, if it may go at all.
    fn rank(&self) -> Option<(bool, Instant)> {
        let (activity, since) = self.state.activity();
        let may_go = matches!(activity, Activity::Idle | Activity::Head);
        (may_go && !self.state.is_evicted()).then_some((activity == Activity::Head, since))
    }
}

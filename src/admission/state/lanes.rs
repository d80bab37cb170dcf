//! The lanes of the gate: one for each endpoint, with its limit, what is in flight, and its integrals.

use std::{cmp::Ordering, time::Duration};

use super::{
    LaneId,
    snapshot::{LaneSnapshot, LaneUsage, sum},
};

#[derive(Debug)]
struct Lane {
    id: LaneId,
    limit: u32,
    in_flight: u32,
    /// Requests that the endpoint works on at once, where that is known.
    slots: Option<u32>,
    /// The endpoint's unloaded time for a request; zero = unknown.
    service_time: Duration,
    /// The shortest time that it took for a request recently; zero = unknown.
    least_time: Duration,
    /// Not preferred while its endpoint does not answer.
    healthy: bool,
    /// No new permits; the lane goes when the last is back.
    retired: bool,
    usage: LaneUsage,
    /// What `usage` was when a lane came or went last.
    since: LaneUsage,
}

impl Lane {
    fn has_room(&self) -> bool {
        !self.retired && self.in_flight < self.limit
    }

    /// Whether requests are sent there: to an unhealthy lane only if there is no healthy one
    /// (`some_healthy`).
    fn is_used(&self, some_healthy: bool) -> bool {
        !self.retired && (self.healthy || !some_healthy)
    }

    /// How many wait inside the endpoint for a worker, if that is known.
    fn waiting_inside(&self) -> Option<usize> {
        Some(self.in_flight.saturating_sub(self.slots?) as usize)
    }

    /// Compares how full they are, without a division.
    fn by_load(&self, other: &Self) -> Ordering {
        let times = |a: u32, b: u32| u64::from(a) * u64::from(b.max(1));
        times(self.in_flight, other.limit).cmp(&times(other.in_flight, self.limit))
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// The usage of all lanes together when one last came or went.
    before: LaneUsage,
}

impl Lanes {
    /// Opens a lane with this limit, or opens it again if it is on its way out.
    pub(super) fn add(&mut self, id: LaneId, limit: u32) {
        if let Some(lane) = self.find(id) {
            (lane.limit, lane.healthy, lane.retired) = (limit, true, false);
            return;
        }
        self.settle();
        self.lanes.push(Lane {
            id,
            limit,
            in_flight: 0,
            slots: None,
            service_time: Duration::ZERO,
            least_time: Duration::ZERO,
            healthy: true,
            retired: false,
            usage: LaneUsage::default(),
            since: LaneUsage::default(),
        });
    }

    /// Lets nobody onto it any more; it goes when it is empty.
    pub(super) fn retire(&mut self, id: LaneId) {
        self.settle();
        if let Some(lane) = self.find(id) {
            lane.retired = true;
        }
        self.sweep();
    }

    pub(super) fn set_limit(&mut self, id: LaneId, limit: u32) {
        if let Some(lane) = self.find(id) {
            lane.limit = limit;
        }
    }

    pub(super) fn set_slots(&mut self, id: LaneId, slots: Option<u32>) {
        if let Some(lane) = self.find(id) {
            lane.slots = slots;
        }
    }

    pub(super) fn set_service_time(&mut self, id: LaneId, service_time: Duration) {
        if let Some(lane) = self.find(id) {
            lane.service_time = service_time;
        }
    }

    pub(super) fn set_least_time(&mut self, id: LaneId, least: Duration) {
        if let Some(lane) = self.find(id) {
            lane.least_time = least;
        }
    }

    /// The least that any endpoint took for a request of late; zero while it is not known of all.
    pub(super) fn least_time(&self) -> Duration {
        let times = self.open().map(|lane| lane.least_time);
        times.min().unwrap_or_default()
    }

    /// The mean service time over the endpoints for which it is known, each weighted by the requests that it
    /// gets done: its limit over its own service time. None while it is known for none.
    pub(super) fn service_time(&self) -> Option<Duration> {
        let known = |lane: &&Lane| !lane.retired && !lane.service_time.is_zero();
        let mut known = self.lanes.iter().filter(known);
        let first = known.next()?;
        let own = |lane: &Lane| (f64::from(lane.limit), lane.service_time.as_secs_f64());
        let (mut limits, time) = own(first);
        let mut done = limits / time;
        let mut alone = true;
        for (limit, time) in known.map(own) {
            (limits, done, alone) = (limits + limit, done + limit / time, false);
        }
        match alone {
            true => Some(first.service_time),
            false => Duration::try_from_secs_f64(limits / done).ok(),
        }
    }

    pub(super) fn set_healthy(&mut self, id: LaneId, healthy: bool) {
        self.settle();
        if let Some(lane) = self.find(id) {
            lane.healthy = healthy;
        }
    }

    /// The place of the least loaded lane that has room; healthy ones first.
    pub(super) fn roomiest(&self) -> Option<usize> {
        self.best(Lane::has_room)
    }

    /// The same, room or not.
    pub(super) fn least_loaded(&self) -> Option<usize> {
        self.best(|lane| !lane.retired)
    }

    /// Those that are not on their way out.
    fn open(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(|lane| !lane.retired)
    }

    /// Whether some lane is healthy and there is a choice. Of a single lane it does not matter.
    fn some_healthy(&self) -> bool {
        self.lanes.len() > 1 && self.open().any(|lane| lane.healthy)
    }

    fn best(&self, eligible: impl Fn(&Lane) -> bool) -> Option<usize> {
        if let [only] = &*self.lanes {
            return eligible(only).then_some(0);
        }
        let some_healthy = self.some_healthy();
        self.lanes
            .iter()
            .enumerate()
            .filter(|(_, lane)| lane.is_used(some_healthy) && eligible(lane))
            .min_by(|(_, a), (_, b)| a.by_load(b))
            .map(|(at, _)| at)
    }

    /// Takes a permit at a place that [`Lanes::roomiest`] or [`Lanes::least_loaded`] named. The lane,
    /// and what is in flight there now.
    pub(super) fn enter(&mut self, at: usize) -> (LaneId, u32) {
        let lane = &mut self.lanes[at];
        lane.in_flight += 1;
        (lane.id, lane.in_flight)
    }

    /// Takes a permit back.
    pub(super) fn leave(&mut self, id: LaneId) {
        let Some(lane) = self.find(id) else { return };
        debug_assert!(lane.in_flight > 0, "a permit came back twice");
        lane.in_flight = lane.in_flight.saturating_sub(1);
        if lane.retired {
            self.sweep();
        }
    }

    /// The sum of the limits.
    pub(super) fn limit(&self) -> u32 {
        sum(self.open().map(|lane| lane.limit))
    }

    /// What is in flight beyond the slots, lane by lane, if they are known of all that are not on their way out.
    pub(super) fn waiting_inside(&self) -> Option<usize> {
        self.open().map(Lane::waiting_inside).sum()
    }

    /// How many the limits allow to wait inside the endpoints; none where their slots are not known.
    pub(super) fn places_inside(&self) -> u32 {
        sum(self.open().map(|lane| {
            lane.slots
                .map_or(0, |slots| lane.limit.saturating_sub(slots))
        }))
    }

    /// What is in flight beyond the limits, lane by lane.
    pub(super) fn beyond_limit(&self) -> usize {
        let beyond = |lane: &Lane| lane.in_flight.saturating_sub(lane.limit) as usize;
        self.lanes.iter().map(beyond).sum()
    }

    /// Brings the integrals forward by so many seconds, in which somebody waited for room or not.
    pub(super) fn advance(&mut self, seconds: f64, waiting: bool) {
        for lane in &mut self.lanes {
            lane.usage.busy_seconds += seconds * f64::from(lane.in_flight);
            lane.usage.limit_seconds += seconds * f64::from(lane.limit);
            if waiting || lane.in_flight >= lane.limit {
                lane.usage.saturated_seconds += seconds;
            }
        }
    }

    /// See [`Snapshot::usage`](super::Snapshot).
    pub(super) fn usage(&self) -> LaneUsage {
        let some_healthy = self.some_healthy();
        let used = |lane: &&Lane| lane.is_used(some_healthy);
        let share = 1.0 / self.lanes.iter().filter(used).count().max(1) as f64;
        self.lanes.iter().fold(self.before, |mut all, lane| {
            // The differences first: otherwise rounding might let a sum fall.
            let (now, since) = (lane.usage, lane.since);
            all.busy_seconds += now.busy_seconds - since.busy_seconds;
            if used(&lane) {
                all.limit_seconds += now.limit_seconds - since.limit_seconds;
                all.saturated_seconds += share * (now.saturated_seconds - since.saturated_seconds);
            }
            all
        })
    }

    /// What they look like, retired ones included until they are empty.
    pub(super) fn snapshots(&self) -> impl Iterator<Item = LaneSnapshot> {
        let some_healthy = self.some_healthy();
        self.lanes.iter().map(move |lane| LaneSnapshot {
            id: lane.id,
            limit: lane.limit,
            used: lane.is_used(some_healthy),
            in_flight: lane.in_flight,
            usage: lane.usage,
        })
    }

    fn find(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    fn sweep(&mut self) {
        self.settle();
        self.lanes
            .retain(|lane| !lane.retired || lane.in_flight > 0);
    }

    /// Keeps what there is so far, whoever is there from now on.
    fn settle(&mut self) {
        self.before = self.usage();
        for lane in &mut self.lanes {
            lane.since = lane.usage;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lanes_had_stays_when_they_go() {
        let mut lanes = Lanes::default();
        let all = |lanes: &Lanes| {
            let usage = lanes.usage();
            (
                usage.busy_seconds,
                usage.limit_seconds,
                usage.saturated_seconds,
            )
        };
        lanes.add(1, 4);
        lanes.enter(0);
        lanes.advance(10.0, true);
        assert_eq!(all(&lanes), (10.0, 40.0, 10.0));
        lanes.add(2, 1);
        lanes.enter(1);
        lanes.advance(10.0, false);
        // One of two was full.
        assert_eq!(all(&lanes), (30.0, 90.0, 15.0));
        lanes.leave(1);
        lanes.retire(1);
        assert_eq!(all(&lanes), (30.0, 90.0, 15.0));
        lanes.advance(1.0, false);
        assert_eq!(all(&lanes), (31.0, 91.0, 16.0));
    }

    /// An endpoint by its share, not by its number: a small one is full sooner.
    #[test]
    fn the_endpoint_goes_first_that_has_the_most_room_for_its_size() {
        let mut lanes = Lanes::default();
        lanes.add(1, 2);
        lanes.add(2, 10);
        for expected in [1, 2, 2, 2, 2, 2, 1] {
            let at = lanes.roomiest().expect("there is room");
            assert_eq!(lanes.enter(at).0, expected);
        }
    }

    #[test]
    fn an_endpoint_that_goes_says_nothing_of_the_others_any_more() {
        let mut lanes = Lanes::default();
        lanes.add(1, 1);
        lanes.add(2, 1);
        lanes.set_service_time(1, Duration::from_secs(2));
        lanes.set_service_time(2, Duration::from_millis(20));
        // It has something in flight, and stays until that is done.
        lanes.enter(0);
        lanes.retire(1);
        assert_eq!(lanes.service_time(), Some(Duration::from_millis(20)));
    }
}

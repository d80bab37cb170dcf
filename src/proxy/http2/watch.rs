//! When a connection is to be looked at, if nothing happens on it: a client is idle, silent, owes the rest of a
//! head, or has been here for long.

use std::time::{Duration, Instant};

use super::io::Line;
use crate::{
    clock,
    proxy::{
        live::ClientTimeouts,
        state::{Activity, State},
    },
};

/// A client that is silent for so long is asked for a sign of life, and has so long to give it.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection this old is asked to make room for another, which a balancer may send elsewhere.
const AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// What is to be done about a connection if nothing happens on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// End it.
    Close,
    /// Have it take no new streams, and end when it has none.
    Leave,
    /// Ask its client for a sign of life.
    Ping,
    /// See again then.
    Look(Instant),
}

/// The times of one connection.
pub struct Watch<'a> {
    state: &'a State,
    line: &'a Line,
    timeouts: ClientTimeouts,
    opened: Instant,
    /// Since when it takes no new streams.
    left: Option<Instant>,
    /// When its client was last asked for a sign of life, and when it had been heard by then.
    asked: Option<(Instant, Instant)>,
}

impl<'a> Watch<'a> {
    /// Of a connection that begins now.
    pub fn new(
        state: &'a State,
        line: &'a Line,
        timeouts: ClientTimeouts,
        opened: Instant,
    ) -> Self {
        Self {
            state,
            line,
            timeouts,
            opened,
            left: None,
            asked: None,
        }
    }

    /// Notes that its client is asked for a sign of life.
    pub fn ask(&mut self, now: Instant) {
        self.asked = Some((now, self.line.heard()));
    }

    /// Notes that it takes no new streams. Whether that is news.
    pub fn leave(&mut self) -> bool {
        let news = self.left.is_none();
        self.left.get_or_insert_with(clock::now);
        news
    }

    /// What is to be done now.
    pub fn next(&self, now: Instant) -> Next {
        let (activity, since) = self.state.activity();
        let idle = matches!(activity, Activity::Idle | Activity::Head);
        if idle && self.state.is_evicted() {
            return Next::Close;
        }
        let mut due = now + self.timeouts.header.min(self.timeouts.idle);
        if let Some(owed) = self.state.owed() {
            if owed + self.timeouts.header <= now {
                return Next::Close;
            }
            due = due.min(owed + self.timeouts.header);
        } else {
            let (silent, what) = self.silent();
            if silent <= now {
                return what;
            }
            due = due.min(silent);
        }
        // The last bytes of an answer may still be on their way to a slow client.
        let (end, what) = match self.left {
            Some(left) if idle => (left.max(since) + self.timeouts.write, Next::Close),
            Some(_) => return Next::Look(due),
            None if idle => (since + self.timeouts.idle, Next::Leave),
            None => (self.opened + AGE_MAX, Next::Leave),
        };
        let end = match what {
            Next::Leave => end.min(self.opened + AGE_MAX),
            _ => end,
        };
        if end <= now {
            return what;
        }
        Next::Look(due.min(end))
    }

    /// Until when its client may be silent, and what then. Whatever it says is a sign of life.
    fn silent(&self) -> (Instant, Next) {
        let heard = self.line.heard();
        match self.asked {
            Some((asked, before)) if heard == before => (asked + PING_TIMEOUT, Next::Close),
            _ => (heard + PING_AFTER, Next::Ping),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::Metrics;

    const SECOND: Duration = Duration::from_secs(1);

    const TIMEOUTS: ClientTimeouts = ClientTimeouts {
        header: Duration::from_secs(15),
        idle: Duration::from_secs(75),
        write: Duration::from_secs(60),
    };

    /// A connection that begins now.
    fn begin() -> (State, Line, Instant) {
        let opened = clock::now();
        let state = State::new(Arc::new(Metrics::default()), opened);
        (state, Line::new(opened), opened)
    }

    #[test]
    fn an_idle_connection_leaves_and_is_closed_when_nobody_takes_the_rest() {
        let (state, line, opened) = begin();
        let mut watch = Watch::new(&state, &line, TIMEOUTS, opened);
        assert_eq!(watch.next(opened), Next::Look(opened + 15 * SECOND));
        line.hear(opened + 75 * SECOND);
        assert_eq!(watch.next(opened + 75 * SECOND), Next::Leave);
        watch.left = Some(opened + 75 * SECOND);
        let later = opened + 134 * SECOND;
        line.hear(later);
        assert_eq!(watch.next(later), Next::Look(later + SECOND));
        assert_eq!(watch.next(later + SECOND), Next::Close);
    }

    #[test]
    fn a_busy_connection_leaves_when_it_is_old_and_is_never_cut_off() {
        let (state, line, opened) = begin();
        state.serve();
        let mut watch = Watch::new(&state, &line, TIMEOUTS, opened);
        let almost = opened + AGE_MAX - SECOND;
        line.hear(almost);
        assert_eq!(watch.next(almost), Next::Look(almost + SECOND));
        assert_eq!(watch.next(opened + AGE_MAX), Next::Leave);
        watch.left = Some(opened + AGE_MAX);
        let much_later = opened + 10 * AGE_MAX;
        line.hear(much_later);
        assert_eq!(watch.next(much_later), Next::Look(much_later + 15 * SECOND));
    }

    #[test]
    fn a_head_that_is_owed_has_its_own_time() {
        let (state, line, opened) = begin();
        state.serve();
        state.owes(true, true);
        let watch = Watch::new(&state, &line, TIMEOUTS, opened);
        let late = opened + 16 * SECOND;
        assert_eq!(watch.next(late), Next::Close);
        state.owes(false, false);
        assert!(matches!(watch.next(late), Next::Look(_)));
    }

    #[test]
    fn a_silent_client_is_asked_and_closed_if_it_does_not_answer() {
        let (state, line, opened) = begin();
        state.serve();
        let mut watch = Watch::new(&state, &line, TIMEOUTS, opened);
        let almost = opened + 29 * SECOND;
        assert_eq!(watch.next(almost), Next::Look(almost + SECOND));
        let silent = opened + PING_AFTER;
        assert_eq!(watch.next(silent), Next::Ping);
        watch.ask(silent);
        assert_eq!(watch.next(silent), Next::Look(silent + 15 * SECOND));
        assert_eq!(watch.next(silent + PING_TIMEOUT), Next::Close);
        // An answer at once is one, too.
        line.hear(silent);
        assert!(matches!(watch.next(silent + PING_TIMEOUT), Next::Look(_)));
        assert_eq!(watch.next(silent + PING_AFTER), Next::Ping);
    }
}

//! The known servers: what each takes, how it treats a connection, and how it is recognised.
//!
//! The limits are the servers' defaults, which people change. So a server that was recognised, rather
//! than named in the configuration, is held to them only once it has shown that they apply; and not at
//! all once it has taken more.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use http::StatusCode;

use super::{
    Size,
    codec::{Plain, RequestHead, Signs, is_written},
    uwsgi,
};
use crate::config::Profile;

/// How it is known what the backend is. The later ones are believed over the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Source {
    /// It is not known.
    Nothing,
    /// From how it answers: a guess.
    Behaviour,
    /// From the `Server` field of an answer.
    Header,
    /// From the process that owns the backend's socket.
    Process,
    /// From `backend.profile` or `backend.protocol`.
    Configured,
}

impl Source {
    const ALL: [Self; 5] = [
        Self::Nothing,
        Self::Behaviour,
        Self::Header,
        Self::Process,
        Self::Configured,
    ];

    /// Its name in the status document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "unknown",
            Self::Behaviour => "behaviour",
            Self::Header => "header",
            Self::Process => "process",
            Self::Configured => "configured",
        }
    }
}

/// What is known of one server.
#[derive(Debug, PartialEq)]
pub struct Facts {
    /// What it takes of a request's head, by default.
    pub limits: Limits,
    /// Whether a head beyond its limits gets an answer. Where not, the connection just ends.
    pub answers_excess: bool,
    /// Whether a connection may carry another request. Where not, it says so, or closes without a
    /// word, or keeps a worker waiting for it.
    pub reusable: bool,
    /// Whether the application gets a chunked body. Where not, it gets an empty one, or the client a 411.
    pub chunked: bool,
    /// Whether requests beyond its capacity wait in the listen backlog, where the kernel shows them.
    /// Others accept at once, and queue by themselves.
    pub waits_in_backlog: bool,
    /// Whether a connection stays with the worker process that has accepted it, which accepts more than it can
    /// work on.
    pub keeps_to_worker: bool,
    /// Whether a worker or its main loop waits, after an answer, for the connection to be closed.
    pub lingers: bool,
}

/// The most that a server takes of a head; beyond that it answers with an error, or not at all.
#[derive(Debug, PartialEq)]
pub struct Limits {
    /// Bytes of the request line.
    line: usize,
    /// Bytes of a field, name and value.
    field: usize,
    /// How many fields.
    fields: usize,
    /// Bytes of all variables that CGI makes of the head.
    vars: usize,
}

/// What of a request's head is too much for the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// The target.
    #[error("the request target is longer than the backend takes")]
    Target,
    /// A field, their number, or all together.
    #[error("the request's header fields are larger or more than the backend takes")]
    Fields,
}

const NO_LIMITS: Limits = Limits {
    line: usize::MAX,
    field: usize::MAX,
    fields: usize::MAX,
    vars: usize::MAX,
};

/// `limit_request_line`, `limit_request_field_size`, `limit_request_fields`.
const GUNICORN_LIMITS: Limits = Limits {
    line: 4094,
    field: 8190,
    fields: 100,
    ..NO_LIMITS
};

const GENERIC: Facts = Facts {
    limits: NO_LIMITS,
    answers_excess: true,
    reusable: true,
    chunked: true,
    waits_in_backlog: false,
    keeps_to_worker: false,
    lingers: false,
};

const GUNICORN_SYNC: Facts = Facts {
    limits: GUNICORN_LIMITS,
    reusable: false,
    waits_in_backlog: true,
    lingers: true,
    ..GENERIC
};

const GUNICORN_EAGER: Facts = Facts {
    reusable: true,
    waits_in_backlog: false,
    keeps_to_worker: true,
    ..GUNICORN_SYNC
};

/// `buffer-size`. Its `http11-socket` keeps connections, but spends a core on each that is idle.
const UWSGI: Facts = Facts {
    limits: Limits {
        vars: 4096,
        ..NO_LIMITS
    },
    answers_excess: false,
    reusable: false,
    chunked: false,
    waits_in_backlog: true,
    keeps_to_worker: false,
    lingers: false,
};

/// Apache's `LimitRequestLine`, `LimitRequestFieldSize` and `LimitRequestFields`.
const MOD_WSGI: Facts = Facts {
    limits: Limits {
        line: 8190,
        field: 8190,
        fields: 100,
        ..NO_LIMITS
    },
    chunked: false,
    ..GENERIC
};

const WAITRESS: Facts = GENERIC;

/// `http.server` of the standard library.
const WERKZEUG: Facts = Facts {
    limits: Limits {
        line: 65536,
        field: 65536,
        fields: 100,
        ..NO_LIMITS
    },
    reusable: false,
    ..GENERIC
};

/// The facts of a server; [`Profile::Auto`] is one of which nothing is known.
pub fn facts(profile: Profile) -> &'static Facts {
    match profile {
        Profile::Auto | Profile::Generic => &GENERIC,
        Profile::GunicornSync => &GUNICORN_SYNC,
        Profile::GunicornGthread | Profile::GunicornGevent => &GUNICORN_EAGER,
        Profile::Uwsgi => &UWSGI,
        Profile::ModWsgi => &MOD_WSGI,
        Profile::Waitress => &WAITRESS,
        Profile::Werkzeug => &WERKZEUG,
    }
}

impl Limits {
    /// Whether they are for variables, so that every field has to be looked at by its name.
    pub fn count_vars(&self) -> bool {
        self.vars != usize::MAX
    }

    /// How many fields a head may have.
    pub fn fields(&self) -> usize {
        self.fields
    }

    /// What of this request is too much; `None` if it all fits.
    pub fn excess(&self, request: &RequestHead, added: Size) -> Option<Excess> {
        if *self == NO_LIMITS {
            return None;
        }
        let target = request
            .uri()
            .path_and_query()
            .map_or(1, |it| it.as_str().len());
        let line = request.method().as_str().len() + target + " HTTP/1.1 ".len();
        if line > self.line {
            return Some(Excess::Target);
        }
        let (headers, plain) = (request.headers(), request.body().size());
        let colon = ": ".len();
        let mut fields = headers.iter();
        let others = plain.fields + added.fields;
        let many = headers.len() + others > self.fields;
        let written = || {
            headers
                .iter()
                .filter(|(name, value)| is_written(name, value))
        };
        if (many && written().count() + others > self.fields)
            || plain.longest.max(added.longest) > self.field
            || fields.any(|(name, value)| name.as_str().len() + colon + value.len() > self.field)
        {
            return Some(Excess::Fields);
        }
        if !self.count_vars() || vars_len(request) <= self.vars {
            return None;
        }
        // The target is among the variables twice: as it came, and decoded.
        let by_target = 2 * target > self.vars / 2;
        Some(if by_target {
            Excess::Target
        } else {
            Excess::Fields
        })
    }
}

/// See [`uwsgi::vars_len`], which knows the fields of the map alone.
fn vars_len(request: &RequestHead) -> usize {
    if request.body().is_empty() {
        return uwsgi::vars_len(request);
    }
    // It is plain only if nobody was known to count when it came.
    let mut whole = request.clone();
    Plain::unfold(&mut whole);
    uwsgi::vars_len(&whole)
}

/// What is known of one endpoint's server, shared by all who use it or find something out.
#[derive(Debug, Default)]
pub(super) struct Knowledge {
    profile: AtomicU8,
    source: AtomicU8,
    /// Whether the limits of [`Facts`] apply: [`APPLY`], [`RAISED`], or how often they seemed to.
    limits: AtomicU8,
    /// How many answers that name no server were looked at, and how many ended like uWSGI's.
    looks: AtomicU8,
    silent_ends: AtomicU8,
}

/// So many answers are looked at for how they end.
const LOOKS: u8 = 250;
/// So many must end alike.
const ALIKE: u8 = 3;

/// The limits apply.
const APPLY: u8 = u8::MAX;
/// The server has taken more: somebody raised them.
const RAISED: u8 = u8::MAX - 1;
/// So many requests beyond the limits must have been refused, and none taken: a worker that crashes looks
/// like a refusal.
const STRIKES: u8 = 3;

impl Knowledge {
    pub(super) fn profile(&self) -> (Profile, Source) {
        let profile = usize::from(self.profile.load(Relaxed));
        (
            Profile::ALL.get(profile).copied().unwrap_or(Profile::Auto),
            self.source(),
        )
    }

    fn source(&self) -> Source {
        let source = usize::from(self.source.load(Relaxed));
        Source::ALL.get(source).copied().unwrap_or(Source::Nothing)
    }

    /// Notes what somebody found out. True if it is news, and not from a lesser source.
    pub(super) fn learn(&self, profile: Profile, source: Source) -> bool {
        let known = self.profile();
        if source < known.1 || (profile, source) == known {
            return false;
        }
        // Whoever reads between the two stores has the new server from the old source: harmless.
        self.profile.store(profile as u8, Relaxed);
        self.source.store(source as u8, Relaxed);
        if known.0 != profile {
            let limits = if source == Source::Configured {
                APPLY
            } else {
                0
            };
            self.limits.store(limits, Relaxed);
        }
        known.0 != profile
    }

    pub(super) fn facts(&self) -> &'static Facts {
        facts(self.profile().0)
    }

    /// The limits that are sure to apply.
    pub(super) fn limits(&self) -> Option<&'static Limits> {
        (self.limits.load(Relaxed) == APPLY).then(|| &self.facts().limits)
    }

    /// What of a request would be too much, if the default limits applied, where that is not sure.
    pub(super) fn suspect(&self, request: &RequestHead, added: Size) -> Option<Excess> {
        if self.limits.load(Relaxed) >= RAISED {
            return None;
        }
        self.facts().limits.excess(request, added)
    }

    /// How a request ended that [`Knowledge::suspect`] suspects: refused for it, or not.
    pub(super) fn tried(&self, refused: bool) {
        let next = |known| match (known, refused) {
            (APPLY | RAISED, _) => None,
            (_, false) => Some(RAISED),
            (strikes, true) if strikes + 1 >= STRIKES => Some(APPLY),
            (strikes, true) => Some(strikes + 1),
        };
        let _ = self.limits.fetch_update(Relaxed, Relaxed, next);
    }

    /// Whether it is worth to look at how this answer ends.
    pub(super) fn is_worth_a_look(&self, signs: &Signs) -> bool {
        self.source() == Source::Nothing
            && is_anonymous(signs)
            && self.looks.load(Relaxed) < LOOKS
            && self.looks.fetch_add(1, Relaxed) < LOOKS
    }

    /// An anonymous answer was followed by the end of the connection, of which it had said nothing: so
    /// does uWSGI. True if that is enough to guess.
    pub(super) fn ended_silently(&self) -> bool {
        self.silent_ends.fetch_add(1, Relaxed) + 1 == ALIKE
    }

    /// What an answer tells of who gave it.
    pub(super) fn recognise(&self, signs: &Signs) -> Option<Profile> {
        let settled = match self.source() {
            Source::Nothing | Source::Behaviour => false,
            // gunicorn says only sometimes that it keeps connections, so `sync` may still turn out to be
            // wrong.
            Source::Header => self.profile().0 != Profile::GunicornSync,
            Source::Process | Source::Configured => true,
        };
        if settled {
            return None;
        }
        recognised(signs)
    }
}

/// Whether an answer is as anonymous as uWSGI's: no server, no date, nothing about the connection.
fn is_anonymous(signs: &Signs) -> bool {
    !signs.http10 && signs.server.is_none() && !signs.dated && signs.closes.is_none()
}

/// The server that answers like this, by its `Server` field.
fn recognised(signs: &Signs) -> Option<Profile> {
    let server = signs.server.as_deref()?;
    let says_close = signs.closes == Some(true);
    Some(match server {
        // Among gunicorn's workers that keep connections, gevent's can be told only by the process.
        _ if server.starts_with(b"gunicorn") && !says_close && !signs.http10 => {
            Profile::GunicornGthread
        }
        _ if server.starts_with(b"gunicorn") => Profile::GunicornSync,
        _ if server.starts_with(b"Werkzeug/") => Profile::Werkzeug,
        _ if server.starts_with(b"waitress") => Profile::Waitress,
        _ if server.starts_with(b"Apache") => Profile::ModWsgi,
        _ => return None,
    })
}

/// What was too large of a request's head, if a status says so. (Apache says 400, which may mean anything.)
pub(super) fn says_excess(status: StatusCode) -> Option<Excess> {
    match status {
        StatusCode::URI_TOO_LONG => Some(Excess::Target),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Some(Excess::Fields),
        _ => None,
    }
}

/// Whether an answer is one that gunicorn gives without asking the application: it names neither itself
/// nor the date, and closes.
pub(super) fn is_servers_own(signs: &Signs) -> bool {
    signs.closes == Some(true) && signs.server.is_none() && !signs.dated
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, header};

    use super::*;

    fn request(target: usize, field: usize, fields: usize) -> RequestHead {
        let mut request = Request::get(format!("/{}", "a".repeat(target - 1)));
        for number in 0..fields {
            request = request.header(format!("x-{number:03}"), "b".repeat(field));
        }
        request.body(Plain::default()).expect("a request")
    }

    /// The bounds are those of the real servers, found by asking them.
    #[test]
    fn limits_are_exact() {
        let gunicorn = &facts(Profile::GunicornSync).limits;
        // "GET " and " HTTP/1.1" are 13 bytes of the 4094.
        assert_eq!(gunicorn.excess(&request(4081, 1, 1), Size::default()), None);
        assert_eq!(
            gunicorn.excess(&request(4082, 1, 1), Size::default()),
            Some(Excess::Target)
        );
        assert_eq!(
            gunicorn.excess(&request(1, 8190 - 7, 1), Size::default()),
            None
        );
        assert_eq!(
            gunicorn.excess(&request(1, 8190 - 6, 1), Size::default()),
            Some(Excess::Fields)
        );
        assert_eq!(gunicorn.excess(&request(1, 1, 100), Size::default()), None);
        assert_eq!(
            gunicorn.excess(&request(1, 1, 101), Size::default()),
            Some(Excess::Fields)
        );
        let mut kept = request(1, 1, 100);
        let option = http::HeaderValue::from_static("keep-alive");
        kept.headers_mut().insert(header::CONNECTION, option);
        assert_eq!(
            gunicorn.excess(&kept, Size::default()),
            None,
            "it is not sent"
        );
        let added = Size::default().and(1, 1);
        assert_eq!(gunicorn.excess(&request(1, 1, 99), added), None);
        assert_eq!(
            gunicorn.excess(&request(1, 1, 100), added),
            Some(Excess::Fields)
        );
        let added = added.and(1, 8190);
        assert_eq!(
            gunicorn.excess(&request(1, 1, 1), added),
            Some(Excess::Fields)
        );

        let uwsgi = &facts(Profile::Uwsgi).limits;
        let fixed = uwsgi::vars_len(&request(1, 0, 1));
        assert_eq!(
            uwsgi.excess(&request(1, 4096 - fixed, 1), Size::default()),
            None
        );
        assert_eq!(
            uwsgi.excess(&request(1, 4097 - fixed, 1), Size::default()),
            Some(Excess::Fields)
        );
        assert_eq!(
            uwsgi.excess(&request(2500, 1, 1), Size::default()),
            Some(Excess::Target)
        );
        let unknown = &facts(Profile::Auto).limits;
        assert_eq!(
            unknown.excess(&request(60_000, 8, 99), Size::default()),
            None
        );
    }

    #[test]
    fn a_named_server_is_held_to_its_limits_and_a_recognised_one_when_they_show() {
        let large = request(5000, 1, 1);
        let named = Knowledge::default();
        assert!(named.learn(Profile::GunicornSync, Source::Configured));
        assert!(named.limits().is_some());
        assert_eq!(
            named.suspect(&large, Size::default()),
            None,
            "it is not sent at all"
        );

        let seen = Knowledge::default();
        assert!(seen.learn(Profile::Uwsgi, Source::Process));
        for _ in 0..STRIKES {
            assert!(seen.limits().is_none());
            assert_eq!(seen.suspect(&large, Size::default()), Some(Excess::Target));
            seen.tried(true);
        }
        assert!(seen.limits().is_some());

        let raised = Knowledge::default();
        raised.learn(Profile::Uwsgi, Source::Process);
        raised.tried(true);
        raised.tried(false);
        assert_eq!(
            raised.suspect(&large, Size::default()),
            None,
            "it has taken as much"
        );
        raised.tried(true);
        assert!(raised.limits().is_none());
    }

    #[test]
    fn the_better_source_is_believed() {
        let known = Knowledge::default();
        assert!(known.learn(Profile::GunicornSync, Source::Header));
        assert!(!known.learn(Profile::Uwsgi, Source::Behaviour));
        assert!(known.learn(Profile::GunicornGevent, Source::Process));
        assert!(!known.learn(Profile::GunicornGthread, Source::Header));
        assert_eq!(known.profile(), (Profile::GunicornGevent, Source::Process));
        assert!(known.learn(Profile::Waitress, Source::Process), "another");
    }

    #[test]
    fn who_answers_shows_in_the_answer() {
        let of = |http10, server: &'static str, connection: &'static str| {
            let signs = Signs {
                server: Some(Bytes::from_static(server.as_bytes())),
                closes: Some(connection == "close"),
                http10,
                ..Signs::default()
            };
            Knowledge::default().recognise(&signs)
        };
        let (old, new) = (true, false);
        let sync = of(new, "gunicorn", "close");
        assert_eq!(sync, Some(Profile::GunicornSync));
        let threads = of(new, "gunicorn", "keep-alive");
        assert_eq!(threads, Some(Profile::GunicornGthread));
        let flask = of(old, "Werkzeug/3.1.9 Python/3.11.7", "close");
        assert_eq!(flask, Some(Profile::Werkzeug));
        assert_eq!(of(new, "waitress", ""), Some(Profile::Waitress));
        assert_eq!(of(new, "Apache/2.4", ""), Some(Profile::ModWsgi));
        assert_eq!(of(new, "nginx", ""), None);
    }
}

//! The slots of the backend, by a ladder of sources: the first that knows wins, and each says what it
//! found or why not.

use super::{
    control_socket,
    facts::ProcessFacts,
    server::{self, Accepts, Count, ReadFile, Server},
    uwsgi_stats,
};
use crate::config::{Discovery, Profile};

/// Who says how many slots there are, from the surest to the vaguest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `discovery.slots`.
    Configured,
    /// gunicorn's control socket.
    ControlSocket,
    /// uWSGI's stats server.
    UwsgiStats,
    /// The process that owns the listening socket.
    Proc,
    /// A hint in that process's environment.
    Env,
    /// The accept queue, under load.
    Learned,
}

impl Source {
    /// All of them, in order.
    pub const ALL: [Source; 6] = [
        Source::Configured,
        Source::ControlSocket,
        Source::UwsgiStats,
        Source::Proc,
        Source::Env,
        Source::Learned,
    ];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::ControlSocket => "control_socket",
            Self::UwsgiStats => "uwsgi_stats",
            Self::Proc => "proc",
            Self::Env => "env",
            Self::Learned => "learned",
        }
    }
}

/// One source and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// The source.
    pub source: Source,
    /// The slots, or why it does not know.
    pub outcome: Result<Count, String>,
}

/// The slots that are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Requests in parallel, at least 1.
    pub count: u32,
    /// Who says so.
    pub source: Source,
    /// How it follows.
    pub because: String,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which it is, and its slots.
    pub server: Server,
    /// Its master process, in its own numbering.
    pub pid: Option<u32>,
}

/// The whole ladder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ladder {
    /// Every source that was asked, in order. What is learned under load is not among them.
    pub rungs: Vec<Rung>,
    /// The server, by the surest source that recognised it.
    pub server: Option<Server>,
}

impl Ladder {
    /// Asks all sources. `process` is the owner of the listening socket, or why it is not known. Blocks for
    /// as long as the control socket and the stats server take, at most half a second each.
    pub fn climb(
        discovery: &Discovery,
        process: Result<&ProcessFacts, &str>,
        read: &ReadFile<'_>,
    ) -> Self {
        let mut ladder = Self::default();
        ladder.note(
            Source::Configured,
            match discovery.slots {
                0 => Err("discovery.slots is 0".to_owned()),
                slots => Ok(Count {
                    slots,
                    because: "discovery.slots".to_owned(),
                }),
            },
        );
        ladder.told(
            Source::ControlSocket,
            match &discovery.gunicorn_control_socket {
                Some(path) => control_socket::ask(path),
                None => Err("discovery.gunicorn_control_socket is not set".to_owned()),
            },
        );
        ladder.told(
            Source::UwsgiStats,
            match &discovery.uwsgi_stats {
                Some(address) => uwsgi_stats::ask(address),
                None => Err("discovery.uwsgi_stats is not set".to_owned()),
            },
        );
        match process {
            Err(why) => {
                ladder.note(Source::Proc, Err(why.to_owned()));
                ladder.note(Source::Env, Err(why.to_owned()));
            }
            Ok(process) => {
                let server = server::recognise(process, read);
                let slots = match &server {
                    Some(server) => server.slots.clone(),
                    None => Err("the server is not a known one".to_owned()),
                };
                // A server that is known not to be bounded by workers has no use for the hint.
                let hinted = match &server {
                    Some(_) => Err("the server itself is known".to_owned()),
                    None => server::hinted(process),
                };
                ladder.server = ladder.server.or(server);
                ladder.note(Source::Proc, slots);
                ladder.note(Source::Env, hinted);
            }
        }
        ladder
    }

    fn told(&mut self, source: Source, told: Result<Told, String>) {
        match told {
            Ok(told) => {
                self.note(source, told.server.slots.clone());
                self.server.get_or_insert(told.server);
            }
            Err(why) => self.note(source, Err(why)),
        }
    }

    fn note(&mut self, source: Source, outcome: Result<Count, String>) {
        self.rungs.push(Rung { source, outcome });
    }

    /// The slots by the surest source that knows.
    pub fn slots(&self) -> Option<Slots> {
        self.rungs.iter().find_map(|rung| {
            let count = rung.outcome.as_ref().ok()?;
            Some(Slots {
                count: count.slots,
                source: rung.source,
                because: count.because.clone(),
            })
        })
    }

    /// When the server accepts, a configured profile being believed first.
    pub fn accepts(&self, configured: Profile) -> Accepts {
        match (configured, &self.server) {
            (Profile::Auto | Profile::Generic, Some(server)) => server.accepts,
            (profile, _) => server::accepts(profile),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_profile_says_when_the_server_accepts_before_the_server_does() {
        let server = Server {
            profile: Profile::GunicornSync,
            name: "gunicorn",
            how: "command line",
            accepts: Accepts::WhenIdle,
            slots: Err(String::new()),
        };
        let ladder = Ladder {
            rungs: Vec::new(),
            server: Some(server),
        };
        assert_eq!(ladder.accepts(Profile::Auto), Accepts::WhenIdle);
        assert_eq!(ladder.accepts(Profile::Generic), Accepts::WhenIdle);
        assert_eq!(ladder.accepts(Profile::GunicornGthread), Accepts::Eagerly);
        let unknown = Ladder::default();
        assert_eq!(unknown.accepts(Profile::Auto), Accepts::Unknown);
    }
}

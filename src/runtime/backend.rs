//! The backend as the process sees it: somebody else's (`run`), or a child of ours (`exec`).

use std::{
    ffi::OsString,
    net::TcpListener,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::{
    Failure,
    child::{self, Child, Exit, Restarts, Spec},
};
use crate::{
    backend::{connect, uwsgi},
    clock,
    config::{Address, Loaded, Protocol, hide_secrets},
    proxy::Shared,
    sense::Senses,
};

/// Between two looks at whether the child is ready.
const LOOK: Duration = Duration::from_millis(25);
/// What one look may take.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// When it is said that the child does not serve yet, and how often it is said again.
const PATIENCE: Duration = Duration::from_secs(5);
const REMIND: Duration = Duration::from_secs(60);
/// For how long clients wait to be accepted while nothing listens; then they are answered 502 until something does.
const HOLD: Duration = Duration::from_secs(30);
/// For how long the child may take to end after TERM. gunicorn gives its workers 30 s.
const GRACE: Duration = Duration::from_secs(35);
/// For how long it may take to end after KILL.
const KILLED: Duration = Duration::from_secs(2);

/// See the module's documentation.
#[derive(Debug)]
pub enum Backend {
    /// It runs already.
    Elsewhere,
    /// We run it.
    Child(Box<Supervised>),
}

/// The child and how it is started again.
#[derive(Debug)]
pub struct Supervised {
    spec: Spec,
    address: Address,
    question: Question,
    restarts: Restarts,
    child: Option<Child>,
    started: Instant,
    /// When a child that has ended is to be started again.
    again: Option<Instant>,
    /// A start under way.
    starting: Option<JoinHandle<std::io::Result<Child>>>,
}

/// What a child is asked if accepting is not enough.
#[derive(Clone, Debug, Default)]
struct Question {
    path: String,
    /// In the protocol that it speaks; empty without a path.
    bytes: Bytes,
}

impl Question {
    /// None if the path has no form in this protocol.
    fn new(path: &str, protocol: Protocol) -> Option<Self> {
        let bytes = match protocol {
            _ if path.is_empty() => Bytes::new(),
            Protocol::Http => format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: tidegate\r\nConnection: close\r\n\r\n"
            )
            .into(),
            Protocol::Uwsgi => {
                let request = Request::get(path)
                    .header(header::HOST, "localhost")
                    .header(header::USER_AGENT, "tidegate")
                    .body(Empty::<Bytes>::new())
                    .ok()?;
                uwsgi::encode(&request, request.body()).ok()?
            }
        };
        Some(Self {
            path: path.to_owned(),
            bytes,
        })
    }
}

/// The child's address, and what to ask there.
#[derive(Clone, Debug)]
pub struct Readiness(Option<(Address, Question)>);

impl Backend {
    /// Decides on the child's address and command.
    pub fn prepare(loaded: &Loaded, exec: bool) -> Result<Self, Failure> {
        if !exec {
            return Ok(Self::Elsewhere);
        }
        let process = &loaded.config.process;
        if process.command.is_empty() {
            return Err(Failure::Config(
                "exec needs a command: tidegate exec -- COMMAND [ARG]..., or process.command in the file"
                    .to_owned(),
            ));
        }
        let path = &process.ready_path;
        let question = Question::new(path, loaded.config.backend.protocol).ok_or_else(|| {
            Failure::Config(format!(
                "process.ready_path: {path:?} cannot be asked for in the uwsgi protocol; write it percent-encoded"
            ))
        })?;
        let address = match loaded.config.backend.endpoints.first() {
            Some(named) if *named != Address::any() => named.clone(),
            _ => free_address().map_err(|error| {
                Failure::Bind(format!("cannot find a free port for the backend: {error}"))
            })?,
        };
        let text = address.to_string();
        let port = match &address {
            Address::Tcp { port, .. } => port.to_string(),
            _ => String::new(),
        };
        if port.is_empty() && process.command.iter().any(|word| word.contains("{port}")) {
            return Err(Failure::Config(format!(
                "process.command: {{port}} has no value, because the backend {text} is a Unix socket; use {{addr}}"
            )));
        }
        if loaded.config.backend.endpoints.len() > 1 {
            tracing::warn!(backend = %text, "exec starts its command once, at the first of backend.endpoints; what listens at the others has to be started by somebody else");
        }
        let command = child::substitute(&process.command, &text, &port);
        let mut env = vec![("TIDEGATE_BACKEND".to_owned(), text)];
        if !port.is_empty() {
            env.push(("PORT".to_owned(), port));
        }
        Ok(Self::Child(Box::new(Supervised {
            spec: Spec {
                command: command.into_iter().map(OsString::from).collect(),
                env,
                restart: process.restart,
            },
            address,
            question,
            restarts: Restarts::new(process.restart),
            child: None,
            started: clock::now(),
            again: None,
            starting: None,
        })))
    }

    /// The child's address.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::Elsewhere => None,
            Self::Child(supervised) => Some(&supervised.address),
        }
    }

    /// Starts the child, if there is one.
    pub async fn start(&mut self, senses: &Senses) -> Result<(), String> {
        let Self::Child(supervised) = self else {
            return Ok(());
        };
        tokio::spawn(child::reap_orphans());
        let address = &supervised.address;
        if connect(address, LOOK_MAX).await.is_ok() {
            tracing::warn!(
                %address,
                "something listens at {address} before the command is started: requests may go to that instead"
            );
        }
        supervised.start(senses).await
    }

    /// How to find out whether the child serves.
    pub fn readiness(&self) -> Readiness {
        Readiness(match self {
            Self::Elsewhere => None,
            Self::Child(supervised) => {
                Some((supervised.address.clone(), supervised.question.clone()))
            }
        })
    }

    /// Done when the child has ended for good, with its exit code; never without a child.
    pub async fn exited(&mut self, shared: &Shared, senses: &Senses) -> u8 {
        let Self::Child(supervised) = self else {
            return std::future::pending().await;
        };
        loop {
            let at = match supervised.again {
                Some(at) => at,
                None => {
                    let Some(child) = &mut supervised.child else {
                        return 1;
                    };
                    let exit = child.wait().await;
                    tracing::error!(pid = child.pid(), "the backend {exit}");
                    if let Some(endpoint) = shared.endpoints().first() {
                        shared.note_down(endpoint, None, clock::now());
                    }
                    let now = clock::now();
                    let uptime = now.saturating_duration_since(supervised.started);
                    let Some(pause) = supervised.restarts.after(exit, uptime) else {
                        return code(exit);
                    };
                    tracing::info!(?pause, "starting the backend again");
                    now + pause
                }
            };
            // Noted, because this future is dropped and made anew whenever a signal comes.
            supervised.again = Some(at);
            tokio::time::sleep_until(at.into()).await;
            if let Err(error) = supervised.start(senses).await {
                tracing::error!(%error, "cannot start the backend");
                // As a shell would tell it.
                let exit = Exit::Code(127);
                let Some(pause) = supervised.restarts.after(exit, Duration::ZERO) else {
                    return 1;
                };
                tracing::info!(?pause, "starting the backend again");
                supervised.again = Some(clock::now() + pause);
            }
        }
    }

    /// TERM to the child, and its exit code; 0 without one.
    pub async fn stop(&mut self) -> u8 {
        self.give_up_start().await;
        match self {
            Self::Child(supervised) => match &mut supervised.child {
                Some(child) => code(child.stop(GRACE).await),
                None => 0,
            },
            Self::Elsewhere => 0,
        }
    }

    /// Ends a start under way; what was started by it is killed when it is dropped.
    async fn give_up_start(&mut self) {
        if let Self::Child(supervised) = self
            && let Some(starting) = supervised.starting.take()
        {
            starting.abort();
            let _ = starting.await;
        }
    }

    /// KILL to the child, which is not waited for for ever: what waits for a disk does not die before it has it.
    pub async fn kill(&mut self) -> u8 {
        if let Self::Child(supervised) = self
            && let Some(child) = &mut supervised.child
        {
            child.kill();
        }
        self.give_up_start().await;
        if let Self::Child(supervised) = self
            && let Some(child) = &mut supervised.child
            && tokio::time::timeout(KILLED, child.wait()).await.is_err()
        {
            tracing::warn!(
                pid = child.pid(),
                "the backend does not end although it was killed"
            );
        }
        1
    }
}

impl Supervised {
    async fn start(&mut self, senses: &Senses) -> Result<(), String> {
        // In a task of its own: a signal that interrupts the wait does not interrupt the start.
        let starting = self.starting.get_or_insert_with(|| {
            self.started = clock::now();
            tokio::spawn(Child::spawn(self.spec.clone()))
        });
        let started = starting.await;
        self.starting = None;
        let child = started
            .map_err(std::io::Error::from)
            .and_then(|started| started)
            .map_err(|error| error.to_string())?;
        self.again = None;
        senses.set_child(child.pid());
        let command: Vec<_> = self
            .spec
            .command
            .iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        tracing::info!(
            pid = child.pid(),
            address = %self.address,
            command = hide_secrets(&command).join(" "),
            "started the backend"
        );
        self.child = Some(child);
        Ok(())
    }
}

impl Readiness {
    /// Done when the child serves, or at once without one. Says so if that takes long, and calls `give_up` if nothing
    /// listens for longer than clients can be asked to wait for their connections to be accepted.
    pub async fn wait(&self, shared: &Shared, give_up: impl Fn()) {
        let Some((address, question)) = &self.0 else {
            return;
        };
        let begun = clock::now();
        let mut told = begun + PATIENCE;
        loop {
            let state = look(address, question).await;
            if state == State::Serves {
                break;
            }
            let now = clock::now();
            if now >= told {
                told = now + REMIND;
                match state {
                    State::Listens => tracing::warn!(
                        %address,
                        path = question.path,
                        "the command listens, but process.ready_path does not answer with 2xx or 3xx yet"
                    ),
                    _ => tracing::warn!(
                        %address,
                        "the command runs, but nothing listens at {address} yet; does it use {{addr}}, {{port}} or $PORT?"
                    ),
                }
            }
            if state == State::Absent && now.saturating_duration_since(begun) >= HOLD {
                give_up();
            }
            tokio::time::sleep(LOOK).await;
        }
        if let Some(endpoint) = shared.endpoints().first() {
            shared.note_up(endpoint, clock::now());
        }
    }
}

/// How far a child has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Listens,
    Serves,
}

async fn look(address: &Address, question: &Question) -> State {
    let Ok(mut stream) = connect(address, LOOK_MAX).await else {
        return State::Absent;
    };
    if question.bytes.is_empty() {
        return State::Serves;
    }
    let ask = async {
        stream.write_all(&question.bytes).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        std::io::Result::Ok(head)
    };
    let head = tokio::time::timeout(LOOK_MAX, ask).await;
    match head {
        Ok(Ok(head)) if matches!(&head[9..10], b"2" | b"3") => State::Serves,
        _ => State::Listens,
    }
}

fn code(exit: Exit) -> u8 {
    u8::try_from(exit.code()).unwrap_or(1)
}

/// An address on loopback that nobody uses at the moment.
fn free_address() -> std::io::Result<Address> {
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    Ok(Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use super::*;
    use crate::{admission::Limiter, config::Config, proxy};

    #[tokio::test(start_paused = true)]
    async fn clients_are_not_held_for_ever_where_nothing_listens() {
        let config = Arc::new(Config::default());
        let limiter = Limiter::new(proxy::queue_settings(&config), None, clock::now());
        let shared = Shared::new(config, limiter, Arc::default());
        // The port is taken, and does not listen.
        let held = TcpListener::bind("127.0.0.1:0").expect("a port");
        rustix::net::shutdown(&held, rustix::net::Shutdown::Both).expect("it listened");
        let address = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: held.local_addr().expect("it is bound").port(),
        };
        let readiness = Readiness(Some((address, Question::default())));
        let begun = clock::now();
        let given_up = Cell::new(None);
        let note = || {
            if given_up.get().is_none() {
                given_up.set(Some(clock::now().saturating_duration_since(begun)));
            }
        };
        let waiting = readiness.wait(&shared, note);
        let ended = tokio::time::timeout(2 * HOLD, waiting).await;
        assert!(ended.is_err(), "it is not up");
        let after = given_up.get().expect("clients are let in");
        assert!(after >= HOLD && after < 2 * HOLD, "{after:?}");
    }

    #[tokio::test]
    async fn a_child_is_asked_in_the_protocol_that_it_speaks() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let address: Address = address.parse().expect("an address");
        for (protocol, status, expected) in [
            (Protocol::Http, "204 No Content", State::Serves),
            (Protocol::Http, "302 Found", State::Serves),
            (Protocol::Http, "404 Not Found", State::Listens),
            (Protocol::Uwsgi, "200 OK", State::Serves),
            (Protocol::Uwsgi, "503 Busy", State::Listens),
        ] {
            let question = Question::new("/ready?now", protocol).expect("it can be asked");
            let answer = async {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut asked = vec![0; question.bytes.len()];
                stream.read_exact(&mut asked).await.expect("a request");
                let answer = format!("HTTP/1.1 {status}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("it reads");
                asked
            };
            let (state, asked) = tokio::join!(look(&address, &question), answer);
            assert_eq!(state, expected, "{protocol:?} {status}");
            let has = |part: &[u8]| asked.windows(part.len()).any(|window| window == part);
            match protocol {
                Protocol::Http => assert!(has(b"GET /ready?now HTTP/1.1\r\n")),
                Protocol::Uwsgi => {
                    assert!(asked[0] == 0 && has(b"REQUEST_URI\x0a\0/ready?now"));
                }
            }
        }
        assert!(Question::new(&"/x".repeat(40_000), Protocol::Uwsgi).is_none());
    }
}

//! Pipelines of good and bad requests, written in all ways that a network may cut them, to backends that answer
//! well and badly: each answer belongs to its request, each body arrives as it was sent, nothing reaches the
//! backend that no client has sent, nothing that is ambiguous, and nothing twice that may not be; afterwards
//! nothing is left.
//!
//! Seeded: `MUTATED_SEED=7` for other requests, `MUTATED=20000` for so many connections. What fails is shown with
//! its seed.
#![allow(missing_docs, clippy::print_stdout)]

#[path = "mutated/backend.rs"]
mod backend;
mod common;
#[path = "mutated/message.rs"]
mod message;

use std::{
    collections::HashMap,
    io,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use backend::{Backend, Behaviour, Protocol, answer_to, hash};
use common::{
    Client, Response, Tidegate,
    cases::{self, Case},
    descriptors,
    dice::{self, Dice},
    until,
};
use message::Message;

/// Connections, if nobody says how many.
const CONNECTIONS: usize = 1200;
/// Clients at once of each tidegate.
const CLIENTS: usize = 3;
/// So many failures are enough to look at.
const ENOUGH: usize = 20;
/// A conversation without an answer by then hangs.
const HANG: Duration = Duration::from_secs(25);

/// What a tidegate is put between.
#[derive(Clone, Copy, Debug)]
struct Setting {
    protocol: Protocol,
    /// Unix sockets on both sides.
    unix: bool,
    keepalive: bool,
    /// The longest body, bytes.
    largest: usize,
}

const SETTINGS: [Setting; 4] = [
    Setting {
        protocol: Protocol::Http,
        unix: false,
        keepalive: false,
        largest: 400_000,
    },
    Setting {
        protocol: Protocol::Http,
        unix: false,
        keepalive: true,
        largest: 400_000,
    },
    Setting {
        protocol: Protocol::Http,
        unix: true,
        keepalive: true,
        largest: 100_000,
    },
    Setting {
        protocol: Protocol::Uwsgi,
        unix: false,
        keepalive: false,
        largest: 90_000,
    },
];

/// A tidegate and its backend.
struct Lane {
    setting: Setting,
    gate: Tidegate,
    backend: Backend,
    _dir: tempfile::TempDir,
}

/// What a client has sent.
type Sent = HashMap<String, Message>;

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leaves {
    /// When it has all its answers.
    Last,
    /// The same, but it has said before that it sends no more.
    HalfClosed,
    /// In the middle.
    Early,
}

impl Lane {
    fn start(setting: Setting) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = setting.unix.then(|| dir.path().join("backend.sock"));
        let backend = Backend::start(setting.protocol, socket.as_deref());
        let mut setup = Tidegate::to(&backend.address)
            .limit(40)
            .set(format!("backend.keepalive={}", setting.keepalive))
            .set("backend.orphan_max=5s")
            .set("buffers.request=100000")
            .set("queue.max_wait=20s");
        if setting.protocol == Protocol::Uwsgi {
            setup = setup.set("backend.protocol=uwsgi");
        }
        if setting.unix {
            setup = setup.listen(&format!("unix:{}", dir.path().join("front.sock").display()));
        }
        Self {
            setting,
            gate: setup.start(),
            backend,
            _dir: dir,
        }
    }

    /// One connection, from its first byte to its last; what it has sent goes into `sent`.
    fn converse(
        &self,
        name: &str,
        table: &[Case],
        dice: &mut Dice,
        sent: &mut Sent,
    ) -> Result<(), String> {
        let mut messages = Vec::new();
        for at in 0..[1, 1, 2, 3, 5, 8][dice.roll(6)] {
            let one = message::good(format!("{name}-{at}"), self.setting.largest, dice);
            let last = one.closes || one.http10;
            messages.push(one);
            if last {
                break;
            }
        }
        let ends = messages.iter().any(|one| one.closes || one.http10);
        if !ends && dice.once_in(3) {
            let id = format!("{name}-bad");
            messages.push(match dice.roll(2) {
                0 => message::from_table(id, &table[dice.roll(table.len())], dice),
                _ => message::spoiled(id, dice),
            });
        }
        let leaves = match dice.roll(8) {
            0 => Leaves::Early,
            1 | 2 => Leaves::HalfClosed,
            _ => Leaves::Last,
        };
        let mut wire: Vec<u8> = messages.iter().flat_map(|one| one.wire.clone()).collect();
        let torn = leaves == Leaves::HalfClosed && dice.once_in(2);
        if torn {
            // The last is not complete: nobody may take it for a request.
            let whole = messages
                .iter()
                .rev()
                .skip(1)
                .map(|one| one.wire.len())
                .sum::<usize>();
            wire.truncate(whole + dice.roll(wire.len() - whole));
        }
        let cuts = Cuts::choose(wire.len(), dice);
        let shown = format!("{leaves:?}, torn: {torn}, {cuts:?}: {}", show(&messages));
        let mut client = self.gate.client();
        client.set_timeout(HANG);
        let writer = client.writer();
        let (answers, read) = (dice.roll(messages.len() + 1), dice.roll(100_000));
        let told = std::thread::scope(|scope| {
            let writing = scope.spawn(|| cuts.write(writer, &wire, leaves == Leaves::HalfClosed));
            let told = if leaves == Leaves::Early {
                read_some(&mut client, answers, read, &messages);
                Ok(())
            } else {
                self.judge(&mut client, &messages, leaves, torn)
            };
            client.leave();
            let _ = writing.join();
            told
        });
        // What was sent is needed; how it looked is not.
        sent.extend(messages.into_iter().map(|mut one| {
            one.wire = Vec::new();
            (one.id.clone(), one)
        }));
        told.map_err(|why| format!("{why}\n  {shown}"))
    }

    /// Reads what comes for these messages, and holds it against them.
    fn judge(
        &self,
        client: &mut Client,
        messages: &[Message],
        leaves: Leaves,
        torn: bool,
    ) -> Result<(), String> {
        for (at, one) in messages.iter().enumerate() {
            let last = at + 1 == messages.len();
            let answer = client.try_response(one.method);
            if let (Err(error), true) = (&answer, torn && last) {
                return gone(error)
                    .then_some(())
                    .ok_or_else(|| format!("after the torn: {error}"));
            }
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) if may_break(one) && gone(&error) => return Ok(()),
                Err(error) => return Err(format!("{}: {error}", one.id)),
            };
            let torn = torn && last;
            self.belongs(one, &answer, torn).map_err(|why| {
                let text: String = answer.text().chars().take(200).collect();
                format!("{}: {why}: {} {text}", one.id, answer.head)
            })?;
            let says = answer.header("connection").unwrap_or_default();
            let stays = if one.http10 {
                says == "keep-alive"
            } else {
                says != "close"
            };
            if !stays {
                // An early answer leaves the rest of its request behind.
                let early = matches!(
                    one.behaviour,
                    Behaviour::Early | Behaviour::EarlyClose | Behaviour::EarlyReset
                );
                let may = one.closes || one.http10 || one.refused.is_some() || torn;
                let unread = early && one.has_body;
                if !(may || unread) {
                    return Err(format!(
                        "{}: the connection is closed: {}",
                        one.id, answer.head
                    ));
                }
                return at_its_end(client, &one.id);
            }
            if one.closes || one.refused.is_some() {
                return Err(format!("{}: it stays open: {}", one.id, answer.head));
            }
        }
        if leaves == Leaves::HalfClosed {
            return at_its_end(client, "half-closed");
        }
        // Nothing is left behind them.
        client.ask("*bad target*");
        let refusal = client
            .try_response("GET")
            .map_err(|error| format!("the connection does not go on: {error}"))?;
        match refusal.status {
            400 => at_its_end(client, "the last"),
            _ => Err(format!("behind the last: {refusal:?}")),
        }
    }

    /// Whether this is the answer to that.
    fn belongs(&self, one: &Message, answer: &Response, torn: bool) -> Result<(), String> {
        use Behaviour::*;
        for interim in &answer.interim {
            let own = interim == "HTTP/1.1 100 Continue\r\n\r\n" && one.expects;
            let id = format!("\r\nx-id: {}\r\n", one.id);
            let hint = interim.starts_with("HTTP/1.1 103 Early Hints\r\n") && interim.contains(&id);
            let invitation =
                interim == "HTTP/1.1 100 Continue\r\nvia: 1.1 tidegate\r\n\r\n" && !one.expects;
            let passed = one.behaviour == Hints && (hint || invitation) && !interim.contains("hop");
            if one.http10 || !(own || passed) {
                return Err(format!("an interim answer {interim:?}"));
            }
        }
        if let Some(status) = one.refused {
            let fits = answer.status == status || (torn && answer.status == 400);
            return (fits && !answer.reason().is_empty())
                .then_some(())
                .ok_or_else(|| format!("it is no {status}"));
        }
        if torn && answer.status == 400 {
            return Ok(());
        }
        let broken = matches!(
            one.behaviour,
            Cut | CutChunks | BadChunk | Nothing | TwoLengths
        );
        let early = matches!(one.behaviour, Early | EarlyClose | EarlyReset);
        if answer.status == 502 {
            let may = broken || matches!(one.behaviour, EarlyClose | EarlyReset);
            return may.then_some(()).ok_or_else(|| "it is an error".to_owned());
        }
        let status = match one.behaviour {
            NoContent => 204,
            NotModified => 304,
            Nothing | TwoLengths => 502,
            _ => 200,
        };
        if answer.status != status || answer.header("x-id").as_deref() != Some(&one.id[..]) {
            return Err("it is another's".to_owned());
        }
        if one.method == "HEAD" || status != 200 {
            return Ok(());
        }
        if broken && !one.http10 {
            return Err("it is whole".to_owned());
        }
        let body = if early { 0 } else { one.body };
        let expected = answer_to(&one.id, body);
        let fits = match broken {
            // To HTTP/1.0 the end of the connection is the end of the body.
            true => expected.starts_with(&answer.body),
            false => answer.body == expected,
        };
        fits.then_some(())
            .ok_or_else(|| "its body is another".to_owned())
    }

    /// After everything: what the backend has got is what was sent.
    fn settle(&self, sent: &Sent, open: usize) -> Vec<String> {
        self.gate.until_idle();
        for metric in [
            "tidegate_orphaned_requests",
            "tidegate_streaming_requests",
            "tidegate_buffered_bytes",
            "tidegate_client_connections",
        ] {
            self.gate.until_metric(metric, &[], 0.0);
        }
        let mut failures = self.backend.problems();
        for (id, seen) in self.backend.take() {
            let Some(one) = sent.get(&id) else {
                failures.push(format!("nobody has sent {id}: {seen:?}"));
                continue;
            };
            let replayable = matches!(one.method, "GET" | "HEAD" | "OPTIONS") && !one.has_body;
            let most = if replayable && self.setting.keepalive {
                2
            } else {
                1
            };
            let right =
                |it: &backend::Seen| it.method == one.method && (!it.whole || it.body == one.body);
            if seen.len() > most || !seen.iter().all(right) {
                failures.push(format!("{seen:?} became of {one:.300?}"));
            }
            if one.refused.is_some() && seen.iter().any(|it| it.whole) {
                failures.push(format!("what is refused has passed: {one:.300?}"));
            }
        }
        // Idle connections to the backend stay for a second.
        until("its descriptors are back", || {
            descriptors(self.gate.pid()).len() <= open
        });
        if self.gate.log().contains("panicked") {
            failures.push(self.gate.log());
        }
        failures
    }
}

/// Whether a client may find its answer torn.
fn may_break(one: &Message) -> bool {
    use Behaviour::*;
    matches!(one.behaviour, Cut | CutChunks | BadChunk)
        || (one.has_body && matches!(one.behaviour, Early | EarlyClose | EarlyReset))
}

/// Whether it says that the connection has ended, and not that nothing comes, or nonsense.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn at_its_end(client: &mut Client, after: &str) -> Result<(), String> {
    match client.is_closed() {
        true => Ok(()),
        false => Err(format!(
            "{after}: more comes, or no end: {}",
            client.taken().escape_ascii()
        )),
    }
}

/// Takes some of the answers, and a part of the next.
fn read_some(client: &mut Client, answers: usize, read: usize, messages: &[Message]) {
    for one in &messages[..answers] {
        if client.try_response(one.method).is_err() {
            return;
        }
    }
    client.set_timeout(Duration::from_millis(1 + read as u64 % 20));
    while client.read_some().is_ok_and(|count| count > 0) && client.taken().len() < read {}
}

/// How bytes are cut.
#[derive(Debug)]
struct Cuts {
    sizes: Vec<usize>,
    pauses: bool,
}

impl Cuts {
    fn choose(length: usize, dice: &mut Dice) -> Self {
        let sizes = match dice.roll(4) {
            0 | 1 => vec![usize::MAX],
            2 if length < 4000 => vec![1],
            _ => (0..8)
                .map(|_| [1, 2, 5, 20, 100, 3000, 100_000][dice.roll(7)])
                .collect(),
        };
        Self {
            sizes,
            pauses: dice.once_in(3),
        }
    }

    fn write(&self, mut client: Client, bytes: &[u8], half_close: bool) {
        let mut rest = bytes;
        let mut sizes = self.sizes.iter().cycle();
        let mut pieces = 0;
        while !rest.is_empty() {
            let size = sizes
                .next()
                .map_or(rest.len(), |&size| size.min(rest.len()));
            // Whoever is refused cannot write any more.
            if client.try_send(&rest[..size]).is_err() {
                return;
            }
            rest = &rest[size..];
            pieces += 1;
            if self.pauses && pieces % 16 == 0 && pieces < 160 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if half_close {
            client.shutdown_write();
        }
    }
}

fn show(messages: &[Message]) -> String {
    let one = |one: &Message| {
        let wire = &one.wire[..one.wire.len().min(300)];
        format!(
            "\n    {} {:?}: {}",
            one.id,
            one.behaviour,
            wire.escape_ascii()
        )
    };
    messages.iter().map(one).collect()
}

#[test]
fn pipelines_of_all_kinds_stay_apart() {
    let seed = dice::seed("MUTATED_SEED");
    let connections = std::env::var("MUTATED")
        .ok()
        .and_then(|count| count.parse().ok());
    let connections: usize = connections.unwrap_or(CONNECTIONS);
    let table: Vec<Case> = cases::requests()
        .into_iter()
        .filter(message::is_refusal)
        .collect();
    assert!(table.len() > 100, "{} cases", table.len());
    let failed = AtomicUsize::new(0);
    let failures = common::on_lanes(SETTINGS.len(), |number| {
        on_a_lane(SETTINGS[number], number, seed, connections, &table, &failed)
    });
    assert!(
        failures.is_empty(),
        "MUTATED_SEED={seed} MUTATED={connections}: {} failures\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn on_a_lane(
    setting: Setting,
    number: usize,
    seed: u64,
    connections: usize,
    table: &[Case],
    failed: &AtomicUsize,
) -> Vec<String> {
    let lane = Lane::start(setting);
    lane.gate.metrics();
    let open = descriptors(lane.gate.pid()).len();
    let each = connections / SETTINGS.len() / CLIENTS;
    let (mut sent, mut failures) = (Sent::new(), Vec::new());
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let lane = &lane;
                scope.spawn(move || {
                    let (mut sent, mut failures) = (Sent::new(), Vec::new());
                    for turn in 0..each {
                        let name = format!("{number}-{client}-{turn}");
                        let mut dice = Dice::new(hash((seed, &name)));
                        if let Err(why) = lane.converse(&name, table, &mut dice, &mut sent) {
                            failures.push(format!("{setting:?}: {why}"));
                            if failed.fetch_add(1, Relaxed) > ENOUGH {
                                break;
                            }
                        }
                    }
                    (sent, failures)
                })
            })
            .collect();
        for client in clients {
            let (more, wrong) = client.join().expect("a client does not fail");
            sent.extend(more);
            failures.extend(wrong);
        }
    });
    println!(
        "{setting:?}: {} messages over {} connections",
        sent.len(),
        each * CLIENTS
    );
    failures.extend(lane.settle(&sent, open));
    failures
}

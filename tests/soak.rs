//! Everything at once against a real gunicorn, for a while: clients of all kinds, many of whom leave in
//! the middle, while the configuration changes, workers are killed and the server is restarted.
//!
//! Every request whose client stays gets one answer, whole and its own, or a closed connection where a
//! worker was killed under it; and afterwards nothing is left over. 20 seconds, or as many as
//! `TIDEGATE_SOAK` says:
//!
//! ```text
//! TIDEGATE_SOAK=600 cargo test --locked --test soak -- --nocapture
//! ```

#![allow(clippy::print_stdout)]

mod common;

use std::{
    fmt, fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{
    Client, Gunicorn, Response, Tidegate, children,
    frames::{self, Http2},
    memory, since, until,
};
use rustix::process::{Pid, Signal, kill_process};
use tidegate::clock;

/// As many at the backend, always.
const LIMIT: u32 = 8;
/// A request that is worked on at a gunicorn that restarts may be the last of its connection.
const PAUSE: Duration = Duration::from_millis(700);

/// Repeatable: which client does what follows from its number. (When it does, does not.)
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// What became of the requests.
#[derive(Debug, Default)]
struct Tally {
    /// 200, and the right one.
    good: AtomicU64,
    /// 502 to 504, of tidegate's own.
    refused: AtomicU64,
    /// The connection ended before, or within, the answer.
    cut: AtomicU64,
    /// The client did not wait for it.
    left: AtomicU64,
    sockets: AtomicU64,
    streams: AtomicU64,
    uploads: AtomicU64,
}

impl Tally {
    fn of(cell: &AtomicU64) -> u64 {
        cell.load(Relaxed)
    }

    fn add(cell: &AtomicU64) {
        cell.fetch_add(1, Relaxed);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} whole answers ({} to uploads), {} refusals, {} cut off, {} left by their client, {} WebSockets, {} event streams",
            Self::of(&self.good),
            Self::of(&self.uploads),
            Self::of(&self.refused),
            Self::of(&self.cut),
            Self::of(&self.left),
            Self::of(&self.sockets),
            Self::of(&self.streams),
        )
    }
}

/// One client, its luck, and what it leaves in the books.
struct Visitor {
    address: String,
    dice: Dice,
    /// Numbers that no other request has.
    next: u64,
    tally: Arc<Tally>,
    over: Arc<AtomicBool>,
}

impl Visitor {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether it goes on after this.
    fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// What came in the place of an answer, or the answer if it is right. Whether the connection can
    /// carry another.
    fn judge(&self, got: io::Result<Response>, right: impl Fn(&Response) -> bool) -> bool {
        let answer = match got {
            Ok(answer) => answer,
            Err(error) => {
                let ended = [
                    io::ErrorKind::UnexpectedEof,
                    io::ErrorKind::ConnectionReset,
                    io::ErrorKind::BrokenPipe,
                ];
                assert!(
                    ended.contains(&error.kind()),
                    "neither answer nor end: {error}"
                );
                Tally::add(&self.tally.cut);
                return false;
            }
        };
        match answer.status {
            200 => {
                let text = answer.text();
                let shown = text.get(..text.len().min(500)).unwrap_or_default();
                assert!(right(&answer), "not its own: {}{shown}", answer.head);
                Tally::add(&self.tally.good);
            }
            502..=504 => {
                let reason = answer.reason();
                assert!(!reason.is_empty(), "whose? {answer:?}");
                assert_eq!(answer.json()["reason"], *reason);
                Tally::add(&self.tally.refused);
            }
            other => panic!("{other}: {answer:?}"),
        }
        answer.header("connection").as_deref() != Some("close")
    }

    /// One request of HTTP/1 over this connection; false when that is of no more use.
    fn ask(&mut self, client: &mut Client) -> bool {
        let number = self.number();
        let leaves = self.dice.roll(5) == 0;
        match self.dice.roll(6) {
            0 => self.upload(client, number, leaves),
            1 => {
                let length = 1000 + self.dice.roll(1_500_000) as usize;
                let right = move |answer: &Response| {
                    let bytes = answer.body.iter().enumerate();
                    answer.body.len() == length && bytes.into_iter().all(|(at, &b)| b == at as u8)
                };
                self.get(client, &format!("/size?n={length}&{number}"), leaves, right)
            }
            2 => {
                let count = self.dice.roll(40) as usize;
                let whole: String = (0..count).map(|at| format!("piece {at}\n")).collect();
                let right = move |answer: &Response| answer.text() == whole;
                self.get(
                    client,
                    &format!("/chunked?n={count}&{number}"),
                    leaves,
                    right,
                )
            }
            3 => {
                let path = format!("/sleep?ms={}&{number}", self.dice.roll(80));
                self.get(client, &path, leaves, |answer| answer.text() == "slept\n")
            }
            _ => {
                let query = number.to_string();
                let right = move |answer: &Response| answer.json()["query"] == *query;
                self.get(client, &format!("/echo?{number}"), leaves, right)
            }
        }
    }

    fn get(
        &mut self,
        client: &mut Client,
        path: &str,
        leaves: bool,
        right: impl Fn(&Response) -> bool,
    ) -> bool {
        let sent = client.try_send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
        if leaves {
            // At once, after a while, or with the answer's beginning in its hands.
            match self.dice.roll(3) {
                0 => {}
                1 => std::thread::sleep(Duration::from_millis(self.dice.roll(60))),
                _ => drop(client.read_some()),
            }
            Tally::add(&self.tally.left);
            return false;
        }
        self.judge(sent.and_then(|()| client.try_response("GET")), right)
    }

    fn upload(&mut self, client: &mut Client, number: u64, leaves: bool) -> bool {
        let length = self.dice.roll(400_000) as usize;
        let chunked = self.dice.roll(2) == 0;
        let framing = if chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {length}")
        };
        let body = vec![b'u'; length];
        let upto = if leaves { length / 2 } else { length };
        let mut sent = client.try_send(format!(
            "POST /echo?{number} HTTP/1.1\r\nHost: app\r\n{framing}\r\n\r\n"
        ));
        for piece in body[..upto].chunks(50_000) {
            sent = sent.and_then(|()| {
                if chunked {
                    client.try_send(format!("{:x}\r\n", piece.len()))?;
                    client.try_send(piece)?;
                    client.try_send("\r\n")
                } else {
                    client.try_send(piece)
                }
            });
        }
        if leaves {
            Tally::add(&self.tally.left);
            return false;
        }
        if chunked {
            sent = sent.and_then(|()| client.try_send("0\r\n\r\n"));
        }
        // An answer that came early is an answer.
        let got = client
            .try_response("POST")
            .map_err(|error| sent.err().unwrap_or(error));
        let tally = self.tally.clone();
        let query = number.to_string();
        self.judge(got, move |answer| {
            Tally::add(&tally.uploads);
            let echo = answer.json();
            echo["query"] == *query && echo["size"] == length
        })
    }

    /// Requests one after the other over one connection, and another when it has ended.
    fn keeps_alive(&mut self) {
        while !self.is_over() {
            let mut client = Client::connect(&self.address);
            for _ in 0..50 {
                if self.is_over() || !self.ask(&mut client) {
                    break;
                }
            }
        }
    }

    /// A connection for each.
    fn comes_anew(&mut self) {
        while !self.is_over() {
            let mut client = Client::connect(&self.address);
            self.ask(&mut client);
        }
    }

    /// Several at once over HTTP/2, some of which it takes back.
    fn multiplexes(&mut self) {
        while !self.is_over() {
            let mut client = Http2::connect(&self.address, &[]);
            let mut stream = 1;
            for _ in 0..10 {
                let numbers: Vec<(u32, u64)> =
                    (0..4).map(|at| (stream + 2 * at, self.number())).collect();
                stream += 8;
                for &(id, number) in &numbers {
                    client.get(id, &format!("/echo?{number}"));
                }
                let taken_back =
                    (self.dice.roll(3) == 0).then(|| numbers[self.dice.roll(4) as usize].0);
                if let Some(id) = taken_back {
                    client.send(frames::frame(
                        frames::RST_STREAM,
                        0,
                        id,
                        &8_u32.to_be_bytes(),
                    ));
                }
                self.collect(&mut client, &numbers, taken_back);
                if self.dice.roll(8) == 0 {
                    // All of them at once, and nobody waits.
                    for at in 0..3 {
                        client.get(stream + 2 * at, "/sleep?ms=30");
                        Tally::add(&self.tally.left);
                    }
                    break;
                }
            }
        }
    }

    /// Until each has ended, with its own answer or with an error of its own.
    fn collect(&self, client: &mut Http2, numbers: &[(u32, u64)], taken_back: Option<u32>) {
        let mut bodies = vec![Some((0, Vec::new())); numbers.len()];
        let open = |bodies: &[Option<_>]| {
            let kept = numbers.iter().zip(bodies);
            kept.filter(|((id, _), body)| Some(*id) != taken_back && body.is_some())
                .count()
        };
        while open(&bodies) > 0 {
            let frame = client.next(&[
                frames::HEADERS,
                frames::DATA,
                frames::RST_STREAM,
                frames::GOAWAY,
            ]);
            assert_ne!(frame.kind, frames::GOAWAY, "{frame:?}");
            if frame.kind == frames::DATA && !frame.payload.is_empty() {
                let size = (frame.payload.len() as u32).to_be_bytes();
                client.send(frames::frame(frames::WINDOW_UPDATE, 0, 0, &size));
            }
            let Some(at) = numbers.iter().position(|&(id, _)| id == frame.stream) else {
                continue; // One that was taken back before.
            };
            let is_taken_back = Some(frame.stream) == taken_back;
            let Some((heads, body)) = &mut bodies[at] else {
                assert!(is_taken_back, "more after its end: {frame:?}");
                continue;
            };
            match frame.kind {
                frames::HEADERS => *heads += 1,
                frames::DATA => body.extend_from_slice(&frame.payload),
                _ if is_taken_back => {}
                _ => {
                    Tally::add(&self.tally.cut);
                    bodies[at] = None;
                    continue;
                }
            }
            if frame.flags & frames::END_STREAM == 0 || is_taken_back {
                continue;
            }
            assert_eq!(*heads, 1, "one answer");
            let answer: serde_json::Value = serde_json::from_slice(body).expect("JSON");
            if answer.get("reason").is_some() {
                Tally::add(&self.tally.refused);
            } else {
                assert_eq!(answer["query"], numbers[at].1.to_string(), "not its own");
                Tally::add(&self.tally.good);
            }
            bodies[at] = None;
        }
        if taken_back.is_some() {
            Tally::add(&self.tally.left);
        }
    }

    /// WebSockets that echo, some of which end without a word.
    fn talks(&mut self) {
        while !self.is_over() {
            let mut client = Client::connect(&self.address);
            client.send(
                "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n",
            );
            let answer = client.try_head();
            if !answer.as_ref().is_ok_and(|answer| answer.status == 101) {
                match answer {
                    Ok(answer) => {
                        assert!(matches!(answer.status, 502..=504), "{answer:?}");
                        Tally::add(&self.tally.refused);
                    }
                    Err(_) => Tally::add(&self.tally.cut),
                }
                continue;
            }
            let mut whole = true;
            for _ in 0..self.dice.roll(20) {
                let text = format!("message {}", self.number());
                // A text, masked with nothing; it comes back unmasked.
                let mut message = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
                message.extend_from_slice(text.as_bytes());
                let echo = client
                    .try_send(message)
                    .and_then(|()| client.take_through(text.as_bytes()));
                whole = echo.is_ok_and(|echo| echo.len() == 2 + text.len() && echo[0] == 0x81);
                if !whole || self.is_over() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Tally::add(if whole {
                &self.tally.sockets
            } else {
                &self.tally.cut
            });
        }
    }

    /// Server-sent events.
    fn listens(&mut self) {
        while !self.is_over() {
            let mut client = Client::connect(&self.address);
            let count = 1 + self.dice.roll(8);
            let right = move |answer: &Response| {
                let events: String = (0..count).map(|at| format!("data: {at}\n\n")).collect();
                answer.text() == events
            };
            let leaves = self.dice.roll(4) == 0;
            let path = format!("/stream?n={count}&ms=40&{}", self.number());
            self.get(&mut client, &path, leaves, right);
            Tally::add(&self.tally.streams);
        }
    }

    /// Takes what it is sent by the spoonful; mostly it has had enough in the middle.
    fn dawdles(&mut self) {
        while !self.is_over() {
            let mut client = Client::connect(&self.address);
            client.ask(&format!("/size?n=3000000&{}", self.number()));
            for _ in 0..self.dice.roll(30) {
                std::thread::sleep(Duration::from_millis(20));
                if !client.read_some().is_ok_and(|read| read > 0) {
                    break;
                }
            }
            Tally::add(&self.tally.left);
        }
    }
}

/// What happens to the server and the configuration meanwhile.
struct Trouble {
    backend: Gunicorn,
    kills: u64,
    restarts: u64,
    reloads: u64,
}

const SERVER: [&str; 6] = [
    "--worker-class",
    "gthread",
    "--threads",
    "6",
    "--workers",
    "2",
];

impl Trouble {
    fn run(&mut self, gate: &Tidegate, seconds: Duration) {
        let mut dice = Dice(0x7ea5_0000_c0ff_ee01);
        let began = clock::now();
        while since(began) < seconds {
            std::thread::sleep(PAUSE);
            match dice.roll(8) {
                0 | 1 => {
                    let workers = children(self.backend.process.pid());
                    if let Some(&worker) = workers.get(dice.roll(2) as usize % workers.len().max(1))
                    {
                        let pid = Pid::from_raw(worker.cast_signed()).expect("a pid");
                        let _ = kill_process(pid, Signal::KILL);
                        self.kills += 1;
                    }
                }
                2 => self.backend.process.signal(Signal::HUP),
                3 => {
                    let address = self.backend.address().to_owned();
                    self.backend.process.kill();
                    self.backend = Gunicorn::bound(&address, &SERVER);
                    self.restarts += 1;
                }
                side => {
                    let new = gate.file().with_extension("new");
                    let wait = 2 + side % 3;
                    let text = if side == 7 {
                        "[queue".to_owned()
                    } else {
                        format!("[queue]\nmax_wait = \"{wait}s\"\n")
                    };
                    fs::write(&new, text).expect("it is written");
                    fs::rename(&new, gate.file()).expect("it is put in place");
                    self.reloads += 1;
                }
            }
        }
    }
}

/// When it is dropped, all is over.
struct Ends(Arc<AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn tasks(gate: &Tidegate) -> u64 {
    gate.status()["tasks"].as_u64().expect("a number")
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[test]
fn mixed_traffic_with_aborts_reloads_kills_and_restarts_leaves_nothing_behind() {
    let seconds = std::env::var("TIDEGATE_SOAK").ok();
    let seconds = seconds.and_then(|text| text.trim_end_matches('s').parse().ok());
    let seconds = Duration::from_secs(seconds.unwrap_or(20));
    let backend = Gunicorn::start(&SERVER);
    let gate = Tidegate::to(backend.address())
        .limit(LIMIT)
        .toml("[queue]\nmax_wait = \"3s\"\n")
        .start();
    // As much of everything as it will ever need at rest.
    for _ in 0..200 {
        assert_eq!(gate.get("/").status, 200);
    }
    gate.until_metric("tidegate_client_connections", &[], 0.0);
    let before = (
        descriptors(gate.pid()),
        threads(gate.pid()),
        memory(gate.pid()).0,
        tasks(&gate),
    );
    let answered = || gate.metric("tidegate_requests_total", &[]) as u64;
    let at_first = answered();

    let tally = Arc::new(Tally::default());
    let over = Arc::new(AtomicBool::new(false));
    let kinds: [fn(&mut Visitor); 10] = [
        Visitor::keeps_alive,
        Visitor::keeps_alive,
        Visitor::keeps_alive,
        Visitor::comes_anew,
        Visitor::comes_anew,
        Visitor::multiplexes,
        Visitor::multiplexes,
        Visitor::talks,
        Visitor::listens,
        Visitor::dawdles,
    ];
    let mut trouble = Trouble {
        backend,
        kills: 0,
        restarts: 0,
        reloads: 0,
    };
    std::thread::scope(|scope| {
        // Whatever fails here, they go home.
        let ends = Ends(over.clone());
        let visitors: Vec<_> = (1..)
            .zip(kinds)
            .map(|(number, visit)| {
                let mut visitor = Visitor {
                    address: gate.address().to_owned(),
                    dice: Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number)),
                    next: number * 1_000_000_000,
                    tally: tally.clone(),
                    over: over.clone(),
                };
                scope.spawn(move || visit(&mut visitor))
            })
            .collect();
        trouble.run(&gate, seconds);
        drop(ends);
        for visitor in visitors {
            visitor.join().expect("every answer was right");
        }
    });

    // Nothing is in flight, queued, buffered, streamed, or waited for.
    gate.until_idle();
    for metric in [
        "tidegate_buffered_bytes",
        "tidegate_orphaned_requests",
        "tidegate_streaming_requests",
    ] {
        gate.until_metric(metric, &[], 0.0);
    }
    gate.until_metric("tidegate_client_connections", &[], 0.0);
    // One answer for each: what it counts is what the clients saw, but for those who did not look.
    let (good, refused) = (Tally::of(&tally.good), Tally::of(&tally.refused));
    let seen = good + refused + Tally::of(&tally.sockets);
    let most = seen + Tally::of(&tally.left) + Tally::of(&tally.cut);
    let counted = answered() - at_first;
    assert!(
        (seen..=most).contains(&counted),
        "{counted} answers; {tally}"
    );
    // Only who was being served when a worker died lost an answer: as many as were in flight.
    let deaths = trouble.kills + 2 * trouble.restarts;
    let cut = Tally::of(&tally.cut);
    assert!(
        cut <= deaths * u64::from(LIMIT),
        "{deaths} workers killed; {tally}"
    );
    assert!(good > 10 * seconds.as_secs(), "it was served: {tally}");
    // All permits are there: as many as the limit are worked on at once, and nobody has to wait.
    until("the backend is whole", || gate.get("/").status == 200);
    let mut all: Vec<Client> = (0..LIMIT).map(|_| gate.client()).collect();
    for client in &mut all {
        client.ask("/sleep?ms=1500");
    }
    gate.until_metric("tidegate_in_flight_requests", &[], f64::from(LIMIT));
    assert_eq!(
        gate.metric("tidegate_concurrency_limit", &[]),
        f64::from(LIMIT)
    );
    for client in &mut all {
        assert_eq!(client.response().status, 200);
    }
    drop(all);
    gate.until_idle();
    until("the descriptors are back", || {
        descriptors(gate.pid()) <= before.0 + 2
    });
    until("the tasks are gone", || tasks(&gate) <= before.3);
    // Those that read files end when they have had nothing to do for ten seconds.
    until("the threads are back", || threads(gate.pid()) <= before.1);
    let (after, peak) = memory(gate.pid());
    let grown = after.saturating_sub(before.2);
    println!(
        "{} s: {tally}; {} workers killed, {} restarts, {} changes of the configuration; {counted} answers counted; \
         resident {:.1} MB, then {:.1} MB, {:.1} MB at most; {} descriptors, then {}",
        seconds.as_secs(),
        trouble.kills,
        trouble.restarts,
        trouble.reloads,
        before.2 as f64 / 1e6,
        after as f64 / 1e6,
        peak as f64 / 1e6,
        before.0,
        descriptors(gate.pid()),
    );
    assert!(grown < 24_000_000, "{grown} bytes more");
    assert!(!gate.log().contains("panic"), "{}", gate.log());
}

//! Networks that cut bytes into pieces, hold them up and break off, on both sides of tidegate at once. What arrives
//! is right and whole, or it does not arrive; and nothing is left behind.
//!
//! `TIDEGATE_SPLICE=100000` makes it so many exchanges, `TIDEGATE_SEED=7` other ones.
#![allow(clippy::print_stdout)] // the figures are for reports

mod common;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use common::{Client, Raw, Tidegate};

const CLIENTS: u64 = 4;

/// A small generator: the same seed, the same exchanges.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// Passes on what comes for `target`, in pieces. One direction in `cuts` ends with a reset somewhere.
fn splice(target: &str, seed: u64, cuts: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (target, seeds) = (target.to_owned(), AtomicU64::new(seed));
    // It ends with the process.
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&target) else {
                continue;
            };
            let (near, far) = (Arc::new(near), Arc::new(far));
            for (from, to) in [(near.clone(), far.clone()), (far, near)] {
                let mut dice = Dice::new(seeds.fetch_add(1, Relaxed));
                let cut = (cuts > 0 && dice.roll(cuts) == 0).then(|| dice.roll(100_000));
                std::thread::spawn(move || pass(&from, &to, &mut dice, cut));
            }
        }
    });
    address
}

fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    dice: &mut Dice,
    cut: Option<u64>,
) -> io::Result<()> {
    to.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    let mut passed = 0;
    loop {
        let most = [1, 2, 3, 50, 1500, 16 * 1024][dice.roll(6) as usize];
        let count = from.read(&mut buffer[..most])?;
        passed += count as u64;
        if cut.is_some_and(|cut| passed > cut) {
            for stream in [from, to] {
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
                let _ = stream.shutdown(Shutdown::Both);
            }
            return Ok(());
        }
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(&buffer[..count])?;
        if dice.roll(50) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Says what it has got, followed by as much as the path asks for.
fn backend() -> Raw {
    Raw::start(|mut conn| {
        while let Some(request) = conn.request() {
            let path = request
                .line()
                .split(' ')
                .nth(1)
                .unwrap_or_default()
                .to_owned();
            let more: u64 = path
                .rsplit('/')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            let body = answer(&path, digest(&request.body), more);
            let sent = if more.is_multiple_of(2) {
                conn.ok(&body)
            } else {
                let size = body.len();
                conn.send(format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n"
                ))
            };
            if !sent {
                return;
            }
        }
    })
}

fn answer(path: &str, digest: u64, more: u64) -> String {
    format!("{path} {digest} {}", "x".repeat(more as usize))
}

/// A request, and its right answer.
fn request(dice: &mut Dice, number: u64) -> (Vec<u8>, String) {
    let more = [0, 1, 10, 1001, 70_000, 300_001][dice.roll(6) as usize];
    let path = format!("/{number}/{more}");
    let size = [0, 1, 100, 5000, 100_000][dice.roll(5) as usize];
    let body: Vec<u8> = (0..size).map(|_| dice.roll(256) as u8).collect();
    let mut bytes = match dice.roll(3) {
        _ if size == 0 => format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n").into_bytes(),
        0 => {
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
            let mut bytes = head.into_bytes();
            for chunk in body.chunks(1 + dice.roll(30_000) as usize) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            return (bytes, answer(&path, digest(&body), more));
        }
        _ => format!("POST {path} HTTP/1.1\r\nHost: app\r\nContent-Length: {size}\r\n\r\n")
            .into_bytes(),
    };
    bytes.extend(&body);
    (bytes, answer(&path, digest(&body), more))
}

/// How many answers were right, and how many did not come.
fn exchanges(cuts: u64, keepalive: bool) -> (u64, u64) {
    let env = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let (count, seed) = (
        env("TIDEGATE_SPLICE").unwrap_or(240),
        env("TIDEGATE_SEED").unwrap_or(1),
    );
    let backend = backend();
    let far = splice(backend.address(), seed << 32, cuts);
    let tidegate = Tidegate::to(&far)
        .limit(CLIENTS as u32)
        .set(format!("backend.keepalive={keepalive}"))
        .start();
    let near = splice(tidegate.address(), seed << 48, cuts);
    let (right, torn) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (near, right, torn) = (&near, &right, &torn);
            scope.spawn(move || {
                let mut dice = Dice::new(seed * CLIENTS + client + 1);
                let mut left = count / CLIENTS;
                while left > 0 {
                    // Several at once, and several of those over one connection.
                    let Ok(mut connection) = Client::try_connect(near) else {
                        continue;
                    };
                    for _ in 0..=dice.roll(3) {
                        let some = (1 + dice.roll(3)).min(left);
                        left -= some;
                        let all: Vec<_> = (0..some)
                            .map(|at| request(&mut dice, 10 * left + at))
                            .collect();
                        let mut writer = connection.writer();
                        let bytes = all
                            .iter()
                            .flat_map(|(bytes, _)| bytes.clone())
                            .collect::<Vec<_>>();
                        let writing = std::thread::spawn(move || writer.try_send(bytes));
                        let mut whole = true;
                        for (_, expected) in &all {
                            match connection.try_response("GET") {
                                Ok(got) if got.status == 200 => {
                                    assert_eq!(got.text(), *expected);
                                    right.fetch_add(1, Relaxed);
                                    continue;
                                }
                                Ok(got) => {
                                    let known = matches!(
                                        (got.status, &*got.reason()),
                                        (
                                            502,
                                            "backend_reset"
                                                | "backend_protocol"
                                                | "backend_unreachable"
                                        ) | (400, "bad_request")
                                    );
                                    assert!(cuts > 0 && known, "{got:?}");
                                    torn.fetch_add(1, Relaxed);
                                    whole = got.status == 502;
                                }
                                Err(error) => {
                                    assert!(cuts > 0, "{error}");
                                    torn.fetch_add(1, Relaxed);
                                    whole = false;
                                }
                            }
                            if !whole {
                                break;
                            }
                        }
                        let _ = writing.join().expect("it does not panic");
                        if !whole || left == 0 {
                            break;
                        }
                    }
                }
            });
        }
    });
    tidegate.until_idle();
    for name in [
        "tidegate_client_connections",
        "tidegate_buffered_bytes",
        "tidegate_orphaned_requests",
    ] {
        tidegate.until_metric(name, &[], 0.0);
    }
    assert!(!tidegate.log().contains("panic"), "{}", tidegate.log());
    let (right, torn) = (right.into_inner(), torn.into_inner());
    println!("{right} right answers, {torn} that did not come");
    (right, torn)
}

#[test]
fn bytes_in_any_pieces_are_the_same_bytes() {
    for keepalive in [false, true] {
        let (right, torn) = exchanges(0, keepalive);
        assert!(right > 100 && torn == 0, "{right} {torn}");
    }
}

#[test]
fn a_network_that_breaks_off_brings_no_wrong_answer() {
    for keepalive in [false, true] {
        let (right, torn) = exchanges(6, keepalive);
        assert!(right > 20 && torn > 5, "{right} {torn}");
    }
}

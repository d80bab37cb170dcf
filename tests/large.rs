//! Bodies far larger than any buffer, both ways, many at once; thousands of idle connections; a spool that is full.
//!
//! Small enough for every day. `TIDEGATE_LARGE=1024` makes each body so many MiB, `TIDEGATE_IDLE=10000` opens so many
//! connections: `TIDEGATE_LARGE=1024 cargo test --release --test large -- --nocapture`.
#![allow(clippy::print_stdout)] // the figures are for reports

mod common;

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
    time::Duration,
};

use common::{Client, PATIENCE, Process, Tidegate, cgroup::Group, memory, since, until};
use tidegate::clock;

const MIB: u64 = 1024 * 1024;
/// Half of them go up, half come down.
const BODIES: usize = 50;
/// What tidegate may take, with fifty bodies under way.
const MEMORY: u64 = 64 * MIB;
/// A prime number, so that what is missing or doubled shows.
const PERIOD: u64 = 65_521;

fn env(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

/// The bytes of every body, twice, so that a piece of any offset is in one piece.
fn pattern() -> Vec<u8> {
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..2 * PERIOD).map(|at| byte(at % PERIOD)).collect()
}

/// Writes the bytes from `from` to `to`.
fn send(stream: &mut impl Write, pattern: &[u8], mut from: u64, to: u64) -> io::Result<()> {
    while from < to {
        let size = PERIOD.min(to - from) as usize;
        let at = (from % PERIOD) as usize;
        stream.write_all(&pattern[at..at + size])?;
        from += size as u64;
    }
    Ok(())
}

/// Whether the bytes from `from` on are these.
fn is_right(pattern: &[u8], from: u64, bytes: &[u8]) -> bool {
    let mut from = from;
    bytes.chunks(PERIOD as usize).all(|piece| {
        let at = (from % PERIOD) as usize;
        from += piece.len() as u64;
        pattern[at..at + piece.len()] == *piece
    })
}

/// Reads so many bytes and looks at each.
fn check(stream: &mut impl Read, pattern: &[u8], length: u64) -> Result<(), String> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while at < length {
        let most = buffer.len().min((length - at) as usize);
        let count = stream
            .read(&mut buffer[..most])
            .map_err(|error| format!("{error} after {at} bytes"))?;
        if count == 0 {
            return Err(format!("it ends after {at} bytes"));
        }
        if !is_right(pattern, at, &buffer[..count]) {
            return Err(format!("other bytes after {at}"));
        }
        at += count as u64;
    }
    Ok(())
}

/// Reads up to the empty line, byte by byte: the body stays in the socket.
fn head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).to_ascii_lowercase())
}

fn length(head: &str) -> Option<u64> {
    let (_, rest) = head.split_once("\r\ncontent-length: ")?;
    rest.split("\r\n").next()?.parse().ok()
}

/// Reads chunks to the end, and looks at each byte.
fn check_chunks(stream: &mut impl Read, pattern: &[u8], length: u64) -> Result<(), String> {
    let mut at = 0;
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .map_err(|error| error.to_string())?;
            line.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
        let size = u64::from_str_radix(&text, 16).map_err(|error| format!("{error}: {text:?}"))?;
        let mut chunk = vec![0; size as usize + 2];
        stream
            .read_exact(&mut chunk)
            .map_err(|error| error.to_string())?;
        if !is_right(pattern, at, &chunk[..size as usize]) {
            return Err(format!("other bytes after {at}"));
        }
        at += size;
        if size == 0 {
            let whole = at == length;
            return whole
                .then_some(())
                .ok_or_else(|| format!("it ends after {at} bytes"));
        }
    }
}

/// A backend that reads bodies and says whether they are right, and that sends bodies.
fn backend(bytes: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    // It ends with the process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&mut stream, bytes));
        }
    });
    address
}

fn serve(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let pattern = pattern();
    let head = head(stream)?;
    if head.starts_with("get /down ") {
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").as_bytes())?;
        return send(stream, &pattern, 0, bytes);
    }
    if head.starts_with("get /down-in-chunks ") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let mut at = 0;
        while at < bytes {
            let size = 60_000.min(bytes - at);
            stream.write_all(format!("{size:x}\r\n").as_bytes())?;
            send(stream, &pattern, at, at + size)?;
            stream.write_all(b"\r\n")?;
            at += size;
        }
        return stream.write_all(b"0\r\n\r\n");
    }
    let verdict = match length(&head) {
        Some(length) if head.starts_with("post ") => {
            check(stream, &pattern, length).map(|()| length)
        }
        None if head.starts_with("post ") => check_chunks(stream, &pattern, bytes).map(|()| bytes),
        _ => Ok(0),
    };
    let text = verdict.map_or_else(|error| error, |length| format!("{length} bytes"));
    let length = text.len();
    stream
        .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}").as_bytes())
}

/// One body, in one of four ways; what was wrong with it.
fn exchange(address: &str, way: usize, bytes: u64) -> Result<(), String> {
    let pattern = pattern();
    let text = |error: io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).map_err(text)?;
    stream.set_read_timeout(Some(10 * PATIENCE)).map_err(text)?;
    stream
        .set_write_timeout(Some(10 * PATIENCE))
        .map_err(text)?;
    let begin =
        |stream: &mut TcpStream, head: &str| stream.write_all(head.as_bytes()).map_err(text);
    match way % 4 {
        0 => {
            begin(&mut stream, "GET /down HTTP/1.1\r\nHost: app\r\n\r\n")?;
            let head = head(&mut stream).map_err(text)?;
            if length(&head) != Some(bytes) {
                return Err(head);
            }
            check(&mut stream, &pattern, bytes)
        }
        1 => {
            begin(
                &mut stream,
                "GET /down-in-chunks HTTP/1.1\r\nHost: app\r\n\r\n",
            )?;
            head(&mut stream).map_err(text)?;
            check_chunks(&mut stream, &pattern, bytes)
        }
        way => {
            if way == 2 {
                let head =
                    format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {bytes}\r\n\r\n");
                begin(&mut stream, &head)?;
                send(&mut stream, &pattern, 0, bytes).map_err(text)?;
            } else {
                let head = "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";
                begin(&mut stream, head)?;
                let mut at = 0;
                while at < bytes {
                    let size = 60_000.min(bytes - at);
                    begin(&mut stream, &format!("{size:x}\r\n"))?;
                    send(&mut stream, &pattern, at, at + size).map_err(text)?;
                    begin(&mut stream, "\r\n")?;
                    at += size;
                }
                begin(&mut stream, "0\r\n\r\n")?;
            }
            let head = head(&mut stream).map_err(text)?;
            let mut answer = vec![0; length(&head).unwrap_or(0) as usize];
            stream.read_exact(&mut answer).map_err(text)?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let whole = answer == format!("{bytes} bytes");
            whole.then_some(()).ok_or(answer)
        }
    }
}

#[test]
fn fifty_large_bodies_at_once_pass_whole_through_little_memory() {
    let bytes = env("TIDEGATE_LARGE", 6) * MIB;
    let address = backend(bytes);
    let mut tidegate = Tidegate::to(&address).limit(BODIES as u32 + 10).start();
    let group = Group::memory();
    if let Some(group) = &group {
        group.set_memory(MEMORY);
        group.take(tidegate.pid());
    } else {
        println!("no cgroup can be made here: resident memory alone is looked at");
    }
    let started = clock::now();
    let target = tidegate.address().to_owned();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let bodies: Vec<_> = (0..BODIES)
            .map(|way| {
                let target = &target;
                scope.spawn(move || exchange(target, way, bytes))
            })
            .collect();
        let results = bodies
            .into_iter()
            .map(|body| body.join().expect("it does not panic"));
        results.filter_map(Result::err).collect()
    });
    let (took, most) = (since(started), memory(tidegate.pid()).1);
    assert!(tidegate.process.ended().is_none(), "it lives");
    assert!(failures.is_empty(), "{failures:?}");
    println!(
        "{BODIES} bodies of {} MiB in {took:?}: resident memory was {:.1} MB at most",
        bytes / MIB,
        most as f64 / 1e6
    );
    assert!(most < MEMORY, "{most} bytes of memory");
    tidegate.until_idle();
    tidegate.until_metric("tidegate_buffered_bytes", &[], 0.0);
    assert_eq!(common::get(&target, "/").status, 200);
}

/// It is read ahead as far as the disk takes it; the rest is streamed, and nobody is refused for it.
#[test]
fn a_spool_that_is_full_or_cannot_be_written_costs_nobody_a_request() {
    const BYTES: u64 = 3 * MIB;
    let address = backend(BYTES);
    let dir = tempfile::tempdir().expect("a directory");
    let spool = dir.path().join("spool");
    std::fs::create_dir(&spool).expect("a directory");
    let log = |process: &Process, text: &str| process.log().matches(text).count();

    // Files may have half a megabyte; what is more fails as on a full disk.
    let (mut process, listen) = with_spool(&address, &spool, "ulimit -f 1024; trap '' XFSZ;");
    for way in [2, 3, 2] {
        exchange(&listen, way, BYTES).expect("it arrives whole");
    }
    // What it has written may not be read yet.
    until("each of them is told of", || {
        log(&process, "cannot write to the spool") == 3
    });
    assert_eq!(process.stop(), 0);

    let (mut process, listen) = with_spool(&address, &spool, "");
    std::fs::set_permissions(&spool, PermissionsExt::from_mode(0o000)).expect("it is ours");
    exchange(&listen, 2, BYTES).expect("it arrives whole");
    std::fs::set_permissions(&spool, PermissionsExt::from_mode(0o700)).expect("it is ours");
    std::fs::remove_dir(&spool).expect("it is empty");
    for way in [2, 3] {
        exchange(&listen, way, BYTES).expect("it arrives whole");
    }
    // Root writes where nobody may.
    let denied = if rustix::process::geteuid().is_root() {
        0
    } else {
        1
    };
    until("each of them is told of", || {
        log(&process, "cannot spool") == 2 + denied
    });
    // Back again, without a restart.
    std::fs::create_dir(&spool).expect("a directory");
    let before = log(&process, "spool");
    exchange(&listen, 2, BYTES).expect("it arrives whole");
    assert_eq!(log(&process, "spool"), before, "{}", process.log());
    assert_eq!(process.stop(), 0);
}

/// A tidegate that the shell starts after `first`.
fn with_spool(backend: &str, dir: &std::path::Path, first: &str) -> (Process, String) {
    let mut command = Command::new("sh");
    let script = format!("{first} exec \"$0\" \"$@\"");
    command
        .arg("-c")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["run", "--backend", backend, "--listen", "127.0.0.1:0"]);
    command.args(["--admin", "127.0.0.1:0", "--log-format", "json", "--set"]);
    command.arg(format!("buffers.spool_dir={}", dir.display()));
    command.process_group(0);
    let mut process = Process::start("tidegate", &mut command);
    let ready = process.logged("\"tidegate is ready\"", |log| {
        let line = log
            .lines()
            .find(|line| line.contains("tidegate is ready"))?;
        serde_json::from_str::<serde_json::Value>(line).ok()
    });
    (
        process,
        ready["listen"].as_str().expect("an address").to_owned(),
    )
}

#[test]
fn thousands_of_idle_connections_delay_nobody() {
    const PROBES: usize = 300;
    let count = env("TIDEGATE_IDLE", 1500) as usize;
    let address = backend(0);
    let tidegate = Tidegate::to(&address)
        .set(format!("server.max_connections={}", count + 500))
        .set("server.idle_timeout=10m")
        .set("server.header_timeout=10m")
        .start();
    for _ in 0..50 {
        assert_eq!(tidegate.get("/").status, 200);
    }
    let before = memory(tidegate.pid()).0;
    // Half of them have had an answer, half have never said a word.
    let mut clients: Vec<Client> = Vec::with_capacity(count);
    for at in 0..count {
        let mut client = tidegate.client();
        if at % 2 == 0 {
            assert_eq!(client.get("/").status, 200);
        }
        clients.push(client);
    }
    let open = || tidegate.metric("tidegate_client_connections", &[]);
    until("all are there", || open() >= count as f64);
    let mut times: Vec<Duration> = (0..PROBES)
        .map(|_| {
            let started = clock::now();
            assert_eq!(tidegate.get("/").status, 200);
            since(started)
        })
        .collect();
    times.sort_unstable();
    let each = memory(tidegate.pid()).0.saturating_sub(before) / count as u64;
    println!(
        "{count} idle connections: {:.1} MB, {each} bytes each; a fresh request takes {:?} in the median, {:?} at p99",
        memory(tidegate.pid()).0 as f64 / 1e6,
        times[PROBES / 2],
        times[PROBES * 99 / 100]
    );
    assert!(each < 16 * 1024, "{each} bytes for an idle connection");
    assert!(times[PROBES / 2] < Duration::from_secs(1), "{times:?}");
    // None was closed for another, and they are as good as new.
    assert!(open() >= count as f64);
    let last = clients.len() - 1;
    for at in [0, 1, last / 2, last] {
        assert_eq!(clients[at].get("/").status, 200, "number {at}");
    }
}

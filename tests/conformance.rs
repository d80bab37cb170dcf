//! What clients send against what a backend gets, byte by byte: the table in
//! `tests/conformance/requests.toml` at several segmentations, and mutations of it.

mod common;
#[path = "../src/proxy/guard/naive.rs"]
mod naive;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{
    Client, PATIENCE, Response, Tidegate,
    cases::{self, Case, bytes},
    dice::{self, Dice},
};

/// As many pairs of a tidegate and a backend work through the cases at once.
const LANES: usize = 4;
const MUTANTS: usize = 6000;
/// A mutant that has no answer by then hangs.
const HANG: Duration = Duration::from_secs(20);

/// How a piece is cut.
type Segments = fn(&[u8]) -> Vec<&[u8]>;

/// A request as it came to the backend.
#[derive(Clone, Debug, Default)]
struct Got {
    bytes: Vec<u8>,
    reads: usize,
}

/// A backend that writes down what it reads.
struct Recorder {
    address: String,
    got: Arc<Mutex<Vec<Got>>>,
    /// Connections that are not over.
    open: Arc<AtomicUsize>,
}

impl Recorder {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let recorder = Self {
            address: listener.local_addr().expect("an address").to_string(),
            got: Arc::default(),
            open: Arc::default(),
        };
        let (got, open) = (recorder.got.clone(), recorder.open.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (got, open) = (got.clone(), open.clone());
                open.fetch_add(1, SeqCst);
                std::thread::spawn(move || {
                    let _ = record(stream, &got);
                    open.fetch_sub(1, SeqCst);
                });
            }
        });
        recorder
    }

    /// What came since the last time.
    fn take(&self) -> Vec<Got> {
        common::until("the backend's connections are closed", || {
            self.open.load(SeqCst) == 0
        });
        std::mem::take(&mut self.got.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads one request, answers, and reads on to the end: whatever comes then is written down, too.
fn record(mut stream: TcpStream, got: &Mutex<Vec<Got>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 1 << 20];
    let mut request = Got::default();
    while !is_complete(&request.bytes) {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        request.bytes.extend_from_slice(&buffer[..count]);
        request.reads += 1;
    }
    if request.bytes.is_empty() {
        return Ok(());
    }
    let head = request.bytes.starts_with(b"HEAD ");
    let place = {
        let mut got = got.lock().unwrap_or_else(PoisonError::into_inner);
        got.push(request);
        got.len() - 1
    };
    let body = if head { "" } else { "ok" };
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}").as_bytes())?;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut got = got.lock().unwrap_or_else(PoisonError::into_inner);
        got[place].bytes.extend_from_slice(&buffer[..count]);
    }
    Ok(())
}

fn is_complete(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head
        .split("\r\ncontent-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next()?.parse().ok())
        .unwrap_or(0);
    bytes.len() >= end + 4 + length
}

/// A tidegate, and the backend behind it.
struct Lane {
    recorder: Recorder,
    tidegate: Tidegate,
    port: String,
}

impl Lane {
    fn start() -> Self {
        let recorder = Recorder::start();
        let tidegate = Tidegate::to(&recorder.address)
            .set("server.max_body_bytes=100000")
            .set("limit.algorithm=fixed")
            .set("limit.initial=64")
            .start();
        let port = tidegate
            .address()
            .rsplit(':')
            .next()
            .expect("a port")
            .to_owned();
        Self {
            recorder,
            tidegate,
            port,
        }
    }

    fn added(&self, host: &str, version: &str) -> String {
        format!("{}via: {version} tidegate\r\n{OURS}", self.forwarded(host))
    }

    fn forwarded(&self, host: &str) -> String {
        let port = &self.port;
        format!(
            "x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-port: {port}\r\n\
             x-forwarded-host: {host}\r\n"
        )
    }

    fn expected(&self, template: &str) -> String {
        let mut text = template
            .replace("{added}", &self.added("app", "1.1"))
            .replace("{added10}", &self.added("app", "1.0"))
            .replace(
                "{added-without-via}",
                &format!("{}{OURS}", self.forwarded("app")),
            )
            .replace("{added10:localhost}", &self.added("localhost", "1.0"));
        if let Some((before, rest)) = text.split_once("{added:") {
            let (host, after) = rest.split_once('}').expect("a host");
            text = format!("{before}{}{after}", self.added(host, "1.1"));
        }
        show(&bytes(&text))
    }

    /// Sends a case in these pieces, and holds what comes against it.
    fn check(&self, case: &Case, segments: Segments) -> Result<(), String> {
        let mut client = self.tidegate.client();
        let mut pieces = case.pieces().into_iter();
        let mut send = |client: &mut Client| {
            let piece = pieces.next().unwrap_or_default();
            for segment in segments(&piece) {
                // It may be refused before it is complete.
                if client.try_send(segment).is_err() {
                    break;
                }
            }
        };
        send(&mut client);
        if case.half_close {
            client.shutdown_write();
        }
        for (at, &status) in case.answers.iter().enumerate() {
            let method = if case.head && at == 0 { "HEAD" } else { "GET" };
            let answer = if status < 200 {
                client.try_head()
            } else {
                client.try_response(method)
            };
            let answer = answer.map_err(|error| format!("answer {at}: {error}"))?;
            if answer.status != status {
                return Err(format!("{} instead of {status}: {answer:?}", answer.status));
            }
            let closes = case.close && at + 1 == case.answers.len();
            own(&answer, method, &case.reason, closes)?;
            if status < 200 {
                send(&mut client);
            }
        }
        let mut expected: Vec<String> = case
            .forwarded
            .iter()
            .map(|text| self.expected(text))
            .collect();
        if case.close {
            if !client.is_closed() {
                return Err("the connection stays open".to_owned());
            }
        } else {
            client.ask("/probe");
            let probe = client.try_response("GET").map(|answer| answer.status);
            if !matches!(probe, Ok(200)) {
                return Err(format!("the connection does not go on: {probe:?}"));
            }
            expected.push(self.expected("GET /probe HTTP/1.1\r\nhost: app\r\n{added}\r\n"));
        }
        let got = self.recorder.take();
        let shown: Vec<String> = got.iter().map(|got| normal(&got.bytes)).collect();
        if shown != expected {
            return Err(format!(
                "the backend got\n  {shown:?}\ninstead of\n  {expected:?}"
            ));
        }
        match got.iter().find(|got| got.reads > 1) {
            Some(got) => Err(format!("in {} pieces: {}", got.reads, show(&got.bytes))),
            None => Ok(()),
        }
    }
}

const OURS: &str = "x-request-id: *\r\nx-request-start: *\r\n";

/// An answer of tidegate's own says why, in both ways, and whether it is the last.
fn own(answer: &Response, method: &str, reason: &str, closes: bool) -> Result<(), String> {
    if answer.reason().is_empty() {
        return match answer.status {
            100 | 200 => Ok(()),
            _ => Err(format!("no reason: {answer:?}")),
        };
    }
    let fine = answer.reason() == reason
        && answer.header("content-type").as_deref() == Some("application/problem+json")
        && answer.header("cache-control").as_deref() == Some("no-store")
        && answer.header("date").is_some()
        && (answer.header("connection").as_deref() == Some("close")) == closes;
    if method == "HEAD" {
        return fine.then_some(()).ok_or_else(|| format!("{answer:?}"));
    }
    let document = answer.json();
    let fine = fine
        && document["reason"] == reason
        && document["status"] == answer.status
        && document["request_id"]
            .as_str()
            .is_some_and(|id| id.len() == 32)
        && document["request_id"] == answer.header("x-request-id").unwrap_or_default();
    fine.then_some(())
        .ok_or_else(|| format!("{answer:?} {document}"))
}

/// As text, without what differs from one request to the next.
fn normal(request: &[u8]) -> String {
    let end = request.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, rest) = request.split_at(end.unwrap_or(request.len()));
    let lines: Vec<String> = show(head)
        .split("\\r\\n")
        .map(|line| match line.split_once(": ") {
            Some((name @ ("x-request-id" | "x-request-start"), _)) => format!("{name}: *"),
            _ => line.to_owned(),
        })
        .collect();
    lines.join("\\r\\n") + &show(rest)
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn whole(bytes: &[u8]) -> Vec<&[u8]> {
    vec![bytes]
}

fn byte_by_byte(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.chunks(1).collect()
}

/// Each CR ends a piece, and each LF.
fn at_line_ends(bytes: &[u8]) -> Vec<&[u8]> {
    bytes
        .split_inclusive(|&byte| byte == b'\r' || byte == b'\n')
        .collect()
}

/// Runs `work` on several lanes at once, and then looks at what they leave behind.
fn on_lanes(work: impl Fn(usize, &Lane) -> Vec<String> + Sync) -> Vec<String> {
    common::on_lanes(LANES, |number| {
        let lane = Lane::start();
        let mut failures = work(number, &lane);
        lane.tidegate.until_idle();
        lane.tidegate
            .until_metric("tidegate_client_connections", &[], 0.0);
        lane.tidegate
            .until_metric("tidegate_buffered_bytes", &[], 0.0);
        if lane.tidegate.log().contains("panicked") {
            failures.push(lane.tidegate.log());
        }
        failures
    })
}

#[test]
fn the_table_at_several_segmentations() {
    let cases = cases::requests();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have the same name");
    let failures = on_lanes(|number, lane| {
        let mut failures = Vec::new();
        for case in cases.iter().skip(number).step_by(LANES) {
            let all: &[(&str, Segments)] = &[
                ("whole", whole),
                ("at line ends", at_line_ends),
                ("byte by byte", byte_by_byte),
            ];
            let some = if case.only == "whole" { &all[..1] } else { all };
            for (segmentation, segments) in some {
                if let Err(why) = lane.check(case, *segments) {
                    failures.push(format!("{}, {segmentation}: {why}", case.name));
                    lane.recorder.take();
                }
            }
        }
        failures
    });
    assert!(
        failures.is_empty(),
        "{} failures\n{}",
        failures.len(),
        failures.join("\n")
    );
}

const SPLICES: [&str; 24] = [
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    ":",
    ",",
    ";",
    "0\r\n\r\n",
    "\r\n\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: x\r\n",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "Host: evil\r\n",
    "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n",
    "HTTP/1.0",
    "5\r\nhello\r\n",
    "ffffffffffffffff",
    "\u{ff}",
];

fn mutate(mut bytes: Vec<u8>, other: &[u8], dice: &mut Dice) -> Vec<u8> {
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(bytes.len() + 1);
        let end = bytes.len().min(at + 1 + dice.roll(12));
        match dice.roll(6) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            2 if at < bytes.len() => bytes[at] = dice.roll(256) as u8,
            3 => {
                let from = dice.roll(other.len() + 1);
                let to = other.len().min(from + 1 + dice.roll(40));
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
            _ => {
                let splice = self::bytes(SPLICES[dice.roll(SPLICES.len())]);
                drop(bytes.splice(at..at, splice));
            }
        }
    }
    bytes
}

/// What no bytes may bring about: more requests than there are, a request that is not one, an answer
/// without end.
fn survives(lane: &Lane, mutant: &[u8]) -> Result<(), String> {
    let rules = naive::Rules {
        head: 64 * 1024,
        fields: 100,
        extensions: 4096,
        trailers: 8192,
    };
    let (requests, _) = naive::messages(mutant, rules);
    let mut client = lane.tidegate.client();
    client.set_timeout(HANG);
    let _ = client.try_send(mutant);
    client.shutdown_write();
    let mut answers = 0;
    loop {
        // Requests may be HEADs by now, so that bodies cannot be told apart: heads are counted.
        match client.read_some() {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(format!("it hangs: {error}")),
        }
    }
    let all = String::from_utf8_lossy(&client.taken()).into_owned();
    for line in all.split("HTTP/1.").skip(1) {
        match line.get(2..5) {
            Some("100") => {}
            Some("200" | "400" | "413" | "414" | "417" | "431" | "501" | "505") => answers += 1,
            _ => return Err(format!("a strange answer: {all:?}")),
        }
    }
    let got = lane.recorder.take();
    if got.len() > requests.len() || answers > requests.len() + 1 {
        let shown: Vec<_> = got.iter().map(|got| show(&got.bytes)).collect();
        return Err(format!(
            "{} requests became {shown:?}, {answers} answers",
            requests.len()
        ));
    }
    // With what tidegate adds.
    let rules = naive::Rules {
        head: rules.head + 1024,
        fields: rules.fields + 10,
        ..rules
    };
    for got in got {
        let (ends, bad) = naive::messages(&got.bytes, rules);
        if bad || ends != [got.bytes.len()] || got.reads > 1 {
            return Err(format!("the backend got {:?}", show(&got.bytes)));
        }
    }
    Ok(())
}

#[test]
fn mutants_never_become_two_requests() {
    let seed = dice::seed("CONFORMANCE_SEED");
    let corpus: Vec<Vec<u8>> = cases::requests()
        .iter()
        .map(|case| case.pieces().concat())
        .filter(|bytes| bytes.len() < 2000)
        .collect();
    let failures = on_lanes(|number, lane| {
        let mut failures = Vec::new();
        let mut dice = Dice::new(seed * LANES as u64 + number as u64);
        for turn in 0..MUTANTS / LANES {
            let one = corpus[dice.roll(corpus.len())].clone();
            let other = &corpus[dice.roll(corpus.len())];
            let mutant = mutate(one, other, &mut dice);
            if let Err(why) = survives(lane, &mutant) {
                failures.push(format!(
                    "CONFORMANCE_SEED={seed}, lane {number}, mutant {turn}: {}\n  {why}",
                    show(&mutant)
                ));
            }
        }
        failures
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

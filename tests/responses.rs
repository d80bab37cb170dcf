//! What backends send against what clients get: the table in `tests/conformance/responses.toml`, at
//! several segmentations, with connections to the backend used once and reused.
#![allow(missing_docs)]

mod common;

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{
    Client, PATIENCE, Response, Tidegate,
    cases::{self, bytes, plain},
    until,
};
use serde::Deserialize;

/// As many pairs of a tidegate and a backend work through the cases at once.
const LANES: usize = 4;
/// Longer messages are not sent byte by byte.
const SHORT: usize = 3_000;
/// Between the two pieces of a message, and before what comes later.
const GAP: Duration = Duration::from_millis(3);
const LATER: Duration = Duration::from_millis(20);
/// By then, what was sent has been read.
const SETTLED: Duration = Duration::from_millis(20);

/// See the table's head.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default = "get")]
    method: String,
    #[serde(default = "newest")]
    version: String,
    #[serde(default)]
    fields: String,
    send: String,
    status: u16,
    body: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    then: Then,
    #[serde(default)]
    later: String,
    #[serde(default)]
    early: bool,
    #[serde(default)]
    pause: u64,
    #[serde(default)]
    upload: usize,
    #[serde(default)]
    leaves: bool,
    #[serde(default)]
    cut: bool,
    #[serde(default)]
    has: Vec<String>,
    #[serde(default)]
    lacks: Vec<String>,
    reused: Option<bool>,
    #[serde(default)]
    interim: Vec<String>,
    #[serde(default)]
    only: String,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Then {
    #[default]
    Wait,
    Close,
    Reset,
    /// Neither a byte nor an end.
    Silent,
    /// A byte now and then.
    Drip,
}

fn newest() -> String {
    "1.1".to_owned()
}

fn get() -> String {
    "GET".to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Segments {
    Whole,
    Halves,
    Bytes,
}

/// A backend that answers `/case/NUMBER/SEGMENTS` by the table, and everything else with its path.
struct Backend {
    address: String,
    seen: Arc<Mutex<Seen>>,
}

/// What has become of the requests so far.
#[derive(Default)]
struct Seen {
    /// The connection's number and the path of each.
    served: Vec<(usize, String)>,
    /// The paths of those for which all is sent that will be.
    sent: BTreeSet<String>,
    /// The paths of those whose clients have left.
    left: BTreeSet<String>,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    fn start(cases: Arc<Vec<Case>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let backend = Self {
            address,
            seen: seen.clone(),
        };
        // It ends with the process.
        std::thread::spawn(move || {
            let connections = AtomicUsize::new(0);
            for stream in listener.incoming().flatten() {
                let number = connections.fetch_add(1, SeqCst);
                let (cases, seen) = (cases.clone(), seen.clone());
                std::thread::spawn(move || {
                    let _ = serve(&stream, number, &cases, &seen);
                    drop(stream);
                    let mut seen = lock(&seen);
                    let ended = seen.served.iter().rev().find(|(known, _)| *known == number);
                    let ended = ended.map(|(_, path)| path.clone());
                    seen.sent.extend(ended);
                });
            }
        });
        backend
    }

    /// On which connection this path was asked for the last time.
    fn connection_of(&self, path: &str) -> Option<usize> {
        let seen = lock(&self.seen);
        let found = seen.served.iter().rev().find(|(_, known)| known == path);
        found.map(|(connection, _)| *connection)
    }

    /// Whether nothing more comes for this path.
    fn has_sent(&self, path: &str) -> bool {
        lock(&self.seen).sent.contains(path)
    }
}

fn serve(
    mut stream: &TcpStream,
    number: usize,
    cases: &[Case],
    seen: &Mutex<Seen>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        lock(seen).served.push((number, path.clone()));
        let Some((case, segments)) = named(&path, cases) else {
            let length = path.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{path}");
            stream.write_all(answer.as_bytes())?;
            continue;
        };
        if !case.early {
            let mut body = stream.take(case.upload as u64);
            io::copy(&mut body, &mut io::sink())?;
        }
        if case.leaves {
            until("the client has left", || lock(seen).left.contains(&path));
        }
        std::thread::sleep(Duration::from_millis(case.pause));
        send(stream, &bytes(&case.send), segments)?;
        if !case.later.is_empty() {
            std::thread::sleep(LATER);
            send(stream, &bytes(&case.later), segments)?;
        }
        // An end is noted when it has come.
        if !matches!(case.then, Then::Close | Then::Reset) {
            lock(seen).sent.insert(path);
        }
        match case.then {
            Then::Wait if case.early => {
                io::copy(&mut stream.take(case.upload as u64), &mut io::sink())?;
            }
            Then::Wait => {}
            Then::Close => return stream.shutdown(Shutdown::Write),
            Then::Reset => {
                // The table's own pace: what was sent has arrived.
                std::thread::sleep(GAP);
                return socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
            Then::Silent => {
                io::copy(&mut stream, &mut io::sink())?;
                return Ok(());
            }
            Then::Drip => loop {
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(b"a")?;
            },
        }
    }
}

fn send(mut stream: &TcpStream, message: &[u8], segments: Segments) -> io::Result<()> {
    match segments {
        Segments::Whole => stream.write_all(message),
        Segments::Halves => {
            let (one, two) = message.split_at(message.len() / 2);
            stream.write_all(one)?;
            std::thread::sleep(GAP);
            stream.write_all(two)
        }
        Segments::Bytes => message
            .iter()
            .try_for_each(|byte| stream.write_all(std::slice::from_ref(byte))),
    }
}

fn named<'a>(path: &str, cases: &'a [Case]) -> Option<(&'a Case, Segments)> {
    let rest = path.strip_prefix("/case/")?;
    let (number, segments) = rest.split_once('/')?;
    let segments = match segments {
        "whole" => Segments::Whole,
        "halves" => Segments::Halves,
        _ => Segments::Bytes,
    };
    Some((cases.get(number.parse::<usize>().ok()?)?, segments))
}

/// A tidegate, the backend behind it, and how many requests there have been.
struct Lane {
    tidegate: Tidegate,
    backend: Backend,
    keepalive: bool,
    asked: AtomicUsize,
}

impl Lane {
    fn start(cases: Arc<Vec<Case>>, keepalive: bool) -> Self {
        let backend = Backend::start(cases);
        let tidegate = Tidegate::to(&backend.address)
            .limit(50)
            .set(format!("backend.keepalive={keepalive}"))
            .set("backend.keepalive_idle=20s")
            .set("backend.response_timeout=1s")
            .set("backend.read_timeout=1s")
            .set("backend.orphan_max=300ms")
            .start();
        Self {
            tidegate,
            backend,
            keepalive,
            asked: AtomicUsize::new(0),
        }
    }

    fn check(&self, number: usize, case: &Case, segments: &str) -> Result<(), String> {
        let path = format!("/case/{number}/{segments}");
        let mut client = self.tidegate.client();
        let mut request = format!(
            "{} {path} HTTP/{}\r\nHost: app\r\n{}",
            case.method, case.version, case.fields
        );
        if case.upload > 0 {
            request += &format!("Content-Length: {}\r\n", case.upload);
        }
        request += "\r\n";
        client.send(&request);
        // A client that is answered early cannot send the rest.
        let _ = client.try_send(vec![b'u'; case.upload]);

        let mut stays = true;
        if case.leaves {
            until("the backend is asked", || {
                self.backend.connection_of(&path).is_some()
            });
            drop(client);
            lock(&self.backend.seen).left.insert(path.clone());
            client = self.tidegate.client();
        } else {
            let answer = client.try_response(&case.method);
            stays = answer.as_ref().is_ok_and(|answer| {
                !case.early
                    && case.version != "1.0"
                    && answer.header("connection").as_deref() != Some("close")
            });
            judge(case, answer)?;
        }
        let of_case = self.backend.connection_of(&path);
        if of_case.is_none() {
            return Err("the backend was not asked".to_owned());
        }
        let settled = || {
            until("all is sent", || self.backend.has_sent(&path));
            std::thread::sleep(SETTLED);
        };
        if !case.leaves && (!case.later.is_empty() || case.reused == Some(false)) {
            // Nobody can tell what comes too late from the answer to a request that is on its way: that
            // is why connections are not reused unless the configuration says so.
            settled();
        }
        let first = self.innocent(if stays { Some(&mut client) } else { None })?;
        self.innocent(None)?;
        if case.leaves {
            settled();
            self.innocent(Some(&mut client))?;
        }
        match case.reused {
            Some(true) if self.keepalive && Some(first) != of_case => {
                Err("the connection to the backend was not reused".to_owned())
            }
            Some(false) if Some(first) == of_case => {
                Err("the connection to the backend was reused".to_owned())
            }
            _ if !self.keepalive && Some(first) == of_case => {
                Err("a connection was reused that nobody asked to be kept".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Another request, which must get its own answer; the number of its connection.
    fn innocent(&self, client: Option<&mut Client>) -> Result<usize, String> {
        let path = format!("/innocent/{}", self.asked.fetch_add(1, SeqCst));
        let mut own = None;
        let client = match client {
            Some(client) => client,
            None => own.insert(self.tidegate.client()),
        };
        client.ask(&path);
        let answer = client
            .try_response("GET")
            .map_err(|error| format!("an innocent request has no answer: {error}"))?;
        if (answer.status, answer.text()) != (200, path.clone()) {
            return Err(format!("an innocent request got {answer:?}"));
        }
        self.backend
            .connection_of(&path)
            .ok_or_else(|| "nobody asked the backend".to_owned())
    }
}

fn judge(case: &Case, answer: io::Result<Response>) -> Result<(), String> {
    let answer = match answer {
        Err(_) if case.cut => return Ok(()),
        Err(error) => return Err(format!("no whole answer: {error}")),
        Ok(answer) => answer,
    };
    if answer.status != case.status || answer.reason() != case.reason {
        return Err(format!("{answer:?}"));
    }
    let interim = answer.interim.concat();
    let expected: String = case.interim.iter().map(|text| plain(text)).collect();
    if interim != expected && (case.interim.is_empty() || !interim.starts_with(&expected)) {
        return Err(format!("other interim answers: {interim:.300?}"));
    }
    if case.cut && case.status < 500 {
        return Err(format!(
            "the answer is not cut: {:.300}",
            format!("{answer:?}")
        ));
    }
    if let Some(body) = &case.body
        && answer.body != bytes(body)
    {
        return Err(format!("another body: {answer:?}"));
    }
    for field in &case.has {
        let (name, value) = field.split_once(": ").expect("a field");
        let there =
            |(known, of): &(String, String)| known.eq_ignore_ascii_case(name) && of == value;
        if !answer.headers.iter().any(there) {
            return Err(format!("{field} is missing: {}", answer.head));
        }
    }
    match case.lacks.iter().find(|name| answer.header(name).is_some()) {
        Some(name) => Err(format!("{name} is there: {}", answer.head)),
        None => Ok(()),
    }
}

#[test]
fn the_table() {
    let cases: Vec<Case> = cases::read(include_str!("conformance/responses.toml"));
    let cases = Arc::new(cases);
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have the same name");
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let failures = common::on_lanes(LANES, |lane| on_a_lane(&cases, lane));
    assert!(
        failures.is_empty(),
        "{} failures\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn on_a_lane(cases: &Arc<Vec<Case>>, lane: usize) -> Vec<String> {
    let keepalive = lane.is_multiple_of(2);
    let here = Lane::start(cases.clone(), keepalive);
    let mut failures = Vec::new();
    for (number, case) in cases.iter().enumerate().skip(lane / 2).step_by(LANES / 2) {
        let short = bytes(&case.send).len() <= SHORT;
        for segments in ["whole", "halves", "bytes"] {
            let left_out = case.only == segments || case.only.is_empty();
            if !left_out || (segments == "bytes" && !short) {
                continue;
            }
            if let Err(why) = here.check(number, case, segments) {
                failures.push(format!(
                    "{}, {segments}, keepalive {keepalive}: {why:.600}",
                    case.name
                ));
            }
        }
    }
    here.tidegate.until_idle();
    here.tidegate
        .until_metric("tidegate_buffered_bytes", &[], 0.0);
    here.tidegate
        .until_metric("tidegate_orphaned_requests", &[], 0.0);
    if here.tidegate.log().contains("panicked") {
        failures.push(here.tidegate.log());
    }
    failures
}

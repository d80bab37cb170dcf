//! A small blocking HTTP client for the admin address: one request, one connection. The commands
//! that use it are run by health checks every few seconds and should cost next to nothing, hence
//! no runtime.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{clock, config::Address, socket_file};

/// The exit code for a command that could not do its work.
pub(super) const FAILURE: ExitCode = ExitCode::FAILURE;

/// How long a connection, and by default an answer, may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The status code.
    pub(super) status: u16,
    /// The body, decoded.
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }

    /// What an error says: the detail of a problem document, else the body, else the code.
    pub(super) fn complaint(&self) -> String {
        let problem: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        let detail = problem
            .as_ref()
            .and_then(|problem| problem["detail"].as_str());
        match detail {
            Some(detail) => format!("{} ({})", printable(detail), self.status),
            None if self.body.is_empty() => self.status.to_string(),
            None => format!("{} ({})", printable(&self.text()), self.status),
        }
    }
}

/// Text from elsewhere, on one line and without control characters: it goes to a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

/// One line on standard error; a closed one is no reason to panic.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "tidegate: {line}");
}

/// Prints what was asked for.
pub(super) fn print(text: &str) -> ExitCode {
    put(text).err().unwrap_or(ExitCode::SUCCESS)
}

/// The same, for a command that has more to print.
///
/// # Errors
/// The exit code when there is no use in going on: a reader that has seen enough, as of `| head`, is no failure; a full
/// disk is.
pub(super) fn put(text: &str) -> Result<(), ExitCode> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ExitCode::SUCCESS),
        Err(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            Err(FAILURE)
        }
    }
}

/// Sends a request and reads the answer whole. `patience` of None waits for ever, for the answer;
/// connecting takes 5 s at most.
///
/// # Errors
/// When there is no connection, no answer in time, or one that is not HTTP.
pub(super) fn request(
    address: &Address,
    method: &str,
    path: &str,
    patience: Option<Duration>,
) -> io::Result<Answer> {
    let deadline = patience.map(|patience| clock::now() + patience);
    let connecting = patience.unwrap_or(PATIENCE).min(PATIENCE);
    match address {
        Address::Tcp { host, port } => {
            let host = reachable(host);
            let stream = connect(host, *port, connecting)?;
            let name = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            let set = |left| {
                stream.set_read_timeout(left)?;
                stream.set_write_timeout(left)
            };
            exchange(
                &stream,
                set,
                &format!("{name}:{port}"),
                method,
                path,
                deadline,
            )
        }
        Address::Unix(file) => {
            let stream = socket_file::connect(file, connecting)?;
            let set = |left| {
                stream.set_read_timeout(left)?;
                stream.set_write_timeout(left)
            };
            exchange(&stream, set, "localhost", method, path, deadline)
        }
        Address::Fd(name) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("fd:{name} can be listened on only: say with --admin where it can be reached"),
        )),
    }
}

/// Where a server that listens on `host` can be reached from this machine.
fn reachable(host: &str) -> &str {
    match host.trim_start_matches('[').trim_end_matches(']') {
        "" | "0.0.0.0" | "*" => "127.0.0.1",
        "::" => "::1",
        other => other,
    }
}

fn connect(host: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange<S>(
    mut stream: S,
    set_timeout: impl Fn(Option<Duration>) -> io::Result<()>,
    host: &str,
    method: &str,
    path: &str,
    deadline: Option<Instant>,
) -> io::Result<Answer>
where
    S: Read + Write,
{
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate\r\nAccept: */*\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    set_timeout(deadline.map(left).transpose()?)?;
    stream.write_all(head.as_bytes())?;
    let mut received = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        // Set anew each time: a server that trickles does not stretch the deadline.
        set_timeout(deadline.map(left).transpose()?)?;
        let count = match stream.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // What a timeout is called differs between platforms.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_late()),
            Err(error) => return Err(error),
        };
        received.extend_from_slice(&chunk[..count]);
        if let Some(answer) = parse(&received, count == 0)? {
            return Ok(answer);
        }
        if received.len() > MAX_ANSWER {
            return Err(malformed("the answer is too long"));
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(clock::now());
    if left.is_zero() {
        Err(too_late())
    } else {
        Ok(left)
    }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The answer in `received`, or None while it is not complete.
fn parse(received: &[u8], at_end: bool) -> io::Result<Option<Answer>> {
    let incomplete = || {
        if at_end {
            Err(malformed("the answer is cut short"))
        } else {
            Ok(None)
        }
    };
    let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return incomplete();
    };
    let head =
        std::str::from_utf8(&received[..end]).map_err(|_| malformed("not an HTTP answer"))?;
    let body = &received[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| malformed("not an HTTP answer"))?;
    let field = |wanted: &str| {
        head.split("\r\n").skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    if field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return match dechunk(body)? {
            Some(body) => Ok(Some(Answer { status, body })),
            None => incomplete(),
        };
    }
    if let Some(length) = field("content-length") {
        let length: usize = length
            .parse()
            .map_err(|_| malformed("not an HTTP answer"))?;
        return match body.get(..length) {
            Some(body) => Ok(Some(Answer {
                status,
                body: body.to_vec(),
            })),
            None => incomplete(),
        };
    }
    Ok(at_end.then(|| Answer {
        status,
        body: body.to_vec(),
    }))
}

/// A chunked body, decoded; None while it is not complete. Trailers are ignored.
fn dechunk(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|bytes| bytes == b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|line| line.split(';').next())
            .and_then(|size| usize::from_str_radix(size.trim(), 16).ok())
            .filter(|size| *size <= MAX_ANSWER)
            .ok_or_else(|| malformed("not a chunked body"))?;
        if size == 0 {
            return Ok(Some(body));
        }
        let Some(chunk) = rest[end + 2..].get(..size + 2) else {
            return Ok(None);
        };
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::TcpListener;

    use super::*;

    type Served = (Address, std::thread::JoinHandle<Vec<String>>);

    /// A server that gives each connection the next of these answers; the requests come back.
    pub(in crate::cli) fn serve(answers: Vec<&'static str>) -> Served {
        let (mut address, thread) = serve_at("127.0.0.1:0", answers).unwrap();
        // As in a configuration that listens on every address.
        if let Address::Tcp { host, .. } = &mut address {
            *host = "0.0.0.0".into();
        }
        (address, thread)
    }

    /// The same, there; None where this machine has no such address.
    pub(in crate::cli) fn serve_at(at: &str, answers: Vec<&'static str>) -> Option<Served> {
        let listener = TcpListener::bind(at).ok()?;
        let own = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = [0; 4096];
                let count = stream.read(&mut head).unwrap();
                let line = String::from_utf8_lossy(&head[..count]);
                requests.push(line.split("\r\n").next().unwrap_or_default().to_owned());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        let (host, port) = (own.ip().to_string(), own.port());
        Some((Address::Tcp { host, port }, thread))
    }

    fn parsed(text: &str, at_end: bool) -> io::Result<Option<(u16, String)>> {
        Ok(parse(text.as_bytes(), at_end)?.map(|answer| (answer.status, answer.text())))
    }

    #[test]
    fn bodies_in_all_their_framings() {
        let whole = |text| parsed(text, false).unwrap();
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(whole(length), Some((200, "abc".into())));
        assert_eq!(whole(&length[..length.len() - 1]), None);
        let chunked = "HTTP/1.1 503 X\r\ntransfer-encoding: Chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(whole(chunked), Some((503, "abc".into())));
        for cut in 0..chunked.len() - 4 {
            assert_eq!(whole(&chunked[..cut]), None, "{cut}");
        }
        let to_end = "HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!(whole(to_end), None);
        assert_eq!(parsed(to_end, true).unwrap(), Some((200, "abc".into())));
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for (text, at_end) in [
            ("SSH-2.0-x\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                false,
            ),
            ("HTTP/1.1 200 OK\r\n", true),
            ("", true),
        ] {
            assert!(parsed(text, at_end).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_full_backlog_costs_no_more_than_the_patience() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _held = socket_file::tests::full_backlog(&path);
        let patience = Some(Duration::from_millis(50));
        let error = request(&Address::Unix(path), "GET", "/", patience).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_silent_server_costs_no_more_than_the_patience() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = Address::Tcp {
            host: "127.0.0.1".into(),
            port,
        };
        let error = request(&address, "GET", "/", Some(Duration::from_millis(50))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

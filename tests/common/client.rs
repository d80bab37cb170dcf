//! A raw HTTP/1 client: it sends the bytes it is given and reads one answer after the other.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::Value;

use super::PATIENCE;

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    read: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status line and the fields, as they came.
    pub head: String,
    pub status: u16,
    /// In their order; names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The heads of the interim answers before it, as they came.
    pub interim: Vec<String>,
}

impl Response {
    /// A field's value; several lines are joined with a comma.
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}{}", self.head, self.text()))
    }

    /// `X-Tidegate-Reason`; empty if the answer is the backend's.
    pub fn reason(&self) -> String {
        self.header("x-tidegate-reason").unwrap_or_default()
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Client {
    /// To `host:port` or `unix:/path`.
    pub fn try_connect(address: &str) -> io::Result<Self> {
        let stream = match address.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Unix(stream)
            }
            None => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Tcp(stream)
            }
        };
        Ok(Self {
            stream,
            read: Vec::new(),
        })
    }

    #[track_caller]
    pub fn connect(address: &str) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// How long a read may wait.
    pub fn set_timeout(&self, timeout: Duration) {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
        .expect("a timeout");
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes.as_ref()),
            Stream::Unix(stream) => stream.write_all(bytes.as_ref()),
        }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes).expect("the server takes it");
        self
    }

    /// Says that nothing more will be sent.
    pub fn shutdown_write(&mut self) {
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Leaves at once, whatever is under way: other handles find it closed.
    pub fn leave(&self) {
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Another handle of the same connection, to write from another thread. What was read ahead
    /// stays here.
    pub fn writer(&self) -> Self {
        let stream = match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone().expect("a handle")),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone().expect("a handle")),
        };
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// What is there, at least a byte; 0 at the end.
    pub fn read_some(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 65536];
        let count = loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(&mut buffer),
                Stream::Unix(stream) => stream.read(&mut buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.read.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// Everything that was read and not yet taken.
    pub fn taken(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }

    fn fill(&mut self) -> io::Result<()> {
        match self.read_some()? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < count {
            self.fill()?;
        }
        let rest = self.read.split_off(count);
        Ok(std::mem::replace(&mut self.read, rest))
    }

    /// Up to and with `mark`.
    pub fn take_through(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        let mut looked = 0;
        loop {
            let from = looked.min(self.read.len());
            if let Some(at) = self.read[from..]
                .windows(mark.len())
                .position(|window| window == mark)
            {
                return self.take(from + at + mark.len());
            }
            looked = (self.read.len() + 1).saturating_sub(mark.len());
            self.fill()?;
        }
    }

    /// Whether the server has closed its side: waits for it, and wants no byte before it.
    pub fn is_closed(&mut self) -> bool {
        self.read.is_empty()
            && match self.read_some() {
                Ok(count) => count == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            }
    }

    /// A head: of an interim answer too.
    pub fn try_head(&mut self) -> io::Result<Response> {
        let head = self.take_through(b"\r\n\r\n")?;
        // Latin-1: what is not ASCII is for nobody to interpret.
        let head: String = head.into_iter().map(char::from).collect();
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let status = line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5))
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| invalid(format!("not a status line: {line:?}")))?;
        let headers = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                line.split_once(':')
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                    .ok_or_else(|| invalid(format!("not a field: {line:?}")))
            })
            .collect::<io::Result<_>>()?;
        Ok(Response {
            status,
            headers,
            body: Vec::new(),
            interim: Vec::new(),
            head,
        })
    }

    /// The next answer, whole. `to` is the method of its request: an answer to HEAD has no body.
    pub fn try_response(&mut self, to: &str) -> io::Result<Response> {
        let mut response = self.try_head()?;
        let mut interim = Vec::new();
        while response.status < 200 {
            interim.push(response.head);
            response = self.try_head()?;
        }
        response.interim = interim;
        if to == "HEAD" || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        let chunked = response
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        response.body = if chunked {
            self.take_chunked()?
        } else if let Some(length) = response.header("content-length") {
            let length = length
                .parse()
                .map_err(|_| invalid(format!("not a length: {length}")))?;
            self.take(length)?
        } else {
            while self.read_some()? > 0 {}
            self.taken()
        };
        Ok(response)
    }

    /// The next chunk; empty at the end.
    pub fn take_chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.take_through(b"\r\n")?;
        let line = String::from_utf8_lossy(&line);
        let size = line.trim().split(';').next().unwrap_or_default();
        let size =
            usize::from_str_radix(size, 16).map_err(|_| invalid(format!("not a size: {line}")))?;
        if size == 0 {
            while self.take_through(b"\r\n")? != b"\r\n" {}
            return Ok(Vec::new());
        }
        let mut chunk = self.take(size + 2)?;
        chunk.truncate(size);
        Ok(chunk)
    }

    fn take_chunked(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let chunk = self.take_chunk()?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend_from_slice(&chunk);
        }
    }

    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Response {
        self.try_response(method)
            .unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Sends a GET and keeps the connection.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.ask(path);
        self.response()
    }

    /// Sends a GET, and does not wait for the answer.
    #[track_caller]
    pub fn ask(&mut self, path: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"))
    }
}

/// A whole request over a connection of its own.
pub fn try_request(
    address: &str,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut client = Client::try_connect(address)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || matches!(method, "POST" | "PUT") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    client.try_send(bytes)?;
    client.try_response(method)
}

/// A whole request over a connection of its own.
#[track_caller]
pub fn request(
    address: &str,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &[u8],
) -> Response {
    try_request(address, method, path, fields, body)
        .unwrap_or_else(|error| panic!("{method} {path} at {address}: {error}"))
}

pub fn try_get(address: &str, path: &str) -> io::Result<Response> {
    try_request(address, "GET", path, &[], &[])
}

#[track_caller]
pub fn get(address: &str, path: &str) -> Response {
    request(address, "GET", path, &[], &[])
}

//! A raw HTTP/2 client: it sends the frames it is given, right or wrong, and reads what comes.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use super::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// What `INITIAL_WINDOW_SIZE` is called in SETTINGS.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A head, each field as a literal without an index.
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// RFC 7541 5.2, as it is.
fn text(block: &mut Vec<u8>, text: &str) {
    match text.len().checked_sub(127) {
        None => block.push(text.len() as u8),
        Some(mut rest) => {
            block.push(127);
            while rest >= 128 {
                block.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            block.push(rest as u8);
        }
    }
    block.extend(text.as_bytes());
}

/// A request's head, with these fields behind what each has.
pub fn head(method: &str, path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    let mut block = fields(&[
        (":method", method),
        (":scheme", "http"),
        (":authority", "app"),
        (":path", path),
    ]);
    block.extend(fields(extra));
    block
}

/// A GET's head.
pub fn get(path: &str) -> Vec<u8> {
    head("GET", path, &[])
}

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let bytes = self.payload[at..at + 4].try_into().expect("four bytes");
        u32::from_be_bytes(bytes)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Http2 {
    stream: TcpStream,
}

impl Http2 {
    /// Without a byte sent.
    #[track_caller]
    pub fn silent(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it accepts");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.set_write_timeout(Some(PATIENCE)).expect("an option");
        Self { stream }
    }

    /// After the preface, with these settings.
    #[track_caller]
    pub fn connect(address: &str, settings: &[(u16, u32)]) -> Self {
        let mut client = Self::silent(address);
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        client.send(PREFACE);
        client.send(frame(SETTINGS, 0, 0, &payload));
        client
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes).expect("it reads");
        self
    }

    /// A GET on this stream.
    #[track_caller]
    pub fn get(&mut self, stream: u32, path: &str) -> &mut Self {
        self.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &get(path)))
    }

    /// How long a read may wait.
    pub fn set_timeout(&self, timeout: Duration) {
        self.stream
            .set_read_timeout(Some(timeout))
            .expect("an option");
    }

    /// Another handle, to read while this one writes.
    pub fn reader(&self) -> Self {
        Self {
            stream: self.stream.try_clone().expect("a handle"),
        }
    }

    /// Ends it.
    pub fn shutdown(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The next frame, whatever it is.
    pub fn try_next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, s, t, u, v] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([s, t, u, v]),
            payload,
        })
    }

    /// The next frame of one of these kinds; SETTINGS and PING are answered meanwhile.
    #[track_caller]
    pub fn next(&mut self, kinds: &[u8]) -> Frame {
        loop {
            let next = self.try_next().expect("a frame");
            if next.flags & ACK == 0 && matches!(next.kind, SETTINGS | PING) {
                let payload = if next.kind == PING {
                    &next.payload[..]
                } else {
                    &[]
                };
                let _ = self.try_send(frame(next.kind, ACK, 0, payload));
            }
            if kinds.contains(&next.kind) {
                return next;
            }
        }
    }

    /// Reads to the end, answering as [`Http2::next`] does: the frames that came, without SETTINGS.
    pub fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(next) = self.try_next() {
            if next.kind == PING && next.flags & ACK == 0 {
                let _ = self.try_send(frame(PING, ACK, 0, &next.payload));
            }
            if next.kind != SETTINGS {
                frames.push(next);
            }
        }
        frames
    }
}

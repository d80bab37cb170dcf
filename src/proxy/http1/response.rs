//! From an answer to bytes: its head, and its body as the head frames it. RFC 9112 6.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;

use crate::{
    backend::{self, Usual, can_have_body, line, members},
    proxy::{date, hygiene::is_trailer},
};

/// Room for an ordinary head: one allocation.
const HEAD: usize = 1024;
/// A part of a body up to this size is copied behind what is to be written already, bytes.
const COPIED_MAX: usize = 4 * 1024;
/// No more parts are taken when so many bytes are to be written.
const ENOUGH: usize = 16 * 1024;
/// Room for as much as there can be of small parts, with the lines around the last of them, bytes.
const MOST: usize = ENOUGH + COPIED_MAX + 64;

/// What a request says of its answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// It is for the head alone.
    pub head: bool,
    /// Its client speaks HTTP/1.0.
    pub http10: bool,
    /// Its client takes trailers.
    pub trailers: bool,
}

/// How long an answer's body is, by the body itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Nothing will come.
    None,
    /// So many bytes.
    Known(u64),
    /// Nobody knows.
    Unknown,
}

/// How a body goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes are to come.
    Length(u64),
    /// In chunks, and behind them these trailers if there are any.
    Chunked(Vec<HeaderName>),
    /// Up to the connection's end.
    UntilClose,
}

/// What is to be written, in this order.
#[derive(Debug, Default)]
pub struct Outgoing {
    text: Vec<u8>,
    /// So much of it has been written.
    at: usize,
    data: Bytes,
    tail: &'static [u8],
}

impl Outgoing {
    /// Whether everything has been written.
    pub fn is_empty(&self) -> bool {
        self.at == self.text.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether more may be added before something is written.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty() && self.text.len() - self.at < ENOUGH
    }

    /// The three parts.
    pub fn parts(&self) -> [&[u8]; 3] {
        [&self.text[self.at..], &self.data, self.tail]
    }

    /// Forgets what has been written.
    pub fn advance(&mut self, written: usize) {
        let of_text = written.min(self.text.len() - self.at);
        self.at += of_text;
        let of_data = (written - of_text).min(self.data.len());
        if of_data > 0 {
            drop(self.data.split_to(of_data));
        }
        self.tail = &self.tail[written - of_text - of_data..];
        if self.at == self.text.len() {
            self.text.clear();
            self.at = 0;
        }
    }

    /// How much is to be written, bytes.
    pub fn len(&self) -> usize {
        self.text.len() - self.at + self.data.len() + self.tail.len()
    }

    /// Adds an interim answer.
    pub fn push_interim(&mut self, interim: &Response<()>) {
        status_line(interim, Asked::default(), &mut self.text);
        for (name, value) in interim.headers() {
            line(name.as_str(), value.as_bytes(), &mut self.text);
        }
        self.text.extend_from_slice(b"\r\n");
    }

    /// Adds bytes that are not a body's.
    pub fn push(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(bytes);
    }

    /// Adds a part of a body, framed. (More than was declared is cut off.)
    pub fn push_data(&mut self, mut data: Bytes, framing: &mut Framing) {
        match framing {
            Framing::Length(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            Framing::Chunked(_) if data.is_empty() => return,
            Framing::Chunked(_) => {
                backend::chunk(data.len(), &mut self.text);
                self.tail = b"\r\n";
            }
            Framing::UntilClose => {}
        }
        if data.len() > COPIED_MAX {
            self.data = data;
        } else {
            self.make_room(data.len());
            self.text.extend_from_slice(&data);
            self.text.extend_from_slice(std::mem::take(&mut self.tail));
        }
    }

    /// Room for a small part, without as much again as a vector takes that grows by itself, and without what
    /// has been written.
    fn make_room(&mut self, part: usize) {
        if self.text.capacity() - self.text.len() >= part + 64 {
            return;
        }
        if self.at > 0 {
            drop(self.text.drain(..self.at));
            self.at = 0;
        }
        if self.text.len() + part > COPIED_MAX {
            self.text
                .reserve_exact(MOST.saturating_sub(self.text.len()));
        }
    }

    /// Adds the end of a body; false if it is shorter than was declared.
    pub fn end(&mut self, framing: &Framing, trailers: Option<&HeaderMap>) -> bool {
        match framing {
            Framing::Length(left) => *left == 0,
            Framing::UntilClose => true,
            Framing::Chunked(announced) => {
                if !self.tail.is_empty() && trailers.is_none() {
                    self.tail = b"\r\n0\r\n\r\n";
                    return true;
                }
                debug_assert!(self.data.is_empty(), "trailers come alone");
                self.text.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if announced.contains(name) && is_trailer(name) {
                        line(name.as_str(), value.as_bytes(), &mut self.text);
                    }
                }
                self.text.extend_from_slice(b"\r\n");
                true
            }
        }
    }

    /// Adds an answer's head. How its body goes over the wire, and whether the connection may be used
    /// again afterwards, as far as the head says so: `keep_alive` if nothing is against it.
    pub fn push_head<B>(
        &mut self,
        response: &Response<B>,
        usual: &Usual,
        length: Length,
        asked: Asked,
        mut keep_alive: bool,
    ) -> (Framing, bool) {
        let out = &mut self.text;
        out.reserve(HEAD);
        let status = response.status();
        status_line(response, asked, out);
        out.extend_from_slice(usual.lines.as_bytes());
        let unmodified = status == StatusCode::NOT_MODIFIED;
        let has_body = can_have_body(status) && !asked.head;
        let mut declared = None;
        let (mut dated, mut closes) = (usual.dated, false);
        let mut announced = Vec::new();
        for (name, value) in response.headers() {
            match *name {
                header::CONTENT_LENGTH => {
                    // Without a body they say what GET would have got: RFC 9110 8.6.
                    if length != Length::None || asked.head || unmodified {
                        declared = Some(value);
                    }
                    continue;
                }
                // How a body goes over the wire is decided here.
                header::TRANSFER_ENCODING => continue,
                header::TRAILER if asked.http10 || !has_body => continue,
                header::TRAILER if asked.trailers => {
                    let names = members(value.as_bytes());
                    announced.extend(names.filter_map(|name| HeaderName::from_bytes(name).ok()));
                }
                header::DATE => dated = true,
                header::CONNECTION if value == "close" => {
                    closes = true;
                    keep_alive = false;
                }
                _ => {}
            }
            line(name.as_str(), value.as_bytes(), out);
        }
        let declared = declared.filter(|_| can_have_body(status) || unmodified);
        let framing = match (declared, length) {
            (Some(declared), _) => {
                line("content-length", declared.as_bytes(), out);
                match length {
                    Length::Known(length) => Framing::Length(length),
                    Length::None => Framing::Length(0),
                    Length::Unknown => {
                        // The backend's codec has checked it.
                        Framing::Length(backend::length(declared.as_bytes()).unwrap_or_default())
                    }
                }
            }
            (None, Length::Known(length)) => {
                if can_have_body(status) {
                    content_length(length, out);
                }
                Framing::Length(length)
            }
            (None, Length::None) => {
                if has_body {
                    out.extend_from_slice(b"content-length: 0\r\n");
                }
                Framing::Length(0)
            }
            (None, Length::Unknown) if !has_body => Framing::Length(0),
            (None, Length::Unknown) if asked.http10 => {
                keep_alive = false;
                Framing::UntilClose
            }
            (None, Length::Unknown) => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                Framing::Chunked(announced)
            }
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            keep_alive = false;
        } else if !closes && keep_alive == asked.http10 {
            // What each version takes for granted goes without saying: RFC 9112 9.3.
            out.extend_from_slice(match keep_alive {
                true => b"connection: keep-alive\r\n",
                false => b"connection: close\r\n",
            });
        }
        if !dated {
            line("date", &date::now(), out);
        }
        out.extend_from_slice(b"\r\n");
        match has_body {
            true => (framing, keep_alive),
            false => (Framing::Length(0), keep_alive),
        }
    }
}

fn status_line<B>(response: &Response<B>, asked: Asked, out: &mut Vec<u8>) {
    let status = response.status();
    let reason = response.extensions().get::<ReasonPhrase>();
    if status == StatusCode::OK && reason.is_none() && !asked.http10 {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.extend_from_slice(match asked.http10 {
        true => b"HTTP/1.0 ",
        false => b"HTTP/1.1 ",
    });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(match reason {
        Some(reason) => reason.as_bytes(),
        None => status.canonical_reason().unwrap_or("<none>").as_bytes(),
    });
    out.extend_from_slice(b"\r\n");
}

fn content_length(length: u64, out: &mut Vec<u8>) {
    line(
        "content-length",
        itoa::Buffer::new().format(length).as_bytes(),
        out,
    );
}

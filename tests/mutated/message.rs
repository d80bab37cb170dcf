//! What clients send: good requests in all the forms that they may have, and such as must be refused.

use crate::{
    backend::{BEHAVIOURS, Behaviour, chunks, hash},
    common::{cases::Case, dice::Dice},
};

/// What nobody may take for a request of its own.
pub const SMUGGLED: &[u8] = b"GET /smuggled/Length HTTP/1.1\r\nHost: evil\r\n\r\n";

const METHODS: [&str; 12] = [
    "GET", "GET", "GET", "POST", "POST", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS",
    "PURGE",
];
const SIZES: [usize; 8] = [0, 1, 5, 100, 5000, 90_000, 150_000, 400_000];
/// Fields that change nothing of what the backend is to do.
const FIELDS: [&[u8]; 16] = [
    b"Accept: */*",
    b"Cookie: a=b",
    b"X-Empty:",
    b"X-Spaces: \t v \t w  ",
    b"X-Eight-Bit: \xff\xfe",
    b"Connection: keep-alive",
    b"Connection: X-Foo, keep-alive\r\nX-Foo: 1",
    b"TE: trailers",
    b"Upgrade: h2c",
    b"Upgrade: h2c\r\nConnection: upgrade, http2-settings\r\nHTTP2-Settings: AAMAAABk",
    b"X-Forwarded-For: 192.0.2.1",
    b"Content_Length: 9",
    b"Transfer_Encoding: chunked",
    b"Keep-Alive: timeout=3",
    b"Proxy: http://evil/",
    b"Via: 1.0 somebody",
];

/// One message, and what must become of it.
#[derive(Debug)]
pub struct Message {
    pub id: String,
    pub method: &'static str,
    pub behaviour: Behaviour,
    pub body: u64,
    pub has_body: bool,
    pub http10: bool,
    /// Its client asks for a 100.
    pub expects: bool,
    /// Its client wants no other answer on this connection.
    pub closes: bool,
    /// It must not pass: the status of the refusal.
    pub refused: Option<u16>,
    pub wire: Vec<u8>,
}

/// A name as somebody might write it.
fn case(name: &str, dice: &mut Dice) -> String {
    match dice.roll(4) {
        0 => name.to_ascii_lowercase(),
        1 => name.to_ascii_uppercase(),
        _ => name.to_owned(),
    }
}

fn field(name: &str, value: &str, dice: &mut Dice) -> Vec<u8> {
    let (before, after) = (
        dice.pick(&[" ", "", "\t", "  "]),
        dice.pick(&["", "", " ", "\t "]),
    );
    format!("{}:{before}{value}{after}", case(name, dice)).into_bytes()
}

/// A request that every server must understand. Its body is smaller than `largest`.
pub fn good(id: String, largest: usize, dice: &mut Dice) -> Message {
    let method = METHODS[dice.roll(METHODS.len())];
    let behaviour = BEHAVIOURS[dice.roll(BEHAVIOURS.len())];
    let http10 = dice.once_in(12);
    let query = dice.pick(&["", "", "?", "?q=%0d%0aX:%20y", "?a?b"]);
    let mut target = format!("/{id}/{behaviour:?}{query}");
    if dice.once_in(20) {
        target = format!(
            "{}://other.example:81{target}",
            dice.pick(&["http", "HTTP"])
        );
    }
    let mut fields = vec![field("Host", "app", dice)];
    for _ in 0..dice.roll(3) {
        let one = FIELDS[dice.roll(FIELDS.len())];
        if !fields.iter().any(|known| known == one) {
            fields.push(one.to_vec());
        }
    }
    let (closes, keeps) = (dice.once_in(15), http10 && dice.once_in(2));
    if closes {
        fields.push(field(
            "Connection",
            dice.pick(&["close", "Close", "x-y, close"]),
            dice,
        ));
    } else if keeps {
        fields.push(field("Connection", "keep-alive", dice));
    }
    let wants_body = matches!(method, "POST" | "PUT" | "PATCH" | "PURGE") || dice.once_in(6);
    let mut message = Message {
        id,
        method,
        behaviour,
        body: hash([0_u8; 0]),
        has_body: false,
        http10,
        expects: false,
        closes,
        refused: None,
        wire: Vec::new(),
    };
    let mut body = Vec::new();
    if wants_body {
        let size = if dice.once_in(3) {
            SIZES[dice.roll(SIZES.len())]
        } else {
            dice.roll(200)
        };
        let text: Vec<u8> = match dice.roll(2) {
            0 => SMUGGLED
                .iter()
                .copied()
                .cycle()
                .take(size.min(largest))
                .collect(),
            _ => (0..size.min(largest))
                .map(|_| dice.roll(256) as u8)
                .collect(),
        };
        message.body = hash(&text);
        message.has_body = !text.is_empty();
        if http10 || dice.once_in(2) {
            let zeros = "0".repeat(dice.roll(3));
            fields.push(field(
                "Content-Length",
                &format!("{zeros}{}", text.len()),
                dice,
            ));
            body = text;
        } else {
            fields.push(field(
                "Transfer-Encoding",
                dice.pick(&["chunked", "Chunked"]),
                dice,
            ));
            message.has_body = true;
            body = chunks(&text, dice);
        }
        if dice.once_in(12) {
            fields.push(field("Expect", "100-continue", dice));
            message.expects = !http10;
        }
    }
    for at in (1..fields.len()).rev() {
        fields.swap(at, dice.roll(at + 1));
    }
    let mut wire = Vec::new();
    if dice.once_in(30) {
        // As old clients do after a body: RFC 9112 2.2.
        wire.extend_from_slice(b"\r\n");
    }
    let version = if http10 { "1.0" } else { "1.1" };
    wire.extend_from_slice(format!("{method} {target} HTTP/{version}\r\n").as_bytes());
    for field in fields {
        wire.extend_from_slice(&field);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"\r\n");
    wire.extend_from_slice(&body);
    message.wire = wire;
    message
}

/// A case of the table that is refused for what it is, whatever is around it.
pub fn is_refusal(case: &Case) -> bool {
    let refused = matches!(case.answers[..], [status] if status >= 400);
    refused
        && case.close
        && case.forwarded.is_empty()
        && !case.half_close
        && !case.head
        && case.only.is_empty()
        && case.pieces().len() == 1
        && case.reason != "body_too_large"
}

/// One of those, with what looks like another request behind it.
pub fn from_table(id: String, case: &Case, dice: &mut Dice) -> Message {
    let mut message = good(id, 0, dice);
    message.method = "GET";
    message.refused = case.answers.first().copied();
    message.wire = case.pieces().concat();
    message.wire.extend_from_slice(SMUGGLED);
    message
}

/// A good request, made into one that two servers could read differently.
pub fn spoiled(id: String, dice: &mut Dice) -> Message {
    let mut message = loop {
        let message = good(id.clone(), 1000, dice);
        if !message.wire.starts_with(b"\r\n") {
            break message;
        }
    };
    let wire = &mut message.wire;
    let head = wire
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head")
        + 4;
    let ends: Vec<usize> = (0..head).filter(|&at| wire[at] == b'\r').collect();
    // Not the empty line: what is put before it is a field.
    let lines = &ends[..ends.len() - 1];
    let line = lines[dice.roll(lines.len())];
    let mut insert = |at: usize, bytes: &[u8]| drop(wire.splice(at..at, bytes.iter().copied()));
    let fields = head - 2;
    match dice.roll(12) {
        0 => drop(wire.splice(line..line + 2, *b"\n")),
        1 => drop(wire.splice(line..line + 2, *b"\r")),
        2 => insert(line, b"\0"),
        3 => insert(line, b"\r"),
        4 => insert(fields, b"X : y\r\n"),
        5 => insert(fields, b" folded\r\n"),
        6 => insert(fields, b"Host: evil\r\n"),
        7 => insert(fields, b"Content-Length: 5\r\nContent-Length: 6\r\n"),
        8 => insert(
            fields,
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        ),
        9 => insert(fields, b"Transfer-Encoding: identity, chunked\r\n"),
        10 => insert(
            fields,
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        _ => insert(fields, b"no colon\r\n"),
    }
    wire.extend_from_slice(SMUGGLED);
    message.refused = Some(400);
    message
}

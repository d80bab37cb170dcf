//! Answers a byte at a time.

use std::{io, time::Duration};

use super::Conn;

/// The whole answer, head and all.
pub fn all(pause: Duration) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        drip(conn, super::GOOD, pause)
    }
}

/// Only the body, in one piece with its head's Content-Length.
pub fn body(pause: Duration) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")?;
        drip(conn, "1234567890", pause)
    }
}

/// A chunk for each byte.
pub fn chunks(pause: Duration) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for byte in "1234567890".chars() {
            conn.send(format!("1\r\n{byte}\r\n"))?;
            if !conn.pause(pause) {
                return Ok(());
            }
        }
        conn.send("0\r\n\r\n")
    }
}

fn drip(conn: &mut Conn, text: &str, pause: Duration) -> io::Result<()> {
    for byte in text.bytes() {
        conn.send([byte])?;
        if !conn.pause(pause) {
            return Ok(());
        }
    }
    Ok(())
}

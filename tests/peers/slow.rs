//! Does as it should, but takes its time, and does not notice that somebody has left.

use std::{io, time::Duration};

use super::{Conn, GOOD};

/// Answers after `pause`.
pub fn after(pause: Duration) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.pause(pause);
        conn.send(GOOD)
    }
}

/// Answers when it is healed.
pub fn when_healed(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.sleep();
    conn.send(GOOD)
}

/// Answers at once with so many bytes.
pub fn large(length: usize) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        ))?;
        conn.send("x".repeat(length))
    }
}

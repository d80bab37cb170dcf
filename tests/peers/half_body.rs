//! Answers a head and half of the body it promises.

use std::io;

use super::Conn;

/// Length declared, and short enough to be read whole before the client sees any of it.
pub const SHORT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345";

/// Length declared, and too long for that.
pub fn long() -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n{}",
        "x".repeat(200_000)
    )
}

/// In chunks, of which the last is missing.
pub const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n5\r\n123";

/// Sends `half` and closes.
pub fn then_closes(half: String) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send(&half)
    }
}

/// Sends `half` and says no more.
pub fn then_silence(half: String) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send(&half)?;
        conn.wait_for_close();
        Ok(())
    }
}

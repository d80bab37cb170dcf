//! Answers half a head.

use std::io;

use super::Conn;

const HALF: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/pl";

/// ... and closes.
pub fn then_closes(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(HALF)
}

/// ... and says no more.
pub fn then_silence(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(HALF)?;
    conn.wait_for_close();
    Ok(())
}

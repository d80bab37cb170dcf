//! Answers before it has read the body.

use std::io;

use super::Conn;

const REFUSAL: &str =
    "HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much";

/// ... and closes at once, which resets the connection while the body is still coming.
pub fn then_closes(conn: &mut Conn) -> io::Result<()> {
    conn.head()?;
    conn.send(REFUSAL)
}

/// ... and goes on reading for as long as somebody sends.
pub fn then_reads(conn: &mut Conn) -> io::Result<()> {
    conn.head()?;
    conn.send(REFUSAL)?;
    conn.wait_for_close();
    Ok(())
}

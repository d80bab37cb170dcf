//! Sends more than the answer.

use std::io;

use super::{Conn, GOOD};

/// Bytes that are no part of anything.
pub fn bytes(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(format!("{GOOD}more than was promised"))?;
    conn.wait_for_close();
    Ok(())
}

/// A second answer that nobody asked for: the next client must not get it.
pub fn second_answer(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(format!(
        "{GOOD}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    ))?;
    conn.wait_for_close();
    Ok(())
}

//! Switches protocols although nobody asked for it.

use std::io;

use super::Conn;

/// 101, then bytes that are meant for whoever believes it.
pub fn unasked(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\npoison",
    )?;
    conn.wait_for_close();
    Ok(())
}

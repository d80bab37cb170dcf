//! Accepts and closes.

use std::io;

use super::Conn;

/// Without a look at what was sent.
pub fn at_once(_conn: &mut Conn) -> io::Result<()> {
    Ok(())
}

/// After the whole request.
pub fn after_the_request(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    Ok(())
}

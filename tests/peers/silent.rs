//! Reads the request and never answers.

use std::io;

use super::Conn;

/// Until the other side hangs up.
pub fn forever(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.wait_for_close();
    Ok(())
}

//! Accepts and never reads.

use std::io;

use super::Conn;

/// The kernel takes what its buffers hold, and no more.
pub fn forever(conn: &mut Conn) -> io::Result<()> {
    conn.sleep();
    Ok(())
}

//! Answers, offers to go on, and closes the idle connection under the next request.

use std::io;

use super::{Conn, GOOD};

/// Closes when the next request has come, without a word.
pub fn under_the_next(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(GOOD)?;
    conn.head()?;
    Ok(())
}

/// Resets when the next request has come.
pub fn resets_the_next(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(GOOD)?;
    conn.head()?;
    conn.reset();
    Ok(())
}

/// Closes as soon as it has answered, unannounced.
pub fn right_away(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(GOOD)
}

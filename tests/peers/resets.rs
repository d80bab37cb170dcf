//! Resets the connection, at each stage.

use std::io;

use super::Conn;

/// As soon as it is accepted.
pub fn at_once(conn: &mut Conn) -> io::Result<()> {
    conn.reset();
    Ok(())
}

/// In the middle of the request's head.
pub fn in_the_request(conn: &mut Conn) -> io::Result<()> {
    let mut some = [0; 8];
    io::Read::read_exact(&mut conn.stream, &mut some)?;
    conn.reset();
    Ok(())
}

/// Instead of an answer, or in the middle of one.
pub fn after(part: String) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send(&part)?;
        conn.reset();
        Ok(())
    }
}

//! Answers with a head that does not end.

use std::io;

use super::Conn;

/// One field after the other.
pub fn fields(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send("HTTP/1.1 200 OK\r\n")?;
    let some = "X-More: and more, and more, and more, and more\r\n".repeat(20);
    loop {
        conn.send(&some)?;
    }
}

/// One field that does not end.
pub fn field(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send("HTTP/1.1 200 OK\r\nX-Long: ")?;
    let some = "and more ".repeat(100);
    loop {
        conn.send(&some)?;
    }
}

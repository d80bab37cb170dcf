//! Says twice how long the body is, and not the same.

use std::io;

use super::Conn;

/// In two fields.
pub const FIELDS: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n1234567";
/// In one field.
pub const LIST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5, 7\r\n\r\n1234567";

/// Answers with `answer`, then closes.
pub fn answer(answer: &'static str) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send(answer)?;
        conn.wait_for_close();
        Ok(())
    }
}

//! Interim answers.

use std::io;

use super::{Conn, GOOD};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";

/// Without end.
pub fn flood(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    let many = HINTS.repeat(100);
    loop {
        conn.send(&many)?;
    }
}

/// A few, then the answer.
pub fn a_few(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(format!("{}{GOOD}", HINTS.repeat(3)))
}

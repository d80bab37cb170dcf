//! Answers in another language.

use std::io;

use super::Conn;

/// What else listens on ports, and what is nearly HTTP.
pub const ANSWERS: [&str; 7] = [
    "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n",
    "220 mail.example.org ESMTP\r\n\r\n",
    "\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x04\0\x10\0\0\r\n\r\n",
    "HTTP/1.1 200OK\r\n\r\n",
    "HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n12345\r\n0\r\n\r\n",
];

/// Answers with `answer`, then waits.
pub fn answer(answer: &'static str) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send(answer)?;
        conn.wait_for_close();
        Ok(())
    }
}

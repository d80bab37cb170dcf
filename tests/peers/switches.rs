//! Switches protocols, but not as it was asked to.

use std::{io, time::Duration};

use super::Conn;

/// A 101 for this protocol, then bytes that are meant for whoever believes it.
pub fn to(protocol: &'static str) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        conn.send(answer(protocol))?;
        conn.wait_for_close();
        Ok(())
    }
}

/// A 101 although nobody asked for it.
pub fn unasked(conn: &mut Conn) -> io::Result<()> {
    to("raw")(conn)
}

/// A 101 that does not say what it switches to.
pub fn to_nothing(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\npoison")?;
    conn.wait_for_close();
    Ok(())
}

/// A 101 that comes after this time.
pub fn late(pause: Duration) -> impl Fn(&mut Conn) -> io::Result<()> + Send + Sync {
    move |conn| {
        conn.request()?;
        if conn.pause(pause) {
            conn.send(answer("websocket"))?;
        }
        Ok(())
    }
}

/// The right 101, then the beginning of a frame, then nothing.
pub fn cut(conn: &mut Conn) -> io::Result<()> {
    conn.request()?;
    conn.send(answer("websocket").replace("poison", "\u{1}\u{7e}half"))?;
    conn.reset();
    Ok(())
}

fn answer(protocol: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\npoison"
    )
}

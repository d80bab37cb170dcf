//! Ports for servers that are told where to listen.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use socket2::{Domain, Socket, Type};

/// Well-known ports are below it, and servers that a developer has running.
const FIRST: u16 = 10_000;

/// The first of the ports from which the kernel takes one for whoever does not care which.
fn first_of_the_kernels() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next();
    first.and_then(|port| port.parse().ok()).unwrap_or(32_768)
}

/// A port of 127.0.0.1 of which nobody has heard: bound, nobody listens. It is not of those that the kernel
/// gives away, to listeners and for connections, so it may be let go for the server that it is meant for.
pub fn own_port() -> Socket {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let bound = |port: u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        // Asked for by its number, it is kept when nobody listens any more.
        socket.bind(&address.into()).ok()?;
        // The connections that were accepted here do not keep the next listener from it.
        socket.set_reuse_address(true).expect("an option");
        Some(socket)
    };
    let count = first_of_the_kernels().saturating_sub(FIRST);
    for _ in 0..count {
        // Tests in other processes begin elsewhere.
        let start = std::process::id().wrapping_mul(97) % u32::from(count);
        let nth = (start + u32::from(NEXT.fetch_add(1, Relaxed))) % u32::from(count);
        if let Some(socket) = bound(FIRST + nth as u16) {
            return socket;
        }
    }
    // All ports are the kernel's here: at least it is asked for one by its number.
    loop {
        let any = bound(0).and_then(|socket| socket.local_addr().ok());
        let port = any
            .and_then(|address| address.as_socket())
            .expect("a port")
            .port();
        if let Some(socket) = bound(port) {
            return socket;
        }
    }
}

/// The address of such a port, which nobody holds any more.
pub fn own_address() -> SocketAddr {
    let address = own_port().local_addr().expect("it is bound");
    address.as_socket().expect("TCP")
}

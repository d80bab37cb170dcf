//! What `/readyz`, `/status` and the metrics say of a backend to which nothing is sent.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Socket, Type};

use super::*;

/// A port that is taken, where nothing listens yet.
fn silent() -> (TcpListener, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

/// Fills the backlog of a backend that takes one connection: whoever comes now waits.
fn fill(address: &str) -> Vec<TcpStream> {
    let address = address.parse().expect("an address");
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let held: Vec<_> = std::iter::from_fn(connect).take(20).collect();
    assert!(held.len() < 20, "the backlog is never full");
    held
}

fn assert_says(tidegate: &Tidegate, ready: bool) {
    let (figure, code) = if ready { (1.0, 200) } else { (0.0, 503) };
    assert_eq!(tidegate.metric("tidegate_ready", &[]), figure);
    assert_eq!(tidegate.metric("tidegate_backend_up", &[]), figure);
    let status = tidegate.status();
    assert_eq!(status["ready"], ready, "{status}");
    assert_eq!(status["backend"]["endpoints"][0]["up"], ready, "{status}");
    assert_eq!(tidegate.admin_get("/readyz").status, code);
}

#[test]
fn an_idle_backend_is_said_to_be_there_when_it_is() {
    let (listener, address) = silent();
    let tidegate = Tidegate::to(&address).start();
    assert_says(&tidegate, false);
    let told = tidegate.events("requests get 502 until it does");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].to_string().contains(&address), "{told:?}");

    // It comes and goes, and nobody asks.
    rustix::net::listen(&listener, 16).expect("the port is ours");
    tidegate.until_metric("tidegate_ready", &[], 1.0);
    assert_says(&tidegate, true);
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).expect("it listened");
    tidegate.until_metric("tidegate_ready", &[], 0.0);
    assert_says(&tidegate, false);
}

#[test]
fn a_backend_that_is_busy_is_ready() {
    let (listener, address) = silent();
    rustix::net::listen(&listener, 0).expect("the port is ours");
    let tidegate = Tidegate::to(&address).start();
    assert_says(&tidegate, true);
    let _held = fill(&address);
    // Longer than what was seen is believed without another look.
    let start = clock::now();
    while since(start) < Duration::from_secs(3) {
        assert_says(&tidegate, true);
    }
    assert!(!tidegate.log().contains("does not accept connections"));
}

#[test]
fn one_backend_that_accepts_is_enough() {
    let mut busy = Vec::new();
    for _ in 0..2 {
        let (listener, address) = silent();
        rustix::net::listen(&listener, 0).expect("the port is ours");
        let held = fill(&address);
        busy.push((listener, address, held));
    }
    let backend = Held::start();
    let tidegate = Tidegate::run()
        .backend(&busy[0].1)
        .backend(&busy[1].1)
        .backend(backend.address())
        .start();
    assert_eq!(tidegate.admin_get("/readyz").status, 200);
}

/// A socket file that is missing, and one that lets nobody in, are mended in different ways.
#[test]
fn why_a_backend_is_not_reached_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.sock");
    let address = format!("unix:{}", path.display());
    let tidegate = Tidegate::to(&address).start();
    let told = tidegate.events("requests get 502 until it does");
    assert!(told[0].to_string().contains("No such file"), "{told:?}");
    let says = |why: &str| tidegate.admin_get("/readyz?verbose").text().contains(why);
    until("the reason is in the checks", || says("No such file"));

    // It is there, but nobody listens.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
    let file = socket2::SockAddr::unix(&path).expect("an address");
    socket.bind(&file).expect("a socket file");
    until("the other reason is in the checks", || {
        says("Connection refused")
    });
    until("the other reason is in the log", || {
        let told = tidegate.events("for another reason than before");
        told.len() == 1 && told[0].to_string().contains("Connection refused")
    });
    socket.listen(16).expect("it is ours");
    until("it is ready", || {
        tidegate.admin_get("/readyz").status == 200
    });
    assert!(!says("refused"));
}

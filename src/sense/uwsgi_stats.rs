//! uWSGI's stats server: JSON until the end, over TCP or a Unix socket, perhaps with a head of HTTP.

use std::{
    io::Read,
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use serde_json::Value;

use super::{
    ladder::Told,
    server::{Accepts, Count, Server},
    until::Until,
};
use crate::{
    clock,
    config::{Address, Profile},
    socket_file,
};

/// What an answer may take, to its end.
const PATIENCE: Duration = Duration::from_millis(500);
/// Many workers with long requests fit.
const ANSWER_MAX: u64 = 16 << 20;

/// Asks the stats server at this address.
///
/// # Errors
/// One sentence, if nobody answers there, or not as uWSGI does.
pub fn ask(address: &Address) -> Result<Told, String> {
    let text = read(address).map_err(|error| format!("{address}: {error}"))?;
    interpret(&text).map_err(|why| format!("{address}: {why}"))
}

fn read(address: &Address) -> std::io::Result<Vec<u8>> {
    let end = clock::now() + PATIENCE;
    let mut text = Vec::new();
    match address {
        Address::Unix(path) => {
            let stream = socket_file::connect(path, PATIENCE)?;
            let stream = Until { stream, end };
            stream.take(ANSWER_MAX).read_to_end(&mut text)?;
        }
        Address::Tcp { host, port } => {
            let address = (host.as_str(), *port).to_socket_addrs()?.next();
            let address = address.ok_or(std::io::ErrorKind::AddrNotAvailable)?;
            let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            let stream = Until { stream, end };
            stream.take(ANSWER_MAX).read_to_end(&mut text)?;
        }
        Address::Fd(_) => return Err(std::io::ErrorKind::InvalidInput.into()),
    }
    Ok(text)
}

fn interpret(text: &[u8]) -> Result<Told, String> {
    let start = text.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let stats: Value = serde_json::from_slice(&text[start..])
        .map_err(|_| "the answer is not uWSGI's".to_owned())?;
    let workers = stats["workers"]
        .as_array()
        .ok_or("the answer is not uWSGI's")?;
    // One that is cheaped has no process.
    let running: Vec<u32> = workers
        .iter()
        .filter(|worker| worker["status"] != "cheap" && worker["pid"].as_u64() > Some(0))
        .map(|worker| {
            worker["cores"]
                .as_array()
                .map_or(1, |cores| cores.len().max(1) as u32)
        })
        .collect();
    let slots = match running.as_slice() {
        [first, rest @ ..] if rest.iter().all(|cores| cores == first) => {
            Count::product(running.len() as u32, *first)
        }
        _ => Count::product(running.iter().sum(), 1),
    };
    Ok(Told {
        server: Server {
            profile: Profile::Uwsgi,
            name: "uWSGI",
            how: "stats server",
            accepts: Accepts::WhenIdle,
            slots,
        },
        pid: stats["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok()),
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use super::*;
    use crate::sense::until::tests::trickle;

    /// As uWSGI 2.0.31 answers, shortened: a worker of three threads, one that is cheaped.
    const ANSWER: &str = r#"{
        "version":"2.0.31", "listen_queue":0, "pid":5570,
        "sockets":[ { "name":"127.0.0.1:47321", "proto":"http", "queue":0, "max_queue":0 } ],
        "workers":[
            { "id":1, "pid":5723, "status":"idle", "cores":[ {"id":0}, {"id":1}, {"id":2} ] },
            { "id":2, "pid":5727, "status":"busy", "cores":[ {"id":0}, {"id":1}, {"id":2} ] },
            { "id":3, "pid":0, "status":"cheap", "cores":[ {"id":0}, {"id":1}, {"id":2} ] }
        ]
    }"#;

    #[test]
    fn the_cores_of_the_workers_that_run_are_counted() {
        for text in [
            ANSWER.to_owned(),
            format!("HTTP/1.0 200 OK\r\nA: b\r\n\r\n{ANSWER}"),
        ] {
            let told = interpret(text.as_bytes()).expect("it is uWSGI's");
            assert_eq!(told.pid, Some(5570));
            let count = told.server.slots.expect("there are workers");
            assert_eq!(count.slots, 6);
            assert_eq!(count.because, "2 workers x 3 threads");
        }
        let none = interpret(br#"{"workers":[]}"#).expect("it is uWSGI's");
        assert!(none.server.slots.is_err());
        for nonsense in [&b""[..], b"{", b"{}", b"SSH-2.0"] {
            assert!(interpret(nonsense).is_err());
        }
    }

    #[test]
    fn an_answer_that_trickles_is_not_waited_for_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::connect(&listener.local_addr().expect("bound").to_string());
        let server = std::thread::spawn(move || {
            trickle(listener.accept().expect("a connection").0);
        });
        let why = ask(&address.expect("an address")).expect_err("it never ends");
        assert!(why.ends_with("in time"), "{why}");
        server.join().expect("no panic");
    }

    #[test]
    fn it_is_read_to_its_end_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::connect(&listener.local_addr().expect("bound").to_string());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let (one, two) = ANSWER.split_at(100);
            stream.write_all(one.as_bytes()).expect("it is read");
            std::thread::sleep(Duration::from_millis(20));
            stream.write_all(two.as_bytes()).expect("it is read");
        });
        let told = ask(&address.expect("an address")).expect("an answer");
        assert_eq!(told.server.slots.expect("workers").slots, 6);
        server.join().expect("no panic");
    }
}

//! gunicorn's control socket (25.1 and later): it says itself how many workers and threads it has.
//!
//! Length in four bytes, most significant first, then JSON, both ways.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    ladder::Told,
    server::{Accepts, Count, Server, unbounded},
    until::Until,
};
use crate::{clock, config::Profile, socket_file};

/// What both answers may take together. gunicorn's master answers within milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);
/// No answer is as long.
const ANSWER_MAX: u32 = 4 << 20;

/// Asks the gunicorn that listens on this control socket.
///
/// # Errors
/// One sentence, if nobody answers there, or not as gunicorn does.
pub fn ask(path: &Path) -> Result<Told, String> {
    let talk = || -> Result<(Value, Value), String> {
        let end = clock::now() + PATIENCE;
        let stream = socket_file::connect(path, PATIENCE).map_err(|error| error.to_string())?;
        let mut stream = Until { stream, end };
        let config = show(&mut stream, "config")?;
        // How many there should be now: TTIN and TTOU change it. An old version may not know.
        let stats = show(&mut stream, "stats").unwrap_or_default();
        Ok((config, stats))
    };
    let (config, stats) = talk().map_err(|why| format!("{}: {why}", path.display()))?;
    interpret(&config, &stats).map_err(|why| format!("{}: {why}", path.display()))
}

fn show(stream: &mut Until<UnixStream>, what: &str) -> Result<Value, String> {
    let request = json!({ "id": 1, "command": "show", "args": [what] }).to_string();
    let mut message = (request.len() as u32).to_be_bytes().to_vec();
    message.extend(request.as_bytes());
    let mut exchange = || -> std::io::Result<Vec<u8>> {
        stream.stream.write_all(&message)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length).min(ANSWER_MAX);
        let mut answer = Vec::new();
        stream.take(u64::from(length)).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| error.to_string())?;
    let mut answer: Value =
        serde_json::from_slice(&answer).map_err(|_| "the answer is not gunicorn's".to_owned())?;
    if answer["status"] != "ok" {
        return Err("it refuses to answer".to_owned());
    }
    Ok(answer["data"].take())
}

fn interpret(config: &Value, stats: &Value) -> Result<Told, String> {
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let workers = number(&stats["workers_target"])
        .or_else(|| number(&config["workers"]))
        .ok_or("the answer is not gunicorn's")?;
    let threads = number(&config["threads"]).unwrap_or(1).max(1);
    // "<class 'gunicorn.workers.gthread.ThreadWorker'>", or a bare word.
    let class = config["worker_class"].as_str().unwrap_or_default();
    let words: Vec<&str> = class
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .collect();
    let is = |word: &str| words.contains(&word);
    // Not every class with `sync` in its name: one that is async has it, too.
    let sync = is("sync") || is("SyncWorker");
    let (profile, accepts, slots) = if is("gthread") || (sync && threads > 1) {
        (
            Profile::GunicornGthread,
            Accepts::Eagerly,
            Count::product(workers, threads),
        )
    } else if sync {
        (
            Profile::GunicornSync,
            Accepts::WhenIdle,
            Count::product(workers, 1),
        )
    } else if is("tornado") || is("gtornado") {
        (
            Profile::Generic,
            Accepts::WhenIdle,
            Count::product(workers, 1),
        )
    } else if class.contains("gevent") || class.contains("eventlet") {
        let why = unbounded("a greenlet for each connection, so its CPU is the bound");
        (Profile::GunicornGevent, Accepts::Eagerly, Err(why))
    } else {
        let why = format!("its worker class {class} is not known");
        (Profile::Generic, Accepts::Eagerly, Err(why))
    };
    Ok(Told {
        server: Server {
            profile,
            name: "gunicorn",
            how: "control socket",
            accepts,
            slots,
        },
        pid: number(&stats["pid"]),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::sense::until::tests::trickle;

    #[test]
    fn a_full_backlog_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("gunicorn.ctl");
        let _held = socket_file::tests::full_backlog(&path);
        let why = ask(&path).expect_err("nobody answers");
        assert!(why.contains("backlog"), "{why}");
    }

    #[test]
    fn workers_and_threads_are_multiplied_by_class() {
        let told = |class: &str, threads: u32| {
            let config = json!({ "workers": 2, "threads": threads, "worker_class": class });
            interpret(&config, &Value::Null)
                .expect("it is gunicorn's")
                .server
        };
        let slots = |server: Server| server.slots.ok().map(|count| count.slots);
        let sync = told("<class 'gunicorn.workers.sync.SyncWorker'>", 1);
        assert_eq!(sync.profile, Profile::GunicornSync);
        assert_eq!(slots(sync), Some(2));
        let threads = told("<class 'gunicorn.workers.gthread.ThreadWorker'>", 3);
        assert_eq!(threads.accepts, Accepts::Eagerly);
        assert_eq!(slots(threads), Some(6));
        // So gunicorn itself reads it.
        let threads = told("sync", 3);
        assert_eq!(threads.accepts, Accepts::Eagerly);
        assert_eq!(slots(threads), Some(6));
        assert_eq!(
            slots(told("<class 'gunicorn.workers.ggevent.GeventWorker'>", 1)),
            None
        );
        let tornado = told("<class 'gunicorn.workers.gtornado.TornadoWorker'>", 1);
        assert_eq!(tornado.accepts, Accepts::WhenIdle);
        for unknown in [
            "my.Worker",
            "<class 'app.async_worker.Worker'>",
            "app.AsyncWorker",
        ] {
            let unknown = told(unknown, 4);
            assert_eq!(unknown.profile, Profile::Generic);
            assert_eq!(slots(unknown), None);
        }
        assert_eq!(told("app.SyncWorker", 1).profile, Profile::GunicornSync);
        let more = interpret(
            &json!({ "workers": 2, "worker_class": "sync" }),
            &json!({ "workers_target": 5, "pid": 7 }),
        );
        let more = more.expect("it is gunicorn's");
        assert_eq!((more.pid, slots(more.server)), (Some(7), Some(5)));
        assert!(interpret(&json!({ "a": 1 }), &Value::Null).is_err());
    }

    #[test]
    fn an_answer_that_trickles_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("gunicorn.ctl");
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = std::thread::spawn(move || {
            trickle(listener.accept().expect("a connection").0);
        });
        // So long, it says by its first bytes, that the trickle would last for ever.
        let why = ask(&path).expect_err("it never ends");
        assert!(why.ends_with("in time"), "{why}");
        server.join().expect("no panic");
    }

    #[test]
    fn an_answer_that_never_comes_or_is_nonsense_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ctl");
        assert!(ask(&path).is_err());
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = std::thread::spawn(move || {
            for answer in [&b"\xff\xff\xff\xffnonsense"[..], b"\0\0\0\x02[]", b""] {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut request = [0; 4];
                stream.read_exact(&mut request).expect("a length");
                stream.write_all(answer).expect("it is read");
                // Closing with unread bytes would reset what was just written.
                let mut rest = vec![0; u32::from_be_bytes(request) as usize];
                stream.read_exact(&mut rest).expect("a request");
            }
        });
        for _ in 0..3 {
            assert!(ask(&path).is_err());
        }
        server.join().expect("no panic");
    }
}

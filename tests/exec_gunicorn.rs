//! A real gunicorn as the child of `tidegate exec`.

#[path = "common/ports.rs"]
mod ports;
#[path = "common/venv.rs"]
mod venv;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use tidegate::{
    clock,
    config::Restart,
    runtime::child::{self, Child, Exit, Signal, Spec},
};

/// Long enough that only a broken test waits for it.
const FOREVER: Duration = Duration::from_secs(60);

fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(FOREVER))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = clock::now();
    while !done() {
        assert!(
            clock::now() - start < FOREVER,
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// With the tests' application, which notes its requests in this directory.
async fn gunicorn(addr: SocketAddr, dir: &Path) -> Child {
    let gunicorn = venv::venv()
        .join("gunicorn")
        .to_str()
        .expect("text")
        .to_owned();
    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps");
    let command = [
        &gunicorn,
        "--bind",
        "{addr}",
        "--workers",
        "2",
        "--no-control-socket",
        "--chdir",
        app,
        "app:app",
    ]
    .map(str::to_owned);
    let command = child::substitute(&command, &addr.to_string(), &addr.port().to_string());
    let spec = Spec {
        command: command.into_iter().map(Into::into).collect(),
        env: vec![("APP_DIR".to_owned(), dir.display().to_string())],
        restart: Restart::Never,
    };
    let child = Child::spawn_with(env!("CARGO_BIN_EXE_tidegate").into(), spec)
        .await
        .expect("gunicorn starts");
    until("gunicorn answers", || {
        get(addr, "/").is_ok_and(|answer| answer.ends_with("hello\n"))
    })
    .await;
    child
}

#[tokio::test]
async fn stop_lets_it_finish_what_it_has() {
    let addr = ports::own_address();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut child = gunicorn(addr, dir.path()).await;
    let request = tokio::task::spawn_blocking(move || get(addr, "/sleep?ms=500"));
    until("it is at work", || {
        let events = fs::read_to_string(dir.path().join("events"));
        events.is_ok_and(|events| events.contains("+ /sleep"))
    })
    .await;
    assert_eq!(child.stop(FOREVER).await, Exit::Code(0));
    let answer = request.await.expect("no panic").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    until("nobody listens", || TcpStream::connect(addr).is_err()).await;
}

#[tokio::test]
async fn a_master_that_is_killed_leaves_the_port_free_for_the_next() {
    let addr = ports::own_address();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut child = gunicorn(addr, dir.path()).await;
    // Only the master: its workers go on listening until they notice.
    let master = rustix::process::Pid::from_raw(child.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(master, Signal::KILL).expect("kill");
    assert_eq!(child.wait().await, Exit::Signal(9));
    until("nobody listens", || TcpStream::connect(addr).is_err()).await;

    let mut next = gunicorn(addr, dir.path()).await;
    assert_eq!(next.stop(FOREVER).await, Exit::Code(0));
}

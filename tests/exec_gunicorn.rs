//! A real gunicorn as the child of `tidegate exec`.

#[path = "common/venv.rs"]
mod venv;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
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

async fn gunicorn(addr: SocketAddr) -> Child {
    let gunicorn = venv::venv()
        .join("gunicorn")
        .to_str()
        .expect("text")
        .to_owned();
    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/flask");
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
        env: Vec::new(),
        restart: Restart::Never,
    };
    let child = Child::spawn_with(env!("CARGO_BIN_EXE_tidegate").into(), spec)
        .await
        .expect("gunicorn starts");
    let start = clock::now();
    while !get(addr, "/healthz").is_ok_and(|answer| answer.ends_with("ok\n")) {
        assert!(clock::now() - start < FOREVER, "gunicorn does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

#[tokio::test]
async fn stop_lets_it_finish_what_it_has() {
    let addr = free_port();
    let mut child = gunicorn(addr).await;
    let request = tokio::task::spawn_blocking(move || get(addr, "/io?ms=500"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(child.stop(FOREVER).await, Exit::Code(0));
    let answer = request.await.expect("no panic").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(TcpStream::connect(addr).is_err());
}

#[tokio::test]
async fn a_master_that_is_killed_leaves_the_port_free_for_the_next() {
    let addr = free_port();
    let mut child = gunicorn(addr).await;
    // Only the master: its workers go on listening until they notice.
    let master = rustix::process::Pid::from_raw(child.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(master, Signal::KILL).expect("kill");
    assert_eq!(child.wait().await, Exit::Signal(9));
    assert!(TcpStream::connect(addr).is_err());

    let mut next = gunicorn(addr).await;
    assert_eq!(next.stop(FOREVER).await, Exit::Code(0));
}

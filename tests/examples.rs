//! The servers of `examples/servers`, each started by `tidegate exec` as docs/deploy.md says. mod_wsgi is
//! not among them: it takes Apache's headers to install.
#![allow(clippy::print_stdout)] // says what it leaves out, and why

mod common;

use common::{Tidegate, until, venv::venv};

/// Starts it from the repository's root as a shell would, sees its slots, asks, and ends it.
#[track_caller]
fn serves(command: &[&str], slots: u64, code: i32) {
    let path = std::env::var("PATH").expect("a path");
    let mut tidegate = Tidegate::exec(command.iter().copied())
        .env("PATH", &format!("{}:{path}", venv().display()))
        .env("PWD", env!("CARGO_MANIFEST_DIR"))
        .start();
    until("its slots are seen", || {
        let endpoint = &tidegate.status()["backend"]["endpoints"][0];
        endpoint["slots"] == slots && endpoint["slots_source"] == "proc"
    });
    let mut client = tidegate.client();
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().starts_with("Hello from Flask"));
    }
    let upload = common::request(
        tidegate.address(),
        "POST",
        "/upload",
        &[("Content-Type", "application/octet-stream")],
        &[b'x'; 100_000],
    );
    assert_eq!(upload.json()["bytes"], 100_000);
    // The app sees who the client is, and not tidegate.
    let seen = client.get("/headers").text();
    assert!(
        seen.contains("X-Forwarded-For") || seen.contains("127.0.0.1"),
        "{seen}"
    );
    assert_eq!(tidegate.stop(), code);
}

#[test]
fn gunicorn() {
    serves(
        &[
            "gunicorn",
            "--config",
            "examples/servers/gunicorn.conf.py",
            "--no-control-socket",
            "--bind",
            "{addr}",
            "--chdir",
            "examples/flask",
            "app:app",
        ],
        4,
        0,
    );
}

#[test]
fn uwsgi() {
    if !venv().join("uwsgi").exists() {
        println!("left out: uwsgi is not installed, for which it needs a compiler");
        return;
    }
    serves(
        &[
            "uwsgi",
            "--ini",
            "examples/servers/uwsgi.ini",
            "--http-socket",
            "{addr}",
            "--chdir",
            "examples/flask",
        ],
        4,
        0,
    );
}

#[test]
fn waitress() {
    // It does nothing about a TERM but die of it, after the drain.
    serves(
        &["sh", "examples/servers/waitress.sh", "{port}"],
        4,
        128 + 15,
    );
}

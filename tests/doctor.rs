//! `tidegate doctor` in front of real servers: what it says is so, and what it proposes can be used.

mod common;

use std::fs;

use common::{Gunicorn, tidegate};
use serde_json::Value;

fn examine(address: &str) -> Value {
    let (code, out, err) = tidegate(&["doctor", "--backend", address, "--format", "json"]);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    report["endpoints"][0].clone()
}

/// `tidegate check` takes it.
fn usable(endpoint: &Value) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tidegate.toml");
    let toml = endpoint["toml"].as_str().unwrap();
    fs::write(&file, toml).unwrap();
    let (code, _, err) = tidegate(&["check", "-c", file.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (0, ""), "{toml}");
}

fn quirk<'a>(endpoint: &'a Value, name: &str) -> &'a str {
    let quirks = endpoint["quirks"].as_array().unwrap();
    let found = quirks.iter().find(|quirk| quirk["quirk"] == name);
    found.map_or("", |quirk| quirk["found"].as_str().unwrap())
}

#[test]
fn two_sync_workers_are_two_requests_and_a_backlog() {
    let app = Gunicorn::sync(2);
    let found = examine(app.address());
    usable(&found);
    assert_eq!(found["keep_alive"], "closes");
    assert_eq!(found["profile"], "gunicorn-sync");
    assert!(
        quirk(&found, "expect_100").starts_with("sends 100 Continue"),
        "{found}"
    );
    let limits = quirk(&found, "header_limits");
    assert!(
        limits.contains("a request line of 4200 bytes") && limits.contains("101 fields (431)"),
        "{limits}"
    );
    // What it says it has asked is all that arrived, and the view was run once.
    assert_eq!(
        app.started("/"),
        found["asked"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|asked| { matches!(asked["answer"].as_str(), Some("200")) })
            .count(),
        "{found}"
    );
    if cfg!(target_os = "linux") {
        assert_eq!(found["slots"]["count"], 2);
        assert_eq!(found["slots"]["source"], "proc");
        let backlog = found["backlog"].as_u64().unwrap();
        assert_eq!(
            found["verdict"],
            format!(
                "gunicorn, 2 workers, one request each: 2 requests in parallel; the third waits in a backlog of {backlog} that no one sees."
            )
        );
        assert_eq!(found["lingers"], true, "since gunicorn 26");
        assert!(found["cpu"]["cores"].as_f64() > Some(0.0));
        assert!(found["memory"]["used_bytes"].as_u64() > Some(10_000_000));
        let signals = found["signals"].as_array().unwrap();
        for name in ["slots", "accept_queue", "cpu"] {
            assert!(
                signals
                    .iter()
                    .any(|s| s["signal"] == name && s["available"] == true),
                "{name}: {signals:?}"
            );
        }
    }
}

#[test]
fn threads_are_slots_too_but_wait_where_the_kernel_does_not_see() {
    let app = Gunicorn::start(&[
        "--workers",
        "2",
        "--worker-class",
        "gthread",
        "--threads",
        "4",
    ]);
    let found = examine(app.address());
    usable(&found);
    assert_eq!(
        (found["keep_alive"].as_str(), found["profile"].as_str()),
        (Some("keeps"), Some("gunicorn-gthread"))
    );
    if cfg!(target_os = "linux") {
        assert_eq!(found["slots"]["count"], 8);
        let verdict = found["verdict"].as_str().unwrap();
        assert!(
            verdict.ends_with(
                "8 requests in parallel; the ninth waits inside the server, where no one sees it."
            ),
            "{verdict}"
        );
        let signals = found["signals"].as_array().unwrap();
        assert!(
            signals
                .iter()
                .any(|s| s["signal"] == "accept_queue" && s["available"] == false)
        );
    }
    assert!(
        quirk(&found, "keep_alive").contains("closes them when idle for"),
        "{found}"
    );
    let advice = found["advice"].to_string();
    assert!(
        advice.contains("One gunicorn with one worker for each socket")
            || !cfg!(target_os = "linux"),
        "{advice}"
    );
}

#[test]
fn a_unix_socket_is_examined_as_well() {
    let app = Gunicorn::unix(&["--workers", "1"]);
    let found = examine(app.address());
    usable(&found);
    assert_eq!(found["answered"], true);
    if cfg!(target_os = "linux") {
        assert_eq!(found["slots"]["count"], 1);
    }
}

#[test]
fn people_get_it_in_words_and_an_absent_backend_is_a_failure() {
    let app = Gunicorn::sync(1);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (code, out, err) = tidegate(&["doctor", "--backend", app.address(), "--backend", &free]);
    assert_eq!((code, err.as_str()), (1, ""));
    for part in [
        "request in parallel",
        "habits",
        "advice",
        "what it was asked",
        "GET / HTTP/1.1",
        &format!("tidegate probe --url http://{}/", app.address()),
        &format!("Nothing listens at {free}."),
    ] {
        assert!(
            out.contains(part) || (part.contains("parallel") && !cfg!(target_os = "linux")),
            "{part}: {out}"
        );
    }
}

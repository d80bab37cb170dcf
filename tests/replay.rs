//! The trace of a real tidegate in front of a real gunicorn, recorded, killed, and replayed.

mod common;

use std::{fs, path::Path};

use common::{Gunicorn, Tidegate, tidegate, until};
use serde_json::Value;

fn replay(trace: &Path, more: &[&str]) -> Value {
    let mut args = vec!["replay", trace.to_str().unwrap(), "--format", "json"];
    args.extend(more);
    let (code, out, err) = tidegate(&args);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

fn requests(trace: &Path) -> u64 {
    let (code, out, _) = tidegate(&["replay", trace.to_str().unwrap(), "--format", "json"]);
    let report: Option<Value> = (code == 0).then(|| serde_json::from_str(&out).unwrap());
    report.map_or(0, |report| report["requests"].as_u64().unwrap())
}

const PATIENT: [&str; 4] = [
    "--set",
    "queue.max_wait=10s",
    "--set",
    "queue.discipline=fifo",
];

#[test]
fn a_trace_survives_a_kill_and_tells_what_another_limit_would_have_done() {
    let app = Gunicorn::sync(2);
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let set = format!("trace.file={}", trace.display());
    let mut gate = Tidegate::to(app.address())
        .limit(2)
        .arg("--set")
        .arg(&set)
        .arg("--set")
        .arg("queue.max_wait=10s")
        // In order: the other discipline may refuse who is overtaken.
        .arg("--set")
        .arg("queue.discipline=fifo")
        .start();
    // Eight clients, five requests each, for two workers: most of them wait.
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = gate.client();
            std::thread::spawn(move || {
                for _ in 0..5 {
                    assert_eq!(client.get("/sleep?ms=50").status, 200);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    until("all are in the trace", || requests(&trace) == 40);
    gate.process.kill();

    let same = replay(&trace, &[&["--limit", "2"], &PATIENT[..]].concat());
    let (was, would) = (&same["did_happen"], &same["would_have"]);
    assert_eq!(
        (was["answered"].as_u64(), was["refused"].as_u64()),
        (Some(40), Some(0))
    );
    assert_eq!(
        (
            was["limit"]["max"].as_u64(),
            was["in_flight"]["max"].as_u64()
        ),
        (Some(2), Some(2))
    );
    let figure = |value: &Value| value.as_f64().unwrap();
    assert!(figure(&was["backend_seconds"]["p50"]) > 0.05);
    assert!(figure(&was["wait_seconds"]["p50"]) > 0.05, "{was}");
    // The same settings give the same, but for what the machine did meanwhile.
    assert_eq!(would["answered"], 40);
    let ratio = figure(&would["latency_seconds"]["mean"]) / figure(&was["latency_seconds"]["mean"]);
    assert!((0.5..2.0).contains(&ratio), "{same}");

    let notes = same["notes"].to_string();
    assert!(notes.contains("limit.resources has no effect"), "{notes}");

    // With a worker less they would have waited longer, and without patience been refused.
    let one = replay(&trace, &[&["--limit", "1"], &PATIENT[..]].concat());
    let wait = |report: &Value| figure(&report["would_have"]["wait_seconds"]["mean"]);
    assert!(wait(&one) > 1.3 * wait(&same), "{one}");
    let impatient = replay(&trace, &["--limit", "1", "--set", "queue.max_wait=1ms"]);
    assert!(
        impatient["would_have"]["refused"].as_u64() > Some(10),
        "{impatient}"
    );

    // A new start records behind what is there.
    let second = Tidegate::to(app.address()).arg("--set").arg(&set).start();
    assert_eq!(second.client().get("/").status, 200);
    until("one more is in the trace", || requests(&trace) == 41);
    // And nobody else may.
    let other = common::tidegate_command()
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--backend", app.address(), "--set", &set])
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(1));
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(said.contains("another tidegate records into it"), "{said}");
}

#[test]
fn people_read_both_sides_and_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("notes");
    fs::write(&foreign, "dear diary").unwrap();
    let (code, out, err) = tidegate(&["replay", foreign.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("it is not a trace of tidegate's"), "{err}");
    let (code, _, err) = tidegate(&["replay", "/dev/zero"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("it is no regular file"), "{err}");
    let (code, _, err) = tidegate(&["replay", dir.path().join("none").to_str().unwrap()]);
    assert_eq!(code, 1, "{err}");
    let (code, _, err) = tidegate(&["replay", "x", "--set", "limit.min=0"]);
    assert_eq!(code, 2, "{err}");
}

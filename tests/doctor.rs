//! `tidegate doctor` in front of real servers: what it says is so, and what it proposes can be used.

mod common;

use std::fs;

use common::{
    Gunicorn,
    servers::{self, Server},
    tidegate,
};
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
    let app = Gunicorn::gthreads(2, 4);
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
    // Where tidegate sees whose each connection is, it tells the workers apart itself.
    assert!(
        !advice.contains("One gunicorn with one worker for each socket")
            || !cfg!(target_os = "linux"),
        "{advice}"
    );
}

#[test]
fn what_it_is_told_is_part_of_what_it_proposes() {
    let app = Gunicorn::sync(1);
    let lines = [
        "gunicorn_control_socket = \"/nonexistent/g.ctl\"",
        "cpu_limit = \"0.5\"",
        "memory_limit = \"300MiB\"",
    ];
    let mut args = vec!["doctor", "--backend", app.address(), "--format", "json"];
    for key in [
        "discovery.gunicorn_control_socket=/nonexistent/g.ctl",
        "discovery.cpu_limit=500m",
        "discovery.memory_limit=300MiB",
    ] {
        args.extend(["--set", key]);
    }
    let (code, out, err) = tidegate(&args);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let found = &report["endpoints"][0];
    usable(found);
    let toml = found["toml"].as_str().unwrap();
    for line in lines {
        assert!(toml.lines().any(|own| own == line), "{line}: {toml}");
    }
}

#[test]
fn what_exec_would_start_is_not_there_to_be_examined() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tidegate.toml");
    let text = "server.listen = [\"127.0.0.1:8000\"]\nprocess.command = [\"true\"]\n";
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let (code, _, err) = tidegate(&["doctor", "-c", file]);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("say with --backend ADDR where it listens"),
        "{err}"
    );
    for command in ["check", "config"] {
        let (code, _, err) = tidegate(&[command, "-c", file]);
        assert_eq!((code, err.as_str()), (0, ""), "{command}");
    }
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
    let (listener, free) = common::raw::reserved_port();
    common::raw::refuse(&listener);
    let (code, out, err) = tidegate(&["doctor", "--backend", app.address(), "--backend", &free]);
    assert_eq!((code, err.as_str()), (1, ""));
    for part in [
        "request in parallel",
        "habits",
        "advice",
        "what it was asked",
        "GET / HTTP/1.1",
        &format!("tidegate probe --url http://{}/", app.address()),
        &format!("Nothing listens at {free}.\n\nStart it, or say where it is: "),
    ] {
        assert!(
            out.contains(part) || (part.contains("parallel") && !cfg!(target_os = "linux")),
            "{part}: {out}"
        );
    }
}

/// What is expected of a server.
struct Expected {
    name: &'static str,
    /// By what it is recognised, on Linux.
    how: &'static str,
    profile: &'static str,
    protocol: &'static str,
    /// Their number, where it has one.
    slots: Option<u32>,
    /// A part of the verdict.
    verdict: &'static str,
    keep_alive: &'static str,
    /// Quirks, by name, and a part of what is said of each.
    quirks: &'static [(&'static str, &'static str)],
    /// Whether the accept queue says something.
    queue: bool,
    advice: &'static str,
    /// A line of the configuration.
    toml: &'static str,
}

fn is_as_expected(server: Option<Server>, expected: &Expected) -> Option<Value> {
    // Said aloud by the server that is not there.
    let server = server?;
    let found = examine(server.address());
    usable(&found);
    let name = found["server"]["name"].as_str().unwrap();
    assert!(name.starts_with(expected.name), "{name}");
    assert_eq!(found["profile"], expected.profile);
    assert_eq!(found["protocol"], expected.protocol);
    assert_eq!(found["keep_alive"], expected.keep_alive);
    for (name, part) in expected.quirks {
        let text = quirk(&found, name);
        assert!(text.contains(part), "{name}: {text}");
    }
    let advice = found["advice"].to_string();
    assert!(advice.contains(expected.advice), "{advice}");
    let toml = found["toml"].as_str().unwrap();
    assert!(toml.contains(expected.toml), "{toml}");
    if !cfg!(target_os = "linux") {
        return Some(found);
    }
    let how = found["server"]["recognised"].as_str().unwrap();
    assert!(how.contains(expected.how), "{how}");
    assert_eq!(
        found["slots"]["count"].as_u64(),
        expected.slots.map(u64::from)
    );
    if expected.slots.is_some() {
        assert_eq!(found["slots"]["source"], "proc");
    }
    let verdict = found["verdict"].as_str().unwrap();
    assert!(verdict.contains(expected.verdict), "{verdict}");
    assert!(found["backlog"].as_u64() > Some(0), "{found}");
    assert!(found["cpu"]["cores"].as_f64() > Some(0.0));
    assert!(found["memory"]["used_bytes"].as_u64() > Some(1_000_000));
    let signals = found["signals"].as_array().unwrap();
    let available = |name: &str| {
        let signal = signals.iter().find(|it| it["signal"] == name).unwrap();
        assert!(!signal["how"].as_str().unwrap().is_empty());
        signal["available"] == true
    };
    assert_eq!(available("accept_queue"), expected.queue);
    assert_eq!(available("slots"), expected.slots.is_some());
    assert!(available("cpu"));
    Some(found)
}

const UWSGI: Expected = Expected {
    name: "uWSGI",
    how: "of its process",
    profile: "uwsgi",
    protocol: "http",
    slots: Some(4),
    verdict: "2 workers x 2 threads: 4 requests in parallel; the fifth waits in a backlog of ",
    keep_alive: "closes",
    quirks: &[
        ("keep_alive", "says nothing of it"),
        ("chunked", "hands the app an empty one"),
        ("expect_100", "sends no 100 Continue"),
        (
            "header_limits",
            "a field of 4200 bytes (the connection ended without an answer)",
        ),
    ],
    queue: true,
    advice: "--buffer-size 16384 takes larger ones",
    toml: "",
};

const UWSGI_SOCKET: Expected = Expected {
    protocol: "uwsgi",
    quirks: &[
        ("protocol", "speaks uWSGI's protocol, not HTTP"),
        ("chunked", "has no chunked bodies"),
        (
            "header_limits",
            "a field of 4200 bytes (the connection ended without an answer)",
        ),
    ],
    advice: "through tidegate with the configuration below: tidegate probe --url http://127.0.0.1:8080/ --backend ",
    toml: "\nprotocol = \"uwsgi\"\n",
    ..UWSGI
};

const TWO_BY_TWO: [&str; 4] = ["--processes", "2", "--threads", "2"];

#[test]
fn uwsgi_over_http() {
    is_as_expected(Server::tcp(servers::UWSGI_HTTP, &TWO_BY_TWO), &UWSGI);
}

#[test]
fn uwsgi_over_its_own_protocol() {
    is_as_expected(
        Server::tcp(servers::UWSGI_SOCKET, &TWO_BY_TWO),
        &UWSGI_SOCKET,
    );
    is_as_expected(
        Server::unix(servers::UWSGI_SOCKET, &TWO_BY_TWO),
        &UWSGI_SOCKET,
    );
}

/// The configured protocol is asked in first, and what is wrong with it is found out.
#[test]
fn the_protocol_that_is_configured_is_believed_as_far_as_it_is_so() {
    let asked = |server: &Server| {
        let given = ["--set", "backend.protocol=uwsgi", "--format", "json"];
        let (code, out, err) =
            tidegate(&[&["doctor", "--backend", server.address()], &given[..]].concat());
        assert_eq!(code, 0, "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        let found = report["endpoints"][0].clone();
        let first = found["asked"][0]["request"].as_str().unwrap().to_owned();
        assert_eq!(first, "GET / in the uwsgi protocol");
        found["protocol"].as_str().unwrap().to_owned()
    };
    if let Some(server) = Server::tcp(servers::UWSGI_SOCKET, &[]) {
        assert_eq!(asked(&server), "uwsgi");
    }
    if let Some(server) = Server::tcp(servers::UWSGI_HTTP, &[]) {
        assert_eq!(asked(&server), "http");
    }
}

#[test]
fn gunicorn_with_the_protocol_of_uwsgi() {
    is_as_expected(
        Server::tcp(servers::GUNICORN_UWSGI, &[]),
        &Expected {
            name: "gunicorn",
            how: "of its process",
            profile: "gunicorn-sync",
            protocol: "uwsgi",
            slots: Some(1),
            verdict: "1 worker, one request at a time: 1 request in parallel; the second waits in a backlog",
            keep_alive: "closes",
            quirks: &[("protocol", "speaks uWSGI's protocol")],
            queue: true,
            advice: "through tidegate",
            toml: "\nprotocol = \"uwsgi\"\n",
        },
    );
}

#[test]
fn waitress_takes_all_and_waits_inside() {
    is_as_expected(
        Server::tcp(servers::WAITRESS, &["--threads=4"]),
        &Expected {
            name: "waitress",
            how: "of its process",
            profile: "waitress",
            protocol: "http",
            slots: Some(4),
            verdict: "4 threads: 4 requests in parallel; the fifth waits inside the server",
            keep_alive: "keeps",
            quirks: &[
                ("linger", "at once"),
                ("chunked", "accepts chunked bodies"),
                ("expect_100", "sends 100 Continue"),
                ("header_limits", "takes all that was tried"),
            ],
            queue: false,
            advice: "slow clients cost it no thread",
            toml: "\nkeepalive = true\n",
        },
    );
}

#[test]
fn gevent_has_no_slots() {
    is_as_expected(
        Server::tcp(servers::GUNICORN_GEVENT, &[]),
        &Expected {
            name: "gunicorn",
            how: "of its process",
            profile: "gunicorn-gevent",
            protocol: "http",
            slots: None,
            verdict: "its CPU is the bound; tidegate finds the limit by measuring",
            keep_alive: "keeps",
            quirks: &[
                ("keep_alive", "closes them when idle for"),
                ("header_limits", "101 fields (431)"),
            ],
            queue: false,
            advice: "holds up all others of its worker",
            toml: "\nkeepalive = true\n",
        },
    );
}

const FLASK: Expected = Expected {
    name: "Werkzeug",
    how: "of its process",
    profile: "werkzeug",
    protocol: "http",
    slots: None,
    verdict: "it has no bound: a thread for each request",
    keep_alive: "closes",
    quirks: &[
        ("keep_alive", "says Connection: close"),
        ("chunked", "accepts chunked bodies"),
        ("header_limits", "a request line of 70000 bytes (414)"),
    ],
    queue: false,
    advice: "Flask's development server",
    toml: "",
};

#[test]
fn flasks_own_server_with_and_without_threads() {
    is_as_expected(Server::tcp(servers::FLASK, &[]), &FLASK);
    is_as_expected(
        Server::tcp(servers::FLASK_ONE_THREAD, &[]),
        &Expected {
            slots: Some(1),
            verdict: "1 request in parallel; the second waits in a backlog of ",
            queue: true,
            ..FLASK
        },
    );
}

#[test]
fn apache_with_mod_wsgi() {
    is_as_expected(
        Server::mod_wsgi(),
        &Expected {
            name: "mod_wsgi",
            how: "of its process",
            profile: "mod_wsgi",
            protocol: "http",
            slots: Some(4),
            verdict: "1 process x 4 threads: 4 requests in parallel; the fifth waits inside the server",
            keep_alive: "keeps",
            quirks: &[
                ("chunked", "refuses chunked bodies with 411"),
                ("header_limits", "a request line of 8300 bytes (414)"),
            ],
            queue: false,
            advice: "queue-timeout",
            toml: "",
        },
    );
}

/// Servers for which there is no profile: what they have in common.
const GENERIC: Expected = Expected {
    name: "",
    how: "by the command line of its process",
    profile: "generic",
    protocol: "http",
    slots: None,
    verdict: "tidegate finds the limit by measuring",
    keep_alive: "keeps",
    quirks: &[("linger", "at once")],
    queue: false,
    advice: "tidegate probe --url",
    toml: "\nkeepalive = true\n",
};

#[test]
fn bjoern_is_known_by_its_library_and_runs_one_at_a_time() {
    is_as_expected(
        Server::tcp(servers::BJOERN, &[]),
        &Expected {
            name: "bjoern",
            how: "by the libraries of its process",
            slots: Some(1),
            verdict: "1 request in parallel; the second waits in a backlog of ",
            quirks: &[
                ("chunked", "accepts chunked bodies"),
                ("expect_100", "sends 100 Continue"),
                ("header_limits", "takes all that was tried"),
            ],
            queue: true,
            advice: "fork it after bjoern.listen()",
            ..GENERIC
        },
    );
}

#[test]
fn greenlets_without_gunicorn_have_no_slots_either() {
    is_as_expected(
        Server::tcp(servers::GEVENT, &[]),
        &Expected {
            name: "gevent.pywsgi",
            how: "by the libraries of its process",
            verdict: "a greenlet for each connection",
            quirks: &[
                ("chunked", "accepts chunked bodies"),
                ("expect_100", "when the app reads the body"),
                ("header_limits", "a request line of 8300 bytes (414)"),
            ],
            advice: "A greenlet that computes",
            ..GENERIC
        },
    );
    // Its own code is all Python: only its answers tell.
    is_as_expected(
        Server::tcp(servers::EVENTLET, &[]),
        &Expected {
            name: "eventlet, perhaps",
            how: "by its answers",
            quirks: &[
                ("chunked", "hands the app an empty one"),
                ("expect_100", "when the app reads the body"),
                ("header_limits", "nor 101 fields (431)"),
            ],
            advice: "A greenlet that computes",
            ..GENERIC
        },
    );
}

#[test]
fn cheroot_runs_its_threads_and_has_a_short_backlog() {
    is_as_expected(
        Server::tcp(servers::CHEROOT, &["--threads", "3"]),
        &Expected {
            name: "cheroot 11.",
            slots: Some(3),
            verdict: "3 threads: 3 requests in parallel; the fourth waits inside the server",
            quirks: &[
                ("chunked", "accepts chunked bodies"),
                ("blocked_by", "an idle connection"),
            ],
            advice: "Its backlog of 5 is short",
            toml: "",
            ..GENERIC
        },
    );
}

/// Its adapter for WSGI sends no head before there is a body.
#[test]
fn hypercorn_fails_where_there_is_no_body() {
    let cores = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let last = cores
        .trim()
        .rsplit(['-', ','])
        .next()
        .map(str::parse::<u32>);
    // A machine whose cores are numbered without gaps, as almost all are.
    let threads = last.and_then(Result::ok).map_or(5, |last| last + 1 + 4);
    is_as_expected(
        Server::tcp(servers::HYPERCORN, &[]),
        &Expected {
            name: "hypercorn",
            slots: Some(threads.min(32)),
            verdict: " waits inside the server",
            quirks: &[
                ("chunked", "hands the app an empty one"),
                ("expect_100", "sends 100 Continue"),
                ("empty_answers", "answers 500"),
                ("header_limits", "a request line of 70000 bytes (431)"),
            ],
            advice: "hypercorn with an ASGI app that wraps yours",
            ..GENERIC
        },
    );
}

#[test]
fn granian_has_the_threads_that_it_is_told_to_have() {
    const GRANIAN: Expected = Expected {
        name: "granian",
        quirks: &[
            ("chunked", "accepts chunked bodies"),
            ("expect_100", "when the app reads the body"),
            ("header_limits", "nor 101 fields (431)"),
        ],
        ..GENERIC
    };
    let two = is_as_expected(
        Server::tcp(
            servers::GRANIAN,
            &["--workers", "2", "--blocking-threads", "3"],
        ),
        &Expected {
            slots: Some(6),
            verdict: "2 workers x 3 threads: 6 requests in parallel; the seventh waits inside the server",
            ..GRANIAN
        },
    );
    // Both of them listen, and their master does not.
    let children = two.map(|found| found["process"]["children"].as_u64());
    assert!(children.is_none_or(|children| children >= Some(2)) || !cfg!(target_os = "linux"));
    is_as_expected(
        Server::tcp(servers::GRANIAN, &[]),
        &Expected {
            verdict: "it has no bound: as many threads as are needed",
            ..GRANIAN
        },
    );
}

#[test]
fn uvicorn_leaves_it_to_the_app() {
    is_as_expected(
        Server::tcp(servers::UVICORN, &[]),
        &Expected {
            name: "uvicorn",
            verdict: "the app decides (behind a2wsgi: 10 at a time in each worker)",
            quirks: &[
                ("chunked", "hands the app an empty one"),
                // Its limits are left out: whether it takes 70 kB depends on the pieces in which they come.
                ("expect_100", "when the app reads the body"),
            ],
            ..GENERIC
        },
    );
}

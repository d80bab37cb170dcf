//! Every server that Flask is run under, the real ones: the same cases for each, then what is special.
#![allow(missing_docs)]

mod common;

#[path = "servers/kept.rs"]
mod kept;

use std::time::Duration;

use common::{
    Client, Response, Tidegate,
    servers::{self, Server},
    since, until,
};
use serde_json::Value;
use tidegate::clock;

/// The longest field that a server takes by default, bytes of the value, as far as these tests go.
const LARGE: usize = 3_000;
const TOO_LARGE_FOR_UWSGI: usize = 5_000;
const TOO_LARGE_FOR_GUNICORN: usize = 9_000;

/// What a server is expected to do.
struct Expected {
    /// As the status says it; empty where it says none.
    profile: &'static str,
    /// The least length of a field's value, of the lengths above, that is answered with 431.
    too_large: Option<usize>,
    /// Whether somebody starts a worker that has died again.
    comes_back: bool,
    /// Whether it answers for an application that does not look at an upload.
    ignores_uploads: bool,
    /// Whether a head that is too large is a 400 to it, as anything else that is wrong with one.
    says_400: bool,
    /// Whether it takes an encoded slash for one, and joins fields that come twice, as others do.
    usual: bool,
    /// More configuration.
    set: &'static [&'static str],
}

const GUNICORN: Expected = Expected {
    profile: "gunicorn-sync",
    too_large: Some(TOO_LARGE_FOR_GUNICORN),
    comes_back: true,
    ignores_uploads: true,
    says_400: false,
    usual: true,
    set: &[],
};

const UWSGI: Expected = Expected {
    profile: "uwsgi",
    too_large: Some(TOO_LARGE_FOR_UWSGI),
    comes_back: true,
    ignores_uploads: true,
    says_400: false,
    usual: true,
    set: &[],
};

const UWSGI_PROTOCOL: Expected = Expected {
    set: &["backend.protocol=uwsgi"],
    ..UWSGI
};

const ALONE: Expected = Expected {
    profile: "werkzeug",
    too_large: None,
    comes_back: false,
    ignores_uploads: true,
    says_400: false,
    usual: true,
    set: &[],
};

/// Servers of which tidegate assumes nothing.
const OTHER: Expected = Expected {
    profile: "generic",
    ..ALONE
};

macro_rules! servers {
    ($($name:ident: $server:expr, $expected:expr;)*) => {
        $(#[test] fn $name() { if let Some(server) = $server { cases(server, &$expected); } })*
    };
}

servers! {
    gunicorn_sync: Server::tcp(servers::GUNICORN_SYNC, &[]), GUNICORN;
    gunicorn_sync_unix: Server::unix(servers::GUNICORN_SYNC, &[]), GUNICORN;
    gunicorn_gthread: Server::tcp(servers::GUNICORN_GTHREAD, &[]),
        Expected { profile: "gunicorn-gthread", ..GUNICORN };
    gunicorn_gevent_unix: Server::unix(servers::GUNICORN_GEVENT, &[]),
        Expected { profile: "gunicorn-gevent", ..GUNICORN };
    gunicorn_uwsgi: Server::tcp(servers::GUNICORN_UWSGI, &[]),
        Expected { too_large: None, set: &["backend.protocol=uwsgi"], ..GUNICORN };
    uwsgi_http: Server::tcp(servers::UWSGI_HTTP, &[]), UWSGI;
    uwsgi_http_unix: Server::unix(servers::UWSGI_HTTP, &[]),
        Expected { set: &["backend.profile=uwsgi"], ..UWSGI };
    // Its router resets the connection when the worker has closed without reading all of it.
    uwsgi_http_router: Server::tcp(servers::UWSGI_ROUTER, &[]),
        Expected { ignores_uploads: false, ..UWSGI };
    uwsgi_http11: Server::tcp(servers::UWSGI_HTTP11, &[]), UWSGI;
    uwsgi_socket: Server::tcp(servers::UWSGI_SOCKET, &[]), UWSGI_PROTOCOL;
    uwsgi_socket_unix: Server::unix(servers::UWSGI_SOCKET, &[]), UWSGI_PROTOCOL;
    waitress: Server::tcp(servers::WAITRESS, &[]), Expected { profile: "waitress", ..ALONE };
    waitress_unix: Server::unix(servers::WAITRESS, &[]), Expected { profile: "waitress", ..ALONE };
    flask: Server::tcp(servers::FLASK, &[]), ALONE;
    flask_one_thread_unix: Server::unix(servers::FLASK_ONE_THREAD, &[]), ALONE;
    bjoern: Server::tcp(servers::BJOERN, &[]), Expected { usual: false, ..OTHER };
    gevent_pywsgi: Server::tcp(servers::GEVENT, &[]), OTHER;
    eventlet: Server::tcp(servers::EVENTLET, &[]),
        Expected { profile: "", says_400: true, ..OTHER };
    cheroot: Server::tcp(servers::CHEROOT, &[]), Expected { usual: false, ..OTHER };
    granian: Server::tcp(servers::GRANIAN, &[]), OTHER;
    uvicorn: Server::tcp(servers::UVICORN, &[]), OTHER;
    mod_wsgi: Server::mod_wsgi(),
        Expected { profile: "mod_wsgi", comes_back: true, says_400: true, ..ALONE };
}

/// A body that no cut and no repetition leaves as it is, and its SHA-256.
fn upload(length: usize) -> (Vec<u8>, &'static str) {
    let digest = match length {
        100_000 => "cd2df694e424bc7968cc37f47751019e5ca0cd1bdf2e479ea537c3a1c32ee1aa",
        1_000_000 => "2c030d49ec131bfbbb446ad21e7a2f12cdb4f2f4f3fda3ac709dd2e68a4646c7",
        _ => unreachable!("two lengths are known"),
    };
    ((0..length).map(|at| (at % 251) as u8).collect(), digest)
}

/// One after the other, over one connection: one request at a time is all that the gate lets pass,
/// and nobody may wait, so a permit that came back late would show as a 503.
fn cases(server: Server, expected: &Expected) {
    let mut setup = Tidegate::to(server.address())
        .limit(1)
        .set("queue.max_wait=0s")
        .set("buffers.request=64KiB")
        .set(format!("buffers.spool_dir={}", server.dir().display()));
    for &assignment in expected.set {
        setup = setup.set(assignment);
    }
    let tidegate = setup.start();
    let mut client = tidegate.client();

    plain(&mut client);
    what_the_application_sees(&mut client, expected);
    uploads(&mut client);
    if expected.ignores_uploads {
        an_upload_that_nobody_looks_at(&mut client);
    }
    answers(&mut client);
    expectations(&tidegate);
    heads(&tidegate, expected);
    let endpoint = &tidegate.status()["backend"]["endpoints"][0];
    let profile = endpoint["profile"].as_str().unwrap_or_default();
    assert_eq!(profile, expected.profile, "{endpoint}");
    a_worker_dies(&tidegate, expected);

    tidegate.until_idle();
    // The last answer may be on its way to its client still.
    tidegate.until_metric("tidegate_buffered_bytes", &[], 0.0);
}

fn plain(client: &mut Client) {
    let start = clock::now();
    for _ in 0..10 {
        let answer = client.get("/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello\n"));
    }
    // A worker that lingers after its answer does so for two seconds.
    assert!(since(start) < Duration::from_secs(15), "{:?}", since(start));
    client.send("HEAD / HTTP/1.1\r\nHost: app\r\n\r\n");
    let head = client.response_to("HEAD");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length").as_deref(), Some("6"));
}

fn what_the_application_sees(client: &mut Client, expected: &Expected) {
    client.send(
        "GET /echo/a%2Fb%20%C3%A9?q=%20&r HTTP/1.1\r\nHost: app:81\r\nX-Twice: 1\r\nX-Twice: 2\r\n\
         Cookie: a=1; b=2\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
    );
    let echo = client.response().json();
    let environ = &echo["environ"];
    // gunicorn takes the octets of this protocol for Latin-1, and encodes them once more.
    let mangles = expected.profile == "gunicorn-sync" && !expected.set.is_empty();
    if !mangles && expected.usual {
        assert_eq!(echo["path"], "/echo/a/b é", "{echo}");
    }
    assert_eq!(echo["query"], "q=%20&r", "{echo}");
    assert_eq!(environ["SCRIPT_NAME"], "", "{echo}");
    assert_eq!(environ["wsgi.url_scheme"], "http", "{echo}");
    assert_eq!(echo["headers"]["Host"], "app:81", "{echo}");
    assert_eq!(echo["headers"]["Cookie"], "a=1; b=2", "{echo}");
    let twice = echo["headers"]["X-Twice"].as_str().unwrap_or_default();
    // One has the last of them, another both in one word.
    assert!(
        twice.replace(' ', "") == "1,2" || !expected.usual && ["2", "12"].contains(&twice),
        "{echo}"
    );
    if expected.profile == "waitress" {
        return; // It drops X-Forwarded-* from proxies it was not told to trust.
    }
    assert_eq!(echo["headers"]["X-Forwarded-For"], "127.0.0.1", "{echo}");
    if expected.profile == "uwsgi" && expected.set.contains(&"backend.protocol=uwsgi") {
        assert_eq!(environ["REMOTE_ADDR"], "127.0.0.1", "{echo}");
        assert_eq!(environ["SERVER_NAME"], "app", "{echo}");
    }
}

fn uploads(client: &mut Client) {
    let arrived = |answer: Response, length: usize, digest: &str| {
        assert_eq!(answer.status, 200, "{answer:?}");
        let echo = answer.json();
        assert_eq!(echo["size"], length, "{echo}");
        assert_eq!(echo["sha256"], digest, "{echo}");
        assert_eq!(echo["transfer_encoding"], Value::Null, "{echo}");
    };
    for length in [100_000, 1_000_000] {
        let (body, digest) = upload(length);
        client.send(format!(
            "POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n"
        ));
        client.send(&body);
        arrived(client.response(), length, digest);

        client.send("POST /echo HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
        for piece in body.chunks(30_000) {
            client.send(format!("{:x}\r\n", piece.len()));
            client.send(piece).send("\r\n");
        }
        client.send("0\r\n\r\n");
        arrived(client.response(), length, digest);
    }
    client.send("POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().json()["size"], 0);
}

fn an_upload_that_nobody_looks_at(client: &mut Client) {
    let (body, _) = upload(100_000);
    client.send("POST /status HTTP/1.1\r\nHost: app\r\nContent-Length: 100000\r\n\r\n");
    client.send(&body);
    assert_eq!(client.response().status, 200);
}

fn answers(client: &mut Client) {
    for status in [204, 304, 404, 500] {
        let answer = client.get(&format!("/status?code={status}"));
        assert_eq!(answer.status, status);
        assert_eq!(answer.body.is_empty(), status < 400, "{answer:?}");
    }
    let length = 5_000_000;
    let answer = client.get(&format!("/size?n={length}"));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body.len(), length);
    let right = |(at, &byte): (usize, &u8)| byte == (at % 256) as u8;
    assert!(answer.body.iter().enumerate().all(right), "in order");
    let answer = client.get("/chunked?n=5");
    assert_eq!(
        answer.text(),
        "piece 0\npiece 1\npiece 2\npiece 3\npiece 4\n"
    );
}

/// `Expect: 100-continue`: the invitation comes when there is room, and not when there is none.
fn expectations(tidegate: &Tidegate) {
    let head =
        "POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let mut client = tidegate.client();
    client.send(head);
    let invitation = client.try_head().expect("an interim answer");
    assert_eq!(invitation.status, 100);
    client.send("12345");
    let answer = client.response();
    assert_eq!(answer.json()["size"], 5);

    // On a machine that pauses, the server may have room again before it is asked: then it gets more to do.
    let refused = |busy_for: &u32| {
        let answered = || tidegate.metric("tidegate_requests_total", &[]);
        let before = answered();
        let mut busy = tidegate.client();
        busy.ask(&format!("/sleep?ms={busy_for}"));
        until("it is at work, or has been", || {
            tidegate.metric("tidegate_in_flight_requests", &[]) == 1.0 || answered() > before
        });
        let mut client = tidegate.client();
        client.send(head);
        let answer = client.try_head().expect("an answer");
        if answer.status == 100 {
            client.send("12345").response();
        }
        assert_eq!(busy.response().status, 200);
        tidegate.until_idle();
        answer.status == 503
    };
    assert!([400, 1600, 6400].iter().any(refused), "before the body");
}

/// A head that the server would not take is a 431, whoever says it; never a reset.
fn heads(tidegate: &Tidegate, expected: &Expected) {
    for length in [LARGE, TOO_LARGE_FOR_UWSGI, TOO_LARGE_FOR_GUNICORN] {
        let fits = expected.too_large.is_none_or(|limit| length < limit);
        // Twice: the first may have been the one that showed it.
        for _ in 0..2 {
            let field = ("X-Large", "a".repeat(length));
            let answer =
                common::request(tidegate.address(), "GET", "/", &[(field.0, &field.1)], b"");
            match (fits, expected.profile) {
                _ if expected.says_400 && length > 8190 => {
                    assert!(matches!(answer.status, 400 | 431), "{answer:?}");
                }
                (true, _) => assert_eq!(answer.status, 200, "{length}: {answer:?}"),
                (false, profile) => {
                    assert_eq!(answer.status, 431, "{length}: {answer:?}");
                    // In our words, whoever noticed.
                    let own = [
                        "uwsgi",
                        "gunicorn-sync",
                        "gunicorn-gthread",
                        "gunicorn-gevent",
                    ];
                    assert!(
                        !own.contains(&profile) || answer.reason() == "headers_too_large",
                        "{answer:?}"
                    );
                }
            }
        }
    }
    if expected.profile.starts_with("gunicorn") && expected.too_large.is_some() {
        what_gunicorn_limits(tidegate);
    }
    let lost = tidegate.metric("tidegate_backend_errors_total", &[]);
    assert_eq!(lost, 0.0, "no error of the backend so far");
}

/// A request line of 4094 bytes, and a hundred fields with those that are added on the way.
fn what_gunicorn_limits(tidegate: &Tidegate) {
    for _ in 0..2 {
        // "GET " and " HTTP/1.1" are 13 of them.
        let target = |length: usize| tidegate.get(&format!("/echo/{}", "a".repeat(length - 6)));
        assert_eq!(target(4081).status, 200);
        let answer = target(4082);
        assert_eq!((answer.status, &*answer.reason()), (414, "target_too_long"));
        // With Host, and what is added, of which it can do without four.
        for count in [80, 92, 94, 96, 97, 99] {
            let names: Vec<String> = (0..count).map(|number| format!("X-{number}")).collect();
            let fields: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "1")).collect();
            let answer = common::request(tidegate.address(), "GET", "/", &fields, b"");
            match answer.status {
                200 => assert!(
                    count <= 96,
                    "{count}: gunicorn takes no more than a hundred"
                ),
                status => {
                    assert!(count > 96, "{count}: {answer:?}");
                    assert_eq!((status, &*answer.reason()), (431, "headers_too_large"));
                }
            }
        }
    }
}

/// The very first request of all is refused in our words too, while nobody knows who the backend is.
#[test]
fn what_is_too_large_for_a_server_that_nobody_knows_yet() {
    let server = Server::tcp(servers::GUNICORN_SYNC, &[]).expect("gunicorn");
    let tidegate = Tidegate::to(server.address())
        .set("discovery.proc=false")
        .start();
    let answer = tidegate.get(&format!("/{}", "a".repeat(5000)));
    assert_eq!((answer.status, &*answer.reason()), (414, "target_too_long"));
    // It may have been told to take more, so nothing was concluded from that.
    let endpoint = &tidegate.status()["backend"]["endpoints"][0];
    assert_eq!(endpoint["profile"], Value::Null, "{endpoint}");
    assert_eq!(tidegate.metric("tidegate_backend_errors_total", &[]), 0.0);
    tidegate.until_idle();
}

/// What the server was told to take is taken, and an application's own words stay its own.
#[test]
fn limits_that_were_raised_and_refusals_of_the_application() {
    let more = ["--limit-request-line", "8000"];
    let server = Server::tcp(servers::GUNICORN_SYNC, &more).expect("gunicorn");
    let tidegate = Tidegate::to(server.address()).start();
    let long = "a".repeat(5000);
    for _ in 0..4 {
        assert_eq!(tidegate.get(&format!("/echo/{long}")).status, 200);
        let answer = tidegate.get(&format!("/status?code=414&{long}"));
        assert_eq!((answer.status, &*answer.text()), (414, "status 414\n"));
    }
}

/// The client learns of it by a 502, and the next one is served, if somebody starts a new worker.
fn a_worker_dies(tidegate: &Tidegate, expected: &Expected) {
    let answer = tidegate.get("/die");
    // Apache answers in its daemon's place.
    let own = if expected.profile == "mod_wsgi" {
        &[500, 502, 504][..]
    } else {
        &[502][..]
    };
    assert!(own.contains(&answer.status), "{answer:?}");
    tidegate.until_idle();
    if expected.comes_back {
        until("the backend is back", || tidegate.get("/").status == 200);
    } else {
        // A connection that the kernel took before its listener was gone is reset.
        until("nobody listens any more", || {
            let answer = tidegate.get("/");
            assert_eq!(answer.status, 502, "{answer:?}");
            answer.reason() == "backend_unreachable"
        });
    }
}

/// As many clients at once as there are paths; the statuses of their answers.
fn at_once(tidegate: &Tidegate, paths: &[&str]) -> Vec<u16> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = paths
            .iter()
            .map(|path| scope.spawn(move || tidegate.get(path).status))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("an answer"))
            .collect()
    })
}

/// More connections than the backlog takes: they wait, and nobody gets an error.
fn a_full_backlog(server: &Server) {
    let tidegate = Tidegate::to(server.address())
        .limit(12)
        .set("limit.algorithm=fixed")
        .start();
    let start = clock::now();
    let statuses = at_once(&tidegate, &["/sleep?ms=60"; 12]);
    assert_eq!(statuses, [200; 12]);
    // One worker, one after the other; a SYN that the kernel sends again by itself takes a second.
    assert!(since(start) < Duration::from_secs(10), "{:?}", since(start));
    let errors = tidegate.metric("tidegate_backend_errors_total", &[]);
    assert_eq!(errors, 0.0);
    tidegate.until_idle();
}

#[test]
fn a_full_unix_backlog_is_waited_for() {
    if let Some(server) = Server::unix(servers::GUNICORN_SYNC, &["--backlog", "1"]) {
        a_full_backlog(&server);
    }
}

#[test]
fn a_full_tcp_backlog_is_waited_for() {
    if let Some(server) = Server::tcp(servers::GUNICORN_SYNC, &["--backlog", "1"]) {
        a_full_backlog(&server);
    }
}

/// Workers that are replaced after a few requests, or all at once by a HUP: nobody notices.
fn replaced(kind: servers::Kind) {
    let more = ["--workers", "2", "--max-requests", "7"];
    let mut server = Server::tcp(kind, &more).expect("gunicorn");
    let tidegate = Tidegate::to(server.address())
        .limit(4)
        .set("queue.max_wait=20s")
        .start();
    let lost = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = tidegate.client();
                    (0..40).filter(|_| client.get("/").status != 200).count()
                })
            })
            .collect();
        server.process.signal(rustix::process::Signal::HUP);
        clients
            .into_iter()
            .map(|client| client.join().expect("answers"))
            .sum::<usize>()
    });
    assert_eq!(lost, 0);
    tidegate.until_idle();
}

#[test]
fn sync_workers_are_replaced() {
    replaced(servers::GUNICORN_SYNC);
}

#[test]
fn gthread_workers_are_replaced() {
    replaced(servers::GUNICORN_GTHREAD);
}

/// Where its process cannot be seen, uWSGI is known by what it does not say.
#[test]
fn uwsgi_is_recognised_by_its_answers() {
    let Some(server) = Server::tcp(servers::UWSGI_HTTP, &[]) else {
        return;
    };
    let tidegate = Tidegate::to(server.address())
        .set("discovery.proc=false")
        .start();
    let mut client = tidegate.client();
    for _ in 0..240 {
        assert_eq!(client.get("/").status, 200);
    }
    let endpoint = &tidegate.status()["backend"]["endpoints"][0];
    assert_eq!(endpoint["profile"], "uwsgi");
    assert_eq!(endpoint["profile_source"], "behaviour");
    let field = "a".repeat(TOO_LARGE_FOR_UWSGI);
    let answer = common::request(tidegate.address(), "GET", "/", &[("X-Large", &field)], b"");
    assert_eq!(answer.reason(), "headers_too_large");
}

/// A chunked upload that can be held nowhere would reach a view as none, with a 200.
#[test]
fn what_uwsgi_would_lose_is_refused() {
    let Some(server) = Server::tcp(servers::UWSGI_HTTP, &[]) else {
        return;
    };
    let tidegate = Tidegate::to(server.address())
        .set("backend.profile=uwsgi")
        .set("backend.dechunk=false")
        .set("buffers.request=64KiB")
        .start();
    let mut client = tidegate.client();
    let head = "POST /echo HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(head).send("5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.response().json()["size"], 5, "it has a length");
    client.send(head);
    for _ in 0..3 {
        let _ = client.try_send(format!("8000\r\n{}\r\n", "x".repeat(0x8000)));
    }
    let refused = client.response();
    assert_eq!(
        (refused.status, &*refused.reason()),
        (413, "body_too_large")
    );
    tidegate.until_idle();
}

/// A hundred requests in one write: in order, and never two of them at the backend.
#[test]
fn a_pipeline_is_one_request_at_a_time() {
    let server = Server::tcp(servers::GUNICORN_GTHREAD, &[]).expect("gunicorn");
    // One at a time, and nobody may wait: a second one would be a 503.
    let tidegate = Tidegate::to(server.address())
        .limit(1)
        .set("queue.max_wait=0s")
        .start();
    let mut client = tidegate.client();
    let requests: String = (0..100)
        .map(|number| format!("GET /echo?{number} HTTP/1.1\r\nHost: app\r\n\r\n"))
        .collect();
    client.send(requests);
    for number in 0..100 {
        let answer = client.response();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["query"], number.to_string());
    }
    tidegate.until_idle();
}

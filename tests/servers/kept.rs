//! Connections to a server that are kept, and closed under a request.

use super::*;

/// `backend.keepalive = true`: for those who keep connections, without a lost request.
fn kept(server: &Server, least: f64) {
    let tidegate = Tidegate::to(server.address())
        .limit(4)
        .set("backend.keepalive=true")
        .start();
    let mut client = tidegate.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").status, 200);
        client.send("POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\n12345");
        assert_eq!(client.response().json()["size"], 5);
    }
    let connections = |reused| {
        let labels = [("reused", reused)];
        tidegate.metric("tidegate_backend_connections_total", &labels)
    };
    assert_eq!(connections("true") + connections("false"), 40.0);
    assert!(connections("true") >= least, "{}", connections("true"));
    assert_eq!(tidegate.metric("tidegate_backend_errors_total", &[]), 0.0);
}

#[test]
fn gthread_keeps_connections() {
    let server = Server::tcp(servers::GUNICORN_GTHREAD, &[]);
    kept(&server.expect("gunicorn"), 30.0);
}

#[test]
fn gevent_keeps_connections() {
    if let Some(server) = Server::tcp(servers::GUNICORN_GEVENT, &[]) {
        kept(&server, 30.0);
    }
}

#[test]
fn waitress_keeps_connections() {
    let server = Server::unix(servers::WAITRESS, &[]);
    kept(&server.expect("waitress"), 30.0);
}

#[test]
fn other_event_loops_keep_connections() {
    let kinds = [
        servers::BJOERN,
        servers::GEVENT,
        servers::GRANIAN,
        servers::HYPERCORN,
        servers::UVICORN,
    ];
    for server in kinds.into_iter().filter_map(|kind| Server::tcp(kind, &[])) {
        kept(&server, 30.0);
    }
}

#[test]
fn uwsgi_does_not_and_nothing_is_lost_by_asking() {
    if let Some(server) = Server::tcp(servers::UWSGI_HTTP, &[]) {
        kept(&server, 0.0);
    }
}

#[test]
fn a_connection_that_the_server_closes_just_then() {
    let server = Server::tcp(servers::GUNICORN_GTHREAD, &["--keep-alive", "1"]).expect("gunicorn");
    let tidegate = Tidegate::to(server.address())
        .limit(8)
        .set("backend.keepalive=true")
        .set("backend.keepalive_idle=10s")
        .start();
    // Around the second after which the server closes.
    std::thread::scope(|scope| {
        for number in 0..8_u64 {
            let tidegate = &tidegate;
            scope.spawn(move || {
                let mut client = tidegate.client();
                for round in 0..4 {
                    assert_eq!(client.get("/").status, 200);
                    let pause = 960 + 12 * ((number + 3 * round) % 8);
                    std::thread::sleep(Duration::from_millis(pause));
                }
            });
        }
    });
}

//! Who wins, and who is told to have won.

use std::time::Duration;

use super::*;
use crate::clock;

const WAIT: &str = "queue.max_wait";
const FILE: &str = "[queue]\nmax_wait = \"1s\"\n";

fn wait(result: Result<Loaded, Problems>) -> (u64, String) {
    let loaded = result.unwrap_or_else(|problems| panic!("{problems}"));
    let millis = u64::try_from(loaded.config.queue.max_wait.as_millis()).unwrap();
    (millis, loaded.origins.get(WAIT).to_string())
}

#[test]
fn flag_over_environment_over_file_over_default() {
    let env = env(&[("TIDEGATE_QUEUE__MAX_WAIT", "2s")]);
    let both = set(env.clone(), WAIT, "3s");
    let none = Sources::default();
    assert_eq!(wait(load(&none)), (500, "default".to_owned()));
    assert_eq!(
        wait(load_text(FILE, &none)),
        (1000, "tidegate.toml:2".to_owned())
    );
    assert_eq!(
        wait(load_text(FILE, &env)),
        (2000, "env TIDEGATE_QUEUE__MAX_WAIT".to_owned())
    );
    assert_eq!(
        wait(load_text(FILE, &both)),
        (3000, "flag --set queue.max_wait".to_owned())
    );
    // The last of two flags.
    assert_eq!(wait(load_text(FILE, &set(both, WAIT, "\"4s\""))).0, 4000);
}

#[test]
fn short_forms_are_read_and_long_ones_win() {
    let addresses = |vars: &[(&str, &str)]| -> Vec<String> {
        let config = load(&env(vars)).unwrap().config;
        config
            .backend
            .endpoints
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(
        addresses(&[("TIDEGATE_BACKEND", "a:1, unix:/b ,:3")]),
        ["a:1", "unix:/b", "127.0.0.1:3"]
    );
    assert_eq!(addresses(&[("TIDEGATE_BACKEND", "")]), ["127.0.0.1:8000"]);
    let both = [
        ("TIDEGATE_BACKEND__ENDPOINTS", "[\"long:1\"]"),
        ("TIDEGATE_BACKEND", "short:1"),
    ];
    assert_eq!(addresses(&both), ["long:1"]);
    let config = load(&env(&[
        ("TIDEGATE_LISTEN", "[::1]:80"),
        ("TIDEGATE_ADMIN", ":1"),
    ]))
    .unwrap()
    .config;
    assert_eq!(config.server.listen[0].to_string(), "[::1]:80");
    assert_eq!(config.admin.listen.to_string(), "0.0.0.0:1");
}

#[test]
fn text_becomes_what_the_key_takes() {
    let sources = env(&[
        ("TIDEGATE_LIMIT__AIMD__INCREASE", "2"),
        ("TIDEGATE_SERVER__HTTP2", "false"),
        ("TIDEGATE_SERVER__THREADS", "auto"),
        ("TIDEGATE_SERVER__MAX_BODY_BYTES", "1MiB"),
        ("TIDEGATE_BUFFERS__REQUEST", "4096"),
        ("TIDEGATE_HEADERS__TRUSTED_PROXIES", "10.0.0.1/8,::1"),
        ("TIDEGATE_QUEUE__DEADLINE_HEADER", ""),
        ("TIDEGATE_PROCESS__COMMAND", "[\"sh\", \"-c\", \"a,b\"]"),
        ("TIDEGATE_REJECT__RETRY_AFTER", "5s"),
        ("TIDEGATE_REJECT__STATUS", "429"),
        ("TIDEGATE_HEADERS__REQUEST_ID", "2048"),
    ]);
    let config = load(&sources).unwrap().config;
    assert_eq!(config.limit.aimd.increase, 2.0);
    assert!(!config.server.http2 && config.server.threads >= 1);
    assert_eq!(
        (config.server.max_body_bytes, config.buffers.request),
        (1 << 20, 4096)
    );
    let networks: Vec<_> = config
        .headers
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    assert_eq!(config.queue.deadline_header, "");
    assert_eq!(config.process.command, ["sh", "-c", "a,b"]);
    assert_eq!(
        config.reject.retry_after,
        RetryAfter::Fixed(Duration::from_secs(5))
    );
    assert_eq!(
        (config.reject.status, config.headers.request_id.as_str()),
        (429, "2048")
    );
}

#[test]
fn the_contract_is_the_default() {
    let loaded = load_text(include_str!("contract.toml"), &Sources::default());
    let config = loaded
        .unwrap_or_else(|problems| panic!("{problems}"))
        .config;
    let health = Route {
        name: "health".to_owned(),
        path: "/healthz".to_owned(),
        methods: vec![],
        header: String::new(),
        class: Class::Protected,
        max_in_flight: 0,
    };
    assert_eq!(config.routes, [health]);
    assert_eq!(
        Config {
            routes: vec![],
            ..(*config).clone()
        },
        Config::default()
    );
}

#[test]
fn the_contract_names_every_key() {
    let text = include_str!("contract.toml");
    let loaded = load_text(text, &Sources::default()).unwrap();
    for (key, origin) in loaded.origins.iter() {
        assert!(matches!(origin, Origin::File { .. }), "{key}: {origin}");
    }
}

#[test]
fn the_example_files_are_valid() {
    let annotated = load_text(
        include_str!("../../../config/tidegate.toml"),
        &Sources::default(),
    );
    let annotated = annotated.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(*annotated.config, Config::default());
    let minimal = load_text(
        include_str!("../../../config/minimal.toml"),
        &Sources::default(),
    );
    minimal.unwrap_or_else(|problems| panic!("{problems}"));
}

#[test]
fn the_annotated_example_names_every_key_at_its_default() {
    let text: String = include_str!("../../../config/tidegate.toml")
        .lines()
        .map(|line| {
            // "# key = value" is a key that is commented out; prose has a capital or no " = ".
            let plain = line.strip_prefix("# ").unwrap_or(line);
            let key = plain.split(" = ").next().unwrap_or_default();
            let is_key = key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit());
            let is_table = plain.starts_with('[');
            let kept = if is_table || (is_key && plain.contains(" = ")) {
                plain
            } else {
                ""
            };
            format!("{kept}\n")
        })
        .collect();
    let loaded =
        load_text(&text, &Sources::default()).unwrap_or_else(|problems| panic!("{problems}"));
    for (key, origin) in loaded
        .origins
        .iter()
        .filter(|(key, _)| !key.starts_with("route"))
    {
        assert!(matches!(origin, Origin::File { .. }), "{key} is missing");
    }
    assert_eq!(
        Config {
            routes: vec![],
            ..(*loaded.config).clone()
        },
        Config::default()
    );
}

#[test]
fn a_reload_knows_what_needs_a_restart() {
    let old = load(&Sources::default()).unwrap();
    let text = "[server]\nthreads = 2\nidle_timeout = \"9s\"\n[limit]\nmax = 5\n\
                [drain]\ntimeout = \"25000ms\"\ndelay = \"1s\"\n[[route]]\nname = \"a\"\n";
    let new = load_text(text, &Sources::default()).unwrap();
    assert_eq!(needs_restart(&old, &new), ["server.threads", "drain.delay"]);
    assert_eq!(needs_restart(&new, &new), [""; 0]);
}

#[test]
fn the_body_of_a_refusal_is_read_beside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("busy.html"), "<p>busy").unwrap();
    let file = dir.path().join("tidegate.toml");
    std::fs::write(&file, "[reject]\nbody = \"file:busy.html\"\n").unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let loaded = load(&sources).unwrap();
    let expected = RejectBody::File {
        path: dir.path().join("busy.html"),
        content: b"<p>busy".to_vec(),
        media_type: "text/html; charset=utf-8",
    };
    assert_eq!(loaded.config.reject.body, expected);
    // Fed back in from elsewhere.
    let again = load_text(&loaded.render_toml(), &Sources::default()).unwrap();
    assert_eq!(again.config, loaded.config);
}

/// The places of all of them are known without counting from the start of the file for each.
#[test]
fn thousands_of_routes_are_read_at_once() {
    let routes = (0..20_000).map(|i| format!("[[route]]\nname = \"r{i}\"\npath = \"/{i}\"\n"));
    let text: String = routes.collect();
    let begun = clock::now();
    let loaded = load_text(&text, &Sources::default()).expect("it is valid");
    let took = clock::now().saturating_duration_since(begun);
    assert_eq!(loaded.config.routes.len(), 20_000);
    assert!(took < Duration::from_secs(10), "{took:?}");
    let twice = text + "[[route]]\nname = \"r7\"\n";
    assert_eq!(
        lines(load_text(&twice, &Sources::default())),
        "tidegate.toml:60002:8: route.name: \"r7\" is the name of another route (tidegate.toml:23); choose a unique one"
    );
}

#[test]
fn a_configuration_for_exec_is_written_so_that_it_is_one_again() {
    let text = "[server]\nlisten = [\"127.0.0.1:8000\"]\n[process]\ncommand = [\"true\"]\n";
    let looked_at = Sources {
        for_exec_too: true,
        ..Sources::default()
    };
    let loaded = load_text(text, &looked_at).unwrap();
    assert_eq!(loaded.config.backend.endpoints, [Address::any()]);
    let written = loaded.render_toml();
    assert!(written.contains("\n# endpoints = "), "{written}");
    assert_eq!(
        load_text(&written, &looked_at).unwrap().config,
        loaded.config
    );
    let for_run = load_text(text, &Sources::default());
    assert!(lines(for_run).contains("is where tidegate itself listens"));
    // Whoever names an endpoint means it.
    let named = load_text(text, &env(&[("TIDEGATE_BACKEND", ":8001")])).unwrap();
    assert_eq!(
        named.config.backend.endpoints[0].to_string(),
        "127.0.0.1:8001"
    );
}

//! What is wrong is said in exactly these words.

use super::*;

#[test]
fn each_problem_of_a_file_has_its_place_and_its_remedy() {
    let cases = [
        // Keys and sections.
        (
            "[queue]\nmax_wiat = \"1s\"",
            "2:1: unknown key queue.max_wiat; did you mean max_wait?",
        ),
        (
            "[limit]\nmax_wait = \"1s\"",
            "2:1: unknown key limit.max_wait; did you mean queue.max_wait?",
        ),
        (
            "listen = \":80\"",
            "1:1: unknown key listen; did you mean server.listen?",
        ),
        (
            "[drain]\nxyzzy = 1",
            "2:1: unknown key drain.xyzzy; [drain] has delay, timeout",
        ),
        (
            "[queu]\ncapacity = 1",
            "1:2: unknown section [queu]; did you mean [queue]?",
        ),
        (
            "[limit.amid]\n",
            "1:8: unknown section [limit.amid]; did you mean [limit.aimd]?",
        ),
        (
            "[server]\nlimit.max = 1",
            "2:1: unknown section [server.limit]; did you mean [limit]?",
        ),
        (
            "[[routes]]\nname = \"a\"",
            "1:3: unknown section [routes]; did you mean [[route]]?",
        ),
        (
            "[xyzzy]\n",
            "1:2: unknown section [xyzzy]; the sections are server, admin, backend, discovery, limit, \
             limit.aimd, limit.resources, queue, route, reject, buffers, headers, drain, process, log, trace",
        ),
        (
            "queue = 5",
            "1:9: queue is a section; write [queue], then its keys",
        ),
        (
            "[[queue]]\n",
            "1:1: queue is one section, not a list; write [queue]",
        ),
        (
            "[route]\nname = \"a\"",
            "1:1: route is a list of routes; write [[route]], with two brackets",
        ),
        (
            "[queue]\nclient_key = \"address\"",
            "2:14: queue.client_key: \"address\" is neither \"ip\" nor \"header:Name\"; write one of them, or \"\"",
        ),
        (
            "[queue]\nclient_key = \"header:\"",
            "2:14: queue.client_key: \"header:\" is neither \"ip\" nor \"header:Name\"; write one of them, or \"\"",
        ),
        // Types.
        (
            "[queue]\nmax_wait = \"500\"",
            "2:12: queue.max_wait: \"500\" is not a duration; write a number with a unit, as \"500ms\" or \"5s\"",
        ),
        (
            "[queue]\nmax_wait = 500",
            "2:12: queue.max_wait: 500 is not a duration; write a number with a unit, as \"500ms\" or \"5s\"",
        ),
        (
            "[server]\nhttp2 = \"yes\"",
            "2:9: server.http2: \"yes\" is not a boolean; write true or false",
        ),
        (
            "[limit]\nmin = \"2\"",
            "2:7: limit.min: \"2\" is not a whole number; write one from 1 to 100000",
        ),
        (
            "[limit]\nmin = 1.5",
            "2:7: limit.min: 1.5 is not a whole number; write one from 1 to 100000",
        ),
        (
            "[server]\nthreads = \"many\"",
            "2:11: server.threads: \"many\" is not a whole number; write \"auto\" or one from 1 to 256",
        ),
        (
            "[buffers]\nrequest = \"64XiB\"",
            "2:11: buffers.request: \"64XiB\" is not a size; write bytes or a number with a unit, as \"64KiB\" or \"1MiB\"",
        ),
        (
            "[backend]\nendpoints = \"app:8000\"",
            "2:13: backend.endpoints: \"app:8000\" is not a list; write [\"app:8000\"]",
        ),
        (
            "[process]\ncommand = \"gunicorn -w 4 app:app\"",
            "2:11: process.command: \"gunicorn -w 4 app:app\" is not a list; write [\"gunicorn\", \"-w\", \"4\", \"app:app\"]",
        ),
        (
            "[log]\nlevel = 3",
            "2:9: log.level: 3 is not a string; write it in quotes",
        ),
        (
            "[queue.max_wait]\n",
            "1:1: queue.max_wait: a table is not a duration; write a number with a unit, as \"500ms\" or \"5s\"",
        ),
        // Ranges.
        (
            "[limit]\nmin = 0",
            "2:7: limit.min: 0 is out of range; write a whole number from 1 to 100000",
        ),
        (
            "[limit]\nmax = -1",
            "2:7: limit.max: -1 is out of range; write a whole number from 1 to 100000",
        ),
        (
            "[limit.aimd]\ndecrease = 1.5",
            "2:12: limit.aimd.decrease: 1.5 is out of range; write a number from 0.05 to 0.99",
        ),
        (
            "[limit.aimd]\nincrease = nan",
            "2:12: limit.aimd.increase: NaN is out of range; write a number from 0.01 to 100.0",
        ),
        (
            "[server]\nheader_timeout = \"0s\"",
            "2:18: server.header_timeout: \"0s\" is out of range; write a duration from \"1ms\" to \"24h\"",
        ),
        (
            "[server]\nbody_timeout = \"0s\"",
            "2:16: server.body_timeout: \"0s\" is out of range; write a duration from \"1ms\" to \"24h\"",
        ),
        (
            "[server]\nmax_header_bytes = 100",
            "2:20: server.max_header_bytes: 100 is out of range; write a size from \"8KiB\" to \"16MiB\"",
        ),
        (
            "[reject]\nstatus = 500",
            "2:10: reject.status: 500 is not one of 503, 429",
        ),
        // Words.
        (
            "[queue]\ndiscipline = \"lifo\"",
            "2:14: queue.discipline: \"lifo\" is not one of adaptive-lifo, fifo; did you mean adaptive-lifo?",
        ),
        (
            "[process]\nrestart = \"on_failure\"",
            "2:11: process.restart: \"on_failure\" is not one of never, on-failure, always; did you mean on-failure?",
        ),
        (
            "[reject]\nretry_after = \"of\"",
            "2:15: reject.retry_after: \"of\" is not one of auto, off, a duration as \"5s\"; did you mean off?",
        ),
        (
            "[reject]\nbody = \"json\"",
            "2:8: reject.body: \"json\" is not one of problem+json, text, file:PATH; did you mean problem+json?",
        ),
        // Addresses.
        (
            "[backend]\nendpoints = [\"a:1\", \"localhost\"]",
            "2:21: backend.endpoints: \"localhost\" has no port; write host:port, as \"localhost:8000\"",
        ),
        (
            "[server]\nlisten = [8080]",
            "2:11: server.listen: 8080 is not an address; write \":8080\"",
        ),
        (
            "[admin]\nlisten = false",
            "2:10: admin.listen: \"false\" is not an address, and the admin server cannot be switched off; write host:port or unix:/path",
        ),
        (
            "[server]\nlisten = []",
            "2:10: server.listen: is empty; write at least one address",
        ),
        (
            "[backend]\nendpoints = [\"a:1\", \"http://a:1\"]",
            "2:13: backend.endpoints: \"a:1\" is there twice; remove one",
        ),
        (
            "[headers]\ntrusted_proxies = [\"10.0.0.0/33\"]",
            "2:20: headers.trusted_proxies: \"10.0.0.0/33\" is not a network; write a CIDR as \"10.0.0.0/8\" or an IP address",
        ),
        // Strings.
        (
            "[headers]\nrequest_id = \"X Id\"",
            "2:14: headers.request_id: \"X Id\" is not a header name; write one as \"X-Name\", or \"\" for none",
        ),
        (
            "[headers]\nrequest_id = \"Content-Length\"",
            "2:14: headers.request_id: \"Content-Length\" is a header with a meaning of its own, which would be overwritten; write another, as \"X-Request-Id\", or \"\" for none",
        ),
        (
            "[log]\nlevel = \" ,\"",
            "2:9: log.level: \" ,\" is not a filter; write one as \"info,tidegate::proxy=debug\"",
        ),
        // Rules between keys.
        (
            "[limit]\nmin = 20\nmax = 10",
            "2:7: limit.min: 20 is above limit.max (10); lower one or raise the other",
        ),
        (
            "[limit]\ninitial = 2000",
            "2:11: limit.initial: 2000 is above limit.max (1000); lower it, or write 0 for the default",
        ),
        (
            "[limit]\ninitial = 5\nmin = 6",
            "2:11: limit.initial: 5 is below limit.min (6); raise it, or write 0 for the default",
        ),
        (
            "[buffers]\ntotal = \"128KiB\"\nresponse = 0",
            "2:9: buffers.total: buffers.request (\"256KiB\") is above it (\"128KiB\"); lower one or raise the other",
        ),
        (
            "[backend]\nendpoints = [\"localhost:8080\"]",
            "2:13: backend.endpoints: \"localhost:8080\" is where tidegate itself listens (server.listen \"0.0.0.0:8080\"); write the workers' address",
        ),
        (
            "[admin]\nlisten = \"127.0.0.1:8080\"",
            "2:10: admin.listen: server.listen \"0.0.0.0:8080\" and admin.listen \"127.0.0.1:8080\" are one port; choose another for one of them",
        ),
        (
            "[server]\nlisten = [\"0.0.0.0:9180\"]",
            "2:10: server.listen: server.listen \"0.0.0.0:9180\" and admin.listen \"127.0.0.1:9180\" are one port; choose another for one of them",
        ),
        (
            "[backend]\nendpoints = [\"127.0.0.1:9180\"]",
            "2:13: backend.endpoints: \"127.0.0.1:9180\" is where tidegate's admin server listens (admin.listen \"127.0.0.1:9180\"); write the workers' address",
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:8080\"",
            "2:10: admin.listen: \"0.0.0.0:8080\" is in server.listen too; choose another port",
        ),
        // Routes.
        (
            "[[route]]\npath = \"/a\"",
            "1:1: route.name: is missing: it is a metric label; write name = \"...\"",
        ),
        (
            "[[route]]\nname = \"a\"\n[[route]]\nname = \"a\"",
            "4:8: route.name: \"a\" is the name of another route (tidegate.toml:2); choose a unique one",
        ),
        (
            "[[route]]\nname = \"default\"",
            "2:8: route.name: \"default\" is what requests are counted under that no route matches; choose another name",
        ),
        (
            "[[route]]\nname = \"a\"\nclas = \"low\"",
            "3:1: unknown key route.clas; did you mean class?",
        ),
        (
            "[[route]]\nname = \"a\"\npath = \"a\"",
            "3:8: route.path: \"a\" does not start with a slash; write \"/a\"",
        ),
        (
            "[[route]]\nname = \"a\"\npath = \"/a*\"",
            "3:8: route.path: \"/a*\" has a * that is not at its end after a slash; write a prefix as \"/api/*\"",
        ),
        (
            "[[route]]\nname = \"a\"\nmethods = [\"GET\", \"post\"]",
            "3:19: route.methods: \"post\" is not a method: methods are in capitals; write \"POST\"",
        ),
        // The file itself.
        (
            "[queue]\nmax_wait = \"1s\"\nmax_wait = \"2s\"",
            "3:1: duplicate key queue.max_wait: line 2 has it already; remove one",
        ),
        (
            "[queue]\n[queue]",
            "2:2: duplicate section [queue]; put its keys together",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let expected = format!("tidegate.toml:{expected}");
        let told = lines(load_text(text, &Sources::default()));
        if told != expected {
            wrong.push(format!("{text}\n  expected {expected}\n  got      {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn keys_take_all_that_the_interface_names() {
    let fine = [
        ("backend.profile", "uwsgi"),
        ("backend.protocol", "uwsgi"),
        ("discovery.proc", "false"),
        ("discovery.accept_queue", "false"),
        ("discovery.cgroup", "off"),
        ("discovery.cgroup", "/system.slice/app.service"),
        ("discovery.gunicorn_control_socket", "/run/app/gunicorn.ctl"),
        ("discovery.uwsgi_stats", "/run/app/stats"),
        ("discovery.uwsgi_stats", "127.0.0.1:9191"),
        ("discovery.cpu_limit", "500m"),
        ("discovery.cpu_limit", "2"),
        ("discovery.memory_limit", "512MiB"),
        ("limit.resources.cpu", "false"),
        ("limit.resources.memory", "false"),
        ("limit.resources.cpu_high", "0.5"),
        ("limit.resources.memory_high", "0.5"),
        ("limit.resources.memory_max", "0.95"),
        ("limit.algorithm", "gradient"),
        ("limit.algorithm", "vegas"),
        ("limit.shadow", "vegas, gradient"),
        ("limit.state_file", "/var/lib/tidegate/state.json"),
        ("server.http2", "false"),
    ];
    for (key, value) in fine {
        assert_eq!(lines(load(&set(Sources::default(), key, value))), "");
    }
}

#[test]
fn the_field_of_the_request_id_is_nobody_elses() {
    let told = |name: &str| lines(load(&set(Sources::default(), "headers.request_id", name)));
    for taken in [
        "Connection",
        "Content-Length",
        "content_length",
        "Expect",
        "Forwarded",
        "Host",
        "KEEP-ALIVE",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Via",
        "X-Forwarded-For",
        "X-Request-Start",
    ] {
        assert!(told(taken).contains("a meaning of its own"), "{taken}");
    }
    for free in [
        "",
        "X-Request-Id",
        "X-Correlation-ID",
        "Request-Id",
        "traceparent",
    ] {
        assert_eq!(told(free), "", "{free}");
    }
}

#[test]
fn a_shadow_is_a_law_that_moves() {
    for word in ["fixed", "bbr"] {
        let sources = set(Sources::default(), "limit.shadow", word);
        assert_eq!(
            lines(load(&sources)),
            format!(
                "--set limit.shadow: \"{word}\" cannot run in another's shadow; write aimd, gradient or vegas"
            )
        );
    }
}

#[test]
fn memory_thresholds_are_in_order() {
    let text = "[limit.resources]\nmemory_high = 0.95";
    assert_eq!(
        lines(load_text(text, &Sources::default())),
        "tidegate.toml:2:15: limit.resources.memory_high: 0.95 is above limit.resources.memory_max (0.92); lower one or raise the other"
    );
}

#[test]
fn all_problems_of_all_layers_are_told_in_order() {
    let text = "[queue]\nmax_wait = 1\ncapacity = -1\n[limit]\nmin = 0\n";
    let sources = env(&[
        ("TIDEGATE_QUEUE__MAX_WAIT", "500"),
        ("TIDEGATE_QUEUE__MAX_WIAT", "5s"),
        ("TIDEGATE_BACKEND", "nowhere"),
        ("TIDEGATE_ROUTE__NAME", "a"),
        ("TIDEGATE_ANYTHING", "is not ours"),
        ("TIDEGATE_QUEUE_CAPACITY", "5"),
        ("OTHER__KEY", "neither"),
    ]);
    let sources = set(set(sources, "queue.max_wait", "soon"), "limit.mim", "4");
    assert_eq!(
        lines(load_text(text, &sources)),
        "tidegate.toml:2:12: queue.max_wait: 1 is not a duration; write a number with a unit, as \"500ms\" or \"5s\"\n\
         tidegate.toml:3:12: queue.capacity: -1 is out of range; write a whole number from 0 to 100000\n\
         tidegate.toml:5:7: limit.min: 0 is out of range; write a whole number from 1 to 100000\n\
         TIDEGATE_QUEUE__MAX_WIAT: unknown variable; did you mean TIDEGATE_QUEUE__MAX_WAIT?\n\
         TIDEGATE_ROUTE__NAME: routes are set in the configuration file only\n\
         TIDEGATE_QUEUE_CAPACITY: unknown variable; did you mean TIDEGATE_QUEUE__CAPACITY?\n\
         TIDEGATE_BACKEND: backend.endpoints: \"nowhere\" has no port; write host:port, as \"nowhere:8000\"\n\
         TIDEGATE_QUEUE__MAX_WAIT: \"500\" is not a duration; write a number with a unit, as \"500ms\" or \"5s\"\n\
         --set queue.max_wait: \"soon\" is not a duration; write a number with a unit, as \"500ms\" or \"5s\"\n\
         --set limit.mim: unknown key limit.mim; did you mean min?"
    );
}

#[test]
fn syntax_errors_have_their_place_on_one_line() {
    let cases = [
        ("[queue\n", "1:7"),
        ("[queue]\nmax_wait = \n", "2:12"),
        ("[queue]\nmax_wait = 5s\n", "2:12"),
        ("[queue]\nmax_wait = \"5s\n", "2:15"),
        ("max wait = 1\n[queue]\ncapacity 5\n", "1:5"),
        ("\"ü\" = \"\u{1}\"", "1:8"),
    ];
    for (text, place) in cases {
        let lines = lines(load_text(text, &Sources::default()));
        let first = lines.lines().next().unwrap_or_default();
        assert!(
            first.starts_with(&format!("tidegate.toml:{place}: TOML syntax: ")),
            "{text:?}: {lines}"
        );
    }
    // What is meant is told, where it can be seen.
    for (line, meant) in [
        ("level = info", "level = \"info\""),
        (
            "level = info,tower=debug # why",
            "level = \"info,tower=debug\"",
        ),
        ("max_wait = 500ms", "max_wait = \"500ms\""),
        ("listen = 127.0.0.1:80", "listen = \"127.0.0.1:80\""),
        (
            "listen = [127.0.0.1:80, unix:/a]",
            "listen = [\"127.0.0.1:80\", \"unix:/a\"]",
        ),
        ("http2 = True", "http2 = true"),
    ] {
        let lines = lines(load_text(line, &Sources::default()));
        let told = format!("; write {meant}");
        assert!(lines.ends_with(&told), "{line}: {lines}");
        assert!(lines.contains(": TOML syntax: "), "{line}: {lines}");
    }
    // An array that isn't closed is one problem, whatever follows.
    let open = "[server]\nlisten = [\":80\"\nhttp2 = 0\n[a]\n";
    let open = lines(load_text(open, &Sources::default()));
    assert_eq!(open.lines().count(), 1, "{open}");
    let two = lines(load_text("a b = 1\n\nc d = 1\n", &Sources::default()));
    assert_eq!(two.lines().count(), 2, "{two}");
}

#[test]
fn a_file_that_is_not_text_is_told() {
    let result = load_bytes(
        &Sources::default(),
        Some((Path::new("t.toml"), b"[queue]\nx = \"\xff\"")),
    );
    assert_eq!(
        lines(result),
        "t.toml:2:6: not UTF-8; save the file as UTF-8"
    );
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.toml");
    std::fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    let sources = Sources {
        file: Some(file.clone()),
        ..Sources::default()
    };
    let expected = format!("{}: cannot be read: it has more than 1MiB", file.display());
    assert_eq!(lines(load(&sources)), expected);
}

#[test]
fn the_body_of_a_refusal_must_be_readable() {
    let text = "[reject]\nbody = \"file:missing.html\"";
    let path = Path::new("/nonexistent/tidegate.toml");
    let result = load_bytes(&Sources::default(), Some((path, text.as_bytes())));
    assert_eq!(
        lines(result),
        "/nonexistent/tidegate.toml:2:8: reject.body: \"file:missing.html\" cannot be read \
         (/nonexistent/missing.html): No such file or directory (os error 2); write an absolute path, or one that begins at \
         the configuration file's directory (without a file, at the working directory)"
    );
}

#[test]
fn a_problem_can_be_taken_apart() {
    let problems = load_text("[queue]\nmax_wait = 1", &Sources::default()).unwrap_err();
    let [problem] = &problems.0[..] else {
        panic!("{problems}")
    };
    assert_eq!(problem.location, "tidegate.toml:2:12");
    assert_eq!(problem.key.as_deref(), Some("queue.max_wait"));
}

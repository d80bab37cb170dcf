//! What is printed can be fed back in; no input panics.

use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        ("[a-z][a-z0-9-]{0,8}", 1u16..).prop_map(|(host, port)| format!("{host}:{port}")),
        "/[a-z]{1,8}".prop_map(|path| format!("unix:{path}")),
    ]
    .prop_filter("a descriptor is no host", |address| {
        !address.starts_with("fd:")
    })
}

/// A key with a value that is fine by itself.
fn settings() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let some = |key: &'static str, value: BoxedStrategy<String>| {
        proptest::option::of(value).prop_map(move |value| value.map(|value| (key, value)))
    };
    let duration = || (1u32..80_000_000).prop_map(|ms| format!("{ms}ms")).boxed();
    let size = |max: u64| (65_536..max).prop_map(|bytes| bytes.to_string()).boxed();
    let flag = || any::<bool>().prop_map(|flag| flag.to_string()).boxed();
    let float = |range: std::ops::Range<f64>| range.prop_map(|x| x.to_string()).boxed();
    let word = |words: &'static [&'static str]| {
        proptest::sample::select(words)
            .prop_map(str::to_owned)
            .boxed()
    };
    (
        (
            some(
                "backend.endpoints",
                proptest::collection::hash_set(address(), 1..4)
                    .prop_map(|all| all.into_iter().collect::<Vec<_>>().join(","))
                    .boxed(),
            ),
            some(
                "server.threads",
                prop_oneof![
                    Just("auto".to_owned()),
                    (1u8..9).prop_map(|n| n.to_string())
                ]
                .boxed(),
            ),
            some(
                "server.max_body_bytes",
                any::<u64>().prop_map(|n| format!("{n}B")).boxed(),
            ),
            some("server.http2", flag()),
            some("server.idle_timeout", duration()),
            some(
                "limit.max",
                (1000u32..100_000).prop_map(|n| n.to_string()).boxed(),
            ),
            some("limit.aimd.decrease", float(0.05..0.99)),
            some("limit.aimd.tolerance", float(1.01..100.0)),
        ),
        (
            some("queue.max_wait", duration()),
            some("queue.discipline", word(&["fifo", "adaptive-lifo"])),
            some("queue.deadline_header", "[A-Za-z-]{0,12}".boxed()),
            some(
                "reject.retry_after",
                prop_oneof![duration(), word(&["auto", "off"])].boxed(),
            ),
            some("buffers.request", size(67_108_864)),
            some("buffers.spool_dir", "[^\\x00]{0,12}".boxed()),
            some(
                "headers.trusted_proxies",
                any::<Option<std::net::IpAddr>>()
                    .prop_map(|ip| ip.map(|ip| ip.to_string()).unwrap_or_default())
                    .boxed(),
            ),
            some("process.command", "[^\\x00\\[]{0,12}".boxed()),
        ),
    )
        .prop_map(|((a, b, c, d, e, f, g, h), (i, j, k, l, m, n, o, p))| {
            [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
                .into_iter()
                .flatten()
                .collect()
        })
}

fn routes() -> impl Strategy<Value = String> {
    let route = (
        "/[a-z]{0,6}(/\\*)?",
        "(GET)?",
        "(X-A: [a-z\"]{0,4})?",
        0u32..5,
    );
    proptest::collection::vec(route, 0..3).prop_map(|routes| {
        let mut text = String::new();
        for (i, (path, method, header, cap)) in routes.into_iter().enumerate() {
            let methods = if method.is_empty() {
                String::new()
            } else {
                format!("{method:?}")
            };
            text += &format!(
                "[[route]]\nname = \"r{i}\"\npath = {path:?}\nmethods = [{methods}]\n\
                 header = {header:?}\nmax_in_flight = {cap}\n"
            );
        }
        text
    })
}

#[test]
fn the_defaults_survive_the_round_trip() {
    let loaded = load(&Sources::default()).unwrap();
    let text = loaded.render_toml();
    let again = load_text(&text, &Sources::default()).unwrap();
    assert_eq!(again.config, loaded.config);
    let line = |key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_default()
    };
    assert_eq!(
        line("max_wait"),
        format!("{:<40} # default", "max_wait = \"500ms\"")
    );
    assert_eq!(
        line("max_header_bytes"),
        format!("{:<40} # default", "max_header_bytes = \"64KiB\"")
    );
}

#[test]
fn json_has_values_and_origins() {
    let text = "[limit.aimd]\nincrease = 2.0\n[[route]]\nname = \"a\"\n";
    let json = load_text(text, &env(&[("TIDEGATE_LISTEN", ":80")]))
        .unwrap()
        .to_json();
    let at = |pointer: &str| json.pointer(pointer).cloned().unwrap_or_default();
    assert_eq!(at("/limit/aimd/increase/value"), 2.0);
    assert_eq!(at("/limit/aimd/increase/origin"), "tidegate.toml:2");
    assert_eq!(at("/server/listen/value/0"), "0.0.0.0:80");
    assert_eq!(at("/server/listen/origin"), "env TIDEGATE_LISTEN");
    assert_eq!(at("/buffers/request/value"), 262_144);
    assert_eq!(at("/route/0/name/value"), "a");
    assert_eq!(at("/route/0/path/origin"), "default");
}

proptest! {
    #[test]
    fn what_is_printed_can_be_fed_back_in(settings in settings(), routes in routes()) {
        let mut sources = Sources::default();
        for (key, value) in &settings {
            sources = set(sources, key, value);
        }
        match load_text(&routes, &sources) {
            Err(problems) => prop_assert!(false, "{}", problems),
            Ok(loaded) => {
                let text = loaded.render_toml();
                match load_text(&text, &Sources::default()) {
                    Err(problems) => prop_assert!(false, "{}\n{}", problems, text),
                    Ok(again) => {
                        prop_assert_eq!(&again.config, &loaded.config);
                        prop_assert!(needs_restart(&loaded, &again).is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = load_bytes(&Sources::default(), Some((Path::new("t.toml"), &bytes)));
    }

    #[test]
    fn no_near_toml_panics(text in "(\\[{0,2}(queue|route|limit.aimd|x)\\]{0,2}|(name|max_wait|path|a) ?= ?(1|-1|\"ü?|\\[|\\{|nan|1e999|2020-01-01|999999999999999999999999999999999999999999)|\n|\\]|\\}|\"|,){0,12}") {
        let result = load_text(&text, &Sources::default());
        if let Err(problems) = result {
            prop_assert!(!problems.0.is_empty());
            prop_assert_eq!(problems.to_string().lines().count(), problems.0.len());
        }
    }

    #[test]
    fn no_value_panics(index in 0..schema::KEYS.len(), text: String) {
        let key = schema::KEYS[index].path;
        let _ = load(&set(Sources::default(), key, &text));
        let _ = load(&env(&[(schema::env_name(key).as_str(), text.as_str())]));
    }
}

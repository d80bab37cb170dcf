//! `docs/reference.md` is generated from the code. To do so again after a change of it:
//! `TIDEGATE_UPDATE_GOLDEN=1 cargo test --lib reference`

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

use crate::{
    config::{
        format_duration, format_size,
        schema::{self, Key, Kind},
    },
    observe::metrics::tests::example,
};

/// Labels whose values come from the configuration or the backend, not from a closed set.
const OPEN: [&str; 6] = ["endpoint", "route", "code", "version", "revision", "le"];

/// The admin server's paths.
const ADMIN: &str = r#"
## Admin server

On `admin.listen`, over HTTP/1.1. *Everybody* is whoever reaches that address. *This machine* is the loopback interface
or a Unix socket, not by way of a proxy (no `X-Forwarded-For`, no `Forwarded`) and not from a page of another site; with
`admin.mutations = "off"` it is nobody. Others get a 403, another method a 405, both with the reason in words. Every GET
but `/drain/wait` takes HEAD as well.

| method | path | who may | answer |
|---|---|---|---|
| GET | `/` | everybody | the dashboard, one page of HTML |
| GET | `/livez` | everybody | 200 `ok` while the process runs; 503 if a thread that serves clients has been seen to hang for 5 s, which takes a second look |
| GET | `/readyz` | everybody | 200 `ready` while the backend accepts connections and no drain is under way; else 503 `not ready` or `draining` |
| GET | `/readyz?verbose` | everybody | the same, and before it a line for each check: `[+] NAME: ok` or `[-] NAME: why not` |
| GET | `/metrics` | everybody | the metrics below; gzip where `Accept-Encoding` allows it |
| GET | `/status` | everybody | JSON: limit, in flight, queue, `bound_by`, what is seen of the backend, capacity curve, decisions; with `Accept: text/event-stream` the same once a second, for eight at once; else 503 |
| GET | `/config` | everybody | the configuration in force and where each value is from: TOML, or JSON by `Accept`. In `process.command`, and in the command line that `/status` shows, `***` stands for users and passwords in URLs, and for the values of options and variables with `password`, `passwd`, `passphrase`, `secret`, `token` or `key` in their names |
| GET | `/drain/wait` | everybody, but no browser (`Mozilla/…`, `Origin`, `Referer`, `Cookie`, `Sec-Fetch-*`), and under an IP address, `localhost` or a name without dots only | starts a drain if none is under way; 200 `drained` when it is over, 409 when it is undone, 503 for more than 16 who wait. If no TERM follows, and no `POST /drain`, tidegate serves again once the app has been restarted (an endpoint was down and is up again), after 60 s at the latest. With `admin.mutations = "off"` it waits for a drain but starts none: 403 |
| POST | `/drain` | this machine | starts a drain, which lasts until `/undrain`: `{"draining": true}` |
| POST | `/undrain` | this machine | serves again: `{"draining": false}`; 409 when the process is about to exit |
| POST | `/limit` | this machine | the body `{"limit": N}` holds the limit of each endpoint at N, `"auto"` releases it; 422 for one outside of `limit.min` and `limit.max`, 400 for another body |
| POST | `/reload` | this machine | reads the configuration again: 200 with what has changed, or 422 with what is wrong |
"#;

fn generated() -> String {
    let mut out = String::from(
        "# Reference\n\n\
         Every key of the configuration, every path of the admin server and every metric. Generated from the code;\n\
         a test compares.\n\n\
         ## Configuration\n\n\
         A key `section.key` is `key` under `[section]` in the file, `TIDEGATE_SECTION__KEY` in the\n\
         environment (`TIDEGATE_QUEUE__MAX_WAIT`), and `--set section.key=VALUE` on the command line. A flag\n\
         wins over the environment, that over the file, that over the default. `TIDEGATE_CONFIG`,\n\
         `TIDEGATE_LISTEN`, `TIDEGATE_BACKEND` and `TIDEGATE_ADMIN` are short forms; a list is separated by\n\
         commas. Durations are `\"250ms\"`, `\"5s\"`, `\"1m\"`; sizes are bytes or `\"64KiB\"`, `\"1MiB\"`.\n\n\
         **Reload** says whether a reload puts a change in force without a restart and without dropping a\n\
         request. [config/tidegate.toml](../config/tidegate.toml) says for each key when to touch it.\n",
    );
    for section in schema::sections() {
        let keys: Vec<&Key> = schema::KEYS
            .iter()
            .filter(|key| key.section() == section)
            .collect();
        let title = if section == schema::ROUTE {
            format!("[[{section}]]")
        } else {
            format!("[{section}]")
        };
        // Writing to a String does not fail.
        let _ = write!(
            out,
            "\n### `{title}`\n\n| key | default | takes | reload | |\n|---|---|---|---|---|\n"
        );
        for key in keys {
            let _ = writeln!(
                out,
                "| `{}` | `{}` | {} | {} | {} |",
                key.name(),
                key.default_toml(),
                takes(key.kind),
                if key.hot { "yes" } else { "no" },
                key.doc.replace('|', "\\|").replace('<', "&lt;"),
            );
        }
    }
    out.push_str(ADMIN);
    metrics(&mut out);
    out
}

fn takes(kind: Kind) -> String {
    let words = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
        words.join(", ")
    };
    match kind {
        Kind::Bool => "`true`, `false`".to_owned(),
        Kind::Integer(from, to) => format!("a number from {from} to {to}"),
        Kind::AutoOrInteger(from, to) => format!("`\"auto\"`, or a number from {from} to {to}"),
        Kind::Numbers(numbers) => {
            let numbers: Vec<String> = numbers.iter().map(|it| format!("`{it}`")).collect();
            numbers.join(", ")
        }
        Kind::Float(from, to) => format!("a number from {from} to {to}"),
        Kind::Duration(from, to) => {
            format!(
                "a duration from {} to {}",
                format_duration(from),
                format_duration(to)
            )
        }
        Kind::WordOrDuration(known) => format!("{}, or a duration", words(known)),
        Kind::Size(from, u64::MAX) => format!("a size from {}", format_size(from)),
        Kind::Size(from, to) => format!("a size from {} to {}", format_size(from), format_size(to)),
        Kind::Enum(known) => words(known),
        Kind::Text(_) => "a string".to_owned(),
        Kind::Texts(_) => "a list of strings".to_owned(),
        Kind::Listen => "an address".to_owned(),
        Kind::Listens | Kind::Endpoints => "a list of addresses".to_owned(),
        Kind::Networks => "a list of IP addresses and CIDRs".to_owned(),
    }
}

#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

fn metrics(out: &mut String) {
    out.push_str(
        "\n## Metrics\n\n\
         On the admin server under `/metrics`, in Prometheus' text format or OpenMetrics by `Accept`. Every\n\
         combination of labels that is known at the start is exported as 0 from the start. Histograms have\n\
         the buckets 1, 2.5, 5, 10, 25, 50, 100, 250 and 500 ms, 1, 2.5, 5, 10, 30 and 60 s.\n\n\
         | metric | type | labels | |\n|---|---|---|---|\n",
    );
    let (order, families) = families();
    for name in order {
        let family = &families[&name];
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|(label, values)| {
                // One value is an example.
                if OPEN.contains(&label.as_str()) || values.len() == 1 {
                    return format!("`{label}`");
                }
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                format!("`{label}`: {}", values.join(", "))
            })
            .collect();
        let _ = writeln!(
            out,
            "| `{name}` | {} | {} | {} |",
            family.kind,
            labels.join("; "),
            family.help.replace('|', "\\|").replace('<', "&lt;")
        );
    }
}

/// The families of an exposition, and their order.
fn families() -> (Vec<String>, BTreeMap<String, Family>) {
    let (mut order, mut families) = (Vec::new(), BTreeMap::<String, Family>::new());
    let mut current = String::new();
    for line in example().lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            name.clone_into(&mut current);
            order.push(current.clone());
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (_, kind) = rest.split_once(' ').expect("a type");
            kind.clone_into(
                &mut families
                    .get_mut(&current)
                    .expect("its help came first")
                    .kind,
            );
        } else if let Some((_, rest)) = line.split_once('{') {
            let (labels, _) = rest.rsplit_once('}').expect("a closing brace");
            let family = families.get_mut(&current).expect("its help came first");
            for label in labels.split("\",") {
                let (name, value) = label.split_once("=\"").expect("a label");
                if name != "le" {
                    let values = family.labels.entry(name.to_owned()).or_default();
                    values.insert(value.trim_end_matches('"').to_owned());
                }
            }
        }
    }
    (order, families)
}

#[test]
fn the_reference_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let found = generated();
    if std::env::var_os("TIDEGATE_UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).expect("the reference is written");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differs = expected.lines().zip(found.lines()).find(|(a, b)| a != b);
    assert!(
        found == expected,
        "docs/reference.md is not that of the code, see src/reference.rs: {differs:#?}"
    );
}

#[test]
fn every_key_and_every_metric_has_a_line() {
    let found = generated();
    for key in schema::KEYS {
        assert!(
            found.contains(&format!("\n| `{}` | `", key.name())),
            "{}",
            key.path
        );
    }
    assert!(found.matches("\n| `tidegate_").count() > 30, "{found}");
    assert!(!found.contains("|  |\n"), "{found}");
}

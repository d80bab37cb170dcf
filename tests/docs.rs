//! What the documents say is true: every command in them is run or parsed, every block of TOML is a
//! valid configuration, and every link leads somewhere.

#![allow(clippy::print_stdout)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser;
use common::{Tidegate, tidegate, venv::venv};
use tidegate::cli::{Cli, Command as Verb};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All documents: the root's own, the guides, and those of the example and of fuzzing.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in ["", "docs", "examples/flask", "fuzz"] {
        let Ok(entries) = fs::read_dir(root().join(directory)) else {
            continue;
        };
        let files = entries.map(|entry| entry.expect("an entry").path());
        found.extend(files.filter(|path| path.extension().is_some_and(|it| it == "md")));
    }
    found.sort();
    assert!(found.len() > 5, "{found:?}");
    found
}

/// A fenced block of code.
struct Block {
    /// `README.md:12`
    at: String,
    language: String,
    text: String,
    /// The nearest heading above.
    heading: String,
}

fn blocks_of(path: &Path) -> Vec<Block> {
    let text = fs::read_to_string(path).expect("a document");
    let name = path.strip_prefix(root()).expect("below the root").display();
    let (mut blocks, mut open, mut heading) = (Vec::<Block>::new(), false, String::new());
    for (number, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            open = !open;
            if open {
                blocks.push(Block {
                    at: format!("{name}:{}", number + 1),
                    language: language.trim().to_owned(),
                    text: String::new(),
                    heading: heading.clone(),
                });
            }
        } else if open {
            let block = blocks.last_mut().expect("an open block");
            block.text.push_str(line);
            block.text.push('\n');
        } else if line.starts_with('#') {
            line.trim_start_matches('#').trim().clone_into(&mut heading);
        }
    }
    assert!(!open, "{name}: a block is not closed");
    blocks
}

fn blocks(language: &str) -> Vec<Block> {
    let mut found: Vec<Block> = documents()
        .iter()
        .flat_map(|path| blocks_of(path))
        .collect();
    found.retain(|block| block.language == language);
    found
}

/// The commands of a shell block: comments removed, continued lines joined. Where some lines begin with
/// a prompt, the others are output. Where the quick start has built tidegate is nothing special.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.text.replace("\\\n", " ");
    let joined = joined.replace("target/release/tidegate", "tidegate");
    let session = joined.lines().any(|line| line.starts_with("$ "));
    let typed = joined
        .lines()
        .filter_map(|line| match line.strip_prefix("$ ") {
            None if session => None,
            stripped => Some(stripped.unwrap_or(line)),
        });
    let without = typed.map(|line| {
        let end = if line.trim_start().starts_with('#') {
            Some(0)
        } else {
            line.find(" #")
        };
        line[..end.unwrap_or(line.len())].trim().to_owned()
    });
    without.filter(|line| !line.is_empty()).collect()
}

/// The words of a command, as a shell would see them.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in command.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    assert!(quote.is_none(), "{command}");
    words.extend(word);
    words
}

/// The parts of `a | b && c`.
fn simple_commands(command: &str) -> Vec<Vec<String>> {
    let mut parts = vec![Vec::new()];
    for word in words(command) {
        match word.as_str() {
            "|" | "&&" | ";" => parts.push(Vec::new()),
            "&" => {}
            _ => parts.last_mut().expect("a part").push(word),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn every_toml_block_is_a_valid_configuration() {
    let blocks = blocks("toml");
    assert!(blocks.len() > 8, "{}", blocks.len());
    for block in blocks {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("tidegate.toml");
        fs::write(&file, &block.text).expect("a file");
        let (code, out, err) = tidegate(&["check", "--config", file.to_str().expect("text")]);
        assert_eq!(code, 0, "{}: {out}{err}", block.at);
    }
}

#[test]
fn every_command_is_one() {
    let mut seen = 0;
    for block in blocks("sh").iter().chain(&blocks("console")) {
        for command in commands(block) {
            for part in simple_commands(&command) {
                check_command(&block.at, &part);
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

/// By its first word; what is not known here is a mistake.
#[track_caller]
fn check_command(at: &str, words: &[String]) {
    let here = format!("{at}: {}", words.join(" "));
    // VARIABLE=value before the command
    let start = words.iter().take_while(|word| {
        word.split_once('=')
            .is_some_and(|(name, _)| name.chars().all(|it| it.is_ascii_uppercase() || it == '_'))
    });
    let words = &words[start.count()..];
    let Some((program, arguments)) = words.split_first() else {
        panic!("{here}: no command");
    };
    let exists = |path: &str| assert!(root().join(path).exists(), "{here}: no {path}");
    let after = |flag: &str| {
        let at = arguments.iter().position(|it| it == flag)?;
        arguments.get(at + 1).map(String::as_str)
    };
    match program.as_str() {
        "tidegate" => check_tidegate(&here, words),
        "./quickstart"
        | ".ci/run"
        | "deploy/check"
        | "fuzz/run"
        | "benches/instructions"
        | "benches/compare"
        | "benches/overload"
        | "examples/servers/measure" => {
            exists(program);
        }
        "cargo" => {
            let verbs = [
                "build", "test", "run", "bench", "doc", "deny", "fmt", "clippy", "install",
            ];
            assert!(
                arguments
                    .first()
                    .is_some_and(|verb| verbs.contains(&verb.as_str())),
                "{here}"
            );
            if let Some(name) = after("--test") {
                exists(&format!("tests/{name}.rs"));
            }
            if let Some(name) = after("--bench") {
                assert!(
                    root().join(format!("benches/{name}.rs")).exists()
                        || root().join(format!("benches/{name}/main.rs")).exists(),
                    "{here}"
                );
            }
            if let Some(name) = after("--example") {
                let examples = root().join("examples");
                assert!(
                    examples.join(format!("{name}.rs")).exists()
                        || examples.join(name).join("main.rs").exists(),
                    "{here}"
                );
            }
        }
        "kubectl" => {
            if let Some(path) = after("-k") {
                exists(&format!("{path}/kustomization.yaml"));
            }
        }
        "docker" => {
            if let Some(path) = after("-f") {
                exists(path);
            }
            if arguments.first().is_some_and(|it| it == "build") {
                let context = arguments.last().expect("a context");
                exists(&format!("{context}/Dockerfile"));
            }
        }
        "install" => {
            let sources = arguments.iter().filter(|it| it.starts_with("deploy/"));
            sources.for_each(|it| exists(it));
        }
        "systemctl" => {
            let units = ["tidegate", "gunicorn@"];
            for unit in arguments.iter().filter(|it| !it.starts_with('-')).skip(1) {
                assert!(units.iter().any(|known| unit.starts_with(known)), "{here}");
            }
        }
        // Run by the next test.
        "curl" => {}
        "git" | "head" | "jq" | "grep" | "seq" | "xargs" | "sort" | "uniq" | "python3" | "pip"
        | "wscat" => {}
        _ => panic!("{here}: this command is not known to tests/docs.rs"),
    }
}

/// As the program itself would, short of doing it.
fn check_tidegate(here: &str, words: &[String]) {
    let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{here}: {error}"));
    let options = match &cli.command {
        Verb::Run(args) => args.options.clone(),
        Verb::Exec(args) => args.options.clone(),
        _ => return,
    };
    // A file that the document tells of is not here.
    let mut sources = options.sources();
    sources.file = None;
    if let Err(problems) = tidegate::config::load(&sources) {
        panic!("{here}: {problems}");
    }
}

#[test]
fn the_commands_that_look_or_set_are_run() {
    // As ./quickstart starts it.
    let gunicorn = venv().join("gunicorn");
    let app = root().join("examples/flask");
    let command = [
        gunicorn.to_str().expect("text"),
        "--workers=2",
        "--bind={addr}",
        "--no-control-socket",
        "--chdir",
        app.to_str().expect("text"),
        "app:app",
    ];
    let tidegate = Tidegate::exec(command).start();
    let file = tidegate.dir().join("tidegate.toml");
    fs::write(&file, "[queue]\nmax_wait = \"1s\"\n").expect("a file");
    fs::copy(root().join("Cargo.lock"), tidegate.dir().join("Cargo.lock")).expect("a file");
    let bin = Path::new(env!("CARGO_BIN_EXE_tidegate"))
        .parent()
        .expect("a directory");
    let path = std::env::var("PATH").expect("a path");
    let path = format!("{}:{}:{path}", bin.display(), venv().display());
    let mut run = 0;
    for block in blocks("sh") {
        for command in commands(&block) {
            let first = simple_commands(&command).remove(0);
            let harmless = ["status", "healthcheck", "check", "config", "completions"];
            let looks = match first[0].as_str() {
                "curl" | "seq" => !command.contains("/drain") && !command.contains("Upgrade"),
                "tidegate" => first
                    .get(1)
                    .is_some_and(|verb| harmless.contains(&verb.as_str())),
                _ => false,
            };
            if !looks || command.contains("--watch") {
                continue;
            }
            // A load may be refused in part, and half a minute of it shows no more than a second.
            let fail = if first[0] == "curl" { "--fail" } else { "" };
            let here = command
                .replace(
                    "curl ",
                    &format!("curl --silent --show-error {fail} --max-time 20 "),
                )
                .replace("seq 600 ", "seq 20 ")
                .replace("127.0.0.1:8080", tidegate.address())
                .replace("127.0.0.1:9180", tidegate.admin());
            let output = Command::new("bash")
                .args(["-euo", "pipefail", "-c", &here])
                .current_dir(tidegate.dir())
                .env("PATH", &path)
                .env("TIDEGATE_ADMIN", tidegate.admin())
                .output()
                .expect("a shell");
            assert!(
                output.status.success() && !(output.stdout.is_empty() && here.starts_with("curl")),
                "{}: {command}\n{}{}",
                block.at,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            run += 1;
        }
    }
    assert!(run > 8, "{run}");
}

#[test]
fn quick_start_and_tests_begin_with_one_command_each() {
    let blocks = blocks_of(&root().join("README.md"));
    let first = |heading: &str| {
        let block = blocks.iter().find(|block| block.heading == heading);
        block
            .unwrap_or_else(|| panic!("{heading} has no block"))
            .text
            .trim()
            .to_owned()
    };
    assert_eq!(first("Quick start"), "./quickstart");
    let tests = first("Tests");
    assert_eq!(tests.lines().count(), 1, "{tests}");
    assert_eq!(words(&tests)[0], "cargo", "{tests}");
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            if target.contains("://") || target.contains(' ') {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                path.clone()
            } else {
                path.parent().expect("a directory").join(file)
            };
            assert!(file.exists(), "{}: no {target}", path.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&file).expect("a document");
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(|line| {
                    let title = line.trim_start_matches('#').trim().to_lowercase();
                    let kept = title
                        .chars()
                        .filter(|it| it.is_alphanumeric() || " -_".contains(*it));
                    kept.collect::<String>().replace(' ', "-")
                });
                assert!(
                    anchors.any(|it| it == anchor),
                    "{}: no {target}",
                    path.display()
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}

/// The table of the modules has them from top to bottom: each imports those below it alone.
#[test]
fn imports_run_downward() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the document");
    let table = page
        .split("\n## ")
        .find(|it| it.starts_with("The modules\n"));
    let rows = table.expect("the chapter").lines();
    let rooms: Vec<&str> = rows
        .filter_map(|row| row.strip_prefix("| `")?.split(['/', '.']).next())
        .collect();
    let mut seen = 0;
    for (level, room) in rooms.iter().enumerate() {
        for file in sources_of(room) {
            let text = fs::read_to_string(&file).expect("a source");
            for import in imports(&text) {
                let below = rooms.iter().position(|it| *it == import);
                assert!(
                    below.is_some_and(|below| below >= level),
                    "{}: {import} does not stand below {room} in ARCHITECTURE.md",
                    file.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 300, "{seen}");
}

/// The files of a room, but for those of its tests, which may know everybody.
fn sources_of(room: &str) -> Vec<PathBuf> {
    let mut found = vec![root().join(format!("src/{room}.rs"))];
    let mut folders = vec![root().join("src").join(room)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.retain(|path| {
        let is_test = path.iter().any(|part| {
            ["tests", "tests.rs", "properties.rs", "fuzzing.rs"].contains(&&*part.to_string_lossy())
        });
        path.is_file() && path.extension().is_some_and(|it| it == "rs") && !is_test
    });
    found
}

/// The rooms that a source imports, as rustfmt lays imports out: without its comments and tests.
fn imports(text: &str) -> Vec<&str> {
    let (mut found, mut in_list) = (Vec::new(), false);
    let code = text.lines().take_while(|line| *line != "mod tests {");
    for line in code.filter(|line| !line.trim_start().starts_with("//")) {
        if in_list && let Some(item) = line.strip_prefix("    ") {
            found.push(item);
        }
        in_list = line.ends_with("use crate::{") || (in_list && line != "};");
        for rest in line.split("crate::").skip(1) {
            match rest.strip_prefix('{') {
                Some(list) => found.extend(list.split(", ")),
                None => found.push(rest),
            }
        }
    }
    found.retain(|item| item.starts_with(|first: char| first.is_ascii_lowercase()));
    let room = |item: &&str| item.find(|it: char| !it.is_ascii_lowercase() && it != '_');
    let rooms = found
        .iter()
        .map(|item| &item[..room(item).unwrap_or(item.len())]);
    rooms.collect()
}

#[test]
fn every_alert_is_explained() {
    let alerts = fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).expect("alerts");
    let guide = fs::read_to_string(root().join("docs/operations.md")).expect("a guide");
    let mut seen = 0;
    for line in alerts.lines() {
        if let Some((_, name)) = line.split_once("- alert: ") {
            assert!(guide.contains(&format!("\n### {name}\n")), "{name}");
            seen += 1;
        }
    }
    assert!(seen > 8, "{seen}");
    assert_eq!(guide.matches("\n### Tidegate").count(), seen);
}

/// The table of measurements is that of the script which makes it.
#[test]
fn the_measured_tables_have_the_rows_of_their_script() {
    let page = fs::read_to_string(root().join("docs/how-many-parallel-requests.md"));
    let page = page.expect("the document");
    let mut tables = page.split("|---|---|---:|").skip(1);
    for more in [&[][..], &["--more"]] {
        let list = Command::new(root().join("examples/servers/measure"))
            .arg("--list")
            .args(more)
            .output()
            .expect("the script runs");
        let list = String::from_utf8(list.stdout).expect("text");
        let wanted: Vec<&str> = list.lines().collect();
        assert!(wanted.len() > 7, "{list}");
        let rows = tables.next().expect("the table").lines().skip(1);
        let rows = rows.take_while(|line| line.starts_with('|'));
        let found: Vec<String> = rows
            .map(|row| {
                let cells: Vec<&str> = row.split('|').collect();
                assert_eq!(cells.len(), 8, "{row}");
                format!("|{}|{}|", cells[1], cells[2])
            })
            .collect();
        assert_eq!(found, wanted);
    }
}

/// By nginx itself, where it is installed.
#[test]
fn the_configuration_of_nginx_is_one() {
    let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"];
    let Some(nginx) = nginx.iter().find(|path| Path::new(path).exists()) else {
        println!("left out: nginx is not installed");
        return;
    };
    let found = blocks("nginx");
    assert!(!found.is_empty());
    for block in found {
        let dir = tempfile::tempdir().expect("a directory");
        // It binds even when it only looks, so where nobody else does.
        let text = block.text.replace("listen 80;", "listen unix:web.sock;");
        let text = format!(
            "pid nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{}\n{text}\n}}\n",
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|of| format!("{of}_temp_path {of};"))
                .join("\n"),
        );
        fs::write(dir.path().join("nginx.conf"), text).expect("a file");
        let output = Command::new(nginx)
            .args(["-t", "-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(dir.path())
            .output()
            .expect("nginx");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", block.at);
    }
}

//! The command line is the contract's.

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};

use super::*;
use crate::config::{Algorithm, load};

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}"))
}

fn sources(line: &str, env: &[(&str, &str)]) -> Sources {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    match parse(line).command {
        Command::Run(args) => args.options.sources_with(env.collect()),
        other => panic!("not run: {other:?}"),
    }
}

#[test]
fn clap_agrees_with_the_definitions() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_says_its_default_and_its_variable() {
    let command = Cli::command();
    let run = command.find_subcommand("run").unwrap();
    for arg in run
        .get_arguments()
        .filter(|arg| arg.get_id() != "help" && arg.get_id() != "version")
    {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("[default: "), "{}: {help}", arg.get_id());
        assert!(
            help.contains("[env: TIDEGATE_") || arg.get_id() == "set",
            "{}",
            arg.get_id()
        );
    }
}

#[test]
fn flags_become_sources() {
    let loaded = load(&sources(
        "tidegate run --listen :80 --backend :8001 --backend unix:/run/a.sock --admin :9999 \
         --dry-run --log-format json --log-level debug --set queue.max_wait=2s",
        &[],
    ))
    .unwrap();
    let config = &loaded.config;
    assert_eq!(config.server.listen, [Address::listen(":80").unwrap()]);
    assert_eq!(config.backend.endpoints.len(), 2);
    assert_eq!(config.admin.listen.to_string(), "0.0.0.0:9999");
    assert!(config.limit.dry_run);
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.queue.max_wait.as_secs(), 2);
    let origin = |key| loaded.origins.get(key).to_string();
    assert_eq!(origin("queue.max_wait"), "flag --set queue.max_wait");
    assert_eq!(origin("admin.listen"), "flag --admin");
    assert_eq!(origin("drain.delay"), "default");
}

#[test]
fn a_limit_is_fixed_and_makes_room_for_itself() {
    let of = |line: &str| load(&sources(line, &[])).unwrap().config.limit.clone();
    let limit = of("tidegate run --limit 2000");
    assert_eq!(
        (limit.algorithm, limit.initial, limit.max),
        (Algorithm::Fixed, 2000, 2000)
    );
    let limit = of("tidegate run --limit 3 --set limit.min=5");
    assert_eq!((limit.initial, limit.min, limit.max), (3, 3, 1000));
    let limit = of("tidegate run --limit auto --set limit.min=5");
    assert_eq!(
        (limit.algorithm, limit.initial, limit.min),
        (Algorithm::Aimd, 0, 5)
    );
}

#[test]
fn the_file_is_named_by_flag_or_variable() {
    let env = [("TIDEGATE_CONFIG", "env.toml")];
    let file = |line, env: &[_]| sources(line, env).file;
    assert_eq!(file("tidegate run", &env), Some("env.toml".into()));
    assert_eq!(
        file("tidegate run -c flag.toml", &env),
        Some("flag.toml".into())
    );
    assert_eq!(file("tidegate run", &[("TIDEGATE_CONFIG", "")]), None);
    assert_eq!(file("tidegate run", &[]), None);
}

#[test]
fn what_follows_the_dashes_is_the_command() {
    let Command::Exec(args) =
        parse("tidegate exec --limit 4 -- gunicorn -b {addr} app:app").command
    else {
        panic!("not exec");
    };
    let config = load(&args.sources()).unwrap().config;
    assert_eq!(
        config.process.command,
        ["gunicorn", "-b", "{addr}", "app:app"]
    );
    assert_eq!(config.limit.initial, 4);
}

#[test]
fn usage_errors_are_told_apart_from_help() {
    let kind = |line: &str| Cli::try_parse_from(line.split_whitespace()).unwrap_err();
    for line in [
        "tidegate run --limit 0",
        "tidegate run --limit many",
        "tidegate run --set queue.max_wait",
        "tidegate run --log-format xml",
        "tidegate check tidegate.toml",
        "tidegate status --admin nowhere",
        "tidegate probe",
        "tidegate probe --url x --step 1h",
        "tidegate replay",
    ] {
        assert_eq!(kind(line).exit_code(), 2, "{line}");
    }
    assert_eq!(kind("tidegate --help").kind(), ErrorKind::DisplayHelp);
    assert_eq!(kind("tidegate --help").exit_code(), 0);
}

#[test]
fn the_admin_server_is_asked_where_it_listens() {
    let Command::Healthcheck(args) = parse("tidegate healthcheck --admin :9000 --ready").command
    else {
        panic!("not healthcheck");
    };
    assert!(args.ready);
    assert_eq!(args.admin.address().unwrap().to_string(), "127.0.0.1:9000");
}

#[test]
fn the_admin_server_is_looked_for_where_the_server_puts_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        ("TIDEGATE_CONFIG", path.display().to_string())
    };
    let asked = |line: &str, env: &[(&str, String)]| {
        let Command::Healthcheck(args) = parse(&format!("tidegate healthcheck {line}")).command
        else {
            panic!("not healthcheck");
        };
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        let sources = Options::default().sources_with(env.collect());
        let asked = args
            .admin
            .address_by(&sources)
            .ok()
            .map(|at| at.to_string());
        // As the server does it.
        if let Ok(loaded) = load(&sources)
            && line.is_empty()
            && loaded.config.admin.listen != Address::any()
        {
            assert_eq!(asked, Some(loaded.config.admin.listen.to_string()));
        }
        asked.unwrap_or_default()
    };
    let short = |value: &str| ("TIDEGATE_ADMIN", value.to_owned());
    let long = |value: &str| ("TIDEGATE_ADMIN__LISTEN", value.to_owned());
    let good = file("good", "admin.listen = \"unix:/run/a\"\n");
    // A tidegate that runs already is not stopped by a mistake in another key.
    let edited = file(
        "edited",
        "admin.listen = \"unix:/run/a\"\nlimit.min = 0\nreject.body = \"file:no\"\n",
    );
    for (env, expected) in [
        (vec![], "127.0.0.1:9180"),
        (vec![short("a:1"), good.clone()], "a:1"),
        (vec![short("  "), good.clone()], "unix:/run/a"),
        (vec![short(":1"), long("b:2"), good.clone()], "b:2"),
        (vec![edited], "unix:/run/a"),
        (vec![file("syntax", "admin.listen = \n")], "127.0.0.1:9180"),
        (
            vec![file("off", "admin.listen = false\n")],
            "127.0.0.1:9180",
        ),
        (
            vec![("TIDEGATE_CONFIG", "/nonexistent".to_owned())],
            "127.0.0.1:9180",
        ),
        (vec![short("off")], ""),
        (vec![long("")], ""),
        (vec![short("127.0.0.1:0")], ""),
    ] {
        assert_eq!(asked("", &env), expected, "{env:?}");
    }
    assert_eq!(asked("--admin :7", &[short("a:1"), good]), "127.0.0.1:7");
}

#[test]
fn exec_may_listen_where_a_backend_usually_does() {
    let exec = |line: &str| match parse(line).command {
        Command::Exec(args) => load(&args.sources()).map(|loaded| loaded.config),
        other => panic!("not exec: {other:?}"),
    };
    let config = exec("tidegate exec --listen :8000 -- app").expect("its command gets a free port");
    assert_eq!(config.backend.endpoints, [Address::any()]);
    let problems = exec("tidegate exec --listen :8000 --backend :8000 -- app");
    let problems = problems.expect_err("that is one port").to_string();
    assert!(
        problems.contains("where tidegate itself listens"),
        "{problems}"
    );
}

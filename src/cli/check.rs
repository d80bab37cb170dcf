//! `tidegate check`: is the configuration valid?

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::CheckArgs;
use crate::config::{Problem, Sources, load, shadowed, unusable};

/// Prints `FILE: ok`, or each problem on a line of stderr and exits 2. What cannot be used on this machine is a warning:
/// the configuration may be meant for another. So is a route that never matches: all it does is nothing.
pub fn run(args: &CheckArgs) -> ExitCode {
    check(
        &args.options.sources_to_look_at(),
        &mut io::stdout(),
        &mut io::stderr(),
    )
}

fn check(sources: &Sources, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    // The exit code says it all when nobody reads.
    match load(sources) {
        Ok(loaded) => {
            for Problem {
                location, message, ..
            } in shadowed(&loaded).into_iter().chain(unusable(&loaded))
            {
                let _ = writeln!(err, "{location}: warning: {message}");
            }
            let what = loaded.file.map(|path| path.display().to_string());
            let _ = writeln!(out, "{}: ok", what.as_deref().unwrap_or("configuration"));
            ExitCode::SUCCESS
        }
        Err(problems) => {
            let _ = writeln!(err, "{problems}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(content: Option<&str>) -> (bool, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let sources = Sources {
            file: Some(file),
            for_exec_too: true,
            ..Sources::default()
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = check(&sources, &mut out, &mut err);
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(&format!("{}/", dir.path().display()), "")
        };
        (
            format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS),
            text(out),
            text(err),
        )
    }

    #[test]
    fn a_valid_file_is_ok() {
        let expected = (true, "t.toml: ok\n".to_owned(), String::new());
        assert_eq!(outcome(Some("[queue]\nmax_wait = \"1s\"\n")), expected);
    }

    #[test]
    fn a_place_that_is_not_there_is_a_warning() {
        let (ok, out, err) = outcome(Some("[trace]\nfile = \"/nowhere/at/all\"\n"));
        assert_eq!((ok, out.as_str()), (true, "t.toml: ok\n"));
        assert_eq!(
            err,
            "t.toml:2:8: warning: trace.file: \"/nowhere/at/all\": there is no directory /nowhere/at; make it, \
             or tidegate does not start\n"
        );
    }

    #[test]
    fn a_route_that_never_matches_is_a_warning() {
        let routes = "[[route]]\nname = \"all\"\n[[route]]\nname = \"api\"\npath = \"/api/*\"\n";
        let (ok, out, err) = outcome(Some(routes));
        assert_eq!((ok, out.as_str()), (true, "t.toml: ok\n"));
        assert_eq!(
            err,
            "t.toml:3:1: warning: route \"api\" never matches: route \"all\" (t.toml:1) comes first and takes all \
             of its requests; move this one before it, or remove it\n"
        );
    }

    #[test]
    fn a_file_for_exec_is_ok_though_its_backend_has_no_address_yet() {
        let listen = "[server]\nlisten = [\"127.0.0.1:8000\"]\n";
        let (ok, _, err) = outcome(Some(listen));
        assert!(
            !ok && err.contains("is where tidegate itself listens"),
            "{err}"
        );
        let with_command = format!("{listen}[process]\ncommand = [\"true\"]\n");
        let expected = (true, "t.toml: ok\n".to_owned(), String::new());
        assert_eq!(outcome(Some(&with_command)), expected);
        let named = format!("{with_command}[backend]\nendpoints = [\"127.0.0.1:8000\"]\n");
        assert!(!outcome(Some(&named)).0);
    }

    #[test]
    fn each_problem_is_a_line_of_stderr() {
        let expected = "t.toml:2:1: unknown key queue.max_wiat; did you mean max_wait?\n\
                        t.toml:3:8: log.level: \"inof\" is not one of off, error, warn, info, debug, \
                        trace, nor a filter as \"info,tidegate::proxy=debug\"; did you mean info?\n";
        let content = "[queue]\nmax_wiat = \"1s\"\nlevel = 1\n[log]\nlevel = \"inof\"\n";
        let (ok, out, err) = outcome(Some(&content.replace("level = 1\n[log]\n", "[log]\n")));
        assert_eq!((ok, out.as_str()), (false, ""));
        assert_eq!(err, expected.replace("t.toml:3:8", "t.toml:4:9"));
    }

    #[test]
    fn a_missing_file_is_one_problem() {
        let expected = "t.toml: no such file; name the configuration with -c FILE or \
                        TIDEGATE_CONFIG\n";
        assert_eq!(outcome(None), (false, String::new(), expected.to_owned()));
    }
}

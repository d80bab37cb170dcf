//! `tidegate replay`: what another configuration would have made of a recorded trace.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::{
    ReplayArgs, ReplayFormat,
    admin_client::{FAILURE, complain, print},
};
use crate::{config, observe::trace, replay};

/// Prints both side by side. Exits with 2 when the configuration is not valid, with 1 when the trace
/// cannot be read or says nothing.
pub fn run(args: &ReplayArgs) -> ExitCode {
    let loaded = match config::load(&args.options.sources_to_look_at()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let _ = writeln!(io::stderr(), "{problems}");
            return ExitCode::from(2);
        }
    };
    let compared = trace::read(&args.trace)
        .map_err(|error| error.to_string())
        .and_then(|trace| replay::compare(&trace, &loaded.config).map_err(|e| e.to_string()));
    match compared {
        Ok(comparison) => {
            let text = match args.format {
                ReplayFormat::Text => replay::text(&comparison),
                ReplayFormat::Json => format!("{:#}\n", replay::json(&comparison)),
            };
            print(&text)
        }
        Err(problem) => {
            complain(&format!("{}: {problem}", args.trace.display()));
            FAILURE
        }
    }
}

//! `tidegate completions`: a completion script for a shell.

use std::process::ExitCode;

use clap::CommandFactory as _;

use super::{Cli, CompletionsArgs, admin_client::print};

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> ExitCode {
    // Into memory first: clap_complete panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tidegate", &mut script);
    print(&String::from_utf8_lossy(&script))
}

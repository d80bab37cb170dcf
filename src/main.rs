//! The command `tidegate`: parses, dispatches, and passes the exit code on.

use std::process::ExitCode;

use clap::Parser;
use tidegate::{
    cli::{self, Cli, Command},
    runtime::{self, child},
};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == child::HELPER) {
        return child::helper_main(args);
    }
    match Cli::parse().command {
        Command::Run(args) => runtime::run(args.options.sources(), false),
        Command::Exec(args) => runtime::run(args.sources(), true),
        Command::Check(args) => cli::check::run(&args),
        Command::Config(args) => cli::config::run(&args),
        Command::Doctor(args) => cli::doctor::run(&args),
        Command::Probe(args) => cli::probe::run(&args),
        Command::Status(args) => {
            let json = args.format == cli::StatusFormat::Json;
            cli::status::run(&args.admin.address, json, args.watch)
        }
        Command::Drain(args) => cli::drain::run(&args.admin.address, args.wait),
        Command::Healthcheck(args) => cli::healthcheck::run(&args.admin.address, args.ready),
        Command::Replay(args) => cli::replay::run(&args),
        Command::Completions(args) => cli::completions::run(&args),
    }
}

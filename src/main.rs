//! The command `tidegate`: parses, dispatches, and passes the exit code on.

use std::process::ExitCode;

use clap::Parser;
use tidegate::{
    cli::{self, AdminArgs, Cli, Command},
    config::Address,
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
            at(&args.admin, |admin| {
                cli::status::run(admin, json, args.watch)
            })
        }
        Command::Drain(args) => at(&args.admin, |admin| cli::drain::run(admin, args.wait)),
        Command::Healthcheck(args) => at(&args.admin, |admin| {
            cli::healthcheck::run(admin, args.ready)
        }),
        Command::Replay(args) => cli::replay::run(&args),
        Command::Completions(args) => cli::completions::run(&args),
    }
}

fn at(admin: &AdminArgs, ask: impl FnOnce(&Address) -> ExitCode) -> ExitCode {
    admin
        .address()
        .map_or_else(|code| code, |admin| ask(&admin))
}

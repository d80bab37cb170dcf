//! The command `tidegate`.

use std::process::ExitCode;

use tidegate::runtime::child;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == child::HELPER) {
        return child::helper_main(args);
    }
    ExitCode::SUCCESS
}

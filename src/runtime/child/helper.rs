//! The step between fork and exec: `tidegate __child PARENT DESCRIPTORS -- COMMAND [ARG]...`.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, ExitCode},
};

use rustix::process;

use crate::runtime::process::restore_descriptor_limit;

/// The hidden command that makes the binary this helper. The first argument, before any parsing of
/// flags: the command's own arguments are none of tidegate's business.
pub const HELPER: &str = "__child";

/// Becomes the command. `DESCRIPTORS` is its soft limit of them, empty to leave it. `args` are those after [`HELPER`]; standard input is the pipe on which a
/// failure is reported.
///
/// Returns only if the command could not be started, or if it should not be: when the parent is
/// gone already.
pub fn helper_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let parent = args
        .next()
        .and_then(|arg| arg.to_str()?.parse::<i32>().ok());
    let descriptors = args.next();
    let separator = args.next();
    let (Some(parent), Some("--"), Some(program)) = (
        parent,
        separator.as_ref().and_then(|arg| arg.to_str()),
        args.next(),
    ) else {
        let _ = writeln!(
            io::stderr(),
            "tidegate {HELPER} is for tidegate's own use; you want `tidegate exec`"
        );
        return ExitCode::from(2);
    };

    // To a descriptor that closes itself when the command runs.
    let stdin = io::stdin();
    let moved = rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3);
    let error = match &moved {
        Ok(_) => run(
            parent,
            descriptors.as_deref(),
            Command::new(program).args(args),
        ),
        Err(error) => (*error).into(),
    };
    let report = moved.as_ref().map_or(stdin.as_fd(), AsFd::as_fd);
    let errno = error
        .raw_os_error()
        .unwrap_or_else(|| rustix::io::Errno::INVAL.raw_os_error());
    let _ = rustix::io::write(report, errno.to_string().as_bytes());
    ExitCode::from(127)
}

/// Becomes the command. Returns only if that failed, or if it should not be.
fn run(parent: i32, descriptors: Option<&OsStr>, command: &mut Command) -> io::Error {
    #[cfg(target_os = "linux")]
    let _ = process::set_parent_process_death_signal(Some(process::Signal::TERM));
    // A parent that died before the line above left nobody to die with.
    if process::getppid().is_none_or(|now| now.as_raw_nonzero().get() != parent) {
        return rustix::io::Errno::SRCH.into();
    }
    if let Some(limit) = descriptors.and_then(|text| text.to_str()?.parse().ok()) {
        restore_descriptor_limit(limit);
    }
    match read_nothing() {
        Ok(()) => command.exec(),
        Err(error) => error,
    }
}

/// `/dev/null` takes the place of the pipe on standard input.
fn read_nothing() -> io::Result<()> {
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(())
}

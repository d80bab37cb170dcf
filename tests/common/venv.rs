//! The Python environment of the tests: Flask and its servers, made once, in the target directory.
//! Servers that may need a compiler are left out where they cannot be installed, and so are their tests.
//!
//! Any number of test processes may ask for it at the same time. The first makes it, under a lock;
//! the others wait. A finished environment is named by its requirements and its Python, so that a
//! change of either makes a new one.
#![allow(dead_code, clippy::print_stdout)]

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use rustix::fs::{FlockOperation, flock};

/// The directory of the environment's programs: `venv().join("gunicorn")`.
///
/// # Panics
/// With one sentence on what is missing, when the environment can't be made.
pub fn venv() -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| ready().unwrap_or_else(|problem| panic!("{problem}")))
        .clone()
}

/// Servers that need a compiler, or a wheel for this machine: as many of them as can be had.
const SERVERS: &str = include_str!("../requirements-servers.txt");

fn ready() -> Result<PathBuf, String> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .map_err(|error| format!("{}: {error}", requirements.display()))?;
    let python = run(Command::new("python3").arg("-VV")).map_err(|error| match error {
        Failure::NotStarted(_) => {
            "the tests need python3 (3.10 or later), which was not found".to_owned()
        }
        Failure::Failed(output) => format!("python3 does not run: {output}"),
    })?;

    // A sibling of `debug` and `release`: the temporary directory of the tests is target/tmp.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp has a parent");
    let mut key = DefaultHasher::new();
    // An environment can't be moved, so its place is part of what it is.
    (&wanted, SERVERS, &python, target).hash(&mut key);
    let venv = target.join("venv").join(format!("{:016x}", key.finish()));
    let done = venv.join("done");
    if done.exists() {
        return Ok(venv.join("bin"));
    }

    let parent = venv.parent().expect("target/venv");
    fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    let lock = fs::File::create(parent.join("lock"))
        .map_err(|error| format!("{}: {error}", parent.display()))?;
    // Released when the file is closed, also by a process that is killed.
    while let Err(error) = flock(&lock, FlockOperation::LockExclusive) {
        if error != rustix::io::Errno::INTR {
            return Err(format!("cannot lock {}: {error}", parent.display()));
        }
    }
    if !done.exists() {
        make(&venv, &requirements)?;
        fs::write(&done, "").map_err(|error| format!("{}: {error}", done.display()))?;
    }
    Ok(venv.join("bin"))
}

fn make(venv: &Path, requirements: &Path) -> Result<(), String> {
    // What is there was left by a run that was interrupted.
    if venv.exists() {
        fs::remove_dir_all(venv).map_err(|error| format!("{}: {error}", venv.display()))?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(venv)).map_err(|error| {
        format!(
            "python3 cannot make a virtual environment; install its venv module \
             (on Debian and Ubuntu: apt install python3-venv)\n{error}"
        )
    })?;
    run(Command::new(venv.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r"])
        .arg(requirements))
    .map_err(|error| {
        format!("Flask and gunicorn could not be installed; is there a network, and can pip reach its package index?\n{error}")
    })?;
    for server in SERVERS.lines() {
        let install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ];
        let python = venv.join("bin/python");
        if let Err(error) = run(Command::new(python).args(install).arg(server)) {
            println!("{server} could not be installed, its tests are left out: {error}");
        }
    }
    Ok(())
}

#[derive(Debug)]
enum Failure {
    NotStarted(std::io::Error),
    Failed(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NotStarted(error) => error.fmt(f),
            Failure::Failed(output) => f.write_str(output),
        }
    }
}

fn run(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().map_err(Failure::NotStarted)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(Failure::Failed(format!(
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        )))
    }
}

//! The command line: what can be typed, and one file per command.
//!
//! clap ends the process with 2 on a usage error, as for an invalid configuration.

pub mod admin_client;
pub mod check;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod drain;
pub mod healthcheck;
mod options;
pub mod probe;
pub mod replay;
pub mod status;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use options::Options;

use crate::config::{Address, Sources, Value, admin_listen};

use self::admin_client::complain;

const PRECEDENCE: &str = "\
A flag wins over the environment, that over the file, that over the default. Any key can be set: \
in the file, as --set section.key=VALUE, or as TIDEGATE_<SECTION>__<KEY>. TIDEGATE_CONFIG, \
TIDEGATE_LISTEN, TIDEGATE_BACKEND (comma-separated) and TIDEGATE_ADMIN are short forms.

Exit codes: 0 ok, 1 failure at run time, 2 usage or configuration, 3 cannot bind.";

/// An adaptive concurrency limit in front of Flask workers.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    about = "An adaptive concurrency limit in front of Flask workers",
    after_help = PRECEDENCE,
    disable_help_subcommand = true,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Front a backend that is already running (sidecar)
    #[command(after_help = PRECEDENCE)]
    Run(RunArgs),
    /// Start COMMAND as the backend, front it, die with it
    ///
    /// COMMAND gets PORT and TIDEGATE_BACKEND in its environment; in its arguments {port} and
    /// {addr} are replaced by the address that tidegate chose, or that --backend names. Its exit
    /// code becomes tidegate's.
    #[command(
        after_help = PRECEDENCE,
        override_usage = "tidegate exec [OPTIONS] -- COMMAND [ARG]..."
    )]
    Exec(ExecArgs),
    /// Validate the configuration: every problem as FILE:LINE:COL: message
    #[command(after_help = PRECEDENCE)]
    Check(CheckArgs),
    /// Print the effective configuration, with where each value came from
    #[command(after_help = PRECEDENCE)]
    Config(ConfigArgs),
    /// Show what the backend is, what it can run in parallel, its habits, and a configuration for it
    ///
    /// Looks at the process that listens there and sends a handful of harmless requests, which it lists:
    /// GET / as any health check does, and OPTIONS /, which Flask answers by itself.
    #[command(after_help = PRECEDENCE)]
    Doctor(DoctorArgs),
    /// Measure how many parallel requests the backend sustains
    ///
    /// Sends requests to URL with 1, 2, 3, 4, 6, 8, 12, ... clients at once, each of which waits for its
    /// answer before it asks again, until more clients bring no more. It is a load test: the URL should be
    /// one that may be asked often. Ctrl-C ends it, with what was measured so far.
    #[command(after_help = PRECEDENCE)]
    Probe(ProbeArgs),
    /// Show what a running tidegate does: its limit, its queue, and what holds the limit
    Status(StatusArgs),
    /// Tell a running tidegate to finish its requests and take no new ones
    Drain(DrainArgs),
    /// Exit 0 if a running tidegate is healthy, else 1 (for a container's HEALTHCHECK)
    Healthcheck(HealthcheckArgs),
    /// Run a recorded trace through another configuration
    ///
    /// A trace is what a tidegate with trace.file has recorded. Shows what did happen, and what would
    /// have happened with this configuration: answers, refusals, waits and the limit.
    #[command(after_help = PRECEDENCE)]
    Replay(ReplayArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// `tidegate run`
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Shared options.
    #[command(flatten)]
    pub options: Options,
}

/// `tidegate exec`
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Shared options.
    #[command(flatten)]
    pub options: Options,
    /// The backend's command and its arguments [default: process.command]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl ExecArgs {
    /// Where the configuration comes from; the command after `--` is `process.command`, and listens on a free
    /// port unless an endpoint is named.
    pub fn sources(&self) -> Sources {
        let mut sources = self.options.sources();
        sources.backend = Some(Address::any());
        if !self.command.is_empty() {
            let value = Value::strings(self.command.iter().cloned());
            sources
                .flags
                .push(("process.command".to_owned(), "-- COMMAND".to_owned(), value));
        }
        sources
    }
}

/// `tidegate check`
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Shared options.
    #[command(flatten)]
    pub options: Options,
}

/// `tidegate config`
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// Shared options.
    #[command(flatten)]
    pub options: Options,
    /// TOML that can be fed back in, or JSON
    #[arg(long, value_enum, default_value_t)]
    pub format: ConfigFormat,
}

/// How `tidegate config` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ConfigFormat {
    /// Fit to be fed back in; each key has its origin in a comment.
    #[default]
    Toml,
    /// Each key as `{"value": ..., "origin": ...}`.
    Json,
}

/// `tidegate doctor`
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Shared options.
    #[command(flatten)]
    pub options: Options,
    /// For people, or JSON
    #[arg(long, value_enum, default_value_t)]
    pub format: DoctorFormat,
}

/// How `tidegate doctor` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    /// For people.
    #[default]
    Text,
    /// All of it.
    Json,
}

/// `tidegate probe`
#[derive(Args, Clone, Debug)]
pub struct ProbeArgs {
    /// Shared options.
    #[command(flatten)]
    pub options: Options,
    /// What to ask for: http://host:port/path, or unix:/socket:/path. With --backend the processes that
    /// listen there are watched, else those that listen at the URL
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// Never more requests at once than this
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_concurrency: u32,
    /// How long each step is measured; up to 30 times as long when requests take longer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = step)]
    pub step: Duration,
    /// For people, or JSON
    #[arg(long, value_enum, default_value_t)]
    pub format: ProbeFormat,
    /// Draw the curve into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Measure a server that is neither on this machine nor in a private network
    #[arg(long)]
    pub yes_remote: bool,
}

/// How `tidegate probe` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProbeFormat {
    /// For people.
    #[default]
    Text,
    /// Every figure.
    Json,
}

fn step(text: &str) -> Result<Duration, String> {
    let step = crate::config::parse_duration(text).unwrap_or_default();
    if (Duration::from_millis(50)..=Duration::from_secs(600)).contains(&step) {
        Ok(step)
    } else {
        Err("write a duration from 50ms to 10m".to_owned())
    }
}

/// Where a running tidegate's admin server is.
#[derive(Args, Clone, Debug)]
pub struct AdminArgs {
    /// The admin server of the running tidegate: host:port, :port or unix:/path [env: TIDEGATE_ADMIN,
    /// TIDEGATE_ADMIN__LISTEN] [default: admin.listen of the file that TIDEGATE_CONFIG names, or
    /// 127.0.0.1:9180]
    #[arg(long = "admin", value_name = "ADDR", value_parser = admin_address)]
    pub address: Option<Named>,
}

/// What `--admin` names; an empty text is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named(Option<Address>);

fn admin_address(text: &str) -> Result<Named, String> {
    if text.trim().is_empty() {
        return Ok(Named(None));
    }
    let address = Address::connect(text).map_err(|error| error.to_string())?;
    Ok(Named(Some(address)))
}

impl AdminArgs {
    /// Whom to ask. Without the flag, where a tidegate in this environment would have its admin server.
    ///
    /// # Errors
    /// The exit code, when the environment names no address. What is wrong is said on standard error.
    pub fn address(&self) -> Result<Address, ExitCode> {
        self.address_by(&Options::default().sources())
    }

    fn address_by(&self, sources: &Sources) -> Result<Address, ExitCode> {
        if let Some(Named(Some(address))) = &self.address {
            return Ok(address.clone());
        }
        let (address, doubts) = admin_listen(sources).map_err(|problems| {
            // Nobody who listens is no reason to panic.
            let _ = writeln!(io::stderr(), "{problems}");
            ExitCode::from(2)
        })?;
        for doubt in doubts {
            complain(&format!("{doubt}; {address} is asked"));
        }
        if matches!(address, Address::Tcp { port: 0, .. }) {
            complain(&format!(
                "admin.listen is any free port ({address}): say with --admin which it is"
            ));
            return Err(ExitCode::from(2));
        }
        Ok(address)
    }
}

/// `tidegate status`
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Show it again every second
    #[arg(long)]
    pub watch: bool,
    /// For people, or JSON
    #[arg(long, value_enum, default_value_t)]
    pub format: StatusFormat,
}

/// How `tidegate status` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// For people.
    #[default]
    Text,
    /// As `GET /status` answers.
    Json,
}

/// `tidegate drain`
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// Whom to tell.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Return only when the last request has ended
    #[arg(long)]
    pub wait: bool,
}

/// `tidegate healthcheck`
#[derive(Args, Clone, Debug)]
pub struct HealthcheckArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Ask whether the backend accepts too, not just whether tidegate lives
    #[arg(long)]
    pub ready: bool,
}

/// `tidegate replay`
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The file that trace.file named
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// The configuration to try.
    #[command(flatten)]
    pub options: Options,
    /// For people, or JSON
    #[arg(long, value_enum, default_value_t)]
    pub format: ReplayFormat,
}

/// How `tidegate replay` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ReplayFormat {
    /// For people.
    #[default]
    Text,
    /// Every figure.
    Json,
}

/// `tidegate completions`
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests;

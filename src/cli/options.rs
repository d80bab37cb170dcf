//! The options that all commands with a configuration share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::{Sources, Value};

/// The options that all commands with a configuration share.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Read the configuration from this TOML file [env: TIDEGATE_CONFIG] [default: no file]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Listen for clients here: host:port, :port or unix:/path; may be repeated [env:
    /// TIDEGATE_LISTEN] [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,

    /// Where the backend is: host:port, :port or unix:/path; may be repeated [env:
    /// TIDEGATE_BACKEND] [default: 127.0.0.1:8000; of exec, a free port]
    #[arg(long, value_name = "ADDR")]
    pub backend: Vec<String>,

    /// Listen here for metrics, status and the dashboard [env: TIDEGATE_ADMIN] [default:
    /// 127.0.0.1:9180]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,

    /// How many requests each endpoint gets at once: auto measures it, a number fixes it [env:
    /// TIDEGATE_LIMIT__ALGORITHM, TIDEGATE_LIMIT__INITIAL] [default: auto]
    #[arg(long, value_name = "auto|N", value_parser = limit)]
    pub limit: Option<Limit>,

    /// Compute and export the limit, but never queue and never refuse [env:
    /// TIDEGATE_LIMIT__DRY_RUN] [default: off]
    #[arg(long)]
    pub dry_run: bool,

    /// How log lines are written [env: TIDEGATE_LOG__FORMAT] [default: text on a terminal, else
    /// json]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// What is logged: off, error, warn, info, debug, trace, or a tracing filter [env:
    /// TIDEGATE_LOG__LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Set any key of the configuration, as --set queue.max_wait=2s; may be repeated [default: the
    /// environment, the file, or the key's default]
    #[arg(long, value_name = "section.key=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
}

/// `--limit`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The law `aimd`.
    Auto,
    /// The law `fixed`, with this limit.
    Fixed(u32),
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn limit(text: &str) -> Result<Limit, String> {
    match (text, text.parse::<u32>()) {
        ("auto", _) => Ok(Limit::Auto),
        (_, Ok(number @ 1..=100_000)) => Ok(Limit::Fixed(number)),
        _ => Err("write auto, or a whole number from 1 to 100000".to_owned()),
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err("write section.key=VALUE, as queue.max_wait=2s".to_owned()),
    }
}

impl Options {
    /// Where the configuration comes from: this command line, this process's environment, and the
    /// file that either names.
    pub fn sources(&self) -> Sources {
        // What isn't UTF-8 isn't ours.
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with("TIDEGATE_"))
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect();
        self.sources_with(env)
    }

    /// The same for who only looks at the configuration, which may be one for `exec`.
    pub fn sources_to_look_at(&self) -> Sources {
        Sources {
            for_exec_too: true,
            ..self.sources()
        }
    }

    /// [`Options::sources`] with another environment.
    pub fn sources_with(&self, env: Vec<(String, String)>) -> Sources {
        let mut flags = Vec::new();
        let mut flag = |key: &str, name: &str, value: Value| {
            flags.push((key.to_owned(), name.to_owned(), value));
        };
        if !self.listen.is_empty() {
            flag(
                "server.listen",
                "--listen",
                Value::strings(self.listen.iter().cloned()),
            );
        }
        if !self.backend.is_empty() {
            flag(
                "backend.endpoints",
                "--backend",
                Value::strings(self.backend.iter().cloned()),
            );
        }
        if let Some(admin) = &self.admin {
            flag("admin.listen", "--admin", Value::String(admin.clone()));
        }
        match self.limit {
            Some(Limit::Auto) => {
                flag(
                    "limit.algorithm",
                    "--limit",
                    Value::String("aimd".to_owned()),
                );
            }
            Some(Limit::Fixed(number)) => {
                flag(
                    "limit.algorithm",
                    "--limit",
                    Value::String("fixed".to_owned()),
                );
                flag("limit.initial", "--limit", Value::Integer(number.into()));
            }
            None => {}
        }
        if self.dry_run {
            flag("limit.dry_run", "--dry-run", Value::Bool(true));
        }
        if let Some(format) = self.log_format {
            let word = match format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            };
            flag("log.format", "--log-format", Value::String(word.to_owned()));
        }
        if let Some(level) = &self.log_level {
            flag("log.level", "--log-level", Value::String(level.clone()));
        }
        // Last, so that it wins over the short forms.
        for (key, value) in &self.set {
            flag(key, &format!("--set {key}"), Value::Bare(value.clone()));
        }
        let mut sources = Sources {
            file: self.config.clone(),
            env,
            flags,
            backend: None,
            for_exec_too: false,
        };
        sources.file = sources.path();
        sources
    }
}

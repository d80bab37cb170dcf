//! A new configuration without a lost request.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{process, state_file};
use crate::{
    config::{self, Config, Loaded, Sources, Tried},
    observe::log::LogControl,
    proxy::Shared,
};

/// Why the configuration is to be read again.
#[derive(Clone, Copy, Debug)]
pub enum Cause {
    /// Somebody asked for it, in this way: it is read whatever it says.
    Asked(&'static str),
    /// The file seems to have changed: if what it says now was tried already, there is nothing to do.
    FileChanged,
}

impl Cause {
    fn as_str(self) -> &'static str {
        match self {
            Self::Asked(how) => how,
            Self::FileChanged => "the file changed",
        }
    }
}

/// The configuration in force and how to get the next one.
#[derive(Debug)]
pub struct Settings {
    sources: Sources,
    tried: Tried,
    /// What the process was started with: keys that need a restart are as they are here.
    started: Arc<Loaded>,
    loaded: Mutex<Arc<Loaded>>,
    in_force: arc_swap::ArcSwap<Loaded>,
    log: LogControl,
    shared: Arc<Shared>,
}

impl Settings {
    pub fn new(
        (sources, tried): (Sources, Tried),
        loaded: Loaded,
        log: LogControl,
        shared: Arc<Shared>,
    ) -> Self {
        let loaded = Arc::new(loaded);
        Self {
            sources,
            tried,
            started: loaded.clone(),
            in_force: arc_swap::ArcSwap::new(loaded.clone()),
            loaded: Mutex::new(loaded),
            log,
            shared,
        }
    }

    /// What is in force.
    pub fn in_force(&self) -> Arc<Loaded> {
        self.in_force.load_full()
    }

    /// Reads everything again. On any problem the running configuration stays.
    ///
    /// # Errors
    /// The problems, a line each.
    pub async fn try_reload(&self, cause: Cause) -> Result<String, String> {
        // One at a time, in order.
        let mut loaded = self.loaded.lock().await;
        let (sources, tried) = (self.sources.clone(), self.tried.clone());
        let (before, started) = (loaded.clone(), self.started.clone());
        let read = tokio::task::spawn_blocking(move || {
            let file = sources.path();
            let is_news = || file.is_some_and(|file| tried.is_outdated(&file));
            if matches!(cause, Cause::FileChanged) && !is_news() {
                return Ok(None);
            }
            let new = config::load_again(&sources, &tried)?;
            new.check_successor_of(&before)?;
            new.check_reload_into(&started)?;
            // There may be more clients than before, each of which needs descriptors.
            process::raise_descriptor_limit(&new.config);
            process::try_spool(&new.config);
            state_file::try_write(&new.config);
            Ok::<_, config::Problems>(Some(new))
        })
        .await;
        let cause = cause.as_str();
        let new = match read {
            Ok(Ok(Some(new))) => new,
            Ok(Ok(None)) => return Ok("nothing has changed".to_owned()),
            Ok(Err(problems)) => {
                for problem in &problems.0 {
                    tracing::error!(
                        at = problem.location,
                        key = problem.key.as_deref().unwrap_or("-"),
                        "{}",
                        problem.message
                    );
                }
                tracing::error!(
                    cause,
                    problems = problems.0.len(),
                    "reload failed, the running configuration stays"
                );
                self.shared.metrics.config_reload(false);
                return Err(problems.to_string());
            }
            Err(error) => {
                self.shared.metrics.config_reload(false);
                return Err(error.to_string());
            }
        };
        let restart = config::needs_restart(&self.started, &new);
        let config = Arc::new(settle(&new.config, &self.shared.live().config));
        let in_force = new.in_force(&self.started, config.clone());
        if config.log.level != loaded.config.log.level
            && let Err(error) = self.log.set_level(&config.log.level)
        {
            tracing::error!(%error, "the log level stays");
        }
        self.shared.apply(config);
        self.shared.metrics.config_reload(true);
        let summary = if restart.is_empty() {
            "reloaded".to_owned()
        } else {
            format!("reloaded; needs a restart: {}", restart.join(", "))
        };
        if restart.is_empty() {
            tracing::info!(cause, "configuration reloaded");
        } else {
            tracing::warn!(
                cause,
                keys = restart.join(", "),
                "configuration reloaded, but these keys need a restart"
            );
        }
        *loaded = Arc::new(new);
        self.in_force.store(Arc::new(in_force));
        Ok(summary)
    }
}

/// The new configuration, in which what a reload cannot change stays as it is.
fn settle(new: &Config, running: &Config) -> Config {
    let mut config = new.clone();
    config.server.listen.clone_from(&running.server.listen);
    config.server.threads = running.server.threads;
    config.server.http2 = running.server.http2;
    config.server.max_header_bytes = running.server.max_header_bytes;
    config.server.proxy_protocol = running.server.proxy_protocol;
    config.admin.clone_from(&running.admin);
    config.backend.profile = running.backend.profile;
    config.backend.protocol = running.backend.protocol;
    config.backend.keepalive = running.backend.keepalive;
    config.backend.keepalive_idle = running.backend.keepalive_idle;
    let slots = config.discovery.slots;
    config.discovery.clone_from(&running.discovery);
    config.discovery.slots = slots;
    config.drain.clone_from(&running.drain);
    config.process.clone_from(&running.process);
    config.log.format = running.log.format;
    config.trace.clone_from(&running.trace);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Value, load, needs_restart, schema};

    /// A value of each kind that is no default.
    const VALUES: &[&str] = &[
        "true",
        "false",
        "2",
        "3s",
        "1MiB",
        "v1",
        "off",
        "uwsgi",
        "json",
        "always",
        "text",
        "/nowhere",
        "127.0.0.1:1",
    ];

    #[test]
    fn a_reload_changes_no_key_that_needs_a_restart() {
        let running = load(&Sources::default()).expect("the defaults");
        for key in schema::plain_keys().filter(|key| !key.hot) {
            let other = VALUES.iter().find_map(|value| {
                let flag = (
                    key.path.to_owned(),
                    "--set".to_owned(),
                    Value::Bare((*value).to_owned()),
                );
                let sources = Sources {
                    flags: vec![flag],
                    ..Sources::default()
                };
                let new = load(&sources).ok()?;
                (needs_restart(&running, &new) == [key.path]).then_some(new)
            });
            let other = other.unwrap_or_else(|| panic!("no other value for {}", key.path));
            assert_ne!(other.config, running.config, "{}", key.path);
            assert_eq!(
                settle(&other.config, &running.config),
                *running.config,
                "{}",
                key.path
            );
        }
    }
}

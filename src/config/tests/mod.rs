//! The room as a whole: what is in the sources is in the configuration, or in the report.

mod bad;
mod layers;
mod round_trip;

use std::path::Path;

use super::{load::load_bytes, *};

/// Loads a text as the file `tidegate.toml`.
fn load_text(text: &str, sources: &Sources) -> Result<Loaded, Problems> {
    load_bytes(sources, Some((Path::new("tidegate.toml"), text.as_bytes())))
}

fn env(vars: &[(&str, &str)]) -> Sources {
    let env = vars
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Sources {
        env: env.collect(),
        ..Sources::default()
    }
}

fn set(sources: Sources, key: &str, value: &str) -> Sources {
    let mut flags = sources.flags;
    flags.push((
        key.to_owned(),
        format!("--set {key}"),
        Value::Bare(value.to_owned()),
    ));
    Sources { flags, ..sources }
}

fn lines(result: Result<Loaded, Problems>) -> String {
    match result {
        Ok(_) => String::new(),
        Err(problems) => problems.to_string(),
    }
}

//! What is wrong with a configuration: every problem, with its place and its remedy.

use std::fmt;

use super::{origin::Origin, schema};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE:COL`, or the name of the variable or flag.
    pub location: String,
    /// The dotted key, if it is about one.
    pub key: Option<String>,
    /// What is wrong and what to write instead, on one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// Everything that is wrong with a configuration; displayed one line each. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems while the layers are read.
#[derive(Debug, Default)]
pub(super) struct Report(Vec<(Origin, Problem)>);

impl Report {
    /// A problem with the value of a key: the message is led by the key, unless the location
    /// spells it already.
    pub(super) fn value(&mut self, origin: &Origin, key: &str, message: &str) {
        let spelled = match origin {
            Origin::Env { name } => *name == schema::env_name(key),
            Origin::Flag { name } => name.starts_with("--set "),
            _ => false,
        };
        let message = if spelled {
            message.to_owned()
        } else {
            format!("{key}: {message}")
        };
        self.plain(origin, Some(key), message);
    }

    /// A problem whose message is complete.
    pub(super) fn plain(&mut self, origin: &Origin, key: Option<&str>, message: impl Into<String>) {
        self.at(origin, origin.location(), key, message);
    }

    /// A problem at a place that has no line, as a file that can't be read.
    pub(super) fn at(
        &mut self,
        origin: &Origin,
        location: String,
        key: Option<&str>,
        message: impl Into<String>,
    ) {
        // A message is one line whatever was in the value.
        let message = message.into().replace(['\n', '\r'], " ");
        let problem = Problem {
            location,
            key: key.map(str::to_owned),
            message,
        };
        self.0.push((origin.clone(), problem));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All problems, by layer and place.
    pub(super) fn finish(mut self) -> Problems {
        self.0.sort_by_key(|(origin, _)| origin.rank());
        Problems(self.0.into_iter().map(|(_, problem)| problem).collect())
    }
}

/// The candidate that was probably meant, if any is near enough.
pub(super) fn closest<'a>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = given.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|one| {
            let near = strsim::normalized_damerau_levenshtein(&given, one);
            // "lifo" for "adaptive-lifo", "sync" for "gunicorn-sync".
            let part = given.len() >= 3 && one.contains(&given);
            (if part { near.max(0.8) } else { near }, one)
        })
        .filter(|(near, _)| *near >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, one)| one)
}

/// `; did you mean X?`, or nothing.
pub(super) fn did_you_mean(meant: Option<&str>) -> String {
    meant
        .map(|one| format!("; did you mean {one}?"))
        .unwrap_or_default()
}

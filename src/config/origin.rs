//! Where a value came from.

use std::{collections::BTreeMap, fmt, path::PathBuf};

/// A place in a file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// Where a value came from; a later variant wins over an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    #[default]
    Default,
    /// The configuration file.
    File {
        /// As it was named on the command line.
        path: PathBuf,
        /// Where the value starts.
        position: Position,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: String,
    },
    /// A flag of the command line.
    Flag {
        /// With its dashes; for `--set`, with the key.
        name: String,
    },
}

impl Origin {
    /// The place for a message: `FILE:LINE:COL`, `TIDEGATE_X__Y` or `--flag`.
    pub fn location(&self) -> String {
        match self {
            Origin::Default => "default".to_owned(),
            Origin::File { path, position } => {
                format!("{}:{}:{}", path.display(), position.line, position.column)
            }
            Origin::Env { name } | Origin::Flag { name } => name.clone(),
        }
    }

    /// How messages are ordered: by layer, then by place in the file.
    pub(super) fn rank(&self) -> (u8, Option<Position>) {
        match self {
            Origin::Default => (0, None),
            Origin::File { position, .. } => (1, Some(*position)),
            Origin::Env { .. } => (2, None),
            Origin::Flag { .. } => (3, None),
        }
    }
}

impl fmt::Display for Origin {
    /// As in the comments of `tidegate config`: `default`, `FILE:LINE`, `env NAME`, `flag --x`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, position } => write!(f, "{}:{}", path.display(), position.line),
            Origin::Env { name } => write!(f, "env {name}"),
            Origin::Flag { name } => write!(f, "flag {name}"),
        }
    }
}

/// Where each value came from, by dotted key (`queue.max_wait`, `route[0].name`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(pub(super) BTreeMap<String, Origin>);

impl Origins {
    /// The origin of a key; [`Origin::Default`] for one that nobody set.
    pub fn get(&self, key: &str) -> &Origin {
        self.0.get(key).unwrap_or(&Origin::Default)
    }

    /// All keys with their origins, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.0.iter().map(|(key, origin)| (key.as_str(), origin))
    }
}

//! What the texts of a `[[route]]` mean: which paths, and which header.

use percent_encoding::percent_decode_str;

/// The paths that a `path` matches, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// All of them.
    Any,
    /// This one.
    Exact(Vec<u8>),
    /// Without the trailing slash: `/api/*` is `/api` and all below.
    Below(Vec<u8>),
}

impl PathPattern {
    /// Of the configured text; an empty one is for all paths.
    pub fn new(pattern: &str) -> Self {
        let decoded = |text| percent_decode_str(text).collect();
        match pattern.strip_suffix("/*") {
            _ if pattern.is_empty() => Self::Any,
            Some("") => Self::Any,
            Some(prefix) => Self::Below(decoded(prefix)),
            None => Self::Exact(decoded(pattern)),
        }
    }

    /// Whether it matches a decoded path.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == exact,
            Self::Below(prefix) => path
                .strip_prefix(prefix.as_slice())
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))),
        }
    }

    /// All patterns that match whatever this one matches, itself among them.
    pub(super) fn wider(&self) -> Vec<Self> {
        let path = match self {
            Self::Any => return vec![Self::Any],
            Self::Exact(path) | Self::Below(path) => path,
        };
        let slashes = (0..path.len()).filter(|at| path[*at] == b'/');
        let prefixes = slashes.chain([path.len()]);
        let below = prefixes.map(|end| Self::Below(path[..end].to_vec()));
        [Self::Any, self.clone()].into_iter().chain(below).collect()
    }
}

/// The name in a `header`, and its value if it asks for one.
pub fn header_condition(text: &str) -> Option<(&str, Option<&str>)> {
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name, Some(value.trim())),
        None => (text, None),
    };
    (!text.is_empty()).then(|| (name.trim(), value))
}

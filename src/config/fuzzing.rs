//! What must hold of the configuration, whatever is in the file.

use std::path::Path;

use super::{Sources, load::load_bytes};

/// Any file is either refused, with a place for what is wrong, or loads.
///
/// # Panics
/// If that does not hold.
pub fn toml(data: &[u8]) {
    if let Err(problems) = load_bytes(&Sources::default(), Some((Path::new("fuzz.toml"), data))) {
        assert!(!problems.to_string().is_empty(), "refused without a word");
    }
}

//! What the fuzz targets in `fuzz/` call: each parser of foreign bytes, with what must hold of it. Built
//! for them (`--cfg fuzzing`) and for the test that replays the kept corpus.

pub use crate::{
    backend::fuzzing::{response, uwsgi},
    config::fuzzing::toml,
    proxy::fuzzing::{preamble, request},
};

/// Splits the input: its first byte says in pieces of which size the rest comes.
pub(crate) fn pieces(data: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((usize::from(*first % 16) + 1, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every input that once taught something, and those that a run starts from.
    #[test]
    fn the_corpus_is_replayed() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 5] = [
            ("request", request),
            ("response", response),
            ("preamble", preamble),
            ("uwsgi", uwsgi),
            ("toml", toml),
        ];
        for (name, target) in targets {
            let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            let mut inputs = 0;
            for entry in std::fs::read_dir(&folder).expect("the corpus is there") {
                let path = entry.expect("it can be listed").path();
                target(&std::fs::read(&path).expect("it can be read"));
                inputs += 1;
            }
            assert!(inputs > 0, "{folder} is empty");
        }
    }
}

//! The trace of `trace.file`: what each request met at the gate and at the backend, in a ring of
//! fixed-size records, for `tidegate replay`.
//!
//! `format` is the file, `recorder` fills it, `read` reads it back.

pub mod format;
mod recorder;

use std::{
    io::{self, Read as _},
    path::Path,
};

pub use self::{
    format::{Entry, Fate, Header},
    recorder::{Recorder, StartError},
};
use crate::config::open_regular;

/// A trace is no longer than this, bytes.
const LONGEST: u64 = format::HEADER as u64 + recorder::CAPACITY * format::RECORD as u64;

/// A trace, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The names of the routes; [`Entry::route`] is a place in it.
    pub routes: Vec<String>,
    /// The requests, in order of arrival.
    pub entries: Vec<Entry>,
    /// Records that were written only in part, as by a machine that went down.
    pub damaged: usize,
}

/// Why a file is not read as a trace.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error(transparent)]
    Format(#[from] format::FormatError),
    /// It begins as a trace, and goes on after the last place of its ring.
    #[error("it has more than {LONGEST} bytes, which is more than a trace has")]
    TooLong,
}

/// Reads a trace, also one that is being written.
///
/// # Errors
/// When the file cannot be read or is not a trace. A pipe or a device is none: it may have no end.
pub fn read(path: &Path) -> Result<Trace, ReadError> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)?;
    let header = Header::decode(&bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(ReadError::TooLong);
    }
    let mut numbered = Vec::new();
    let mut damaged = 0;
    let ring = bytes.get(format::HEADER..).unwrap_or_default();
    for record in ring.chunks_exact(format::RECORD) {
        match format::decode(record) {
            Ok(Some(entry)) => numbered.push(entry),
            Ok(None) => {}
            Err(format::Damaged) => damaged += 1,
        }
    }
    // In the order of their ends first, so that equal arrivals stay in a fixed order.
    numbered.sort_unstable_by_key(|(number, _)| *number);
    let mut entries: Vec<Entry> = numbered.into_iter().map(|(_, entry)| entry).collect();
    entries.sort_by_key(|entry| entry.arrived);
    Ok(Trace {
        routes: header.routes,
        entries,
        damaged,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_a_file_that_may_be_a_trace_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let in_dir = |name: &str| dir.path().join(name);
        mknodat(CWD, in_dir("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        for path in [in_dir("fifo"), "/dev/zero".into(), dir.path().into()] {
            let error = read(&path).unwrap_err();
            assert!(matches!(error, ReadError::Io(_)), "{path:?}: {error}");
        }
        let trace = in_dir("trace");
        fs::write(&trace, Header::default().encode()).unwrap();
        let file = File::options().write(true).open(&trace).unwrap();
        file.set_len(LONGEST).unwrap();
        assert_eq!(read(&trace).unwrap().entries, []);
        file.set_len(LONGEST + 1).unwrap();
        assert!(matches!(read(&trace), Err(ReadError::TooLong)));
        // However much of something else there is, it is just that.
        fs::write(&trace, "dear diary").unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(matches!(read(&trace), Err(ReadError::Format(_))));
    }
}

//! The trace of `trace.file`: what each request met at the gate and at the backend, in a ring of
//! fixed-size records, for `tidegate replay`.
//!
//! `format` is the file, `recorder` fills it, `read` reads it back.

pub mod format;
mod recorder;

use std::{fs, io, path::Path};

pub use self::{
    format::{Entry, Fate, Header},
    recorder::{Recorder, StartError},
};

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
}

/// Reads a trace, also one that is being written.
///
/// # Errors
/// When the file cannot be read or is not a trace.
pub fn read(path: &Path) -> Result<Trace, ReadError> {
    let bytes = fs::read(path)?;
    let header = Header::decode(&bytes)?;
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

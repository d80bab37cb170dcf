//! Fills a trace. Requests leave their records in a list; a thread of its own writes it out a few
//! times a second, into the kernel's cache, where it survives the end of this process.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::format::{self, Entry, FormatError, Header};
use crate::{
    clock,
    sync::{Mutex, lock},
};

/// Records of a ring: 14 MiB, and a quarter of an hour at 300 requests a second.
pub(super) const CAPACITY: u64 = 262_144;
/// Records that wait to be written at most: more are lost, and counted.
const WAITING: usize = 32_768;
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two attempts to write to a file that takes nothing: its disk may be full.
const RETRY: Duration = Duration::from_secs(5);

/// Why no trace is recorded.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file cannot be made or read.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is a file, and it is something else: it is left alone.
    #[error("{path}: {error}; name another file, or remove this one")]
    Format {
        /// Which.
        path: PathBuf,
        /// What it is.
        error: FormatError,
    },
    /// Somebody else records into it.
    #[error("{path}: another tidegate records into it")]
    Taken {
        /// Which.
        path: PathBuf,
    },
}

/// Records. Whoever has a request that is over calls [`Recorder::note`].
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    begun: Instant,
    /// `begun` in microseconds since the epoch.
    epoch: u64,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    notes: Vec<(Arc<str>, Entry)>,
    lost: u64,
    over: bool,
}

impl Recorder {
    /// Starts to record into this file, behind what is there already.
    ///
    /// # Errors
    /// When the file cannot be written, is not a trace, or another process records into it.
    pub fn start(path: &Path) -> Result<Self, StartError> {
        let ring = Ring::open(path, CAPACITY)?;
        let shared = Arc::new(Shared::default());
        let of_writer = shared.clone();
        let writer = std::thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || write(&of_writer, ring))
            .map_err(|error| StartError::Io {
                path: path.to_owned(),
                error,
            })?;
        let epoch = clock::since_epoch().as_micros();
        Ok(Self {
            shared,
            writer: Mutex::new(Some(writer)),
            begun: clock::now(),
            epoch: u64::try_from(epoch).unwrap_or(u64::MAX),
        })
    }

    /// A moment as [`Entry::arrived`] has it.
    pub fn micros(&self, at: Instant) -> u64 {
        match at.checked_duration_since(self.begun) {
            Some(since) => self.epoch.saturating_add(micros(since)),
            None => self
                .epoch
                .saturating_sub(micros(self.begun.duration_since(at))),
        }
    }

    /// Notes a request that is over. Costs less than a microsecond; `entry.route` is filled in later.
    pub fn note(&self, route: &Arc<str>, entry: Entry) {
        let mut waiting = lock(&self.shared.waiting);
        if waiting.notes.len() < WAITING {
            waiting.notes.push((route.clone(), entry));
        } else {
            waiting.lost += 1;
        }
    }

    /// Writes what has been noted, and ends. It waits for the disk.
    pub fn finish(&self) {
        lock(&self.shared.waiting).over = true;
        if let Some(writer) = lock(&self.writer).take() {
            writer.thread().unpark();
            let _ = writer.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        lock(&self.shared.waiting).over = true;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Writes until the recorder is gone.
fn write(shared: &Shared, mut ring: Ring) {
    let mut notes = Vec::new();
    let mut missing = 0;
    let mut again: Option<Instant> = None;
    loop {
        std::thread::park_timeout(PAUSE);
        let (lost, over) = {
            let mut waiting = lock(&shared.waiting);
            std::mem::swap(&mut notes, &mut waiting.notes);
            (std::mem::take(&mut waiting.lost), waiting.over)
        };
        if lost > 0 {
            tracing::warn!(
                lost,
                "the trace lacks requests: they came faster than they could be written"
            );
        }
        let now = clock::now();
        if over || (!notes.is_empty() && again.is_none_or(|at| at <= now)) {
            match ring.append(&notes) {
                Ok(()) if again.take().is_some() => {
                    tracing::info!(missing, "the trace can be written again");
                    missing = 0;
                }
                Ok(()) => {}
                Err(error) => {
                    if again.is_none() {
                        tracing::error!(%error, "the trace cannot be written: it will lack requests until it can");
                    }
                    again = Some(now + RETRY);
                }
            }
        }
        if again.is_some() {
            missing += notes.len();
        }
        notes.clear();
        if over {
            return;
        }
    }
}

/// The file.
#[derive(Debug)]
struct Ring {
    file: File,
    header: Header,
    /// Routes that the file knows.
    written: usize,
    known: HashMap<Arc<str>, u16>,
    /// The number of the next record.
    next: u64,
}

impl Ring {
    fn open(path: &Path, capacity: u64) -> Result<Self, StartError> {
        let io_error = |error: io::Error| StartError::Io {
            path: path.to_owned(),
            error,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => StartError::Taken {
                path: path.to_owned(),
            },
            other => io_error(other.into()),
        })?;
        let mut ring = Self {
            file,
            header: Header {
                capacity,
                routes: Vec::new(),
            },
            written: 0,
            known: HashMap::new(),
            next: 1,
        };
        let length = ring.file.metadata().map_err(io_error)?.len();
        if length == 0 {
            ring.write_header().map_err(io_error)?;
            return Ok(ring);
        }
        let mut head = vec![0; format::HEADER];
        let wrong = |error| StartError::Format {
            path: path.to_owned(),
            error,
        };
        match ring.file.read_exact_at(&mut head, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(wrong(FormatError::Foreign));
            }
            other => other.map_err(io_error)?,
        }
        ring.header = Header::decode(&head).map_err(wrong)?;
        ring.header.capacity = ring.header.capacity.clamp(1, CAPACITY);
        for (at, name) in ring.header.routes.iter().enumerate() {
            ring.known.insert(name.as_str().into(), at as u16);
        }
        ring.written = ring.header.routes.len();
        ring.next = ring.last().map_err(io_error)? + 1;
        Ok(ring)
    }

    /// The highest number in the file.
    fn last(&self) -> io::Result<u64> {
        let mut last = 0;
        let mut buffer = vec![0; format::RECORD * 4096];
        let mut at = format::HEADER as u64;
        loop {
            let count = self.file.read_at(&mut buffer, at)?;
            let whole = count / format::RECORD * format::RECORD;
            if whole == 0 {
                return Ok(last);
            }
            for record in buffer[..whole].chunks_exact(format::RECORD) {
                if let Ok(Some((number, _))) = format::decode(record) {
                    last = last.max(number);
                }
            }
            at += whole as u64;
        }
    }

    fn write_header(&self) -> io::Result<()> {
        self.file.write_all_at(&self.header.encode(), 0)
    }

    /// Writes all of them, or leaves the trace as if none had been written.
    fn append(&mut self, notes: &[(Arc<str>, Entry)]) -> io::Result<()> {
        let before = self.next;
        let appended = self.try_append(notes);
        if appended.is_err() {
            self.next = before;
        }
        appended
    }

    fn try_append(&mut self, notes: &[(Arc<str>, Entry)]) -> io::Result<()> {
        let mut places = Vec::with_capacity(notes.len());
        for (route, _) in notes {
            places.push(self.route(route));
        }
        // Names first: a record never refers to one that is not there.
        if self.header.routes.len() > self.written {
            self.write_header()?;
            self.written = self.header.routes.len();
        }
        let mut bytes = Vec::with_capacity(notes.len() * format::RECORD);
        let mut begin = self.next;
        for ((_, entry), route) in notes.iter().zip(places) {
            let entry = Entry { route, ..*entry };
            bytes.extend_from_slice(&format::encode(self.next, &entry));
            self.next += 1;
            // The ring closes: what follows goes to its beginning.
            if (self.next - 1).is_multiple_of(self.header.capacity) {
                self.write(begin, &bytes)?;
                bytes.clear();
                begin = self.next;
            }
        }
        self.write(begin, &bytes)
    }

    fn write(&self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let place = (number - 1) % self.header.capacity;
        let at = format::HEADER as u64 + place * format::RECORD as u64;
        self.file.write_all_at(bytes, at)
    }

    fn route(&mut self, name: &Arc<str>) -> u16 {
        if let Some(&place) = self.known.get(name) {
            return place;
        }
        let place = u16::try_from(self.header.routes.len()).unwrap_or(u16::MAX);
        if place < u16::MAX {
            self.header.routes.push(name.to_string());
            self.known.insert(name.clone(), place);
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::{super::read, *};
    use crate::observe::trace::format::tests::entry;

    fn notes(route: &str, arrivals: std::ops::Range<u64>) -> Vec<(Arc<str>, Entry)> {
        let one = |arrived| (Arc::from(route), Entry { arrived, ..entry() });
        arrivals.map(one).collect()
    }

    fn arrivals(path: &Path) -> Vec<u64> {
        let trace = read(path).unwrap();
        assert_eq!(trace.damaged, 0);
        trace.entries.iter().map(|entry| entry.arrived).collect()
    }

    #[test]
    fn the_ring_keeps_the_latest_and_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let mut ring = Ring::open(&path, 10).unwrap();
        ring.append(&notes("a", 0..4)).unwrap();
        assert_eq!(arrivals(&path), [0, 1, 2, 3]);
        ring.append(&notes("b", 4..27)).unwrap();
        assert_eq!(arrivals(&path), (17..27).collect::<Vec<_>>());
        assert!(matches!(
            Ring::open(&path, 10),
            Err(StartError::Taken { .. })
        ));
        drop(ring);
        let mut ring = Ring::open(&path, 99).unwrap();
        ring.append(&notes("a", 27..30)).unwrap();
        assert_eq!(arrivals(&path), (20..30).collect::<Vec<_>>());
        let trace = read(&path).unwrap();
        assert_eq!(trace.routes, ["a", "b"]);
        let routes: Vec<u16> = trace.entries.iter().map(|entry| entry.route).collect();
        assert_eq!(routes, [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]);
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(length, (format::HEADER + 10 * format::RECORD) as u64);
    }

    #[test]
    fn a_record_that_was_cut_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        Ring::open(&path, 10)
            .unwrap()
            .append(&notes("a", 0..4))
            .unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[format::HEADER + format::RECORD + 20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let trace = read(&path).unwrap();
        assert_eq!((trace.entries.len(), trace.damaged), (3, 1));
        // The next number is one that nobody had.
        let mut ring = Ring::open(&path, 10).unwrap();
        assert_eq!(ring.next, 5);
        ring.append(&notes("a", 4..5)).unwrap();
    }

    #[test]
    fn another_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "dear diary").unwrap();
        let refused = Recorder::start(&path).unwrap_err().to_string();
        assert!(
            refused.ends_with(
                "it is not a trace of tidegate's; name another file, or remove this one"
            )
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "dear diary");
        assert!(Recorder::start(&dir.path().join("no/such/dir")).is_err());
    }

    #[test]
    fn what_is_noted_is_in_the_file_soon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let recorder = Recorder::start(&path).unwrap();
        let now = clock::now();
        let arrived = recorder.micros(now);
        let wall = u64::try_from(clock::since_epoch().as_micros()).unwrap();
        assert!(wall.abs_diff(arrived) < 10_000_000);
        assert!(recorder.micros(now - Duration::from_secs(1)) + 1_000_000 <= arrived + 1);
        recorder.note(&"api".into(), Entry { arrived, ..entry() });
        let written = |_: &u32| {
            std::thread::sleep(Duration::from_millis(20));
            read(&path).is_ok_and(|trace| trace.entries.len() == 1)
        };
        assert!((0..500).any(|n| written(&n)));
        assert_eq!(read(&path).unwrap().routes, ["api"]);
        // At the end it is there at once.
        recorder.note(&"last".into(), Entry { arrived, ..entry() });
        recorder.finish();
        assert_eq!(read(&path).unwrap().routes, ["api", "last"]);
    }

    #[test]
    fn what_could_not_be_written_is_as_if_it_had_not_been() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let mut ring = Ring::open(&path, 10).unwrap();
        ring.append(&notes("a", 0..2)).unwrap();
        let denied = File::open(&path).unwrap();
        let file = std::mem::replace(&mut ring.file, denied);
        ring.append(&notes("b", 2..4)).unwrap_err();
        ring.file = file;
        ring.append(&notes("c", 4..6)).unwrap();
        assert_eq!(arrivals(&path), [0, 1, 4, 5]);
        let trace = read(&path).unwrap();
        let names = trace
            .entries
            .iter()
            .map(|entry| &*trace.routes[usize::from(entry.route)]);
        assert_eq!(names.collect::<Vec<_>>(), ["a", "a", "c", "c"]);
    }

    #[test]
    fn what_comes_faster_than_it_is_written_is_lost_and_counted() {
        let recorder = Recorder {
            shared: Arc::default(),
            writer: Mutex::new(None),
            begun: clock::now(),
            epoch: 0,
        };
        let route = Arc::from("api");
        for _ in 0..WAITING + 5 {
            recorder.note(&route, entry());
        }
        let waiting = lock(&recorder.shared.waiting);
        assert_eq!((waiting.notes.len(), waiting.lost), (WAITING, 5));
    }
}

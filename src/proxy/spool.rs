//! Bodies too large for memory, in files that have no name: they are gone with the process.

use std::{
    fs::File,
    future::Future,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};
use tower::BoxError;

use super::Error;

/// Bytes read from the file at a time.
const CHUNK: usize = 64 * 1024;
/// All spools of the process together hold as much as so many of the largest bodies: bodies are spooled before they are
/// admitted, so that nothing else bounds how many there are.
const LARGEST: u64 = 16;
/// What they hold, bytes.
static SPOOLED: AtomicU64 = AtomicU64::new(0);

/// A file that takes a body.
#[derive(Debug)]
pub struct Spool {
    file: File,
    room: Room,
    /// The most that all spools may hold, bytes.
    most: u64,
}

/// What a file holds of the disk, until it is dropped, bytes.
#[derive(Debug, Default)]
struct Room(u64);

impl Room {
    fn grow(&mut self, bytes: u64, most: u64) -> io::Result<()> {
        let room = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
        match SPOOLED.fetch_update(Relaxed, Relaxed, room) {
            Ok(_) => self.0 += bytes,
            Err(_) => return Err(io::ErrorKind::StorageFull.into()),
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        SPOOLED.fetch_sub(self.0, Relaxed);
    }
}

impl Spool {
    /// A new file in `dir`, for a body of up to `body_max` bytes.
    ///
    /// # Errors
    /// If the directory is missing, not writable or full.
    pub async fn create(dir: &Path, body_max: u64) -> io::Result<Self> {
        let dir: PathBuf = dir.to_owned();
        let file = blocking(move || tempfile::tempfile_in(dir)).await?;
        Ok(Self {
            file,
            room: Room::default(),
            most: body_max.saturating_mul(LARGEST),
        })
    }

    /// Appends.
    ///
    /// # Errors
    /// Those of the disk, or that the spools hold as much as they may.
    pub async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.room.grow(bytes.len() as u64, self.most)?;
        let mut file = self.file.try_clone()?;
        blocking(move || file.write_all(&bytes)).await
    }

    /// What was written, `length` bytes, as a body.
    pub fn into_body(self, length: u64) -> SpoolBody {
        SpoolBody {
            step: Step::Rewind(self.file),
            remaining: length,
            _room: self.room,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A spooled body.
#[derive(Debug)]
pub struct SpoolBody {
    step: Step,
    remaining: u64,
    _room: Room,
}

#[derive(Debug)]
enum Step {
    Rewind(File),
    Ready(File),
    Reading(JoinHandle<io::Result<(File, Bytes)>>),
    Done,
}

/// It is no fault of the client's.
fn unreadable(error: &io::Error) -> BoxError {
    tracing::warn!(%error, "cannot read a request's body again from the spool");
    Error::Spool.into()
}

impl Body for SpoolBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.step, Step::Done) {
                Step::Done => return Poll::Ready(None),
                Step::Rewind(mut file) => {
                    if let Err(error) = file.rewind() {
                        return Poll::Ready(Some(Err(unreadable(&error))));
                    }
                    this.step = Step::Ready(file);
                }
                Step::Ready(_) if this.remaining == 0 => {}
                Step::Ready(mut file) => {
                    let size = this.remaining.min(CHUNK as u64) as usize;
                    this.step = Step::Reading(spawn_blocking(move || {
                        let mut chunk = vec![0; size];
                        file.read_exact(&mut chunk)?;
                        Ok((file, chunk.into()))
                    }));
                }
                Step::Reading(mut reading) => {
                    let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
                        this.step = Step::Reading(reading);
                        return Poll::Pending;
                    };
                    return Poll::Ready(Some(match read.map_err(io::Error::other) {
                        Ok(Ok((file, chunk))) => {
                            this.remaining -= chunk.len() as u64;
                            this.step = Step::Ready(file);
                            Ok(Frame::data(chunk))
                        }
                        Ok(Err(error)) | Err(error) => Err(unreadable(&error)),
                    }));
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::backend;

    #[tokio::test]
    async fn all_spools_together_hold_no_more_than_sixteen_of_the_largest_bodies() {
        let dir = std::env::temp_dir();
        // Others may hold something at the same time, but not as much as this.
        let largest = 1 << 20;
        let body = Bytes::from(vec![0; largest]);
        let mut spools = Vec::new();
        let full = loop {
            let mut spool = Spool::create(&dir, largest as u64).await.expect("a file");
            match spool.write(body.clone()).await {
                Ok(()) => spools.push(spool.into_body(largest as u64)),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!((15..=16).contains(&spools.len()), "{}", spools.len());
        spools.pop();
        let mut spool = Spool::create(&dir, largest as u64).await.expect("a file");
        spool
            .write(body.slice(..largest / 2))
            .await
            .expect("there is room again");
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_no_fault_of_the_clients() {
        let dir = std::env::temp_dir();
        let mut spool = Spool::create(&dir, 8).await.expect("a file");
        spool
            .write(Bytes::from_static(b"half"))
            .await
            .expect("it is written");
        // As if the rest had been lost.
        let mut body = spool.into_body(8);
        let part = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let error = part.expect("it does not end").expect_err("it is short");
        let error = Error::of_exchange(backend::Error::RequestBody(error));
        assert!(matches!(error, Error::Spool), "{error}");
    }
}

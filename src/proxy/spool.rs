//! Bodies too large for memory, in files that have no name: they are gone with the process.

use std::{
    fs::File,
    future::Future,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};
use tower::BoxError;

use super::Error;

/// Bytes read from the file at a time.
const CHUNK: usize = 64 * 1024;

/// A file that takes a body.
#[derive(Debug)]
pub struct Spool {
    file: File,
}

impl Spool {
    /// A new file in `dir`.
    ///
    /// # Errors
    /// If the directory is missing, not writable or full.
    pub async fn create(dir: &Path) -> io::Result<Self> {
        let dir: PathBuf = dir.to_owned();
        let file = blocking(move || tempfile::tempfile_in(dir)).await?;
        Ok(Self { file })
    }

    /// Appends.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        blocking(move || file.write_all(&bytes)).await
    }

    /// What was written, `length` bytes, as a body.
    pub fn into_body(self, length: u64) -> SpoolBody {
        SpoolBody {
            step: Step::Rewind(self.file),
            remaining: length,
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
    async fn a_disk_that_fails_is_no_fault_of_the_clients() {
        let dir = std::env::temp_dir();
        let mut spool = Spool::create(&dir).await.expect("a file");
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

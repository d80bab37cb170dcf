//! Standard error for those who must not wait: whoever reads it may have stopped.

use std::{
    io::{self, StderrLock, Write},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// As much as a pipe takes without waiting once it says that it takes something: POSIX's `PIPE_BUF`.
const AT_ONCE: usize = 4096;

/// Writes that did not happen since the last that did.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Whether the last line was cut short: the next one begins by ending it.
static CUT: AtomicBool = AtomicBool::new(false);

/// Writes to standard error, or nowhere while that takes nothing. A line that was lost is counted, and
/// the next one that is not is preceded by their number.
#[derive(Clone, Copy, Debug)]
pub struct Stderr {
    /// Whether lines are JSON.
    pub json: bool,
}

impl Stderr {
    fn tell(self, lost: u64) -> String {
        if self.json {
            format!(
                "{{\"level\":\"WARN\",\"message\":\"nobody read the log, lines were lost\",\"lines\":{lost}}}\n"
            )
        } else {
            format!("WARN nobody read the log, {lost} lines were lost\n")
        }
    }
}

/// Whether a write of up to [`AT_ONCE`] bytes returns at once: also with an error, as one to a pipe
/// that is closed.
fn is_ready() -> bool {
    let stderr = io::stderr();
    let mut one = [PollFd::new(&stderr, PollFlags::OUT)];
    poll(&mut one, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn write_at_once(stderr: &mut StderrLock<'_>, line: &[u8]) -> io::Result<()> {
    let mut rest = line;
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(AT_ONCE)];
        let written = if is_ready() {
            stderr.write(part)
        } else {
            LOST.fetch_add(1, Relaxed);
            Err(io::ErrorKind::WouldBlock.into())
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                CUT.fetch_or(rest.len() < line.len(), Relaxed);
                return Err(error);
            }
        }
    }
    Ok(())
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Held until the last part is written, so that lines of several threads do not mix.
        let stderr = &mut io::stderr().lock();
        if CUT.load(Relaxed) && is_ready() && write_at_once(stderr, b"\n").is_ok() {
            CUT.store(false, Relaxed);
        }
        if LOST.load(Relaxed) > 0 && is_ready() {
            let lost = LOST.swap(0, Relaxed);
            if write_at_once(stderr, self.tell(lost).as_bytes()).is_err() {
                LOST.fetch_add(lost, Relaxed);
            }
        }
        write_at_once(stderr, line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

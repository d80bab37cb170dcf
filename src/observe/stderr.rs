//! Standard error for those who must not wait: whoever reads it may have stopped.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// As much as a pipe takes without waiting once it says that it takes something: POSIX's `PIPE_BUF`.
const AT_ONCE: usize = 4096;

/// Writes that did not happen since the last that did.
static LOST: AtomicU64 = AtomicU64::new(0);

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

fn write_at_once(bytes: &[u8]) -> io::Result<()> {
    let mut stderr = io::stderr();
    for part in bytes.chunks(AT_ONCE) {
        if !is_ready() {
            LOST.fetch_add(1, Relaxed);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        stderr.write_all(part)?;
    }
    Ok(())
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if LOST.load(Relaxed) > 0 && is_ready() {
            let lost = LOST.swap(0, Relaxed);
            if write_at_once(self.tell(lost).as_bytes()).is_err() {
                LOST.fetch_add(lost, Relaxed);
            }
        }
        write_at_once(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

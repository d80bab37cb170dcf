//! Standard error for those who must not wait: whoever reads it may have stopped.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::{Mutex, OnceLock},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
    net::{SendFlags, send},
};
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime, SystemTime},
};

/// As much as a pipe takes without blocking once it is writable: POSIX's `PIPE_BUF`.
const AT_ONCE: usize = 4096;

/// Held until a line's last part is written, so that lines of several threads do not mix.
static MISSED: Mutex<Missed> = Mutex::new(Missed {
    lines: 0,
    cut: false,
});

/// Writes to standard error, and drops lines while that takes nothing. Lost lines are counted, and the next
/// line that gets through is preceded by their number.
#[derive(Clone, Copy, Debug)]
pub struct Stderr {
    /// Whether lines are JSON.
    pub json: bool,
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut missed = MISSED.lock().unwrap_or_else(|error| error.into_inner());
        missed.write_line(&mut io::stderr().lock(), line, self.json)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a line is written to.
trait Output {
    /// Writes up to [`AT_ONCE`] bytes, or fails at once where that would have to wait.
    fn write_now(&mut self, part: &[u8]) -> io::Result<usize>;
}

impl Output for io::StderrLock<'_> {
    fn write_now(&mut self, part: &[u8]) -> io::Result<usize> {
        static KIND: OnceLock<FileType> = OnceLock::new();
        let kind = KIND.get_or_init(|| {
            let stat = fstat(self.as_fd());
            stat.map_or(FileType::Unknown, |stat| {
                FileType::from_raw_mode(stat.st_mode)
            })
        });
        let written = match kind {
            FileType::Fifo => write_to_pipe(self.as_fd(), part),
            FileType::Socket => {
                Some(send(self.as_fd(), part, SendFlags::DONTWAIT).map_err(io::Error::from))
            }
            _ => None,
        };
        written.unwrap_or_else(|| write_if_ready(self, part))
    }
}

/// `None` where the kernel cannot tell a pipe not to wait for this one write. `O_NONBLOCK` would hold for everybody who
/// has the same pipe.
#[cfg(target_os = "linux")]
fn write_to_pipe(pipe: impl AsFd, part: &[u8]) -> Option<io::Result<usize>> {
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    static CANNOT: AtomicBool = AtomicBool::new(false);
    /// Where a pipe is written to, which has no places.
    const HERE: u64 = u64::MAX;
    if CANNOT.load(Relaxed) {
        return None;
    }
    match pwritev2(
        pipe,
        &[io::IoSlice::new(part)],
        HERE,
        ReadWriteFlags::NOWAIT,
    ) {
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::SPIPE | Errno::PERM) => {
            CANNOT.store(true, Relaxed);
            None
        }
        written => Some(written.map_err(io::Error::from)),
    }
}

#[cfg(not(target_os = "linux"))]
fn write_to_pipe(_pipe: impl AsFd, _part: &[u8]) -> Option<io::Result<usize>> {
    None
}

/// Somebody else who has the same output may fill it in between, and then this waits.
fn write_if_ready(to: &mut (impl Write + AsFd), part: &[u8]) -> io::Result<usize> {
    let is_ready = {
        let mut one = [PollFd::new(to, PollFlags::OUT)];
        poll(&mut one, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    };
    match is_ready {
        true => to.write(part),
        false => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// What did not get through, and was not told of yet.
struct Missed {
    lines: u64,
    /// Whether the last line was cut short.
    cut: bool,
}

impl Missed {
    fn write_line(&mut self, to: &mut impl Output, line: &[u8], json: bool) -> io::Result<()> {
        self.catch_up(to, json)
            .and_then(|()| self.write_at_once(to, line))
            .inspect_err(|_| self.lines += 1)
    }

    /// Ends a line that was cut and tells how many are missing. Where that fails nothing else may be
    /// written: it would go on in the line that was cut.
    fn catch_up(&mut self, to: &mut impl Output, json: bool) -> io::Result<()> {
        if self.cut {
            self.write_at_once(to, b"\n")?;
            self.cut = false;
        }
        if self.lines > 0 {
            self.write_at_once(to, tell(self.lines, json).as_bytes())?;
            self.lines = 0;
        }
        Ok(())
    }

    fn write_at_once(&mut self, to: &mut impl Output, line: &[u8]) -> io::Result<()> {
        let mut rest = line;
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(AT_ONCE)];
            match to.write_now(part) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.cut |= rest.len() < line.len();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn tell(lost: u64, json: bool) -> String {
    let mut now = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    match json {
        true => format!(
            "{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"nobody read the log, lines were lost\",\"lines\":{lost}}}\n"
        ),
        false => format!("{now}  WARN nobody read the log, {lost} lines were lost\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    /// A pipe that says in this order whether it takes something; afterwards it does.
    struct Pipe<I> {
        ready: I,
        taken: Vec<u8>,
    }

    impl<I: Iterator<Item = bool>> Output for Pipe<I> {
        fn write_now(&mut self, part: &[u8]) -> io::Result<usize> {
            if !self.ready.next().unwrap_or(true) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.taken.extend_from_slice(part);
            Ok(part.len())
        }
    }

    /// The lines that such a pipe gets of a long one and three short ones.
    fn lines(ready: impl Iterator<Item = bool>) -> Vec<String> {
        let mut pipe = Pipe {
            ready,
            taken: Vec::new(),
        };
        let mut missed = Missed {
            lines: 0,
            cut: false,
        };
        let long = format!("{}\n", "l".repeat(3 * AT_ONCE));
        for line in [&long, "one\n", "two\n", "three\n"] {
            let _ = missed.write_line(&mut pipe, line.as_bytes(), false);
        }
        let text = String::from_utf8(pipe.taken).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    /// Whatever was found out before: another process may have filled it since.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_pipe_is_not_waited_for() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let line = [b'l'; AT_ONCE];
        let mut taken = 0;
        // It takes 64 KiB, or what the system allows.
        let full = loop {
            match write_to_pipe(&writer, &line) {
                // An older kernel, or a sandbox.
                None => return,
                Some(Ok(count)) => taken += count,
                Some(Err(error)) => break error,
            }
            assert!(taken < 1 << 30);
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut read = vec![0; taken];
        io::Read::read_exact(&mut reader, &mut read).expect("it is there");
        let again = write_to_pipe(&writer, &line).expect("it could before");
        assert_eq!(again.expect("there is room"), AT_ONCE);
        drop(reader);
        let gone = write_to_pipe(&writer, &line).expect("it could before");
        assert_eq!(
            gone.expect_err("nobody reads").kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn whoever_reads_everything_gets_everything() {
        let got = lines(iter::empty());
        assert_eq!(got[0].len(), 3 * AT_ONCE);
        assert_eq!(got[1..], ["one", "two", "three"]);
    }

    #[test]
    fn whoever_reads_again_is_told_what_is_missing() {
        let got = lines([true, false, false, true].into_iter());
        assert_eq!(got[0].len(), AT_ONCE, "what was cut is ended");
        assert!(got[1].ends_with("WARN nobody read the log, 2 lines were lost"));
        assert_eq!(got[2..], ["two", "three"]);
    }

    /// A reader may make room at any time.
    #[test]
    fn nothing_is_written_into_a_line_that_was_cut() {
        for pattern in 0..1_u32 << 10 {
            for line in lines((0..10).map(|bit| pattern >> bit & 1 == 0)) {
                let is_whole = ["one", "two", "three"].contains(&&*line)
                    || line.ends_with(" lines were lost")
                    || line.bytes().all(|byte| byte == b'l');
                assert!(is_whole, "{pattern:b}: {line}");
            }
        }
    }
}

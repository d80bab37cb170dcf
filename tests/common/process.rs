//! A process, its log, and its end.

use super::*;

/// For the last of an ended process's output.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A process of a test's, in a group of its own, whose output is kept.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it; both outputs go into one log.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        let mut readers = Vec::new();
        let out = child.stdout.take().map(|it| Box::new(it) as Box<_>);
        let err = child.stderr.take().map(|it| Box::new(it) as Box<_>);
        for stream in [out, err].into_iter().flatten() {
            readers.push(keep(stream, log.clone()));
        }
        Self {
            name: name.to_owned(),
            child,
            log,
            readers,
            ended: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("wait");
        }
        self.ended
    }

    /// To this process alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid = Pid::from_raw(self.pid().cast_signed()).expect("a pid");
            kill_process(pid, signal).expect("a signal");
        }
    }

    /// Waits for its end; fails with the log if it does not come.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let start = clock::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            if since(start) > PATIENCE {
                self.kill();
                panic!("{} does not end. Its log:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end and for the last of its output: the exit code, or 128 + the signal.
    #[track_caller]
    pub fn exit_code(&mut self) -> i32 {
        let status = self.wait();
        self.hear_out();
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// What was written before the end is read soon after it, unless a child goes on writing.
    fn hear_out(&self) {
        let start = clock::now();
        while !self.readers.iter().all(JoinHandle::is_finished) && since(start) < LAST_WORDS {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// TERM, then its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.exit_code()
    }

    /// Waits for what `look` finds in the log.
    #[track_caller]
    pub fn logged<T>(&mut self, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> T {
        let start = clock::now();
        loop {
            if let Some(found) = look(&self.log()) {
                return found;
            }
            let ended = self.ended().is_some();
            if ended {
                self.hear_out();
                if let Some(found) = look(&self.log()) {
                    return found;
                }
            }
            assert!(
                !ended && since(start) < PATIENCE,
                "{}: waited in vain for {what}. Its log:\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// KILL to its whole group.
    pub fn kill(&mut self) {
        if let Some(group) = Pid::from_raw(self.pid().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.ended = self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group may outlive its leader.
        if let Some(group) = Pid::from_raw(self.pid().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        if self.ended.is_none() {
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            // Through the test's own output, which is shown when it has failed.
            println!("--- log of {}\n{}---", self.name, self.log());
        }
    }
}

fn keep(stream: Box<dyn Read + Send>, log: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

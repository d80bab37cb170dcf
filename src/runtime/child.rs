//! The backend as a child of tidegate: `tidegate exec -- COMMAND`.
//!
//! What a supervisor of one process owes it, and its caller:
//!
//! - **A process group of its own**, so that Ctrl-C in a terminal reaches tidegate alone. tidegate
//!   drains first and tells the child afterwards.
//! - **A TERM when the parent dies**, even by `kill -9`. The kernel sends it to the child when the thread
//!   that started it is gone. A command that ignores TERM lives on: a KILL would leave what it has started
//!   without anybody to end it. The child must ask for this itself, between fork and exec, so the
//!   command is started through a helper: this very binary, as `tidegate __child` ([`helper_main`]).
//!   "The thread that started it" is a thread of this module's own, which lives as long as the
//!   process does: [`Child::spawn`] may be called from anywhere.
//! - **A clear sentence when it cannot be started**. The helper reports a failed exec through a pipe.
//! - **Nothing left behind**. When the leader of the group has exited, the rest of its group gets
//!   TERM and, soon after, KILL. Workers that outlive their master keep the listening socket, and a
//!   new master could not bind to it. Processes that left the group (`setsid`) asked to be left alone.
//! - **Zombies reaped**. As PID 1 of a container tidegate inherits every orphan; [`reap_orphans`]
//!   collects them, and never takes the status that [`Child::wait`] is waiting for.
//!
//! - **The limit of open files that tidegate was started with**, and not the one that it has raised for its clients.
//!
//! The child reads from `/dev/null`: it is not in the terminal's foreground, so reading from the
//! terminal would stop it.
//!
//! Where the kernel offers no death signal (anything but Linux) the child survives a `kill -9` of
//! tidegate; where there is no `/proc`, the group gets its KILL without a look at who is left.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{self, Pid, WaitId, WaitIdOptions, WaitOptions};
use tokio::{
    signal::unix::{self, SignalKind},
    sync::oneshot,
    time,
};

use super::process::descriptors_at_start;
use crate::config::Restart;

mod helper;
mod processes;
mod restart;

pub use helper::{HELPER, helper_main};
pub use restart::Restarts;
pub use rustix::process::Signal;

/// How long the rest of the group may take to finish once its leader is gone.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// What systemd or the platform tells tidegate, and tidegate alone.
const NOT_FOR_THE_CHILD: [&str; 7] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    // Where tidegate is to listen; a command that is to listen on a port is given its own.
    "PORT",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// What to start, and how.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program and its arguments, after [`substitute`].
    pub command: Vec<OsString>,
    /// Set in its environment, beside what tidegate itself was given.
    pub env: Vec<(String, String)>,
    /// When to start it again; [`Restarts`] decides, [`Child`] does not look at it.
    pub restart: Restart,
}

/// `{addr}` and `{port}` in the arguments of a command become the address of the backend.
pub fn substitute(command: &[String], addr: &str, port: &str) -> Vec<String> {
    // The port first: it is digits or nothing, so nothing is ever replaced twice.
    command
        .iter()
        .map(|arg| arg.replace("{port}", port).replace("{addr}", addr))
        .collect()
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// The exit code that a shell would report: 128 + n for a death by signal n.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }

    /// Whether it ended well: by itself, with code 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// A running child and its process group.
///
/// Dropping it kills the group at once; [`Child::stop`] is the polite way. It belongs to the tokio
/// runtime in which it was started (one with I/O and time enabled).
#[derive(Debug)]
pub struct Child {
    /// The leader. Its group has the same number, and the number stays taken until it is reaped.
    pid: Pid,
    /// Set once the leader has been reaped; from then on its number may belong to someone else.
    exit: Option<Exit>,
    /// Subscribed to before the child was started, so that no death is missed.
    died: unix::Signal,
}

impl Child {
    /// Starts the command.
    ///
    /// # Errors
    /// One sentence, ready for the user, when the command cannot be started.
    pub async fn spawn(spec: Spec) -> io::Result<Child> {
        let helper = if cfg!(target_os = "linux") {
            // Still the running binary when the file has been replaced by an upgrade.
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe()?
        };
        Self::spawn_with(helper, spec).await
    }

    /// As [`Child::spawn`], with another binary as the helper: for the tests, which run in a binary
    /// that is not tidegate.
    #[doc(hidden)]
    pub async fn spawn_with(helper: PathBuf, spec: Spec) -> io::Result<Child> {
        let died = unix::signal(SignalKind::child())?;
        let (reply, answer) = oneshot::channel();
        let order = Order {
            helper,
            spec,
            reply,
        };
        let gone = || io::Error::other("the thread that starts the child is gone");
        spawner()?.send(order).map_err(|_| gone())?;
        let started = answer.await.map_err(|_| gone())??;
        Ok(Child {
            pid: started.keep()?,
            exit: None,
            died,
        })
    }

    /// The process id of the leader, which is also the number of its group.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the leader has exited and the rest of its group is gone.
    ///
    /// May be dropped and called again; later calls return the same answer.
    pub async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let exit = self.leader_exit().await;
        self.clear_group().await;
        self.reap(exit);
        exit
    }

    /// Sends a signal to the whole group; nothing once the child has been waited for.
    pub fn signal(&self, signal: Signal) {
        if self.exit.is_none() {
            // The one failure that can happen is that everybody has gone already.
            let _ = process::kill_process_group(self.pid, signal);
        }
    }

    /// TERM to the leader, which tells its workers itself; KILL to the group if it is not gone
    /// after `grace`.
    pub async fn stop(&mut self, grace: Duration) -> Exit {
        if self.exit.is_none() {
            let _ = process::kill_process(self.pid, Signal::TERM);
            if time::timeout(grace, self.leader_exit()).await.is_err() {
                self.kill();
            }
        }
        self.wait().await
    }

    /// KILL to the group, now.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Waits for the leader and leaves its status where it is: the zombie keeps the group's number
    /// from being given to a stranger while the rest of the group is being cleared.
    async fn leader_exit(&mut self) -> Exit {
        loop {
            if let Some(exit) = peek(self.pid) {
                return exit;
            }
            if self.died.recv().await.is_none() {
                // The runtime is shutting down; nobody will be told of anything any more.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn clear_group(&self) {
        let group = self.pid.as_raw_nonzero().get();
        if processes::alive_in_group(group) {
            self.signal(Signal::TERM);
            let gone = async {
                let mut pause = Duration::from_millis(5);
                while processes::alive_in_group(group) {
                    time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(100));
                }
            };
            if time::timeout(STRAGGLERS, gone).await.is_err() {
                self.kill();
            }
        }
    }

    fn reap(&mut self, exit: Exit) {
        let mut ours = ours();
        let _ = process::waitpid(Some(self.pid), WaitOptions::NOHANG);
        ours.remove(&self.pid.as_raw_nonzero().get());
        self.exit = Some(exit);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.kill();
            // From here on it is an orphan like any other.
            ours().remove(&self.pid.as_raw_nonzero().get());
        }
    }
}

/// The duty of PID 1: collects every dead child that no [`Child`] is waiting for. Never returns;
/// run it as a task of its own. Harmless when tidegate is not PID 1.
pub async fn reap_orphans() {
    let Ok(mut died) = unix::signal(SignalKind::child()) else {
        return;
    };
    loop {
        reap_orphans_once();
        if died.recv().await.is_none() {
            return;
        }
    }
}

fn reap_orphans_once() {
    // Held throughout: a child that is being started is not in the set yet.
    let ours = ours();
    let me = process::getpid().as_raw_nonzero().get();
    for dead in processes::dead_children(me) {
        if !ours.contains(&dead)
            && let Some(pid) = Pid::from_raw(dead)
        {
            let _ = process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// The leaders whose status belongs to a [`Child`].
fn ours() -> MutexGuard<'static, BTreeSet<i32>> {
    static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The status of a dead child, which stays to be collected.
fn peek(pid: Pid) -> Option<Exit> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match process::waitid(WaitId::Pid(pid), look) {
        Ok(status) => {
            status.map(
                |status| match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Code(1),
                },
            )
        }
        Err(rustix::io::Errno::INTR) => None,
        // Not a child any more: someone else collected it, and how it ended can't be known.
        Err(_) => Some(Exit::Code(1)),
    }
}

/// A child to start, and whom to tell.
struct Order {
    helper: PathBuf,
    spec: Spec,
    reply: oneshot::Sender<io::Result<Started>>,
}

/// The thread that starts children. It never ends: with it, they would.
fn spawner() -> io::Result<&'static mpsc::Sender<Order>> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    if let Some(spawner) = SPAWNER.get() {
        return Ok(spawner);
    }
    let (orders, queue) = mpsc::channel::<Order>();
    thread::Builder::new()
        .name("child".to_owned())
        .spawn(move || {
            for Order {
                helper,
                spec,
                reply,
            } in queue
            {
                // If nobody waits for it any more, it is dropped here, and killed.
                let _ = reply.send(start(&helper, &spec).map(|pid| Started(Some(pid))));
            }
        })?;
    // When two callers race here, the loser's thread ends at once: it has started nobody.
    Ok(SPAWNER.get_or_init(|| orders))
}

/// A child on its way to the caller. It is killed if the caller has gone away meanwhile.
struct Started(Option<Pid>);

impl Started {
    fn keep(mut self) -> io::Result<Pid> {
        self.0
            .take()
            .ok_or_else(|| io::Error::other("the child was given away already"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            abandon(pid);
        }
    }
}

/// Kills a child that no [`Child`] stands for.
fn abandon(pid: Pid) {
    let mut ours = ours();
    let _ = process::kill_process_group(pid, Signal::KILL);
    let _ = process::waitpid(Some(pid), WaitOptions::empty());
    ours.remove(&pid.as_raw_nonzero().get());
}

fn start(helper: &Path, spec: &Spec) -> io::Result<Pid> {
    let Some(program) = spec.command.first() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no command was given",
        ));
    };
    let (mut failure, report) = io::pipe()?;
    let descriptors = descriptors_at_start().map(|limit| limit.to_string());
    let mut command = Command::new(helper);
    command
        .arg0("tidegate")
        .args([
            OsStr::new(HELPER),
            OsStr::new(&std::process::id().to_string()),
            OsStr::new(&descriptors.unwrap_or_default()),
            OsStr::new("--"),
        ])
        .args(&spec.command)
        .process_group(0)
        .stdin(Stdio::from(report));
    for name in NOT_FOR_THE_CHILD {
        command.env_remove(name);
    }
    command.envs(spec.env.iter().map(|(name, value)| (name, value)));
    let pid = {
        let mut ours = ours();
        let child = command.spawn().map_err(|error| {
            let text = format!("cannot start {}: {error}", program.display());
            io::Error::new(error.kind(), text)
        })?;
        let pid = Pid::from_child(&child);
        ours.insert(pid.as_raw_nonzero().get());
        pid
    };
    // It holds our copy of the pipe's writing end, which would keep the pipe from ending.
    drop(command);

    // The end of the pipe without a word means that the command is running.
    let mut errno = String::new();
    let read = failure.read_to_string(&mut errno);
    match (read, errno.parse::<i32>()) {
        (Ok(0), _) => Ok(pid),
        (_, parsed) => {
            abandon(pid);
            let cause = parsed.map_or_else(
                |_| io::Error::other("the helper failed"),
                io::Error::from_raw_os_error,
            );
            Err(io::Error::new(cause.kind(), cannot_start(program, &cause)))
        }
    }
}

/// Why the command can't be started, so that the user knows what to repair.
fn cannot_start(program: &OsStr, cause: &io::Error) -> String {
    let path = Path::new(program);
    let named = path.display();
    let is_path = path.components().count() > 1;
    match cause.kind() {
        io::ErrorKind::NotFound if !is_path => {
            format!("cannot start {named}: there is no such command on the PATH")
        }
        io::ErrorKind::NotFound if fs::metadata(path).is_ok() => {
            format!(
                "cannot start {named}: the interpreter that its first line names does not exist"
            )
        }
        io::ErrorKind::NotFound => format!("cannot start {named}: there is no such file"),
        io::ErrorKind::PermissionDenied => {
            format!("cannot start {named}: permission denied (is it an executable file?)")
        }
        _ if cause.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            format!("cannot start {named}: it is neither a program nor a script with a #! line")
        }
        _ => format!("cannot start {named}: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_the_address_that_was_chosen() {
        let command = [
            "gunicorn",
            "--bind",
            "{addr}",
            "--name={port}-{port}",
            "app:app",
        ]
        .map(str::to_owned);
        assert_eq!(
            substitute(&command, "127.0.0.1:8000", "8000"),
            [
                "gunicorn",
                "--bind",
                "127.0.0.1:8000",
                "--name=8000-8000",
                "app:app"
            ]
        );
        assert_eq!(
            substitute(&["{addr}".to_owned()], "unix:/run/{port}", ""),
            ["unix:/run/{port}"]
        );
    }

    #[test]
    fn an_exit_reads_as_a_shell_would_tell_it() {
        assert_eq!(Exit::Code(3).code(), 3);
        assert_eq!(Exit::Signal(9).code(), 137);
        assert!(Exit::Code(0).success());
        assert!(!Exit::Signal(15).success());
        assert_eq!(Exit::Signal(15).to_string(), "was killed by signal 15");
    }

    #[test]
    fn a_failed_start_says_what_to_repair() {
        let missing = io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
        assert_eq!(
            cannot_start(OsStr::new("gunicorn"), &missing),
            "cannot start gunicorn: there is no such command on the PATH"
        );
        assert_eq!(
            cannot_start(OsStr::new("./no/gunicorn"), &missing),
            "cannot start ./no/gunicorn: there is no such file"
        );
        assert_eq!(
            cannot_start(OsStr::new("/bin/sh"), &missing),
            "cannot start /bin/sh: the interpreter that its first line names does not exist"
        );
    }
}

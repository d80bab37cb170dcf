//! Notices when the configuration file's content changes, however it is changed: written in place,
//! replaced by a rename, or swapped by way of a symbolic link as Kubernetes does with a ConfigMap.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};

use super::load::Tried;
use crate::clock;

/// A change comes as several events (truncate, write, rename), and a large file in several writes:
/// one look after all of them, when nothing has happened for so long.
const QUIET: Duration = Duration::from_millis(100);
/// Whoever never stops writing is not waited for any longer.
const QUIET_WITHIN: Duration = Duration::from_secs(2);

/// The kernel gives up on a path with more symbolic links than this.
const LINKS_MAX: usize = 40;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    stop: Sender<Signal>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // The thread may have ended already.
        let _ = self.stop.send(Signal::Stop);
    }
}

/// Why a file can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The system refused the watch, as when there are too many.
    #[error("cannot watch {path}: {source}", path = .path.display())]
    Notify {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: notify::Error,
    },
    /// The current directory is unknown, or no thread can be started.
    #[error("cannot watch {path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

enum Signal {
    Change,
    Stop,
}

/// Calls `on_change`, on a thread of its own, each time the file's bytes differ from those that were tried
/// last, or it can no longer be read.
///
/// The call comes after the file has been left alone for some 100 ms. There is none when the file is touched,
/// or written with the same bytes, or removed; when it is there again, there is one if its bytes differ, or
/// if a load without it was tried meanwhile. `on_change` is expected to try the new bytes, unless somebody
/// has done so already.
///
/// # Errors
/// When the file's directory can't be watched.
pub fn watch(
    path: &Path,
    tried: Tried,
    on_change: impl Fn() + Send + 'static,
) -> Result<Watcher, WatchError> {
    let io_error = |source| WatchError::Io {
        path: path.to_owned(),
        source,
    };
    let path = std::path::absolute(path).map_err(io_error)?;
    let (sender, receiver) = mpsc::channel();
    let events = sender.clone();
    let handler = move |event: notify::Result<Event>| {
        if event.as_ref().map_or(true, is_change) {
            // Nobody listens any more: the watcher is being dropped.
            let _ = events.send(Signal::Change);
        }
    };
    let notify_error = |source| WatchError::Notify {
        path: path.clone(),
        source,
    };
    let watcher = notify::recommended_watcher(handler).map_err(notify_error)?;
    let mut state = State {
        path: path.clone(),
        watcher,
        watched: BTreeSet::new(),
        tried,
    };
    state.follow()?;
    thread::Builder::new()
        .name("config-watch".to_owned())
        .spawn(move || state.run(&receiver, &on_change))
        .map_err(|source| WatchError::Io { path, source })?;
    Ok(Watcher { stop: sender })
}

/// Our own reading is an event too: it must not wake us.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

struct State {
    path: PathBuf,
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    tried: Tried,
}

impl State {
    fn run(mut self, signals: &Receiver<Signal>, on_change: &dyn Fn()) {
        while let Ok(Signal::Change) = signals.recv() {
            if !settles(signals) {
                return;
            }
            // First the watches, then the look: what changes in between is an event again. A
            // directory that is going away can't be watched, its parent still is.
            let _ = self.follow();
            if self.tried.is_outdated(&self.path) {
                on_change();
            }
        }
    }

    /// Watches the directories through which the file is reached now.
    fn follow(&mut self) -> Result<(), WatchError> {
        let wanted = directories(&self.path);
        for gone in self.watched.difference(&wanted) {
            // It may be deleted, and its watch with it.
            let _ = self.watcher.unwatch(gone);
        }
        self.watched.retain(|directory| wanted.contains(directory));
        let mut result = Ok(());
        for directory in wanted {
            // Watched again even if it is already: it may be a new directory of the same name.
            match self.watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(directory);
                }
                Err(source) => {
                    result = Err(WatchError::Notify {
                        path: directory,
                        source,
                    });
                }
            }
        }
        result
    }
}

/// Waits until nothing changes any more; false if the watcher is to stop.
fn settles(signals: &Receiver<Signal>) -> bool {
    let began = clock::now();
    while clock::now().saturating_duration_since(began) < QUIET_WITHIN {
        match signals.recv_timeout(QUIET) {
            Ok(Signal::Change) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// The file's directory, that of each symbolic link on the way to it, and that of its target.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut current = path.to_owned();
    for _ in 0..LINKS_MAX {
        found.extend(current.parent().map(Path::to_owned));
        // The outermost link first: what is behind it is reached by the resolved path.
        let ancestors: Vec<_> = current.ancestors().map(Path::to_owned).collect();
        let link = ancestors
            .iter()
            .rev()
            .find_map(|one| Some((one, fs::read_link(one).ok()?)));
        let Some((link, target)) = link else {
            break;
        };
        let (Some(parent), Ok(rest)) = (link.parent(), current.strip_prefix(link)) else {
            break;
        };
        found.insert(parent.to_owned());
        let target = parent.join(target);
        let next = if rest.as_os_str().is_empty() {
            target
        } else {
            target.join(rest)
        };
        current = next;
    }
    // A link to a directory that isn't there can't be watched; the one it is in can.
    found.retain(|directory| directory.is_dir());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Long enough for a busy machine; only waited for in full when a test fails.
    const LONG: Duration = Duration::from_secs(20);
    const STILL: Duration = Duration::from_millis(400);

    fn start(path: &Path) -> (Watcher, Receiver<String>) {
        let (sender, receiver) = mpsc::channel();
        let file = path.to_owned();
        let tried = Tried::default();
        tried.note(fs::read(&file).ok().map(Ok));
        let watcher = watch(path, tried.clone(), move || {
            let read = fs::read_to_string(&file);
            tried.note(Some(match &read {
                Ok(content) => Ok(content.clone().into_bytes()),
                Err(error) => Err(error.kind()),
            }));
            let _ = sender.send(read.unwrap_or_else(|error| error.kind().to_string()));
        });
        (watcher.expect("the directory can be watched"), receiver)
    }

    /// A file that says "a", in a directory of its own.
    fn watched() -> (tempfile::TempDir, PathBuf, Watcher, Receiver<String>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        fs::write(&file, "a").unwrap();
        let (watcher, changes) = start(&file);
        (dir, file, watcher, changes)
    }

    /// Waits for the content; a slow machine may show an intermediate one first.
    fn expect(receiver: &Receiver<String>, content: &str) {
        while receiver.recv_timeout(LONG).expect("a change") != content {}
    }

    fn expect_quiet(receiver: &Receiver<String>) {
        assert_eq!(receiver.recv_timeout(STILL).ok(), None);
    }

    #[test]
    fn a_write_in_place_is_seen_once_and_only_if_it_changes_something() {
        let (dir, file, _watcher, changes) = watched();
        fs::write(&file, "a").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        expect_quiet(&changes);
        fs::write(&file, "b").unwrap();
        expect(&changes, "b");
        expect_quiet(&changes);
        fs::write(&file, "c").unwrap();
        expect(&changes, "c");
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone_until_it_is_still() {
        let (sender, signals) = mpsc::channel();
        let writer = thread::spawn(move || {
            for _ in 0..20 {
                sender.send(Signal::Change).expect("somebody waits");
                thread::sleep(QUIET / 20);
            }
            sender
        });
        assert!(settles(&signals));
        let sender = writer.join().expect("it has written");
        // On a machine that stops for so long in between, there may be some left.
        while settles(&signals) && signals.try_recv().is_ok() {}
        sender.send(Signal::Change).expect("somebody waits");
        sender.send(Signal::Stop).expect("somebody waits");
        assert!(!settles(&signals), "it is told to stop");
    }

    #[test]
    fn a_rename_over_the_file_is_seen_each_time() {
        let (dir, file, _watcher, changes) = watched();
        for content in ["b", "c", "d"] {
            let new = dir.path().join(".t.toml.swp");
            fs::write(&new, content).unwrap();
            fs::rename(&new, &file).unwrap();
            expect(&changes, content);
        }
    }

    #[test]
    fn a_removed_file_is_waited_for() {
        let (_dir, file, _watcher, changes) = watched();
        fs::remove_file(&file).unwrap();
        expect_quiet(&changes);
        fs::write(&file, "b").unwrap();
        expect(&changes, "b");
    }

    /// Root reads any file, so that permissions are no test of it.
    #[test]
    fn what_cannot_be_read_is_told_once() {
        let (dir, file, _watcher, changes) = watched();
        fs::remove_file(&file).unwrap();
        expect_quiet(&changes);
        fs::create_dir(&file).unwrap();
        expect(&changes, &io::ErrorKind::IsADirectory.to_string());
        fs::write(dir.path().join("other"), "x").unwrap();
        expect_quiet(&changes);
        fs::remove_dir(&file).unwrap();
        expect_quiet(&changes);
        fs::write(&file, "a").unwrap();
        expect(&changes, "a");
    }

    #[test]
    fn the_swap_of_a_config_map_is_seen_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        fs::create_dir_all(mount.join("..1")).unwrap();
        fs::write(mount.join("..1/t.toml"), "1").unwrap();
        symlink("..1", mount.join("..data")).unwrap();
        symlink("..data/t.toml", mount.join("t.toml")).unwrap();
        let (_watcher, changes) = start(&mount.join("t.toml"));
        for version in 2..5 {
            let name = format!("..{version}");
            fs::create_dir(mount.join(&name)).unwrap();
            fs::write(mount.join(&name).join("t.toml"), version.to_string()).unwrap();
            symlink(&name, mount.join("..data_tmp")).unwrap();
            fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
            fs::remove_dir_all(mount.join(format!("..{}", version - 1))).unwrap();
            expect(&changes, &version.to_string());
        }
    }

    #[test]
    fn a_link_elsewhere_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["link", "one", "two"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("one/t.toml"), "1").unwrap();
        fs::write(dir.path().join("two/t.toml"), "2").unwrap();
        symlink("one", dir.path().join("current")).unwrap();
        let file = dir.path().join("link/t.toml");
        symlink(dir.path().join("current/t.toml"), &file).unwrap();
        let (_watcher, changes) = start(&file);
        fs::write(dir.path().join("one/t.toml"), "1b").unwrap();
        expect(&changes, "1b");
        symlink("two", dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), dir.path().join("current")).unwrap();
        expect(&changes, "2");
        fs::write(dir.path().join("two/t.toml"), "2b").unwrap();
        expect(&changes, "2b");
    }

    #[test]
    fn after_the_drop_it_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        fs::write(&file, "a").unwrap();
        let (watcher, changes) = start(&file);
        drop(watcher);
        fs::write(&file, "b").unwrap();
        expect_quiet(&changes);
    }

    /// Or each look would be followed by another.
    #[test]
    fn to_read_the_file_is_no_change_of_it() {
        let of = |kind| is_change(&Event::new(EventKind::Access(kind)));
        assert!(!of(AccessKind::Read));
        assert!(!of(AccessKind::Open(AccessMode::Any)));
        assert!(!of(AccessKind::Close(AccessMode::Read)));
        assert!(of(AccessKind::Close(AccessMode::Write)));
        assert!(is_change(&Event::new(EventKind::Any)));
    }
}

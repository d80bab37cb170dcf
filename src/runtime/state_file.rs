//! `limit.state_file`: what the control laws have learned, kept across restarts.
//!
//! JSON, written whole beside its place and then moved there, so that a crash leaves the old one or the
//! new one. A file that cannot be read, is of another version or belongs to another endpoint is a
//! warning, and tidegate learns anew.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::{
    clock,
    config::{Config, folder},
    control::Remembered,
    proxy::Shared,
};

/// The version of the format.
const VERSION: u32 = 1;
/// How long the last write may hold up the end.
const LAST: Duration = Duration::from_secs(2);
/// A file larger than this is not ours.
const LARGEST: u64 = 1 << 20;
/// What the child of `exec` is called here: its address is another one at each start.
const CHILD: &str = "exec";

#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// By endpoint, as `host:port`, `unix:/path` or [`CHILD`].
    endpoints: BTreeMap<String, Remembered>,
}

/// What an endpoint is called in the file. `child` is the address of `exec`'s.
fn name<'a>(label: &'a str, child: Option<&str>) -> &'a str {
    match child == Some(label) {
        true => CHILD,
        false => label,
    }
}

/// Goes on from what the file says, if there is one. `child` is the address of `exec`'s.
pub fn recall(shared: &Shared, child: Option<&str>) {
    let Some(path) = path(shared) else { return };
    let state = match read(&path) {
        Ok(Some(state)) => state,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "limit.state_file is of no use; learning anew");
            return;
        }
    };
    let now = clock::now();
    let mut is_known = false;
    for lane in shared.limiter.lanes() {
        let Some(known) = state.endpoints.get(name(lane.label(), child)) else {
            continue;
        };
        is_known = true;
        if lane.with_controller(|law| law.recall(known, now)) {
            tracing::info!(
                endpoint = lane.label(),
                limit = known.limit,
                "the limit goes on from limit.state_file"
            );
        } else {
            tracing::warn!(
                endpoint = lane.label(),
                "limit.state_file is of another backend; learning anew"
            );
        }
    }
    if !is_known {
        let names: Vec<&str> = state.endpoints.keys().map(String::as_str).collect();
        tracing::warn!(
            file = %path.display(),
            knows = names.join(", "),
            "limit.state_file knows none of the endpoints; learning anew"
        );
    }
    shared.limiter.tick(now);
}

/// Writes down what is known, on a thread of its own: a busy disk takes seconds, in which laws, probes and scrapes must
/// not wait.
#[derive(Debug, Default)]
pub struct Keeper {
    /// The address of `exec`'s child.
    child: Option<String>,
    writing: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Nothing is written yet. `child` is the address of `exec`'s.
    pub fn new(child: Option<String>) -> Self {
        Self {
            child,
            writing: None,
        }
    }

    /// Writes down what is known now, unless the last time is not over yet.
    pub fn save(&mut self, shared: &Shared) {
        let Some(path) = path(shared) else { return };
        let endpoints: BTreeMap<String, Remembered> = shared
            .limiter
            .lanes()
            .iter()
            .filter_map(|lane| {
                let known = lane.with_controller(|law| law.remember())?;
                let name = name(lane.label(), self.child.as_deref());
                Some((name.to_owned(), known))
            })
            .collect();
        if endpoints.is_empty() {
            return;
        }
        let state = State {
            version: VERSION,
            endpoints,
        };
        self.begin(move || {
            if let Err(error) = write(&path, &state) {
                tracing::warn!(file = %path.display(), %error, "cannot write limit.state_file");
            }
        });
    }

    /// The same for the last time; it is waited for, but not for ever.
    pub async fn finish(mut self, shared: &Shared) {
        let all = async {
            self.written().await;
            self.save(shared);
            self.written().await;
        };
        if timeout(LAST, all).await.is_err() {
            tracing::warn!("limit.state_file takes too long to be written: it stays as it was");
        }
    }

    fn begin(&mut self, write: impl FnOnce() + Send + 'static) {
        if self.writing.as_ref().is_none_or(JoinHandle::is_finished) {
            self.writing = Some(spawn_blocking(write));
        }
    }

    async fn written(&mut self) {
        if let Some(writing) = &mut self.writing {
            let _ = writing.await;
            self.writing = None;
        }
    }
}

fn path(shared: &Shared) -> Option<PathBuf> {
    let file = &shared.live().config.limit.state_file;
    (!file.is_empty()).then(|| PathBuf::from(file))
}

fn read(path: &Path) -> io::Result<Option<State>> {
    let size = match fs::metadata(path) {
        // A FIFO would keep us waiting.
        Ok(metadata) if !metadata.is_file() => {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if size > LARGEST {
        return Err(io::Error::other("it is too large"));
    }
    let state: State = serde_json::from_slice(&fs::read(path)?)?;
    if state.version != VERSION {
        return Err(io::Error::other(format!(
            "it is of version {}, not {VERSION}",
            state.version
        )));
    }
    Ok(Some(state))
}

/// Warns at the start about what would otherwise show only when there is something to keep.
pub fn try_write(config: &Config) {
    let file = Path::new(&config.limit.state_file);
    if !config.limit.state_file.is_empty()
        && let Err(error) = tempfile::NamedTempFile::new_in(folder(file))
    {
        tracing::warn!(
            file = %file.display(),
            %error,
            "the directory of limit.state_file cannot be written to: what is learned will not be kept"
        );
    }
}

/// Where the file is, or will be: what a link leads to need not be there yet.
fn kept_at(path: &Path) -> PathBuf {
    fs::canonicalize(path)
        .or_else(|_| fs::read_link(path).map(|to| folder(path).join(to)))
        .unwrap_or_else(|_| path.to_owned())
}

fn write(path: &Path, state: &State) -> io::Result<()> {
    // The move would put a file in the place of a device, or of a link to where the file is kept.
    let path = &kept_at(path);
    if path.exists() && !path.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut file = tempfile::NamedTempFile::new_in(folder(path))?;
    serde_json::to_writer(&mut file, state)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::symlink, net::UnixListener},
        sync::mpsc,
    };

    use super::*;

    #[test]
    fn what_is_written_is_read_and_rubbish_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.json");
        assert!(read(&path).expect("no file is no error").is_none());
        let known = Remembered {
            slots: Some(2),
            limit: 3,
            scale: 0.02,
            cost: 1.0,
            latency: 0.02,
            bins: Vec::new(),
        };
        let state = State {
            version: VERSION,
            endpoints: [("127.0.0.1:8000".to_owned(), known.clone())].into(),
        };
        write(&path, &state).expect("it is written");
        let back = read(&path).expect("it is read").expect("it is there");
        assert_eq!(back.endpoints["127.0.0.1:8000"], known);
        assert_eq!(
            fs::read_dir(folder.path()).expect("a folder").count(),
            1,
            "nothing is left beside it"
        );
        for rubbish in ["", "{", "{\"version\":2,\"endpoints\":{}}", "[]"] {
            fs::write(&path, rubbish).expect("it is written");
            assert!(read(&path).is_err(), "{rubbish}");
        }
        assert!(write(&folder.path().join("no/such/folder/state"), &state).is_err());
        let link = folder.path().join("link");
        symlink(&path, &link).expect("a link");
        write(&link, &state).expect("it is written");
        assert!(
            link.is_symlink(),
            "it still leads to where the file is kept"
        );
        assert!(read(&path).is_ok());
        let early = folder.path().join("early");
        symlink("later.json", &early).expect("a link");
        write(&early, &state).expect("it is written");
        assert!(early.is_symlink(), "also where there was no file yet");
        assert!(read(&folder.path().join("later.json")).is_ok_and(|state| state.is_some()));
        let device = folder.path().join("device");
        // In the place of a device: what goes wrong here must not cost the machine its own.
        let special = folder.path().join("special");
        let _socket = UnixListener::bind(&special).expect("a socket file");
        symlink(&special, &device).expect("a link");
        assert!(write(&device, &state).is_err());
        assert!(device.is_symlink() && !special.is_file());
    }

    #[tokio::test]
    async fn a_disk_that_takes_its_time_holds_nobody_up() {
        let (go_on, wait) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let mut keeper = Keeper::default();
        let writes = begun.clone();
        keeper.begin(move || {
            writes.send(1).expect("somebody listens");
            let _ = wait.recv();
        });
        keeper.begin(move || begun.send(2).expect("somebody listens"));
        let early = timeout(Duration::from_millis(20), keeper.written()).await;
        assert!(early.is_err(), "it is still written");
        drop(go_on);
        keeper.written().await;
        assert_eq!(begins.iter().collect::<Vec<_>>(), [1], "one at a time");
    }
}

//! From the sources to a validated configuration, or to every problem there is.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{OFlags, fcntl_setfl};

use super::{
    address::Address,
    build,
    file::{self, FileLayer},
    origin::{Origin, Origins},
    problem::{Problem, Problems, Report},
    resolve::{RouteSettings, Setting, Settings, resolve},
    rules, schema,
    typed::Typed,
    types::Config,
    value::Value,
};
use crate::sync::{Mutex, lock};

/// Where values may come from. The default has none: it loads the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    /// The configuration file; without one, `TIDEGATE_CONFIG` of `env`; without that, no file.
    pub file: Option<PathBuf>,
    /// Environment variables; those that don't start with `TIDEGATE_` are passed over.
    pub env: Vec<(String, String)>,
    /// Dotted key, the flag's name for messages, value; a later one wins.
    pub flags: Vec<(String, String, Value)>,
    /// Where the backend is when nobody names an endpoint, if that is not the schema's default.
    pub backend: Option<Address>,
    /// The configuration is looked at, not run: it may be one for `exec`, which with `process.command` gives the
    /// backend [`Address::any`] when nobody names an endpoint.
    pub for_exec_too: bool,
}

impl Sources {
    /// The file that [`load`] reads.
    pub fn path(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| {
            let named = self.env.iter().find(|(name, _)| name == "TIDEGATE_CONFIG");
            named
                .filter(|(_, path)| !path.is_empty())
                .map(|(_, path)| PathBuf::from(path))
        })
    }
}

/// The bytes of the configuration file when somebody last tried to load it, whether they were good or bad,
/// or why it could not be read; none when there was no file.
#[derive(Clone, Debug, Default)]
pub struct Tried(Arc<Mutex<Option<Content>>>);

type Content = Result<Vec<u8>, io::ErrorKind>;

impl Tried {
    /// Whether there is a file with other bytes now, or one that cannot be read for a reason that was not met
    /// by the last try. Without a file there is nothing new: whoever replaces it may be about to.
    pub fn is_outdated(&self, path: &Path) -> bool {
        let now = content(read_small(path));
        now.is_some() && *lock(&self.0) != now
    }

    pub(super) fn note(&self, read: Option<Content>) {
        *lock(&self.0) = read;
    }
}

fn content(read: io::Result<Vec<u8>>) -> Option<Content> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read.map_err(|error| error.kind())),
    }
}

/// A validated configuration that knows where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the rest of the crate uses.
    pub config: Arc<Config>,
    /// Who set what.
    pub origins: Origins,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// There is a file, and it sets nothing.
    pub(super) blank: bool,
    pub(super) settings: Settings,
    pub(super) routes: Vec<RouteSettings>,
}

impl Loaded {
    /// Says that this file must not take the place of `before`: it sets nothing, and that one did.
    /// Whoever wants the defaults deletes lines; a file without any is one that is being written, or
    /// was lost.
    ///
    /// # Errors
    /// The one problem.
    pub fn check_successor_of(&self, before: &Loaded) -> Result<(), Problems> {
        let Some(path) = self.file.as_ref().filter(|_| self.blank && !before.blank) else {
            return Ok(());
        };
        Err(Problems(vec![Problem {
            location: path.display().to_string(),
            key: None,
            message: "the file is empty; a reload does not put defaults in the place of settings, \
                      write at least one key"
                .to_owned(),
        }]))
    }

    /// The same with `chosen` in the place of a backend at [`Address::any`].
    #[must_use]
    pub fn with_backend(mut self, chosen: &Address) -> Loaded {
        const KEY: &str = "backend.endpoints";
        if self.config.backend.endpoints == [Address::any()] {
            let endpoints = vec![chosen.clone()];
            let config = Arc::make_mut(&mut self.config);
            config.backend.endpoints.clone_from(&endpoints);
            self.settings.refine(KEY, Typed::Addresses(endpoints));
        }
        self
    }

    /// Says that it would break a rule between keys in a process that was started with `started`, and so has the
    /// values that a reload can't change from there.
    ///
    /// # Errors
    /// All such problems.
    pub fn check_reload_into(&self, started: &Loaded) -> Result<(), Problems> {
        let mut report = Report::default();
        let settings = self.settled(started).settings;
        rules::apply(&settings, &self.routes, &mut report);
        if report.is_empty() {
            return Ok(());
        }
        let mut problems = report.finish();
        for problem in &mut problems.0 {
            let key = schema::plain_keys().find(|key| {
                !key.hot
                    && problem.message.contains(key.path)
                    && settings.get(key.path).value != self.settings.get(key.path).value
            });
            let key = key.map_or("a key that it needs", |key| key.path);
            problem.message += &format!(" (a reload does not change {key}: restart instead)");
        }
        Err(problems)
    }

    /// What of it is in force in a process that was started with `started` and now works by `config`: what a
    /// reload can't change is as it was at the start.
    #[must_use]
    pub fn in_force(&self, started: &Loaded, config: Arc<Config>) -> Loaded {
        let mut settled = self.settled(started);
        settled.config = config;
        settled
    }

    /// Its settings, but for those that a reload can't change.
    fn settled(&self, started: &Loaded) -> Loaded {
        let mut settled = self.clone();
        for key in schema::plain_keys().filter(|key| !key.hot) {
            let Setting { value, origin } = started.settings.get(key.path);
            if *value != self.settings.get(key.path).value {
                settled
                    .settings
                    .set(key.path, value.clone(), origin.clone());
                let origins = &mut settled.origins.0;
                origins.insert(key.path.to_owned(), origin.clone());
            }
        }
        settled
    }
}

/// Reads all layers and validates them.
///
/// # Errors
/// Every problem of every layer; only the one if the file can't be read.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    load_noting(sources, &Tried::default())
}

/// [`load`], with a note of what was tried.
///
/// # Errors
/// As [`load`].
pub fn load_noting(sources: &Sources, tried: &Tried) -> Result<Loaded, Problems> {
    load_by(read_once, sources, tried)
}

/// [`load_noting`], once more: what came through a pipe does not come again.
///
/// # Errors
/// As [`load`].
pub fn load_again(sources: &Sources, tried: &Tried) -> Result<Loaded, Problems> {
    load_by(read_small, sources, tried)
}

fn load_by(
    read: fn(&Path) -> io::Result<Vec<u8>>,
    sources: &Sources,
    tried: &Tried,
) -> Result<Loaded, Problems> {
    let path = sources.path();
    let read = path.as_deref().map(read).transpose();
    tried.note(match &read {
        Ok(bytes) => bytes.clone().map(Ok),
        Err(error) => content(Err(error.kind().into())),
    });
    let bytes =
        read.map_err(|error| unreadable(path.as_deref().unwrap_or(Path::new("")), &error))?;
    load_bytes(sources, path.as_deref().zip(bytes.as_deref()))
}

/// Where the admin server of a tidegate with these sources listens, and what keeps it from being known. Nothing else
/// is looked at: a mistake that was made in the file since tidegate started does not hide that address.
///
/// # Errors
/// When a variable or a flag names none.
pub fn admin_listen(sources: &Sources) -> Result<(Address, Vec<Problem>), Problems> {
    const KEY: &str = "admin.listen";
    let path = sources.path();
    let mut report = Report::default();
    let (layer, mut doubts) = match path.as_deref().map(|path| (path, read_small(path))) {
        None => (FileLayer::default(), Vec::new()),
        Some((path, Ok(bytes))) => (read(path, &bytes, &mut report), Vec::new()),
        Some((path, Err(error))) => (FileLayer::default(), unreadable(path, &error).0),
    };
    // After an error of syntax nothing is taken from a file.
    if layer.entries.is_empty() && layer.routes.is_empty() {
        doubts.append(&mut report.finish().0);
    }
    let mut report = Report::default();
    let (settings, _) = resolve(&layer, sources, &mut report);
    let mut problems = report.finish().0;
    problems.retain(|problem| problem.key.as_deref() == Some(KEY));
    let in_file = path.map(|path| format!("{}:", path.display()));
    let (of_file, others): (Vec<_>, Vec<_>) = problems.into_iter().partition(|problem| {
        let in_file = in_file.as_deref();
        in_file.is_some_and(|start| problem.location.starts_with(start))
    });
    if !others.is_empty() {
        return Err(Problems(others));
    }
    doubts.extend(of_file);
    let Setting { origin, .. } = settings.get(KEY);
    if *origin != Origin::Default {
        doubts.clear();
    }
    Ok((settings.address(KEY), doubts))
}

/// A configuration and the body of a refusal are small; a device or a disk image is a mistake.
const FILE_MAX: u64 = 1 << 20;

/// Reads a regular file of at most 1 MiB.
///
/// # Errors
/// As `std::fs::read`; [`io::ErrorKind::FileTooLarge`] for a larger one, [`io::ErrorKind::InvalidInput`] for a
/// pipe, a device and the like: they may keep a reader waiting for ever.
pub(super) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    read_all(open_regular(path)?)
}

/// Opens a regular file for reading, and waits for nobody.
///
/// # Errors
/// As `File::open`; [`io::ErrorKind::InvalidInput`] for a pipe, a device and the like.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file (a pipe or a device); write it to a file",
        ));
    }
    Ok(file)
}

/// The same, or what comes through a pipe, as of a shell's `<(...)`. Whoever writes is there already, and is waited
/// for.
fn read_once(path: &Path) -> io::Result<Vec<u8>> {
    if !is_pipe(path) {
        return read_small(path);
    }
    let file = open(path)?;
    fcntl_setfl(&file, OFlags::empty())?;
    let content = read_all(file)?;
    if content.is_empty() {
        let nothing = "nothing came through this pipe";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, nothing));
    }
    Ok(content)
}

/// Whether the configuration comes through a pipe, and so only once.
pub fn is_pipe(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// Opening a FIFO would wait for somebody who writes to it: not here.
fn open(path: &Path) -> io::Result<File> {
    let waits_for_nobody = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    File::options()
        .read(true)
        .custom_flags(waits_for_nobody)
        .open(path)
}

fn read_all(file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = file.take(FILE_MAX + 1).read_to_end(&mut content)?;
    if read as u64 > FILE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it has more than 1MiB",
        ));
    }
    Ok(content)
}

fn unreadable(path: &Path, error: &io::Error) -> Problems {
    let message = match error.kind() {
        io::ErrorKind::NotFound => {
            "no such file; name the configuration with -c FILE or TIDEGATE_CONFIG".to_owned()
        }
        io::ErrorKind::IsADirectory => "is a directory; name the file in it".to_owned(),
        io::ErrorKind::PermissionDenied => {
            format!("cannot be read: {error}; let the user that runs tidegate read it")
        }
        _ => format!("cannot be read: {error}"),
    };
    Problems(vec![Problem {
        location: path.display().to_string(),
        key: None,
        message,
    }])
}

/// [`load`], with the file's content at hand.
pub(super) fn load_bytes(
    sources: &Sources,
    file: Option<(&Path, &[u8])>,
) -> Result<Loaded, Problems> {
    let mut report = Report::default();
    let layer = match file {
        Some((path, bytes)) => read(path, bytes, &mut report),
        None => FileLayer::default(),
    };
    let (mut settings, routes) = resolve(&layer, sources, &mut report);
    let base = file
        .and_then(|(path, _)| path.parent())
        .unwrap_or(Path::new(""));
    let config = build::build(&mut settings, &routes, base, &mut report);
    match config {
        Some(config) if report.is_empty() => Ok(Loaded {
            config: Arc::new(config),
            origins: origins(&settings, &routes),
            file: file.map(|(path, _)| path.to_owned()),
            blank: file.is_some() && layer.entries.is_empty() && layer.routes.is_empty(),
            settings,
            routes,
        }),
        _ => Err(report.finish()),
    }
}

fn read(path: &Path, bytes: &[u8], report: &mut Report) -> FileLayer {
    match std::str::from_utf8(bytes) {
        Ok(text) => file::read(path, text, report),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let origin = file::origin(path, &good, good.len());
            report.plain(&origin, None, "not UTF-8; save the file as UTF-8");
            FileLayer::default()
        }
    }
}

fn origins(settings: &Settings, routes: &[RouteSettings]) -> Origins {
    let mut origins = Origins::default();
    for key in schema::plain_keys() {
        origins
            .0
            .insert(key.path.to_owned(), settings.get(key.path).origin.clone());
    }
    for (i, route) in routes.iter().enumerate() {
        for key in schema::route_keys() {
            let path = format!("{}[{i}].{}", schema::ROUTE, key.name());
            origins
                .0
                .insert(path, route.settings.get(key.path).origin.clone());
        }
    }
    origins
}

/// The dotted keys whose value differs and that a reload can't change, in the schema's order.
pub fn needs_restart(old: &Loaded, new: &Loaded) -> Vec<String> {
    schema::plain_keys()
        .filter(|key| !key.hot)
        .filter(|key| old.settings.get(key.path).value != new.settings.get(key.path).value)
        .map(|key| key.path.to_owned())
        .collect()
}

impl Default for Config {
    /// What `tidegate run` without any option does.
    fn default() -> Self {
        match load(&Sources::default()) {
            Ok(loaded) => Arc::unwrap_or_clone(loaded.config),
            Err(problems) => unreachable!("the defaults are valid: {problems}"),
        }
    }
}

impl Settings {
    /// Sets a value that was found out while building, without changing who set it.
    pub(super) fn refine(&mut self, path: &'static str, value: Typed) {
        let origin: Origin = self.get(path).origin.clone();
        self.set(path, value, origin);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        os::{fd::AsRawFd as _, unix::fs::symlink},
    };

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_what_keeps_nobody_waiting_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let in_dir = |name: &str| dir.path().join(name);
        std::fs::write(in_dir("file"), "text").expect("it is written");
        symlink("file", in_dir("link")).expect("a link");
        mknodat(CWD, in_dir("fifo"), FileType::Fifo, Mode::RWXU, 0).expect("a FIFO");
        for good in ["file", "link"] {
            assert_eq!(read_small(&in_dir(good)).expect("it is a file"), b"text");
        }
        for bad in [in_dir("fifo"), PathBuf::from("/dev/zero")] {
            let error = read_small(&bad).expect_err("it is none");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            let sources = Sources {
                file: Some(bad),
                ..Sources::default()
            };
            let again = load_again(&sources, &Tried::default());
            let problems = again.expect_err("it is none").to_string();
            assert!(problems.contains("it is no regular file"), "{problems}");
            load(&sources).expect_err("nobody writes");
        }
        let error = read_small(dir.path()).expect_err("it is a directory");
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn a_reload_that_keeps_its_listeners_does_not_make_one_of_them_the_backend() {
        let written = |listen: &str, endpoint: &str| {
            let text = format!(
                "[server]\nlisten = [\"127.0.0.1:{listen}\"]\n\n[backend]\nendpoints = [\"127.0.0.1:{endpoint}\"]\n"
            );
            let file = Some((Path::new("t.toml"), text.as_bytes()));
            load_bytes(&Sources::default(), file).expect("it is valid")
        };
        let started = written("8000", "8001");
        let moved = written("8002", "8003");
        moved
            .check_reload_into(&started)
            .expect("somewhere else again");
        let swapped = written("8001", "8000");
        let problems = swapped.check_reload_into(&started).expect_err("itself");
        assert_eq!(
            problems.to_string(),
            "t.toml:5:13: backend.endpoints: \"127.0.0.1:8000\" is where tidegate itself listens \
             (server.listen \"127.0.0.1:8000\"); write the workers' address \
             (a reload does not change server.listen: restart instead)"
        );
    }

    #[test]
    fn what_comes_through_a_pipe_is_read_to_its_end_but_once() {
        let (from, mut to) = io::pipe().expect("a pipe");
        let sources = Sources {
            file: Some(format!("/dev/fd/{}", from.as_raw_fd()).into()),
            ..Sources::default()
        };
        let writer = std::thread::spawn(move || {
            for part in ["[limit]\n", "max = 7\n"] {
                to.write_all(part.as_bytes()).expect("somebody reads");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        let loaded = load(&sources).expect("it is valid");
        assert_eq!(loaded.config.limit.max, 7);
        writer.join().expect("it has written");
        let problems = load(&sources).expect_err("it is empty").to_string();
        assert!(
            problems.ends_with("nothing came through this pipe"),
            "{problems}"
        );
    }
}

//! Whether the files and directories that a configuration names can be used, here and by this user. That is no mistake
//! of the configuration's: it may be meant for another machine.

use std::{fs, io, path::Path};

use rustix::fs::{Access, access};

use super::{
    load::Loaded,
    problem::{Problem, Problems, Report},
};

/// Whether a place can be used; if not, why, and what to do.
type Look = fn(&Path) -> Result<(), String>;

/// A key, how its place is used, and what comes of it when it cannot be.
const PLACES: [(&str, Look, &str); 3] = [
    ("limit.state_file", replaced, "what is learned is not kept"),
    ("trace.file", written, "tidegate does not start"),
    ("buffers.spool_dir", filled, "larger bodies are streamed"),
];

/// What cannot be used, and what comes of that.
pub fn unusable(loaded: &Loaded) -> Vec<Problem> {
    let mut report = Report::default();
    for (key, look, else_) in PLACES {
        let given = loaded.settings.text(key);
        if !given.is_empty()
            && let Err(why) = look(Path::new(given))
        {
            let message = format!("{given:?}: {why}, or {else_}");
            report.value(&loaded.settings.get(key).origin, key, &message);
        }
    }
    let Problems(problems) = report.finish();
    problems
}

/// A file that is read, and replaced by a new one.
fn replaced(path: &Path) -> Result<(), String> {
    in_place(path, Access::READ_OK)?;
    filled(folder(path))
}

/// A file that is made where there is none, and then written in place.
fn written(path: &Path) -> Result<(), String> {
    if in_place(path, Access::READ_OK | Access::WRITE_OK)? {
        return Ok(());
    }
    filled(folder(path))
}

/// Whether there is a file.
fn in_place(path: &Path, how: Access) -> Result<bool, String> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Err("it is no regular file; name another".to_owned())
        }
        Ok(_) => allowed(path, how).map(|()| true),
        Err(_) => Ok(false),
    }
}

/// The directory that a file is in, or would be.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A directory in which files are made.
fn filled(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => allowed(path, Access::WRITE_OK | Access::EXEC_OK),
        Ok(_) => Err(format!("{} is no directory; name another", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("there is no directory {}; make it", path.display()))
        }
        Err(error) => Err(refused(path, &error)),
    }
}

fn allowed(path: &Path, how: Access) -> Result<(), String> {
    access(path, how).map_err(|error| refused(path, &error.into()))
}

fn refused(path: &Path, error: &io::Error) -> String {
    format!(
        "{} cannot be used ({error}); let the user that runs tidegate read and write there",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn a_place_that_cannot_be_used_is_told_where_it_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = dir.path().join("good");
        std::fs::create_dir(&good).expect("a directory");
        std::fs::write(good.join("file"), "").expect("a file");
        let file = dir.path().join("t.toml");
        let told = |state: &str, trace: &str, spool: &str| {
            let text = format!(
                "limit.state_file = \"{state}\"\ntrace.file = \"{trace}\"\nbuffers.spool_dir = \"{spool}\"\n"
            )
            .replace('~', &dir.path().display().to_string());
            std::fs::write(&file, text).expect("it is written");
            let sources = Sources {
                file: Some(file.clone()),
                ..Sources::default()
            };
            let loaded = load(&sources).expect("it is valid");
            let lines: Vec<String> = unusable(&loaded).iter().map(Problem::to_string).collect();
            lines
                .join("\n")
                .replace(&dir.path().display().to_string(), "~")
        };
        assert_eq!(told("", "", ""), "");
        assert_eq!(told("~/good/state", "~/good/file", "~/good"), "");
        assert_eq!(
            told("~/none/state", "~/good", "~/good/file"),
            "~/t.toml:1:20: limit.state_file: \"~/none/state\": there is no directory ~/none; make it, \
             or what is learned is not kept\n\
             ~/t.toml:2:14: trace.file: \"~/good\": it is no regular file; name another, \
             or tidegate does not start\n\
             ~/t.toml:3:21: buffers.spool_dir: \"~/good/file\": ~/good/file is no directory; name another, \
             or larger bodies are streamed"
        );
    }
}

//! The configuration file: TOML text becomes values at keys, with their places.

use std::path::Path;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    origin::{Origin, Position},
    problem::{Report, closest, did_you_mean},
    schema::{self, Key},
    value::Value,
};

/// A value at its key.
pub(super) struct Entry {
    pub(super) key: &'static Key,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// One `[[route]]`.
pub(super) struct RouteEntries {
    /// Where its table starts.
    pub(super) origin: Origin,
    pub(super) entries: Vec<Entry>,
}

/// What a file sets.
#[derive(Default)]
pub(super) struct FileLayer {
    pub(super) entries: Vec<Entry>,
    pub(super) routes: Vec<RouteEntries>,
}

/// Reads the text of a file; what is wrong with its syntax and its keys goes to the report.
pub(super) fn read(path: &Path, text: &str, report: &mut Report) -> FileLayer {
    let source = Source::new(path, text);
    let mut layer = FileLayer::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    let broken = errors.iter().any(|error| !is_duplicate(error));
    let offset_of = |error: &toml::de::Error| error.span().map_or(text.len(), |span| span.start);
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| (offset_of(error), error))
        .collect();
    errors.sort_by_key(|(offset, _)| *offset);
    // The parser recovers in the middle of a line, and then complains of the rest.
    errors.dedup_by_key(|(offset, _)| source.position(*offset).line);
    for (offset, error) in errors {
        let origin = source.origin(offset);
        if is_duplicate(error) {
            let name = error
                .span()
                .and_then(|span| text.get(span))
                .unwrap_or_default()
                .trim();
            let message = match first_of(table.get_ref(), name, offset) {
                Some((key, first)) => {
                    let line = source.position(first).line;
                    format!("duplicate key {key}: line {line} has it already; remove one")
                }
                None => format!("duplicate section [{name}]; put its keys together"),
            };
            report.plain(&origin, None, message);
        } else {
            let message = match meant(source.line(offset)) {
                Some(meant) => format!("not a valid value; write {meant}"),
                None => error.message().to_owned(),
            };
            report.plain(&origin, None, format!("TOML syntax: {message}"));
            // An array that isn't closed swallows the rest of the file.
            if error.message().contains("between array elements") {
                break;
            }
        }
    }
    // What follows a syntax error is guessed: better few problems that are true.
    if !broken {
        walk(&source, table.get_ref(), "", &mut layer, report);
    }
    layer
}

fn is_duplicate(error: &toml::de::Error) -> bool {
    error.message().contains("duplicate key")
}

/// The place of a byte of a file.
pub(super) fn origin(path: &Path, text: &str, offset: usize) -> Origin {
    Source::new(path, text).origin(offset)
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// Where each line starts. Places are asked for by the thousand, where there are many routes.
    lines: Vec<usize>,
    /// The bytes that are not the first of their character.
    inner: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, text: &'a str) -> Self {
        let bytes = || text.bytes().enumerate();
        let after_newline = bytes().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        let inner = bytes().filter(|(at, _)| !text.is_char_boundary(*at));
        Self {
            path,
            text,
            lines: std::iter::once(0).chain(after_newline).collect(),
            inner: inner.map(|(at, _)| at).collect(),
        }
    }

    fn position(&self, offset: usize) -> Position {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines[line - 1];
        let inner = |before: usize| self.inner.partition_point(|at| *at < before);
        Position {
            line,
            column: offset - start - (inner(offset) - inner(start)) + 1,
        }
    }

    /// The line that this byte is in.
    fn line(&self, offset: usize) -> &str {
        let start = self.lines[self.position(offset).line - 1];
        self.text[start..].lines().next().unwrap_or_default()
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File {
            path: self.path.to_owned(),
            position: self.position(offset),
        }
    }
}

/// What is meant by a line such as `level = info`: a value without its quotes.
fn meant(line: &str) -> Option<String> {
    let (name, value) = line.split_once('=')?;
    let (name, value) = (name.trim(), value.split(" #").next()?.trim());
    if let Some(items) = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let items: Option<Vec<_>> = items
            .split(',')
            .map(|item| in_quotes(item.trim()))
            .collect();
        return Some(format!("{name} = [{}]", items?.join(", ")));
    }
    match value.to_ascii_lowercase() {
        word if word == "true" || word == "false" => Some(format!("{name} = {word}")),
        _ => Some(format!("{name} = {}", in_quotes(value)?)),
    }
}

/// Plain text that is no number, in quotes.
fn in_quotes(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:/-_,=%*+".contains(c);
    let worded = |c: char| c.is_ascii_alphabetic() || ":/".contains(c);
    (text.chars().all(plain) && text.contains(worded)).then(|| format!("\"{text}\""))
}

/// The dotted key and the place of the nearest key of this name before the offset.
fn first_of(table: &DeTable<'_>, name: &str, before: usize) -> Option<(String, usize)> {
    let mut found: Option<(String, usize)> = None;
    let mut see = |path: String, at: usize| {
        if at < before && found.as_ref().is_none_or(|(_, best)| *best < at) {
            found = Some((path, at));
        }
    };
    for (key, value) in table {
        if key.get_ref() == name {
            see(name.to_owned(), key.span().start);
        }
        let tables: Vec<_> = match value.get_ref() {
            DeValue::Table(table) => vec![table],
            DeValue::Array(items) => items
                .iter()
                .filter_map(|i| i.get_ref().as_table())
                .collect(),
            _ => continue,
        };
        for table in tables {
            if let Some((path, at)) = first_of(table, name, before) {
                see(join(key.get_ref(), &path), at);
            }
        }
    }
    found
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

fn walk(
    source: &Source<'_>,
    table: &DeTable<'_>,
    prefix: &str,
    layer: &mut FileLayer,
    report: &mut Report,
) {
    for (name, value) in table {
        let path = join(prefix, name.get_ref());
        let at_name = source.origin(name.span().start);
        let at_value = source.origin(value.span().start);
        if path == schema::ROUTE {
            routes(source, value, &at_value, layer, report);
        } else if let Some(key) = schema::find(&path) {
            layer.entries.push(entry(source, key, value));
        } else if schema::is_section(&path) {
            match value.get_ref() {
                DeValue::Table(table) => walk(source, table, &path, layer, report),
                DeValue::Array(_) => {
                    let message = format!("{path} is one section, not a list; write [{path}]");
                    report.plain(&at_value, Some(&path), message);
                }
                _ => {
                    let message = format!("{path} is a section; write [{path}], then its keys");
                    report.plain(&at_value, Some(&path), message);
                }
            }
        } else if is_table(value.get_ref()) {
            report.plain(&at_name, Some(&path), unknown_section(&path));
        } else {
            report.plain(&at_name, Some(&path), unknown_key(&path));
        }
    }
}

fn is_table(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(items) => items.iter().any(|item| item.get_ref().is_table()),
        _ => false,
    }
}

fn entry(source: &Source<'_>, key: &'static Key, value: &Spanned<DeValue<'_>>) -> Entry {
    Entry {
        key,
        value: Value::from_toml(value.get_ref(), &|offset| Some(source.position(offset))),
        origin: source.origin(value.span().start),
    }
}

fn routes(
    source: &Source<'_>,
    value: &Spanned<DeValue<'_>>,
    at: &Origin,
    layer: &mut FileLayer,
    report: &mut Report,
) {
    let Some(items) = value.get_ref().as_array() else {
        let message = "route is a list of routes; write [[route]], with two brackets";
        report.plain(at, Some(schema::ROUTE), message);
        return;
    };
    for item in items {
        let origin = source.origin(item.span().start);
        let Some(table) = item.get_ref().as_table() else {
            let message = "a route is a table; write [[route]], then its keys";
            report.plain(&origin, Some(schema::ROUTE), message);
            continue;
        };
        let mut entries = Vec::new();
        for (name, value) in table {
            let path = join(schema::ROUTE, name.get_ref());
            match schema::find(&path) {
                Some(key) => entries.push(entry(source, key, value)),
                None => {
                    let at = source.origin(name.span().start);
                    report.plain(&at, Some(&path), unknown_key(&path));
                }
            }
        }
        layer.routes.push(RouteEntries { origin, entries });
    }
}

/// `unknown key queue.max_wiat; did you mean max_wait?`
pub(super) fn unknown_key(path: &str) -> String {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let siblings: Vec<_> = schema::KEYS
        .iter()
        .filter(|key| key.section() == section)
        .map(Key::name)
        .collect();
    let path_of = |name: &str| {
        schema::plain_keys()
            .find(|key| key.name() == name)
            .map(|key| key.path)
    };
    let meant = closest(name, siblings.iter().copied())
        .or_else(|| path_of(name))
        .or_else(|| path_of(closest(name, schema::plain_keys().map(Key::name))?));
    let hint = match meant {
        Some(_) => did_you_mean(meant),
        None if siblings.is_empty() => format!("; the sections are {}", section_names()),
        None => format!("; [{section}] has {}", siblings.join(", ")),
    };
    format!("unknown key {path}{hint}")
}

/// `unknown section [queu]; did you mean [queue]?`
fn unknown_section(path: &str) -> String {
    let last = path.rsplit('.').next().unwrap_or(path);
    let meant = closest(path, schema::sections()).or_else(|| closest(last, schema::sections()));
    match meant {
        Some(schema::ROUTE) => format!("unknown section [{path}]; did you mean [[route]]?"),
        Some(meant) => format!("unknown section [{path}]; did you mean [{meant}]?"),
        None => format!(
            "unknown section [{path}]; the sections are {}",
            section_names()
        ),
    }
}

fn section_names() -> String {
    schema::sections().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_in_lines_and_characters() {
        let text = "a = 1\r\n\n# é€😀 = \"x\"\nb";
        let source = Source::new(Path::new("t.toml"), text);
        for offset in 0..=text.len() + 1 {
            let end = (0..=offset).rev().find(|at| text.is_char_boundary(*at));
            let before = &text[..end.expect("0 is one").min(text.len())];
            let (_, last) = before.rsplit_once('\n').unwrap_or(("", before));
            let expected = Position {
                line: before.matches('\n').count() + 1,
                column: last.chars().count() + 1,
            };
            assert_eq!(source.position(offset), expected, "{offset}");
        }
        assert_eq!(source.line(0), "a = 1");
        assert_eq!(source.line(6), "a = 1");
        assert_eq!(source.line(7), "");
        assert_eq!(source.line(text.len()), "b");
        assert_eq!(Source::new(Path::new("t.toml"), "\n").line(1), "");
    }
}

//! The log: lines on standard error, as text or as JSON, and one event for each finished request
//! when asked for.
//!
//! One event is one line, whatever is in it: control characters are escaped at the writer, so that
//! nothing a client or a backend sends can forge a line or drive a terminal. A standard error that
//! is closed, broken or not read loses lines and nothing else.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    net::IpAddr,
    time::Duration,
};

use tracing::Subscriber;
use tracing_subscriber::{
    Layer, Registry, filter::Targets, fmt::MakeWriter, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use super::{
    labels::{Reason, Source},
    stderr::Stderr,
};
use crate::config::{self, Access, LogFormat};

/// The longest path that is logged, in bytes: a head may have 64 KiB of it.
const MAX_PATH: usize = 1024;

/// Changes the log while it is running.
#[derive(Clone, Debug)]
pub struct LogControl {
    filter: reload::Handle<Targets, Registry>,
}

impl LogControl {
    /// Changes what is logged; `level` is `log.level`, a level or a filter such as
    /// `"info,tidegate::proxy=debug"`.
    ///
    /// # Errors
    /// When `level` is not a filter; the one in force stays.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = parse_filter(level)?;
        self.filter
            .reload(filter)
            .map_err(|error| error.to_string())
    }
}

/// Starts the log of the process, on standard error.
///
/// # Errors
/// When `log.level` is not a filter, or a log was started before.
pub fn init(settings: &config::Log) -> Result<LogControl, String> {
    let json = match settings.format {
        LogFormat::Auto => !io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let (subscriber, control) = subscriber(&settings.level, json, move || Stderr { json })?;
    subscriber.try_init().map_err(|error| error.to_string())?;
    Ok(control)
}

/// Silent unless somebody asks for it: `h2` logs every protocol error of a client, and `notify` that it no
/// longer watches a directory which is gone, as at each swap of a ConfigMap.
const QUIET: &str = "h2=off,notify=off";

/// The whole state, which whoever sends USR2 wants to see whatever `log.level` is.
const ASKED_FOR: &str = "tidegate::state=info";

/// Logs the whole state, as one event.
pub fn state(state: &serde_json::Value) {
    tracing::info!(target: "tidegate::state", %state, "state");
}

fn parse_filter(level: &str) -> Result<Targets, String> {
    config::log_targets(&format!("{QUIET},{ASKED_FOR},{level}"))
        .map_err(|error| format!("{level:?} is not a log filter: {error}"))
}

fn subscriber<W>(
    level: &str,
    json: bool,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync, LogControl), String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_filter(level)?);
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        // Otherwise a failed write is reported with `eprintln!`, which panics on a closed stderr.
        .log_internal_errors(false)
        .with_writer(OneLine(writer));
    let layer = if json {
        let layer = layer.json().flatten_event(true);
        layer.with_current_span(false).with_span_list(false).boxed()
    } else {
        layer.boxed()
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    Ok((subscriber, LogControl { filter: handle }))
}

/// Makes writers that write each event as one line.
struct OneLine<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = OneLineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLineWriter(self.0.make_writer())
    }
}

/// Writes what it is given as one line; the formatter hands over a whole event at once.
struct OneLineWriter<W>(W);

impl<W: Write> Write for OneLineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = escape(line).into_owned();
        line.push('\n');
        // One call, so that lines of several threads do not mix.
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Control characters as they are escaped in JSON, which keeps a JSON line valid too. U+2028 and
/// U+2029 are line ends to some readers; the bidirectional ones reorder what a person reads.
fn escape(line: &str) -> Cow<'_, str> {
    let is_unsafe = |character: char| {
        character.is_control()
            || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !line.contains(is_unsafe) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for character in line.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            other if is_unsafe(other) => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(other));
            }
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

/// A duration in milliseconds with microseconds behind the point, as access events have it.
pub fn millis(duration: Duration) -> f64 {
    duration.as_micros() as u64 as f64 / 1000.0
}

/// One finished request.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// The method.
    pub method: &'a str,
    /// The path without the query, which may hold secrets.
    pub path: &'a str,
    /// The status that the client was sent. (One that left before there was any is not logged.)
    pub status: u16,
    /// Who wrote the answer.
    pub source: Source,
    /// Why tidegate answered itself, if it did, or why the backend's answer has no end.
    pub reason: Option<Reason>,
    /// The route's name.
    pub route: &'a str,
    /// The request's id, empty when ids are off.
    pub request_id: &'a str,
    /// The client's address, when it has one.
    pub client: Option<IpAddr>,
    /// In the queue, milliseconds.
    pub queue_ms: f64,
    /// From the permit to the end of the backend's work, milliseconds, if it got there.
    pub backend_ms: Option<f64>,
    /// From the head to the last byte of the answer, milliseconds.
    pub total_ms: f64,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// The endpoint that it was last sent to, or was to be sent to, if it came so far.
    pub endpoint: Option<&'a str>,
    /// How many times an endpoint was tried for it; one that could not be reached counts too.
    pub attempt: u32,
}

/// Whether a request with this end is logged: ask before collecting the rest of the record.
pub fn wants_access(mode: Access, status: u16, reason: Option<Reason>) -> bool {
    is_wanted(mode, status, reason)
        && tracing::enabled!(target: "tidegate::access", tracing::Level::INFO)
}

/// The same as far as `log.access` says.
fn is_wanted(mode: Access, status: u16, reason: Option<Reason>) -> bool {
    match mode {
        Access::Off => false,
        Access::Errors => status >= 500 || reason.is_some(),
        Access::All => true,
    }
}

/// Logs a finished request, if `mode` asks for it: one event of level info with the target
/// `tidegate::access`, so that a filter can single it out.
pub fn access(mode: Access, record: &AccessRecord<'_>) {
    if !wants_access(mode, record.status, record.reason) {
        return;
    }
    let path = shorten(record.path);
    tracing::info!(
        target: "tidegate::access",
        method = record.method,
        path = &*path,
        status = record.status,
        source = record.source.as_str(),
        reason = record.reason.map(Reason::as_str),
        route = record.route,
        request_id = record.request_id,
        client = record.client.map(tracing::field::display),
        queue_ms = record.queue_ms,
        backend_ms = record.backend_ms,
        total_ms = record.total_ms,
        bytes = record.bytes,
        endpoint = record.endpoint,
        attempt = record.attempt,
        "request"
    );
}

fn shorten(path: &str) -> Cow<'_, str> {
    // A caller who forgets to cut the query must not leak it.
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    if path.len() <= MAX_PATH {
        return Cow::Borrowed(path);
    }
    let end = (0..=MAX_PATH)
        .rev()
        .find(|end| path.is_char_boundary(*end))
        .unwrap_or(0);
    Cow::Owned(format!("{}…", &path[..end]))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, level: &str, write: impl FnOnce(&LogControl)) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, control) = subscriber(level, json, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || write(&control));
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn record(path: &str) -> AccessRecord<'_> {
        AccessRecord {
            method: "GET",
            path,
            status: 503,
            source: Source::Tidegate,
            reason: Some(Reason::QueueFull),
            route: "default",
            request_id: "abc",
            client: Some(IpAddr::from([127, 0, 0, 1])),
            queue_ms: 1.5,
            backend_ms: None,
            total_ms: 2.25,
            bytes: 17,
            endpoint: Some("127.0.0.1:8000"),
            attempt: 0,
        }
    }

    #[test]
    fn an_access_event_is_one_json_object() {
        let line = logged(true, "info", |_| {
            access(Access::All, &record("/a?secret=1"));
        });
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["path"], "/a");
        assert_eq!(event["reason"], "queue_full");
        assert_eq!(event["client"], "127.0.0.1");
        assert_eq!(event["queue_ms"], 1.5);
        assert_eq!(event["endpoint"], "127.0.0.1:8000");
        assert_eq!(event["target"], "tidegate::access");
        assert!(event.get("backend_ms").is_none());
        assert!(!line.contains("secret"));
    }

    #[test]
    fn nothing_that_is_logged_can_forge_a_line() {
        let evil = "/x\r\n2026-01-01 ERROR forged\u{1b}[2J\u{85}\u{2028}\u{202e}";
        for json in [false, true] {
            let lines = logged(json, "info", |_| {
                access(Access::All, &record(evil));
                tracing::info!(error = %evil, "{evil}");
            });
            assert_eq!(lines.lines().count(), 2, "{lines:?}");
            let safe = |c: char| c == '\n' || !c.is_control() && c != '\u{2028}' && c != '\u{202e}';
            assert!(lines.chars().all(safe), "{lines:?}");
            if json {
                for line in lines.lines() {
                    serde_json::from_str::<serde_json::Value>(line).unwrap();
                }
            }
        }
    }

    #[test]
    fn the_level_can_be_changed_and_a_wrong_one_is_refused() {
        let lines = logged(false, "warn", |control| {
            tracing::info!("one");
            control.set_level("info").unwrap();
            tracing::info!("two");
            assert!(control.set_level("tidegate=loud").is_err());
            tracing::info!("three");
        });
        assert!(!lines.contains("one") && lines.contains("two") && lines.contains("three"));
    }

    #[test]
    fn the_state_is_logged_whatever_the_level_is() {
        for level in ["warn", "off", "tidegate=warn"] {
            let lines = logged(false, level, |_| {
                tracing::info!(target: "tidegate::other", "one");
                state(&serde_json::json!({ "limit": 7 }));
            });
            assert!(
                !lines.contains("one") && lines.contains("\"limit\":7"),
                "{lines}"
            );
        }
    }

    #[test]
    fn errors_are_those_of_the_server_and_all_refusals() {
        assert!(is_wanted(Access::Errors, 500, None));
        assert!(is_wanted(Access::Errors, 429, Some(Reason::QueueFull)));
        assert!(!is_wanted(Access::Errors, 404, None));
        assert!(is_wanted(Access::All, 200, None));
        assert!(!is_wanted(Access::Off, 500, None));
    }

    #[test]
    fn a_broken_writer_costs_the_log_only() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (subscriber, _control) = subscriber("info", false, || Broken).unwrap();
        tracing::subscriber::with_default(subscriber, || tracing::error!("lost"));
    }

    #[test]
    fn a_long_path_is_cut_at_a_character() {
        let path = format!("/{}", "é".repeat(MAX_PATH));
        let cut = shorten(&path);
        assert!(cut.len() <= MAX_PATH + '…'.len_utf8() && cut.ends_with("é…"));
    }
}

//! What a string must look like, per kind of key. The messages follow the value: `"x" <message>`.

use tracing_subscriber::filter::{ParseError, Targets};

use super::{
    address::Address,
    problem::{closest, did_you_mean},
    types::Algorithm,
    units::parse_size,
};

/// Says what is wrong with a string, or nothing.
pub type Check = fn(&str) -> Result<(), String>;

fn fail<T>(message: impl Into<String>) -> Result<T, String> {
    Err(message.into())
}

fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(token)
}

/// Anything without a NUL.
pub(super) fn any(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return fail("holds a NUL byte; remove it");
    }
    Ok(())
}

/// A header's name, or empty.
pub(super) fn header_name(text: &str) -> Result<(), String> {
    if text.is_empty() || is_token(text) {
        return Ok(());
    }
    fail("is not a header name; write one as \"X-Name\", or \"\" for none")
}

/// Fields that say how a message is to be read, by whom or for whom: to write something else into one of them
/// breaks the message.
const TAKEN: &[&str] = &[
    "age",
    "allow",
    "authorization",
    "cache-control",
    "client-ip",
    "connection",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "last-modified",
    "location",
    "max-forwards",
    "origin",
    "path-info",
    "pragma",
    "range",
    "referer",
    "remote-addr",
    "remote-user",
    "retry-after",
    "script-name",
    "server",
    "server-timing",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
    "x-real-ip",
    "x-remote-user",
    "x-request-start",
];
/// The same, by how they begin.
const TAKEN_PREFIXES: &[&str] = &[
    "accept",
    "access-control-",
    "content-",
    "if-",
    "proxy-",
    "sec-",
    "x-forwarded-",
    "x-tidegate-",
];

/// The name of a header that is written, or empty.
pub(super) fn own_header_name(text: &str) -> Result<(), String> {
    header_name(text)?;
    // WSGI knows no difference.
    let name = text.to_ascii_lowercase().replace('_', "-");
    let taken =
        TAKEN.contains(&&*name) || TAKEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    if taken {
        return fail(
            "is a header with a meaning of its own, which would be overwritten; \
             write another, as \"X-Request-Id\", or \"\" for none",
        );
    }
    Ok(())
}

/// `Name`, `Name: value`, or empty.
pub(super) fn header_match(text: &str) -> Result<(), String> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    if text.is_empty() || (is_token(name) && !value.chars().any(char::is_control)) {
        return Ok(());
    }
    fail("is not a header; write \"Name: value\" or \"Name\"")
}

/// A method, in capitals.
pub(super) fn method(text: &str) -> Result<(), String> {
    if !is_token(text) {
        return fail("is not a method; write one as \"GET\"");
    }
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        return fail(format!(
            "is not a method: methods are in capitals; write {:?}",
            text.to_ascii_uppercase()
        ));
    }
    Ok(())
}

/// A metric label; emptiness is told apart by the route itself.
pub(super) fn route_name(text: &str) -> Result<(), String> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"-_./:".contains(&b);
    if text.len() > 64 || !text.bytes().all(known) {
        return fail("is not a route name; write up to 64 letters, digits and -_./:");
    }
    Ok(())
}

/// An absolute path, with at most one `*`, at the end after a slash.
pub(super) fn route_path(text: &str) -> Result<(), String> {
    let prefix = text.strip_suffix("/*").unwrap_or(text);
    if !text.starts_with('/') {
        return fail(format!(
            "does not start with a slash; write {:?}",
            format!("/{text}")
        ));
    }
    if prefix.contains('*') {
        return fail("has a * that is not at its end after a slash; write a prefix as \"/api/*\"");
    }
    if prefix.contains(['?', '#']) || !prefix.bytes().all(|b| b.is_ascii_graphic()) {
        return fail("is not a path; write it percent-encoded, without query");
    }
    Ok(())
}

/// A path, or empty.
pub(super) fn ready_path(text: &str) -> Result<(), String> {
    if text.is_empty() || (text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic())) {
        return Ok(());
    }
    fail("is not a path; write one as \"/healthz\", or \"\"")
}

/// `problem+json`, `text`, `file:PATH`.
pub(super) fn reject_body(text: &str) -> Result<(), String> {
    match text {
        "problem+json" | "text" => Ok(()),
        "file:" => fail("names no file; write \"file:PATH\""),
        _ if text.starts_with("file:") => any(text),
        _ => {
            let meant = closest(text, ["problem+json", "text"]);
            fail(format!(
                "is not one of problem+json, text, file:PATH{}",
                did_you_mean(meant)
            ))
        }
    }
}

/// A law that can run in another's shadow.
pub(super) fn law(text: &str) -> Result<(), String> {
    match Algorithm::from_word(text) {
        Some(law) if law != Algorithm::Fixed => Ok(()),
        _ => fail("cannot run in another's shadow; write aimd, gradient or vegas"),
    }
}

/// `ip`, `header:Name`, or empty.
pub(super) fn client_key(text: &str) -> Result<(), String> {
    match text.split_once(':') {
        None if matches!(text, "" | "ip") => Ok(()),
        Some(("header", name)) if !name.trim().is_empty() => header_name(name.trim()),
        _ => fail("is neither \"ip\" nor \"header:Name\"; write one of them, or \"\""),
    }
}

/// The address of uWSGI's stats server; nothing if there is none.
pub(super) fn stats_address(text: &str) -> Result<Option<Address>, String> {
    match text {
        "" => Ok(None),
        path if path.starts_with('/') => Ok(Some(Address::Unix(path.into()))),
        _ => match Address::connect(text) {
            Ok(address) => Ok(Some(address)),
            Err(_) => fail("is not an address; write \"host:port\" or \"unix:/path\""),
        },
    }
}

/// The same, as a check.
pub(super) fn stats(text: &str) -> Result<(), String> {
    stats_address(text).map(drop)
}

/// `auto`, `off` or the path of a cgroup.
pub(super) fn cgroup(text: &str) -> Result<(), String> {
    if matches!(text, "auto" | "off") || text.starts_with('/') {
        return any(text);
    }
    let meant = closest(text, ["auto", "off"]);
    fail(format!(
        "is not one of auto, off, nor an absolute path{}",
        did_you_mean(meant)
    ))
}

/// Cores as Kubernetes writes them, or empty.
pub(super) fn cores(text: &str) -> Result<(), String> {
    if text.is_empty() || parse_cores(text).is_some() {
        return Ok(());
    }
    fail("is not a number of cores; write \"2\", \"0.5\" or \"500m\"")
}

/// `2`, `0.5` or `500m`; `None` for anything else.
pub(super) fn parse_cores(text: &str) -> Option<f64> {
    let text = text.trim();
    let (number, scale) = match text.strip_suffix('m') {
        Some(thousandths) => (thousandths, 1e-3),
        None => (text, 1.0),
    };
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let cores = number.parse::<f64>().ok().filter(|_| plain)? * scale;
    (cores > 0.0 && cores <= 1e5).then_some(cores)
}

/// Bytes, or empty.
pub(super) fn memory(text: &str) -> Result<(), String> {
    if text.is_empty() || parse_size(text) > Some(0) {
        return Ok(());
    }
    fail("is not a size; write \"512MiB\"")
}

/// A level, or a tracing filter.
pub(super) fn log_filter(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A lone word is a valid filter too (a target), but here it is a level misspelled.
    let lone = !text.contains(['=', ',', ':', '[']);
    if lone && !LEVELS.contains(&text.to_ascii_lowercase().as_str()) {
        let meant = closest(text, LEVELS);
        return fail(format!(
            "is not one of {}, nor a filter as \"info,tidegate::proxy=debug\"{}",
            LEVELS.join(", "),
            did_you_mean(meant)
        ));
    }
    if text.split(',').all(|part| part.trim().is_empty()) {
        return fail("is not a filter; write one as \"info,tidegate::proxy=debug\"");
    }
    match log_targets(text) {
        Ok(_) => Ok(()),
        Err(error) => fail(format!(
            "is not a filter ({error}); write one as \"info,tidegate::proxy=debug\""
        )),
    }
}

/// Levels by target, with commas between them: `info,tidegate::proxy=debug`. (There are no spans that a filter could
/// name.)
///
/// # Errors
/// When it is none.
pub(crate) fn log_targets(text: &str) -> Result<Targets, ParseError> {
    let parts = text.split(',').map(str::trim);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    // The empty string would be a target, of which everything is a part.
    match &*parts {
        [] => Ok(Targets::new()),
        parts => parts.join(",").parse(),
    }
}

//! What is known of the servers without asking, and what the answers add to it. Pure.

use super::{Answer, Keep, Manners, Quirk, Recognised};
use crate::{
    config::{Profile, Protocol},
    sense::Findings,
};

/// The server: by its process, or else by how it answers.
pub(super) fn recognise(findings: &Findings, manners: &Manners) -> Option<Recognised> {
    if let Some(server) = &findings.ladder.server {
        let version = manners
            .server
            .as_deref()
            .and_then(|field| field.split_once('/'))
            .filter(|(name, _)| name.eq_ignore_ascii_case(server.name))
            .map_or(String::new(), |(_, version)| {
                format!(" {}", version.split(' ').next().unwrap_or_default())
            });
        return Some(Recognised {
            name: format!("{}{version}", server.name),
            profile: server.profile,
            how: format!("by the {} of its process", server.how),
        });
    }
    by_answer(manners)
}

/// The field `Server`, and what the server does with the connection.
fn by_answer(manners: &Manners) -> Option<Recognised> {
    manners.head.as_ref()?;
    let closes = manners.keep == Some(Keep::Closes);
    let says_close = manners
        .announced
        .as_deref()
        .is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let Some(field) = &manners.server else {
        if manners.uwsgi {
            return Some(Recognised {
                name: "uWSGI".to_owned(),
                profile: Profile::Uwsgi,
                how: "by its protocol, and its answers, which have no Server field".to_owned(),
            });
        }
        if let Some(name) = by_limits(manners) {
            return Some(Recognised {
                name: format!("{name}, perhaps"),
                profile: Profile::Generic,
                how: "by its answers: it has no Server field, and these limits of heads".to_owned(),
            });
        }
        // It alone says neither who it is nor that it will close.
        return (closes && !says_close).then(|| Recognised {
            name: "uWSGI, perhaps".to_owned(),
            profile: Profile::Uwsgi,
            how: "by its answer: it has no Server field, and closes without saying so".to_owned(),
        });
    };
    let word = field.split(['/', ' ']).next().unwrap_or_default();
    let lower = word.to_ascii_lowercase();
    let profile = match lower.as_str() {
        "gunicorn" if closes => Profile::GunicornSync,
        "gunicorn" => Profile::GunicornGthread,
        "werkzeug" => Profile::Werkzeug,
        "waitress" => Profile::Waitress,
        "apache" => Profile::ModWsgi,
        _ => Profile::Generic,
    };
    let and = match lower.as_str() {
        "gunicorn" if closes => ", and that it closes after each",
        "gunicorn" => ", and that it keeps connections (threads or greenlets)",
        _ => "",
    };
    Some(Recognised {
        name: field.clone(),
        profile,
        how: format!("by the Server field of its answers{and}"),
    })
}

/// Servers that run inside of the app's own program and do not say who they are: each refuses in a way of
/// its own what is too large.
fn by_limits(manners: &Manners) -> Option<&'static str> {
    let line = manners.line_limit == Some((8_300, Answer::Status(414)));
    let keeps = matches!(manners.keep, Some(Keep::Keeps(_)));
    let many = |code| manners.count_limit == Some((101, Answer::Status(code)));
    let field = manners.field_limit?;
    match field {
        _ if !line || !keeps => None,
        (70_000, Answer::Status(400)) if many(400) => Some("gevent.pywsgi"),
        (8_300, Answer::Status(400)) if many(431) => Some("eventlet"),
        _ => None,
    }
}

/// The habits that matter to a proxy.
pub(super) fn quirks(
    manners: &Manners,
    profile: Profile,
    server: Option<&Recognised>,
    steered: bool,
) -> Vec<Quirk> {
    if manners.head.is_none() {
        return Vec::new();
    }
    let habits = [
        protocol(manners),
        keep_alive(manners, profile, server, steered),
        linger(manners, profile),
        chunked(manners, profile, server),
        expect(manners, server),
        empty_answers(manners, server),
        Some(limits(manners)),
        blocked_by(profile, server),
    ];
    habits.into_iter().flatten().collect()
}

fn quirk(name: &'static str, found: impl Into<String>, then: &str) -> Quirk {
    Quirk {
        name,
        found: found.into(),
        then: then.to_owned(),
    }
}

fn protocol(manners: &Manners) -> Option<Quirk> {
    manners.uwsgi.then(|| {
        quirk(
            "protocol",
            "speaks uWSGI's protocol, not HTTP",
            "backend.protocol = \"uwsgi\"",
        )
    })
}

fn keep_alive(
    manners: &Manners,
    profile: Profile,
    server: Option<&Recognised>,
    steered: bool,
) -> Option<Quirk> {
    let keep = manners.keep?;
    let said = match manners.announced.as_deref() {
        Some(value) => format!("says Connection: {value}"),
        None => "says nothing of it".to_owned(),
    };
    let found = match keep {
        Keep::Closes => format!("closes after each answer ({said})"),
        Keep::Keeps(None) => "keeps connections, for more than 2.5 s when idle".to_owned(),
        Keep::Keeps(Some(idle)) => format!(
            "keeps connections, and closes them when idle for {:.1} s",
            idle.as_secs_f64()
        ),
        Keep::Stale => "leaves connections open, but answers nothing more on them".to_owned(),
    };
    let then = match keep {
        Keep::Closes | Keep::Stale => "a connection for each request, which is tidegate's default",
        _ if keep.idle().is_none() => {
            "tidegate opens one for each request all the same: that is too short for the next one to come along"
        }
        _ if steered => {
            "backend.keepalive = true saves connections here, and a request finds the idle worker at once"
        }
        _ if has_loop(profile, server) => "backend.keepalive = true saves connections here",
        _ => {
            "tidegate opens one for each request all the same: an idle one may hold a worker, and may be closed just when it is used"
        }
    };
    Some(quirk("keep_alive", found, then))
}

fn linger(manners: &Manners, profile: Profile) -> Option<Quirk> {
    let lingers = manners.lingers?;
    let found = match (lingers, profile) {
        (true, Profile::GunicornSync) => {
            "holds its socket after the answer until the client closes, and the worker with it (up to 2 s)"
        }
        (true, _) => "holds its socket after the answer until the client closes",
        (false, _) => "lets go of its socket at once",
    };
    let then = "tidegate closes at once, so no worker waits";
    Some(quirk("linger", found, if lingers { then } else { "" }))
}

fn chunked(manners: &Manners, profile: Profile, server: Option<&Recognised>) -> Option<Quirk> {
    let Some(answer) = manners.chunked else {
        return manners.uwsgi.then(|| {
            quirk(
                "chunked",
                "the protocol has no chunked bodies",
                "tidegate sends a length instead (backend.dechunk)",
            )
        });
    };
    let loses = loses_chunked(profile, server);
    let found = match answer {
        Answer::Status(411) => "refuses chunked bodies with 411".to_owned(),
        Answer::Status(code) if code >= 400 && manners.usual != Some(answer) => {
            format!("answers a chunked body with {code}")
        }
        Answer::Status(_) if loses => {
            "accepts a chunked body, but this server hands the app an empty one (known, not asked)"
                .to_owned()
        }
        Answer::Status(_) => "accepts chunked bodies".to_owned(),
        other => format!("a chunked body: {other}"),
    };
    let as_usual = Some(answer) == manners.usual;
    let harmless = (as_usual || matches!(answer, Answer::Status(..400))) && !loses;
    let then = "tidegate sends a Content-Length instead (backend.dechunk)";
    Some(quirk("chunked", found, if harmless { "" } else { then }))
}

fn expect(manners: &Manners, server: Option<&Recognised>) -> Option<Quirk> {
    let found = match manners.continues? {
        0 if continues_on_read(server) => {
            "sends 100 Continue when the app reads the body (known, not asked)".to_owned()
        }
        0 => "sends no 100 Continue before the app reads the body".to_owned(),
        1 => "sends 100 Continue".to_owned(),
        more => format!("sends 100 Continue {more} times"),
    };
    let then = "tidegate answers Expect itself, once the request is admitted";
    Some(quirk("expect_100", found, then))
}

fn empty_answers(manners: &Manners, server: Option<&Recognised>) -> Option<Quirk> {
    let fails = server.is_some_and(|server| server.is("hypercorn"))
        && manners.usual == Some(Answer::Status(500))
        && matches!(manners.looked(), Some(Answer::Status(..400)));
    let found = "answers 500 where a WSGI app's answer has no body: HEAD, 204, OPTIONS";
    fails.then(|| quirk("empty_answers", found, ""))
}

fn limits(manners: &Manners) -> Quirk {
    let each = [
        ("a request line", "bytes", manners.line_limit),
        ("a field", "bytes", manners.field_limit),
        ("", "fields", manners.count_limit),
    ];
    let parts: Vec<String> = each
        .iter()
        .filter_map(|(what, unit, limit)| {
            let (size, answer) = (*limit)?;
            let what = if what.is_empty() {
                String::new()
            } else {
                format!("{what} of ")
            };
            Some(format!("{what}{size} {unit} ({answer})"))
        })
        .collect();
    let silent = each
        .iter()
        .any(|(.., limit)| matches!(limit, Some((_, Answer::Closed))));
    let then = if silent {
        "tidegate answers in its place, with 414 or 431, once it knows the server"
    } else {
        ""
    };
    let found = if parts.is_empty() {
        let most = match manners.protocol() {
            Protocol::Http => "70,000 bytes of a line or a field",
            Protocol::Uwsgi => "a field of 60,000 bytes",
        };
        format!("takes all that was tried: {most}, 201 fields")
    } else {
        format!("does not take {}", parts.join(", nor "))
    };
    quirk("header_limits", found, then)
}

fn blocked_by(profile: Profile, server: Option<&Recognised>) -> Option<Quirk> {
    let what = blocks(profile, server)?;
    Some(quirk(
        "blocked_by",
        format!("a worker is held by {what} (known, not asked)"),
        "tidegate reads requests whole before it connects, and takes answers at the worker's speed: as far as [buffers] goes",
    ))
}

/// Servers whose applications get an empty body when the client sent a chunked one.
fn loses_chunked(profile: Profile, server: Option<&Recognised>) -> bool {
    // Of gunicorn's workers that is tornado's; of the others, those for which WSGI is a guest.
    const KNOWN: [&str; 5] = [
        "gunicorn",
        "hypercorn",
        "uvicorn",
        "eventlet",
        "TornadoServer",
    ];
    match profile {
        Profile::Uwsgi => true,
        Profile::Generic => is_one_of(server, &KNOWN),
        _ => false,
    }
}

/// Servers that invite a body only when the application asks for it.
fn continues_on_read(server: Option<&Recognised>) -> bool {
    is_one_of(server, &["gevent.pywsgi", "eventlet", "granian", "uvicorn"])
}

/// Servers with an event loop, to which an idle connection is nothing.
pub(super) fn has_loop(profile: Profile, server: Option<&Recognised>) -> bool {
    const KNOWN: [&str; 6] = [
        "bjoern",
        "gevent.pywsgi",
        "eventlet",
        "granian",
        "hypercorn",
        "uvicorn",
    ];
    match profile {
        Profile::Waitress | Profile::GunicornGevent => true,
        Profile::Generic => is_one_of(server, &KNOWN),
        _ => false,
    }
}

/// Servers without a profile that take more connections than they can work on.
pub(super) fn accepts_eagerly(server: Option<&Recognised>) -> bool {
    const KNOWN: [&str; 6] = [
        "cheroot",
        "eventlet",
        "gevent.pywsgi",
        "granian",
        "hypercorn",
        "uvicorn",
    ];
    is_one_of(server, &KNOWN)
}

fn is_one_of(server: Option<&Recognised>, names: &[&str]) -> bool {
    server.is_some_and(|server| names.iter().any(|name| server.is(name)))
}

/// What holds a worker without any work to do.
fn blocks(profile: Profile, server: Option<&Recognised>) -> Option<&'static str> {
    const ALL: &str = "an idle connection, a slow head, a slow body and a slow reader";
    match profile {
        Profile::GunicornSync | Profile::GunicornGthread => Some(ALL),
        Profile::Generic if is_one_of(server, &["cheroot"]) => Some(ALL),
        Profile::Uwsgi => Some("a slow head, a slow body and a slow reader"),
        Profile::ModWsgi => Some("a slow body and a slow reader"),
        Profile::Generic if is_one_of(server, &["granian"]) => {
            Some("a slow body and a slow reader")
        }
        Profile::Generic if is_one_of(server, &["hypercorn"]) => Some("a slow reader"),
        Profile::Generic if is_one_of(server, &["uvicorn"]) => Some("a slow body"),
        _ => None,
    }
}

//! What of the configuration may be shown to whoever can connect.

use super::{load::Loaded, resolve::Setting, typed::Typed};

/// What is shown in the place of a secret.
const HIDDEN: &str = "***";
/// An option or a variable with one of these in its name is a secret.
const NAMES: [&str; 6] = ["password", "passwd", "passphrase", "secret", "token", "key"];

impl Loaded {
    /// The same to be shown: of `process.command`, arguments that look like a secret are hidden. No other key
    /// holds one.
    #[must_use]
    pub fn without_secrets(&self) -> Loaded {
        const COMMAND: &str = "process.command";
        let mut shown = self.clone();
        if let Setting {
            value: Typed::Texts(command),
            ..
        } = self.settings.get(COMMAND)
        {
            shown.settings.refine(COMMAND, Typed::Texts(hide(command)));
        }
        shown
    }
}

/// A command as it may be shown. Hides too much rather than too little: a value goes to the end of its argument.
pub fn hide(command: &[String]) -> Vec<String> {
    let mut is_value = false;
    let mut shown = Vec::with_capacity(command.len());
    for argument in command {
        let (text, value_follows) = hide_in(argument);
        shown.push(if is_value { HIDDEN.to_owned() } else { text });
        // What follows `--password` is one even if it begins with a dash.
        is_value = value_follows;
    }
    shown
}

/// An argument as it is shown, and whether the next is the value of a secret option.
fn hide_in(argument: &str) -> (String, bool) {
    let mut from = 0;
    // Words, for an argument may be a whole command of a shell's.
    for word in argument.split_inclusive(|c: char| c.is_whitespace() || c == '=') {
        let name = word.trim_end_matches(|c: char| c.is_whitespace() || c == '=');
        let is_assigned = word.ends_with('=');
        from += word.len();
        if is_secret(name) && (is_assigned || name.starts_with('-')) {
            let shown = without_users(&argument[..from]);
            return match from == argument.len() && !is_assigned {
                true => (shown, true),
                false => (shown + HIDDEN, false),
            };
        }
    }
    (without_users(argument), false)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|secret| name.contains(secret))
}

/// `scheme://user:password@host` without user and password.
fn without_users(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + "://".len());
        shown.push_str(before);
        // A password may have slashes, whatever the standard says.
        let end = after
            .find(|c: char| c.is_whitespace() || "\"'".contains(c))
            .unwrap_or(after.len());
        let end = after[..end].find("://").unwrap_or(end);
        rest = match after[..end].rfind('@') {
            Some(user) => {
                shown.push_str(HIDDEN);
                &after[user..]
            }
            None => after,
        };
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, Value, load};

    #[test]
    fn secrets_of_a_command_are_hidden_and_the_rest_is_shown() {
        for (command, expected) in [
            (
                &["gunicorn", "--bind", "{addr}", "app:app"][..],
                &["gunicorn", "--bind", "{addr}", "app:app"][..],
            ),
            (
                &["x", "--db-password=a=b c", "-w", "4"],
                &["x", "--db-password=***", "-w", "4"],
            ),
            (
                &["x", "--Auth-Token", "-abc", "--port", "1"],
                &["x", "--Auth-Token", "***", "--port", "1"],
            ),
            (
                &["env", "SECRET_KEY=abc", "HOME=/root", "x"],
                &["env", "SECRET_KEY=***", "HOME=/root", "x"],
            ),
            (
                &["sh", "-c", "API_KEY=a exec x --port 1"],
                &["sh", "-c", "API_KEY=***"],
            ),
            (
                &["sh", "-c", "exec x --token abc --port 1"],
                &["sh", "-c", "exec x --token ***"],
            ),
            (
                &[
                    "x",
                    "--db=postgres://u:p/@s@db/app",
                    "redis://:p@r1,redis://:p@r2",
                ],
                &[
                    "x",
                    "--db=postgres://***@db/app",
                    "redis://***@r1,redis://***@r2",
                ],
            ),
            (
                &["x", "http://h/?token=abc", "--password"],
                &["x", "http://h/?token=***", "--password"],
            ),
        ] {
            let command: Vec<_> = command.iter().map(|&part| part.to_owned()).collect();
            assert_eq!(hide(&command), expected);
        }
    }

    #[test]
    fn what_is_shown_is_hidden_in_either_form_and_what_runs_is_not() {
        let command = Value::Bare("x,--password,hunter2".to_owned());
        let loaded = load(&Sources {
            flags: vec![("process.command".to_owned(), "--set".to_owned(), command)],
            ..Sources::default()
        })
        .expect("it is valid");
        let shown = loaded.without_secrets();
        let forms = |of: &Loaded| [of.render_toml(), of.to_json().to_string()];
        assert!(forms(&shown).iter().all(|form| !form.contains("hunter2")));
        assert!(forms(&shown).iter().all(|form| form.contains("***")));
        assert!(forms(&loaded).iter().all(|form| form.contains("hunter2")));
        assert_eq!(shown.config, loaded.config);
    }
}

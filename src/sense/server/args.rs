//! Command lines, taken apart far enough to find an option in them.

/// The arguments of a server's program, without the interpreter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The program's name without directories, or the module of `python -m`.
    pub program: String,
    /// What follows it.
    pub rest: Vec<String>,
}

impl Args {
    /// Of a whole command: `python3 /venv/bin/gunicorn -w 2` is `gunicorn` with `-w 2`.
    pub fn of_command(command: &[String]) -> Self {
        let mut words = command.iter().map(String::as_str).peekable();
        let Some(first) = words.next() else {
            return Self::default();
        };
        // A process title is one word of many: `httpd (mod_wsgi-express)`.
        let mut program = base(first).split_whitespace().next().unwrap_or_default();
        if is_python(program) {
            // Options of the interpreter; -X, -W and -Q take a word.
            while let Some(option) = words.peek().copied().filter(|word| word.starts_with('-')) {
                words.next();
                if option == "-m" {
                    break;
                }
                if matches!(option, "-X" | "-W" | "-Q") {
                    words.next();
                }
            }
            program = words.next().map_or(program, base);
        }
        Self {
            program: program.strip_suffix(".py").unwrap_or(program).to_owned(),
            rest: words.map(str::to_owned).collect(),
        }
    }

    /// Of the text of a variable such as `GUNICORN_CMD_ARGS`.
    pub fn of_text(text: &str) -> Self {
        Self {
            program: String::new(),
            rest: split(text),
        }
    }

    /// The last value given for an option: `--workers 4`, `--workers=4`, `-w 4`, `-w4`.
    pub fn value(&self, names: &[&str]) -> Option<&str> {
        let mut found = None;
        let mut words = self.rest.iter().map(String::as_str);
        while let Some(word) = words.next() {
            for name in names {
                if word == *name {
                    found = words.clone().next().or(found);
                } else if let Some(rest) = word.strip_prefix(name) {
                    if let Some(value) = rest.strip_prefix('=') {
                        found = Some(value);
                    } else if name.len() == 2 {
                        found = Some(rest);
                    }
                }
            }
        }
        found
    }

    /// Whether an option without a value is given.
    pub fn has(&self, names: &[&str]) -> bool {
        self.rest.iter().any(|word| names.contains(&word.as_str()))
    }
}

/// The last part of a path.
fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_python(program: &str) -> bool {
    let version = program
        .strip_prefix("python")
        .or_else(|| program.strip_prefix("pypy"));
    version.is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

/// Splits as a shell would: at blanks, but for what is quoted.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(command: &str) -> Args {
        Args::of_command(&split(command))
    }

    #[test]
    fn the_interpreter_is_not_the_program() {
        let program = |command: &str| args(command).program;
        assert_eq!(
            program("/usr/bin/python3.12 /venv/bin/gunicorn -w 2"),
            "gunicorn"
        );
        assert_eq!(program("python -m waitress --port 1 x:app"), "waitress");
        assert_eq!(program("python3 -X dev -u app.py"), "app");
        assert_eq!(program("/usr/sbin/uwsgi --ini x"), "uwsgi");
        assert_eq!(program("python3"), "python3");
        assert_eq!(program(""), "");
        assert_eq!(program("pythonista"), "pythonista");
        let titled = ["granian wsgi 127.0.0.1:80 a:a worker-1   ".to_owned()];
        assert_eq!(Args::of_command(&titled).program, "granian");
    }

    #[test]
    fn the_last_value_of_an_option_counts() {
        let args =
            args("gunicorn -w2 --threads=4 -k gthread --workers 3 -b :80 --log-file=- app:app");
        assert_eq!(args.value(&["-w", "--workers"]), Some("3"));
        assert_eq!(args.value(&["--threads"]), Some("4"));
        assert_eq!(args.value(&["-k", "--worker-class"]), Some("gthread"));
        assert_eq!(args.value(&["--thread"]), None);
        assert_eq!(args.value(&["-c"]), None);
        assert!(!args.has(&["--log-file"]) && args.has(&["app:app"]));
    }

    #[test]
    fn variables_are_split_as_by_a_shell() {
        assert_eq!(
            split(r#"--bind=a  -c 'my conf.py' --x="a \" b" ''"#),
            ["--bind=a", "-c", "my conf.py", "--x=a \" b", ""]
        );
        assert!(split("  ").is_empty());
    }
}

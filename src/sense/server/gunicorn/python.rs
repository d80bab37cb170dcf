//! As much of Python as tells what a configuration file sets a name to: read for certain, or not at all.

use super::Setting;

/// Whoever calls one of these may set any name.
const REFLECTION: [&str; 5] = ["exec", "globals", "locals", "setattr", "vars"];
/// What sets names without an `=`.
const BINDING: [&str; 10] = [
    "as", "case", "class", "def", "del", "except", "for", "from", "import", "with",
];
/// What may have statements behind its colon, on the same line.
const COMPOUND: [&str; 12] = [
    "async", "class", "def", "elif", "else", "except", "finally", "for", "if", "try", "while",
    "with",
];
/// Signs with an `=` in them.
const SIGNS: [&str; 18] = [
    "**=", "//=", ">>=", "<<=", "==", "!=", "<=", ">=", ":=", "+=", "-=", "*=", "/=", "%=", "@=",
    "&=", "|=", "^=",
];

/// What a Python file sets a name to, if it is a number or a plain string under all circumstances.
pub(super) fn assigned(text: &str, name: &str) -> Setting {
    let mut found = Setting::Unset;
    for statement in statements(text) {
        if statement.may_set_anything() || statement.is_global(name) {
            return Setting::Computed;
        }
        found = statement.sets(name).unwrap_or(found);
    }
    found
}

/// A piece of a statement. Comments are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A name, a keyword, or a number without a point.
    Word(&'a str),
    /// A string with its prefix and quotes.
    Text(&'a str),
    Sign(&'a str),
}

use Token::{Sign, Text, Word};

#[derive(Debug)]
struct Statement<'a> {
    /// Whether it is under a condition, or in a function.
    nested: bool,
    tokens: Vec<Token<'a>>,
}

impl Statement<'_> {
    fn may_set_anything(&self) -> bool {
        let reflects = |pair: &[Token<'_>]| match *pair {
            [Word(name), Sign("(")] => REFLECTION.contains(&name),
            [Word("import"), Sign("*")] => true,
            _ => false,
        };
        self.tokens.windows(2).any(reflects) || self.tokens.contains(&Word("__dict__"))
    }

    /// Whether a function says that it sets this name, whenever it is called.
    fn is_global(&self, name: &str) -> bool {
        self.tokens.first() == Some(&Word("global")) && self.tokens.contains(&Word(name))
    }

    /// What it sets a name to; `None` if it leaves it alone.
    fn sets(&self, name: &str) -> Option<Setting> {
        let parts = split(&self.tokens, "=");
        let (value, targets) = parts.split_last()?;
        let mut set = targets.iter().rev();
        let Some(target) = set.find(|target| target.contains(&Word(name))) else {
            let by_keyword = targets.is_empty();
            return self.binds(name, by_keyword).then_some(Setting::Computed);
        };
        let known = element(target, value, name).filter(|_| !self.nested);
        Some(known.map_or(Setting::Computed, Setting::Known))
    }

    /// Whether it sets a name without `=`: by `+=` or `:=`, or by a keyword.
    fn binds(&self, name: &str, by_keyword: bool) -> bool {
        let augments = |pair: &[Token<'_>]| match *pair {
            [Word(set), Sign(sign)] if set == name => {
                SIGNS.contains(&sign) && !["==", "!=", "<=", ">="].contains(&sign)
            }
            _ => false,
        };
        // `server.workers` is another.
        let is_free = |pair: &[Token<'_>]| matches!(*pair, [before, Word(word)] if word == name && before != Sign("."));
        let is_keyword = |token: &Token<'_>| matches!(token, Word(word) if BINDING.contains(word));
        self.tokens.windows(2).any(augments)
            || (by_keyword
                && self.tokens.iter().any(is_keyword)
                && self.tokens.windows(2).any(is_free))
    }
}

/// What an assignment sets a name to whose target is `name`, `name: int`, or `other, name`.
fn element(target: &[Token<'_>], value: &[Token<'_>], name: &str) -> Option<String> {
    let names = match *split(target, ":") {
        [names] => split(names, ","),
        [name, _annotation] => vec![name],
        _ => return None,
    };
    let values = match *names {
        [_] => vec![value],
        _ => split(value, ","),
    };
    let plain = names.iter().all(|name| matches!(name, [Word(_)]));
    let starred = values.iter().any(|value| value.first() == Some(&Sign("*")));
    if !plain || starred || names.len() != values.len() {
        return None;
    }
    let at = names.iter().rposition(|one| **one == [Word(name)])?;
    literal(values.get(at)?)
}

/// A number or a plain string.
fn literal(value: &[Token<'_>]) -> Option<String> {
    match *value {
        [Word(word)] if word.bytes().all(|byte| byte.is_ascii_digit()) => Some(word.to_owned()),
        [Text(text)] => {
            let within = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
            let inside = within('"').or_else(|| within('\''))?;
            // Escapes, and the quotes of a long string.
            let plain = !inside.contains(['\\', '"', '\'']);
            plain.then(|| inside.to_owned())
        }
        _ => None,
    }
}

/// The parts between signs that are not within brackets.
fn split<'t, 'a>(tokens: &'t [Token<'a>], sign: &str) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0;
    let between = tokens.split(|token| {
        depth = depth_after(depth, *token);
        depth == 0 && *token == Sign(sign)
    });
    between.collect()
}

fn depth_after(depth: usize, token: Token<'_>) -> usize {
    match token {
        Sign("(" | "[" | "{") => depth + 1,
        Sign(")" | "]" | "}") => depth.saturating_sub(1),
        _ => depth,
    }
}

/// The statements of a file: lines that go on in brackets or after a backslash are joined, those with `;` split.
fn statements(text: &str) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut tokens = Vec::new();
    let mut depth = 0;
    // Not known before the first token of a line.
    let mut nested = None;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let ends = depth == 0 && matches!(first, '\n' | ';');
        if ends {
            let nested_here = nested.unwrap_or_default();
            // What follows a condition on its line is under it.
            let condition = matches!(tokens.first(), Some(Word(word)) if COMPOUND.contains(word));
            nested = (first == ';').then_some(nested_here || condition);
            found.push(Statement {
                nested: nested_here,
                tokens: std::mem::take(&mut tokens),
            });
        }
        let passed = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            // Only the end of the line may follow.
            '\\' => rest.find('\n').map_or(rest.len(), |at| at + 1),
            _ if ends || first.is_whitespace() => first.len_utf8(),
            _ => 0,
        };
        if passed == 0 {
            let (token, length) = token(rest);
            let at = text.len() - rest.len();
            nested.get_or_insert_with(|| at > 0 && !text[..at].ends_with('\n'));
            depth = depth_after(depth, token);
            tokens.push(token);
            rest = &rest[length..];
        } else {
            rest = &rest[passed..];
        }
    }
    found.push(Statement {
        nested: nested.unwrap_or_default(),
        tokens,
    });
    found
}

/// The first token of a text that begins with one, and how long it is.
fn token(text: &str) -> (Token<'_>, usize) {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let word = text.find(|c| !is_part(c)).unwrap_or(text.len());
    // A prefix such as `rb`.
    if word <= 2
        && let Some(length) = string(&text[word..])
    {
        return (Text(&text[..word + length]), word + length);
    }
    if word > 0 {
        return (Word(&text[..word]), word);
    }
    let sign = SIGNS.iter().find(|sign| text.starts_with(**sign));
    let one = || text.chars().next().map_or(0, char::len_utf8);
    let length = sign.map_or_else(one, |sign| sign.len());
    (Sign(&text[..length]), length)
}

/// How long the string is that a text begins with; one without an end ends with its line, a long one with the text.
fn string(text: &str) -> Option<usize> {
    let quotes = [r#"""""#, "'''", "\"", "'"];
    let quote = quotes.into_iter().find(|quote| text.starts_with(quote))?;
    let mut at = quote.len();
    while let Some(next) = text[at..].chars().next() {
        if text[at..].starts_with(quote) {
            return Some(at + quote.len());
        }
        if next == '\n' && quote.len() == 1 {
            return Some(at);
        }
        at += next.len_utf8();
        if next == '\\' {
            at += text[at..].chars().next().map_or(0, char::len_utf8);
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Setting {
        Setting::Known(text.to_owned())
    }

    #[test]
    fn a_configuration_file_is_believed_where_it_is_plain() {
        let cases = [
            ("workers = 4", known("4")),
            ("workers=4  # two a core", known("4")),
            ("workers = '3'", known("3")),
            ("workers = 2\nworkers = 5", known("5")),
            ("workers = f()\r\nworkers = 5\r\n", known("5")),
            ("workers: int = 4", known("4")),
            ("workers: 'int' = \"4\"", known("4")),
            ("workers = threads = 4", known("4")),
            ("threads = workers = 4", known("4")),
            ("workers, threads = 4, 8", known("4")),
            ("threads, workers = 8, 4", known("4")),
            ("threads, workers = f(1, 2), 4", known("4")),
            ("a = threads, workers = 8, 4", known("4")),
            ("x = 1; workers = 4; y = {'a': 1}", known("4")),
            ("workers = \\\n    4", known("4")),
            ("if x:\n    y = 1\nworkers = 4", known("4")),
            ("x = f(\n    workers=9,\n)\nworkers = 4", known("4")),
            ("workers = 4\nthreads = workers * 2", known("4")),
            (
                "workers = 4\nprint(f'{workers}', workers, end='')",
                known("4"),
            ),
            ("workers = 4\nassert workers >= 2", known("4")),
            ("workers = 4\nfor w in server.workers: print(w)", known("4")),
            ("workers_max = 9", Setting::Unset),
            ("# workers = 9", Setting::Unset),
            ("\"\"\"\nworkers = 9\n\"\"\"", Setting::Unset),
            (
                "x = 'it\\'s'; y = \"\"\"a\\\"\"\"\"\nz = '#'",
                Setting::Unset,
            ),
            ("dict(\nworkers=9\n)", Setting::Unset),
            ("workers == 2", Setting::Unset),
            ("workers: int", Setting::Unset),
            ("", Setting::Unset),
        ];
        for (text, expected) in cases {
            assert_eq!(assigned(text, "workers"), expected, "{text:?}");
        }
    }

    #[test]
    fn what_only_python_knows_is_not_guessed() {
        for text in [
            "if x:\n    workers = 9",
            "if x: workers = 9",
            "if x: y = 1; workers = 9",
            "try: x = 1; workers = 9\nexcept E: pass",
            "else: workers = 9",
            "def f():\n    global workers\nworkers = 9",
            "workers = cpu_count() * 2 + 1",
            "workers = 2\nworkers *= 2",
            "workers = 2\nworkers //= 2",
            "workers = '2' + x",
            "workers = '2' '3'",
            "workers = '\\x32'",
            "workers = '''2'''",
            "workers = b'2'",
            "workers = 2,",
            "workers, = 2,",
            "workers = 2.5",
            "workers = -2",
            "workers = 1_0",
            "workers = 4 if x else 8",
            "workers: int = f()",
            "threads, workers = 8, f()",
            "threads, workers = f()",
            "threads, workers = *x, 4",
            "threads, *workers = 8, 4",
            "(threads, workers) = 8, 4",
            "x = (workers := 4)",
            "print(workers := 4)",
            "import workers",
            "from base import workers",
            "from base import (\n    threads,\n    workers,\n)",
            "import base as workers",
            "for workers in range(4): pass",
            "with f() as workers:\n    pass",
            "def workers(): pass",
            "workers = 4\ndel workers",
            "sys.modules[__name__].workers = 4",
            "\u{feff}workers = 4",
            "workers = (",
        ] {
            assert_eq!(assigned(text, "workers"), Setting::Computed, "{text:?}");
        }
        for reflects in [
            "from base_conf import *",
            "try:\n    from local import *\nexcept ImportError:\n    pass",
            "exec(open('base.py').read())",
            "globals()['workers'] = 4",
            "globals().update(load())",
            "setattr(sys.modules[__name__], 'workers', 4)",
            "sys.modules[__name__].__dict__.update(load())",
        ] {
            for text in [
                format!("{reflects}\nworkers = 4\n"),
                format!("workers = 4\n{reflects}\n"),
            ] {
                assert_eq!(assigned(&text, "workers"), Setting::Computed, "{text:?}");
                assert_eq!(assigned(&text, "threads"), Setting::Computed, "{text:?}");
            }
        }
        let quoted = "workers = 4\nx = 'exec(y)'  # globals()";
        assert_eq!(assigned(quoted, "workers"), known("4"));
    }
}

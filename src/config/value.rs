//! A value as it was given, before its key says what it must be.

use std::fmt;

use toml::de::DeValue;

use super::origin::Position;

/// A value as it was given, before its key says what it must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text of an environment variable or a flag: it is read as its key needs it.
    Bare(String),
    /// `true`, `false`
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a point.
    Float(f64),
    /// A string.
    String(String),
    /// An array.
    List(Vec<Item>),
    /// What no key takes: a date, a table, a number beyond all ranges. Holds its name for messages.
    Other(String),
}

/// One element of an array.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The element.
    pub value: Value,
    /// Where it starts, if it came from a file.
    pub position: Option<Position>,
}

impl Value {
    /// A list of strings, as flags give it.
    pub fn strings<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Value {
        let item = |text: S| Item {
            value: Value::String(text.into()),
            position: None,
        };
        Value::List(texts.into_iter().map(item).collect())
    }

    /// From parsed TOML; `locate` turns a byte offset into a position.
    pub(super) fn from_toml(
        value: &DeValue<'_>,
        locate: &dyn Fn(usize) -> Option<Position>,
    ) -> Value {
        match value {
            DeValue::String(text) => Value::String(text.clone().into_owned()),
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Value::Other(number.to_string()), Value::Integer),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .map_or_else(|_| Value::Other(number.to_string()), Value::Float),
            DeValue::Boolean(flag) => Value::Bool(*flag),
            DeValue::Datetime(_) => Value::Other("a date".to_owned()),
            DeValue::Array(items) => {
                let item = |item: &toml::Spanned<DeValue<'_>>| Item {
                    value: Value::from_toml(item.get_ref(), locate),
                    position: locate(item.span().start),
                };
                Value::List(items.iter().map(item).collect())
            }
            DeValue::Table(_) => Value::Other("a table".to_owned()),
        }
    }

    /// One TOML value, as in `--set key=VALUE`; None when it isn't one.
    pub(super) fn parse(text: &str) -> Option<Value> {
        let value = DeValue::parse(text).ok()?;
        Some(Value::from_toml(value.get_ref(), &|_| None))
    }
}

impl fmt::Display for Value {
    /// For messages: short, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bare(text) | Value::String(text) => {
                let short: String = text.chars().take(80).collect();
                let more = if short.len() < text.len() { "..." } else { "" };
                f.write_str(&quote(&(short + more)))
            }
            Value::Bool(flag) => write!(f, "{flag}"),
            Value::Integer(number) => write!(f, "{number}"),
            Value::Float(number) => write!(f, "{number:?}"),
            Value::List(_) => f.write_str("a list"),
            Value::Other(what) => f.write_str(what),
        }
    }
}

/// A TOML basic string.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_quoted_string_is_read_back(text: String) {
            prop_assert_eq!(Value::parse(&quote(&text)), Some(Value::String(text)));
        }

        #[test]
        fn no_text_panics(text: String) {
            Value::parse(&text);
        }
    }
}

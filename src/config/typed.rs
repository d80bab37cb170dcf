//! A value that is what its key takes: the kinds of the schema, applied.

use std::{fmt, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::{
    address::{Address, AddressError},
    check::Check,
    origin::Position,
    problem::{closest, did_you_mean},
    schema::{Key, Kind},
    units::{format_duration, format_size, parse_duration, parse_size},
    value::{Item, Value, quote},
};

/// A value that is what its key takes. Two are equal when they mean the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Typed {
    Bool(bool),
    Integer(u64),
    Float(f64),
    Duration(Duration),
    Size(u64),
    Text(String),
    Texts(Vec<String>),
    Address(Address),
    Addresses(Vec<Address>),
    Networks(Vec<IpNet>),
}

/// Why a value is not what its key takes; in a list, with the element's own place.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) position: Option<Position>,
    pub(super) message: String,
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Fault {
            position: None,
            message,
        }
    }
}

/// The default of a key.
pub(super) fn default(key: &Key) -> Typed {
    let value = Value::Bare(key.default.to_owned());
    typed(&key.kind, &value).unwrap_or_else(|faults| {
        unreachable!("the default of {} fits its kind: {faults:?}", key.path)
    })
}

/// Turns what was given into what the kind takes.
pub(super) fn typed(kind: &Kind, given: &Value) -> Result<Typed, Vec<Fault>> {
    let value = unwrap_bare(kind, given)?;
    let value = &value;
    let one = |result: Result<Typed, String>| result.map_err(|message| vec![message.into()]);
    match *kind {
        Kind::Bool => one(match value {
            Value::Bool(flag) => Ok(Typed::Bool(*flag)),
            _ => Err(format!("{value} is not a boolean; write true or false")),
        }),
        Kind::Integer(min, max) => one(integer(value, min, max, "")),
        Kind::AutoOrInteger(min, max) => one(match value {
            Value::String(text) if text == "auto" => Ok(Typed::Text(text.clone())),
            _ => integer(value, min, max, "\"auto\" or "),
        }),
        Kind::Numbers(allowed) => one(match value {
            Value::Integer(n) if allowed.iter().any(|one| i128::from(*one) == *n) => {
                Ok(Typed::Integer(u64::try_from(*n).unwrap_or_default()))
            }
            _ => {
                let all: Vec<_> = allowed.iter().map(u64::to_string).collect();
                Err(format!("{value} is not one of {}", all.join(", ")))
            }
        }),
        Kind::Float(min, max) => one(float(value, min, max)),
        Kind::Duration(min, max) => one(duration(value, min, max)),
        Kind::WordOrDuration(words) => one(match value {
            Value::String(text) if words.contains(&text.as_str()) => Ok(Typed::Text(text.clone())),
            Value::String(text) if parse_duration(text).is_some() => {
                duration(value, Duration::ZERO, Duration::from_secs(24 * 60 * 60))
            }
            _ => {
                let meant = match value {
                    Value::String(text) => closest(text, words.iter().copied()),
                    _ => None,
                };
                let all = words.join(", ");
                let hint = did_you_mean(meant);
                Err(format!(
                    "{value} is not one of {all}, a duration as \"5s\"{hint}"
                ))
            }
        }),
        Kind::Size(min, max) => one(size(value, min, max)),
        Kind::Enum(words) => one(word(value, words)),
        Kind::Text(check) => one(checked(value, check).map(Typed::Text)),
        Kind::Texts(check) => list(value, |item| checked(item, check)).map(Typed::Texts),
        Kind::Listen => one(match value {
            Value::Bool(word) => address(&Value::String(word.to_string()), Address::bind),
            value => address(value, Address::bind),
        }
        .map(Typed::Address)),
        Kind::Listens => list(value, |item| address(item, Address::listen))
            .and_then(some)
            .map(Typed::Addresses),
        Kind::Endpoints => list(value, |item| address(item, Address::connect))
            .and_then(some)
            .map(Typed::Addresses),
        Kind::Networks => list(value, network).map(Typed::Networks),
    }
}

/// Reads the text of a variable or a flag as the kind needs it.
fn unwrap_bare(kind: &Kind, given: &Value) -> Result<Value, Vec<Fault>> {
    let Value::Bare(text) = given else {
        return Ok(given.clone());
    };
    let trimmed = text.trim();
    match kind {
        Kind::Texts(_) | Kind::Listens | Kind::Endpoints | Kind::Networks => {
            // "[::1]:80" is an address, not an array.
            let bracket = match kind {
                Kind::Listens | Kind::Endpoints => {
                    let inner = trimmed.strip_prefix('[').map(str::trim_start);
                    inner.is_some_and(|inner| inner.starts_with(['"', '\'', ']']))
                }
                _ => trimmed.starts_with('['),
            };
            if bracket {
                return Value::parse(trimmed).ok_or_else(|| {
                    let message =
                        format!("{given} is not a TOML array; write [\"a\", \"b\"] or a,b");
                    vec![message.into()]
                });
            }
            let parts = trimmed
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            Ok(Value::strings(parts))
        }
        Kind::Bool
        | Kind::Integer(..)
        | Kind::AutoOrInteger(..)
        | Kind::Numbers(_)
        | Kind::Float(..)
        | Kind::Size(..) => {
            Ok(Value::parse(trimmed).unwrap_or_else(|| Value::String(trimmed.to_owned())))
        }
        Kind::Text(_)
        | Kind::Enum(_)
        | Kind::Duration(..)
        | Kind::WordOrDuration(_)
        | Kind::Listen => {
            let quoted = trimmed
                .starts_with(['"', '\''])
                .then(|| Value::parse(trimmed))
                .flatten();
            Ok(quoted.unwrap_or_else(|| Value::String(text.clone())))
        }
    }
}

fn integer(value: &Value, min: u64, max: u64, or: &str) -> Result<Typed, String> {
    match value {
        Value::Integer(n) => match u64::try_from(*n) {
            Ok(n) if (min..=max).contains(&n) => Ok(Typed::Integer(n)),
            _ => Err(format!(
                "{n} is out of range; write {or}a whole number from {min} to {max}"
            )),
        },
        _ => Err(format!(
            "{value} is not a whole number; write {or}one from {min} to {max}"
        )),
    }
}

fn float(value: &Value, min: f64, max: f64) -> Result<Typed, String> {
    let number = match value {
        Value::Float(number) => *number,
        #[expect(clippy::cast_precision_loss, reason = "far beyond every range")]
        Value::Integer(number) => *number as f64,
        _ => {
            return Err(format!(
                "{value} is not a number; write one from {min:?} to {max:?}"
            ));
        }
    };
    // Not `number < min || number > max`: NaN is out of range too. And -0.0 is 0.0.
    if (min..=max).contains(&number) {
        Ok(Typed::Float(number + 0.0))
    } else {
        Err(format!(
            "{value} is out of range; write a number from {min:?} to {max:?}"
        ))
    }
}

fn duration(value: &Value, min: Duration, max: Duration) -> Result<Typed, String> {
    let parsed = match value {
        Value::String(text) => parse_duration(text),
        _ => None,
    };
    match parsed {
        Some(duration) if (min..=max).contains(&duration) => Ok(Typed::Duration(duration)),
        Some(_) => Err(format!(
            "{value} is out of range; write a duration from \"{}\" to \"{}\"",
            format_duration(min),
            format_duration(max)
        )),
        None => Err(format!(
            "{value} is not a duration; write a number with a unit, as \"500ms\" or \"5s\""
        )),
    }
}

fn size(value: &Value, min: u64, max: u64) -> Result<Typed, String> {
    let parsed = match value {
        Value::Integer(bytes) => match u64::try_from(*bytes) {
            Ok(bytes) => Some(bytes),
            Err(_) => return Err(format!("{bytes} is out of range; {}", size_range(min, max))),
        },
        Value::String(text) => parse_size(text),
        _ => None,
    };
    match parsed {
        Some(bytes) if (min..=max).contains(&bytes) => Ok(Typed::Size(bytes)),
        Some(_) => Err(format!("{value} is out of range; {}", size_range(min, max))),
        None => Err(format!(
            "{value} is not a size; write bytes or a number with a unit, as \"64KiB\" or \"1MiB\""
        )),
    }
}

fn size_range(min: u64, max: u64) -> String {
    let (min, max) = (Typed::Size(min), Typed::Size(max));
    format!("write a size from {min} to {max}")
}

fn word(value: &Value, words: &[&str]) -> Result<Typed, String> {
    let Value::String(text) = value else {
        return Err(format!(
            "{value} is not a string; write one of {}",
            words.join(", ")
        ));
    };
    if words.contains(&text.as_str()) {
        return Ok(Typed::Text(text.clone()));
    }
    let hint = did_you_mean(closest(text, words.iter().copied()));
    Err(format!("{value} is not one of {}{hint}", words.join(", ")))
}

fn checked(value: &Value, check: Check) -> Result<String, String> {
    let Value::String(text) = value else {
        return Err(format!("{value} is not a string; write it in quotes"));
    };
    check(text).map_err(|message| format!("{value} {message}"))?;
    Ok(text.clone())
}

fn address(
    value: &Value,
    parse: fn(&str) -> Result<Address, AddressError>,
) -> Result<Address, String> {
    match value {
        Value::String(text) => parse(text).map_err(|error| error.to_string()),
        Value::Integer(port) => Err(format!("{port} is not an address; write \":{port}\"")),
        _ => Err(format!(
            "{value} is not an address; write \"host:port\" or \"unix:/path\""
        )),
    }
}

fn network(value: &Value) -> Result<IpNet, String> {
    let parsed = match value {
        Value::String(text) => text
            .parse()
            .ok()
            .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)),
        _ => None,
    };
    parsed.map(|net: IpNet| net.trunc()).ok_or_else(|| {
        format!("{value} is not a network; write a CIDR as \"10.0.0.0/8\" or an IP address")
    })
}

fn list<T>(value: &Value, one: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, Vec<Fault>> {
    let Value::List(items) = value else {
        let message = match value {
            Value::String(text) => {
                // A command, for one, is not meant to be one word.
                let words: Vec<_> = text
                    .split_whitespace()
                    .map(|word| format!("{word:?}"))
                    .collect();
                format!("{value} is not a list; write [{}]", words.join(", "))
            }
            _ => format!("{value} is not a list; write [\"...\"]"),
        };
        return Err(vec![message.into()]);
    };
    let mut good = Vec::with_capacity(items.len());
    let mut faults = Vec::new();
    for Item { value, position } in items {
        match one(value) {
            Ok(item) => good.push(item),
            Err(message) => faults.push(Fault {
                position: *position,
                message,
            }),
        }
    }
    if faults.is_empty() {
        Ok(good)
    } else {
        Err(faults)
    }
}

fn some(addresses: Vec<Address>) -> Result<Vec<Address>, Vec<Fault>> {
    if addresses.is_empty() {
        return Err(vec![
            "is empty; write at least one address".to_owned().into(),
        ]);
    }
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            return Err(vec![
                format!("\"{address}\" is there twice; remove one").into(),
            ]);
        }
    }
    Ok(addresses)
}

impl fmt::Display for Typed {
    /// As a TOML value that is read back as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn array<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
            let quoted: Vec<_> = items.iter().map(|item| quote(&item.to_string())).collect();
            write!(f, "[{}]", quoted.join(", "))
        }
        match self {
            Typed::Bool(flag) => write!(f, "{flag}"),
            Typed::Integer(number) => write!(f, "{number}"),
            Typed::Float(number) => write!(f, "{number:?}"),
            Typed::Duration(duration) => f.write_str(&quote(&format_duration(*duration))),
            Typed::Size(bytes) => {
                let text = format_size(*bytes);
                // TOML integers end at 2^63.
                let plain =
                    text.bytes().all(|b| b.is_ascii_digit()) && i64::try_from(*bytes).is_ok();
                f.write_str(&if plain { text } else { quote(&text) })
            }
            Typed::Text(text) => f.write_str(&quote(text)),
            Typed::Texts(texts) => array(f, texts),
            Typed::Address(address) => f.write_str(&quote(&address.to_string())),
            Typed::Addresses(addresses) => array(f, addresses),
            Typed::Networks(networks) => array(f, networks),
        }
    }
}

impl From<&Typed> for serde_json::Value {
    fn from(value: &Typed) -> Self {
        fn array<T: fmt::Display>(items: &[T]) -> serde_json::Value {
            items.iter().map(T::to_string).collect()
        }
        match value {
            Typed::Bool(flag) => (*flag).into(),
            Typed::Integer(number) => (*number).into(),
            Typed::Float(number) => (*number).into(),
            Typed::Duration(duration) => format_duration(*duration).into(),
            Typed::Size(bytes) => (*bytes).into(),
            Typed::Text(text) => text.as_str().into(),
            Typed::Texts(texts) => array(texts),
            Typed::Address(address) => address.to_string().into(),
            Typed::Addresses(addresses) => array(addresses),
            Typed::Networks(networks) => array(networks),
        }
    }
}

//! The tables in `tests/conformance`.

use serde::{Deserialize, de::DeserializeOwned};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table<C> {
    case: Vec<C>,
}

/// The cases of a table.
pub fn read<C: DeserializeOwned>(text: &str) -> Vec<C> {
    let table: Table<C> = toml::from_str(text).expect("the table is sound");
    table.case
}

/// A case of `requests.toml`: see its head.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    pub send: Send,
    pub answers: Vec<u16>,
    #[serde(default)]
    pub forwarded: Vec<String>,
    #[serde(default)]
    pub close: bool,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub head: bool,
    #[serde(default)]
    pub half_close: bool,
    #[serde(default)]
    pub only: String,
}

/// What its client sends.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub enum Send {
    Once(String),
    Pieces(Vec<String>),
}

impl Case {
    pub fn pieces(&self) -> Vec<Vec<u8>> {
        match &self.send {
            Send::Once(text) => vec![bytes(text)],
            Send::Pieces(texts) => texts.iter().map(|text| bytes(text)).collect(),
        }
    }
}

/// What clients send.
pub fn requests() -> Vec<Case> {
    read(include_str!("../conformance/requests.toml"))
}

/// `⟦3×ab⟧` is `ababab`.
pub fn plain(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once('⟦') {
        let (times, after) = after.split_once('×').expect("how often");
        let (what, after) = after.split_once('⟧').expect("an end");
        plain += before;
        plain += &what.repeat(times.parse().expect("a number"));
        rest = after;
    }
    plain + rest
}

/// The same in Latin-1: one character, one byte.
pub fn bytes(text: &str) -> Vec<u8> {
    let latin1 = |c: char| u8::try_from(u32::from(c)).expect("Latin-1");
    plain(text).chars().map(latin1).collect()
}

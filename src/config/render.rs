//! The effective configuration, with where each value came from: for `tidegate config` and
//! `GET /config`.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::{
    address::Address,
    load::Loaded,
    resolve::{Setting, Settings},
    schema::{self, Key},
    typed::Typed,
};

impl Loaded {
    /// The effective configuration as TOML: fed back in, it gives the same configuration. Each key
    /// has its origin in a comment.
    pub fn render_toml(&self) -> String {
        let mut out = String::new();
        for section in schema::sections() {
            if section == schema::ROUTE {
                for route in &self.routes {
                    table(&mut out, "[[route]]", schema::route_keys(), &route.settings);
                }
                continue;
            }
            let keys = schema::plain_keys().filter(|key| key.section() == section);
            table(&mut out, &format!("[{section}]"), keys, &self.settings);
        }
        out
    }

    /// The effective configuration as JSON: sections as in the TOML, each key as
    /// `{"value": ..., "origin": "default" | "FILE:LINE" | "env NAME" | "flag --x"}`, sizes in
    /// bytes.
    pub fn to_json(&self) -> Json {
        let mut root = Map::new();
        for key in schema::plain_keys() {
            let mut table = &mut root;
            for part in key.section().split('.') {
                let next = table.entry(part).or_insert_with(|| json!({}));
                let Json::Object(next) = next else {
                    unreachable!("no key has the name of a section");
                };
                table = next;
            }
            table.insert(key.name().to_owned(), setting(self.settings.get(key.path)));
        }
        let routes = self.routes.iter().map(|route| {
            let keys = schema::route_keys();
            keys.map(|key| (key.name().to_owned(), setting(route.settings.get(key.path))))
                .collect::<Map<_, _>>()
        });
        root.insert(schema::ROUTE.to_owned(), routes.map(Json::Object).collect());
        Json::Object(root)
    }
}

fn setting(setting: &Setting) -> Json {
    json!({ "value": Json::from(&setting.value), "origin": setting.origin.to_string() })
}

fn table(
    out: &mut String,
    head: &str,
    keys: impl Iterator<Item = &'static Key>,
    settings: &Settings,
) {
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(head);
    out.push('\n');
    for key in keys {
        let Setting { value, origin } = settings.get(key.path);
        // What exec chooses is nothing that can be written into a file.
        let open = *value == Typed::Addresses(vec![Address::any()]);
        let line = format!("{}{} = {value}", if open { "# " } else { "" }, key.name());
        // A comment ends with its line, whatever is in the file's name.
        let origin = origin.to_string().replace(char::is_control, "?");
        // Writing to a String does not fail.
        let _ = writeln!(out, "{line:<40} # {origin}");
    }
}

//! What `/metrics` says.

use std::collections::BTreeMap;

/// Metrics in Prometheus' text format.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// # Panics
    /// If a line is not in the format.
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self {
            samples: lines.map(sample).collect(),
        }
    }

    /// The sum of all samples of this name that have these labels.
    ///
    /// # Panics
    /// If no sample has this name.
    #[track_caller]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        assert!(
            self.samples.iter().any(|(known, ..)| known == name),
            "there is no metric {name}"
        );
        self.samples
            .iter()
            .filter(|(known, of, _)| {
                known == name
                    && labels
                        .iter()
                        .all(|(label, value)| of.get(*label).is_some_and(|of| of == value))
            })
            .map(|(.., value)| value)
            .sum()
    }

    /// All samples: name, labels, value.
    pub fn samples(&self) -> &[(String, BTreeMap<String, String>, f64)] {
        &self.samples
    }
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let value = value
        .parse()
        .unwrap_or_else(|_| panic!("not a number: {line}"));
    let Some((name, labels)) = series.split_once('{') else {
        return (series.to_owned(), BTreeMap::new(), value);
    };
    let mut rest = labels.strip_suffix('}').expect("the labels' end");
    let mut labels = BTreeMap::new();
    while let Some((label, after)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("the value's end") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("an escaped character").1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (_, other) => text.push(other),
            }
        };
        labels.insert(label.trim_start_matches(',').to_owned(), text);
        rest = &after[end + 1..];
    }
    (name.to_owned(), labels, value)
}

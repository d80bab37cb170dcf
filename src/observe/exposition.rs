//! The two text formats in which Prometheus reads metrics, written by hand: they differ in four
//! small points, and a scrape is one pass over one `String`.

use std::fmt::Write;

use super::histogram::{BOUNDS, Reading};

/// A text format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text, version 0.0.4.
    Text,
    /// OpenMetrics text, version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The better of the two for a client that sent this `Accept`. Never a refusal: who asks for
    /// neither gets text, which a person can read too.
    pub fn negotiate(accept: &str) -> Format {
        let mut text = 0.0_f32;
        let mut open_metrics = 0.0_f32;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality = 1.0_f32;
            let mut version = "";
            for parameter in parts {
                let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
                let value = value.trim().trim_matches('"');
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.parse().unwrap_or(0.0),
                    "version" => version = value,
                    _ => {}
                }
            }
            match media_type.as_str() {
                "application/openmetrics-text" if matches!(version, "" | "1.0.0") => {
                    open_metrics = open_metrics.max(quality);
                }
                "text/plain" if matches!(version, "" | "0.0.4") => text = text.max(quality),
                // Wildcards stand for the older format, which everything can read.
                "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text {
            Format::OpenMetrics
        } else {
            Format::Text
        }
    }
}

/// The type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, a sum and a count.
    Histogram,
}

/// One label: name and value.
pub type Label<'a> = (&'a str, &'a str);

/// An exposition being written.
#[derive(Debug)]
pub struct Exposition {
    out: String,
    format: Format,
}

impl Exposition {
    /// An empty one.
    pub fn new(format: Format) -> Self {
        Exposition {
            out: String::with_capacity(32 * 1024),
            format,
        }
    }

    /// Starts a family. `name` is the full one, with `_total` for a counter.
    pub fn family<'a>(&'a mut self, kind: Kind, name: &'a str, help: &str) -> Family<'a> {
        debug_assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        let title = match self.format {
            Format::Text => name,
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        };
        let type_name = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.out, "# HELP {title} {help}");
        let _ = writeln!(self.out, "# TYPE {title} {type_name}");
        if self.format == Format::OpenMetrics
            && let Some(unit) = ["seconds", "bytes"].iter().find(|unit| {
                title
                    .strip_suffix(**unit)
                    .is_some_and(|stem| stem.ends_with('_'))
            })
        {
            let _ = writeln!(self.out, "# UNIT {title} {unit}");
        }
        Family {
            exposition: self,
            name,
        }
    }

    /// The finished text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

/// A family that takes samples.
#[derive(Debug)]
pub struct Family<'a> {
    exposition: &'a mut Exposition,
    name: &'a str,
}

impl Family<'_> {
    /// Adds one value.
    pub fn sample(&mut self, labels: &[Label<'_>], value: impl Into<Value>) -> &mut Self {
        self.line("", labels, None, value.into());
        self
    }

    /// Adds one histogram.
    pub fn histogram(&mut self, labels: &[Label<'_>], reading: &Reading) -> &mut Self {
        for (bound, count) in BOUNDS.iter().zip(reading.cumulative) {
            // OpenMetrics wants bounds to look like floats: 1.0, not 1.
            let bound = match self.exposition.format {
                Format::Text => bound.to_string(),
                Format::OpenMetrics => format!("{bound:?}"),
            };
            self.line("_bucket", labels, Some(("le", &bound)), count.into());
        }
        self.line(
            "_bucket",
            labels,
            Some(("le", "+Inf")),
            reading.count().into(),
        );
        self.line("_sum", labels, None, reading.sum_seconds.into());
        self.line("_count", labels, None, reading.count().into());
        self
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], last: Option<Label<'_>>, value: Value) {
        let out = &mut self.exposition.out;
        out.push_str(self.name);
        out.push_str(suffix);
        let mut separator = '{';
        for (name, value) in labels.iter().copied().chain(last) {
            out.push(separator);
            separator = ',';
            out.push_str(name);
            out.push_str("=\"");
            push_escaped(out, value);
            out.push('"');
        }
        if separator == ',' {
            out.push('}');
        }
        out.push(' ');
        value.push_to(out);
        out.push('\n');
    }
}

fn push_escaped(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Integer(i128),
    /// Any number.
    Float(f64),
}

impl Value {
    fn push_to(self, out: &mut String) {
        let _ = match self {
            Value::Integer(value) => write!(out, "{value}"),
            Value::Float(value) if value == f64::INFINITY => write!(out, "+Inf"),
            Value::Float(value) if value == f64::NEG_INFINITY => write!(out, "-Inf"),
            Value::Float(value) => write!(out, "{value}"),
        };
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Value::Float(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Integer(value.into())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Integer(value.into())
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Integer(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Integer(value.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_read_as_prometheus_sends_it() {
        for (accept, expected) in [
            // Prometheus 2.5x
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            // Prometheus 3
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text; version=1.0.0",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text; version=1.0.0, */*",
                Format::OpenMetrics,
            ),
            (
                "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.5",
                Format::Text,
            ),
            ("application/openmetrics-text;version=0.0.1", Format::Text),
            (
                "application/openmetrics-text;version=1.0.0;q=0",
                Format::Text,
            ),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Text),
            ("*/*", Format::Text),
            ("", Format::Text),
            (";;=,;q=x", Format::Text),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{accept}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut exposition = Exposition::new(Format::Text);
        exposition
            .family(Kind::Gauge, "x", "An example.")
            .sample(&[("a", "q\"\\\n}")], 1_u64)
            .sample(&[], f64::INFINITY);
        assert_eq!(
            exposition.finish(),
            "# HELP x An example.\n# TYPE x gauge\nx{a=\"q\\\"\\\\\\n}\"} 1\nx +Inf\n"
        );
    }

    #[test]
    fn a_counter_is_titled_by_the_rules_of_each_format() {
        let write = |format| {
            let mut exposition = Exposition::new(format);
            exposition
                .family(Kind::Counter, "x_seconds_total", "Help.")
                .sample(&[], 2_u64);
            exposition.finish()
        };
        assert_eq!(
            write(Format::Text),
            "# HELP x_seconds_total Help.\n# TYPE x_seconds_total counter\nx_seconds_total 2\n"
        );
        assert_eq!(
            write(Format::OpenMetrics),
            "# HELP x_seconds Help.\n# TYPE x_seconds counter\n# UNIT x_seconds seconds\nx_seconds_total 2\n# EOF\n"
        );
    }
}

//! The curve as a picture: throughput and latency over requests in parallel. Pure.

use std::fmt::Write as _;

use super::{
    advice::{rate, seconds},
    report::Report,
    step::Step,
};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 24.0;
const PANEL: f64 = 210.0;
const GAP: f64 = 52.0;
const TOP: f64 = 84.0;
/// Characters of a line above the panels.
const LINE: usize = 100;
/// Points of the fitted curve.
const SMOOTH: u32 = 120;

const STYLE: &str = "\
svg{background:#fff;font:13px system-ui,sans-serif}\
text{fill:#333}.title{font-size:16px;font-weight:600;fill:#111}.small{font-size:12px;fill:#666}\
.grid{stroke:#e4e4e7}.axis{stroke:#8a8a93}\
.a{stroke:#2563eb;fill:none;stroke-width:2}.a circle,.dot{fill:#2563eb;stroke:none}\
.law{stroke:#9ca3af;fill:none;stroke-width:1.5;stroke-dasharray:5 4}\
.b{stroke:#d97706;fill:none;stroke-width:2}.c{stroke:#d97706;fill:none;stroke-dasharray:2 3}\
.knee{stroke:#16a34a;stroke-width:1.5;stroke-dasharray:3 3}.kneetext{fill:#15803d;font-weight:600}\
@media(prefers-color-scheme:dark){svg{background:#111418}text{fill:#d4d4d8}.title{fill:#fafafa}\
.small{fill:#a1a1aa}.grid{stroke:#27272a}.axis{stroke:#71717a}.a{stroke:#60a5fa}\
.dot{fill:#60a5fa}.b,.c{stroke:#fbbf24}.knee{stroke:#4ade80}.kneetext{fill:#4ade80}}";

/// One axis from 0 to a round number.
struct Axis {
    step: f64,
    top: f64,
}

impl Axis {
    /// Four or five steps of 1, 2 or 5 times a power of ten.
    fn up_to(most: f64) -> Self {
        let most = if most.is_finite() && most > 0.0 {
            most
        } else {
            1.0
        };
        let rough = most / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|times| times * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        Self {
            step,
            top: (most / step).ceil() * step,
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.top / self.step).round() as u32;
        (0..=count).map(|at| f64::from(at) * self.step)
    }
}

/// A stand-alone SVG document, for light and dark pages.
pub fn svg(report: &Report) -> String {
    let steps = &report.steps;
    let most = |of: &dyn Fn(&Step) -> f64| steps.iter().map(of).fold(0.0, f64::max);
    let latency = |step: &Step| step.tally.latency.map_or(0.0, |latency| latency.p95);
    let across = Axis::up_to(most(&|step| f64::from(step.clients)));
    let rates = Axis::up_to(most(&Step::throughput));
    let waits = Axis::up_to(most(&latency));
    let height = TOP + 2.0 * PANEL + GAP + 56.0;
    let x = |clients: f64| LEFT + clients / across.top * (WIDTH - LEFT - RIGHT);
    let upper = |rate: f64| TOP + PANEL * (1.0 - rate / rates.top);
    let lower = |wait: f64| TOP + PANEL + GAP + PANEL * (1.0 - wait / waits.top);

    let title = match &report.knee {
        Some(knee) if knee.clients == 1 => "1 request in parallel".to_owned(),
        Some(knee) => format!("{} requests in parallel", knee.clients),
        None => "Nothing was measured".to_owned(),
    };
    let p50 = report.knee.as_ref().and_then(|knee| knee.p50);
    let at_knee = p50.map_or(String::new(), |p50| {
        format!(", {} at the knee", seconds(p50))
    });
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"title\"><title id=\"title\">{answer}</title><style>{STYLE}</style>\
         <text class=\"title\" x=\"{LEFT}\" y=\"26\">{title}</text>\
         <text class=\"small\" x=\"{LEFT}\" y=\"44\">{target}</text>",
        answer = escaped(&report.answer),
        target = escaped(&shortened(&report.target)),
    );
    for tick in across.ticks() {
        let at = x(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text class=\"small\" x=\"{at:.1}\" y=\"{label:.1}\" text-anchor=\"middle\">{tick}</text>",
            bottom = lower(0.0),
            label = lower(0.0) + 18.0,
        );
    }
    let mut scale = |axis: &Axis, y: &dyn Fn(f64) -> f64, label: &dyn Fn(f64) -> String| {
        for tick in axis.ticks() {
            let class = if tick == 0.0 { "axis" } else { "grid" };
            let _ = write!(
                out,
                "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"small\" x=\"{text}\" y=\"{base:.1}\" text-anchor=\"end\">{label}</text>",
                right = WIDTH - RIGHT,
                at = y(tick),
                text = LEFT - 8.0,
                base = y(tick) + 4.0,
                label = label(tick),
            );
        }
    };
    scale(&rates, &upper, &|tick| format!("{}/s", trimmed(tick)));
    scale(&waits, &lower, &|tick| {
        format!("{} ms", trimmed(tick * 1000.0))
    });
    if let Some(knee) = &report.knee {
        let at = x(f64::from(knee.clients));
        let _ = write!(
            out,
            "<line class=\"knee\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
             <text class=\"kneetext\" x=\"{:.1}\" y=\"{:.1}\">{} in parallel, {}/s, bound by {binds}</text>",
            lower(0.0),
            at + 6.0,
            upper(0.0) - 8.0,
            knee.clients,
            rate(knee.throughput),
            binds = report.binds.as_str(),
        );
    }
    let line = |class: &str, points: &[(f64, f64)]| {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        format!(
            "<polyline class=\"{class}\" points=\"{}\"/>",
            points.join(" ")
        )
    };
    if let Some(law) = &report.law {
        let points: Vec<(f64, f64)> = (0..=SMOOTH)
            .map(|at| f64::from(at) / f64::from(SMOOTH) * across.top)
            .map(|n| (n, law.throughput(n)))
            .filter(|(_, throughput)| *throughput <= rates.top)
            .map(|(n, throughput)| (x(n), upper(throughput)))
            .collect();
        out += &line("law", &points);
    }
    let measured: Vec<(f64, f64)> = steps
        .iter()
        .map(|step| (x(f64::from(step.clients)), upper(step.throughput())))
        .collect();
    out += &line("a", &measured);
    for (step, (x, y)) in steps.iter().zip(&measured) {
        let _ = write!(
            out,
            "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{} clients: {}/s</title></circle>",
            step.clients,
            rate(step.throughput())
        );
    }
    for (class, of) in [
        ("b", (|latency| latency.p50) as fn(&super::Latency) -> f64),
        ("c", |latency| latency.p95),
    ] {
        let points: Vec<(f64, f64)> = steps
            .iter()
            .filter_map(|step| Some((x(f64::from(step.clients)), lower(of(&step.tally.latency?)))))
            .collect();
        out += &line(class, &points);
    }
    let law = if report.law.is_some() {
        ", dashed: Universal Scalability Law"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "<text class=\"small\" x=\"{LEFT}\" y=\"{:.1}\">Throughput{law}</text>\
         <text class=\"small\" x=\"{LEFT}\" y=\"{:.1}\">Latency: median{at_knee}; dotted: p95</text>\
         <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">requests in parallel</text></svg>",
        TOP - 6.0,
        TOP + PANEL + GAP - 8.0,
        WIDTH - RIGHT,
        height - 10.0,
    );
    out
}

/// Without the noise of binary fractions.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// At most a line of it.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(LINE) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            other if other.is_control() => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::report::tests::report;

    #[test]
    fn axes_are_round() {
        let ticks = |most| Axis::up_to(most).ticks().collect::<Vec<_>>();
        assert_eq!(ticks(8.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(78.0), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(ticks(0.0).len(), 3);
        assert_eq!(trimmed(0.30000000000000004), "0.3");
        assert_eq!(trimmed(120.0), "120");
    }

    #[test]
    fn the_picture_has_every_step_and_is_well_formed() {
        let picture = svg(&report());
        assert_eq!(picture.matches("<circle").count(), report().steps.len());
        assert!(
            picture.contains("http://127.0.0.1:8000/?a=1&amp;b=&lt;2&gt;"),
            "{picture}"
        );
        assert!(
            !picture.contains("NaN") && !picture.contains("inf"),
            "{picture}"
        );
        for tag in ["svg", "title", "style", "text", "circle"] {
            let open = picture.matches(&format!("<{tag}")).count();
            assert_eq!(open, picture.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}

//! The curve in a terminal: `*` was measured, `.` is the fitted law, `|` marks the knee. Pure.

use std::fmt::Write as _;

use super::{advice::rate, knee::Knee, step::Step};
use crate::control::usl::Usl;

const WIDTH: usize = 60;
const HEIGHT: usize = 12;

/// Throughput over clients. Empty with fewer than two steps.
pub fn plot(steps: &[Step], knee: Option<&Knee>, law: Option<&Usl>) -> String {
    let (Some(last), true) = (steps.last(), steps.len() > 1) else {
        return String::new();
    };
    let right = f64::from(last.clients);
    let top = steps.iter().map(Step::throughput).fold(0.0, f64::max) * 1.05;
    if top <= 0.0 {
        return String::new();
    }
    let column = |clients: f64| (clients / right * (WIDTH - 1) as f64).round() as usize;
    let row = |throughput: f64| {
        let up = (throughput / top * (HEIGHT - 1) as f64).round();
        HEIGHT - 1 - up.clamp(0.0, (HEIGHT - 1) as f64) as usize
    };
    let mut grid = [[' '; WIDTH]; HEIGHT];
    if let Some(knee) = knee {
        let at = column(f64::from(knee.clients)).min(WIDTH - 1);
        for line in &mut grid {
            line[at] = '|';
        }
    }
    if let Some(law) = law {
        let points = (0..WIDTH).map(|at| (at, right * at as f64 / (WIDTH - 1) as f64));
        for (at, throughput) in points.map(|(at, n)| (at, law.throughput(n))) {
            if throughput <= top {
                grid[row(throughput)][at] = '.';
            }
        }
    }
    for step in steps {
        let at = column(f64::from(step.clients)).min(WIDTH - 1);
        grid[row(step.throughput())][at] = '*';
    }
    let mut out = String::new();
    for (at, line) in grid.iter().enumerate() {
        let label = match at {
            0 => format!("{}/s", rate(top)),
            at if at == HEIGHT - 1 => "0".to_owned(),
            _ => String::new(),
        };
        let line: String = line.iter().collect();
        let _ = writeln!(out, "  {label:>9} {}", format!("|{line}").trim_end());
    }
    let _ = writeln!(out, "  {:>9} +{}", "", "-".repeat(WIDTH));
    let _ = writeln!(
        out,
        "  {:>9}  0{:>width$}",
        "",
        last.clients,
        width = WIDTH - 1
    );
    let knee = if knee.is_some() { ", | the knee" } else { "" };
    let law = if law.is_some() {
        ", . the fitted law"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "  {:>9}  throughput over requests in parallel: * measured{law}{knee}",
        ""
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tally::Tally;

    #[test]
    fn a_plateau_looks_like_one() {
        let steps: Vec<Step> = [(1, 20.0), (2, 40.0), (4, 80.0), (8, 80.0)]
            .into_iter()
            .map(|(clients, throughput)| Step {
                clients,
                tally: Tally {
                    throughput,
                    ..Tally::default()
                },
                ..Step::default()
            })
            .collect();
        let knee = Knee {
            clients: 4,
            throughput: 80.0,
            p50: None,
            equivalent: 4.0,
            most: 80.0,
            reached: true,
        };
        let text = plot(&steps, Some(&knee), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), HEIGHT + 3);
        // The two of the plateau, in the same row, at the knee and at the right end.
        let best = lines.iter().find(|line| line.contains('*')).unwrap();
        let stars: Vec<usize> = best.match_indices('*').map(|(at, _)| at).collect();
        assert_eq!(stars, [13 + 30, 13 + 59], "{text}");
        assert_eq!(text.matches('*').count(), 4 + 1, "{text}");
        assert!(lines.iter().all(|line| line.len() <= 80), "{text}");
        assert_eq!(plot(&steps[..1], None, None), "");
    }
}

//! The dashboard: one page that loads nothing from anywhere but `/status`, as events, or else once a second.

use std::hash::{BuildHasher, Hasher, RandomState};

use http::{HeaderValue, StatusCode, header};

use super::respond::{Reply, reply};

const PAGE: &str = include_str!("dashboard/page.html");
const STYLE: &str = include_str!("dashboard/style.css");
const SCRIPT: &str = include_str!("dashboard/script.js");

/// The page. Its one script and its one style sheet run by a nonce; everything else a page could
/// load, embed or send is forbidden.
pub(super) fn page() -> Reply {
    let nonce = nonce();
    let mut page = reply(
        StatusCode::OK,
        "text/html; charset=utf-8",
        PAGE.replace("{nonce}", &nonce)
            .replace("{style}", STYLE)
            .replace("{script}", SCRIPT),
    );
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let headers = page.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    page
}

/// 128 bits from the standard library's own source of randomness: `RandomState` is keyed by the
/// operating system.
fn nonce() -> String {
    let word = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", word(), word())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock,
        config::Address,
        control::{BoundBy, CurvePoint, Decision, Evidence, usl::Usl},
        observe::{
            EndpointSnapshot, Metrics, Sight, Snapshot, status,
            traffic::{Latency, Rates},
        },
    };

    /// A document in which nothing is missing.
    fn whole() -> serde_json::Value {
        let endpoint = EndpointSnapshot {
            label: "a".to_owned(),
            in_flight: 1,
            limit: 4,
            bound_by: BoundBy::Idle,
            configured_by: None,
            baseline_seconds: Some(0.1),
            stretch_ratio: Some(1.0),
            slots: Some((4, "configured")),
            steering: None,
            sight: Sight::default(),
            curve: vec![CurvePoint {
                in_flight: 1,
                stretch: 1.0,
                throughput: 10.0,
                weight: 1.0,
            }],
            capacity: Some(Usl {
                lambda: 10.0,
                sigma: 0.1,
                kappa: 0.01,
                measured: 4.0,
                confidence: 0.5,
            }),
            law: "aimd",
            shadows: Vec::new(),
            leaking: false,
        };
        let snapshot = Snapshot {
            endpoints: vec![endpoint],
            ..Snapshot::default()
        };
        let now = clock::now();
        let decision = Decision {
            at: now,
            from: 3,
            limit: 4,
            bound_by: BoundBy::Idle,
            reason: "room",
            evidence: Evidence::default(),
        };
        let context = status::Context {
            now,
            admin: &Address::Unix("/run/admin".into()),
            uptime: Duration::from_secs(9),
            tasks: 3,
            ready: true,
            draining: false,
            dry_run: false,
            traffic: Some(Rates {
                request_seconds: Some(Latency::default()),
                backend_seconds: Some(Latency::default()),
                ..Rates::default()
            }),
            decisions: &[("a".to_owned(), decision)],
        };
        status::document(&Metrics::new(), &snapshot, &context)
    }

    /// The fields that the script reads of this variable: `name.field`, and the words of a list that it goes
    /// through by `name[key]` on the same line.
    fn read_of(name: &str) -> Vec<&'static str> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut fields = Vec::new();
        for line in SCRIPT.lines() {
            for (at, _) in line.match_indices(name) {
                let rest = &line[at + name.len()..];
                if line[..at].ends_with(|c| is_word(c) || ".\"/".contains(c)) {
                    continue;
                }
                if let Some(rest) = rest.strip_prefix('.') {
                    fields.extend(rest.split(|c| !is_word(c)).next());
                } else if rest.starts_with("[key]") || rest.starts_with("[id]") {
                    let (_, listed) = line.split_once("[\"").expect("a list");
                    let (listed, _) = listed.split_once("\"]").expect("its end");
                    fields.extend(listed.split("\", \""));
                }
            }
        }
        fields
    }

    #[test]
    fn the_script_reads_what_the_status_has() {
        let status = whole();
        for (name, place) in [
            ("status", ""),
            ("totals", "/totals"),
            ("traffic", "/traffic"),
            ("latency", "/traffic/backend_seconds"),
            ("endpoint", "/backend/endpoints/0"),
            ("spot", "/backend/endpoints/0/capacity_curve/0"),
            ("fit", "/backend/endpoints/0/capacity"),
            ("decision", "/decisions/0"),
            ("evidence", "/decisions/0/evidence"),
        ] {
            let part = status.pointer(place).expect("it is there");
            let fields = read_of(name);
            assert!(!fields.is_empty(), "{name} is not read any more");
            for field in fields {
                assert!(part.get(field).is_some(), "{name}.{field}");
            }
        }
    }
}

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

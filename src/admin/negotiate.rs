//! `Accept` and `Accept-Encoding`, as far as this server has a choice to make.

/// The weight that a list of `name;q=weight` gives to the first of `names` that it contains; the
/// order of `names` is from the specific to the general. None when it contains none of them.
fn weight(list: &str, names: &[&str]) -> Option<f32> {
    names.iter().find_map(|wanted| {
        list.split(',').find_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next()?;
            if !name.eq_ignore_ascii_case(wanted) {
                return None;
            }
            let quality = parts.find_map(|parameter| {
                let (name, value) = parameter.split_once('=')?;
                name.trim()
                    .eq_ignore_ascii_case("q")
                    .then(|| value.trim().parse().unwrap_or(0.0))
            });
            Some(quality.unwrap_or(1.0))
        })
    })
}

/// Whether the client can read gzip.
pub(super) fn accepts_gzip(accept_encoding: &str) -> bool {
    weight(accept_encoding, &["gzip", "x-gzip", "*"]).is_some_and(|weight| weight > 0.0)
}

/// Whether the client would rather have JSON than TOML, which is served as plain text. It has to
/// name JSON: a wildcard alone gets what a person can read.
pub(super) fn prefers_json(accept: &str) -> bool {
    let Some(json) = weight(accept, &["application/json"]) else {
        return false;
    };
    let text = weight(accept, &["application/toml", "text/plain", "text/*", "*/*"]).unwrap_or(0.0);
    json > 0.0 && json >= text
}

/// Whether the client asks for server-sent events; it has to name them, as browsers do.
pub(super) fn wants_events(accept: &str) -> bool {
    weight(accept, &["text/event-stream"]).is_some_and(|weight| weight > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_respected() {
        assert!(accepts_gzip("gzip"));
        assert!(accepts_gzip("deflate, GZIP;q=0.5"));
        assert!(accepts_gzip("*"));
        assert!(!accepts_gzip("gzip;q=0"));
        assert!(!accepts_gzip("gzip; q=0.000, *"));
        assert!(!accepts_gzip("identity"));
        assert!(!accepts_gzip(""));
        assert!(prefers_json("application/json"));
        assert!(prefers_json("application/json, */*;q=0.1"));
        assert!(prefers_json("application/json, text/plain, */*"));
        assert!(!prefers_json("*/*"));
        assert!(!prefers_json("text/plain, application/json;q=0.5"));
        assert!(!prefers_json(""));
        assert!(wants_events("text/event-stream"));
        assert!(!wants_events("*/*"));
        assert!(!wants_events("application/json, text/event-stream;q=0"));
    }
}

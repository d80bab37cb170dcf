//! An answer's head and its trailers as HTTP/2 has them: RFC 9113 8.2.2 and 8.3.2.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body as _, SizeHint};

use crate::{
    backend::{can_have_body, detach},
    proxy::{ClientBody, date, hygiene::is_trailer},
};

/// The head, and whether nothing follows it; `bodiless` if the request was for the head alone.
pub fn head(answer: &mut ClientBody, bodiless: bool) -> (Response<()>, bool) {
    let mut head = answer.take_head();
    let (ends, length) = (answer.is_end_stream(), answer.size_hint());
    let can_have_body = can_have_body(head.status());
    let unmodified = head.status() == StatusCode::NOT_MODIFIED;
    let fields = head.headers_mut();
    // GOAWAY says what is to be said of the connection.
    fields.remove(header::CONNECTION);
    if !can_have_body && !unmodified {
        fields.remove(header::CONTENT_LENGTH);
    } else if can_have_body && !ends {
        declare(fields, &length);
    }
    date::insert(fields);
    if let Some(id) = answer.id_name().and_then(|name| fields.get_mut(name)) {
        // It never comes again: in HPACK's table it would push out what does.
        id.set_sensitive(true);
    }
    (head, ends || bodiless || !can_have_body)
}

/// Says how long the body is, if nobody has and it is known.
fn declare(fields: &mut HeaderMap, length: &SizeHint) {
    if let Some(length) = length.exact() {
        let declared = fields.entry(header::CONTENT_LENGTH);
        declared.or_insert_with(|| HeaderValue::from(length));
    }
}

/// What of the trailers may be one.
pub fn trailers(mut all: HeaderMap) -> HeaderMap {
    detach(&mut all);
    if all.keys().all(is_trailer) {
        return all;
    }
    let mut kept = HeaderMap::with_capacity(all.len());
    for (name, value) in &all {
        if is_trailer(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_say_nothing_of_the_connection_or_the_message() {
        let mut all = HeaderMap::new();
        for name in [
            "x-sum",
            "keep-alive",
            "content-length",
            "x-sum",
            "set-cookie",
        ] {
            let name: http::HeaderName = name.parse().expect("a name");
            all.append(name, HeaderValue::from_static("1"));
        }
        let kept = trailers(all);
        let kept: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(kept, ["x-sum", "x-sum"]);
    }
}

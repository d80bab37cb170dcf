//! What an answer says of when it was made, for those whose backend does not: RFC 9110 6.6.1.

use std::{
    cell::Cell,
    io::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue, header};

use crate::clock;

/// Characters of `Sun, 06 Nov 1994 08:49:37 GMT`.
const LENGTH: usize = 29;

thread_local! {
    /// The second that was written last, and how: a date costs more than most of an answer.
    static LAST: Cell<(u64, [u8; LENGTH])> = const { Cell::new((u64::MAX, [0; LENGTH])) };
}

/// Now, as a field says it.
pub fn now() -> [u8; LENGTH] {
    let now = clock::since_epoch().as_secs();
    let (second, text) = LAST.get();
    if second == now {
        return text;
    }
    let mut text = [b' '; LENGTH];
    let date = httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(now));
    // It fits up to the year 9999.
    let _ = write!(&mut text[..], "{date}");
    LAST.set((now, text));
    text
}

/// Says so where nothing else does.
pub fn insert(fields: &mut HeaderMap) {
    if !fields.contains_key(header::DATE)
        && let Ok(date) = HeaderValue::from_bytes(&now())
    {
        fields.insert(header::DATE, date);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_now_as_httpdate_writes_it() {
        for _ in 0..3 {
            let text = now();
            let text = std::str::from_utf8(&text).expect("ASCII");
            let told = httpdate::parse_http_date(text).expect("a date");
            let told = told.duration_since(UNIX_EPOCH).expect("after 1970");
            assert!(clock::since_epoch().abs_diff(told) < Duration::from_secs(60));
        }
    }
}

//! Durations and sizes, as people write them.

use std::time::Duration;

/// Reads `250ms`, `5s`, `1m30s`. The unit is required, but for `0`.
///
/// None when the text is not a duration.
pub fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok()
}

/// Writes a duration with one unit, so that [`parse_duration`] reads it back exactly.
///
/// Up to five minutes it is written in seconds or less: `75s` says more than `1m15s` to someone who
/// compares timeouts.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let seconds = duration.as_secs();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if duration.subsec_nanos() != 0 {
        let parts = [(1_000_000, "ms"), (1_000, "us"), (1, "ns")];
        for (size, unit) in parts {
            // humantime reads each number as a u64.
            if nanos.is_multiple_of(size) && nanos / size <= u128::from(u64::MAX) {
                return format!("{}{unit}", nanos / size);
            }
        }
        return format!("{seconds}s{}ns", duration.subsec_nanos());
    }
    match seconds {
        _ if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        _ if seconds > 300 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

const UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

/// Reads `64KiB`, `1MiB`, `64KB` (thousands), `4096`; fractions as `1.5MiB` if they are whole bytes.
///
/// None when the text is not a size, or is more than 2^64 bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let number = number.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || (number.contains('.') && !digits(fraction)) || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(*factor)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()? * u128::from(*factor);
    if part % scale != 0 {
        return None;
    }
    whole.checked_add(u64::try_from(part / scale).ok()?)
}

/// Writes a size with the largest binary unit that divides it, so that [`parse_size`] reads it back
/// exactly; plain bytes when none does.
pub fn format_size(bytes: u64) -> String {
    for (unit, factor) in &UNITS[..3] {
        if bytes != 0 && bytes.is_multiple_of(*factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let cases = [
            ("250ms", Some(250)),
            ("5s", Some(5_000)),
            ("1m", Some(60_000)),
            ("1m30s", Some(90_000)),
            ("1m 30s", Some(90_000)),
            ("0s", Some(0)),
            ("500", None),
            ("", None),
            ("-5s", None),
            ("5 parsecs", None),
        ];
        for (text, millis) in cases {
            assert_eq!(
                parse_duration(text),
                millis.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }

    #[test]
    fn durations_are_written_as_the_contract_writes_them() {
        for text in [
            "0s", "250ms", "500ms", "1s", "15s", "60s", "75s", "120s", "10m", "24h",
        ] {
            let duration = parse_duration(text).expect(text);
            assert_eq!(format_duration(duration), text);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64KiB", Some(65_536)),
            ("64kib", Some(65_536)),
            ("1 MiB", Some(1 << 20)),
            ("64KB", Some(64_000)),
            ("1.5MiB", Some(3 << 19)),
            ("1.0001KiB", None),
            ("12B", Some(12)),
            ("-1", None),
            (".5KiB", None),
            ("5.", None),
            ("64XiB", None),
            ("18446744073709551616", None),
            ("18446744073709551615GiB", None),
            ("", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), bytes, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_the_round_trip(seconds in 0u64..=10_000_000_000, nanos in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }

        #[test]
        fn a_size_survives_the_round_trip(bytes: u64, shift in 0u32..40) {
            let bytes = bytes << shift;
            prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }

        #[test]
        fn no_text_panics(text: String) {
            parse_duration(&text);
            parse_size(&text);
        }
    }
}

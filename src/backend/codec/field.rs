//! What the values of several fields have in common.

use memchr::memchr_iter;

/// The members of a list, RFC 9110 5.6.1, without the space around them; empty ones too.
pub fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether a list has this member, in whatever case.
pub fn has_member(value: &[u8], member: &[u8]) -> bool {
    members(value).any(|one| one.eq_ignore_ascii_case(member))
}

/// Whether a `Connection` says no more than whether to keep it: the usual case.
pub fn is_plain_option(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
}

/// A length, in bytes: digits only, and below 2^63, since more is a number that somebody else may read as
/// negative.
pub fn length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        let value = value.checked_mul(10)?.checked_add(digit)?;
        (value <= i64::MAX as u64).then_some(value)
    })
}

/// The place of the first colon in a line, found eight bytes at a time. After the XOR a colon is a zero byte.
/// Subtracting one from each byte sets the highest bit of zero bytes, and before the first of them of no
/// other byte that had it clear.
pub fn colon(line: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const COLONS: u64 = ONES * b':' as u64;
    const HIGH: u64 = ONES << 7;
    let (words, rest) = line.as_chunks();
    for (at, word) in words.iter().enumerate() {
        let others = u64::from_le_bytes(*word) ^ COLONS;
        let found = others.wrapping_sub(ONES) & !others & HIGH;
        if found != 0 {
            return Some(8 * at + found.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(|&byte| byte == b':')?;
    Some(8 * words.len() + at)
}

/// Whether there is a control character, RFC 9110 5.5, other than tabs and the CRLF that ends each of so many lines.
pub fn has_control(lines: &[u8], ends: usize) -> bool {
    // So that a chunk's count fits in a byte, and the compiler can take sixteen bytes at a time.
    const AT_ONCE: usize = 240;
    let controls = lines.chunks(AT_ONCE).map(|bytes| {
        let count = |count: u8, &byte: &u8| count + u8::from((byte < b' ') | (byte == 0x7f));
        usize::from(bytes.iter().fold(0, count))
    });
    let controls = controls.sum::<usize>();
    controls != 2 * ends && controls - 2 * ends != memchr_iter(b'\t', lines).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_members() {
        let all: Vec<_> = members(b" a ,,\tb c\t").collect();
        assert_eq!(all, [&b"a"[..], b"", b"b c"]);
        assert!(has_member(b"x, Close", b"close"));
        assert!(!has_member(b"closed, x", b"close") && !has_member(b"", b"close"));
    }

    #[test]
    fn lengths_are_plain_digits() {
        assert_eq!(length(b"0"), Some(0));
        assert_eq!(length(b"0000000000000000000000017"), Some(17));
        assert_eq!(length(b"9223372036854775807"), Some(i64::MAX as u64));
        for bad in [
            "",
            "+1",
            "-1",
            "1 ",
            "0x1",
            "1,1",
            "9223372036854775808",
            "99999999999999999999",
        ] {
            assert_eq!(length(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_colon_is_where_it_is(line: Vec<u8>, at in 0..40_usize) {
            let mut line = line;
            line.insert(at.min(line.len()), b':');
            for line in [&line[..], &line[1..]] {
                let naive = line.iter().position(|&byte| byte == b':');
                proptest::prop_assert_eq!(colon(line), naive);
            }
        }

        #[test]
        fn control_characters_are_found(
            lines in proptest::collection::vec("[ -~\\x80-\\xff]{0,200}", 1..4),
            at: proptest::sample::Index,
            some in "[\\x00-\\x7f]{0,2}",
        ) {
            let mut text = lines.join("\r\n");
            let at = at.index(text.len() + 1);
            proptest::prop_assume!(text.is_char_boundary(at) && !text[..at].ends_with('\r'));
            text.insert_str(at, &some);
            let is_bad = |byte: u8| byte.is_ascii_control() && byte != b'\t';
            let ends = lines.len() - 1;
            proptest::prop_assert_eq!(has_control(text.as_bytes(), ends), some.bytes().any(is_bad));
        }
    }
}

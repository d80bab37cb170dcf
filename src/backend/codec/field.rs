//! What the values of several fields have in common.

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
}

//! Numbers in heads. Formatting one would cost as much as everything else that is done to a head.

/// Digits of the largest number.
pub const DIGITS: usize = 20;

/// All pairs of digits.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut at = 0;
    while at < pairs.len() {
        pairs[at] = [b'0' + (at / 10) as u8, b'0' + (at % 10) as u8];
        at += 1;
    }
    pairs
};

/// The number's digits, at the end of `text`.
pub fn decimal(mut number: u64, text: &mut [u8; DIGITS]) -> &[u8] {
    let mut start = text.len();
    loop {
        start -= 2;
        text[start..start + 2].copy_from_slice(&PAIRS[(number % 100) as usize]);
        number /= 100;
        if number == 0 {
            break;
        }
    }
    if text[start] == b'0' {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_is_right() {
        for number in (0..=19).flat_map(|zeros| {
            let power = 10_u64.pow(zeros);
            [power - 1, power, power + 9]
        }) {
            let mut text = [0; DIGITS];
            assert_eq!(decimal(number, &mut text), number.to_string().as_bytes());
        }
        assert_eq!(
            decimal(u64::MAX, &mut [0; DIGITS]),
            u64::MAX.to_string().as_bytes()
        );
    }
}

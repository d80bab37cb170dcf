//! What a request is called in logs, and by whoever asks about it.

use http::HeaderValue;

use super::live::Live;
use crate::backend::{Plain, RequestHead};

/// The longest that is taken over from a client, bytes.
const SENT_MAX: usize = 128;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub enum RequestId {
    /// Its client's own.
    Sent(HeaderValue),
    /// 128 random bits in hexadecimal.
    Made([u8; 32]),
}

impl RequestId {
    /// The client's id for the request if it is a sane one, else a new one.
    pub fn of(head: Option<&RequestHead>, live: &Live) -> Self {
        let sent = head
            .zip(live.request_id.as_ref())
            .and_then(|(head, name)| Plain::find(head, name))
            .filter(|value| {
                (1..=SENT_MAX).contains(&value.len())
                    && value.as_bytes().iter().all(u8::is_ascii_graphic)
            });
        sent.map_or_else(Self::new, Self::Sent)
    }

    /// A new one.
    pub fn new() -> Self {
        let bits = fastrand::u128(..).to_le_bytes();
        let mut text = [0; 32];
        for (digits, bytes) in text.chunks_exact_mut(8).zip(bits.chunks_exact(4)) {
            let four = bytes
                .iter()
                .fold(0, |all, &byte| all << 8 | u32::from(byte));
            digits.copy_from_slice(&hexadecimal(four));
        }
        Self::Made(text)
    }

    /// Keeps nothing of the head that it came in.
    pub fn detach(&mut self) {
        if let Self::Sent(value) = self
            && let Ok(own) = HeaderValue::from_bytes(value.as_bytes())
        {
            *value = own;
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sent(value) => value.as_bytes(),
            Self::Made(text) => text,
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// As a field's value.
    pub fn to_value(&self) -> HeaderValue {
        match self {
            Self::Sent(value) => value.clone(),
            Self::Made(text) => {
                HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
            }
        }
    }
}

/// Eight digits, all at once: half a byte goes into each byte of a word, and those above 9 are moved to
/// the letters.
fn hexadecimal(number: u32) -> [u8; 8] {
    let mut halves = u64::from(number);
    halves = (halves | halves << 16) & 0x0000_ffff_0000_ffff;
    halves = (halves | halves << 8) & 0x00ff_00ff_00ff_00ff;
    halves = (halves | halves << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((halves + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    let digits = halves + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10);
    digits.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_one_is_hexadecimal_and_another_each_time() {
        let (one, other) = (RequestId::new(), RequestId::new());
        assert_ne!(one.as_str(), other.as_str());
        assert_eq!(one.as_str().len(), 32);
        assert!(one.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(one.to_value().as_bytes(), one.as_bytes());
    }

    proptest::proptest! {
        #[test]
        fn words_are_hexadecimal(number: u32) {
            proptest::prop_assert_eq!(hexadecimal(number).to_vec(), format!("{number:08x}").into_bytes());
        }
    }
}

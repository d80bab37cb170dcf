//! Names of fields that are known, and how one of them is found at a glance.

/// Longer than the longest of them, bytes.
const LONG: usize = 40;
/// The bit that makes capitals small. The one other byte that it turns into a letter or a hyphen is CR, which
/// does not occur within a line.
const LOWER: u8 = 0x20;

/// Some names, of letters and hyphens, in lower case.
#[derive(Debug)]
pub struct Names<const N: usize> {
    names: [&'static str; N],
    /// What tells those of a length apart.
    keys: [(u64, u64); N],
    /// Where the names of each length begin; they end where those of the next length begin.
    of_length: [u8; LONG + 1],
}

impl<const N: usize> Names<N> {
    /// These, the shortest first, and of those of a length best the most usual.
    pub const fn new(names: [&'static str; N]) -> Self {
        let (mut keys, mut of_length) = ([(0, 0); N], [0; LONG + 1]);
        let (mut at, mut length) = (0, 0);
        while length <= LONG {
            of_length[length] = at as u8;
            while at < N && names[at].len() == length {
                keys[at] = key(names[at].as_bytes());
                let mut before = of_length[length] as usize;
                while before < at {
                    let (one, other) = (keys[before], keys[at]);
                    assert!(one.0 != other.0 || one.1 != other.1, "two look the same");
                    before += 1;
                }
                at += 1;
            }
            length += 1;
        }
        assert!(at == N, "they are not the shortest first, or too long");
        Self {
            names,
            keys,
            of_length,
        }
    }

    /// The place of a name.
    ///
    /// # Panics
    /// If it is not among them.
    pub(super) const fn place(&self, name: &str) -> u8 {
        let (sought, mut at) = (key(name.as_bytes()), 0);
        while self.keys[at].0 != sought.0 || self.keys[at].1 != sought.1 {
            at += 1;
        }
        at as u8
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &'static str> {
        self.names.into_iter()
    }

    /// How many there are.
    pub(super) const fn len(&self) -> u8 {
        N as u8
    }

    /// The name at a place.
    pub(super) fn at(&self, place: u8) -> &'static str {
        self.names[usize::from(place)]
    }

    /// The place of the name that these bytes are, in whatever case, if it is there.
    #[inline]
    pub fn find(&self, bytes: &[u8]) -> Option<u8> {
        let length = bytes.len();
        if length >= LONG {
            return None;
        }
        let (from, to) = (self.of_length[length], self.of_length[length + 1]);
        let sought = key(bytes);
        let at = (from..to).find(|&at| self.keys[usize::from(at)] == sought)?;
        // The key of a name of more than 16 bytes does not cover all of it.
        let mut both = bytes.iter().zip(self.at(at).as_bytes());
        let is_known = length <= 16 || both.all(|(byte, known)| byte | LOWER == *known);
        is_known.then_some(at)
    }
}

/// The first eight bytes and the last eight, or four of a shorter name, in lower case.
const fn key(name: &[u8]) -> (u64, u64) {
    const EIGHT: u64 = u64::from_le_bytes([LOWER; 8]);
    const FOUR: u32 = u32::from_le_bytes([LOWER; 4]);
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        let (first, last) = (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
        return (first | EIGHT, last | EIGHT);
    }
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        return ((first | FOUR) as u64, (last | FOUR) as u64);
    }
    match *name {
        [a, b] => (u16::from_le_bytes([a, b]) as u64 | FOUR as u64 & 0xffff, 0),
        [a, b, c] => (u32::from_le_bytes([a, b, c, 0]) as u64 | FOUR as u64, 0),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: [&str; 10] = [
        "te",
        "dnt",
        "host",
        "accept",
        "referer",
        "if-match",
        "user-agent",
        "sec-ch-ua-mobile",
        "if-modified-since",
        "upgrade-insecure-requests",
    ];
    const NAMES: Names<10> = Names::new(SOME);

    #[test]
    fn names_are_found_in_any_case_and_no_others() {
        for (place, name) in SOME.iter().enumerate() {
            let place = place as u8;
            assert_eq!((NAMES.place(name), NAMES.at(place)), (place, *name));
            let capitals = name.to_ascii_uppercase();
            for text in [name.as_bytes(), capitals.as_bytes()] {
                assert_eq!(NAMES.find(text), Some(place), "{name}");
                for at in 0..text.len() {
                    for other in (0..=u8::MAX).filter(|&byte| byte != b'\r') {
                        let mut text = text.to_vec();
                        let same = text[at].eq_ignore_ascii_case(&other);
                        text[at] = other;
                        let found = NAMES.find(&text).is_some();
                        assert_eq!(found, same, "{}", text.escape_ascii());
                    }
                }
                let longer = [text, b"x"].concat();
                assert_eq!(NAMES.find(&longer), None, "{}", longer.escape_ascii());
            }
        }
        for length in [0, 1, 2, LONG - 1, LONG, 100] {
            assert_eq!(NAMES.find(&vec![b'x'; length]), None, "{length}");
        }
    }
}

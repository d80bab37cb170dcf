//! The file: a header of 8 KiB, then a ring of records of 56 bytes, all little-endian. A record is
//! told from an empty place by its number, which starts at 1, and from half of one by its checksum.

use flate2::Crc;

use crate::{config::Class, control::Outcome, observe::labels::Reason};

/// The first bytes of every trace.
const MAGIC: &[u8; 8] = b"tidegate";
/// Of the format. A reader refuses any other.
const VERSION: u32 = 1;
/// Bytes of the header; records begin behind it.
pub const HEADER: usize = 8192;
/// Bytes of a record.
pub const RECORD: usize = 56;
/// Where the names of the routes begin.
const NAMES: usize = 32;
/// The longest name of a route that is kept, bytes.
const LONGEST: usize = 120;

/// The header of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Records that the ring has room for.
    pub capacity: u64,
    /// The names of the routes.
    pub routes: Vec<String>,
}

/// Why bytes are not a trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Something else altogether.
    #[error("it is not a trace of tidegate's")]
    Foreign,
    /// Another version's.
    #[error("it is a trace of format {0}; this tidegate reads format {VERSION}")]
    Version(u32),
}

impl Header {
    /// The header's bytes. Names that do not fit are left out, and read back as empty.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(RECORD as u32).to_le_bytes());
        bytes.extend_from_slice(&self.capacity.to_le_bytes());
        let count = u16::try_from(self.routes.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.resize(NAMES, 0);
        for name in &self.routes {
            let name = cut(name);
            if bytes.len() + 1 + name.len() > HEADER {
                break;
            }
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes.resize(HEADER, 0);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When it is not one of this version's.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = bytes.get(..HEADER).ok_or(FormatError::Foreign)?;
        if !bytes.starts_with(MAGIC) {
            return Err(FormatError::Foreign);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION || u32_at(bytes, 12) as usize != RECORD {
            return Err(FormatError::Version(version));
        }
        let count = u16_at(bytes, 24);
        let mut rest = &bytes[NAMES..];
        let routes = (0..count)
            .map(|_| {
                let (&length, after) = rest.split_first()?;
                let name = after.get(..usize::from(length))?;
                rest = &after[usize::from(length)..];
                Some(String::from_utf8_lossy(name).into_owned())
            })
            .map(Option::unwrap_or_default)
            .collect();
        Ok(Self {
            capacity: u64_at(bytes, 16),
            routes,
        })
    }
}

/// At most so much of a name, not in the middle of a character.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(LONGEST);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The backend had it.
    Served(Outcome),
    /// The gate refused it.
    Refused(Reason),
    /// Its client left the queue.
    Left,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it came to the gate, microseconds since the epoch.
    pub arrived: u64,
    /// How long it waited there, microseconds.
    pub waited: u32,
    /// How long the backend had it, microseconds; 0 if it did not.
    pub took: u32,
    /// In flight at its endpoint when it began, itself included; 0 if it did not.
    pub in_flight: u32,
    /// The limit of its endpoint then; of all of them together if it did not begin.
    pub limit: u32,
    /// The slots that were known of its endpoint; 0 = none.
    pub slots: u32,
    /// Its endpoint's number.
    pub lane: u32,
    /// Its deadline, microseconds after its arrival; 0 = none.
    pub patience: u32,
    /// A place among the names of routes.
    pub route: u16,
    /// Its importance.
    pub class: Class,
    /// What became of it.
    pub fate: Fate,
}

/// The record's bytes. `number` counts from 1.
pub fn encode(number: u64, entry: &Entry) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let (kind, detail) = match entry.fate {
        Fate::Served(outcome) => (0, place(&OUTCOMES, outcome)),
        Fate::Refused(reason) => (1, place(Reason::ALL, reason)),
        Fate::Left => (2, 0),
    };
    let mut at = 0;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    put(&number.to_le_bytes());
    put(&entry.arrived.to_le_bytes());
    for figure in [
        entry.waited,
        entry.took,
        entry.in_flight,
        entry.limit,
        entry.slots,
        entry.lane,
        entry.patience,
    ] {
        put(&figure.to_le_bytes());
    }
    put(&entry.route.to_le_bytes());
    put(&[place(Class::ALL, entry.class), kind, detail, 0, 0, 0]);
    let sum = checksum(&bytes[..RECORD - 4]);
    bytes[RECORD - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A record of which only a part was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Reads a record; `None` where there never was one.
///
/// # Errors
/// When only a part of it was written.
pub fn decode(bytes: &[u8]) -> Result<Option<(u64, Entry)>, Damaged> {
    if bytes.len() != RECORD {
        return Err(Damaged);
    }
    let number = u64_at(bytes, 0);
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if checksum(&bytes[..RECORD - 4]) != u32_at(bytes, RECORD - 4) {
        return Err(Damaged);
    }
    let figure = |index: usize| u32_at(bytes, 16 + index * 4);
    let detail = usize::from(bytes[48]);
    let fate = match bytes[47] {
        0 => Fate::Served(*OUTCOMES.get(detail).ok_or(Damaged)?),
        1 => Fate::Refused(*Reason::ALL.get(detail).ok_or(Damaged)?),
        2 => Fate::Left,
        _ => return Err(Damaged),
    };
    let entry = Entry {
        arrived: u64_at(bytes, 8),
        waited: figure(0),
        took: figure(1),
        in_flight: figure(2),
        limit: figure(3),
        slots: figure(4),
        lane: figure(5),
        patience: figure(6),
        route: u16_at(bytes, 44),
        class: *Class::ALL.get(usize::from(bytes[46])).ok_or(Damaged)?,
        fate,
    };
    Ok(Some((number, entry)))
}

const OUTCOMES: [Outcome; 5] = [
    Outcome::Success,
    Outcome::Overload,
    Outcome::Neutral,
    Outcome::Excluded,
    Outcome::InVain,
];

fn place<T: PartialEq>(all: &[T], one: T) -> u8 {
    let place = all.iter().position(|known| *known == one);
    place.map_or(u8::MAX, |place| place as u8)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn entry() -> Entry {
        Entry {
            arrived: 1_700_000_000_123_456,
            waited: 1,
            took: 50_000,
            in_flight: 3,
            limit: 4,
            slots: 2,
            lane: 1,
            patience: 1_000_000,
            route: 7,
            class: Class::High,
            fate: Fate::Served(Outcome::Overload),
        }
    }

    #[test]
    fn a_record_is_read_back() {
        let fates = OUTCOMES.map(Fate::Served).into_iter();
        let fates = fates
            .chain(Reason::ALL.iter().map(|reason| Fate::Refused(*reason)))
            .chain([Fate::Left]);
        for (fate, class) in fates.flat_map(|f| Class::ALL.iter().map(move |class| (f, *class))) {
            let entry = Entry {
                fate,
                class,
                ..entry()
            };
            assert_eq!(decode(&encode(9, &entry)), Ok(Some((9, entry))));
        }
        assert_eq!(decode(&[0; RECORD]), Ok(None));
    }

    #[test]
    fn half_a_record_is_none() {
        let whole = encode(9, &entry());
        for written in 1..RECORD - 4 {
            let mut half = [0; RECORD];
            half[..written].copy_from_slice(&whole[..written]);
            assert_eq!(decode(&half), Err(Damaged), "{written}");
        }
    }

    #[test]
    fn a_header_is_read_back_and_another_is_refused() {
        let header = Header {
            capacity: 1000,
            routes: vec!["default".into(), "ü".repeat(100), String::new()],
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER);
        let read = Header::decode(&bytes).unwrap();
        assert_eq!((read.capacity, read.routes.len()), (1000, 3));
        assert_eq!(
            (read.routes[0].as_str(), read.routes[1].chars().count()),
            ("default", 60)
        );
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(Header::decode(&newer), Err(FormatError::Version(2)));
        assert_eq!(Header::decode(b"tidegate"), Err(FormatError::Foreign));
        assert_eq!(Header::decode(&[0; HEADER]), Err(FormatError::Foreign));
        // More names than there is room for.
        let many = Header {
            capacity: 1,
            routes: vec!["x".repeat(100); 500],
        };
        assert_eq!(Header::decode(&many.encode()).unwrap().routes.len(), 500);
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_reason_to_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let _ = Header::decode(&bytes);
            for record in bytes.chunks(RECORD) {
                let _ = decode(record);
            }
        }
    }
}

//! Follows the frames that a client sends, only as far as it takes to know whether it is in the midst
//! of a head: the parser has no timeout for one.

/// What a connection begins with, RFC 9113 3.4.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much of it makes sure that it is not HTTP/1: up to the version.
pub const PREFACE_LINE: usize = 14;

const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// See the module's documentation. No I/O; it takes bytes in whatever pieces they come.
#[derive(Debug)]
pub struct Frames {
    /// What is still to come of the preface, bytes.
    preface: usize,
    /// Whether the first frame is complete, which is the client's SETTINGS.
    settled: bool,
    header: [u8; FRAME_HEADER],
    /// How much of the frame's header has come, bytes.
    have: usize,
    /// How much of its payload is still to come, bytes.
    left: usize,
    /// A head whose last frame has not begun.
    open: bool,
    /// How much of a head its frames have or announce, bytes.
    head: usize,
}

impl Frames {
    /// Before the preface.
    pub fn new() -> Self {
        Self {
            preface: PREFACE.len(),
            settled: false,
            header: [0; FRAME_HEADER],
            have: 0,
            left: 0,
            open: false,
            head: 0,
        }
    }

    /// Looks at the next bytes. Says whether a frame ended among them that leaves no head open: then the
    /// client's time begins anew. While a head is open it does not, in however many frames that comes.
    pub fn advance(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.have < FRAME_HEADER {
                let count = bytes.len().min(FRAME_HEADER - self.have);
                self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
                self.have += count;
                bytes = &bytes[count..];
                if self.have < FRAME_HEADER {
                    break;
                }
                let [a, b, c, ..] = self.header;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                if self.is_head_frame() {
                    let before = if self.open { self.head } else { 0 };
                    self.head = before.saturating_add(self.left);
                }
            }
            let count = bytes.len().min(self.left);
            self.left -= count;
            bytes = &bytes[count..];
            if self.left == 0 {
                if self.is_head_frame() {
                    self.open = self.header[4] & END_HEADERS == 0;
                }
                self.have = 0;
                self.settled = true;
                ended |= !self.open;
            }
        }
        ended
    }

    /// How much there is, packed, of a head whose last frame has not begun: it is unpacked as it comes. In bytes.
    pub fn in_pieces(&self) -> Option<usize> {
        self.open.then_some(self.head)
    }

    /// Whether the client owes the rest of a head, of a frame's header, or of its first words.
    pub fn owes(&self) -> bool {
        let begun = self.have > 0 && (self.have < FRAME_HEADER || self.is_head_frame());
        !self.settled || self.open || begun
    }

    fn is_head_frame(&self) -> bool {
        matches!(self.header[3], HEADERS | CONTINUATION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(FRAME_HEADER + length, b'x');
        frame
    }

    fn settled() -> Frames {
        let mut frames = Frames::new();
        frames.advance(PREFACE);
        assert!(frames.owes(), "its settings");
        frames.advance(&frame(4, 0, 6));
        assert!(!frames.owes());
        frames
    }

    #[test]
    fn a_head_is_owed_until_its_last_frame_is_complete() {
        let whole = [frame(1, 0, 40), frame(9, 0, 0), frame(9, END_HEADERS, 20)].concat();
        let mut frames = settled();
        for (at, byte) in whole.iter().enumerate() {
            frames.advance(&[*byte]);
            assert_eq!(frames.owes(), at + 1 < whole.len(), "after byte {at}");
        }
        let mut at_once = settled();
        assert!(at_once.advance(&whole));
        assert!(!at_once.owes());
        assert_eq!(at_once.in_pieces(), None);
        assert!(!at_once.advance(&whole[..FRAME_HEADER + 40]));
        assert_eq!(at_once.in_pieces(), Some(40));
        assert!(!at_once.advance(&frame(9, 0, 0)), "it is the same head");
        assert!(!at_once.advance(&frame(9, 0, 5)));
        assert_eq!(at_once.in_pieces(), Some(45));
        let end_and_next = [&frame(9, END_HEADERS, 20)[..], &whole[..5]].concat();
        assert!(at_once.advance(&end_and_next) && at_once.owes(), "another");
    }

    #[test]
    fn data_may_take_its_time() {
        let mut frames = settled();
        frames.advance(&frame(0, 0, 100)[..FRAME_HEADER + 50]);
        assert!(!frames.owes());
        assert!(frames.advance(&frame(0, 0, 50)[FRAME_HEADER..]));
        frames.advance(&frame(0, 0, 100)[..5]);
        assert!(frames.owes(), "a frame's header in two pieces");
    }
}

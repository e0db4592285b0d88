//! Bytes on their way to the host, and base64 straight into them.
//!
//! Runs in the frontend. Grows with what is put in; the session stops putting in when [`FULL`] is reached.

use base64::Engine as _;

use crate::payload::engine;

/// From here on nothing more is read from the host, and no piece asked for, until the host has read: two pieces as base64.
pub(crate) const FULL: usize = 256 * 1024;
/// What is kept of the buffer when nothing is in it.
const KEPT: usize = 64 * 1024;

/// Bytes that wait to be written.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// What is to be written next.
    pub(crate) fn pending(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// Whether the host has to read before more is put in.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() - self.sent >= FULL
    }

    /// The first `count` pending bytes are written.
    pub(crate) fn consume(&mut self, count: usize) {
        self.sent = self.bytes.len().min(self.sent + count);
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent > FULL && self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Gives back what a large reply has taken; for when nothing goes on.
    pub(crate) fn shrink(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > FULL {
            self.bytes.shrink_to(KEPT);
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.sent = 0;
    }

    /// Where to put more.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Puts bytes in.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

/// Base64 of bytes that come in pieces; up to two of them wait for the next piece.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    carry: Vec<u8>,
}

impl Encoder {
    /// Appends the text of all whole groups.
    pub(crate) fn push(&mut self, mut bytes: &[u8], output: &mut Vec<u8>) {
        if !self.carry.is_empty() {
            let wanted = 3 - self.carry.len();
            let (head, rest) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            self.carry.extend_from_slice(head);
            bytes = rest;
            if self.carry.len() < 3 {
                return;
            }
            encode(&self.carry, output);
            self.carry.clear();
        }
        let (groups, rest) = bytes.split_at_checked(bytes.len() / 3 * 3).unwrap_or((bytes, &[]));
        encode(groups, output);
        self.carry.extend_from_slice(rest);
    }

    /// Appends the last, padded group.
    pub(crate) fn finish(&mut self, output: &mut Vec<u8>) {
        encode(&self.carry, output);
        self.carry.clear();
    }
}

/// Appends the base64 of `bytes`, padded.
pub(crate) fn encode(bytes: &[u8], output: &mut Vec<u8>) {
    let begin = output.len();
    output.resize(begin + bytes.len().div_ceil(3) * 4, 0);
    let room = output.get_mut(begin..).unwrap_or_default();
    engine().encode_slice(bytes, room).expect("the room is of the right size");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_text_of_the_whole(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10),
        ) {
            let (mut encoder, mut output) = (Encoder::default(), Vec::new());
            for piece in &pieces {
                encoder.push(piece, &mut output);
            }
            encoder.finish(&mut output);
            prop_assert_eq!(output, engine().encode(pieces.concat()).into_bytes());
        }
    }

    #[test]
    fn what_is_written_is_gone_and_the_rest_stays_in_order() {
        let mut output = Output::default();
        output.push(b"abcdef");
        output.consume(2);
        output.push(b"gh");
        assert_eq!(output.pending(), b"cdefgh");
        output.consume(6);
        assert_eq!(output.pending(), b"");
    }

    #[test]
    fn a_large_reply_leaves_a_small_buffer() {
        let mut output = Output::default();
        output.push(&vec![b'x'; 10 << 20]);
        output.consume(10 << 20);
        output.shrink();
        assert!(output.bytes.capacity() <= KEPT);
    }
}

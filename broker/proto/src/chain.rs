//! Where the audit log's chain of hashes stands: handed from one broker to the next, and from one agent to the next.
//!
//! The broker appends to the log and cannot read it. What it needs to go on is in a small memory file that the spawner gives to every
//! broker: `portreeve` fills it at the start from the end of the log, and each broker writes it before each record. Whoever reads it
//! believes nothing of it: it may be the word of a broker that had been taken over.
//!
//! A record is announced here before it is written to the log. A broker that comes after a broken one knows from the length of the
//! log whether it got there.

use std::fmt;

use bincode::{Decode, Encode};

/// Bytes of the memory file: two places, which are written in turn, so that a whole one is there at every moment.
pub const FILE: usize = 2 * PLACE;
/// Bytes of one place.
const PLACE: usize = 64 * 1024;
/// Intents that are remembered. More than this are under way only when workers hang for hours.
pub const INTENTS: usize = 1024;
const INTENT: usize = 40;

/// A SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl Hash {
    /// The hash that 64 lower-case hexadecimal digits stand for.
    pub fn parse(text: &str) -> Option<Hash> {
        let mut hash = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digit = |digit: &u8| match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'a'..=b'f' => Some(digit - b'a' + 10),
                _ => None,
            };
            let [high, low] = pair else { return None };
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Some(Hash(hash))
    }
}

/// A record's place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Its number; 0 stands for none: there is no record before.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
    /// Bytes of the log file up to its end; of no meaning where the log is no file.
    pub size: u64,
}

/// An intent that has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intent {
    /// The hash of the last record of the part that it stands in, if that part has ended.
    pub of: Option<Hash>,
    /// Its number.
    pub sequence: u64,
}

/// Where the chain stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Counts up with each writing.
    pub turn: u64,
    /// Whether a broker has written it, and not `portreeve`.
    pub of_a_broker: bool,
    /// The last record that is in the log.
    pub last: Head,
    /// The one that is being written.
    pub next: Option<Head>,
    /// The intent whose outcome it is.
    pub ends: Option<Intent>,
    /// Records that wait in memory, and those that were lost and not counted in the log yet.
    pub unwritten: u64,
    /// Bytes of an incomplete line at the end of the log.
    pub cut: u64,
    /// When the log file was begun: seconds since 1970.
    pub begun: u64,
    /// At most [`INTENTS`].
    pub intents: Vec<Intent>,
}

impl Chain {
    /// The record that was being written is in the log, or is not.
    pub fn settle(&mut self, written: bool) {
        let Some(next) = self.next.take() else { return };
        let ends = self.ends.take();
        if written {
            self.intents.retain(|intent| Some(*intent) != ends);
            self.last = next;
        } else {
            self.intents.retain(|intent| intent.of.is_some() || intent.sequence != next.sequence);
        }
    }

    /// Where in the memory file it belongs, and its bytes. `buffer` is used again, to save the allocation.
    pub fn encode(&self, buffer: &mut Vec<u8>) -> u64 {
        buffer.clear();
        let next = self.next.unwrap_or_default();
        let ends = self.ends.unwrap_or(Intent { of: None, sequence: 0 });
        let flags = u64::from(self.of_a_broker) | u64::from(self.next.is_some()) << 1;
        let intents = self.intents.get(..INTENTS.min(self.intents.len())).unwrap_or_default();
        for number in [
            self.turn,
            flags,
            self.last.sequence,
            self.last.size,
            next.sequence,
            next.size,
            self.unwritten,
            self.cut,
            self.begun,
            intents.len() as u64,
        ] {
            buffer.extend_from_slice(&number.to_le_bytes());
        }
        buffer.extend_from_slice(&self.last.hash.0);
        buffer.extend_from_slice(&next.hash.0);
        for intent in [ends].iter().chain(intents) {
            buffer.extend_from_slice(&intent.sequence.to_le_bytes());
            // No record has this hash.
            buffer.extend_from_slice(&intent.of.unwrap_or_default().0);
        }
        // Bytes arrive in their order: with the number at its end, too, the place is whole.
        buffer.extend_from_slice(&self.turn.to_le_bytes());
        if self.turn.is_multiple_of(2) { 0 } else { PLACE as u64 }
    }

    /// The younger of the two whole places; nothing if neither is.
    pub fn decode(file: &[u8]) -> Option<Chain> {
        let places = file.chunks(PLACE).take(2).filter_map(Chain::of_place);
        places.max_by_key(|chain| chain.turn)
    }

    fn of_place(place: &[u8]) -> Option<Chain> {
        let mut rest = Rest(place);
        let turn = rest.number()?;
        let flags = rest.number()?;
        let (last_sequence, last_size) = (rest.number()?, rest.number()?);
        let (next_sequence, next_size) = (rest.number()?, rest.number()?);
        let (unwritten, cut, begun) = (rest.number()?, rest.number()?, rest.number()?);
        let count = usize::try_from(rest.number()?).ok().filter(|count| *count <= INTENTS)?;
        let last = Head { sequence: last_sequence, hash: rest.hash()?, size: last_size };
        let next = Head { sequence: next_sequence, hash: rest.hash()?, size: next_size };
        let ends = Some(rest.intent()?).filter(|intent| intent.sequence > 0);
        let mut intents = Vec::with_capacity(count);
        for _ in 0..count {
            intents.push(rest.intent()?);
        }
        // A file of zeros is none that somebody has written.
        (rest.number()? == turn && turn > 0).then_some(Chain {
            turn,
            of_a_broker: flags & 1 != 0,
            last,
            next: (flags & 2 != 0).then_some(next),
            ends,
            unwritten,
            cut,
            begun,
            intents,
        })
    }
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn hash(&mut self) -> Option<Hash> {
        self.array().map(Hash)
    }

    fn intent(&mut self) -> Option<Intent> {
        let sequence = self.number()?;
        let of = Some(self.hash()?).filter(|hash| *hash != Hash::default());
        Some(Intent { of, sequence })
    }
}

// The largest chain fits into its place.
const _: () = assert!(11 * 8 + 2 * 32 + (INTENTS + 1) * INTENT <= PLACE);

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(turn: u64) -> Chain {
        Chain {
            turn,
            of_a_broker: true,
            last: Head { sequence: 7, hash: Hash([1; 32]), size: 900 },
            next: Some(Head { sequence: 8, hash: Hash([2; 32]), size: 1200 }),
            ends: Some(Intent { of: None, sequence: 6 }),
            unwritten: 3,
            cut: 0,
            begun: 1_800_000_000,
            intents: vec![Intent { of: None, sequence: 6 }, Intent { of: Some(Hash([3; 32])), sequence: 2 }],
        }
    }

    fn write(file: &mut [u8], chain: &Chain) {
        let mut bytes = Vec::new();
        let at = usize::try_from(chain.encode(&mut bytes)).unwrap();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    #[test]
    fn the_younger_of_two_is_what_counts_and_a_torn_one_does_not() {
        let mut file = vec![0; FILE];
        assert_eq!(Chain::decode(&file), None);
        write(&mut file, &chain(4));
        write(&mut file, &chain(5));
        assert_eq!(Chain::decode(&file), Some(chain(5)));
        let mut bytes = Vec::new();
        assert_eq!(chain(6).encode(&mut bytes), 0);
        file[..100].copy_from_slice(&bytes[..100]);
        assert_eq!(Chain::decode(&file), Some(chain(5)), "4 was overwritten by half of 6");
    }

    #[test]
    fn more_intents_than_there_is_room_for_are_forgotten_and_a_larger_number_is_not_believed() {
        let mut many = chain(2);
        many.intents = vec![Intent { of: None, sequence: 1 }; INTENTS + 5];
        let mut file = vec![0; FILE];
        write(&mut file, &many);
        assert_eq!(Chain::decode(&file).unwrap().intents.len(), INTENTS);
        file[72..80].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Chain::decode(&file), None);
    }

    #[test]
    fn an_outcome_ends_its_intent_only_if_it_was_written_and_an_intent_begins_only_then() {
        let mut written = chain(4);
        written.settle(true);
        assert_eq!((written.last.sequence, written.intents.len()), (8, 1));
        let mut lost = chain(4);
        lost.settle(false);
        assert_eq!((lost.last.sequence, lost.intents.len()), (7, 2));
        lost.next = Some(Head { sequence: 8, ..Head::default() });
        lost.intents.push(Intent { of: None, sequence: 8 });
        lost.settle(false);
        assert_eq!(lost.intents, chain(4).intents);
    }

    #[test]
    fn no_content_of_the_file_is_too_much() {
        for byte in [0_u8, 1, 0x7f, 0xff] {
            let _ = Chain::decode(&vec![byte; FILE]);
            let _ = Chain::decode(&[byte; 77]);
        }
        assert_eq!(Chain::decode(&[]), None);
    }

    #[test]
    fn a_hash_is_64_lower_case_digits() {
        let text = "00ff1234567890abcdef00ff1234567890abcdef00ff1234567890abcdef0011";
        assert_eq!(Hash::parse(text).unwrap().to_string(), text);
        assert_eq!(Hash::parse(&text.to_uppercase()), None);
        assert_eq!(Hash::parse("00"), None);
    }
}

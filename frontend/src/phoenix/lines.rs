//! Bytes become lines, however they are cut.
//!
//! Runs in the frontend on what the host sent. A line that is too long is dropped up to its end, once for all of it.

use crate::scan;

/// The longest line that is read; Phoenix itself has no limit.
pub const LINE_BYTES: usize = 64 << 20;
/// A buffer larger than this is not kept for the next line.
const KEPT: usize = 16 * 1024;

/// What a reader has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line, without its LF.
    Whole(&'a [u8]),
    /// A line over [`LINE_BYTES`] has begun; the rest of it will be dropped.
    TooLong,
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Reader {
    begun: Vec<u8>,
    /// The line that was begun has been given out.
    stale: bool,
    dropping: bool,
}

impl Reader {
    /// Reads on until a line is whole or the bytes end; returns how many were read.
    pub fn read<'a>(&'a mut self, input: &'a [u8]) -> (usize, Option<Line<'a>>) {
        if std::mem::take(&mut self.stale) {
            self.begun.clear();
            self.begun.shrink_to(KEPT);
        }
        let end = scan::find(input, |byte| byte == b'\n');
        let (part, used) = match end {
            Some(end) => (input.get(..end).unwrap_or_default(), end + 1),
            None => (input, input.len()),
        };
        if self.dropping {
            self.dropping = end.is_none();
            return (used, None);
        }
        if self.begun.len() + part.len() > LINE_BYTES {
            self.dropping = end.is_none();
            self.begun = Vec::new();
            return (used, Some(Line::TooLong));
        }
        if end.is_some() && self.begun.is_empty() {
            return (used, Some(Line::Whole(part)));
        }
        self.begun.extend_from_slice(part);
        self.stale = end.is_some();
        (used, self.stale.then_some(Line::Whole(&self.begun)))
    }

    /// Forgets what was begun: another client begins.
    pub fn reset(&mut self) {
        *self = Reader::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let mut reader = Reader::default();
        let mut found = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let (used, line) = reader.read(rest);
                found.extend(line.map(|line| match line {
                    Line::Whole(line) => Some(line.to_vec()),
                    Line::TooLong => None,
                }));
                rest = &rest[used..];
            }
        }
        found
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(text in "[ab\n]{0,60}", cut in 0usize..60) {
            let (left, right) = text.as_bytes().split_at(cut.min(text.len()));
            let whole: Vec<_> = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).collect();
            let found: Vec<_> = lines(&[left, right]).into_iter().map(|line| String::from_utf8(line.unwrap()).unwrap()).collect();
            prop_assert_eq!(found, whole);
        }
    }

    #[test]
    fn a_line_over_the_limit_is_one_error_and_the_next_line_is_read() {
        let long = vec![b'x'; LINE_BYTES];
        assert_eq!(lines(&[&long, b"xx", b"xx\nnext\n"]), [None, Some(b"next".to_vec())]);
    }

    #[test]
    fn the_memory_of_a_long_line_is_given_back() {
        let mut reader = Reader::default();
        reader.read(&vec![b'x'; 1 << 20]);
        reader.read(b"\n");
        reader.read(b"a");
        assert!(reader.begun.capacity() <= KEPT);
    }
}

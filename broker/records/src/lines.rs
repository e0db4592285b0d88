//! Lines of a log, one at a time, in memory that does not depend on how long they are.

use std::io::{self, BufRead, Read as _};

/// Bytes of a record at most, without its line end.
pub const LONGEST: usize = 16 * 1024;

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line as it should be.
    Whole(&'a [u8]),
    /// More than [`LONGEST`]; so many bytes were skipped.
    TooLong(u64),
    /// The end of the log without a line end: cut, or still being written.
    Unended(&'a [u8]),
}

/// Reads lines.
pub struct Lines<R> {
    from: R,
    buffer: Vec<u8>,
    /// Bytes of a line that is too long, beyond what is in `buffer`.
    beyond: u64,
    /// What is in `buffer` was handed out.
    given: bool,
}

impl<R: BufRead> Lines<R> {
    /// Reads from where `from` stands.
    pub fn new(from: R) -> Self {
        Lines { from, buffer: Vec::new(), beyond: 0, given: false }
    }

    /// The next line, or none at the end of the log.
    ///
    /// # Errors
    /// What reading says.
    #[expect(clippy::should_implement_trait, reason = "what it gives borrows from it: no iterator can")]
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        if self.fill()? {
            return Ok(Some(self.line()));
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        self.given = true;
        Ok(Some(match self.length() {
            Some(length) => Line::TooLong(length),
            None => Line::Unended(&self.buffer),
        }))
    }

    /// The next line that has an end, or none if there is none yet: what there is of it is kept for the next call.
    ///
    /// # Errors
    /// What reading says.
    pub fn next_ended(&mut self) -> io::Result<Option<Line<'_>>> {
        Ok(if self.fill()? { Some(self.line()) } else { None })
    }

    /// The reader beneath, which may have been read ahead.
    pub fn get_ref(&self) -> &R {
        &self.from
    }

    /// Reads up to a line end; false if the log ended first.
    fn fill(&mut self) -> io::Result<bool> {
        if self.given {
            self.buffer.clear();
            self.beyond = 0;
            self.given = false;
        }
        // One more than the longest, which is the line end or the proof that the line is too long.
        let room = (LONGEST + 1).saturating_sub(self.buffer.len());
        if room > 0 {
            let mut some = (&mut self.from).take(u64::try_from(room).unwrap_or(u64::MAX));
            some.read_until(b'\n', &mut self.buffer)?;
        }
        if self.buffer.last() == Some(&b'\n') {
            return Ok(true);
        }
        if self.buffer.len() <= LONGEST {
            return Ok(false);
        }
        loop {
            let some = match self.from.fill_buf() {
                Ok(some) => some,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if some.is_empty() {
                return Ok(false);
            }
            let end = some.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(some.len(), |end| end + 1);
            self.from.consume(used);
            self.beyond = self.beyond.saturating_add(u64::try_from(end.unwrap_or(used)).unwrap_or(u64::MAX));
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    fn line(&mut self) -> Line<'_> {
        self.given = true;
        match (self.length(), self.buffer.strip_suffix(b"\n")) {
            (None, Some(line)) => Line::Whole(line),
            (length, _) => Line::TooLong(length.unwrap_or_default()),
        }
    }

    /// How long the line is, if it is too long.
    fn length(&self) -> Option<u64> {
        let kept = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer).len();
        (kept > LONGEST).then(|| u64::try_from(kept).unwrap_or(u64::MAX).saturating_add(self.beyond))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one_and_the_last_may_lack_its_end() {
        let mut lines = Lines::new(&b"a\n\nbc\nd"[..]);
        assert_eq!(lines.next().unwrap(), Some(Line::Whole(b"a")));
        assert_eq!(lines.next().unwrap(), Some(Line::Whole(b"")));
        assert_eq!(lines.next().unwrap(), Some(Line::Whole(b"bc")));
        assert_eq!(lines.next().unwrap(), Some(Line::Unended(b"d")));
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_counted_but_not_kept() {
        let fits = "x".repeat(LONGEST);
        let (long, longer) = ("y".repeat(LONGEST + 1), "z".repeat(10 * LONGEST));
        let text = format!("{fits}\n{long}\n{longer}\nend\n{longer}");
        let mut lines = Lines::new(io::BufReader::with_capacity(1000, text.as_bytes()));
        assert_eq!(lines.next().unwrap(), Some(Line::Whole(fits.as_bytes())));
        assert_eq!(lines.next().unwrap(), Some(Line::TooLong(16 * 1024 + 1)));
        assert_eq!(lines.next().unwrap(), Some(Line::TooLong(160 * 1024)));
        assert_eq!(lines.next().unwrap(), Some(Line::Whole(b"end")));
        assert_eq!(lines.next().unwrap(), Some(Line::TooLong(160 * 1024)));
        assert_eq!(lines.next().unwrap(), None);
        assert!(lines.buffer.capacity() <= 4 * LONGEST, "{}", lines.buffer.capacity());
    }

    /// Gives its parts one by one, each followed by an end of file.
    struct Parts(Vec<&'static [u8]>);

    impl io::Read for Parts {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let part = self.0.remove(0);
            into[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }
    }

    #[test]
    fn a_line_that_is_being_written_is_waited_for() {
        let parts = Parts(vec![b"a\nb", b"", b"c", b"", b"d\n"]);
        let mut lines = Lines::new(io::BufReader::new(parts));
        assert_eq!(lines.next_ended().unwrap(), Some(Line::Whole(b"a")));
        assert_eq!(lines.next_ended().unwrap(), None);
        assert_eq!(lines.next_ended().unwrap(), None);
        assert_eq!(lines.next_ended().unwrap(), Some(Line::Whole(b"bcd")));
    }
}

//! What is wrong with a text, where, shown under the line.

use std::fmt;
use std::ops::Range;

/// A complaint about one place of a text. Its `Display` is
/// `FILE:LINE: REASON`, then the line and carets under the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    file: String,
    /// From 1; 0 where there is no text.
    line: usize,
    reason: String,
    shown: String,
}

/// Longest line shown, in characters. A policy has shorter ones; a file that is no policy may be one line.
const SHOWN: usize = 200;

impl Complaint {
    /// Complains about `span`, byte offsets into `text`. A span that does not fit is moved to where it does.
    pub fn new(file: &str, text: &str, span: Range<usize>, reason: &str) -> Self {
        let start = boundary(text, span.start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
        let line = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default();
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        // Carets stop at the end of the line.
        let place = text.get(start..boundary(text, span.end.max(start))).unwrap_or_default();
        let width = place.lines().next().unwrap_or_default().chars().count().max(1);
        let mut shown = String::new();
        if column.saturating_add(width) <= SHOWN {
            // Tabs stay tabs above and below, so that the carets stand under the place.
            let pad: String =
                line.chars().take(column).map(|letter| if letter == '\t' { '\t' } else { ' ' }).collect();
            let line: String =
                line.chars().filter(|letter| *letter == '\t' || !letter.is_control()).take(SHOWN).collect();
            shown = format!("\n  {line}\n  {pad}{}", "^".repeat(width));
        }
        Complaint {
            file: file.to_owned(),
            line: before.matches('\n').count().saturating_add(1),
            reason: reason.to_owned(),
            shown,
        }
    }

    /// Complains about something that has no text.
    pub fn without_text(file: &str, reason: &str) -> Self {
        Complaint { file: file.to_owned(), line: 0, reason: reason.to_owned(), shown: String::new() }
    }

    /// Complains about what the TOML parser found.
    pub fn of_toml(file: &str, text: &str, error: &toml::de::Error) -> Self {
        // Its texts may have several lines; the first says what is wrong, the others what would be right.
        let reason = error.message().lines().collect::<Vec<_>>().join("; ");
        Complaint::new(file, text, error.span().unwrap_or(0..0), &reason)
    }

    /// The text's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The line, from 1; 0 where there is no text.
    pub fn line(&self) -> usize {
        self.line
    }

    /// What is wrong.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Place and reason in one line.
    pub fn summary(&self) -> String {
        match self.line {
            0 => format!("{}: {}", self.file, self.reason),
            line => format!("{}:{line}: {}", self.file, self.reason),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.summary(), self.shown)
    }
}

impl std::error::Error for Complaint {}

/// Where the lines of a text begin: asked for once for each rule, of which there may be many.
pub(crate) struct Lines(Vec<usize>);

impl Lines {
    pub(crate) fn of(text: &str) -> Self {
        Lines(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The line, from 1, of the byte at `offset`.
    pub(crate) fn of_offset(&self, offset: usize) -> u32 {
        let before = self.0.partition_point(|end| *end < offset);
        u32::try_from(before.saturating_add(1)).unwrap_or(u32::MAX)
    }
}

fn boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset = offset.saturating_sub(1);
    }
    offset
}

/// The one of `known` that somebody who wrote `word` may have meant: at most three letters differ, and less than a third.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.into_iter().map(|name| (distance(word, name), name)).min()?;
    (best.0 <= 3 && best.0.saturating_mul(3) < best.1.len().max(4)).then_some(best.1)
}

/// Levenshtein's distance in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (done, of_left) in left.bytes().take(64).enumerate() {
        let mut above_left = done;
        let mut last = done.saturating_add(1);
        if let Some(first) = row.first_mut() {
            *first = last;
        }
        for (place, of_right) in row.iter_mut().skip(1).zip(right.bytes()) {
            let change = above_left.saturating_add(usize::from(of_left != of_right));
            above_left = *place;
            last = change.min(place.saturating_add(1)).min(last.saturating_add(1));
            *place = last;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carets_stand_under_the_place() {
        let text = "version = 1\nrule\t= \"ü\" bad\n";
        let at = text.find("bad").unwrap();
        let complaint = Complaint::new("p.toml", text, at..at + 3, "not this");
        assert_eq!(complaint.to_string(), "p.toml:2: not this\n  rule\t= \"ü\" bad\n      \t      ^^^");
    }

    #[test]
    fn a_place_behind_the_end_is_the_end() {
        let complaint = Complaint::new("p.toml", "a = 1", 77..99, "more was expected");
        assert_eq!(complaint.to_string(), "p.toml:1: more was expected\n  a = 1\n       ^");
    }

    #[test]
    fn a_word_is_recognised_by_its_neighbours_only() {
        let known = ["guest-exec", "guest-exec-status", "exec"];
        assert_eq!(closest("guest-exce", known), Some("guest-exec"));
        assert_eq!(closest("guest-exec-statsu", known), Some("guest-exec-status"));
        assert_eq!(closest("reboot", known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}

//! `portreeve audit verify`: whether a log is what the agent wrote, and what that shows.

use std::fmt::Write as _;
use std::io;

use records::{Finding, OpenIntent, Seen, Segment, Verdict, Verifier};
use serde_json::{Value, json};

use super::{BROKEN, Sources, WHOLE, words};
use crate::say::out;
use crate::subcommands::AuditVerify;
use crate::terminal::{Colour, Paint, escaped};

/// A verdict with the names of the files that it is about.
pub(super) struct Verified {
    pub(super) verdict: Verdict,
    pub(super) names: Vec<String>,
    pub(super) left_out: Vec<String>,
}

pub(super) fn main(given: &AuditVerify) -> Result<u8, String> {
    let sources = Sources::find(&given.log.files, given.log.alone)?;
    let mut verifier = Verifier::new(given.log.head.iter().copied());
    sources.read(|place, line| {
        verifier.line(place, line);
    })?;
    let verified = Verified::new(verifier, &sources);
    if given.json {
        out(format_args!("{:#}\n", verified.as_value()));
    } else {
        out(verified.as_text(Paint::on(&io::stdout())));
    }
    Ok(if verified.verdict.is_whole() { WHOLE } else { BROKEN })
}

impl Verified {
    /// What the verifier made of the files.
    pub(super) fn new(verifier: Verifier, sources: &Sources) -> Self {
        Verified { verdict: verifier.finish(), names: sources.names(), left_out: sources.left_out.clone() }
    }

    /// One word: `whole`, `broken`, `unchained` or `empty`.
    pub(super) fn result(&self) -> &'static str {
        match &self.verdict {
            verdict if verdict.is_whole() => "whole",
            verdict if !verdict.findings.is_empty() => "broken",
            verdict if verdict.is_unchained() => "unchained",
            _ => "empty",
        }
    }

    /// The result as a sentence.
    pub(super) fn headline(&self) -> String {
        let verdict = &self.verdict;
        match self.result() {
            "whole" => "The chain is whole.".to_owned(),
            "broken" => match verdict.findings.first() {
                Some(Finding { place: Some(place), sequence, what: _ }) => format!(
                    "The log is broken. The first bad {}: {}.",
                    sequence.map_or("line".to_owned(), |sequence| format!("record is {sequence}")),
                    words::place(&self.names, *place)
                ),
                _ => "The log is broken at its end.".to_owned(),
            },
            "unchained" => {
                "The log is not chained: its records hold no hashes, so nothing shows whether they were changed.".to_owned()
            }
            _ => "There is no record in the log.".to_owned(),
        }
    }

    /// Files, records, runs and time in one line.
    pub(super) fn extent(&self) -> String {
        let Verdict { records, starts, first, last, .. } = &self.verdict;
        let files = u64::try_from(self.names.len()).unwrap_or(u64::MAX);
        let mut text = format!(
            "{} in {}, {} of the agent",
            words::count(*records, "record"),
            words::count(files, "file"),
            words::count(*starts, "start")
        );
        if let (Some(first), Some(last)) = (first, last) {
            let _ = write!(text, ", {} to {} UTC", words::time(first.at), words::time(last.at));
        }
        text
    }

    /// Findings as sentences with their places.
    pub(super) fn findings(&self) -> Vec<String> {
        self.verdict
            .findings
            .iter()
            .map(|finding| match (finding.place, finding.sequence) {
                (Some(place), Some(sequence)) => {
                    format!(
                        "{}, record {sequence}: {}",
                        words::place(&self.names, place),
                        words::why(finding, &self.names)
                    )
                }
                (Some(place), None) => {
                    format!("{}: {}", words::place(&self.names, place), words::why(finding, &self.names))
                }
                _ => words::why(finding, &self.names),
            })
            .collect()
    }

    /// What else is to be known, as sentences.
    pub(super) fn notices(&self) -> Vec<String> {
        let verdict = &self.verdict;
        let mut notices: Vec<String> =
            verdict.notices.iter().map(|notice| words::notice(notice, &self.names)).collect();
        if verdict.more_notices > 0 {
            notices.push(format!("and {} more of the kind", words::number(verdict.more_notices)));
        }
        if verdict.lost > 0 {
            notices.insert(
                0,
                format!(
                    "{} could not be written, as the agent itself says",
                    words::count(verdict.lost, "record")
                ),
            );
        }
        if verdict.unchained > 0 && verdict.unchained < verdict.records {
            notices.push(format!("{} without a hash", words::count(verdict.unchained, "record")));
        }
        if verdict.closed > 0 {
            notices.push(format!(
                "{} that began and whose outcome the agent does not know",
                words::count(verdict.closed, "change")
            ));
        }
        notices.extend(
            self.intents(
                &verdict.unclosed,
                "began, has no outcome, and no later start of the agent closes it",
            ),
        );
        notices.extend(
            self.intents(&verdict.running, "began and has no outcome yet: it runs, or the agent ended"),
        );
        if verdict.unfollowed > 0 {
            notices.push(format!(
                "{} could not be followed: too many at once",
                words::count(verdict.unfollowed, "intent")
            ));
        }
        notices.extend(self.left_out.iter().cloned());
        notices
    }

    fn intents(&self, intents: &[OpenIntent], what: &str) -> Vec<String> {
        const SHOWN: usize = 20;
        let mut texts: Vec<String> = intents
            .iter()
            .take(SHOWN)
            .map(|OpenIntent { place, sequence, command }| {
                format!(
                    "{}, record {sequence}: {} {what}",
                    words::place(&self.names, *place),
                    escaped(command)
                )
            })
            .collect();
        if let Some(more @ 1..) = intents.len().checked_sub(SHOWN) {
            texts.push(format!("and {more} more of the kind"));
        }
        texts
    }

    /// What can be trusted, as sentences.
    pub(super) fn trust(&self) -> Vec<String> {
        let verdict = &self.verdict;
        let mut texts: Vec<String> = verdict.segments.iter().map(|segment| self.trust_in(segment)).collect();
        if verdict.more_segments > 0 {
            texts.push(format!("and {} more stretches of the kind", words::number(verdict.more_segments)));
        }
        if texts.is_empty() {
            texts.push("nothing: no record vouches for another".to_owned());
        }
        texts
    }

    fn trust_in(&self, segment: &Segment) -> String {
        let at = |seen: Seen| format!("record {} ({})", seen.sequence, words::place(&self.names, seen.place));
        let follows = "they follow each other, and nothing witnessed vouches for them";
        match segment.witnessed {
            Some(seen) if seen == segment.last => {
                format!(
                    "{} to {}: exactly what the agent wrote, by the witnessed head",
                    at(segment.first),
                    at(seen)
                )
            }
            Some(seen) => format!(
                "{} to {}: exactly what the agent wrote, by the witnessed head; from there to {}: {follows}",
                at(segment.first),
                at(seen),
                at(segment.last)
            ),
            None => format!("{} to {}: {follows}", at(segment.first), at(segment.last)),
        }
    }

    /// What the result shows and what it cannot.
    pub(super) fn meaning(&self) -> String {
        let witnessed = self.verdict.witnesses.iter().any(|witness| witness.found.is_some());
        let shown = match (self.result(), witnessed) {
            ("whole", true) => {
                "Up to the witnessed head no record was changed, added, moved or removed since the agent wrote it. For what comes \
                 after, as for a log without a witnessed head, see the next sentence."
            }
            ("unchained" | "empty", _) => "Nothing.",
            _ => {
                "Where records follow each other, nobody changed one of them and left the others alone. Whoever could write the file \
                 could still have computed all hashes anew, or cut the log at its end: only a head that was kept elsewhere tells (--head)."
            }
        };
        format!(
            "{shown} Not shown, whatever the result: that the agent was not captured when it wrote, nor that it wrote everything (see the \
             losses). docs/auditor.md says more."
        )
    }

    fn as_text(&self, paint: Paint) -> String {
        const SHOWN: usize = 20;
        let colour = if self.verdict.is_whole() { Colour::Green } else { Colour::Red };
        let mut text = format!("{}\n{}\n", paint.paint(colour, self.headline()), self.extent());
        // Writing to a String does not fail.
        let mut section = |title: &str, items: Vec<String>, more: u64| {
            if !items.is_empty() {
                let _ = writeln!(text, "\n{}", paint.paint(Colour::Bold, title));
                items.iter().take(SHOWN).for_each(|item| {
                    let _ = writeln!(text, "  {item}");
                });
                let rest =
                    u64::try_from(items.len().saturating_sub(SHOWN)).unwrap_or(u64::MAX).saturating_add(more);
                if rest > 0 {
                    let _ = writeln!(text, "  and {} more; --json has the first 100", words::number(rest));
                }
            }
        };
        section("What is wrong", self.findings(), self.verdict.more_findings);
        section("What can be trusted", self.trust(), 0);
        section("What is to be known", self.notices(), 0);
        section("What this shows", vec![self.meaning()], 0);
        if let Some(head) = self.head() {
            section("The head, to be kept outside", vec![head], 0);
        }
        text
    }

    /// The last record, as a later check takes it.
    fn head(&self) -> Option<String> {
        let last = self.verdict.last.filter(|_| self.verdict.is_whole())?;
        Some(format!("{}:{}", last.sequence, last.hash))
    }

    pub(super) fn as_value(&self) -> Value {
        let verdict = &self.verdict;
        let place = |place: records::Place| json!({"file": self.names.get(place.file), "line": place.line});
        let seen = |seen: &Seen| {
            json!({"at": place(seen.place), "sequence": seen.sequence, "hash": seen.hash.to_string(),
                "time": humantime::format_rfc3339_micros(seen.at).to_string()})
        };
        let intents = |intents: &[OpenIntent]| -> Vec<Value> {
            let shown = intents.iter().take(100);
            shown
                .map(|intent| json!({"at": place(intent.place), "sequence": intent.sequence, "command": intent.command}))
                .collect()
        };
        json!({
            "result": self.result(),
            "says": self.headline(),
            "files": self.names,
            "left_out": self.left_out,
            "records": verdict.records,
            "unchained": verdict.unchained,
            "starts": verdict.starts,
            "first": verdict.first.as_ref().map(seen),
            "last": verdict.last.as_ref().map(seen),
            "head": self.head(),
            "findings": verdict.findings.iter().map(|finding| json!({
                "kind": words::kind(&finding.what),
                "at": finding.place.map(place),
                "sequence": finding.sequence,
                "why": words::why(finding, &self.names),
            })).collect::<Vec<_>>(),
            "more_findings": verdict.more_findings,
            "notices": self.notices(),
            "segments": verdict.segments.iter().map(|segment| json!({
                "first": seen(&segment.first),
                "last": seen(&segment.last),
                "records": segment.records,
                "witnessed": segment.witnessed.as_ref().map(seen),
            })).collect::<Vec<_>>(),
            "more_segments": verdict.more_segments,
            "heads": verdict.witnesses.iter().map(|witness| json!({
                "head": witness.head.to_string(),
                "found": witness.found.as_ref().map(seen),
            })).collect::<Vec<_>>(),
            "lost": verdict.lost,
            "closed": verdict.closed,
            "unclosed": intents(&verdict.unclosed),
            "running": intents(&verdict.running),
        })
    }
}

//! `portreeve policy test`: whether a policy decides as it should. Takes one line after the other and holds none of them.

use std::fmt;

use authorize::Outcome;
use serde::Serialize;

use crate::case::{Case, Look, decide};
use crate::trail::{Entry, Trail, Unusable};
use crate::{Loaded, explain, words};

/// Failures that are kept; more are counted.
const KEPT: usize = 100;

/// Holds lines against a policy.
pub struct Tester<'a> {
    loaded: &'a Loaded,
    trail: Trail<'a>,
    tested: Tested,
}

/// What came out.
#[derive(Debug, Default, Serialize)]
pub struct Tested {
    /// Lines that were decided as they should.
    pub passed: u64,
    /// Lines that were not.
    pub failed: u64,
    /// Records that do not say all that was asked.
    pub skipped: u64,
    /// Lines that are neither a test nor a record.
    pub wrong: u64,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// The first lines that were skipped or wrong, and why.
    pub unusable: Vec<(u64, String)>,
}

/// A line that was not decided as it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Its number, from 1.
    pub line: u64,
    /// What is asked.
    pub request: String,
    /// By whom.
    pub channel: String,
    /// What should be decided.
    pub expected: String,
    /// What is.
    pub decided: String,
    /// By which rule.
    pub by: String,
    /// What the host reads, if it is refused.
    pub reply: Option<String>,
}

impl<'a> Tester<'a> {
    /// Tests that name no channel ask by `channel`.
    pub fn new(loaded: &'a Loaded, channel: &'a str, look: &'a Look<'a>) -> Self {
        Tester { loaded, trail: Trail::new(channel, look), tested: Tested::default() }
    }

    /// Takes the next line.
    pub fn line(&mut self, text: &[u8]) {
        for one in self.trail.line(text) {
            self.one(one);
        }
    }

    /// The result, after the last line.
    pub fn finish(mut self) -> Tested {
        for one in self.trail.finish() {
            self.one(one);
        }
        self.tested.failures.sort_by_key(|failure| failure.line);
        self.tested
    }

    fn one(&mut self, one: Result<Entry, Unusable>) {
        let tested = &mut self.tested;
        match one {
            Ok(entry) => match failure(self.loaded, &entry) {
                Some(failure) if was_for_its_rate(self.loaded, &entry, &failure) => {
                    tested.skipped = tested.skipped.saturating_add(1);
                }
                None => tested.passed = tested.passed.saturating_add(1),
                Some(failure) => {
                    tested.failed = tested.failed.saturating_add(1);
                    if tested.failures.len() < KEPT {
                        tested.failures.push(failure);
                    }
                }
            },
            Err(Unusable { line, why, is_wrong }) => {
                let count = if is_wrong { &mut tested.wrong } else { &mut tested.skipped };
                *count = count.saturating_add(1);
                if tested.unusable.len() < KEPT {
                    tested.unusable.push((line, why));
                }
            }
        }
    }
}

/// Whether it was refused because of how many there were, by a rule that would let one through: that cannot be replayed.
fn was_for_its_rate(loaded: &Loaded, entry: &Entry, failure: &Failure) -> bool {
    let limited =
        || decide(&loaded.policy, &entry.case).terms.is_some_and(|terms| terms.requests_per_second.is_some());
    entry.expected.outcome == Outcome::Deny && entry.decided_by.as_ref() == Some(&failure.by) && limited()
}

/// None if the case is decided as expected.
fn failure(loaded: &Loaded, entry: &Entry) -> Option<Failure> {
    let Entry { case, expected, line, .. } = entry;
    let verdict = decide(&loaded.policy, case);
    let rule = verdict.rule.to_string();
    if verdict.outcome == expected.outcome && expected.rule.as_ref().is_none_or(|wanted| *wanted == rule) {
        return None;
    }
    let Case { channel, request, .. } = case;
    let by = expected.rule.as_ref().map(|rule| format!(" by {rule}")).unwrap_or_default();
    Some(Failure {
        line: *line,
        request: words::request(request),
        channel: channel.clone(),
        expected: format!("{}{by}", expected.outcome.name()),
        decided: verdict.outcome.name().to_owned(),
        by: rule,
        reply: verdict.denied.map(|denied| explain::reply(request.command().dialect, &denied)),
    })
}

impl Tested {
    /// Whether all of it is as it should be.
    pub fn is_well(&self) -> bool {
        self.failed == 0 && self.wrong == 0
    }
}

impl fmt::Display for Tested {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (line, why) in &self.unusable {
            writeln!(out, "line {line}: {why}")?;
        }
        for Failure { line, request, channel, expected, decided, by, reply } in &self.failures {
            writeln!(
                out,
                "line {line}: {request}\n  on channel {channel}: expected {expected}, but it is {decided} by {by}"
            )?;
            if let Some(reply) = reply {
                writeln!(out, "  the host reads {reply}")?;
            }
        }
        let more = self.failed.saturating_sub(self.failures.len() as u64);
        if more > 0 {
            writeln!(out, "and {more} more")?;
        }
        write!(out, "{} passed, {} failed", self.passed, self.failed)?;
        for (count, what) in [(self.skipped, "cannot be replayed"), (self.wrong, "are no tests")] {
            if count > 0 {
                write!(out, ", {count} {what}")?;
            }
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::literal;
    use compile::{PRESETS, Source};
    use std::path::Path;

    fn tested(source: Source, lines: &str) -> Tested {
        let loaded = Loaded::compile(vec![source]).unwrap();
        let look = Look { path: &literal, uid: &|user| (user == b"root").then_some(0) };
        let mut tester = Tester::new(&loaded, "qga", &look);
        lines.lines().for_each(|line| tester.line(line.as_bytes()));
        tester.finish()
    }

    #[test]
    fn the_replays_of_the_presets_pass() {
        for (preset, _) in PRESETS {
            let file =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../presets/replays/{preset}.jsonl"));
            let lines = std::fs::read_to_string(file).unwrap();
            let tested = tested(Source::Preset((*preset).to_owned()), &lines);
            assert!(tested.is_well() && tested.passed > 0, "{preset}: {tested}");
        }
    }

    #[test]
    fn a_failure_says_what_was_expected_and_what_is() {
        let lines = "{\"request\":\"guest-get-users\",\"expect\":\"allow\",\"rule\":\"preset observe:8\"}\n\
                     {\"request\":\"guest-exec path=/bin/sh\",\"expect\":\"allow\"}\n{\"request\":{},\"expect\":\"allow\"}\n";
        assert_eq!(
            tested(Source::Preset("observe".to_owned()), lines).to_string(),
            "line 3: not a request: it has no \"execute\" with the name of a command\n\
             line 2: guest-exec capture-output=none path=/bin/sh\n  \
               on channel qga: expected allow, but it is deny by observe, default\n  \
               the host reads {\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command guest-exec has been disabled: the command is not allowed\"}}\n\
             1 passed, 1 failed, 1 are no tests\n"
        );
    }
}

//! Lines of tests and of audit logs, as cases with what is expected of them.
//!
//! Both may be of any length and come from anywhere: a line is bounded, and one that cannot be used is said to be so and why.

use std::collections::BTreeMap;

use authorize::Outcome;
use proto::{Dialect, Request};
use serde_json::Value as Json;

use crate::case::{Case, Look};
use crate::request::{self, Unread};

/// Longest line of a log or test in bytes: an audit record has at most 16 KiB.
const LONGEST: usize = 1 << 20;

/// What should be decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Allow, deny or redact.
    pub outcome: Outcome,
    /// `FILE:LINE` of the rule, if that matters.
    pub rule: Option<String>,
}

/// Something that was asked, and what is expected or was decided.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The request and what was found out about it.
    pub case: Case,
    /// What should be, or was, decided.
    pub expected: Expected,
    /// When it was recorded; None in a test.
    pub time: Option<String>,
    /// `FILE:LINE` of the rule that decided then; None in a test.
    pub decided_by: Option<String>,
    /// The number of its line, from 1.
    pub line: u64,
}

/// A line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Its number, from 1.
    pub line: u64,
    /// What is the matter.
    pub why: String,
    /// Whether it should have been usable: a test that is wrong. A record that was cut is not the fault of whoever wrote it.
    pub is_wrong: bool,
}

/// What a line comes to.
enum Line {
    Entry(Entry),
    /// An intent, with its number: the record of its request follows, or never comes.
    Intent(u64, Entry),
    /// The end of an intent.
    Request(u64, Entry),
    /// What the frontend answered by itself, by channel, command and count.
    Counts(String, Vec<(String, u64)>),
    /// Numbers begin anew.
    Start,
    Nothing,
}

/// Puts lines together: a request that changed something has two.
pub struct Trail<'a> {
    look: &'a Look<'a>,
    channel: &'a str,
    line: u64,
    intents: BTreeMap<u64, Entry>,
    /// Requests that were answered in front, by channel and command.
    pub counts: BTreeMap<(String, String), u64>,
}

/// Intents that may be open at once. More are taken for what they say.
const INTENTS: usize = 4096;

impl<'a> Trail<'a> {
    /// Requests of tests that name no channel come in by `channel`.
    pub fn new(channel: &'a str, look: &'a Look<'a>) -> Self {
        Trail { look, channel, line: 0, intents: BTreeMap::new(), counts: BTreeMap::new() }
    }

    /// Takes one line and hands out what is complete now. Empty lines and those that begin with `#` say nothing.
    pub fn line(&mut self, text: &[u8]) -> Vec<Result<Entry, Unusable>> {
        self.line = self.line.saturating_add(1);
        let read = match std::str::from_utf8(text) {
            Ok(text) if text.len() > LONGEST => Err((format!("longer than {LONGEST} bytes"), true)),
            Ok(text) => self.read(text.trim()),
            Err(_) => Err(("it is no text in UTF-8".to_owned(), true)),
        };
        match read {
            Ok(Line::Entry(entry)) => vec![Ok(entry)],
            Ok(Line::Intent(number, entry)) => {
                let mut done = Vec::new();
                if self.intents.len() >= INTENTS {
                    done.extend(self.intents.pop_first().map(|(_, oldest)| Ok(oldest)));
                }
                done.extend(self.intents.insert(number, entry).map(Ok));
                done
            }
            Ok(Line::Request(intent, entry)) => {
                self.intents.remove(&intent);
                vec![Ok(entry)]
            }
            Ok(Line::Counts(channel, counts)) => {
                for (command, count) in counts {
                    let known = self.counts.entry((channel.clone(), command)).or_default();
                    *known = known.saturating_add(count);
                }
                Vec::new()
            }
            Ok(Line::Start) => self.finish(),
            Ok(Line::Nothing) => Vec::new(),
            Err((why, is_wrong)) => vec![Err(Unusable { line: self.line, why, is_wrong })],
        }
    }

    /// Hands out the intents whose end was never recorded: a machine that was shut down, a log that ends.
    pub fn finish(&mut self) -> Vec<Result<Entry, Unusable>> {
        std::mem::take(&mut self.intents).into_values().map(Ok).collect()
    }

    fn read(&self, text: &str) -> Result<Line, (String, bool)> {
        if text.is_empty() || text.starts_with('#') {
            return Ok(Line::Nothing);
        }
        let json: Json =
            serde_json::from_str(text).map_err(|error| (format!("it is no JSON: {error}"), true))?;
        if json.get("request").is_some() { self.test(&json) } else { self.record(&json) }
    }

    /// `{"request": …, "expect": …}`; `channel`, `dialect`, `rule`, `path`, `uid` and `frozen` may be there, too.
    fn test(&self, json: &Json) -> Result<Line, (String, bool)> {
        const KNOWN: [&str; 8] = ["request", "expect", "channel", "dialect", "rule", "path", "uid", "frozen"];
        let wrong = |why: String| (why, true);
        if let Some(name) =
            json.as_object().and_then(|test| test.keys().find(|name| !KNOWN.contains(&name.as_str())))
        {
            return Err(wrong(format!("a test has no \"{name}\"; it has {}", KNOWN.join(", "))));
        }
        let dialect = match json.get("dialect").map(Json::as_str) {
            None => None,
            Some(Some("qga")) => Some(Dialect::Qga),
            Some(Some("phoenix")) => Some(Dialect::Phoenix),
            Some(_) => return Err(wrong("\"dialect\" is \"qga\" or \"phoenix\"".to_owned())),
        };
        let asked = match json.get("request") {
            Some(Json::String(text)) => request::read(text),
            Some(line) => request::of_line(&line.to_string(), dialect),
            None => return Err(wrong("it has no \"request\"".to_owned())),
        };
        let asked = asked.map_err(|why| wrong(why.to_string()))?;
        let outcome = outcome(json.get("expect").and_then(Json::as_str).unwrap_or_default())
            .ok_or_else(|| wrong("\"expect\" is \"allow\", \"deny\" or \"redact\"".to_owned()))?;
        let text = |name: &str| json.get(name).and_then(Json::as_str);
        let mut case = Case::new(text("channel").unwrap_or(self.channel), asked, self.look);
        case.frozen = json.get("frozen").and_then(Json::as_bool).unwrap_or_default();
        if let Some(path) = text("path") {
            case.path = Some(path.as_bytes().to_vec());
        }
        if let Some(uid) = json.get("uid").and_then(Json::as_u64).and_then(|uid| u32::try_from(uid).ok()) {
            case.uid = Some(uid);
        }
        let expected = Expected { outcome, rule: text("rule").map(str::to_owned) };
        Ok(Line::Entry(Entry { case, expected, time: None, decided_by: None, line: self.line }))
    }

    /// A record of the audit log.
    fn record(&self, json: &Json) -> Result<Line, (String, bool)> {
        let text = |name: &str| json.get(name).and_then(Json::as_str);
        let kind = match text("kind") {
            Some("request") => "request",
            Some("intent") => "intent",
            Some("front") => return Ok(front(json)),
            Some("start") => return Ok(Line::Start),
            Some(_) => return Ok(Line::Nothing),
            None => {
                let why = "it is neither a test ({\"request\": …, \"expect\": \"allow\"}) nor a record of the audit log";
                return Err((why.to_owned(), true));
            }
        };
        // What nobody waited for any more was not decided.
        let Some(outcome) = text("decision").and_then(outcome) else { return Ok(Line::Nothing) };
        let cut = |why: Unread| match why {
            // A command or an argument of another version is no fault of the log's.
            Unread::Incomplete(why) => (why, false),
            other => (other.to_string(), false),
        };
        let arguments = json.get("arguments").cloned().unwrap_or_default();
        let asked: Request = request::of_record(
            text("dialect").unwrap_or_default(),
            text("command").unwrap_or_default(),
            arguments,
        )
        .map_err(cut)?;
        let mut case = Case::new(text("channel").unwrap_or(self.channel), asked, self.look);
        let rule = text("rule").map(str::to_owned);
        case.frozen = rule.as_deref() == Some("frozen");
        if let Some(file) = text("file") {
            case.path = Some(file.as_bytes().to_vec());
        }
        let entry = Entry {
            case,
            expected: Expected { outcome, rule: None },
            time: text("time").map(str::to_owned),
            decided_by: rule,
            line: self.line,
        };
        let number = |name: &str| json.get(name).and_then(Json::as_u64);
        Ok(match (kind, number("sequence"), number("intent")) {
            ("intent", Some(number), _) => Line::Intent(number, entry),
            ("request", _, Some(intent)) => Line::Request(intent, entry),
            _ => Line::Entry(entry),
        })
    }
}

/// The case of the one record in `text`.
///
/// # Errors
/// What is the matter with it.
pub fn entry(text: &[u8], look: &Look<'_>) -> Result<Entry, String> {
    let mut trail = Trail::new("qga", look);
    let mut found = trail.line(text);
    found.extend(trail.finish());
    match found.pop() {
        Some(Ok(entry)) => Ok(entry),
        Some(Err(unusable)) => Err(unusable.why),
        None => Err("it is no record of a request that was decided".to_owned()),
    }
}

fn outcome(name: &str) -> Option<Outcome> {
    [Outcome::Allow, Outcome::Deny, Outcome::Redact].into_iter().find(|outcome| outcome.name() == name)
}

fn front(json: &Json) -> Line {
    let channel = json.get("channel").and_then(Json::as_str).unwrap_or_default().to_owned();
    let counts = json.get("counts").and_then(Json::as_object).into_iter().flatten();
    Line::Counts(channel, counts.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::literal;

    fn entries(lines: &[&str]) -> Vec<Result<Entry, Unusable>> {
        let look = Look { path: &literal, uid: &|_| None };
        let mut trail = Trail::new("qga", &look);
        let mut all: Vec<_> = lines.iter().flat_map(|line| trail.line(line.as_bytes())).collect();
        all.extend(trail.finish());
        all
    }

    #[test]
    fn a_request_with_an_intent_counts_once_and_as_it_ended() {
        let all = entries(&[
            r#"{"kind":"intent","sequence":4,"channel":"a","dialect":"qga","command":"guest-shutdown","arguments":{},"decision":"allow","outcome":"begins"}"#,
            r#"{"kind":"intent","sequence":5,"channel":"a","dialect":"qga","command":"guest-file-open","arguments":{"path":"/x","mode":"w"},"decision":"allow","outcome":"begins"}"#,
            r#"{"kind":"request","sequence":6,"intent":5,"channel":"a","dialect":"qga","command":"guest-file-open","arguments":{"path":"/x","mode":"w"},"file":"/y","decision":"deny","outcome":"denied"}"#,
        ]);
        let shown: Vec<(&str, Outcome)> = all
            .iter()
            .map(|entry| entry.as_ref().unwrap())
            .map(|entry| (entry.case.request.command().name(), entry.expected.outcome))
            .collect();
        assert_eq!(shown, [("guest-file-open", Outcome::Deny), ("guest-shutdown", Outcome::Allow)]);
        assert_eq!(all[0].as_ref().unwrap().case.path.as_deref(), Some(b"/y".as_slice()));
    }

    #[test]
    fn a_wrong_test_and_a_cut_record_are_told_apart() {
        let all = entries(&[
            "",
            "# a comment",
            r#"{"kind":"start","sequence":1}"#,
            r#"{"request":"guest-ping","expect":"yes"}"#,
            r#"{"request":"guest-ping","expects":"allow"}"#,
            r#"{"kind":"request","channel":"a","dialect":"qga","command":"guest-exec","arguments":{"sha256":"0"},"decision":"allow"}"#,
            "{",
        ]);
        let shown: Vec<(u64, bool)> =
            all.iter().map(|one| one.as_ref().unwrap_err()).map(|one| (one.line, one.is_wrong)).collect();
        assert_eq!(shown, [(4, true), (5, true), (6, false), (7, true)]);
    }
}

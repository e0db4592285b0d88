//! `portreeve audit report`: who asked what and when, and what became of it; for a terminal, a browser or a program.

mod chart;
mod html;
mod tally;
mod text;

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use records::Verifier;
use serde_json::{Map, Value, json};

use super::files::name;
use super::request::Decision;
use super::verify::Verified;
use super::{BROKEN, Sources, WHOLE, words};
use crate::say::out;
use crate::subcommands::AuditReport;
use crate::terminal::Paint;
use tally::{Asked, Decisions, Tally, Timeline};

/// Rows of a table that are shown; the others are counted.
const ROWS: usize = 50;

pub(super) fn main(given: &AuditReport) -> Result<u8, String> {
    let sources = Sources::find(&given.log.files, given.log.alone)?;
    let mut verifier = Verifier::new(given.log.head.iter().copied());
    let mut tally = Tally::default();
    sources.read(|place, line| {
        if let Some(record) = verifier.line(place, line)
            && let Some(at) = record.at()
            && given.since.is_none_or(|since| at >= since)
        {
            tally.add(&record, at);
        }
    })?;
    tally.finish();
    let report = Report {
        verified: Verified::new(verifier, &sources),
        since: given.since,
        made: SystemTime::now(),
        tally,
    };
    match &given.html {
        None if given.json => out(format_args!("{:#}\n", report.as_value())),
        None => out(text::report(&report, Paint::on(&io::stdout()))),
        Some(path) if path.as_os_str() == "-" => out(html::page(&report)),
        Some(path) => write(path, &html::page(&report))?,
    }
    Ok(if report.verified.verdict.is_whole() { WHOLE } else { BROKEN })
}

fn write(path: &Path, page: &str) -> Result<(), String> {
    fs::write(path, page).map_err(|error| format!("cannot write {}: {error}", name(path)))
}

/// What every form of the report is made from.
struct Report {
    verified: Verified,
    since: Option<SystemTime>,
    made: SystemTime,
    tally: Tally,
}

/// A table of the report.
struct Section {
    /// For links and programs.
    id: &'static str,
    title: &'static str,
    /// What it is, if the title does not say it.
    lead: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
    /// So many more that are not shown.
    more: u64,
    /// What is said where there are no rows.
    none: &'static str,
}

/// One entry of a table. Texts are as somebody wrote them.
enum Cell {
    Text(String),
    /// A name, path or rule.
    Code(String),
    Number(u64),
    Time(SystemTime),
    Micros(Option<u64>),
    Outcome(String),
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Cell::Text(text) | Cell::Code(text) | Cell::Outcome(text) => text.clone(),
            Cell::Number(number) => words::number(*number),
            Cell::Time(at) => words::time(*at),
            Cell::Micros(micros) => {
                micros.map(|micros| words::duration(Duration::from_micros(micros))).unwrap_or_default()
            }
        }
    }

    fn value(&self) -> Value {
        match self {
            Cell::Text(text) | Cell::Code(text) | Cell::Outcome(text) => json!(text),
            Cell::Number(number) => json!(number),
            Cell::Time(at) => json!(humantime::format_rfc3339_seconds(*at).to_string()),
            Cell::Micros(micros) => json!(micros),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Cell::Number(_) | Cell::Micros(_))
    }

    /// Whether it tells of something that went wrong.
    fn is_bad(&self) -> bool {
        matches!(self, Cell::Outcome(text) if text.starts_with("failed") || text.starts_with("no outcome") || text.starts_with("not known"))
    }
}

fn numbers(decisions: &Decisions) -> impl Iterator<Item = Cell> {
    decisions.iter().map(|count| Cell::Number(*count))
}

fn counted(shown: usize, of: usize) -> u64 {
    u64::try_from(of.saturating_sub(shown)).unwrap_or(u64::MAX)
}

impl Report {
    /// The numbers at the top.
    fn summary(&self) -> [(&'static str, u64); 6] {
        let tally = &self.tally;
        let [_, redacted, denied, _] = tally.decisions;
        [
            ("requests", tally.requests),
            ("denied", denied),
            ("redacted", redacted),
            ("changes", tally.changes.count()),
            ("failed", tally.failed),
            ("abandoned", tally.abandoned),
        ]
    }

    /// What the numbers are about.
    fn scope(&self) -> String {
        let since = self
            .since
            .map(|since| format!("counted from {} UTC on; ", words::time(since)))
            .unwrap_or_default();
        format!(
            "{since}{} more, such as pings, were answered in front and are not among them",
            words::number(self.tally.in_front)
        )
    }

    /// Requests over time, in at most so many rows.
    fn timeline(&self, most: u64) -> Section {
        let (_, spans) = self.tally.timeline.spans(most);
        Section {
            id: "time",
            title: "Requests over time",
            lead: "",
            columns: &["from (UTC)", "allow", "redact", "deny", "none"],
            rows: spans
                .iter()
                .map(|(at, decisions)| [Cell::Time(*at)].into_iter().chain(numbers(decisions)).collect())
                .collect(),
            more: 0,
            none: "No request.",
        }
    }

    /// All other tables, the most important first.
    fn sections(&self) -> Vec<Section> {
        vec![
            self.denials(),
            self.changes(),
            self.asked(),
            self.rules(),
            self.commands(),
            self.slowest(),
            self.trouble(),
            self.life(),
        ]
    }

    fn denials(&self) -> Section {
        let rows = self.tally.denials.ranked(Asked::count);
        Section {
            id: "denials",
            title: "What was refused",
            lead: "",
            columns: &["times", "channel", "command", "about", "rule", "first (UTC)", "last (UTC)"],
            more: counted(ROWS, rows.len()).saturating_add(self.tally.denials.others),
            rows: rows
                .into_iter()
                .take(ROWS)
                .map(|([channel, command, subject, rule], asked)| {
                    vec![
                        Cell::Number(asked.count()),
                        Cell::Code(channel.clone()),
                        Cell::Code(command.clone()),
                        Cell::Code(subject.clone()),
                        Cell::Code(rule.clone()),
                        Cell::Time(asked.first),
                        Cell::Time(asked.last),
                    ]
                })
                .collect(),
            none: "Nothing was refused.",
        }
    }

    fn changes(&self) -> Section {
        let latest = &self.tally.changes.latest;
        Section {
            id: "changes",
            title: "What was changed",
            lead: "Each was written down before it began. The latest first.",
            columns: &["began (UTC)", "channel", "command", "about", "rule", "outcome", "took"],
            more: counted(ROWS, latest.len()).saturating_add(self.tally.changes.earlier),
            rows: latest
                .iter()
                .rev()
                .take(ROWS)
                .map(|change| {
                    vec![
                        Cell::Time(change.at),
                        Cell::Code(change.channel.clone()),
                        Cell::Code(change.command.clone()),
                        Cell::Code(change.subject.clone()),
                        Cell::Code(change.rule.clone()),
                        Cell::Outcome(change.outcome.clone()),
                        Cell::Micros(change.micros),
                    ]
                })
                .collect(),
            none: "Nothing was changed.",
        }
    }

    fn asked(&self) -> Section {
        let rows = self.tally.asked.ranked(Asked::count);
        Section {
            id: "asked",
            title: "Who asked what, and when",
            lead: "",
            columns: &[
                "channel",
                "dialect",
                "command",
                "times",
                "denied",
                "failed",
                "first (UTC)",
                "last (UTC)",
            ],
            more: counted(ROWS, rows.len()).saturating_add(self.tally.asked.others),
            rows: rows
                .into_iter()
                .take(ROWS)
                .map(|([channel, dialect, command], asked)| {
                    let denied = asked.decisions.get(Decision::Deny.index()).copied().unwrap_or_default();
                    vec![
                        Cell::Code(channel.clone()),
                        Cell::Text(dialect.clone()),
                        Cell::Code(command.clone()),
                        Cell::Number(asked.count()),
                        Cell::Number(denied),
                        Cell::Number(asked.failed),
                        Cell::Time(asked.first),
                        Cell::Time(asked.last),
                    ]
                })
                .collect(),
            none: "Nothing was asked.",
        }
    }

    fn rules(&self) -> Section {
        let rows = self
            .tally
            .rules
            .ranked(|ruled| ruled.decisions.iter().fold(0_u64, |sum, count| sum.saturating_add(*count)));
        Section {
            id: "rules",
            title: "Decisions by rule",
            lead: "",
            columns: &["rule", "allow", "redact", "deny", "last used (UTC)"],
            more: counted(ROWS, rows.len()).saturating_add(self.tally.rules.others),
            rows: rows
                .into_iter()
                .take(ROWS)
                .map(|(rule, ruled)| {
                    let mut row = vec![Cell::Code(rule.clone())];
                    row.extend(numbers(&ruled.decisions).take(3));
                    row.extend(ruled.last.map(Cell::Time));
                    row
                })
                .collect(),
            none: "No rule decided anything.",
        }
    }

    fn commands(&self) -> Section {
        let rows = self.tally.commands.ranked(|timed| timed.durations.sum);
        Section {
            id: "commands",
            title: "Commands, and how long they took",
            lead: "Those that took the most time together first. Half of the requests took at most what stands under half.",
            columns: &[
                "command", "allow", "redact", "deny", "none", "failed", "half", "95 %", "longest", "together",
            ],
            more: counted(ROWS, rows.len()).saturating_add(self.tally.commands.others),
            rows: rows
                .into_iter()
                .take(ROWS)
                .map(|(command, timed)| {
                    let durations = &timed.durations;
                    let mut row = vec![Cell::Code(command.clone())];
                    row.extend(numbers(&timed.decisions));
                    row.push(Cell::Number(timed.failed));
                    let half = durations.quantile(50);
                    row.extend(
                        [
                            half,
                            durations.quantile(95),
                            half.map(|_| durations.longest),
                            half.map(|_| durations.sum),
                        ]
                        .map(Cell::Micros),
                    );
                    row
                })
                .collect(),
            none: "Nothing was asked.",
        }
    }

    fn slowest(&self) -> Section {
        Section {
            id: "slowest",
            title: "The slowest requests",
            lead: "",
            columns: &["took", "at (UTC)", "channel", "command", "about", "outcome"],
            rows: self
                .tally
                .slowest
                .iter()
                .map(|slow| {
                    vec![
                        Cell::Micros(Some(slow.micros)),
                        Cell::Time(slow.at),
                        Cell::Code(slow.channel.clone()),
                        Cell::Code(slow.command.clone()),
                        Cell::Code(slow.subject.clone()),
                        Cell::Outcome(slow.outcome.clone()),
                    ]
                })
                .collect(),
            more: 0,
            none: "Nothing was asked.",
        }
    }

    fn trouble(&self) -> Section {
        Self::events(
            "trouble",
            "What went wrong",
            "Workers that ended by themselves, outcomes that nobody knows, requests that nobody waited for any more, thaws by the agent itself, \
             records that are missing. The latest first.",
            &self.tally.trouble,
        )
    }

    fn life(&self) -> Section {
        Self::events("life", "Starts, ends and policies", "The latest first.", &self.tally.life)
    }

    fn events(
        id: &'static str,
        title: &'static str,
        lead: &'static str,
        events: &tally::Latest<tally::Event>,
    ) -> Section {
        let event = |event: &tally::Event| vec![Cell::Time(event.at), Cell::Text(event.what.clone())];
        Section {
            id,
            title,
            lead,
            columns: &["at (UTC)", "what"],
            rows: events.latest.iter().rev().take(ROWS).map(event).collect(),
            more: counted(ROWS, events.latest.len()).saturating_add(events.earlier),
            none: "Nothing of the kind.",
        }
    }

    fn as_value(&self) -> Value {
        let mut tables = Map::new();
        for section in [self.timeline(Timeline::MOST)].into_iter().chain(self.sections()) {
            let rows: Vec<Value> = section
                .rows
                .iter()
                .map(|row| {
                    section
                        .columns
                        .iter()
                        .zip(row)
                        .map(|(column, cell)| ((*column).to_owned(), cell.value()))
                        .collect::<Map<_, _>>()
                })
                .map(Value::Object)
                .collect();
            tables.insert(
                section.id.to_owned(),
                json!({"title": section.title, "rows": rows, "more": section.more}),
            );
        }
        let summary: Map<String, Value> =
            self.summary().into_iter().map(|(label, count)| (label.to_owned(), json!(count))).collect();
        json!({
            "verify": self.verified.as_value(),
            "summary": summary,
            "answered_in_front": self.tally.in_front,
            "payload_bytes": self.tally.bytes,
            "tables": tables,
        })
    }
}

//! The report for a terminal.

use std::fmt::Write as _;

use super::super::words;
use super::{Report, Section};
use crate::terminal::{Colour, Paint, escaped, shortened};

/// Rows of a table, and spans of time.
const ROWS: usize = 15;
const SPANS: u64 = 24;
/// Characters of an entry, of one that is a sentence, and of the longest bar.
const WIDTH: usize = 48;
const SENTENCE: usize = 120;
const BAR: u64 = 40;

pub(super) fn report(report: &Report, paint: Paint) -> String {
    let verified = &report.verified;
    let colour = if verified.verdict.is_whole() { Colour::Green } else { Colour::Red };
    let mut text = format!("{}\n{}\n", paint.paint(colour, verified.headline()), verified.extent());
    // Writing to a String does not fail.
    for finding in verified.findings().iter().take(5) {
        let _ = writeln!(text, "  {finding}");
    }
    if verified.verdict.findings.len() > 5 {
        let _ = writeln!(text, "  and more: portreeve audit verify has them all");
    }
    let summary: Vec<String> = report
        .summary()
        .iter()
        .map(|(label, count)| format!("{} {label}", paint.paint(Colour::Bold, words::number(*count))))
        .collect();
    let _ = writeln!(text, "\n{}\n({})", summary.join(", "), report.scope());
    timeline(&mut text, &report.timeline(SPANS), paint);
    for section in report.sections() {
        heading(&mut text, &section, paint);
        table(&mut text, &section, paint);
    }
    text
}

fn heading(text: &mut String, section: &Section, paint: Paint) {
    let _ = writeln!(text, "\n{}", paint.paint(Colour::Bold, section.title));
    if section.rows.is_empty() {
        let _ = writeln!(text, "  {}", section.none);
    }
}

/// A bar for each span: `#` for what was permitted, `x` for what was refused.
fn timeline(text: &mut String, section: &Section, paint: Paint) {
    heading(text, section, paint);
    let counts = |row: &[super::Cell]| -> [u64; 2] {
        let number = |at: usize| match row.get(at) {
            Some(super::Cell::Number(count)) => *count,
            _ => 0,
        };
        [number(1).saturating_add(number(2)).saturating_add(number(4)), number(3)]
    };
    let all = section.rows.iter().map(|row| counts(row));
    let most = all.clone().map(|[others, denied]| others.saturating_add(denied)).max().unwrap_or(0).max(1);
    for (row, [others, denied]) in section.rows.iter().zip(all) {
        let length = |count: u64| {
            let length = u128::from(count) * u128::from(BAR) / u128::from(most);
            usize::try_from(length).unwrap_or(0).max(usize::from(count > 0))
        };
        let at = row.first().map(super::Cell::text).unwrap_or_default();
        let denied_text =
            if denied > 0 { format!(", {} denied", words::number(denied)) } else { String::new() };
        let _ = writeln!(
            text,
            "  {at}  {}{} {}{denied_text}",
            "#".repeat(length(others)),
            paint.paint(Colour::Red, "x".repeat(length(denied))),
            words::number(others.saturating_add(denied)),
        );
    }
}

fn width_of(cell: &super::Cell) -> usize {
    match cell {
        super::Cell::Text(_) | super::Cell::Outcome(_) => SENTENCE,
        _ => WIDTH,
    }
}

fn table(text: &mut String, section: &Section, paint: Paint) {
    if section.rows.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = section
        .rows
        .iter()
        .take(ROWS)
        .map(|row| row.iter().map(|cell| shortened(&escaped(&cell.text()), width_of(cell))).collect())
        .collect();
    let head: Vec<String> = section.columns.iter().map(|column| (*column).to_owned()).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|at| {
            let column = std::iter::once(&head).chain(&rows).filter_map(|row| row.get(at));
            column.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let first = section.rows.first();
    let mut line = |row: &[String], colour: Option<Colour>| {
        let mut line = String::from(" ");
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let is_number = first.and_then(|first| first.get(at)).is_some_and(super::Cell::is_number);
            let _ = if is_number { write!(line, " {cell:>width$}") } else { write!(line, " {cell:<width$}") };
        }
        let line = line.trim_end();
        let _ =
            writeln!(text, "{}", colour.map_or_else(|| line.to_owned(), |colour| paint.paint(colour, line)));
    };
    line(&head, Some(Colour::Dim));
    for (row, cells) in rows.iter().zip(&section.rows) {
        let is_bad = cells.iter().any(super::Cell::is_bad);
        line(row, is_bad.then_some(Colour::Red));
    }
    let more = super::counted(ROWS, section.rows.len()).saturating_add(section.more);
    if more > 0 {
        let _ = writeln!(text, "  and {} more", words::number(more));
    }
}

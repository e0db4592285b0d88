//! The report's charts, as SVG inside its page: no script, no style of their own, colours from the page.

use std::fmt::Write as _;
use std::time::Duration;

use super::super::request::Decision;
use super::super::words;
use super::html::escape;
use super::tally::{Decisions, Tally, Timed, Timeline};
use crate::terminal::shortened;

/// Width of every chart in its own units; on a phone it is scrolled, not shrunk beyond reading.
const WIDTH: f64 = 960.0;
/// Bars of the charts by command.
const COMMANDS: usize = 12;
/// Characters of a command beside its bar, and the place for them.
const LABEL: usize = 30;
const LABEL_WIDTH: f64 = 250.0;
const ROW: f64 = 28.0;

/// What each decision is called in a legend.
pub(super) const LEGEND: [(Decision, &str); 4] = [
    (Decision::Allow, "allowed"),
    (Decision::Redact, "allowed, parts left out"),
    (Decision::Deny, "denied"),
    (Decision::None, "dropped before it was decided"),
];

/// Writing to a String does not fail.
macro_rules! put {
    ($to:expr, $($what:tt)*) => { let _ = write!($to, $($what)*); };
}

fn begin(id: &str, height: f64, title: &str, description: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"{id}-title {id}-description\">\
         <title id=\"{id}-title\">{}</title><desc id=\"{id}-description\">{}</desc>\
         <defs><pattern id=\"{id}-hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
         <rect width=\"6\" height=\"6\" class=\"deny\"/><rect width=\"2\" height=\"6\" class=\"hatch\"/></pattern></defs>",
        escape(title),
        escape(description)
    )
}

/// A bar's part. What was denied is hatched as well as coloured: colours alone do not tell everybody, nor every printer.
fn part(svg: &mut String, id: &str, decision: Decision, [x, y, width, height]: [f64; 4]) {
    let word = decision.word();
    match decision {
        Decision::Deny => {
            put!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"url(#{id}-hatch)\"/>"
            );
        }
        _ => {
            put!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" class=\"{word}\"/>"
            );
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a chart is not more exact than a pixel")]
fn float(number: u64) -> f64 {
    number as f64
}

fn sum(decisions: &Decisions) -> u64 {
    decisions.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

/// The next of 1, 2, 5, 10, 20, ... so that half of it is a number people like, too.
fn round_up(number: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        for step in [2, 4, 10] {
            let candidate = power.saturating_mul(step);
            if candidate >= number {
                return candidate;
            }
        }
        power = power.saturating_mul(10);
    }
}

/// In words: how many of which decision.
fn decided(decisions: &Decisions) -> String {
    let parts: Vec<String> = LEGEND
        .iter()
        .filter_map(|(decision, name)| {
            let count = *decisions.get(decision.index())?;
            (count > 0).then(|| format!("{} {name}", words::number(count)))
        })
        .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

/// Requests over time, a bar for each span.
pub(super) fn timeline(tally: &Tally) -> Option<String> {
    const HEIGHT: f64 = 260.0;
    const LEFT: f64 = 64.0;
    const BOTTOM: f64 = 216.0;
    const TOP: f64 = 16.0;
    let (width, spans) = tally.timeline.spans(Timeline::MOST);
    let (first, last) = (spans.first()?.0, spans.last()?.0);
    let most = round_up(spans.iter().map(|(_, decisions)| sum(decisions)).max()?);
    let end = last.checked_add(width).unwrap_or(last);
    let description = format!(
        "{} from {} to {} UTC, in spans of {}: {}. The highest bar stands for at most {}.",
        words::count(tally.requests, "request"),
        words::time(first),
        words::time(end),
        words::duration(width),
        decided(&tally.decisions),
        words::number(most)
    );
    let mut svg = begin("chart-time", HEIGHT, "Requests over time, by decision", &description);
    let scale = (BOTTOM - TOP) / float(most);
    for line in [0, most / 2, most] {
        let y = BOTTOM - float(line) * scale;
        put!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        put!(
            svg,
            "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            y + 5.0,
            words::number(line)
        );
    }
    let step = (WIDTH - LEFT) / float(u64::try_from(spans.len()).unwrap_or(1));
    let bar = (step * 0.82).min(56.0);
    let mut x = LEFT;
    for (at, decisions) in &spans {
        if sum(decisions) > 0 {
            put!(svg, "<g><title>{} UTC: {}</title>", words::time(*at), decided(decisions));
            let mut y = BOTTOM;
            for (decision, _) in LEGEND {
                let count = decisions.get(decision.index()).copied().unwrap_or_default();
                if count > 0 {
                    let height = (float(count) * scale).max(1.0);
                    y -= height;
                    part(&mut svg, "chart-time", decision, [x + (step - bar) / 2.0, y, bar, height]);
                }
            }
            svg.push_str("</g>");
        }
        x += step;
    }
    // As many times as fit beside each other.
    let is_long = width >= Duration::from_secs(43_200);
    let every = spans.len().div_ceil(6).max(1);
    let mut x = LEFT;
    let mut day = String::new();
    for (number, (at, _)) in spans.iter().enumerate() {
        if number.is_multiple_of(every) && x + 90.0 < WIDTH {
            let text = words::time(*at);
            let (date, time) = text.split_once(' ').unwrap_or((&text, ""));
            put!(
                svg,
                "<line class=\"tick\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{BOTTOM}\" y2=\"{:.1}\"/>",
                BOTTOM + 5.0
            );
            let shown = match time.strip_suffix(":00") {
                _ if is_long => date,
                Some(minutes) if width >= Duration::from_secs(60) => minutes,
                _ => time,
            };
            put!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\">{shown}</text>", BOTTOM + 20.0);
            if !is_long && day != date {
                put!(svg, "<text class=\"dim\" x=\"{x:.1}\" y=\"{:.1}\">{date}</text>", BOTTOM + 37.0);
                date.clone_into(&mut day);
            }
        }
        x += step;
    }
    svg.push_str("</svg>");
    Some(svg)
}

/// The label of a row, which names a command.
fn label(svg: &mut String, y: f64, command: &str) {
    // Escaped before it is cut, so that no escape is.
    let shown = shortened(&crate::terminal::escaped(command), LABEL);
    put!(
        svg,
        "<text class=\"end name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        LABEL_WIDTH - 10.0,
        y + 17.0,
        escape(&shown)
    );
}

/// How often which command was asked for.
pub(super) fn commands(tally: &Tally) -> Option<String> {
    let all = tally.commands.ranked(|timed: &Timed| sum(&timed.decisions));
    let rows = all.get(..all.len().min(COMMANDS))?;
    let most = rows.iter().map(|(_, timed)| sum(&timed.decisions)).max()?;
    let height = float(u64::try_from(rows.len()).unwrap_or(0)) * ROW + 4.0;
    let description = format!(
        "The {} asked for most often, of {}. The most frequent one was asked for {}.",
        words::count(u64::try_from(rows.len()).unwrap_or(0), "command"),
        all.len(),
        words::count(most, "time")
    );
    let mut svg = begin("chart-commands", height, "Requests by command and decision", &description);
    let scale = (WIDTH - LABEL_WIDTH - 90.0) / float(most.max(1));
    let mut y = 0.0;
    for (command, timed) in rows {
        label(&mut svg, y, command);
        put!(svg, "<g><title>{}</title>", escape(&format!("{command}: {}", decided(&timed.decisions))));
        let mut x = LABEL_WIDTH;
        for (decision, _) in LEGEND {
            let count = timed.decisions.get(decision.index()).copied().unwrap_or_default();
            if count > 0 {
                let width = (float(count) * scale).max(1.5);
                part(&mut svg, "chart-commands", decision, [x, y + 3.0, width, ROW - 9.0]);
                x += width;
            }
        }
        put!(
            svg,
            "</g><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 8.0,
            y + 17.0,
            words::number(sum(&timed.decisions))
        );
        y += ROW;
    }
    svg.push_str("</svg>");
    Some(svg)
}

/// How long commands took: from half of the requests to 95 of 100, and the longest, on a scale of powers of ten.
pub(super) fn durations(tally: &Tally) -> Option<String> {
    const TOP: f64 = 26.0;
    let all = tally.commands.ranked(|timed: &Timed| timed.durations.sum);
    let rows: Vec<_> = all
        .iter()
        .filter_map(|(command, timed)| {
            let durations = &timed.durations;
            Some((
                command,
                [durations.quantile(50)?, durations.quantile(95)?, durations.longest]
                    .map(|micros| micros.max(1)),
            ))
        })
        .take(COMMANDS)
        .collect();
    let least = rows.iter().map(|(_, [half, ..])| *half).min()?;
    let most = rows.iter().map(|(_, [.., longest])| *longest).max()?;
    let (from, to) = (least.ilog10(), most.ilog10().saturating_add(1));
    let scale = (WIDTH - LABEL_WIDTH - 30.0) / f64::from(to - from);
    let place = |micros: u64| LABEL_WIDTH + (float(micros).log10() - f64::from(from)) * scale;
    let bottom = TOP + float(u64::try_from(rows.len()).unwrap_or(0)) * ROW;
    let description = format!(
        "For the {} that took the most time together: half of the requests, 95 of 100, and the longest, which took {}.",
        words::count(u64::try_from(rows.len()).unwrap_or(0), "command"),
        words::duration(Duration::from_micros(most))
    );
    let mut svg = begin("chart-durations", bottom + 6.0, "How long commands took", &description);
    // Every power of ten has a line, and a name where names do not run into each other.
    let every = usize::try_from((to - from).div_ceil(8).max(1)).unwrap_or(1);
    for (number, power) in (from..=to).enumerate() {
        let micros = 10_u64.saturating_pow(power);
        let x = LABEL_WIDTH + f64::from(power - from) * scale;
        put!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>",
            TOP - 6.0
        );
        if number.is_multiple_of(every) {
            let name = words::duration(Duration::from_micros(micros)).replace(".0", "");
            put!(svg, "<text class=\"middle dim\" x=\"{x:.1}\" y=\"{:.1}\">{name}</text>", TOP - 11.0);
        }
    }
    let mut y = TOP;
    for (command, [half, most, longest]) in rows {
        label(&mut svg, y, command);
        let shown = [half, most, longest].map(|micros| words::duration(Duration::from_micros(micros)));
        let [half, most, longest] = [half, most, longest].map(place);
        let middle = y + ROW / 2.0 - 1.5;
        put!(
            svg,
            "<g><title>{}</title><line class=\"reach\" x1=\"{most:.1}\" x2=\"{longest:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <rect class=\"range\" x=\"{half:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"8\" rx=\"3\"/>\
             <circle class=\"half\" cx=\"{half:.1}\" cy=\"{middle:.1}\" r=\"5\"/>\
             <line class=\"longest\" x1=\"{longest:.1}\" x2=\"{longest:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/></g>",
            escape(&format!(
                "{command}: half at most {}, 95 of 100 at most {}, the longest {}",
                shown[0], shown[1], shown[2]
            )),
            middle - 4.0,
            (most - half).max(2.0),
            middle - 7.0,
            middle + 7.0,
        );
        y += ROW;
    }
    svg.push_str("</svg>");
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_number_people_like() {
        assert_eq!([0, 1, 3, 4, 5, 11, 39, 41, 999].map(round_up), [2, 2, 4, 4, 10, 20, 40, 100, 1000]);
        assert_eq!(round_up(u64::MAX), u64::MAX);
    }

    #[test]
    fn an_empty_log_has_no_charts() {
        let tally = Tally::default();
        assert_eq!((timeline(&tally), commands(&tally), durations(&tally)), (None, None, None));
    }
}

//! The report as one page that needs nothing else: no script, no font, no image, and a policy in it that forbids them, since most of
//! what it shows was written by somebody who may mean harm.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use records::Hash;

use super::super::words;
use super::{Cell, Report, Section, chart};
use crate::terminal::{escaped, shortened};

/// Characters of an entry in a table.
const LONGEST: usize = 160;

const STYLE: &str = include_str!("page.css");

/// The text for HTML, in content and in attributes between double quotes. What a terminal would obey is escaped as well: a browser
/// obeys bidirectional controls, too.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in escaped(text).chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter => safe.push(letter),
        }
    }
    safe
}

/// Writing to a String does not fail.
macro_rules! put {
    ($to:expr, $($what:tt)*) => { let _ = write!($to, $($what)*); };
}

pub(super) fn page(report: &Report) -> String {
    let verified = &report.verified;
    let style = STANDARD.encode(Hash::of(STYLE.as_bytes()).bytes());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; \
         form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Audit report: {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>Audit report</h1>\n<p>{}</p>\n</header>\n<main>\n",
        escape(&verified.headline()),
        escape(&verified.extent()),
    );
    verdict(&mut page, report);
    numbers(&mut page, report);
    contents(&mut page, report);
    charts(&mut page, report);
    for section in report.sections() {
        put!(page, "<section id=\"{}\">\n<h2>{}</h2>\n", section.id, section.title);
        if !section.lead.is_empty() {
            put!(page, "<p>{}</p>\n", section.lead);
        }
        table(&mut page, &section);
        page.push_str("</section>\n");
    }
    put!(
        page,
        "</main>\n<footer><p>Made by portreeve {} on {} UTC. All times are UTC. Characters that a screen would obey or hide are shown as \
         <code>\\uXXXX</code>.</p></footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        words::time(report.made),
    );
    page
}

/// What the verifier says, before anything that rests on it.
fn verdict(page: &mut String, report: &Report) {
    let verified = &report.verified;
    let (class, sign) = if verified.verdict.is_whole() { ("whole", "✓") } else { ("broken", "✗") };
    put!(
        page,
        "<section id=\"chain\" class=\"verdict {class}\">\n<h2><span aria-hidden=\"true\">{sign}</span> {}</h2>\n",
        escape(&verified.headline())
    );
    let list = |page: &mut String, title: &str, items: &[String], more: u64| {
        if items.is_empty() {
            return;
        }
        put!(page, "<h3>{title}</h3>\n<ul>\n");
        items.iter().take(20).for_each(|item| {
            put!(page, "<li><bdi>{}</bdi></li>\n", escape(item));
        });
        let more = super::counted(20, items.len()).saturating_add(more);
        if more > 0 {
            put!(page, "<li class=\"more\">and {} more</li>\n", words::number(more));
        }
        page.push_str("</ul>\n");
    };
    list(page, "What is wrong", &verified.findings(), verified.verdict.more_findings);
    page.push_str("<details><summary>What can be trusted, and what this shows</summary>\n");
    list(page, "What can be trusted", &verified.trust(), 0);
    list(page, "What is to be known", &verified.notices(), 0);
    list(page, "Files", &verified.names, 0);
    put!(page, "<h3>What this shows</h3>\n<p>{}</p>\n</details>\n</section>\n", escape(&verified.meaning()));
}

fn numbers(page: &mut String, report: &Report) {
    page.push_str("<section id=\"numbers\">\n<h2>In numbers</h2>\n<dl class=\"tiles\">\n");
    for (label, count) in report.summary() {
        let class = if count > 0 && matches!(label, "denied" | "failed" | "abandoned") {
            " class=\"notable\""
        } else {
            ""
        };
        put!(page, "<div{class}><dt>{label}</dt><dd>{}</dd></div>\n", words::number(count));
    }
    put!(page, "</dl>\n<p>{}.</p>\n</section>\n", escape(&report.scope()));
}

fn contents(page: &mut String, report: &Report) {
    page.push_str("<nav aria-label=\"Sections\"><ul>\n<li><a href=\"#time\">Requests over time</a></li>\n");
    for section in report.sections() {
        put!(page, "<li><a href=\"#{}\">{}</a></li>\n", section.id, section.title);
    }
    page.push_str("</ul></nav>\n");
}

fn charts(page: &mut String, report: &Report) {
    let timeline = report.timeline(super::Timeline::MOST);
    put!(page, "<section id=\"time\">\n<h2>{}</h2>\n", timeline.title);
    if let Some(svg) = chart::timeline(&report.tally) {
        page.push_str("<ul class=\"legend\">\n");
        for (decision, name) in chart::LEGEND {
            put!(
                page,
                "<li><span class=\"key {}\" aria-hidden=\"true\"></span>{name}</li>\n",
                decision.word()
            );
        }
        put!(
            page,
            "</ul>\n<div class=\"chart\" tabindex=\"0\">{svg}</div>\n<details><summary>The same as a table</summary>\n"
        );
        table(page, &timeline);
        page.push_str("</details>\n");
    } else {
        put!(page, "<p>{}</p>\n", timeline.none);
    }
    page.push_str("</section>\n");
    if let Some(svg) = chart::commands(&report.tally) {
        put!(
            page,
            "<section>\n<h2>Requests by command</h2>\n<div class=\"chart\" tabindex=\"0\">{svg}</div>\n"
        );
        page.push_str("<p class=\"note\">As a table: <a href=\"#commands\">commands</a>.</p>\n</section>\n");
    }
    if let Some(svg) = chart::durations(&report.tally) {
        put!(page, "<section>\n<h2>How long commands took</h2>\n");
        page.push_str("<p>The dot is what half of the requests took at most, the bar reaches to 95 of 100, the stroke is the longest.</p>\n");
        put!(page, "<div class=\"chart\" tabindex=\"0\">{svg}</div>\n");
        page.push_str("<p class=\"note\">As a table: <a href=\"#commands\">commands</a>.</p>\n</section>\n");
    }
}

fn table(page: &mut String, section: &Section) {
    let Some(first) = section.rows.first() else {
        put!(page, "<p>{}</p>\n", section.none);
        return;
    };
    let class =
        |cell: Option<&Cell>| if cell.is_some_and(Cell::is_number) { " class=\"number\"" } else { "" };
    // A region that scrolls must be reached by keyboard, too.
    put!(
        page,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">\n<table>\n<thead><tr>",
        section.title
    );
    for (at, column) in section.columns.iter().enumerate() {
        put!(page, "<th scope=\"col\"{}>{column}</th>", class(first.get(at)));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in &section.rows {
        page.push_str("<tr>");
        for cell in row {
            let text = escape(&shortened(&cell.text(), LONGEST));
            match cell {
                Cell::Number(_) | Cell::Micros(_) => {
                    put!(page, "<td class=\"number\">{text}</td>");
                }
                Cell::Time(_) => {
                    put!(page, "<td class=\"time\">{text}</td>");
                }
                Cell::Code(_) => {
                    put!(page, "<td><code><bdi>{text}</bdi></code></td>");
                }
                Cell::Text(_) => {
                    put!(page, "<td><bdi>{text}</bdi></td>");
                }
                Cell::Outcome(_) => {
                    let class = if cell.is_bad() { " class=\"bad\"" } else { "" };
                    put!(page, "<td{class}><bdi>{text}</bdi></td>");
                }
            }
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
    if section.more > 0 {
        put!(page, "<p class=\"more\">and {} more</p>\n", words::number(section.more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_somebody_wrote_is_markup() {
        assert_eq!(
            escape("<script>alert(\"1\")</script>&'\u{202e}\x1b"),
            "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;\\u202e\\u001b"
        );
    }

    // The policy permits one style by its hash; a style that could end its element would end the policy's meaning.
    #[test]
    fn the_style_is_plain_text() {
        assert!(!STYLE.contains('<') && !STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}

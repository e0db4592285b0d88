//! What a verifier found, in words.

use std::time::{Duration, SystemTime};

use records::{Break, Finding, NotARecord, Notice, Place, Seen};

use crate::terminal::escaped;

/// `FILE:LINE`.
pub(super) fn place(names: &[String], place: Place) -> String {
    format!("{}:{}", names.get(place.file).map_or("?", String::as_str), place.line)
}

/// One word for what is wrong, for scripts.
pub(super) fn kind(what: &Break) -> &'static str {
    match what {
        Break::NotARecord(_) => "not-a-record",
        Break::Changed { .. }
        | Break::OneOfTwoChanged { .. }
        | Break::LinkDiffers
        | Break::Miscounted { .. } => "changed",
        Break::Missing { .. } => "missing",
        Break::RunCut { .. } => "cut",
        Break::Added { .. } => "added",
        Break::Repeated => "repeated",
        Break::OutOfOrder { .. } => "out-of-order",
        Break::StartsAnew => "starts-anew",
        Break::Replaced => "replaced",
        Break::NotChained => "not-chained",
        Break::HeadMissing { .. } => "head-missing",
    }
}

/// Why it is wrong, as a sentence without its end.
pub(super) fn why(finding: &Finding, names: &[String]) -> String {
    let record = |seen: &Seen| format!("record {} ({})", seen.sequence, place(names, seen.place));
    match &finding.what {
        Break::NotARecord(why) => {
            format!("{}, and the records around it do not follow each other: it was one", not_a_record(why))
        }
        Break::Changed { by } => {
            format!("it was changed after it was written: {} holds another hash of it", record(by))
        }
        Break::OneOfTwoChanged { before } => {
            format!("it or {} was changed: their hashes differ, and nothing after them says which of the two", record(before))
        }
        Break::Miscounted { expected } => {
            format!("it was changed: by its place it has the sequence {expected}")
        }
        Break::LinkDiffers => "it was changed: its link and its prev differ".to_owned(),
        Break::Missing { from, to } if from == to => format!("record {from}, which stood before it, is gone"),
        Break::Missing { from, to } => format!("records {from} to {to}, which stood before it, are gone"),
        Break::RunCut { last, known } => {
            format!("the run before it was cut: the agent had written up to record {known}, and the log ends at {last}")
        }
        Break::Added { known } => {
            format!("records after {known} in the run before were not there when the agent started again: they were added later")
        }
        Break::Repeated => "it is the record before once more".to_owned(),
        Break::OutOfOrder { after } => {
            format!("it stands after record {after}: it was moved, it is a copy, or a start before it is gone")
        }
        Break::StartsAnew => "it knows nothing of the records before it: they are not of this log, or the agent could not read it".to_owned(),
        Break::Replaced => "the agent noticed here that the file it wrote to was removed or cut, and what stood in it is gone".to_owned(),
        Break::NotChained => "it has no hash of the record before, as all before have: the agent did not write it".to_owned(),
        Break::HeadMissing { head, instead: None } => {
            format!("the witnessed record {head} is not in the log: what stood at its end is gone or was replaced")
        }
        Break::HeadMissing { head, .. } => {
            format!("the witnessed record {head} is not in the log: this one, of the same sequence, was changed or stands in its place")
        }
    }
}

pub(super) fn not_a_record(why: &NotARecord) -> String {
    // A parser's words can repeat what is in the line.
    escaped(&why.to_string())
}

/// What somebody should know.
pub(super) fn notice(notice: &Notice, names: &[String]) -> String {
    let at = |seen: &Seen| format!("{}, record {}", place(names, seen.place), seen.sequence);
    match notice {
        Notice::NotARecord(where_, why) => format!(
            "{}: {}; the chain goes on around it: it was cut while it was written, or somebody added it",
            place(names, *where_),
            not_a_record(why)
        ),
        Notice::BeginsInTheMiddle(seen) => {
            format!(
                "{}: the log begins in the middle: the records before were rotated away or are not among these files",
                at(seen)
            )
        }
        Notice::ChainedFrom(seen) => format!("{}: only from here on records are chained", at(seen)),
        Notice::Lost(seen, records) => {
            format!(
                "{}: the agent says that {records} records could not be written before this one",
                at(seen)
            )
        }
        Notice::Replaced(seen) => {
            format!(
                "{}: the agent noticed that its file was removed or cut; what stood in it is here",
                at(seen)
            )
        }
        Notice::Earlier(seen) => {
            format!("{}: its time is before that of the record before it: the clock was set back", at(seen))
        }
        Notice::Version(seen, version) => {
            format!(
                "{}: it is of form {version}, and this program knows 1: a newer one may read more out of it",
                at(seen)
            )
        }
        Notice::HeadMiscounted(head, seen) => {
            format!(
                "{}: this is the witnessed record {head}, though its sequence is another: look at what was noted",
                at(seen)
            )
        }
    }
}

/// A time, to the second.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").trim_end_matches('Z').to_owned()
}

/// A time, to the millisecond.
pub(super) fn exact_time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string().replace('T', " ").trim_end_matches('Z').to_owned()
}

/// How long something took: at most three digits.
pub(super) fn duration(took: Duration) -> String {
    let micros = took.as_micros();
    let scaled = |unit: u128, name: &str| {
        let (whole, tenth) = (micros / unit, micros % unit * 10 / unit);
        if whole < 10 { format!("{whole}.{tenth} {name}") } else { format!("{whole} {name}") }
    };
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => scaled(1_000, "ms"),
        1_000_000..120_000_000 => scaled(1_000_000, "s"),
        120_000_000..7_200_000_000 => scaled(60_000_000, "min"),
        _ => scaled(3_600_000_000, "h"),
    }
}

/// A number with its thousands apart.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 record`, `2 records`.
pub(super) fn count(count: u64, one: &str) -> String {
    format!("{} {one}{}", number(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_few_digits() {
        let shown = |micros| duration(Duration::from_micros(micros));
        assert_eq!(shown(999), "999 µs");
        assert_eq!([shown(1_234), shown(12_345), shown(123_456)], ["1.2 ms", "12 ms", "123 ms"]);
        assert_eq!([shown(9_990_000), shown(119_000_000), shown(600_000_000)], ["9.9 s", "119 s", "10 min"]);
        assert_eq!(shown(u64::MAX), "5124095576 h");
    }

    #[test]
    fn numbers_are_read_in_thousands() {
        assert_eq!(
            [number(0), number(999), number(1_000), number(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([count(1, "record"), count(2, "record")], ["1 record", "2 records"]);
    }
}

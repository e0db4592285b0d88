//! What the verifier says of logs that somebody has changed.

mod log;

use log::Log;
use records::{Break, Head, Lines, NotARecord, Notice, Place, Verdict, Verifier};

fn verify(files: &[&str], heads: &[Head]) -> Verdict {
    let mut verifier = Verifier::new(heads.iter().copied());
    for (file, text) in files.iter().enumerate() {
        let mut lines = Lines::new(text.as_bytes());
        let mut line = 0;
        while let Some(next) = lines.next().expect("memory can be read") {
            line += 1;
            verifier.line(Place { file, line }, &next);
        }
    }
    verifier.finish()
}

/// Line, sequence and kind of each finding.
fn found(verdict: &Verdict) -> Vec<(u64, u64, &Break)> {
    let of = |finding: &'_ records::Finding| {
        (finding.place.map_or(0, |place| place.line), finding.sequence.unwrap_or(0))
    };
    verdict.findings.iter().map(|finding| (of(finding).0, of(finding).1, &finding.what)).collect()
}

/// First and last sequence of each segment.
fn segments(verdict: &Verdict) -> Vec<(u64, u64)> {
    verdict.segments.iter().map(|segment| (segment.first.sequence, segment.last.sequence)).collect()
}

/// A start and requests up to sequence 6.
fn six() -> Log {
    let mut log = Log::new();
    log.start();
    for number in 2..=6 {
        log.request(&format!("guest-get-{number}"));
    }
    log
}

/// Two runs of the agent, with a change in each; 9 records.
fn two_runs() -> Log {
    let mut log = six();
    log.start();
    let intent = log.record("intent", "\"command\":\"guest-shutdown\",\"outcome\":\"begins\"");
    log.record(
        "request",
        &format!("\"command\":\"guest-shutdown\",\"outcome\":\"done\",\"intent\":{intent}"),
    );
    log
}

#[test]
fn a_whole_log_is_whole_over_restarts_and_a_head_vouches_for_all_before_it() {
    let log = two_runs();
    let verdict = verify(&[log.text()], &[log.head()]);
    assert!(verdict.is_whole(), "{verdict:?}");
    assert_eq!((verdict.records, verdict.starts, verdict.unchained), (9, 2, 0));
    assert_eq!(verdict.notices, []);
    assert_eq!(segments(&verdict), [(1, 3)]);
    assert_eq!(verdict.segments[0].witnessed, verdict.last);
    assert!(verdict.unclosed.is_empty() && verdict.running.is_empty());
}

#[test]
fn the_chain_goes_on_from_a_rotated_file_to_the_next_and_a_missing_file_is_noticed() {
    let mut log = six();
    log.record("rotated", "\"to\":\"a.1\"");
    let first = log.take();
    log.request("guest-ping");
    let second = log.take();
    log.request("guest-ping");
    let third = log.take();
    assert!(verify(&[&first, &second, &third], &[]).is_whole());
    let verdict = verify(&[&first, &third], &[]);
    assert_eq!(found(&verdict), [(1, 9, &Break::Missing { from: 8, to: 8 })]);
    assert_eq!(verdict.findings[0].place, Some(Place { file: 1, line: 1 }));
    // The oldest may have been rotated away.
    let verdict = verify(&[&second, &third], &[]);
    assert!(verdict.is_whole());
    assert_eq!(verdict.notices, [Notice::BeginsInTheMiddle(verdict.first.unwrap())]);
}

// The chain covers every byte: whatever byte of a record is replaced, added or removed, the head that was witnessed does not follow.
#[test]
fn a_change_of_any_byte_is_noticed() {
    let log = two_runs();
    let (text, heads) = (log.text().as_bytes(), [log.head()]);
    let mut tried = 0;
    for position in 0..text.len() {
        let mut edits = vec![text.to_vec(); 4];
        edits[0][position] ^= 1;
        edits[1][position] = if text[position] == b'0' { b'1' } else { b'0' };
        edits[2].remove(position);
        edits[3].insert(position, b' ');
        for edit in edits {
            let verdict = verify(&[&String::from_utf8_lossy(&edit)], &heads);
            assert!(!verdict.is_whole(), "position {position}: {}", String::from_utf8_lossy(&edit));
            tried += 1;
        }
    }
    assert!(tried > 7000, "{tried}");
}

#[test]
fn an_edited_record_is_named_and_its_neighbours_stay_trusted() {
    let log = six();
    for number in 1..=5_u64 {
        let text = log.text().replacen(
            &format!("\"sequence\":{number},\"time\":\"2026"),
            &format!("\"sequence\":{number},\"time\":\"2025"),
            1,
        );
        assert_ne!(text, log.text());
        let verdict = verify(&[&text], &[log.head()]);
        let [(line, sequence, Break::Changed { by })] = found(&verdict)[..] else { panic!("{verdict:?}") };
        assert_eq!((line, sequence, by.sequence), (number, number, number + 1));
        let expected: Vec<_> =
            [(1, number - 1), (number + 1, 6)].into_iter().filter(|(first, last)| first <= last).collect();
        assert_eq!(segments(&verdict), expected);
        assert_eq!(verdict.segments.last().unwrap().witnessed, verdict.last);
    }
}

#[test]
fn an_edited_prev_is_an_edit_of_the_record_that_holds_it() {
    let log = six();
    let lines = log.lines();
    let prev = lines[3].rsplit_once("\"prev\":\"").unwrap().1.trim_end_matches("\"}\n");
    let text = log.text().replacen(prev, &"5".repeat(64), 1);
    let verdict = verify(&[&text], &[]);
    let [(4, 4, Break::Changed { by })] = found(&verdict)[..] else { panic!("{verdict:?}") };
    assert_eq!(by.sequence, 5);
    assert_eq!(segments(&verdict), [(1, 3), (5, 6)]);
}

#[test]
fn without_a_head_an_edit_of_the_last_record_cannot_be_noticed_and_with_one_it_is() {
    let log = six();
    let text = log.text().replace("guest-get-6", "guest-get-9");
    assert!(verify(&[&text], &[]).is_whole());
    let verdict = verify(&[&text], &[log.head()]);
    let [(6, 6, Break::HeadMissing { head, instead })] = found(&verdict)[..] else { panic!("{verdict:?}") };
    assert_eq!((*head, instead.map(|seen| seen.sequence)), (log.head(), Some(6)));
}

#[test]
fn a_log_that_was_cut_at_its_end_lacks_the_witnessed_head() {
    let log = six();
    let text: String = log.lines()[..4].concat();
    assert!(verify(&[&text], &[]).is_whole());
    let verdict = verify(&[&text], &[log.head()]);
    assert_eq!(found(&verdict), [(0, 0, &Break::HeadMissing { head: log.head(), instead: None })]);
}

#[test]
fn a_run_that_was_cut_is_noticed_by_the_next_start() {
    let log = two_runs();
    let mut lines = log.lines();
    lines.drain(4..6);
    let verdict = verify(&[&lines.concat()], &[]);
    assert_eq!(found(&verdict), [(5, 1, &Break::RunCut { last: 4, known: 6 })]);
    assert_eq!(segments(&verdict), [(1, 4), (1, 3)]);
}

#[test]
fn records_added_to_a_run_that_had_ended_are_noticed_by_the_next_start() {
    let mut log = six();
    let known = log.lines().len();
    log.request("guest-get-later");
    let forged = log.text().to_owned();
    let honest = two_runs();
    let text = format!("{forged}{}", honest.lines()[known..].concat());
    assert_eq!(found(&verify(&[&text], &[])), [(8, 1, &Break::Added { known: 6 })]);
}

#[test]
fn deleted_records_are_counted() {
    let log = six();
    let mut lines = log.lines();
    lines.drain(2..4);
    let verdict = verify(&[&lines.concat()], &[]);
    assert_eq!(found(&verdict), [(3, 5, &Break::Missing { from: 3, to: 4 })]);
    assert_eq!(segments(&verdict), [(1, 2), (5, 6)]);
}

#[test]
fn a_record_that_stands_twice_is_one_finding() {
    let log = six();
    let mut lines = log.lines();
    lines.insert(3, lines[2]);
    let verdict = verify(&[&lines.concat()], &[log.head()]);
    assert_eq!(found(&verdict), [(4, 3, &Break::Repeated)]);
    // Later in the log, too; what follows follows what stood there.
    let mut lines = log.lines();
    lines.insert(5, lines[2]);
    let verdict = verify(&[&lines.concat()], &[log.head()]);
    assert_eq!(found(&verdict), [(6, 3, &Break::OutOfOrder { after: 5 })]);
    assert_eq!(segments(&verdict), [(1, 6)]);
}

#[test]
fn swapped_records_are_missing_in_one_place_and_out_of_order_in_the_other() {
    let log = six();
    let mut lines = log.lines();
    lines.swap(2, 3);
    let verdict = verify(&[&lines.concat()], &[log.head()]);
    assert_eq!(
        found(&verdict)[..2],
        [(3, 4, &Break::Missing { from: 3, to: 3 }), (4, 3, &Break::OutOfOrder { after: 4 })]
    );
}

#[test]
fn a_record_cut_in_the_middle_is_one_finding_wherever_it_is_cut() {
    let log = six();
    let lines = log.lines();
    for cut in 1..lines[3].len() - 1 {
        let text = format!("{}{}\n{}", lines[..3].concat(), &lines[3][..cut], lines[4..].concat());
        let verdict = verify(&[&text], &[log.head()]);
        assert!(matches!(found(&verdict)[..], [(4, 0, Break::NotARecord(_))]), "{cut}: {verdict:?}");
        assert_eq!(segments(&verdict), [(1, 3), (5, 6)]);
    }
}

// docs/audit.md: "A line that is not a whole record was cut while it was written [...]. It does not count; what comes after it stands on
// a line of its own and goes on from the record before it."
#[test]
fn a_line_that_is_no_record_is_told_where_the_chain_goes_on_around_it() {
    let log = six();
    let (mut lines, first) = (log.lines(), Place { file: 0, line: 4 });
    let cut = format!("{}\n", &lines[3][..100]);
    lines.insert(3, &cut);
    let verdict = verify(&[&lines.concat()], &[log.head()]);
    assert!(verdict.is_whole(), "{verdict:?}");
    assert!(
        matches!(&verdict.notices[..], [Notice::NotARecord(place, NotARecord::NotAnObject)] if *place == first)
    );
    assert_eq!(segments(&verdict), [(1, 6)]);
    // At its end a log may have been cut by anybody: a head tells.
    let (end, place) = (log.text().trim_end(), Place { file: 0, line: 6 });
    let verdict = verify(&[end], &[]);
    assert!(verdict.is_whole(), "{verdict:?}");
    assert_eq!(verdict.notices, [Notice::NotARecord(place, NotARecord::Unended)]);
    assert!(!verify(&[end], &[log.head()]).is_whole());
    // Where a first record should be, it was one.
    let verdict = verify(&[&log.text()[1..]], &[log.head()]);
    assert_eq!(found(&verdict), [(1, 0, &Break::NotARecord(NotARecord::NotAnObject))]);
}

#[test]
fn a_start_that_knows_nothing_of_the_log_before_is_a_finding() {
    let text = format!("{}{}", six().text(), six().text());
    assert_eq!(found(&verify(&[&text], &[])), [(7, 1, &Break::StartsAnew)]);
}

#[test]
fn a_log_without_hashes_is_said_to_be_unchained_and_its_numbers_are_still_looked_at() {
    let line = |sequence: u64| {
        format!(
            "{{\"version\":1,\"sequence\":{sequence},\"time\":\"2026-11-26T10:00:00Z\",\"kind\":\"front\"}}\n"
        )
    };
    let verdict = verify(&[&[1, 2, 3, 1, 2].map(line).concat()], &[]);
    assert!(verdict.is_unchained() && !verdict.is_whole() && verdict.findings.is_empty());
    let verdict = verify(&[&[1, 2, 4].map(line).concat()], &[]);
    assert_eq!(found(&verdict), [(3, 4, &Break::Missing { from: 3, to: 3 })]);
    // An agent that chains writes on where one stopped that did not.
    let verdict = verify(&[&[1, 2].map(line).concat(), six().text()], &[]);
    assert!(verdict.is_whole());
    assert!(matches!(verdict.notices[..], [Notice::ChainedFrom(seen)] if seen.place.file == 1));
    // The other way round somebody has added what the agent did not write.
    let verdict = verify(&[six().text(), &line(7)], &[]);
    assert_eq!(found(&verdict), [(1, 7, &Break::NotChained)]);
}

#[test]
fn losses_and_a_replaced_file_are_told_and_do_not_break_the_chain() {
    let mut log = six();
    log.record("loss", "\"records\":12");
    log.record("replaced", "\"why\":\"the file was removed\"");
    let verdict = verify(&[log.text()], &[]);
    assert!(verdict.is_whole());
    assert_eq!(verdict.lost, 12);
    assert!(matches!(verdict.notices[..], [Notice::Lost(_, 12), Notice::Replaced(_)]), "{verdict:?}");
    // What stood in the removed file is gone.
    let rest = log.lines()[7..].concat();
    assert_eq!(found(&verify(&[&rest], &[])), [(1, 8, &Break::Replaced)]);
}

#[test]
fn changes_without_an_outcome_are_told_apart_by_whether_their_agent_still_runs() {
    let mut log = six();
    let begins = "\"command\":\"guest-exec\",\"outcome\":\"begins\"";
    let closed = log.record("intent", begins);
    log.record("intent", begins);
    let before = log.head();
    log.start();
    log.record(
        "closed",
        &format!("\"intent\":{closed},\"of\":\"{}\",\"outcome\":\"unknown\",\"why\":\"crash\"", before.hash),
    );
    log.record("intent", begins);
    let verdict = verify(&[log.text()], &[]);
    assert!(verdict.is_whole());
    assert_eq!(verdict.closed, 1);
    let lines = |intents: &[records::OpenIntent]| -> Vec<u64> {
        intents.iter().map(|intent| intent.place.line).collect()
    };
    assert_eq!((lines(&verdict.unclosed), lines(&verdict.running)), (vec![8], vec![11]));
}

#[test]
fn a_clock_that_was_set_back_and_another_version_are_told() {
    let log = six();
    let text = log.lines()[5].replace("\"version\":1", "\"version\":2").replace("10:00", "09:00");
    let verdict = verify(&[&log.lines()[..5].concat(), &text], &[]);
    assert!(verdict.is_whole(), "the last record can be changed");
    assert!(matches!(verdict.notices[..], [Notice::Version(_, 2), Notice::Earlier(_)]), "{verdict:?}");
}

#[test]
fn what_is_kept_of_a_log_without_end_has_an_end() {
    let mut log = Log::new();
    for _ in 0..300 {
        log.start();
        log.record("intent", "\"command\":\"x\"");
        log.take();
        log.record("loss", "\"records\":1");
    }
    let rubbish = "x\n".repeat(1000);
    let verdict = verify(&[log.text(), &rubbish], &[]);
    assert!(verdict.is_whole());
    assert_eq!((verdict.notices.len(), verdict.more_notices), (100, 902));
    let verdict = verify(&[&rubbish, log.text()], &[]);
    assert_eq!((verdict.findings.len(), verdict.more_findings), (100, 900));
    let mut breaks = String::new();
    for _ in 0..300 {
        breaks.push_str(six().text());
    }
    let verdict = verify(&[&breaks], &[]);
    assert_eq!((verdict.findings.len(), verdict.more_findings), (100, 199));
    assert_eq!((verdict.segments.len(), verdict.more_segments), (100, 200));
}

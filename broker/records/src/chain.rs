//! Whether a log is what the agent wrote: the chain of hashes, from the oldest record to the newest.
//!
//! Each record holds the hash of the one before, so a record vouches for all that stands before it, and nothing vouches for
//! the last one but a head that was witnessed elsewhere. A break is named by its cause, as far as the records around it
//! tell: who edits a record leaves a neighbour that still holds the old hash.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::intents::Intents;
use crate::{Hash, Line, Link, NotARecord, OpenIntent, Record};

/// Findings, notices and segments that are kept of each; more are counted.
const KEPT: usize = 100;

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which file, from 0, in the order in which they were given.
    pub file: usize,
    /// Which line of it, from 1.
    pub line: u64,
}

/// A record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Where it stands.
    pub place: Place,
    /// Its sequence.
    pub sequence: u64,
    /// The hash of its bytes.
    pub hash: Hash,
    /// Its time.
    pub at: SystemTime,
}

/// A head of the chain that was kept outside: `SEQUENCE:HASH`, or with a space as the agent's log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The record's sequence.
    pub sequence: u64,
    /// The record's hash.
    pub hash: Hash,
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (sequence, hash) = text
            .split_once([':', ' '])
            .ok_or("a head is SEQUENCE:HASH, or \"SEQUENCE HASH\" as the agent's log has it")?;
        Ok(Head {
            sequence: sequence
                .parse()
                .map_err(|_| "before the hash stands the record's sequence".to_owned())?,
            hash: hash.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

impl fmt::Display for Head {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.sequence, self.hash)
    }
}

/// What is wrong with the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: the first record that is not as it should be. None if it is not there.
    pub place: Option<Place>,
    /// The sequence of the record there, if there is a record.
    pub sequence: Option<u64>,
    /// What.
    pub what: Break,
}

/// Why the log is not what the agent wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Break {
    /// A line is no record, and the chain does not go on around it.
    NotARecord(NotARecord),
    /// The next record holds another hash of this one.
    Changed {
        /// The record that says so.
        by: Seen,
    },
    /// This record or the one before: the hashes differ, and nothing after them says which is right.
    OneOfTwoChanged {
        /// The one before.
        before: Seen,
    },
    /// The chain goes on, but the sequence does not.
    Miscounted {
        /// What it should be.
        expected: u64,
    },
    /// `link` of a start and its `prev` differ.
    LinkDiffers,
    /// Records are gone before this one.
    Missing {
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// The run before this start went on further than the log does.
    RunCut {
        /// The last record that is there.
        last: u64,
        /// The last that the agent knew of.
        known: u64,
    },
    /// Records that were not there when the agent started the next time.
    Added {
        /// The last that the agent knew of.
        known: u64,
    },
    /// The same record again.
    Repeated,
    /// It stands after a record with a higher sequence.
    OutOfOrder {
        /// That record's.
        after: u64,
    },
    /// A start that knows nothing of the records before it.
    StartsAnew,
    /// The agent noticed that its file was removed or cut, and what stood in it is not here.
    Replaced,
    /// A record without `prev` after records with one.
    NotChained,
    /// No record has the witnessed hash.
    HeadMissing {
        /// What was witnessed.
        head: Head,
        /// The last record with that sequence, which is another one.
        instead: Option<Seen>,
    },
}

/// What somebody who reads the log should know, although nothing is wrong with the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A line is no record, and the chain goes on around it: it was cut while it was written, or somebody added it.
    NotARecord(Place, NotARecord),
    /// The first record is not the first that was written: the older ones were rotated away.
    BeginsInTheMiddle(Seen),
    /// Records of an agent that did not chain stand before the first that is chained.
    ChainedFrom(Seen),
    /// The agent could not write so many records, and says so.
    Lost(Seen, u64),
    /// The agent noticed that its file was removed or cut; what stood in it is here.
    Replaced(Seen),
    /// Earlier than the record before: the clock was set back.
    Earlier(Seen),
    /// The record's form is of another version.
    Version(Seen, u64),
    /// A witnessed hash belongs to a record with another sequence than the witness says.
    HeadMiscounted(Head, Seen),
}

/// Records that follow each other without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The first.
    pub first: Seen,
    /// The last.
    pub last: Seen,
    /// How many.
    pub records: u64,
    /// The last one that a witnessed head vouches for, with all before it.
    pub witnessed: Option<Seen>,
    /// The one before the last.
    before_last: Option<Seen>,
}

impl Segment {
    fn new(first: Seen) -> Self {
        Segment { first, last: first, records: 1, witnessed: None, before_last: None }
    }

    fn push(&mut self, seen: Seen) {
        self.before_last = Some(self.last);
        self.last = seen;
        self.records = self.records.saturating_add(1);
    }

    /// The segment without its last record.
    fn without_last(self) -> Option<Self> {
        let last = self.before_last?;
        Some(Segment { last, records: self.records.saturating_sub(1), before_last: None, ..self })
    }
}

/// A head that was given, and where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// What was given.
    pub head: Head,
    /// The record with its hash.
    pub found: Option<Seen>,
    /// The last record with its sequence and another hash.
    instead: Option<Seen>,
}

/// A list that stays small.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Few<T> {
    first: Vec<T>,
    more: u64,
}

impl<T> Few<T> {
    fn push(&mut self, item: T) {
        if self.first.len() < KEPT {
            self.first.push(item);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few { first: Vec::new(), more: 0 }
    }
}

/// What was found out about a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Records that were read.
    pub records: u64,
    /// Of them, those without `prev`.
    pub unchained: u64,
    /// Starts of the agent.
    pub starts: u64,
    /// The first record.
    pub first: Option<Seen>,
    /// The last record, which is the head of the chain if that is whole.
    pub last: Option<Seen>,
    /// What is wrong, in the log's order as far as that is known; the first hundred.
    pub findings: Vec<Finding>,
    /// So many more.
    pub more_findings: u64,
    /// What else is to be known; the first hundred.
    pub notices: Vec<Notice>,
    /// So many more.
    pub more_notices: u64,
    /// Records that follow each other; the first hundred runs of them.
    pub segments: Vec<Segment>,
    /// So many more.
    pub more_segments: u64,
    /// Records that the agent says it could not write.
    pub lost: u64,
    /// Intents that a later run of the agent closed, since nobody knows their outcome.
    pub closed: u64,
    /// Changes that began in a run that ended, without an outcome and not closed; in the log's order, at most 4096.
    pub unclosed: Vec<OpenIntent>,
    /// Changes that began in the run that the log ends in, without an outcome so far; at most 4096.
    pub running: Vec<OpenIntent>,
    /// Intents that were not followed, because too many were open at once.
    pub unfollowed: u64,
    /// The heads that were given.
    pub witnesses: Vec<Witness>,
}

impl Verdict {
    /// There are records, all of them are chained, and nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty() && self.records > 0 && self.unchained < self.records
    }

    /// There are records, and none is chained: an agent that did not chain wrote them.
    pub fn is_unchained(&self) -> bool {
        self.records > 0 && self.unchained == self.records
    }
}

/// The last record, as long as it is the one that the next should follow.
#[derive(Clone, Copy)]
struct Previous {
    seen: Seen,
    is_chained: bool,
}

/// A break between two neighbours, of which the next record will say who is right.
struct Disputed {
    before: Seen,
    at: Seen,
}

/// Why the next break needs no finding of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Explained {
    /// A line that is no record stands between, with this hash if it has an end.
    Fault(Option<Hash>),
    /// The last record is under suspicion already.
    Suspect,
}

/// Takes the records of a log one after the other, the oldest first.
pub struct Verifier {
    verdict: Verdict,
    findings: Few<Finding>,
    notices: Few<Notice>,
    segments: Few<Segment>,
    current: Option<Segment>,
    previous: Option<Previous>,
    /// A record that stands where it should not, right before the next one.
    aside: Option<Seen>,
    /// Lines since the last record that are none.
    faults: Few<(Place, NotARecord)>,
    disputed: Option<Disputed>,
    explained: Option<Explained>,
    intents: Intents,
    latest: Option<SystemTime>,
}

impl Verifier {
    /// Looks for these heads on the way.
    pub fn new(heads: impl IntoIterator<Item = Head>) -> Self {
        let witnesses = heads.into_iter().map(|head| Witness { head, found: None, instead: None }).collect();
        Verifier {
            verdict: Verdict {
                records: 0,
                unchained: 0,
                starts: 0,
                first: None,
                last: None,
                findings: Vec::new(),
                more_findings: 0,
                notices: Vec::new(),
                more_notices: 0,
                segments: Vec::new(),
                more_segments: 0,
                lost: 0,
                closed: 0,
                unclosed: Vec::new(),
                running: Vec::new(),
                unfollowed: 0,
                witnesses,
            },
            findings: Few::default(),
            notices: Few::default(),
            segments: Few::default(),
            current: None,
            previous: None,
            aside: None,
            faults: Few::default(),
            disputed: None,
            explained: None,
            intents: Intents::default(),
            latest: None,
        }
    }

    /// Takes one line, and gives the record in it for other uses.
    pub fn line<'a>(&mut self, place: Place, line: &Line<'a>) -> Option<Record<'a>> {
        let (parsed, hash) = match line {
            Line::Whole(bytes) => (Record::parse(bytes), Some(Hash::of(bytes))),
            Line::TooLong(bytes) => (Err(NotARecord::TooLong(*bytes)), None),
            Line::Unended(_) => (Err(NotARecord::Unended), None),
        };
        match (parsed, hash) {
            (Ok(record), Some(hash)) => {
                self.record(place, hash, &record);
                Some(record)
            }
            (Ok(_), None) => None,
            (Err(why), hash) => {
                self.settle(None);
                self.faults.push((place, why));
                self.explained = Some(Explained::Fault(hash));
                None
            }
        }
    }

    /// The whole log was given.
    pub fn finish(mut self) -> Verdict {
        self.settle(None);
        // Cut where it ends, as by a machine that lost its power. What a witnessed head vouches for is not there, then.
        self.pass_over_faults();
        self.end_segment();
        for Witness { head, found, instead } in self.verdict.witnesses.clone() {
            if found.is_none() {
                self.find(
                    instead.map(|seen| seen.place),
                    instead.map(|seen| seen.sequence),
                    Break::HeadMissing { head, instead },
                );
            }
        }
        let mut verdict = self.verdict;
        (verdict.findings, verdict.more_findings) = (self.findings.first, self.findings.more);
        (verdict.notices, verdict.more_notices) = (self.notices.first, self.notices.more);
        (verdict.segments, verdict.more_segments) = (self.segments.first, self.segments.more);
        verdict.unfollowed = self.intents.forgotten;
        (verdict.unclosed, verdict.running) = self.intents.finish();
        verdict
    }

    fn record(&mut self, place: Place, hash: Hash, record: &Record<'_>) {
        let at = record.at().unwrap_or(SystemTime::UNIX_EPOCH);
        let seen = Seen { place, sequence: record.sequence, hash, at };
        self.settle(Some((&seen, record)));
        self.join(seen, record);
        self.verdict.records = self.verdict.records.saturating_add(1);
        self.verdict.unchained = self.verdict.unchained.saturating_add(u64::from(record.prev.is_none()));
        self.verdict.first.get_or_insert(seen);
        self.verdict.last = Some(seen);
        self.witness(seen);
        self.note(seen, record);
    }

    /// Finds out whether the record follows the one before.
    fn join(&mut self, seen: Seen, record: &Record<'_>) {
        let explained = self.explained.take();
        let Some(mut previous) = self.previous else {
            match record.prev {
                Some(Hash::NONE) => self.pass_over_faults(),
                _ => self.find_faults(),
            }
            self.begin(seen, record);
            return;
        };
        let Some(prev) = record.prev else {
            self.find_faults();
            self.join_unchained(previous, seen, record);
            return;
        };
        if !previous.is_chained {
            self.find_faults();
            // The agent learned to chain, or it links to a record without knowing whether that is chained.
            if prev == Hash::NONE || prev == previous.seen.hash {
                self.notices.push(Notice::ChainedFrom(seen));
                self.restart(seen);
            } else {
                self.broken(previous.seen, seen, record);
            }
            return;
        }
        if let Some(aside) = self.aside.take()
            && prev != previous.seen.hash
        {
            self.restart(aside);
            previous.seen = aside;
        }
        if prev == previous.seen.hash {
            self.pass_over_faults();
            self.advance(seen);
            let expected = match &*record.kind {
                "start" => 1,
                _ => previous.seen.sequence.saturating_add(1),
            };
            if record.sequence != expected {
                self.find(Some(seen.place), Some(seen.sequence), Break::Miscounted { expected });
                self.explained = Some(Explained::Suspect);
            } else if record.link.is_some_and(|link| link.hash != prev) {
                self.find(Some(seen.place), Some(seen.sequence), Break::LinkDiffers);
                self.explained = Some(Explained::Suspect);
            }
            return;
        }
        match explained {
            // The agent itself wrote what is no record for us.
            Some(Explained::Fault(Some(hash))) if hash == prev => {
                self.pass_over_faults();
                self.advance(seen);
            }
            Some(Explained::Fault(_)) => {
                self.find_faults();
                self.restart(seen);
            }
            Some(Explained::Suspect) => {
                self.current = self.current.and_then(Segment::without_last);
                self.restart(seen);
            }
            None => self.broken(previous.seen, seen, record),
        }
    }

    /// The first record of the log.
    fn begin(&mut self, seen: Seen, record: &Record<'_>) {
        match record.prev {
            Some(_) if &*record.kind == "replaced" => {
                self.find(Some(seen.place), Some(seen.sequence), Break::Replaced);
            }
            Some(prev) if prev != Hash::NONE => self.notices.push(Notice::BeginsInTheMiddle(seen)),
            None if record.sequence != 1 => self.notices.push(Notice::BeginsInTheMiddle(seen)),
            _ => {}
        }
        self.previous = Some(Previous { seen, is_chained: record.prev.is_some() });
        if record.prev.is_some() {
            self.current = Some(Segment::new(seen));
        }
    }

    fn join_unchained(&mut self, previous: Previous, seen: Seen, record: &Record<'_>) {
        if previous.is_chained {
            self.find(Some(seen.place), Some(seen.sequence), Break::NotChained);
            self.end_segment();
        } else {
            let next = previous.seen.sequence.saturating_add(1);
            let (place, sequence) = (Some(seen.place), Some(seen.sequence));
            if record.sequence > next {
                self.find(
                    place,
                    sequence,
                    Break::Missing { from: next, to: record.sequence.saturating_sub(1) },
                );
            } else if record.sequence < next && record.sequence != 1 {
                self.find(place, sequence, Break::OutOfOrder { after: previous.seen.sequence });
            }
        }
        self.previous = Some(Previous { seen, is_chained: false });
    }

    /// The record's `prev` is not the hash of what stands before it, and nothing has explained that yet.
    fn broken(&mut self, before: Seen, seen: Seen, record: &Record<'_>) {
        let (place, sequence) = (Some(seen.place), Some(seen.sequence));
        let next = before.sequence.saturating_add(1);
        let what = match (&*record.kind, record.link) {
            ("start", None) => Break::StartsAnew,
            ("start", Some(Link { sequence: known, .. })) if known > before.sequence => {
                Break::RunCut { last: before.sequence, known }
            }
            ("start", Some(Link { sequence: known, .. })) if known < before.sequence => {
                Break::Added { known }
            }
            ("replaced", _) => Break::Replaced,
            (kind, _) if kind == "start" || seen.sequence == next => {
                self.disputed = Some(Disputed { before, at: seen });
                self.restart(seen);
                return;
            }
            _ if seen.sequence > next => Break::Missing { from: next, to: seen.sequence.saturating_sub(1) },
            _ => {
                let is_same = seen.hash == before.hash;
                let what =
                    if is_same { Break::Repeated } else { Break::OutOfOrder { after: before.sequence } };
                self.find(place, sequence, what);
                // What follows will say whether it follows this one or the one before.
                self.aside = Some(seen);
                return;
            }
        };
        self.find(place, sequence, what);
        self.restart(seen);
    }

    /// Decides which of two neighbours was changed, now that the next record is known, or that none is.
    fn settle(&mut self, next: Option<(&Seen, &Record<'_>)>) {
        let Some(Disputed { before, at }) = self.disputed.take() else { return };
        let is_witnessed =
            |seen: Seen| self.verdict.witnesses.iter().any(|witness| witness.head.hash == seen.hash);
        let is_vouched_for = next.is_some_and(|(_, record)| record.prev == Some(at.hash)) || is_witnessed(at);
        match next {
            // The second is what the agent wrote, and it has another hash of the first.
            _ if is_vouched_for => {
                self.find(Some(before.place), Some(before.sequence), Break::Changed { by: at });
                self.shorten_ended_segment();
            }
            Some((seen, record))
                if record.prev.is_some() && seen.sequence == at.sequence.saturating_add(1) =>
            {
                self.find(Some(at.place), Some(at.sequence), Break::Changed { by: *seen });
                self.explained = Some(Explained::Suspect);
            }
            _ => {
                self.find(Some(at.place), Some(at.sequence), Break::OneOfTwoChanged { before });
                self.shorten_ended_segment();
                self.current = None;
            }
        }
    }

    /// The chain goes on around them: nothing that was in it is missing.
    fn pass_over_faults(&mut self) {
        let Few { first, more } = std::mem::take(&mut self.faults);
        first.into_iter().for_each(|(place, why)| self.notices.push(Notice::NotARecord(place, why)));
        self.notices.more = self.notices.more.saturating_add(more);
    }

    /// The chain does not go on around them: they were records.
    fn find_faults(&mut self) {
        let Few { first, more } = std::mem::take(&mut self.faults);
        first.into_iter().for_each(|(place, why)| self.find(Some(place), None, Break::NotARecord(why)));
        self.findings.more = self.findings.more.saturating_add(more);
    }

    fn find(&mut self, place: Option<Place>, sequence: Option<u64>, what: Break) {
        self.findings.push(Finding { place, sequence, what });
    }

    fn advance(&mut self, seen: Seen) {
        match &mut self.current {
            Some(segment) => segment.push(seen),
            none => *none = Some(Segment::new(seen)),
        }
        self.previous = Some(Previous { seen, is_chained: true });
    }

    fn restart(&mut self, seen: Seen) {
        self.end_segment();
        self.current = Some(Segment::new(seen));
        self.previous = Some(Previous { seen, is_chained: true });
    }

    fn end_segment(&mut self) {
        if let Some(segment) = self.current.take() {
            self.segments.push(segment);
        }
    }

    /// The last record of the segment that ended last is not to be trusted.
    fn shorten_ended_segment(&mut self) {
        if self.segments.more == 0
            && let Some(segment) = self.segments.first.pop()
        {
            self.segments.first.extend(segment.without_last());
        }
    }

    fn witness(&mut self, seen: Seen) {
        for witness in &mut self.verdict.witnesses {
            if witness.head.hash == seen.hash && witness.found.is_none() {
                witness.found = Some(seen);
                if witness.head.sequence != seen.sequence {
                    self.notices.push(Notice::HeadMiscounted(witness.head, seen));
                }
                if let Some(segment) = self.current.as_mut().filter(|segment| segment.last == seen) {
                    segment.witnessed = Some(seen);
                }
            } else if witness.head.sequence == seen.sequence && witness.found.is_none() {
                witness.instead = Some(seen);
            }
        }
    }

    /// What the record says about the log, and what an auditor should know of it.
    fn note(&mut self, seen: Seen, record: &Record<'_>) {
        if record.version != 1 {
            self.notices.push(Notice::Version(seen, record.version));
        }
        if self.latest.is_some_and(|latest| seen.at < latest) {
            self.notices.push(Notice::Earlier(seen));
        }
        self.latest = Some(seen.at);
        let is_chained = record.prev.is_some();
        match &*record.kind {
            "start" => {
                self.verdict.starts = self.verdict.starts.saturating_add(1);
                self.intents.next_run(record.prev.unwrap_or(Hash::NONE));
            }
            // Agents that did not chain did not say either which intent an outcome belongs to.
            "intent" if is_chained => self.intents.begin(OpenIntent {
                place: seen.place,
                sequence: seen.sequence,
                command: record.command.as_deref().unwrap_or_default().chars().take(64).collect(),
            }),
            "request" => record.intent.into_iter().for_each(|intent| self.intents.end(intent)),
            "closed" => {
                self.verdict.closed = self.verdict.closed.saturating_add(1);
                if let (Some(of), Some(intent)) = (record.of, record.intent) {
                    self.intents.close(of, intent);
                }
            }
            "loss" => {
                let records = record.records.unwrap_or_default();
                self.verdict.lost = self.verdict.lost.saturating_add(records);
                self.notices.push(Notice::Lost(seen, records));
            }
            "replaced" if self.current.is_some_and(|segment| segment.records > 1) => {
                self.notices.push(Notice::Replaced(seen));
            }
            _ => {}
        }
    }
}

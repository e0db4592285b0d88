//! Counts what a log's records say, in memory that does not grow with the log: of everything that there can be many of, the first,
//! the last or the largest are kept, and the others counted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash as Hashed;
use std::time::{Duration, SystemTime};

use records::{Hash, Record};
use serde_json::Value;

use super::super::request::{self, Decision};
use crate::terminal::shortened;

/// Different rules, commands, denials that are told apart.
const KINDS: usize = 1000;
/// Changes, and events in the agent's life, that are kept: the latest.
const LATEST: usize = 500;
/// Slow requests that are kept.
const SLOWEST: usize = 20;
/// Changes whose outcome is awaited.
const OPEN: usize = 4096;

/// How many of which decision: allow, redact, deny, none.
pub(super) type Decisions = [u64; 4];

/// All of it.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) decisions: Decisions,
    pub(super) failed: u64,
    pub(super) abandoned: u64,
    pub(super) bytes: u64,
    /// Requests that a frontend answered by itself.
    pub(super) in_front: u64,
    pub(super) timeline: Timeline,
    /// By channel, dialect and command.
    pub(super) asked: Table<[String; 3], Asked>,
    pub(super) commands: Table<String, Timed>,
    pub(super) rules: Table<String, Ruled>,
    /// By channel, command, subject and rule.
    pub(super) denials: Table<[String; 4], Asked>,
    pub(super) changes: Latest<Change>,
    pub(super) slowest: Vec<Slow>,
    /// What went wrong with the agent itself, or was given up.
    pub(super) trouble: Latest<Event>,
    /// Starts, stops and policies.
    pub(super) life: Latest<Event>,
    /// Changes of this part of the log that have no outcome yet, and of parts that ended, by the hash that ends the part.
    open: BTreeMap<u64, Change>,
    left: HashMap<(Hash, u64), Change>,
}

/// Something that was asked more than once.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) decisions: Decisions,
    pub(super) failed: u64,
    pub(super) first: SystemTime,
    pub(super) last: SystemTime,
}

impl Asked {
    pub(super) fn count(&self) -> u64 {
        self.decisions.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// A command with how long it took.
#[derive(Clone, Default)]
pub(super) struct Timed {
    pub(super) decisions: Decisions,
    pub(super) failed: u64,
    pub(super) durations: Durations,
}

/// What a rule decided.
#[derive(Clone, Default)]
pub(super) struct Ruled {
    pub(super) decisions: Decisions,
    pub(super) last: Option<SystemTime>,
}

/// A request that changes something.
pub(super) struct Change {
    pub(super) at: SystemTime,
    pub(super) channel: String,
    pub(super) command: String,
    pub(super) subject: String,
    pub(super) rule: String,
    pub(super) outcome: String,
    pub(super) micros: Option<u64>,
}

/// A request that took long.
pub(super) struct Slow {
    pub(super) micros: u64,
    pub(super) at: SystemTime,
    pub(super) channel: String,
    pub(super) command: String,
    pub(super) subject: String,
    pub(super) outcome: String,
}

/// Something that happened to the agent.
pub(super) struct Event {
    pub(super) at: SystemTime,
    pub(super) what: String,
}

impl Tally {
    /// Counts one record.
    pub(super) fn add(&mut self, record: &Record<'_>, at: SystemTime) {
        let event = || Event { at, what: request::event(record) };
        match &*record.kind {
            "request" => self.request(record, at),
            "intent" if self.open.len() + self.left.len() < OPEN => {
                self.open.insert(record.sequence, change(record, at));
            }
            "closed" => {
                let left = record.of.zip(record.intent).and_then(|key| self.left.remove(&key));
                if let Some(mut change) = left {
                    change.outcome =
                        format!("not known: {}", record.why.as_deref().unwrap_or("the agent ended"));
                    self.changes.push(change);
                }
                self.trouble.push(event());
            }
            "front" => self.front(record),
            "start" => {
                let ended = std::mem::take(&mut self.open);
                let part = record.prev.unwrap_or(Hash::NONE);
                self.left.extend(ended.into_iter().map(|(sequence, change)| ((part, sequence), change)));
                self.life.push(event());
            }
            "stop" | "reload" => self.life.push(event()),
            "worker" if record.status.is_some() => self.trouble.push(event()),
            "loss" | "replaced" | "thaw" => self.trouble.push(event()),
            _ => {}
        }
    }

    /// No record comes any more.
    pub(super) fn finish(&mut self) {
        let open = std::mem::take(&mut self.open).into_values();
        let mut without: Vec<Change> = open.chain(std::mem::take(&mut self.left).into_values()).collect();
        without.sort_by_key(|change| change.at);
        without.into_iter().for_each(|change| self.changes.push(change));
        self.changes.latest.make_contiguous().sort_by_key(|change| change.at);
    }

    fn request(&mut self, record: &Record<'_>, at: SystemTime) {
        let decision = Decision::of(record);
        let text = |text: Option<&str>| shortened(text.unwrap_or("-"), 300);
        let (channel, command) = (text(record.channel.as_deref()), text(record.command.as_deref()));
        let subject = request::subject(record);
        let failed = u64::from(record.outcome.as_deref() == Some("failed"));
        self.requests = self.requests.saturating_add(1);
        count(&mut self.decisions, decision);
        self.failed = self.failed.saturating_add(failed);
        self.bytes = self.bytes.saturating_add(record.bytes.unwrap_or(0));
        self.timeline.add(at, decision);

        let asked = |asked: &mut Asked| {
            count(&mut asked.decisions, decision);
            asked.failed = asked.failed.saturating_add(failed);
            asked.first = asked.first.min(at);
            asked.last = asked.last.max(at);
        };
        let none = || Asked { decisions: [0; 4], failed: 0, first: at, last: at };
        self.asked.with([channel.clone(), text(record.dialect.as_deref()), command.clone()], none, asked);
        self.commands.with(command.clone(), Timed::default, |timed| {
            count(&mut timed.decisions, decision);
            timed.failed = timed.failed.saturating_add(failed);
            record.duration_us.into_iter().for_each(|micros| timed.durations.add(micros));
        });
        let rule = record.rule.as_deref().map(|rule| shortened(rule, 300));
        if decision != Decision::None {
            self.rules.with(
                rule.clone().unwrap_or_else(|| "no rule matches".to_owned()),
                Ruled::default,
                |ruled| {
                    count(&mut ruled.decisions, decision);
                    ruled.last = ruled.last.max(Some(at));
                },
            );
        }
        if decision == Decision::Deny {
            let key = [
                channel.clone(),
                command.clone(),
                subject.clone(),
                rule.unwrap_or_else(|| "no rule matches".to_owned()),
            ];
            self.denials.with(key, none, asked);
        }
        if record.abandoned {
            self.abandoned = self.abandoned.saturating_add(1);
            let asked = format!("{command} {subject}");
            let what = format!("abandoned on {channel}: {}, {}", asked.trim_end(), request::outcome(record));
            self.trouble.push(Event { at, what });
        }
        if let Some(mut change) = self.began(record, &channel, &command, &subject) {
            change.outcome = request::outcome(record);
            change.micros = record.duration_us;
            self.changes.push(change);
        }
        if let Some(micros) = record.duration_us {
            self.slow(Slow { micros, at, channel, command, subject, outcome: request::outcome(record) });
        }
    }

    /// The intent that this request ends.
    fn began(&mut self, record: &Record<'_>, channel: &str, command: &str, subject: &str) -> Option<Change> {
        if let Some(intent) = record.intent {
            return Some(
                self.open
                    .remove(&intent)
                    .unwrap_or_else(|| change(record, record.at().unwrap_or(SystemTime::UNIX_EPOCH))),
            );
        }
        // Agents that did not chain did not say which; the oldest of the same kind is most likely.
        let is_it =
            |open: &Change| open.channel == channel && open.command == command && open.subject == subject;
        let sequence = self
            .open
            .iter()
            .find(|(_, open)| record.prev.is_none() && is_it(open))
            .map(|(sequence, _)| *sequence)?;
        self.open.remove(&sequence)
    }

    fn slow(&mut self, slow: Slow) {
        let place = self.slowest.partition_point(|other| other.micros >= slow.micros);
        if place < SLOWEST {
            self.slowest.insert(place, slow);
            self.slowest.truncate(SLOWEST);
        }
    }

    fn front(&mut self, record: &Record<'_>) {
        let Some(Ok(Value::Object(counts))) = record.counts.map(|counts| serde_json::from_str(counts.get()))
        else {
            return;
        };
        let sum = counts.values().filter_map(Value::as_u64).fold(0, u64::saturating_add);
        self.in_front = self.in_front.saturating_add(sum);
    }
}

fn change(record: &Record<'_>, at: SystemTime) -> Change {
    let text = |text: Option<&str>| shortened(text.unwrap_or("-"), 300);
    Change {
        at,
        channel: text(record.channel.as_deref()),
        command: text(record.command.as_deref()),
        subject: request::subject(record),
        rule: text(record.rule.as_deref()),
        outcome: "no outcome recorded".to_owned(),
        micros: None,
    }
}

fn count(decisions: &mut Decisions, decision: Decision) {
    if let Some(count) = decisions.get_mut(decision.index()) {
        *count = count.saturating_add(1);
    }
}

/// Counts by a key; what comes after the first thousand keys is counted together.
pub(super) struct Table<K, V> {
    rows: HashMap<K, V>,
    /// Records whose key did not fit.
    pub(super) others: u64,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { rows: HashMap::new(), others: 0 }
    }
}

impl<K: Hashed + Eq + Ord, V> Table<K, V> {
    fn with(&mut self, key: K, none: impl FnOnce() -> V, change: impl FnOnce(&mut V)) {
        if self.rows.len() < KINDS || self.rows.contains_key(&key) {
            change(self.rows.entry(key).or_insert_with(none));
        } else {
            self.others = self.others.saturating_add(1);
        }
    }

    /// The rows, those with the highest rank first, equal ones by their keys.
    pub(super) fn ranked<R: Ord>(&self, rank: impl Fn(&V) -> R) -> Vec<(&K, &V)> {
        let mut rows: Vec<(&K, &V)> = self.rows.iter().collect();
        rows.sort_by(|(key, row), (other, than)| rank(than).cmp(&rank(row)).then_with(|| key.cmp(other)));
        rows
    }
}

/// The latest of many.
pub(super) struct Latest<T> {
    pub(super) latest: VecDeque<T>,
    /// So many came before.
    pub(super) earlier: u64,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Latest { latest: VecDeque::new(), earlier: 0 }
    }
}

impl<T> Latest<T> {
    fn push(&mut self, item: T) {
        if self.latest.len() == LATEST {
            self.latest.pop_front();
            self.earlier = self.earlier.saturating_add(1);
        }
        self.latest.push_back(item);
    }

    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.latest.len()).unwrap_or(u64::MAX).saturating_add(self.earlier)
    }
}

/// How long things took: counts in steps of an eighth of each power of two, so that a quantile is at most an eighth too high.
#[derive(Clone, Default)]
pub(super) struct Durations {
    steps: BTreeMap<u16, u64>,
    count: u64,
    pub(super) sum: u64,
    pub(super) longest: u64,
}

impl Durations {
    fn add(&mut self, micros: u64) {
        let steps = self.steps.entry(step(micros)).or_default();
        *steps = steps.saturating_add(1);
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add(micros);
        self.longest = self.longest.max(micros);
    }

    /// So many hundredths took at most so many microseconds; none if nothing was measured.
    pub(super) fn quantile(&self, hundredths: u64) -> Option<u64> {
        let rank = self.count.saturating_mul(hundredths).div_ceil(100);
        let mut seen = 0_u64;
        let (step, _) = self.steps.iter().find(|(_, count)| {
            seen = seen.saturating_add(**count);
            seen >= rank
        })?;
        Some(end_of(*step).min(self.longest))
    }
}

/// The step that a number belongs to. The first sixteen have one each.
fn step(micros: u64) -> u16 {
    let Some(power) = micros.checked_ilog2().filter(|power| *power >= 4) else {
        return u16::try_from(micros).unwrap_or(0);
    };
    let eighth = (micros >> (power - 3)) & 7;
    u16::try_from(16 + u64::from(power - 4) * 8 + eighth).unwrap_or(u16::MAX)
}

/// The largest number of a step.
fn end_of(step: u16) -> u64 {
    let Some(beyond) = step.checked_sub(16).map(u64::from) else { return u64::from(step) };
    let (power, eighth) = (beyond / 8 + 4, beyond % 8);
    let begin = (8 + eighth).checked_shl(u32::try_from(power - 3).unwrap_or(u32::MAX)).unwrap_or(u64::MAX);
    let width = 1_u64.checked_shl(u32::try_from(power - 3).unwrap_or(u32::MAX)).unwrap_or(1);
    begin.saturating_add(width - 1)
}

/// Requests by time, in as few spans of equal length as hold them.
#[derive(Default)]
pub(super) struct Timeline {
    /// Seconds of a span; 0 before the first request.
    width: u64,
    spans: BTreeMap<u64, Decisions>,
}

impl Timeline {
    /// Spans at most.
    pub(super) const MOST: u64 = 96;
    /// Lengths of a span that people can read: seconds, minutes, hours, days, then powers of two of days.
    const WIDTHS: [u64; 17] = [
        1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600,
        2_592_000,
    ];

    fn add(&mut self, at: SystemTime, decision: Decision) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.width = self.width.max(1);
        count(self.spans.entry(seconds / self.width).or_default(), decision);
        self.narrow(Self::MOST);
    }

    /// Joins spans until there are at most so many.
    fn narrow(&mut self, most: u64) {
        while let (Some((first, _)), Some((last, _))) =
            (self.spans.first_key_value(), self.spans.last_key_value())
            && last - first >= most
        {
            let wider = Self::WIDTHS
                .into_iter()
                .find(|width| *width > self.width && width.is_multiple_of(self.width));
            let wider = wider.unwrap_or(self.width.saturating_mul(2));
            let mut joined: BTreeMap<u64, Decisions> = BTreeMap::new();
            for (span, decisions) in std::mem::take(&mut self.spans) {
                let into = joined.entry(span.saturating_mul(self.width) / wider).or_default();
                into.iter_mut().zip(decisions).for_each(|(sum, more)| *sum = sum.saturating_add(more));
            }
            (self.width, self.spans) = (wider, joined);
        }
    }

    /// Every span from the first to the last, empty ones among them: when it begins, and its decisions.
    pub(super) fn spans(&self, most: u64) -> (Duration, Vec<(SystemTime, Decisions)>) {
        let mut few = Timeline { width: self.width, spans: self.spans.clone() };
        few.narrow(most);
        let (Some((first, _)), Some((last, _))) = (few.spans.first_key_value(), few.spans.last_key_value())
        else {
            return (Duration::ZERO, Vec::new());
        };
        let begin = |span: u64| {
            SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(span.saturating_mul(few.width)))
                .unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let spans =
            (*first..=*last).map(|span| (begin(span), few.spans.get(&span).copied().unwrap_or_default()));
        (Duration::from_secs(few.width), spans.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_an_eighth_too_high() {
        for micros in (0..200).chain([255, 256, 1_000, 123_456, u64::from(u32::MAX), u64::MAX]) {
            let end = end_of(step(micros));
            assert!(end >= micros && end - micros <= micros / 8, "{micros}: {end}");
        }
        let mut durations = Durations::default();
        (1..=100).for_each(|micros| durations.add(micros * 10));
        let (half, most) = (durations.quantile(50).unwrap(), durations.quantile(95).unwrap());
        assert!((500..=562).contains(&half) && (950..=1000).contains(&most), "{half} {most}");
        assert_eq!(Durations::default().quantile(50), None);
    }

    #[test]
    fn a_timeline_keeps_few_spans_whatever_comes() {
        let mut timeline = Timeline::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for minute in 0..600 {
            timeline.add(at(1_795_687_200 + minute * 60), Decision::Allow);
        }
        let (width, spans) = timeline.spans(Timeline::MOST);
        assert_eq!((width.as_secs(), spans.len()), (600, 60));
        assert!(spans.iter().all(|(_, decisions)| *decisions == [10, 0, 0, 0]));
        assert_eq!(timeline.spans(24).1.len(), 20);
        // From 1970 to the end of the year 9999.
        timeline.add(at(0), Decision::Deny);
        timeline.add(at(253_402_300_799), Decision::Deny);
        let (_, spans) = timeline.spans(Timeline::MOST);
        assert!(spans.len() <= 96, "{}", spans.len());
        assert_eq!(spans.iter().map(|(_, decisions)| decisions[0] + decisions[2]).sum::<u64>(), 602);
    }

    #[test]
    fn what_does_not_fit_into_a_table_is_counted() {
        let mut table: Table<u32, u64> = Table::default();
        for key in 0..3000 {
            table.with(key, || 0, |count| *count += 1);
            table.with(7, || 0, |count| *count += 1);
        }
        assert_eq!(table.others, 2000);
        let ranked = table.ranked(|count| *count);
        assert_eq!((ranked.len(), ranked[0], ranked[1]), (1000, (&7, &3001), (&0, &1)));
    }
}

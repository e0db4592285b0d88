//! `portreeve policy learn`: the smallest policy that allows what a log shows to have been allowed.
//!
//! What came from a host becomes text of a policy: everything is quoted, and what cannot be written as a rule is left out and said to be.
//! The result is compiled and held against what was seen before it is handed out.

mod draft;
mod seen;

use std::collections::BTreeMap;
use std::fmt;

use authorize::Outcome;
use compile::Source;
use serde::Serialize;

use crate::case::{Case, Look, decide};
use crate::trail::{Entry, Trail, Unusable};
use crate::{Loaded, words};
use draft::Drafts;
use seen::{Item, Seen};

/// Different requests that are held at most.
const DIFFERENT: usize = 100_000;

/// Examples of what was left out.
const KEPT: usize = 20;

/// What may be made wider than it was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Generalise {
    /// Nothing.
    #[default]
    None,
    /// Several files of a folder become the folder, several folders the one above.
    Paths,
    /// Arguments that differ between calls of one program become patterns.
    Args,
}

/// What is to be learned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What may be made wider.
    pub generalise: Generalise,
    /// Whether what was refused is to be allowed, too.
    pub denied: bool,
}

/// A policy, and how it came about.
#[derive(Debug, Serialize)]
pub struct Learned {
    /// Its text.
    pub policy: String,
    /// Rules in it.
    pub rules: usize,
    /// Requests that it allows.
    pub requests: u64,
    /// Requests that are not allowed by it although they were, with the reason, and how many they are.
    pub left_out: Vec<(String, u64)>,
    /// Lines that could not be used: the first ones, and why.
    pub unusable: Vec<(u64, String)>,
    /// How many lines could not be used.
    pub unusable_count: u64,
}

/// One request of the log, and how often it came.
struct Observed {
    case: Case,
    /// The last decision counts.
    outcome: Outcome,
    seen: Seen,
}

/// Collects what a log shows.
struct Collected {
    observed: BTreeMap<(String, Item), Observed>,
    inexpressible: BTreeMap<String, u64>,
    /// Refused, and not to be written as a rule; a rule may take it in all the same.
    refused: Vec<Case>,
    unusable: Vec<(u64, String)>,
    unusable_count: u64,
}

/// Learns from lines, which come in the order of their logs.
///
/// # Errors
/// That of `each_line`.
pub fn learn<E>(
    wanted: Wanted,
    look: &Look<'_>,
    each_line: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<(), E>,
) -> Result<Learned, E> {
    let mut trail = Trail::new("qga", look);
    let mut collected = Collected {
        observed: BTreeMap::new(),
        inexpressible: BTreeMap::new(),
        refused: Vec::new(),
        unusable: Vec::new(),
        unusable_count: 0,
    };
    each_line(&mut |line| trail.line(line).into_iter().for_each(|one| collected.one(one)))?;
    trail.finish().into_iter().for_each(|one| collected.one(one));
    for ((channel, command), count) in std::mem::take(&mut trail.counts) {
        collected.front(&channel, &command, count, look);
    }
    Ok(collected.policy(wanted))
}

impl Collected {
    fn one(&mut self, one: Result<Entry, Unusable>) {
        match one {
            Ok(entry) if entry.case.frozen => {}
            Ok(entry) => self.entry(entry),
            Err(Unusable { line, why, .. }) => {
                self.unusable_count = self.unusable_count.saturating_add(1);
                if self.unusable.len() < KEPT {
                    self.unusable.push((line, why));
                }
            }
        }
    }

    fn entry(&mut self, entry: Entry) {
        let Entry { case, expected, time, .. } = entry;
        match Item::of(&case) {
            Ok(item) => self.observe(item, case, expected.outcome, &Seen::once(time.as_deref())),
            Err(why) if expected.outcome != Outcome::Deny => {
                let what = format!("{}: {why}", case.request.command().name());
                self.leave_out(what, 1);
            }
            Err(_) if self.refused.len() < DIFFERENT => self.refused.push(case),
            Err(_) => {}
        }
    }

    fn leave_out(&mut self, what: String, count: u64) {
        if self.inexpressible.len() < DIFFERENT || self.inexpressible.contains_key(&what) {
            let known = self.inexpressible.entry(what).or_default();
            *known = known.saturating_add(count);
        }
    }

    fn observe(&mut self, item: Item, case: Case, outcome: Outcome, seen: &Seen) {
        let is_full = self.observed.len() >= DIFFERENT;
        match self.observed.get_mut(&(case.channel.clone(), item.clone())) {
            Some(known) => {
                known.outcome = outcome;
                known.seen.add(seen);
            }
            None if is_full => {
                self.leave_out(format!("more than {DIFFERENT} different requests"), seen.count);
            }
            None => {
                self.observed
                    .insert((case.channel.clone(), item), Observed { case, outcome, seen: seen.clone() });
            }
        }
    }

    /// What the frontend answered by itself was allowed, and has no arguments that matter.
    fn front(&mut self, channel: &str, command: &str, count: u64, look: &Look<'_>) {
        let text =
            if command.starts_with("guest-sync") { format!("{command} id=1") } else { command.to_owned() };
        let Ok(request) = crate::read(&text) else { return };
        let case = Case::new(channel, request, look);
        if let Ok(item) = Item::of(&case) {
            self.observe(item, case, Outcome::Allow, &Seen { count, ..Seen::default() });
        }
    }

    fn policy(self, wanted: Wanted) -> Learned {
        let is_wanted = |outcome: Outcome| wanted.denied || outcome != Outcome::Deny;
        let refused: Vec<(&String, &Item)> = self
            .observed
            .iter()
            .filter(|(_, observed)| !is_wanted(observed.outcome))
            .map(|((channel, item), _)| (channel, item))
            .collect();
        let mut drafts = Drafts::default();
        for ((channel, item), observed) in &self.observed {
            if is_wanted(observed.outcome) {
                drafts.add(channel, item, observed.outcome == Outcome::Redact, &observed.seen);
            }
        }
        drafts.generalise(wanted.generalise, &refused);
        let mut left_out = self.inexpressible;
        let rules = drafts.write();
        let text = |left_out: &BTreeMap<String, u64>| header(wanted, left_out) + &rules.text;
        let mut requests = 0_u64;
        // What is said of the policy is tried out with it.
        let source = Source::File { name: "learned.toml".to_owned(), text: text(&BTreeMap::new()) };
        match Loaded::compile(vec![source]) {
            Ok(loaded) => {
                for observed in self.observed.values() {
                    let wanted = is_wanted(observed.outcome);
                    let is_let = decide(&loaded.policy, &observed.case).outcome != Outcome::Deny;
                    match (wanted, is_let) {
                        (true, true) => requests = requests.saturating_add(observed.seen.count),
                        (true, false) => {
                            let what = format!(
                                "{}: it cannot be told from others by a rule",
                                words::request(&observed.case.request)
                            );
                            left_out.insert(what, observed.seen.count);
                        }
                        (false, true) => {
                            left_out.insert(is_let_now(&observed.case), observed.seen.count);
                        }
                        (false, false) => {}
                    }
                }
                let lets = |case: &&Case| decide(&loaded.policy, case).outcome != Outcome::Deny;
                for case in self.refused.iter().filter(lets).filter(|_| !wanted.denied) {
                    let count = left_out.entry(is_let_now(case)).or_default();
                    *count = count.saturating_add(1);
                }
            }
            Err(complaints) => {
                for complaint in complaints {
                    left_out.insert(
                        format!("the policy does not compile, report this: {}", complaint.summary()),
                        1,
                    );
                }
            }
        }
        Learned {
            policy: text(&left_out),
            rules: rules.count,
            requests,
            left_out: left_out.into_iter().collect(),
            unusable: self.unusable,
            unusable_count: self.unusable_count,
        }
    }
}

fn is_let_now(case: &Case) -> String {
    format!("{}: it was refused, and is allowed by these rules", words::request(&case.request))
}

fn header(wanted: Wanted, left_out: &BTreeMap<String, u64>) -> String {
    let what = if wanted.denied { "seen, allowed or not" } else { "seen and allowed" };
    let mut text = format!(
        "# Learned from an audit log: allows what was {what}, and nothing else.\n\
         # How often, first and last, stands beside each value. Read it before you use it: `portreeve policy check` names what makes a\n\
         # host root, `portreeve policy test --policy FILE LOG` shows that it allows what the log has.\n"
    );
    for (what, count) in left_out.iter().take(KEPT) {
        // What a host wrote ends no comment: control characters are escaped.
        text.push_str(&format!("# Not as in the log, {count} times: {}\n", what.escape_debug()));
    }
    let more = left_out.len().saturating_sub(KEPT);
    if more > 0 {
        text.push_str(&format!("# Nor are {more} more kinds of requests\n"));
    }
    text + "version = 1\n"
}

impl fmt::Display for Learned {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.policy)
    }
}

#[cfg(test)]
mod tests;

//! Rules that never decide anything, because earlier ones have decided all that they match.
//!
//! Says so only where it is certain. One rule shadows another if whatever matches the other matches it; several without conditions do
//! so together. Takes time in proportion to the number of rules: a rule with conditions is compared with those earlier ones only whose
//! paths, programs, users or interfaces could cover its own, and comparisons are counted.

use std::collections::HashMap;

use authorize::{Argument, Conditions, Origin, Outcome, Pattern, Policy, Program, Rule};

use crate::calls::Calls;

/// Comparisons of two rules at most: a fraction of a second.
const COMPARISONS: usize = 4_000_000;

/// Earlier rules without anything to find them by, of which only so many are compared with each later one.
const GENERAL: usize = 1000;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Shadows<'a> {
    /// A rule that never decides, and the one that decides instead; none if it takes several.
    pub(crate) found: Vec<(&'a Rule, Option<&'a Origin>)>,
    /// The first rule that was not compared with all that could shadow it.
    pub(crate) stopped_at: Option<&'a Origin>,
}

/// Looks for shadowed rules.
pub(crate) fn shadows(policy: &Policy) -> Shadows<'_> {
    let mut shadows = Shadows::default();
    let mut closed = Closed::default();
    let mut earlier = Earlier::default();
    let mut left = COMPARISONS;
    for rule in policy.rules() {
        let calls = Calls::matched_by(rule);
        let by = closed.covers(rule, calls).or_else(|| {
            let by = earlier.find(rule, calls, &mut left);
            if left == 0 && shadows.stopped_at.is_none() {
                shadows.stopped_at = Some(&rule.origin);
            }
            by.map(Some)
        });
        if let Some(by) = by {
            shadows.found.push((rule, by));
            continue;
        }
        if rule.when.is_empty() {
            closed.add(rule, calls);
        }
        earlier.add(rule, calls);
    }
    shadows
}

/// What rules without conditions have decided.
#[derive(Default)]
struct Closed<'a> {
    everywhere: Calls,
    on: HashMap<&'a str, Calls>,
    /// For each call on every channel, the rule that decides it.
    by: HashMap<usize, &'a Origin>,
}

impl<'a> Closed<'a> {
    /// Whether all calls of `rule` are decided, and the rule if it is one.
    fn covers(&self, rule: &'a Rule, calls: Calls) -> Option<Option<&'a Origin>> {
        let on = |channel: &String| self.on.get(channel.as_str()).copied().unwrap_or_default();
        let covered = match rule.channels.as_slice() {
            [] => calls.is_in(self.everywhere),
            channels => channels.iter().all(|channel| calls.is_in(self.everywhere.and(on(channel)))),
        };
        if !covered {
            return None;
        }
        let mut by = calls.each().map(|(number, ..)| self.by.get(&number).copied());
        let first = by.next().flatten();
        Some(first.filter(|first| by.all(|other| other == Some(first))))
    }

    fn add(&mut self, rule: &'a Rule, calls: Calls) {
        for channel in &rule.channels {
            let on = self.on.entry(channel).or_default();
            *on = on.and(calls);
        }
        if rule.channels.is_empty() {
            for (number, ..) in calls.without(self.everywhere).each() {
                self.by.insert(number, &rule.origin);
            }
            self.everywhere = self.everywhere.and(calls);
        }
    }
}

/// Earlier rules, by what a rule that they cover must have.
#[derive(Default)]
struct Earlier<'a> {
    paths: HashMap<&'a [u8], Vec<(&'a Rule, Calls)>>,
    literals: HashMap<Vec<u8>, Vec<(&'a Rule, Calls)>>,
    general: Vec<(&'a Rule, Calls)>,
}

impl<'a> Earlier<'a> {
    fn add(&mut self, rule: &'a Rule, calls: Calls) {
        let entry = (rule, calls);
        if !rule.when.paths.is_empty() {
            for pattern in &rule.when.paths {
                let list = self.paths.entry(pattern.anchor()).or_default();
                if list.last().is_none_or(|(last, _)| !std::ptr::eq(*last, rule)) {
                    list.push(entry);
                }
            }
            return;
        }
        match literal(&rule.when) {
            Some(names) => {
                names.into_iter().for_each(|name| self.literals.entry(name).or_default().push(entry))
            }
            None if self.general.len() < GENERAL => self.general.push(entry),
            None => {}
        }
    }

    fn find(&self, rule: &'a Rule, calls: Calls, left: &mut usize) -> Option<&'a Origin> {
        let mut lists: Vec<&[(&Rule, Calls)]> = vec![&self.general];
        if let Some(first) = rule.when.paths.first() {
            lists.extend(ancestors(first.anchor()).filter_map(|dir| self.paths.get(dir)).map(Vec::as_slice));
        }
        let names = literal(&rule.when).unwrap_or_default();
        lists.extend(names.first().and_then(|name| self.literals.get(name)).map(Vec::as_slice));
        for (earlier, its_calls) in lists.into_iter().flatten() {
            *left = left.checked_sub(1)?;
            if calls.is_in(*its_calls) && covers(earlier, rule) {
                return Some(&earlier.origin);
            }
        }
        None
    }
}

/// The names by which rules about programs, users and interfaces are found, if all of them are literal.
fn literal(when: &Conditions) -> Option<Vec<Vec<u8>>> {
    let programs: Vec<&Pattern> = when.programs.iter().map(|program| &program.path).collect();
    let lists =
        [(b'p', programs), (b'u', when.users.iter().collect()), (b'i', when.interfaces.iter().collect())];
    lists.into_iter().find(|(_, list)| !list.is_empty()).and_then(|(kind, list)| {
        let key =
            |pattern: &&Pattern| pattern.is_literal().then(|| [&[kind], pattern.text().as_bytes()].concat());
        list.iter().map(key).collect()
    })
}

/// The directory, and all above it.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut next = Some(path);
    std::iter::from_fn(move || {
        let path = next?;
        next = match path.iter().rposition(|byte| *byte == b'/') {
            Some(0) if path.len() > 1 => Some(b"/".as_slice()),
            None | Some(0) => None,
            Some(slash) => path.get(..slash),
        };
        Some(path)
    })
}

/// Whether whatever matches `later`, of the calls of both, certainly matches `earlier`.
fn covers(earlier: &Rule, later: &Rule) -> bool {
    let channels = earlier.channels.is_empty()
        || (!later.channels.is_empty()
            && later.channels.iter().all(|channel| earlier.channels.contains(channel)));
    if !channels {
        return false;
    }
    let lets = |rule: &Rule| rule.outcome != Outcome::Deny;
    let (earlier_lets, later_lets) = (lets(earlier), lets(later));
    let (wide, narrow) = (&earlier.when, &later.when);
    // A list with several values may cover only some of what one request names. A rule that lets through wants all of it covered, one
    // that refuses any: a refusing rule's match says nothing of all.
    let some_is_enough = earlier_lets && !later_lets;
    // What is not known yet, and what follows from what was permitted before, a rule that lets through matches and one that refuses
    // does not.
    let is_known_later = !earlier_lets && later_lets;
    patterns(&wide.paths, &narrow.paths, !is_known_later)
        && list(&wide.modes, &narrow.modes, !is_known_later, |wide, narrow| wide == narrow)
        && patterns(&wide.users, &narrow.users, true)
        && list(&wide.uids, &narrow.uids, !is_known_later, within)
        && patterns(&wide.interfaces, &narrow.interfaces, true)
        && list(&wide.networks, &narrow.networks, true, |wide, narrow| wide.contains(narrow))
        && patterns(&wide.mountpoints, &narrow.mountpoints, !some_is_enough)
        && list(&wide.units, &narrow.units, !some_is_enough, within)
        && list(&wide.power, &narrow.power, true, |wide, narrow| wide == narrow)
        && list(&wide.programs, &narrow.programs, !is_known_later, program)
}

/// Whether the wide list covers the narrow one; `sound` is whether that says anything.
fn list<T>(wide: &[T], narrow: &[T], sound: bool, covers: impl Fn(&T, &T) -> bool) -> bool {
    wide.is_empty()
        || (sound
            && !narrow.is_empty()
            && narrow.iter().all(|narrow| wide.iter().any(|wide| covers(wide, narrow))))
}

fn patterns(wide: &[Pattern], narrow: &[Pattern], sound: bool) -> bool {
    list(wide, narrow, sound, Pattern::covers)
}

fn within<N: PartialOrd>(wide: &(N, N), narrow: &(N, N)) -> bool {
    wide.0 <= narrow.0 && narrow.1 <= wide.1
}

fn program(wide: &Program, narrow: &Program) -> bool {
    let arguments = match (&wide.arguments, &narrow.arguments) {
        (None, _) => true,
        (Some(wide), Some(narrow)) => {
            wide.len() == narrow.len() && wide.iter().zip(narrow).all(|(wide, narrow)| argument(wide, narrow))
        }
        (Some(_), None) => false,
    };
    let environment = match (&wide.environment, &narrow.environment) {
        (None, _) => true,
        (Some(wide), Some(narrow)) => narrow.iter().all(|narrow| wide.iter().any(|wide| wide.covers(narrow))),
        (Some(_), None) => false,
    };
    wide.path.covers(&narrow.path) && arguments && environment && (wide.input || !narrow.input)
}

fn argument(wide: &Argument, narrow: &Argument) -> bool {
    match (wide, narrow) {
        (Argument::Rest, Argument::Rest)
        | (Argument::Any, Argument::Any | Argument::OneOf(_) | Argument::Like(_)) => true,
        (Argument::OneOf(wide), Argument::OneOf(narrow)) => narrow.iter().all(|word| wide.contains(word)),
        (Argument::Like(wide), Argument::OneOf(narrow)) => narrow.iter().all(|word| wide.matches(word)),
        (Argument::Like(wide), Argument::Like(narrow)) => wide.covers(narrow),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Loaded;
    use compile::Source;

    /// The lines of rules that are shadowed, and by which.
    fn found(text: &str) -> Vec<(u32, Option<u32>)> {
        let text = format!("version = 1\n{text}");
        let loaded = Loaded::compile(vec![Source::File { name: "p".to_owned(), text }]).unwrap();
        let shadows = shadows(&loaded.policy);
        assert!(shadows.stopped_at.is_none());
        shadows.found.iter().map(|(rule, by)| (rule.origin.line, by.map(|by| by.line))).collect()
    }

    fn rules(all: &[&str]) -> String {
        all.iter().map(|rule| format!("[[rule]]\n{rule}\n")).collect()
    }

    #[test]
    fn a_rule_behind_one_that_matches_all_of_it_is_shadowed() {
        let text = rules(&[
            "outcome = \"deny\"\ngroups = [\"exec\", \"account\"]",
            "outcome = \"allow\"\ncommands = [\"guest-exec\"]\nchannels = [\"a\"]",
            "outcome = \"allow\"\ngroups = [\"exec\", \"query\"]",
        ]);
        assert_eq!(found(&text), [(5, Some(2))]);
    }

    #[test]
    fn several_rules_without_conditions_shadow_together() {
        let text = rules(&[
            "outcome = \"deny\"\ncommands = [\"guest-exec\"]",
            "outcome = \"allow\"\ncommands = [\"guest-exec-status\"]",
            "outcome = \"allow\"\ngroups = [\"exec\"]",
        ]);
        assert_eq!(found(&text), [(8, None)]);
    }

    #[test]
    fn a_narrower_path_behind_a_wider_one_is_shadowed() {
        let with = |first: &str, second: &str, outcomes: (&str, &str)| {
            let rule = |outcome: &str, path: &str| {
                format!("outcome = \"{outcome}\"\ngroups = [\"file.read\"]\npaths = [\"{path}\"]")
            };
            found(&rules(&[&rule(outcomes.0, first), &rule(outcomes.1, second)]))
        };
        assert_eq!(with("/var/**", "/var/log/*", ("allow", "deny")), [(6, Some(2))]);
        assert_eq!(with("/var/**", "/var/log/*", ("deny", "deny")), [(6, Some(2))]);
        assert_eq!(with("/var/log/*", "/var/**", ("allow", "allow")), []);
        // Reading what is open already is not refused by a rule about paths: the second rule lets it through.
        assert_eq!(with("/var/**", "/var/log/*", ("deny", "allow")), []);
    }

    #[test]
    fn a_rule_with_a_condition_more_shadows_nothing() {
        let text = rules(&[
            "outcome = \"allow\"\ngroups = [\"file.read\"]\npaths = [\"/var/**\"]\nmodes = [\"r\"]",
            "outcome = \"allow\"\ngroups = [\"file.read\"]\npaths = [\"/var/log/**\"]",
        ]);
        assert_eq!(found(&text), []);
    }

    #[test]
    fn refusing_one_of_several_cpus_is_not_shadowed_by_allowing_it() {
        let rule = |outcome: &str, units: &str| {
            format!("outcome = \"{outcome}\"\ngroups = [\"hotplug\"]\nunits = [\"{units}\"]")
        };
        // A request for CPUs 1 and 9 is not allowed by the first rule, and refused by the second.
        assert_eq!(found(&rules(&[&rule("allow", "1-3"), &rule("deny", "1")])), []);
        assert_eq!(found(&rules(&[&rule("deny", "1-3"), &rule("allow", "1")])), [(6, Some(2))]);
    }

    #[test]
    fn programs_are_compared_argument_by_argument() {
        let rule = |arguments: &str| {
            format!(
                "outcome = \"allow\"\ngroups = [\"exec\"]\n[[rule.program]]\npath = \"/bin/x\"\nenvironment = []\narguments = {arguments}"
            )
        };
        assert_eq!(found(&rules(&[&rule("[{ any = true }]"), &rule("[\"a\"]")])), [(9, Some(2))]);
        assert_eq!(found(&rules(&[&rule("[\"a\"]"), &rule("[{ any = true }]")])), []);
        assert_eq!(found(&rules(&[&rule("[{ any = true }]"), &rule("[\"a\", \"b\"]")])), []);
    }
}

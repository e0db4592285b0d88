//! What becomes of each command, as far as it can be said without its arguments.

use std::collections::{BTreeMap, BTreeSet};

use authorize::{Outcome, Policy};
use proto::Command;
use serde::Serialize;

use crate::calls::Calls;

/// What becomes of the calls of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// All are allowed.
    Allow,
    /// All are refused.
    Deny,
    /// All are allowed, and a part of the reply is left out.
    Redact,
    /// It depends on the arguments.
    Depends,
}

impl Answer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Answer::Allow => "allow",
            Answer::Deny => "deny",
            Answer::Redact => "redact",
            Answer::Depends => "depends",
        }
    }
}

/// Channels that are told apart in a report: those that the rules name, then one for all others.
pub(crate) struct Channels {
    /// Sorted; at most [`Channels::MOST`].
    pub(crate) named: Vec<String>,
    /// Named by rules, and not looked at.
    pub(crate) left_out: usize,
}

impl Channels {
    pub(crate) const MOST: usize = 32;

    pub(crate) fn of<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let names = policies.into_iter().flat_map(|policy| policy.rules().flat_map(|rule| &rule.channels));
        let all: BTreeSet<&String> = names.collect();
        let named: Vec<String> = all.iter().take(Self::MOST).map(|name| (*name).clone()).collect();
        Channels { left_out: all.len().saturating_sub(named.len()), named }
    }

    /// A name that no rule has: what holds for it holds for all others.
    pub(crate) fn other(&self) -> String {
        let mut name = "any".to_owned();
        while self.named.contains(&name) {
            name.push('-');
        }
        name
    }
}

/// What becomes of each command that comes in by `channel`. Takes one look at each rule.
pub(crate) fn verdicts(policy: &Policy, channel: &str) -> Vec<(&'static Command, Answer)> {
    let outcomes = [Outcome::Allow, Outcome::Deny, Outcome::Redact];
    let mut possible = [Calls::NONE; 3];
    let mut open = Calls::all();
    for rule in policy.rules() {
        if open.is_empty() {
            break;
        }
        if !rule.is_for(channel) {
            continue;
        }
        let calls = Calls::matched_by(rule).both(open);
        for (outcome, possible) in outcomes.iter().zip(&mut possible) {
            if rule.outcome == *outcome {
                *possible = possible.and(calls);
            }
        }
        if rule.when.is_empty() {
            open = open.without(calls);
        }
    }
    let [allow, deny, redact] = possible;
    let deny = deny.and(open);
    let of = |command: &'static Command| {
        let is_in = |calls: Calls| calls.has(|known, _| std::ptr::eq(known, command));
        match (is_in(allow), is_in(deny), is_in(redact)) {
            (true, false, false) => Answer::Allow,
            (false, _, false) => Answer::Deny,
            (false, false, true) => Answer::Redact,
            _ => Answer::Depends,
        }
    };
    proto::commands().map(|command| (command, of(command))).collect()
}

/// The calls that a rule allows, for somebody, with some arguments: each with the first such rule. Takes one look at each rule.
pub(crate) fn possible(policy: &Policy) -> Calls {
    let mut everywhere = Calls::NONE;
    let mut on: BTreeMap<&str, Calls> = BTreeMap::new();
    let mut possible = Calls::NONE;
    for rule in policy.rules() {
        let calls = Calls::matched_by(rule).without(everywhere);
        if rule.outcome != Outcome::Deny {
            if rule.channels.is_empty() {
                // On a channel that no rule names, at least.
                possible = possible.and(calls);
            }
            for channel in &rule.channels {
                possible = possible.and(calls.without(on.get(channel.as_str()).copied().unwrap_or_default()));
            }
        }
        if rule.when.is_empty() {
            if rule.channels.is_empty() {
                everywhere = everywhere.and(calls);
            }
            for channel in &rule.channels {
                let closed = on.entry(channel).or_default();
                *closed = closed.and(calls);
            }
        }
    }
    possible
}

#[cfg(test)]
mod tests {
    use super::*;
    use authorize::{Origin, Pattern, Rule};
    use proptest::prelude::*;
    use proto::Group;

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy::new("p", Vec::new(), rules)
    }

    fn rule(outcome: Outcome, groups: &[Group]) -> Rule {
        let origin = Origin { place: "p".into(), line: 1 };
        Rule { groups: groups.to_vec(), ..Rule::new(outcome, origin) }
    }

    fn of(policy: &Policy, name: &str) -> Answer {
        verdicts(policy, "a").into_iter().find(|(command, _)| command.name() == name).unwrap().1
    }

    #[test]
    fn a_command_is_what_all_of_its_calls_are() {
        let mut some = rule(Outcome::Allow, &[Group::FileRead]);
        some.when.paths = vec![Pattern::path("/var/**").unwrap()];
        let policy = policy(vec![
            some,
            rule(Outcome::Allow, &[Group::Query]),
            rule(Outcome::Redact, &[Group::NetQuery]),
        ]);
        assert_eq!(of(&policy, "guest-get-users"), Answer::Allow);
        assert_eq!(of(&policy, "guest-network-get-interfaces"), Answer::Redact);
        assert_eq!(of(&policy, "guest-file-open"), Answer::Depends);
        assert_eq!(of(&policy, "guest-exec"), Answer::Deny);
    }

    #[test]
    fn opening_only_to_read_depends_on_the_mode() {
        assert_eq!(
            of(&policy(vec![rule(Outcome::Allow, &[Group::FileRead])]), "guest-file-open"),
            Answer::Depends
        );
        assert_eq!(of(&policy(vec![rule(Outcome::Allow, &[])]), "guest-file-open"), Answer::Allow);
    }

    proptest! {
        #[test]
        fn a_right_is_possible_where_the_agent_finds_it_so(
            written in prop::collection::vec((0..3_usize, 0..13_usize, 0..3_usize, 0..4_usize), 0..8),
        ) {
            let outcomes = [Outcome::Allow, Outcome::Deny, Outcome::Redact];
            let open = proto::find(proto::Dialect::Qga, "guest-file-open").unwrap().id();
            let rules = written.into_iter().map(|(outcome, group, channel, when)| {
                let mut rule = rule(outcomes[outcome], Group::ALL.get(group..=group).unwrap_or_default());
                if group == 12 {
                    rule.commands = vec![open];
                }
                rule.channels = ["a", "b"].iter().take(channel).map(|name| (*name).to_owned()).collect();
                match when {
                    0 => {}
                    1 => rule.when.paths = vec![Pattern::path("/x").unwrap()],
                    mode => rule.when.modes = vec![["r", "w"][mode - 2].to_owned()],
                }
                rule
            });
            let policy = policy(rules.collect());
            let possible = possible(&policy);
            for group in Group::ALL {
                prop_assert_eq!(possible.has(|_, known| known == *group), authorize::may_ever(&policy, *group), "{:?}", group);
            }
        }
    }
}

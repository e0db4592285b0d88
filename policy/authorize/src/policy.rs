//! The compiled policy: ordered rules, the first that matches decides, default deny.
//!
//! Built by `portreeve-compile` from text, or from nothing (closed). Read by broker and workers.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};
use proto::{Command, CommandId, Dialect, Group};

use crate::conditions::{Conditions, Side, Subject};
use crate::index::Index;
use crate::terms::Terms;

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// It is done.
    Allow,
    /// It is refused.
    Deny,
    /// It is done, and a part of the reply is left out.
    Redact,
}

impl Outcome {
    /// As written in a policy and in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Allow => "allow",
            Outcome::Deny => "deny",
            Outcome::Redact => "redact",
        }
    }

    pub(crate) fn side(self) -> Side {
        match self {
            Outcome::Allow | Outcome::Redact => Side::Allows,
            Outcome::Deny => Side::Refuses,
        }
    }
}

/// Where a rule was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Origin {
    /// A file, a preset (`preset observe`) or an option (`--block-rpcs`).
    pub place: Arc<str>,
    /// Its line, from 1; 0 where there are no lines.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.place)?;
        if self.line > 0 { write!(formatter, ":{}", self.line) } else { Ok(()) }
    }
}

/// One rule. It matches a request that fits all of its conditions; an empty list is no condition.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Rule {
    /// What it says.
    pub outcome: Outcome,
    /// Where it was written.
    pub origin: Origin,
    /// Commands, by name.
    pub commands: Vec<CommandId>,
    /// Commands, by right. With `commands` set, too, either is enough; with neither, every command matches.
    pub groups: Vec<Group>,
    /// Channels, by name.
    pub channels: Vec<String>,
    /// Dialects.
    pub dialects: Vec<Dialect>,
    /// Conditions on the arguments.
    pub when: Conditions,
    /// How it is done; of a rule that refuses nothing of it is looked at.
    pub terms: Option<Arc<Terms>>,
    /// What the host reads when this rule refuses, instead of the usual text.
    pub text: Option<String>,
}

impl Rule {
    /// A rule that matches every request; the rest is filled in by whoever wants less.
    pub fn new(outcome: Outcome, origin: Origin) -> Self {
        Rule {
            outcome,
            origin,
            commands: Vec::new(),
            groups: Vec::new(),
            channels: Vec::new(),
            dialects: Vec::new(),
            when: Conditions::default(),
            terms: None,
            text: None,
        }
    }

    /// Whether it is about calls of `command` that need `group`, whoever asks.
    pub fn is_about(&self, command: &'static Command, group: Group) -> bool {
        let any = self.commands.is_empty() && self.groups.is_empty();
        (any || self.groups.contains(&group) || self.commands.contains(&command.id()))
            && (self.dialects.is_empty() || self.dialects.contains(&command.dialect))
    }

    /// Whether it is for requests of the channel called `channel`.
    pub fn is_for(&self, channel: &str) -> bool {
        self.channels.is_empty() || self.channels.iter().any(|name| name == channel)
    }
}

/// Ordered rules.
#[derive(Debug, Clone)]
pub struct Policy {
    name: String,
    /// `--allow-rpcs` and `--block-rpcs`: both this layer and the rules must allow.
    layer: Vec<Rule>,
    rules: Vec<Rule>,
    default: Origin,
    /// Made from the rules by everybody who has them.
    index: Index,
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Policy {}

/// A rule that has decided, or none.
pub(crate) enum Decided<'a> {
    /// This one.
    By(&'a Rule),
    /// None matched.
    Default(&'a Origin),
}

impl Policy {
    /// A policy of `rules`, called `name`, under the command line's `layer` (whose default is to leave the
    /// decision to the rules).
    pub fn new(name: impl Into<String>, layer: Vec<Rule>, rules: Vec<Rule>) -> Self {
        let name = name.into();
        let default = Origin { place: format!("{name}, default").into(), line: 0 };
        Policy::of(name, layer, rules, default)
    }

    pub(crate) fn of(name: String, layer: Vec<Rule>, rules: Vec<Rule>, default: Origin) -> Self {
        let index = Index::new(&rules);
        Policy { name, layer, rules, default, index }
    }

    /// Serves nothing but what says something about the agent; in force when the real policy cannot be read.
    pub fn closed(reason: impl Into<Arc<str>>) -> Self {
        let origin = Origin { place: reason.into(), line: 0 };
        let rule = Rule {
            groups: vec![Group::Agent],
            dialects: vec![Dialect::Qga],
            ..Rule::new(Outcome::Allow, origin.clone())
        };
        Policy::of("closed".to_owned(), Vec::new(), vec![rule], origin)
    }

    /// What it is called: a preset's name or a file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules of the layer, then the others, in the order in which they are asked.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.layer.iter().chain(&self.rules)
    }

    pub(crate) fn parts(&self) -> (&str, &[Rule], &[Rule], &Origin) {
        (&self.name, &self.layer, &self.rules, &self.default)
    }

    /// The first rule that matches a request, or what of it is known.
    pub(crate) fn decide(
        &self,
        channel: &str,
        command: &'static Command,
        group: Group,
        subject: Known<'_>,
    ) -> Decided<'_> {
        let matches = |rule: &&Rule| {
            rule.is_for(channel)
                && rule.is_about(command, group)
                && match subject {
                    Known::Request(subject) => rule.when.hold(subject, rule.outcome.side()),
                    Known::Command => {
                        rule.when.could_hold(rule.outcome.side(), command)
                            && rule.when.could_need(group, command)
                    }
                }
        };
        if let Some(rule) = self.layer.iter().find(matches)
            && rule.outcome == Outcome::Deny
        {
            return Decided::By(rule);
        }
        let rule = match subject {
            Known::Request(subject) => self
                .index
                .candidates(&self.rules, command, subject)
                .filter_map(|position| self.rules.get(position))
                .find(matches),
            Known::Command => self.rules.iter().find(matches),
        };
        rule.map_or(Decided::Default(&self.default), Decided::By)
    }

    /// Whether any rule asks where the file is that was really opened. If none does, nobody has to find it out.
    pub fn asks_paths(&self) -> bool {
        self.index.asks_paths()
    }

    /// Whether any rule asks for the number of the user that was named.
    pub fn asks_uids(&self) -> bool {
        self.index.asks_uids()
    }

    /// Whether some call of `command` is allowed.
    pub(crate) fn serves(&self, channel: &str, command: &'static Command) -> bool {
        command.groups().any(|group| self.may(channel, command, group))
    }

    fn may(&self, channel: &str, command: &'static Command, group: Group) -> bool {
        match self.decide(channel, command, group, Known::Command) {
            Decided::By(rule) => rule.outcome != Outcome::Deny,
            Decided::Default(_) => false,
        }
    }

    /// The channels that it tells apart; `""` stands for all others.
    pub(crate) fn channels(&self) -> BTreeSet<&str> {
        self.rules().flat_map(|rule| rule.channels.iter().map(String::as_str)).chain([""]).collect()
    }

    /// The rules that may decide about some call of `command` that needs `group`: none behind one that decides about all of them.
    pub(crate) fn reachable<'a>(
        &'a self,
        channel: &'a str,
        command: &'static Command,
        group: Group,
    ) -> impl Iterator<Item = &'a Rule> {
        let matches = move |rule: &&Rule| rule.is_for(channel) && rule.is_about(command, group);
        let mut decided = self.layer.iter().find(matches).is_some_and(|rule| rule.outcome == Outcome::Deny);
        let rules = self.rules.iter().filter(|rule| rule.when.could_hold(rule.outcome.side(), command));
        rules.filter(matches).take_while(move |rule| {
            let before = decided;
            decided |= rule.when.is_empty();
            !before
        })
    }

    /// Whether some call by anybody needs `group` and may be allowed: it must have a rule that allows it and no
    /// earlier one that denies the whole group everywhere.
    pub(crate) fn grants(&self, group: Group) -> bool {
        let channels = self.channels();
        proto::commands()
            .filter(|command| command.groups().any(|of_command| of_command == group))
            .any(|command| channels.iter().any(|channel| self.may(channel, command, group)))
    }
}

/// What is known of a request.
#[derive(Clone, Copy)]
pub(crate) enum Known<'a> {
    /// Which command it calls.
    Command,
    /// All that it says, and what was found out.
    Request(&'a Subject<'a>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Asker, authorize};
    use proto::{NoArguments, Request, file, query};

    fn rule(outcome: Outcome, groups: &[Group], names: &[&str], line: u32) -> Rule {
        let commands = names.iter().map(|name| proto::find(Dialect::Qga, name).unwrap().id()).collect();
        let origin = Origin { place: "test.toml".into(), line };
        Rule { commands, groups: groups.to_vec(), ..Rule::new(outcome, origin) }
    }

    fn open(mode: &str) -> Request {
        file::Request::Open(file::Open { path: "/etc/hostname".into(), mode: Some(mode.to_owned()) }).into()
    }

    fn ask(policy: &Policy, request: Request) -> Result<String, (String, String)> {
        match authorize(policy, Asker { channel: "a", frozen: false }, request) {
            Ok(permitted) => Ok(permitted.rule().to_string()),
            Err(refusal) => Err((refusal.denied.to_string(), refusal.rule.to_string())),
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::new(
            "p",
            Vec::new(),
            vec![
                rule(Outcome::Deny, &[], &["guest-get-users"], 3),
                rule(Outcome::Allow, &[Group::Query], &[], 7),
            ],
        );
        let users = query::Request::Users(NoArguments {}).into();
        let text = "Command guest-get-users has been disabled: the command is not allowed";
        assert_eq!(ask(&policy, users), Err((text.to_owned(), "test.toml:3".to_owned())));
        assert_eq!(ask(&policy, query::Request::Load(NoArguments {}).into()), Ok("test.toml:7".to_owned()));
    }

    #[test]
    fn what_no_rule_matches_is_refused() {
        let policy = Policy::new("p", Vec::new(), Vec::new());
        let refused = ask(&policy, open("r")).unwrap_err();
        assert_eq!(refused.1, "p, default");
    }

    #[test]
    fn reading_may_be_allowed_where_writing_is_not() {
        let policy = Policy::new("p", Vec::new(), vec![rule(Outcome::Allow, &[Group::FileRead], &[], 1)]);
        assert_eq!(ask(&policy, open("r")), Ok("test.toml:1".to_owned()));
        let text = "failed to open file '/etc/hostname' (mode: 'w'): Permission denied";
        assert_eq!(ask(&policy, open("w")), Err((text.to_owned(), "p, default".to_owned())));
    }

    #[test]
    fn the_layer_takes_away_but_never_gives() {
        let allow_ping = rule(Outcome::Allow, &[], &["guest-file-open"], 0);
        let deny_rest = rule(Outcome::Deny, &[], &[], 0);
        let policy = Policy::new(
            "p",
            vec![allow_ping, deny_rest],
            vec![rule(Outcome::Allow, &[Group::Query], &[], 1)],
        );
        assert!(ask(&policy, open("r")).is_err());
        assert!(ask(&policy, query::Request::Load(NoArguments {}).into()).is_err());
    }

    #[test]
    fn opening_by_a_mode_that_only_reads_grants_no_writing() {
        let grants = |modes: &[&str]| {
            let mut open = rule(Outcome::Allow, &[], &["guest-file-open"], 1);
            open.when.modes = modes.iter().map(|mode| (*mode).to_owned()).collect();
            let policy = Policy::new("p", Vec::new(), vec![open]);
            (policy.grants(Group::FileRead), policy.grants(Group::FileWrite))
        };
        assert_eq!(grants(&["r"]), (true, false));
        assert_eq!(grants(&["w", "a+"]), (false, true));
        assert_eq!(grants(&["r", "r+"]), (true, true));
        assert_eq!(grants(&[]), (true, true));
    }

    #[test]
    fn a_right_that_no_rule_grants_is_known_to_be_useless() {
        let policy = Policy::new(
            "p",
            Vec::new(),
            vec![rule(Outcome::Deny, &[Group::Exec], &[], 1), rule(Outcome::Allow, &[], &[], 2)],
        );
        assert!(!policy.grants(Group::Exec));
        assert!(policy.grants(Group::NetChange));
        assert!(policy.grants(Group::FileWrite));
    }
}

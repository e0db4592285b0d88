//! The compiled policy: ordered rules, the first that matches decides, default deny.
//!
//! Built by `portreeve-compile` from text, or from nothing (closed). Read by broker and workers.

use std::fmt;

use bincode::{Decode, Encode};
use proto::{Command, CommandId, Dialect, Group};

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// It is done.
    Allow,
    /// It is refused.
    Deny,
}

/// Where a rule was written.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Origin {
    /// A file, a preset (`preset observe`) or an option (`--block-rpcs`).
    pub place: String,
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
}

impl Rule {
    fn matches(&self, channel: &str, id: CommandId, dialect: Dialect, group: Group) -> bool {
        let any = self.commands.is_empty() && self.groups.is_empty();
        (any || self.commands.contains(&id) || self.groups.contains(&group))
            && (self.channels.is_empty() || self.channels.iter().any(|name| name == channel))
            && (self.dialects.is_empty() || self.dialects.contains(&dialect))
    }
}

/// Ordered rules.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Policy {
    name: String,
    /// `--allow-rpcs` and `--block-rpcs`: both this layer and the rules must allow.
    layer: Vec<Rule>,
    rules: Vec<Rule>,
    default: Origin,
}

impl Policy {
    /// A policy of `rules`, called `name`, under the command line's `layer` (whose default is to leave the
    /// decision to the rules).
    pub fn new(name: impl Into<String>, layer: Vec<Rule>, rules: Vec<Rule>) -> Self {
        let name = name.into();
        let default = Origin { place: format!("{name}, default"), line: 0 };
        Policy { name, layer, rules, default }
    }

    /// Serves nothing but what says something about the agent; in force when the real policy cannot be read.
    pub fn closed(reason: impl Into<String>) -> Self {
        let origin = Origin { place: reason.into(), line: 0 };
        let rule = Rule {
            outcome: Outcome::Allow,
            origin: origin.clone(),
            commands: Vec::new(),
            groups: vec![Group::Agent],
            channels: Vec::new(),
            dialects: vec![Dialect::Qga],
        };
        Policy { name: "closed".to_owned(), layer: Vec::new(), rules: vec![rule], default: origin }
    }

    /// What it is called: a preset's name or a file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules of the layer, then the others, in the order in which they are asked.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.layer.iter().chain(&self.rules)
    }

    /// The first rule that matches a call of `command` that needs `group`.
    pub(crate) fn decide(
        &self,
        channel: &str,
        command: &'static Command,
        group: Group,
    ) -> (Outcome, &Origin) {
        let id = command.id();
        let first = |rules: &'_ [Rule]| -> Option<usize> {
            rules.iter().position(|rule| rule.matches(channel, id, command.dialect, group))
        };
        if let Some(rule) = first(&self.layer).and_then(|position| self.layer.get(position))
            && rule.outcome == Outcome::Deny
        {
            return (Outcome::Deny, &rule.origin);
        }
        match first(&self.rules).and_then(|position| self.rules.get(position)) {
            Some(rule) => (rule.outcome, &rule.origin),
            None => (Outcome::Deny, &self.default),
        }
    }

    /// Whether some call of `command` is allowed.
    pub(crate) fn serves(&self, channel: &str, command: &'static Command) -> bool {
        groups_of(command).any(|group| self.decide(channel, command, group).0 == Outcome::Allow)
    }

    /// Whether some call by anybody needs `group` and may be allowed: it must have a rule that allows it and no
    /// earlier one that denies the whole group everywhere.
    pub(crate) fn grants(&self, group: Group) -> bool {
        let channels = self.rules().flat_map(|rule| rule.channels.iter().map(String::as_str));
        let channels: Vec<&str> = channels.chain([""]).collect();
        proto::commands().filter(|command| groups_of(command).any(|of_command| of_command == group)).any(
            |command| channels.iter().any(|channel| self.decide(channel, command, group).0 == Outcome::Allow),
        )
    }
}

/// The rights that calls of `command` can need: its own, and writing for what opens files.
fn groups_of(command: &'static Command) -> impl Iterator<Item = Group> {
    let opens = matches!(command.name(), "guest-file-open" | "file-open");
    [Some(command.group), opens.then_some(Group::FileWrite)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Asker, authorize};
    use proto::{NoArguments, Request, file, query};

    fn rule(outcome: Outcome, groups: &[Group], names: &[&str], line: u32) -> Rule {
        let commands = names.iter().map(|name| proto::find(Dialect::Qga, name).unwrap().id()).collect();
        let origin = Origin { place: "test.toml".to_owned(), line };
        Rule {
            outcome,
            origin,
            commands,
            groups: groups.to_vec(),
            channels: Vec::new(),
            dialects: Vec::new(),
        }
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
        let text = "Command guest-file-open: Permission denied: the policy does not allow file.write here";
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

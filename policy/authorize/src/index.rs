//! Which rules a request has to be held against, so that a decision takes no longer when a policy has many rules.
//!
//! Runs where the policy is: made from its rules alone, for each command when it is called for the first time, since most processes hear
//! of few commands. A rule that is about one path, program, user or interface is
//! found by it (for a path: by the directory that its pattern is anchored in), all others by the command.

use std::collections::HashMap;
use std::sync::OnceLock;

use proto::Command;

use crate::conditions::{Conditions, Shown, Side, Subject};
use crate::policy::Rule;

/// Positions of rules, ascending.
type Positions = Vec<u32>;

/// What rules are found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Path(Vec<u8>),
    Program(Vec<u8>),
    User(Vec<u8>),
    Interface(Vec<u8>),
}

/// The rules of each command that was called, by its number.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    commands: Vec<OnceLock<OfCommand>>,
    /// Whether any rule is about paths.
    asks_paths: bool,
    /// Whether any rule is about users' numbers.
    asks_uids: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OfCommand {
    /// Those that are asked while it is not known what a path leads to.
    unresolved: Positions,
    /// Those that are held against every call.
    always: Positions,
    /// Those that only calls with this argument can match.
    keyed: HashMap<Key, Positions>,
}

impl Index {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        Index {
            commands: proto::commands().map(|_| OnceLock::new()).collect(),
            asks_paths: rules.iter().any(|rule| !rule.when.paths.is_empty()),
            asks_uids: rules.iter().any(|rule| !rule.when.uids.is_empty()),
        }
    }

    pub(crate) fn asks_paths(&self) -> bool {
        self.asks_paths
    }

    pub(crate) fn asks_uids(&self) -> bool {
        self.asks_uids
    }

    /// Those of `rules`, always the same ones, that could match this call, in their order; some may come twice.
    pub(crate) fn candidates<'a>(
        &'a self,
        rules: &[Rule],
        command: &'static Command,
        subject: &Subject<'_>,
    ) -> impl Iterator<Item = usize> + 'a {
        let mut lists: Vec<&[u32]> = Vec::new();
        if let Some(of) = self.commands.get(usize::from(command.id().0)) {
            let of = of.get_or_init(|| OfCommand::of(command, rules));
            let mut add = |key: Key| lists.extend(of.keyed.get(&key).map(Vec::as_slice));
            let mut unresolved = subject.follows();
            match subject.path() {
                Shown::Absent => {}
                Shown::Unknown => unresolved = true,
                Shown::These(paths) => {
                    unresolved = false;
                    paths.iter().for_each(|path| ancestors(path).for_each(|dir| add(Key::Path(dir.to_vec()))))
                }
            }
            if let Some(program) = subject.program() {
                add(Key::Program(program.to_vec()));
            }
            if let Some(user) = subject.user() {
                add(Key::User(user.0.clone()));
            }
            if let Some(interface) = subject.interface() {
                add(Key::Interface(interface.as_bytes().to_vec()));
            }
            if unresolved {
                lists.clear();
            }
            lists.push(if unresolved { &of.unresolved } else { &of.always });
        }
        Merged(lists)
    }
}

fn position(position: &u32) -> Option<usize> {
    usize::try_from(*position).ok()
}

/// The path, and every directory above it.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').filter_map(|(at, _)| match at {
        0 => Some(b"/".as_slice()),
        at => path.get(..at),
    });
    above.chain((path != b"/").then_some(path))
}

impl OfCommand {
    fn of(command: &'static Command, rules: &[Rule]) -> Self {
        let mut of = OfCommand::default();
        for (rule, position) in rules.iter().zip(0_u32..) {
            if !command.groups().any(|group| rule.is_about(command, group)) {
                continue;
            }
            // No call of a command without such an argument matches it, nor one that follows from another.
            if !rule.when.kinds().all(|kind| kind.commands().contains(&command.name())) {
                continue;
            }
            if rule.outcome.side() == Side::Allows || !rule.when.need_facts() {
                of.unresolved.push(position);
            }
            match keys(&rule.when) {
                Some(keys) => keys.into_iter().for_each(|key| {
                    let list = of.keyed.entry(key).or_default();
                    if list.last() != Some(&position) {
                        list.push(position);
                    }
                }),
                None => of.always.push(position),
            }
        }
        of
    }
}

/// The arguments of which one must be there for these conditions to hold. None if a request cannot be told by any.
fn keys(when: &Conditions) -> Option<Vec<Key>> {
    let literal = |patterns: &[crate::Pattern], key: fn(Vec<u8>) -> Key| {
        let all = patterns
            .iter()
            .map(|pattern| pattern.is_literal().then(|| key(pattern.text().as_bytes().to_vec())));
        (!patterns.is_empty()).then(|| all.collect::<Option<Vec<Key>>>()).flatten()
    };
    if !when.paths.is_empty() {
        return Some(when.paths.iter().map(|pattern| Key::Path(pattern.anchor().to_vec())).collect());
    }
    let programs: Vec<crate::Pattern> = when.programs.iter().map(|program| program.path.clone()).collect();
    literal(&programs, Key::Program)
        .or_else(|| literal(&when.users, Key::User))
        .or_else(|| literal(&when.interfaces, Key::Interface))
}

/// Several ascending lists as one.
struct Merged<'a>(Vec<&'a [u32]>);

impl Iterator for Merged<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let list =
            self.0.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list.first().copied())?;
        let (first, rest) = list.split_first()?;
        *list = rest;
        position(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::Facts;
    use crate::policy::{Origin, Outcome};
    use crate::{Asker, Pattern, Policy, Program, decide};
    use proptest::prelude::*;
    use proto::{Group, Request, Text, account, exec, file};

    #[test]
    fn ancestors_are_the_path_and_all_above_it() {
        let all = |path: &str| {
            ancestors(path.as_bytes())
                .map(|dir| String::from_utf8_lossy(dir).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(all("/var/log/a"), ["/", "/var", "/var/log", "/var/log/a"]);
        assert_eq!(all("/"), ["/"]);
    }

    fn request(kind: u8, text: &str) -> Request {
        let text = Text::from(text);
        match kind {
            0 => file::Request::Open(file::Open { path: text, mode: None }).into(),
            1 => file::Request::Read(file::Read { handle: 1, count: None }).into(),
            2 => account::Request::GetKeys(account::OfUser { username: text }).into(),
            _ => exec::Request::Exec(exec::Exec {
                path: text,
                arg: None,
                env: None,
                input_data: proto::Payload::default(),
                capture_output: exec::Capture::None,
            })
            .into(),
        }
    }

    fn rule(number: usize, outcome: Outcome, kind: u8, text: &str, all_groups: bool) -> Rule {
        let mut rule = Rule::new(outcome, Origin { place: "p".into(), line: u32::try_from(number).unwrap() });
        if !all_groups {
            rule.groups = vec![Group::FileRead, Group::Account];
        }
        let patterns = || vec![Pattern::name(text).unwrap()];
        match kind {
            0 => rule.when.paths = patterns(),
            1 => rule.when.users = patterns(),
            2 => {
                rule.when.programs = vec![Program {
                    path: Pattern::name(text).unwrap(),
                    arguments: None,
                    environment: None,
                    input: true,
                }]
            }
            3 => rule.when.modes = vec!["r".to_owned()],
            _ => {}
        }
        rule
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// The index is right if it never changes a decision.
        #[test]
        fn the_index_decides_as_asking_every_rule_does(
            written in prop::collection::vec((0..3_usize, 0..5_u8, "(/[ab*]{1,2}){1,3}", any::<bool>()), 0..8),
            kind in 0..4_u8,
            text in "(/[ab]{1,2}){1,3}",
            resolved in any::<bool>(),
        ) {
            let outcomes = [Outcome::Allow, Outcome::Deny, Outcome::Redact];
            let rules: Vec<Rule> = written.iter().enumerate()
                .filter(|(_, (_, _, text, _))| !text.contains("***"))
                .map(|(number, (outcome, kind, text, all))| rule(number, outcomes[*outcome], *kind, text, *all))
                .collect();
            let request = request(kind, &text);
            let facts = Facts { path: resolved.then_some(text.as_bytes()), uid: None };
            let subject = Subject::of(&request, facts);
            let plain = rules.iter().find(|rule| {
                rule.is_about(request.command(), request.group()) && rule.when.hold(&subject, rule.outcome.side())
            });
            let wanted = plain.map(|rule| (rule.outcome, rule.origin.line));
            let policy = Policy::new("p", Vec::new(), rules.clone());
            let found = match decide(&policy, Asker { channel: "a", frozen: false }, &request, facts) {
                Ok(by) => Some((by.outcome, by.rule.line)),
                Err((_, origin)) if &*origin.place == "p" => Some((Outcome::Deny, origin.line)),
                Err(_) => None,
            };
            prop_assert_eq!(found, wanted);
            // What explains a decision comes to the same.
            let asker = Asker { channel: "a", frozen: false };
            let last = crate::consider(&policy, asker, &request, facts).last();
            let explained = last.filter(crate::Considered::matches).map(|last| (last.rule.outcome, last.rule.origin.line));
            prop_assert_eq!(explained, wanted);
        }
    }
}

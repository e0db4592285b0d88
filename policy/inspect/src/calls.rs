//! Sets of calls: a command together with the right that a call of it needs. Opening a file is two of them, for reading and for writing.

use std::sync::LazyLock;

use authorize::{Kind, Rule};
use proto::{Command, Dialect, Group};

/// A set of calls; bit N is the Nth of [`ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Calls(u128);

/// Every call there is.
pub(crate) static ALL: LazyLock<Vec<(&'static Command, Group)>> = LazyLock::new(|| {
    proto::commands().flat_map(|command| command.groups().map(move |group| (command, group))).collect()
});

static TABLES: LazyLock<Tables> = LazyLock::new(Tables::new);

/// What sets are put together from.
struct Tables {
    of_command: Vec<Calls>,
    of_group: Vec<(Group, Calls)>,
    of_dialect: [(Dialect, Calls); 2],
    of_kind: Vec<(Kind, Calls)>,
}

impl Tables {
    fn new() -> Self {
        let commands = proto::commands();
        Tables {
            of_command: commands
                .map(|command| Calls::that(|known, _| std::ptr::eq(known, command)))
                .collect(),
            of_group: Group::ALL
                .iter()
                .map(|group| (*group, Calls::that(|_, known| known == *group)))
                .collect(),
            of_dialect: [Dialect::Qga, Dialect::Phoenix]
                .map(|dialect| (dialect, Calls::that(|known, _| known.dialect == dialect))),
            of_kind: Kind::ALL
                .iter()
                .map(|kind| (*kind, Calls::that(|known, _| kind.commands().contains(&known.name()))))
                .collect(),
        }
    }
}

impl Calls {
    pub(crate) const NONE: Calls = Calls(0);

    /// Those for which `is_in` holds.
    pub(crate) fn that(is_in: impl Fn(&'static Command, Group) -> bool) -> Self {
        let bits = ALL.iter().enumerate().filter(|(_, (command, group))| is_in(command, *group));
        Calls(bits.fold(0, |set, (bit, _)| {
            set | 1_u128.checked_shl(u32::try_from(bit).unwrap_or(128)).unwrap_or(0)
        }))
    }

    pub(crate) fn all() -> Self {
        Calls::that(|_, _| true)
    }

    /// Those that a rule is about, by command, right and dialect.
    pub(crate) fn about(rule: &Rule) -> Self {
        let tables = &*TABLES;
        let mut calls = Calls::NONE;
        if rule.commands.is_empty() && rule.groups.is_empty() {
            calls = Calls::all();
        }
        for id in &rule.commands {
            calls = calls.and(tables.of_command.get(usize::from(id.0)).copied().unwrap_or_default());
        }
        for (_, of_group) in tables.of_group.iter().filter(|(group, _)| rule.groups.contains(group)) {
            calls = calls.and(*of_group);
        }
        if !rule.dialects.is_empty() {
            let dialects = tables.of_dialect.iter().filter(|(dialect, _)| rule.dialects.contains(dialect));
            calls = calls.both(dialects.fold(Calls::NONE, |all, (_, calls)| all.and(*calls)));
        }
        calls
    }

    /// Those of them that have all the arguments that the rule has conditions on, and could fit its modes: no other can match it.
    pub(crate) fn matched_by(rule: &Rule) -> Self {
        let kinds = &TABLES.of_kind;
        let calls = rule.when.kinds().fold(Calls::about(rule), |calls, kind| {
            let of_kind = kinds.iter().find(|(known, _)| *known == kind);
            calls.both(of_kind.map_or(Calls::NONE, |(_, of_kind)| *of_kind))
        });
        if rule.when.modes.is_empty() {
            return calls;
        }
        calls.both(Calls::that(|command, group| rule.when.could_need(group, command)))
    }

    pub(crate) fn and(self, other: Calls) -> Self {
        Calls(self.0 | other.0)
    }

    pub(crate) fn both(self, other: Calls) -> Self {
        Calls(self.0 & other.0)
    }

    pub(crate) fn without(self, other: Calls) -> Self {
        Calls(self.0 & !other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn is_in(self, other: Calls) -> bool {
        self.without(other).is_empty()
    }

    /// The calls in it, in the order of [`ALL`], with their numbers there.
    pub(crate) fn each(self) -> impl Iterator<Item = (usize, &'static Command, Group)> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros())?;
            left &= left.wrapping_sub(1);
            usize::try_from(bit).ok()
        })
        .filter_map(|bit| ALL.get(bit).map(|(command, group)| (bit, *command, *group)))
    }

    pub(crate) fn has(self, of: impl Fn(&'static Command, Group) -> bool) -> bool {
        self.each().any(|(_, command, group)| of(command, group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use authorize::{Conditions, Origin, Outcome, Pattern};

    #[test]
    fn every_call_has_a_bit() {
        assert!(ALL.len() <= 128, "{}: a larger integer is needed", ALL.len());
        assert_eq!(Calls::all().each().count(), ALL.len());
    }

    #[test]
    fn a_rule_is_about_what_the_decision_finds_it_to_be_about() {
        let mut rule = Rule::new(Outcome::Allow, Origin { place: "p".into(), line: 1 });
        rule.groups = vec![Group::FileWrite];
        rule.commands = vec![proto::find(Dialect::Qga, "guest-ping").unwrap().id()];
        rule.dialects = vec![Dialect::Qga];
        let calls = Calls::about(&rule);
        for (number, (command, group)) in ALL.iter().enumerate() {
            let is_in = calls.each().any(|(bit, ..)| bit == number);
            assert_eq!(is_in, rule.is_about(command, *group), "{} {group:?}", command.name());
        }
        rule.when = Conditions { paths: vec![Pattern::path("/a").unwrap()], ..Conditions::default() };
        let with_paths: Vec<&str> =
            Calls::matched_by(&rule).each().map(|(_, command, _)| command.name()).collect();
        assert_eq!(with_paths, ["guest-file-open", "guest-file-write", "guest-file-flush"]);
    }
}

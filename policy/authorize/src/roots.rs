//! Where the policy lets files be worked on at all: what the file worker's Landlock rules are made of.
//!
//! Pure; runs in the file worker before its jail is shut. The kernel enforces directories, which is coarser than patterns:
//! everything below a root that it lets through is still decided about by its path ([`decide`](crate::decide)).

use std::collections::{BTreeMap, BTreeSet};

use proto::{Command, Group};

use crate::{Outcome, Policy, Rule};

/// A path at and below which something may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Absolute.
    pub path: Vec<u8>,
    /// Whether files may be read and directories listed.
    pub read: bool,
    /// Whether anything may be changed or made.
    pub write: bool,
    /// Whether the path itself may be made, if it is not there: then what is made has to be made in the directory above.
    pub may_be_made: bool,
}

/// The most roots for reading, and for writing. With more of them, neighbours become one: the directory above them.
pub const ROOTS: usize = 128;

/// The commands that name a path; all others work on what one of these has opened.
const NAME_A_PATH: [&str; 8] = [
    "guest-file-open",
    "file-open",
    "get-file-md5sum",
    "file-chown",
    "file-chmod",
    "file-stat",
    "directory-create",
    "directory-list",
];

/// Paths, and whether each may be made.
type Places<'a> = BTreeMap<&'a [u8], bool>;

/// The roots of all rules that can allow something, no matter which channel asks.
pub fn roots(policy: &Policy) -> Vec<Root> {
    let read = few(places(policy, Group::FileRead));
    let write = few(places(policy, Group::FileWrite));
    let all: BTreeSet<&[u8]> = read.keys().chain(write.keys()).copied().collect();
    all.into_iter()
        .map(|path| Root {
            path: path.to_vec(),
            read: read.contains_key(path),
            write: write.contains_key(path),
            may_be_made: write.get(path).copied().unwrap_or(false),
        })
        .collect()
}

fn places(policy: &Policy, group: Group) -> Places<'_> {
    let (mut places, channels) = (Places::new(), policy.channels());
    let commands = proto::commands().filter(|command| {
        NAME_A_PATH.contains(&command.name()) && command.groups().any(|of_command| of_command == group)
    });
    for command in commands {
        for channel in &channels {
            for rule in policy.reachable(channel, command, group) {
                if rule.outcome == Outcome::Deny || !can_allow(rule, command, group) {
                    continue;
                }
                if rule.when.paths.is_empty() {
                    places.insert(b"/", false);
                }
                for pattern in &rule.when.paths {
                    let may_be_made = places.entry(pattern.anchor()).or_default();
                    *may_be_made |= pattern.matches(pattern.anchor());
                }
            }
        }
    }
    places
}

/// Whether its conditions beside the path leave anything of `group`: a rule for reading modes lets nobody write.
fn can_allow(rule: &Rule, command: &Command, group: Group) -> bool {
    let opens = matches!(command.name(), "guest-file-open" | "file-open");
    let writes = |mode: &String| mode.as_str() != "r";
    rule.when.modes.is_empty()
        || opens && rule.when.modes.iter().any(|mode| writes(mode) == (group == Group::FileWrite))
}

/// No more than [`ROOTS`], none of them below another.
fn few(places: Places<'_>) -> Places<'_> {
    let mut places = topmost(places);
    let mut depth = places.keys().map(|path| parts(path)).max().unwrap_or(0);
    while places.len() > ROOTS && depth > 0 {
        depth = depth.saturating_sub(1);
        places = topmost(
            places
                .into_iter()
                .map(|(path, made)| {
                    let cut = cut(path, depth);
                    (cut, made && cut == path)
                })
                .collect(),
        );
    }
    places
}

fn topmost(places: Places<'_>) -> Places<'_> {
    let mut top: Places<'_> = Places::new();
    for (path, made) in &places {
        // Some directory above it, found without looking at all others: all that are above it are its own beginnings.
        let above = (0..parts(path)).any(|depth| {
            let above = cut(path, depth);
            above.len() < path.len() && top.contains_key(above)
        });
        if !above {
            top.insert(path, *made);
        }
    }
    top
}

/// How many names the path has.
fn parts(path: &[u8]) -> usize {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).count()
}

/// The path's first `depth` names.
fn cut(path: &[u8], depth: usize) -> &[u8] {
    let mut slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    match (depth, slashes.nth(depth)) {
        (0, _) => b"/",
        (_, Some(end)) => path.get(..end).unwrap_or(path),
        (_, None) => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conditions, Origin, Pattern};
    use proptest::prelude::*;
    use proto::{Dialect, Request, file};

    fn rule(outcome: Outcome, groups: &[Group], paths: &[&str], modes: &[&str]) -> Rule {
        let when = Conditions {
            paths: paths.iter().map(|path| Pattern::path(path).unwrap()).collect(),
            modes: modes.iter().map(|mode| (*mode).to_owned()).collect(),
            ..Conditions::default()
        };
        let origin = Origin { place: "p".into(), line: 1 };
        Rule { groups: groups.to_vec(), when, ..Rule::new(outcome, origin) }
    }

    /// Each root with what may be done there.
    fn shown(rules: Vec<Rule>) -> Vec<String> {
        let policy = Policy::new("p", Vec::new(), rules);
        let flag = |set: bool, letter| if set { letter } else { "" };
        roots(&policy)
            .iter()
            .map(|root| {
                let flags = [(root.read, "r"), (root.write, "w"), (root.may_be_made, "m")];
                let flags: String = flags.map(|(set, letter)| flag(set, letter)).concat();
                format!("{flags} {}", String::from_utf8_lossy(&root.path))
            })
            .collect()
    }

    const READ: &[Group] = &[Group::FileRead];
    const WRITE: &[Group] = &[Group::FileWrite];
    const BOTH: &[Group] = &[Group::FileRead, Group::FileWrite];

    #[test]
    fn a_rule_without_paths_opens_everything() {
        assert_eq!(shown(vec![rule(Outcome::Allow, BOTH, &[], &[])]), ["rw /"]);
        assert_eq!(shown(vec![rule(Outcome::Allow, READ, &[], &[])]), ["r /"]);
        assert_eq!(shown(vec![rule(Outcome::Allow, &[Group::Query], &[], &[])]), [] as [&str; 0]);
    }

    #[test]
    fn reading_and_writing_have_roots_of_their_own() {
        let rules = vec![
            rule(Outcome::Allow, READ, &["/var/log/**", "/etc/*.conf"], &[]),
            rule(Outcome::Allow, WRITE, &["/var/lib/app/state", "/var/log/**"], &[]),
        ];
        assert_eq!(shown(rules), ["r /etc", "wm /var/lib/app/state", "rwm /var/log"]);
    }

    #[test]
    fn what_no_request_can_come_to_opens_nothing() {
        let rules = vec![
            rule(Outcome::Deny, WRITE, &[], &[]),
            rule(Outcome::Deny, READ, &["/srv/secret/**"], &[]),
            rule(Outcome::Allow, BOTH, &["/srv/**"], &[]),
            rule(Outcome::Allow, READ, &[], &[]),
        ];
        assert_eq!(shown(rules), ["r /"]);
        let rules = vec![
            rule(Outcome::Allow, BOTH, &["/srv/**"], &[]),
            rule(Outcome::Deny, &[], &[], &[]),
            rule(Outcome::Allow, BOTH, &[], &[]),
        ];
        assert_eq!(shown(rules), ["rwm /srv"]);
    }

    #[test]
    fn a_rule_for_reading_modes_lets_nobody_write() {
        let rules = vec![rule(Outcome::Allow, BOTH, &["/srv/**"], &["r"])];
        assert_eq!(shown(rules), ["r /srv"]);
        let rules = vec![rule(Outcome::Allow, BOTH, &["/srv/**"], &["a", "r+"])];
        assert_eq!(shown(rules), ["wm /srv"]);
    }

    #[test]
    fn a_rule_about_what_was_opened_opens_nothing() {
        let commands = vec![proto::find(Dialect::Qga, "guest-file-read").unwrap().id()];
        let read = Rule { commands, ..rule(Outcome::Allow, &[], &["/etc/**"], &[]) };
        assert_eq!(shown(vec![read]), [] as [&str; 0]);
    }

    #[test]
    fn what_lies_below_a_root_is_no_other() {
        let rules = vec![rule(Outcome::Allow, READ, &["/srv/a/**", "/srv/**", "/srv-b/**", "/srv/a/b"], &[])];
        assert_eq!(shown(rules), ["r /srv", "r /srv-b"]);
    }

    #[test]
    fn many_roots_become_few() {
        let paths: Vec<String> = (0..1000).map(|number| format!("/srv/{}/{number}", number % 100)).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let found = shown(vec![rule(Outcome::Allow, WRITE, &paths, &[])]);
        assert_eq!((found.len(), found[0].as_str()), (100, "w /srv/0"));
    }

    #[test]
    fn every_command_that_names_a_path_is_known() {
        for name in NAME_A_PATH {
            let command = proto::commands().find(|command| command.name() == name).unwrap();
            assert!(crate::Kind::Paths.commands().contains(&command.name()));
        }
        // And the others do not name one.
        let read = Request::from(file::Request::Read(file::Read { handle: 1, count: None }));
        assert!(crate::asked_path(&read).is_none());
        assert_eq!(NAME_A_PATH.len() + 8, crate::Kind::Paths.commands().len());
    }

    proptest! {
        #[test]
        fn roots_cover_what_the_patterns_match(
            paths in prop::collection::vec("(/[ab*]{1,2}){1,4}", 1..300),
            name in "(/[ab]{1,2}){1,4}",
        ) {
            let paths: Vec<&str> = paths.iter().map(String::as_str).filter(|path| Pattern::path(path).is_ok()).collect();
            prop_assume!(!paths.is_empty());
            let allow = rule(Outcome::Allow, READ, &paths, &[]);
            let matches = allow.when.paths.iter().any(|pattern| pattern.matches(name.as_bytes()));
            let roots = roots(&Policy::new("p", Vec::new(), vec![allow]));
            prop_assert!(roots.len() <= ROOTS);
            let covers = |root: &Root| {
                root.path == b"/" || root.path == name.as_bytes()
                    || name.as_bytes().strip_prefix(root.path.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
            };
            prop_assert!(!matches || roots.iter().any(covers));
        }
    }
}

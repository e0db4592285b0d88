//! qemu-ga's lists of commands, as a layer above the policy that takes away and never gives.
//!
//! The block list decides first, then the allow list, as in qemu-ga 9.1 and later (`qga/main.c`,
//! `ga_disable_not_allowed`). Unlike there, names are separated by comma or semicolon and trimmed, and unknown ones are reported.

use authorize::{Origin, Outcome, Rule};
use proto::{CommandId, Dialect};

use crate::RpcList;

/// The names in a list: separated by commas or semicolons, trimmed, none of them empty.
pub fn elements(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ';']).map(str::trim).filter(|name| !name.is_empty())
}

/// The names in `list` that are no commands of either dialect.
pub fn unknown_commands(list: &str) -> impl Iterator<Item = &str> {
    elements(list).filter(|name| ids(name).is_empty())
}

pub(crate) fn rules(allow: &[RpcList], block: &[RpcList], warnings: &mut Vec<String>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for list in block {
        rules.extend(rule(Outcome::Deny, list, warnings));
    }
    let mut lists = allow.iter().filter(|list| elements(&list.text).next().is_some()).peekable();
    if let Some(first) = lists.peek() {
        let rest = Rule::new(Outcome::Deny, first.origin.clone());
        rules.extend(lists.filter_map(|list| rule(Outcome::Allow, list, warnings)));
        rules.push(rest);
    }
    rules
}

/// None if the list names no command that there is: a rule without names would match all of them.
fn rule(outcome: Outcome, list: &RpcList, warnings: &mut Vec<String>) -> Option<Rule> {
    let unknown: Vec<&str> = unknown_commands(&list.text).collect();
    if !unknown.is_empty() {
        warnings.push(format!("{}: ignored, no such command: {}", list.origin, unknown.join(", ")));
    }
    let commands: Vec<CommandId> = elements(&list.text).flat_map(ids).collect();
    if commands.is_empty() {
        return None;
    }
    let origin: Origin = list.origin.clone();
    Some(Rule { commands, ..Rule::new(outcome, origin) })
}

pub(crate) fn ids(name: &str) -> Vec<CommandId> {
    [Dialect::Qga, Dialect::Phoenix]
        .into_iter()
        .filter_map(|dialect| proto::find(dialect, name))
        .map(proto::Command::id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use authorize::{Asker, Policy, authorize};
    use proto::{NoArguments, Request, agent, query};

    fn list(place: &str, text: &str) -> RpcList {
        RpcList { origin: Origin { place: place.into(), line: 0 }, text: text.to_owned() }
    }

    /// What is left under the two lists when the policy allows everything: time, osinfo, ping.
    fn left(allow: &str, block: &str) -> (Vec<&'static str>, Vec<String>) {
        let mut warnings = Vec::new();
        let layer = rules(&[list("--allow-rpcs", allow)], &[list("--block-rpcs", block)], &mut warnings);
        let everything =
            crate::language::read("preset qemu-ga", crate::preset("qemu-ga").unwrap()).ok().unwrap().rules;
        let policy = Policy::new("qemu-ga", layer, everything);
        let requests: [Request; 3] = [
            query::Request::Load(NoArguments {}).into(),
            query::Request::Users(NoArguments {}).into(),
            agent::Request::Ping(NoArguments {}).into(),
        ];
        let allowed = requests
            .into_iter()
            .filter_map(|request| authorize(&policy, Asker { channel: "a", frozen: false }, request).ok())
            .map(|permitted| permitted.request().command().name())
            .collect();
        (allowed, warnings)
    }

    #[test]
    fn a_list_is_separated_by_commas_or_semicolons_trimmed_and_may_have_empty_elements() {
        let names: Vec<&str> = elements(" a, b ;;c,\t,d;").collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }

    #[test]
    fn empty_lists_take_nothing_away() {
        assert_eq!(left("", " , ;"), (vec!["guest-get-load", "guest-get-users", "guest-ping"], vec![]));
    }

    #[test]
    fn a_blocked_command_is_denied_and_others_are_not() {
        assert_eq!(left("", "guest-get-users; guest-get-load").0, ["guest-ping"]);
    }

    #[test]
    fn an_allow_list_denies_everything_else_even_ping() {
        assert_eq!(left("guest-get-users", "").0, ["guest-get-users"]);
    }

    #[test]
    fn a_blocked_command_stays_blocked_when_it_is_allowed_too() {
        assert_eq!(left("guest-get-users,guest-ping", "guest-ping").0, ["guest-get-users"]);
    }

    #[test]
    fn an_allow_list_of_unknown_names_denies_everything_and_names_them() {
        let warning = "--allow-rpcs: ignored, no such command: guest-frob, x";
        assert_eq!(left("guest-frob;x", ""), (vec![], vec![warning.to_owned()]));
    }

    #[test]
    fn a_block_list_of_unknown_names_blocks_nothing_and_names_them() {
        let (allowed, warnings) = left("", "guest-frob");
        assert_eq!(allowed.len(), 3);
        assert_eq!(warnings, ["--block-rpcs: ignored, no such command: guest-frob"]);
    }
}

//! The policy language: TOML with ordered rules.
//!
//! ```toml
//! version = 1
//! include = "observe"       # optional: a preset, asked after the own rules
//! [[rule]]
//! outcome = "allow"         # or "deny"
//! commands = ["guest-exec"] # by name; or
//! groups = ["file.read"]    # by right; either is enough, neither means every command
//! channels = ["a"]          # only on these
//! dialects = ["qga"]        # only in these
//! ```
//!
//! What is not understood is an error, never ignored: a rule that says less than its author meant would be worse than none.

use std::ops::Range;

use authorize::{Origin, Outcome, Rule};
use proto::{CommandId, Dialect, Group};
use serde::Deserialize;
use toml::Spanned;

use crate::complaint::line_of;
use crate::{Complaint, closest, layer, presets};

/// The one version of the language.
const VERSION: i64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: Option<Spanned<i64>>,
    include: Option<Spanned<String>>,
    #[serde(default)]
    rule: Vec<Spanned<Written>>,
}

/// A rule as it was written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    outcome: Spanned<String>,
    commands: Option<Spanned<Vec<Spanned<String>>>>,
    groups: Option<Spanned<Vec<Spanned<String>>>>,
    channels: Option<Spanned<Vec<Spanned<String>>>>,
    dialects: Option<Spanned<Vec<Spanned<String>>>>,
}

/// The rules of `text`, in the order in which they are asked.
pub(crate) fn rules(file: &str, text: &str) -> Result<Vec<Rule>, Complaint> {
    rules_within(file, text, true)
}

fn rules_within(file: &str, text: &str, may_include: bool) -> Result<Vec<Rule>, Complaint> {
    let reader = Reader { file, text };
    let document: Document = toml::from_str(text).map_err(|error| Complaint::of_toml(file, text, &error))?;
    match document.version {
        Some(version) if *version.get_ref() == VERSION => {}
        Some(version) => {
            let reason =
                format!("version {} of the language is not known; this is version 1", version.get_ref());
            return Err(reader.complaint(version.span(), &reason));
        }
        None => return Err(reader.complaint(0..0, "`version = 1` is missing")),
    }
    let mut rules = Vec::with_capacity(document.rule.len());
    for written in document.rule {
        rules.push(reader.rule(written)?);
    }
    if let Some(include) = document.include {
        let name = include.get_ref();
        if !may_include {
            return Err(reader.complaint(include.span(), "a preset includes no other"));
        }
        let preset = presets::preset(name)
            .ok_or_else(|| reader.complaint(include.span(), &presets::unknown_preset(name)))?;
        rules.extend(rules_within(&format!("preset {name}"), preset, false)?);
    }
    Ok(rules)
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn rule(&self, written: Spanned<Written>) -> Result<Rule, Complaint> {
        let origin = Origin { place: self.file.to_owned(), line: line_of(self.text, written.span().start) };
        let written = written.into_inner();
        let outcome = match written.outcome.get_ref().as_str() {
            "allow" => Outcome::Allow,
            "deny" => Outcome::Deny,
            other => {
                let reason = format!("unknown outcome \"{other}\"; it is \"allow\" or \"deny\"");
                return Err(self.complaint(written.outcome.span(), &reason));
            }
        };
        let commands: Vec<Vec<CommandId>> = self.each(written.commands, "command", |name| {
            let ids = layer::ids(name);
            if ids.is_empty() {
                Err(closest(name, proto::commands().flat_map(|command| command.names.iter().copied())))
            } else {
                Ok(ids)
            }
        })?;
        let groups = self.each(written.groups, "group", |name| {
            let found = Group::ALL.iter().copied().find(|group| group.name() == name);
            found.ok_or_else(|| closest(name, Group::ALL.iter().map(|group| group.name())))
        })?;
        let dialects = self.each(written.dialects, "dialect", |name| {
            const ALL: [Dialect; 2] = [Dialect::Qga, Dialect::Phoenix];
            let found = ALL.into_iter().find(|dialect| dialect.name() == name);
            found.ok_or_else(|| closest(name, ALL.map(Dialect::name)))
        })?;
        let channels = self.each(written.channels, "channel", |name| {
            if name.is_empty() { Err(None) } else { Ok(name.to_owned()) }
        })?;
        let commands = commands.into_iter().flatten().collect();
        Ok(Rule { commands, groups, channels, dialects, ..Rule::new(outcome, origin) })
    }

    /// Reads a list of names. An empty one is an error: it would be no condition, which nobody means who writes it.
    fn each<T>(
        &self,
        list: Option<Spanned<Vec<Spanned<String>>>>,
        what: &str,
        read: impl Fn(&str) -> Result<T, Option<&'static str>>,
    ) -> Result<Vec<T>, Complaint> {
        let Some(list) = list else { return Ok(Vec::new()) };
        if list.get_ref().is_empty() {
            let reason = format!("an empty list matches nothing; leave `{what}s` out to match all");
            return Err(self.complaint(list.span(), &reason));
        }
        list.into_inner()
            .into_iter()
            .map(|name| {
                read(name.get_ref()).map_err(|meant| {
                    let hint = meant.map(|meant| format!("; did you mean \"{meant}\"?")).unwrap_or_default();
                    let reason = format!("unknown {what} \"{}\"{hint}", name.get_ref());
                    self.complaint(name.span(), &reason)
                })
            })
            .collect()
    }

    fn complaint(&self, span: Range<usize>, reason: &str) -> Complaint {
        Complaint::new(self.file, self.text, span, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use authorize::{Asker, Policy, authorize};
    use proto::{NoArguments, Request, exec, file, net, query};

    fn wrong(text: &str) -> String {
        rules("p.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn rules_keep_their_order_and_know_their_lines() {
        let text = "version = 1\n\n[[rule]]\noutcome = \"deny\"\ncommands = [\"guest-exec\"]\n\n\
                    [[rule]]\noutcome = \"allow\"\ngroups = [\"exec\"]\nchannels = [\"a\"]\ndialects = [\"qga\"]\n";
        let found = rules("p.toml", text).unwrap();
        let shown: Vec<_> = found.iter().map(|rule| (rule.outcome, rule.origin.to_string())).collect();
        assert_eq!(shown, [(Outcome::Deny, "p.toml:3".to_owned()), (Outcome::Allow, "p.toml:7".to_owned())]);
        assert_eq!(found[0].commands, layer::ids("guest-exec"));
        assert_eq!(found[1].groups, [Group::Exec]);
        assert_eq!(
            (found[1].channels.as_slice(), found[1].dialects.as_slice()),
            (&["a".to_owned()][..], &[Dialect::Qga][..])
        );
    }

    #[test]
    fn a_name_of_both_dialects_means_both() {
        let found =
            rules("p.toml", "version = 1\n[[rule]]\noutcome = \"deny\"\ncommands = [\"ping\"]\n").unwrap();
        assert_eq!(found[0].commands, [proto::find(Dialect::Phoenix, "ping").unwrap().id()]);
    }

    #[test]
    fn included_rules_are_asked_after_the_own_ones() {
        let text = "version = 1\ninclude = \"observe\"\n[[rule]]\noutcome = \"deny\"\ngroups = [\"query\"]\n";
        let places: Vec<String> =
            rules("p.toml", text).unwrap().iter().map(|rule| rule.origin.to_string()).collect();
        assert_eq!(places, ["p.toml:3", "preset observe:8"]);
    }

    #[test]
    fn an_unknown_command_is_shown_with_the_one_that_was_meant() {
        assert_eq!(
            wrong(
                "version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-ping\", \"guest-exce\"]\n"
            ),
            "p.toml:4: unknown command \"guest-exce\"; did you mean \"guest-exec\"?\n\
             \x20 commands = [\"guest-ping\", \"guest-exce\"]\n\
             \x20                           ^^^^^^^^^^^^"
        );
    }

    #[test]
    fn an_unknown_group_is_shown() {
        assert_eq!(
            wrong("version = 1\n[[rule]]\noutcome = \"allow\"\ngroups = [\"files\"]\n"),
            "p.toml:4: unknown group \"files\"\n  groups = [\"files\"]\n            ^^^^^^^"
        );
    }

    #[test]
    fn an_unknown_key_is_shown() {
        assert_eq!(
            wrong("version = 1\n[[rule]]\noutcome = \"allow\"\ncommand = [\"guest-exec\"]\n"),
            "p.toml:4: unknown field `command`, expected one of `outcome`, `commands`, `groups`, `channels`, `dialects`\n\
             \x20 command = [\"guest-exec\"]\n\
             \x20 ^^^^^^^"
        );
        assert_eq!(
            wrong("version = 1\nrules = []\n"),
            "p.toml:2: unknown field `rules`, expected one of `version`, `include`, `rule`\n  rules = []\n  ^^^^^"
        );
    }

    #[test]
    fn another_version_or_none_is_refused() {
        assert_eq!(
            wrong("version = 2\n"),
            "p.toml:1: version 2 of the language is not known; this is version 1\n  version = 2\n            ^"
        );
        assert_eq!(
            wrong("[[rule]]\noutcome = \"allow\"\n"),
            "p.toml:1: `version = 1` is missing\n  [[rule]]\n  ^"
        );
        assert_eq!(wrong(""), "p.toml:1: `version = 1` is missing\n  \n  ^");
    }

    #[test]
    fn a_rule_without_outcome_or_with_another_is_refused() {
        assert_eq!(
            wrong("version = 1\n[[rule]]\ngroups = [\"exec\"]\n"),
            "p.toml:2: missing field `outcome`\n  [[rule]]\n  ^^^^^^^^"
        );
        assert_eq!(
            wrong("version = 1\n[[rule]]\noutcome = \"permit\"\n"),
            "p.toml:3: unknown outcome \"permit\"; it is \"allow\" or \"deny\"\n  outcome = \"permit\"\n            ^^^^^^^^"
        );
    }

    #[test]
    fn an_empty_list_is_refused_because_it_would_match_everything() {
        assert_eq!(
            wrong("version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = []\n"),
            "p.toml:4: an empty list matches nothing; leave `commands` out to match all\n  commands = []\n             ^^"
        );
    }

    #[test]
    fn text_that_is_no_toml_is_shown_where_it_stops_being_some() {
        assert_eq!(
            wrong("version = 1\nrule [\n"),
            "p.toml:2: key with no value, expected `=`\n  rule [\n       ^"
        );
    }

    #[test]
    fn an_unknown_preset_is_named_with_those_there_are() {
        assert_eq!(
            wrong("version = 1\ninclude = \"rhel9\"\n"),
            "p.toml:2: there is no preset \"rhel9\"; there are qemu-ga, observe\n  include = \"rhel9\"\n            ^^^^^^^"
        );
    }

    #[test]
    fn the_presets_compile_and_are_no_wider_than_they_say() {
        let policy =
            |name: &str| Policy::new(name, Vec::new(), rules(name, crate::preset(name).unwrap()).unwrap());
        let allowed = |policy: &Policy, request: Request| {
            authorize(policy, Asker { channel: "a", frozen: false }, request).is_ok()
        };
        let status = || Request::from(exec::Request::Status(exec::Status { pid: 1 }));
        let flush = || Request::from(file::Request::Flush(file::OfHandle { handle: 1 }));
        let load = || Request::from(query::Request::Load(NoArguments {}));
        let routes = || Request::from(net::Request::Routes(NoArguments {}));
        let observe = policy("observe");
        assert!(!allowed(&observe, status()) && !allowed(&observe, flush()));
        assert!(allowed(&observe, load()) && allowed(&observe, routes()));
        let everything = policy("qemu-ga");
        assert!(allowed(&everything, status()) && allowed(&everything, flush()));
        assert!(allowed(&everything, load()) && allowed(&everything, routes()));
    }
}

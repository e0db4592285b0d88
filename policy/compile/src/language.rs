//! The policy language: TOML with ordered rules.
//!
//! ```toml
//! version = 1
//! include = "observe"       # optional: presets, asked after everybody's own rules
//! [[rule]]
//! outcome = "allow"         # "deny", or "redact"
//! commands = ["guest-exec"] # by name; or
//! groups = ["file.read"]    # by right; either is enough, neither means every command
//! paths = ["/var/log/**"]   # a condition on the arguments; docs/policy.md has them all
//! ```
//!
//! What is not understood is an error, never ignored: a rule that says less than its author meant would be worse than none. So is a
//! rule that can never match.

use std::ops::Range;
use std::sync::Arc;

use authorize::{
    Argument, BadPattern, Conditions, Kind, Member, Network, Origin, Outcome, Pattern, PowerMode, Program,
    Record, Redaction, Rule, RunAs, Terms,
};
use proto::{CommandId, Dialect, Group};
use serde::Deserialize;
use toml::Spanned;

use crate::complaint::Lines;
use crate::{Complaint, closest, layer, presets};

/// The one version of the language.
const VERSION: i64 = 1;

/// fopen(3)'s modes without `b`.
const MODES: [(&str, ()); 6] = [("r", ()), ("r+", ()), ("w", ()), ("w+", ()), ("a", ()), ("a+", ())];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: Option<Spanned<i64>>,
    include: Option<Spanned<Include>>,
    #[serde(default)]
    rule: Vec<Spanned<Written>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`include` is the name of a preset, or a list of such names")]
enum Include {
    One(String),
    Several(Vec<String>),
}

type Texts = Option<Spanned<Vec<Spanned<String>>>>;

/// A rule as it was written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    outcome: Spanned<String>,
    commands: Texts,
    groups: Texts,
    channels: Texts,
    dialects: Texts,
    paths: Texts,
    modes: Texts,
    users: Texts,
    uids: Texts,
    interfaces: Texts,
    networks: Texts,
    mountpoints: Texts,
    units: Texts,
    power: Texts,
    #[serde(default)]
    program: Vec<Spanned<WrittenProgram>>,
    text: Option<Spanned<String>>,
    record: Option<Spanned<String>>,
    limits: Option<Spanned<WrittenLimits>>,
    redact: Option<Spanned<WrittenRedaction>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenProgram {
    path: Spanned<String>,
    arguments: Option<Spanned<Vec<Spanned<WrittenArgument>>>>,
    environment: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    input: bool,
}

/// One argument: a word, or a table with one of the keys.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "an argument is a word, { one-of = [\"a\", \"b\"] }, { like = \"a*\" }, { any = true } or { rest = true }"
)]
enum WrittenArgument {
    Word(String),
    Table(ArgumentTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ArgumentTable {
    one_of: Option<Vec<String>>,
    like: Option<String>,
    #[serde(default)]
    any: bool,
    #[serde(default)]
    rest: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenLimits {
    request_bytes: Option<u64>,
    handle_bytes: Option<u64>,
    open_files: Option<u32>,
    requests_per_second: Option<Spanned<u32>>,
    run_seconds: Option<Spanned<u32>>,
    output_bytes: Option<u64>,
    run_as: Option<Spanned<String>>,
    freeze_seconds: Option<Spanned<u32>>,
    clock_step_seconds: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRedaction {
    interfaces: Texts,
    mountpoints: Texts,
    users: Texts,
    disks: Texts,
    members: Texts,
}

/// The rules of one text, and those of the presets that it includes.
pub(crate) struct Read {
    /// In the order in which they are asked.
    pub(crate) rules: Vec<Rule>,
    /// To be asked after the rules of all texts.
    pub(crate) included: Vec<Rule>,
}

/// Complaints about one text at most; more of them help nobody.
const COMPLAINTS: usize = 50;

/// Reads a text; `Err` has what is wrong with each of its rules, the first thing first.
pub(crate) fn read(file: &str, text: &str) -> Result<Read, Vec<Complaint>> {
    let reader = Reader { file, text, lines: Lines::of(text) };
    let document = reader.document().map_err(|complaint| vec![complaint])?;
    let mut rules = Vec::with_capacity(document.rule.len());
    let mut wrong = Vec::new();
    for written in document.rule {
        match reader.rule(written) {
            Ok(rule) => rules.push(rule),
            Err(complaint) => wrong.push(complaint),
        }
        if wrong.len() >= COMPLAINTS {
            break;
        }
    }
    let mut included = Vec::new();
    if let Some(include) = document.include {
        let span = include.span();
        let names = match include.into_inner() {
            Include::One(name) => vec![name],
            Include::Several(names) => names,
        };
        for name in names {
            let Some(preset) = presets::preset(&name) else {
                wrong.push(reader.complaint(span.clone(), &presets::unknown_preset(&name)));
                continue;
            };
            let of_preset = read(&format!("preset {name}"), preset)?;
            included.extend(of_preset.rules);
            included.extend(of_preset.included);
        }
    }
    wrong.sort_by_key(Complaint::line);
    if wrong.is_empty() { Ok(Read { rules, included }) } else { Err(wrong) }
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    lines: Lines,
}

impl Reader<'_> {
    fn document(&self) -> Result<Document, Complaint> {
        let (reader, file, text) = (self, self.file, self.text);
        let document: Document =
            toml::from_str(text).map_err(|error| Complaint::of_toml(file, text, &error))?;
        match &document.version {
            Some(version) if *version.get_ref() == VERSION => {}
            Some(version) => {
                let reason =
                    format!("version {} of the language is not known; this is version 1", version.get_ref());
                return Err(reader.complaint(version.span(), &reason));
            }
            None => return Err(reader.complaint(0..0, "`version = 1` is missing")),
        }
        Ok(document)
    }

    fn rule(&self, written: Spanned<Written>) -> Result<Rule, Complaint> {
        let span = written.span();
        let origin = Origin { place: self.file.into(), line: self.lines.of_offset(span.start) };
        let written = written.into_inner();
        let outcome = self.outcome(&written.outcome)?;
        let mut rule = Rule::new(outcome, origin);
        let commands: Vec<Vec<CommandId>> = self.each(written.commands, "command", |name| {
            let ids = layer::ids(name);
            if ids.is_empty() {
                Err(unknown(
                    "command",
                    name,
                    closest(name, proto::commands().flat_map(|command| command.names.iter().copied())),
                ))
            } else {
                Ok(ids)
            }
        })?;
        rule.commands = commands.into_iter().flatten().collect();
        let groups: Vec<(&str, Group)> = Group::ALL.iter().map(|group| (group.name(), *group)).collect();
        rule.groups = self.each(written.groups, "group", |name| one_of("group", name, &groups))?;
        let dialects = [Dialect::Qga, Dialect::Phoenix].map(|dialect| (dialect.name(), dialect));
        rule.dialects = self.each(written.dialects, "dialect", |name| one_of("dialect", name, &dialects))?;
        rule.channels = self.each(written.channels, "channel", |name| {
            if name.is_empty() { Err("a channel has a name".to_owned()) } else { Ok(name.to_owned()) }
        })?;
        rule.when = Conditions {
            paths: self.each(written.paths, "path", path)?,
            modes: self
                .each(written.modes, "mode", |mode| one_of("mode", mode, &MODES).map(|()| mode.to_owned()))?,
            users: self.each(written.users, "user", name)?,
            uids: self.each(written.uids, "uid", range)?,
            interfaces: self.each(written.interfaces, "interface", name)?,
            networks: self.each(written.networks, "network", network)?,
            mountpoints: self.each(written.mountpoints, "mountpoint", path)?,
            units: self.each(written.units, "unit", range)?,
            power: self.each(written.power, "power", |mode| one_of("power mode", mode, &PowerMode::ALL))?,
            programs: written
                .program
                .into_iter()
                .map(|program| self.program(program.into_inner()))
                .collect::<Result<_, _>>()?,
        };
        self.can_match(&rule, &span)?;
        let redact_span = written.redact.as_ref().map(Spanned::span);
        let redaction = written.redact.map(|redact| self.redaction(redact.into_inner())).transpose()?;
        match (outcome, redact_span) {
            (Outcome::Redact, None) => {
                return Err(self.complaint(
                    written.outcome.span(),
                    "\"redact\" needs to know what is left out: add `[rule.redact]`",
                ));
            }
            (Outcome::Allow | Outcome::Deny, Some(span)) => {
                return Err(
                    self.complaint(span, "only a rule whose outcome is \"redact\" leaves something out")
                );
            }
            _ => {}
        }
        if let (Outcome::Deny, Some(limits)) = (outcome, &written.limits) {
            return Err(self.complaint(limits.span(), "a rule that refuses has no limits"));
        }
        if let (Outcome::Deny, Some(record)) = (outcome, &written.record) {
            return Err(self.complaint(record.span(), "what is refused is recorded with its arguments"));
        }
        let record = written.record.map(|record| {
            one_of("record", record.get_ref(), &Record::ALL)
                .map_err(|why| self.complaint(record.span(), &why))
        });
        let mut terms = match written.limits {
            Some(limits) => self.limits(limits.into_inner())?,
            None => Terms::default(),
        };
        terms.redaction = redaction.unwrap_or_default();
        terms.record = record.transpose()?.unwrap_or_default();
        rule.terms = (terms != Terms::default()).then(|| Arc::new(terms));
        rule.text = written.text.map(|text| self.text(text, outcome)).transpose()?;
        Ok(rule)
    }

    fn outcome(&self, written: &Spanned<String>) -> Result<Outcome, Complaint> {
        const ALL: [Outcome; 3] = [Outcome::Allow, Outcome::Deny, Outcome::Redact];
        ALL.into_iter().find(|outcome| outcome.name() == written.get_ref()).ok_or_else(|| {
            let reason =
                format!("unknown outcome \"{}\"; it is \"allow\", \"deny\" or \"redact\"", written.get_ref());
            self.complaint(written.span(), &reason)
        })
    }

    /// A rule with conditions must be about a command that has such arguments, all of them.
    fn can_match(&self, rule: &Rule, span: &Range<usize>) -> Result<(), Complaint> {
        let kinds: Vec<Kind> = rule.when.kinds().collect();
        let fits = |command: &'static proto::Command| {
            command.groups().any(|group| rule.is_about(command, group))
                && kinds.iter().all(|kind| kind.commands().contains(&command.name()))
        };
        if proto::commands().any(fits) {
            return Ok(());
        }
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let reason = match names.as_slice() {
            [] => "this rule can never match: none of its commands is in its dialect".to_owned(),
            names => format!("this rule can never match: none of its commands has {}", names.join(" and ")),
        };
        Err(self.complaint(span.clone(), &reason))
    }

    fn program(&self, written: WrittenProgram) -> Result<Program, Complaint> {
        let executable = |text: &str| {
            // Without a slash it is looked up in PATH, which the rule then trusts.
            if text.contains('/') { path(text) } else { name(text) }
        };
        let path =
            executable(written.path.get_ref()).map_err(|why| self.complaint(written.path.span(), &why))?;
        let arguments = match written.arguments {
            None => None,
            Some(list) => {
                let list = list.into_inner();
                let last = list.len().saturating_sub(1);
                let arguments = list.into_iter().enumerate().map(|(position, argument)| {
                    let span = argument.span();
                    let read = self.argument(argument)?;
                    if read == Argument::Rest && position != last {
                        return Err(self.complaint(span, "`rest` is for the last argument"));
                    }
                    Ok(read)
                });
                Some(arguments.collect::<Result<_, _>>()?)
            }
        };
        let environment = match written.environment {
            None => None,
            // An empty list means something here: nothing may be set.
            Some(list) => Some(
                list.into_inner()
                    .into_iter()
                    .map(|entry| name(entry.get_ref()).map_err(|why| self.complaint(entry.span(), &why)))
                    .collect::<Result<_, _>>()?,
            ),
        };
        Ok(Program { path, arguments, environment, input: written.input })
    }

    fn argument(&self, written: Spanned<WrittenArgument>) -> Result<Argument, Complaint> {
        let span = written.span();
        let table = match written.into_inner() {
            WrittenArgument::Word(word) => return Ok(Argument::OneOf(vec![word.into_bytes()])),
            WrittenArgument::Table(table) => table,
        };
        match table {
            ArgumentTable { one_of: Some(words), like: None, any: false, rest: false } if !words.is_empty() => {
                Ok(Argument::OneOf(words.into_iter().map(String::into_bytes).collect()))
            }
            ArgumentTable { one_of: None, like: Some(pattern), any: false, rest: false } => {
                name(&pattern).map(Argument::Like).map_err(|why| self.complaint(span, &why))
            }
            ArgumentTable { one_of: None, like: None, any: true, rest: false } => Ok(Argument::Any),
            ArgumentTable { one_of: None, like: None, any: false, rest: true } => Ok(Argument::Rest),
            _ => Err(self.complaint(
                span,
                "an argument is a word, { one-of = [\"a\", \"b\"] }, { like = \"a*\" }, { any = true } or { rest = true }",
            )),
        }
    }

    fn limits(&self, written: WrittenLimits) -> Result<Terms, Complaint> {
        let run_as = written.run_as.map(|run_as| {
            let ids = run_as.get_ref().split_once(':').and_then(|(uid, gid)| Some((id(uid)?, id(gid)?)));
            ids.map(|(uid, gid)| RunAs { uid, gid }).ok_or_else(|| {
                self.complaint(run_as.span(), "`run-as` is two numbers, user and group, as in \"1000:1000\"")
            })
        });
        let some = |limit: Option<Spanned<u32>>, nothing: &str| match limit {
            Some(limit) if *limit.get_ref() == 0 => {
                Err(self.complaint(limit.span(), &format!("{nothing} at all is a rule that refuses")))
            }
            limit => Ok(limit.map(Spanned::into_inner)),
        };
        Ok(Terms {
            request_bytes: written.request_bytes,
            handle_bytes: written.handle_bytes,
            open_files: written.open_files,
            requests_per_second: some(written.requests_per_second, "no request")?,
            run_seconds: some(written.run_seconds, "no time")?,
            output_bytes: written.output_bytes,
            run_as: run_as.transpose()?,
            freeze_seconds: some(written.freeze_seconds, "no time")?,
            clock_step_seconds: some(written.clock_step_seconds, "no step")?,
            redaction: Redaction::default(),
            record: Record::default(),
        })
    }

    fn redaction(&self, written: WrittenRedaction) -> Result<Redaction, Complaint> {
        Ok(Redaction {
            interfaces: self.each(written.interfaces, "interface", name)?,
            mountpoints: self.each(written.mountpoints, "mountpoint", path)?,
            users: self.each(written.users, "user", name)?,
            disks: self.each(written.disks, "disk", path)?,
            members: self.each(written.members, "member", |name| one_of("member", name, &Member::ALL))?,
        })
    }

    fn text(&self, written: Spanned<String>, outcome: Outcome) -> Result<String, Complaint> {
        const LONGEST: usize = 512;
        let text = written.get_ref();
        if outcome != Outcome::Deny {
            return Err(self.complaint(written.span(), "only a rule that refuses has a text"));
        }
        if text.is_empty() || text.len() > LONGEST || text.chars().any(char::is_control) {
            let reason =
                "a text has 1 to 512 bytes and no control characters: it goes to the host in one line";
            return Err(self.complaint(written.span(), reason));
        }
        Ok(written.into_inner())
    }

    /// Reads a list. An empty one is an error: it would be no condition, which nobody means who writes it.
    fn each<T>(
        &self,
        list: Texts,
        what: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Complaint> {
        let Some(list) = list else { return Ok(Vec::new()) };
        if list.get_ref().is_empty() {
            let reason = format!("an empty list matches nothing; leave `{what}s` out to match all");
            return Err(self.complaint(list.span(), &reason));
        }
        list.into_inner()
            .into_iter()
            .map(|text| read(text.get_ref()).map_err(|reason| self.complaint(text.span(), &reason)))
            .collect()
    }

    fn complaint(&self, span: Range<usize>, reason: &str) -> Complaint {
        Complaint::new(self.file, self.text, span, reason)
    }
}

fn unknown(what: &str, name: &str, meant: Option<&str>) -> String {
    let hint = meant.map(|meant| format!("; did you mean \"{meant}\"?")).unwrap_or_default();
    format!("unknown {what} \"{name}\"{hint}")
}

fn one_of<T: Copy>(what: &str, name: &str, known: &[(&'static str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names = || known.iter().map(|(name, _)| *name);
        match closest(name, names()) {
            None if known.len() <= 6 => {
                format!("unknown {what} \"{name}\"; it is one of {}", names().collect::<Vec<_>>().join(", "))
            }
            meant => unknown(what, name, meant),
        }
    })
}

fn name(text: &str) -> Result<Pattern, String> {
    Pattern::name(text).map_err(|why: BadPattern| why.to_string())
}

fn path(text: &str) -> Result<Pattern, String> {
    Pattern::path(text).map_err(|why| why.to_string())
}

fn network(text: &str) -> Result<Network, String> {
    match Network::parse(text) {
        Some(network) if network.has_host_bits() => {
            Err(format!("bits behind the prefix are set in \"{text}\": is it an address, or a network?"))
        }
        Some(network) => Ok(network),
        None => Err(format!("\"{text}\" is no network such as 10.0.0.0/8 or fd00::/8")),
    }
}

/// `N` or `N-M`.
fn range<N: std::str::FromStr + PartialOrd + Copy>(text: &str) -> Result<(N, N), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<N>(), last.parse::<N>()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("\"{text}\" is no number and no range such as \"1-3\"")),
    }
}

/// A user's or group's number; 4294967295 means "leave it" to the kernel.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use authorize::{Asker, Policy, authorize};
    use proto::{NoArguments, Request, exec, file, net, query};

    fn rules(file: &str, text: &str) -> Result<Vec<Rule>, Complaint> {
        let read = read(file, text).map_err(|wrong| wrong.into_iter().next().unwrap())?;
        Ok(read.rules.into_iter().chain(read.included).collect())
    }

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
    fn each_rule_that_is_wrong_is_complained_of() {
        let text = "version = 1\ninclude = \"obsevre\"\n[[rule]]\noutcome = \"alow\"\n[[rule]]\noutcome = \"allow\"\n\
                    [[rule]]\noutcome = \"deny\"\ngroups = [\"x\"]\n";
        let wrong = read("p.toml", text).err().unwrap();
        let lines: Vec<usize> = wrong.iter().map(Complaint::line).collect();
        assert_eq!(lines, [2, 4, 9]);
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
            "p.toml:4: unknown field `command`, expected one of `outcome`, `commands`, `groups`, `channels`, `dialects`, `paths`, `modes`, `users`, `uids`, `interfaces`, `networks`, `mountpoints`, `units`, `power`, `program`, `text`, `record`, `limits`, `redact`\n\
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
            "p.toml:3: unknown outcome \"permit\"; it is \"allow\", \"deny\" or \"redact\"\n  outcome = \"permit\"\n            ^^^^^^^^"
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
        let shown = wrong("version = 1\ninclude = \"rhel9\"\n");
        let reason =
            "p.toml:2: there is no preset \"rhel9\"; did you mean \"rhel\"? there are qemu-ga, rhel, ";
        assert!(
            shown.starts_with(reason) && shown.ends_with("  include = \"rhel9\"\n            ^^^^^^^"),
            "{shown}"
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

    fn rule(text: &str) -> Rule {
        rules("p.toml", &format!("version = 1\n[[rule]]\n{text}")).unwrap().remove(0)
    }

    #[test]
    fn every_condition_is_read() {
        let when = rule(
            "outcome = \"allow\"\ngroups = [\"file.read\"]\npaths = [\"/var/log/**\"]\nmodes = [\"r\"]\n",
        )
        .when;
        assert_eq!(when.paths, [Pattern::path("/var/log/**").unwrap()]);
        assert_eq!(when.modes, ["r"]);
        let when = rule("outcome = \"allow\"\ngroups = [\"account\"]\nusers = [\"deploy-*\"]\nuids = [\"1000-1999\", \"7\"]\n").when;
        assert_eq!(
            (when.users, when.uids),
            (vec![Pattern::name("deploy-*").unwrap()], vec![(1000, 1999), (7, 7)])
        );
        let when = rule("outcome = \"deny\"\ngroups = [\"net.change\"]\ninterfaces = [\"eth*\"]\nnetworks = [\"10.0.0.0/8\"]\n").when;
        assert_eq!((when.interfaces.len(), when.networks), (1, vec![Network::parse("10.0.0.0/8").unwrap()]));
        let when = rule("outcome = \"allow\"\ngroups = [\"fsfreeze\"]\nmountpoints = [\"/srv/**\"]\n").when;
        assert_eq!(when.mountpoints.len(), 1);
        let when = rule("outcome = \"allow\"\ngroups = [\"hotplug\"]\nunits = [\"1-3\"]\n").when;
        assert_eq!(when.units, [(1, 3)]);
        let when =
            rule("outcome = \"allow\"\ngroups = [\"power\"]\npower = [\"reboot\", \"suspend-ram\"]\n").when;
        assert_eq!(when.power, [PowerMode::Reboot, PowerMode::SuspendRam]);
    }

    #[test]
    fn a_program_is_read_with_its_arguments() {
        let text = "outcome = \"allow\"\ngroups = [\"exec\"]\n[[rule.program]]\npath = \"/usr/bin/systemctl\"\n\
                    arguments = [\"restart\", { one-of = [\"nginx\", \"php\"] }, { like = \"*.service\" }, { any = true }, { rest = true }]\n\
                    environment = []\n[[rule.program]]\npath = \"id\"\ninput = true\n";
        let programs = rule(text).when.programs;
        let words =
            |words: &[&str]| Argument::OneOf(words.iter().map(|word| word.as_bytes().to_vec()).collect());
        let like = Argument::Like(Pattern::name("*.service").unwrap());
        assert_eq!(
            programs,
            [
                Program {
                    path: Pattern::path("/usr/bin/systemctl").unwrap(),
                    arguments: Some(vec![
                        words(&["restart"]),
                        words(&["nginx", "php"]),
                        like,
                        Argument::Any,
                        Argument::Rest
                    ]),
                    environment: Some(vec![]),
                    input: false,
                },
                Program {
                    path: Pattern::name("id").unwrap(),
                    arguments: None,
                    environment: None,
                    input: true
                },
            ]
        );
    }

    #[test]
    fn limits_and_what_is_left_out_are_read() {
        let text = "outcome = \"redact\"\nrecord = \"digest\"\n[rule.limits]\nrequest-bytes = 1\nhandle-bytes = 2\nopen-files = 3\n\
                    requests-per-second = 4\nrun-seconds = 5\noutput-bytes = 6\nrun-as = \"7:8\"\nfreeze-seconds = 9\n\
                    clock-step-seconds = 10\n[rule.redact]\ninterfaces = [\"veth*\"]\nmountpoints = [\"/var/lib/**\"]\n\
                    users = [\"root\"]\ndisks = [\"/dev/vdb\"]\nmembers = [\"serials\", \"kernel\"]\n";
        let terms = rule(text).terms.unwrap();
        let redaction = Redaction {
            interfaces: vec![Pattern::name("veth*").unwrap()],
            mountpoints: vec![Pattern::path("/var/lib/**").unwrap()],
            users: vec![Pattern::name("root").unwrap()],
            disks: vec![Pattern::path("/dev/vdb").unwrap()],
            members: vec![Member::Serials, Member::Kernel],
        };
        let wanted = Terms {
            request_bytes: Some(1),
            handle_bytes: Some(2),
            open_files: Some(3),
            requests_per_second: Some(4),
            run_seconds: Some(5),
            output_bytes: Some(6),
            run_as: Some(RunAs { uid: 7, gid: 8 }),
            freeze_seconds: Some(9),
            clock_step_seconds: Some(10),
            redaction,
            record: Record::Digest,
        };
        assert_eq!(*terms, wanted);
    }

    #[test]
    fn what_makes_no_sense_is_refused_where_it_stands() {
        for (text, reason) in [
            (
                "outcome = \"allow\"\npaths = [\"var/log\"]",
                "a path pattern begins with `/` and has no empty part, `.` or `..`: it is held against the path of what was really opened",
            ),
            ("outcome = \"allow\"\nmodes = [\"rb\"]", "unknown mode \"rb\"; did you mean \"r\"?"),
            ("outcome = \"allow\"\nusers = [\"\"]", "an empty pattern matches nothing"),
            ("outcome = \"allow\"\nuids = [\"9-1\"]", "\"9-1\" is no number and no range such as \"1-3\""),
            (
                "outcome = \"allow\"\nnetworks = [\"10.0.0.1/8\"]",
                "bits behind the prefix are set in \"10.0.0.1/8\": is it an address, or a network?",
            ),
            (
                "outcome = \"allow\"\ngroups = [\"query\"]\npaths = [\"/etc/**\"]",
                "this rule can never match: none of its commands has a path",
            ),
            (
                "outcome = \"allow\"\nusers = [\"a\"]\ninterfaces = [\"b\"]",
                "this rule can never match: none of its commands has a user and an interface",
            ),
            (
                "outcome = \"allow\"\ncommands = [\"guest-ping\"]\ndialects = [\"phoenix\"]",
                "this rule can never match: none of its commands is in its dialect",
            ),
            ("outcome = \"allow\"\ntext = \"no\"", "only a rule that refuses has a text"),
            (
                "outcome = \"deny\"\ntext = \"a\\nb\"",
                "a text has 1 to 512 bytes and no control characters: it goes to the host in one line",
            ),
            ("outcome = \"redact\"", "\"redact\" needs to know what is left out: add `[rule.redact]`"),
            (
                "outcome = \"allow\"\n[rule.redact]\nusers = [\"a\"]",
                "only a rule whose outcome is \"redact\" leaves something out",
            ),
            ("outcome = \"deny\"\n[rule.limits]\nopen-files = 1", "a rule that refuses has no limits"),
            ("outcome = \"allow\"\nrecord = \"all\"", "unknown record \"all\"; it is one of digest, each"),
            ("outcome = \"deny\"\nrecord = \"each\"", "what is refused is recorded with its arguments"),
            (
                "outcome = \"allow\"\n[rule.limits]\nrun-as = \"root\"",
                "`run-as` is two numbers, user and group, as in \"1000:1000\"",
            ),
            (
                "outcome = \"allow\"\n[rule.limits]\nrequests-per-second = 0",
                "no request at all is a rule that refuses",
            ),
            (
                "outcome = \"allow\"\n[rule.limits]\nfreeze-seconds = 0",
                "no time at all is a rule that refuses",
            ),
            (
                "outcome = \"allow\"\n[[rule.program]]\npath = \"/bin/x\"\narguments = [{ rest = true }, \"a\"]",
                "`rest` is for the last argument",
            ),
            (
                "outcome = \"allow\"\n[[rule.program]]\npath = \"/bin/x\"\narguments = [{ any = true, like = \"a\" }]",
                "an argument is a word, { one-of = [\"a\", \"b\"] }, { like = \"a*\" }, { any = true } or { rest = true }",
            ),
        ] {
            let complaint = rules("p.toml", &format!("version = 1\n[[rule]]\n{text}\n")).unwrap_err();
            let summary = complaint.summary();
            assert_eq!(summary.split_once(": ").unwrap().1, reason, "{text}");
            assert!(complaint.to_string().contains('^'), "{complaint}");
        }
    }

    #[test]
    fn a_rule_about_a_path_can_be_about_reading_what_was_opened() {
        rule("outcome = \"allow\"\ncommands = [\"guest-file-read\"]\npaths = [\"/etc/**\"]\n");
    }
}

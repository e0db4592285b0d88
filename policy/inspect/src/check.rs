//! `portreeve policy check`: what is wrong with a policy, and what its author may not have meant.

use std::collections::HashSet;
use std::fmt;

use authorize::{Origin, Outcome, Rule};
use compile::{Complaint, Source};
use proto::Group;
use serde::Serialize;

use crate::calls::Calls;
use crate::clients::{CLIENTS, POLLERS};
use crate::grants::grants;
use crate::shadow::shadows;
use crate::verdicts::{Answer, Channels, verdicts};
use crate::{Loaded, words};

/// Findings of one kind at most; the rest is counted.
const EACH: usize = 100;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// Probably not meant.
    Warning,
    /// The policy is not in force.
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub level: Level,
    /// What kind it is of, for programs: `syntax`, `shadowed`, `never-matches`, `root`, `network`, `freeze`, `rate`, `client`, `limit`.
    pub kind: &'static str,
    /// `FILE:LINE`, or what it is about as a whole.
    pub place: String,
    /// What it is.
    pub text: String,
    /// The line with carets under the place, or the rule.
    pub shown: Option<String>,
}

/// All findings about one policy.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What the policy is called.
    pub policy: String,
    /// How many rules it has; 0 if it cannot be compiled.
    pub rules: usize,
    /// What was found, errors first.
    pub findings: Vec<Finding>,
}

impl Check {
    /// The gravest level of all findings; None without any.
    pub fn worst(&self) -> Option<Level> {
        self.findings.iter().map(|finding| finding.level).max()
    }
}

/// Compiles and looks at a policy, which has at least one text.
pub fn check(sources: Vec<Source>) -> Check {
    let name = sources.first().map(|source| source.name().to_owned()).unwrap_or_default();
    match Loaded::compile(sources) {
        Ok(loaded) => look(&loaded),
        Err(complaints) => {
            Check { policy: name, rules: 0, findings: complaints.iter().map(Finding::of_complaint).collect() }
        }
    }
}

impl Finding {
    fn of_complaint(complaint: &Complaint) -> Self {
        let place = match complaint.line() {
            0 => complaint.file().to_owned(),
            line => format!("{}:{line}", complaint.file()),
        };
        let whole = complaint.to_string();
        let shown = whole.split_once('\n').map(|(_, shown)| shown.to_owned());
        Finding { level: Level::Error, kind: "syntax", place, text: complaint.reason().to_owned(), shown }
    }
}

/// Findings so far, with what is needed to say where they are.
struct Findings<'a> {
    loaded: &'a Loaded,
    all: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, level: Level, kind: &'static str, origin: &Origin, text: String) {
        let count = self.all.iter().filter(|finding| finding.kind == kind).count();
        if count > EACH {
            return;
        }
        if count == EACH {
            let place = self.loaded.policy.name().to_owned();
            let text = format!("there are more of these; the first {EACH} are shown");
            self.all.push(Finding { level: Level::Note, kind, place, text, shown: None });
            return;
        }
        self.all.push(Finding { level, kind, place: origin.to_string(), text, shown: None });
    }

    fn of_all(&mut self, level: Level, kind: &'static str, text: String) {
        let place = self.loaded.policy.name().to_owned();
        self.all.push(Finding { level, kind, place, text, shown: None });
    }
}

fn look(loaded: &Loaded) -> Check {
    let policy = &loaded.policy;
    let mut findings = Findings { loaded, all: Vec::new() };
    let shadowed = shadowed(&mut findings);
    let mut open = Calls::all();
    for rule in policy.rules() {
        if shadowed.contains(&rule.origin.to_string()) {
            continue;
        }
        let calls = Calls::matched_by(rule).both(open);
        never_matches(rule, &mut findings);
        for text in grants(rule, calls) {
            let kind = if text.starts_with("the network") { "network" } else { "root" };
            findings.add(Level::Warning, kind, &rule.origin, text);
        }
        rates(rule, calls, &mut findings);
        if rule.when.is_empty() && rule.channels.is_empty() {
            open = open.without(calls);
        }
    }
    whole(&mut findings);
    let mut all = findings.all;
    all.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Check { policy: policy.name().to_owned(), rules: policy.rules().count(), findings: all }
}

fn shadowed(findings: &mut Findings<'_>) -> HashSet<String> {
    let loaded = findings.loaded;
    let found = shadows(&loaded.policy);
    // Rules of a preset behind one's own are meant to be overruled.
    let is_own = |origin: &Origin| !origin.place.starts_with("preset ");
    for (rule, by) in found.found.iter().filter(|(rule, _)| is_own(&rule.origin)) {
        let by = match by {
            Some(by) => format!("{by} matches all that it matches"),
            None => "those before it match all that it matches".to_owned(),
        };
        findings.add(Level::Warning, "shadowed", &rule.origin, format!("this rule never decides: {by}"));
    }
    if let Some(at) = found.stopped_at {
        let text = "from this rule on it was not looked whether rules are shadowed: there are too many alike before it";
        findings.add(Level::Note, "limit", at, text.to_owned());
    }
    found.found.iter().map(|(rule, _)| rule.origin.to_string()).collect()
}

fn never_matches(rule: &Rule, findings: &mut Findings<'_>) {
    let about = Calls::about(rule);
    let opens = |calls: Calls| calls.has(|command, _| command.groups().count() > 1);
    if !rule.when.modes.is_empty() && opens(about) && !opens(Calls::matched_by(rule)) {
        let modes = words::few(&rule.when.modes);
        let text = format!(
            "this rule never lets a file be opened: opening with {modes} needs another right than those it is about; \
             reading is in \"file.read\", all other modes in \"file.write\""
        );
        findings.add(Level::Warning, "never-matches", &rule.origin, text);
    }
    if !rule.when.power.is_empty() {
        let fits = |name: &str| {
            let wanted = name.strip_prefix("guest-").unwrap_or_default();
            rule.when.power.iter().map(|mode| words::power_name(*mode)).any(|mode| {
                mode == wanted || (wanted == "shutdown" && ["powerdown", "halt", "reboot"].contains(&mode))
            })
        };
        if !Calls::matched_by(rule).has(|command, _| fits(command.name())) {
            let text = "this rule never matches: none of its commands does what `power` names".to_owned();
            findings.add(Level::Warning, "never-matches", &rule.origin, text);
        }
    }
}

fn rates(rule: &Rule, calls: Calls, findings: &mut Findings<'_>) {
    let Some(rate) = rule.terms.as_deref().and_then(|terms| terms.requests_per_second) else { return };
    if rule.outcome == Outcome::Deny {
        return;
    }
    let reached = |poller: &&crate::clients::Poller| {
        rate < poller.rate && calls.has(|command, _| command.name() == poller.command)
    };
    if let Some(poller) = POLLERS.iter().find(reached) {
        let text = format!(
            "{rate} requests a second are fewer than some client sends of {}: {}; let through {} or leave it out of this rule",
            poller.command, poller.who, poller.rate
        );
        findings.add(Level::Warning, "rate", &rule.origin, text);
    }
}

/// What is about the policy as a whole.
fn whole(findings: &mut Findings<'_>) {
    let policy = &findings.loaded.policy;
    let channels = Channels::of([policy]);
    let mut names = channels.named.clone();
    names.push(channels.other());
    let tables: Vec<_> = names.iter().map(|name| verdicts(policy, name)).collect();
    let served = |name: &str| {
        tables.iter().flatten().any(|(command, answer)| command.name() == name && *answer != Answer::Deny)
    };
    let freezes = ["guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list"].into_iter().any(served);
    if freezes && !served("guest-fsfreeze-thaw") {
        let text = "freezing is allowed and guest-fsfreeze-thaw is not: clients thaw after a freeze that failed, too, and \
                    take a refusal for a guest that stays frozen";
        findings.of_all(Level::Warning, "freeze", text.to_owned());
    }
    if freezes && !served("guest-fsfreeze-status") {
        let text = "freezing is allowed and guest-fsfreeze-status is not: Proxmox VE and KubeVirt ask for it before they freeze";
        findings.of_all(Level::Warning, "freeze", text.to_owned());
    }
    if served("fs-freeze") && !served("fs-unfreeze") {
        findings.of_all(Level::Warning, "freeze", "fs-freeze is allowed and fs-unfreeze is not".to_owned());
    }
    if freezes || served("fs-freeze") {
        let text = "a freeze runs the hook that `[freeze] hook` in portreeve.toml names, if it does, as root";
        findings.of_all(Level::Note, "freeze", text.to_owned());
    }
    for client in CLIENTS {
        let is_agents = |name: &&&str| {
            proto::find(proto::Dialect::Qga, name).is_some_and(|command| command.group == Group::Agent)
        };
        let missing: Vec<String> =
            client.commands.iter().filter(|name| !served(name)).map(|name| (*name).to_owned()).collect();
        if missing.is_empty() {
            continue;
        }
        // What is refused as a whole was meant so. What is refused in part may not have been.
        let own = client.commands.iter().filter(|name| !is_agents(name)).count();
        let refused = missing
            .len()
            .saturating_sub(client.commands.iter().filter(is_agents).filter(|name| !served(name)).count());
        let level =
            if refused < own && refused.saturating_mul(3) <= own { Level::Warning } else { Level::Note };
        let text = format!(
            "{} breaks: refused {} {}; {}",
            client.name,
            if missing.len() == 1 { "is" } else { "are" },
            missing.join(", "),
            client.loses
        );
        findings.of_all(level, "client", text);
    }
    if channels.left_out > 0 {
        let text = format!("{} channels are named by rules and were not looked at", channels.left_out);
        findings.of_all(Level::Note, "limit", text);
    }
}

impl fmt::Display for Check {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { level, kind, place, text, shown } in &self.findings {
            writeln!(out, "{place}: {}: {text} [{kind}]", level.name())?;
            if let Some(shown) = shown {
                writeln!(out, "{shown}")?;
            }
        }
        let count = |level: Level| self.findings.iter().filter(|finding| finding.level == level).count();
        let rules = match self.rules {
            0 => "not in force: nothing but sync, ping and info is served".to_owned(),
            1 => "1 rule".to_owned(),
            rules => format!("{rules} rules"),
        };
        writeln!(
            out,
            "{}: {rules}; {} errors, {} warnings, {} notes",
            self.policy,
            count(Level::Error),
            count(Level::Warning),
            count(Level::Note)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compile::PRESETS;

    fn file(text: &str) -> Check {
        check(vec![Source::File { name: "p.toml".to_owned(), text: text.to_owned() }])
    }

    /// Level, kind and place of each finding.
    fn found(check: &Check) -> Vec<(Level, &'static str, &str)> {
        check.findings.iter().map(|one| (one.level, one.kind, one.place.as_str())).collect()
    }

    #[test]
    fn every_error_is_shown_with_its_line() {
        let check = file(
            "version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-exce\"]\n[[rule]]\noutcome = \"deny\"\nmodes = []\n",
        );
        assert_eq!(
            check.to_string(),
            "p.toml:4: error: unknown command \"guest-exce\"; did you mean \"guest-exec\"? [syntax]\n  commands = [\"guest-exce\"]\n              ^^^^^^^^^^^^\n\
             p.toml:7: error: an empty list matches nothing; leave `modes` out to match all [syntax]\n  modes = []\n          ^^\n\
             p.toml: not in force: nothing but sync, ping and info is served; 2 errors, 0 warnings, 0 notes\n"
        );
    }

    #[test]
    fn presets_have_no_errors_and_none_is_shadowed() {
        for (preset, _) in PRESETS {
            let check = check(vec![Source::Preset((*preset).to_owned())]);
            assert!(check.worst() < Some(Level::Error), "{preset}: {check}");
            let wrong =
                check.findings.iter().find(|one| ["shadowed", "never-matches", "rate"].contains(&one.kind));
            assert_eq!(wrong, None, "{preset}");
        }
    }

    #[test]
    fn a_client_that_loses_one_of_its_commands_is_warned_of() {
        let check = file(
            "version = 1\ninclude = \"observe\"\n[[rule]]\noutcome = \"deny\"\ncommands = [\"guest-get-users\"]\n",
        );
        let texts: Vec<&str> = check
            .findings
            .iter()
            .filter(|one| one.level == Level::Warning)
            .map(|one| one.text.split(':').next().unwrap())
            .collect();
        assert_eq!(
            texts,
            [
                "libvirt's virDomainGetGuestInfo breaks",
                "KubeVirt's check of the agent breaks",
                "oVirt's polling breaks"
            ]
        );
    }

    #[test]
    fn freezing_without_thawing_a_low_rate_and_modes_that_need_another_right_are_warned_of() {
        let check = file(
            "version = 1\n[[rule]]\noutcome = \"allow\"\ncommands = [\"guest-fsfreeze-freeze\"]\n\
             [[rule]]\noutcome = \"allow\"\ncommands = [\"guest-exec-status\"]\n[rule.limits]\nrequests-per-second = 5\n\
             [[rule]]\noutcome = \"allow\"\ngroups = [\"file.read\"]\nmodes = [\"w\"]\n\
             [[rule]]\noutcome = \"allow\"\ncommands = [\"guest-suspend-ram\"]\npower = [\"reboot\"]\n",
        );
        let warnings: Vec<_> = found(&check)
            .into_iter()
            .filter(|(level, kind, _)| *level == Level::Warning && *kind != "client")
            .collect();
        assert_eq!(
            warnings,
            [
                (Level::Warning, "rate", "p.toml:5"),
                (Level::Warning, "never-matches", "p.toml:10"),
                (Level::Warning, "never-matches", "p.toml:14"),
                (Level::Warning, "freeze", "p.toml"),
                (Level::Warning, "freeze", "p.toml"),
            ]
        );
    }

    #[test]
    fn an_unusable_file_is_an_error() {
        let unusable =
            Source::Unusable { name: "p.toml".to_owned(), reason: "can be written by others".to_owned() };
        assert_eq!(found(&check(vec![unusable])), [(Level::Error, "syntax", "p.toml")]);
    }
}

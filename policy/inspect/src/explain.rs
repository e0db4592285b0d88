//! `portreeve policy explain`: why one request is decided as it is, and with what it would be done.

use std::fmt;

use authorize::{Considered, Outcome, consider};
use serde::Serialize;

use crate::case::{Case, Verdict, decide};
use crate::verdicts::possible;
use crate::workers::{Worker, role_of, worker};
use crate::{Loaded, request, words};

/// Rules that were asked in vain and are shown.
const SHOWN: usize = 20;

/// Why a request is decided as it is.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The request in words.
    pub request: String,
    /// The same as a line of its protocol.
    pub line: String,
    /// Who asks.
    pub channel: String,
    /// In which dialect.
    pub dialect: &'static str,
    /// The right that is needed.
    pub group: &'static str,
    /// Whether filesystems are frozen.
    pub frozen: bool,
    /// What its path leads to.
    pub path: Option<String>,
    /// The number of the user that it names.
    pub uid: Option<u32>,
    /// What is not known, and is taken as fitting.
    pub unknown: Option<&'static str>,
    /// allow, deny or redact.
    pub decision: &'static str,
    /// `FILE:LINE` of the rule, or what stands for it when none matched.
    pub rule: String,
    /// The rule as it was written.
    pub text: Option<String>,
    /// Rules about this command that were asked before, and did not match.
    pub asked: Vec<Asked>,
    /// How many more there were of them.
    pub asked_more: usize,
    /// How many rules before the one that decided are about other commands or channels.
    pub about_others: usize,
    /// How it is done: limits, and what is left out.
    pub limits: Vec<String>,
    /// Who does it; none for what frontend and broker answer by themselves.
    pub worker: Option<Worker>,
    /// The line that the host reads, if it is refused.
    pub reply: Option<String>,
}

/// A rule that did not match.
#[derive(Debug, Serialize)]
pub struct Asked {
    /// `FILE:LINE`
    pub rule: String,
    /// What it would have said.
    pub outcome: &'static str,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// One condition of it.
#[derive(Debug, Serialize)]
pub struct Condition {
    /// Its key in the policy.
    pub key: &'static str,
    /// What it lists.
    pub values: Vec<String>,
    /// Whether it holds.
    pub holds: bool,
}

/// Explains the decision about a request.
pub fn explain(loaded: &Loaded, case: &Case, uid_base: u32) -> Explanation {
    let policy = &loaded.policy;
    let Verdict { outcome, rule, terms, denied } = decide(policy, case);
    let command = case.request.command();
    let (mut asked, mut asked_more, mut about_others) = (Vec::new(), 0_usize, 0_usize);
    if !case.frozen {
        for considered in consider(policy, case.asker(), &case.request, case.facts()) {
            if !(considered.command && considered.channel) {
                about_others = about_others.saturating_add(1);
            } else if considered.matches() {
                // The one that decides.
            } else if asked.len() < SHOWN {
                asked.push(Asked::of(&considered));
            } else {
                asked_more = asked_more.saturating_add(1);
            }
        }
    }
    let unknown = match (&case.request, case.uid) {
        (proto::Request::Account(_), None) => {
            Some("the user's number: there is no such user here; conditions on `uids` are taken as fitting")
        }
        _ => None,
    };
    let role = role_of(command.privilege).filter(|_| case.request.group() != proto::Group::Agent);
    Explanation {
        request: words::request(&case.request),
        line: request::to_line(&case.request),
        channel: case.channel.clone(),
        dialect: command.dialect.name(),
        group: case.request.group().name(),
        frozen: case.frozen,
        path: case.path.as_ref().map(|path| String::from_utf8_lossy(path).into_owned()),
        uid: case.uid,
        unknown,
        decision: outcome.name(),
        text: loaded.rule_text(&rule),
        rule: rule.to_string(),
        asked,
        asked_more,
        about_others,
        limits: terms.as_deref().map(words::terms).unwrap_or_default(),
        worker: role.map(|role| worker(role, policy, possible(policy), uid_base)),
        reply: denied.map(|denied| reply(command.dialect, &denied)),
    }
}

/// The line that the host reads, without its end.
pub(crate) fn reply(dialect: proto::Dialect, denied: &proto::Denied) -> String {
    String::from_utf8_lossy(&frontend::session::refusal(dialect, denied)).trim_end().to_owned()
}

impl Asked {
    fn of(considered: &Considered<'_>) -> Self {
        let values = considered.rule.when.apart().into_iter().map(|(_, one)| words::values(&one));
        let conditions = considered.conditions.iter().zip(values);
        Asked {
            rule: considered.rule.origin.to_string(),
            outcome: considered.rule.outcome.name(),
            conditions: conditions
                .map(|((key, holds), values)| Condition { key, values, holds: *holds })
                .collect(),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decided = match self.decision {
            "deny" => "refused",
            "redact" => "allowed, and a part of the reply left out",
            _ => "allowed",
        };
        writeln!(out, "{}\n  on channel {}: {decided}, by {}", self.request, self.channel, self.rule)?;
        for line in self.text.iter().flat_map(|text| text.lines()) {
            writeln!(out, "    | {line}")?;
        }
        if self.frozen {
            writeln!(out, "  while filesystems are frozen a fixed list is served, whatever the policy says")?;
        }
        if let Some(path) = &self.path {
            writeln!(out, "  what is opened is taken to be {path:?}")?;
        }
        match (self.uid, self.unknown) {
            (Some(uid), _) => writeln!(out, "  the user's number is taken to be {uid}")?,
            (None, Some(unknown)) => writeln!(out, "  not known: {unknown}")?,
            (None, None) => {}
        }
        if !self.asked.is_empty() {
            writeln!(out, "  asked before, and not matching:")?;
        }
        for Asked { rule, outcome, conditions } in &self.asked {
            writeln!(out, "    {rule} ({outcome})")?;
            for Condition { key, values, holds } in conditions {
                let holds = if *holds { "holds" } else { "does not hold" };
                writeln!(out, "      {key} {}: {holds}", words::few(values))?;
            }
        }
        if self.asked_more > 0 {
            writeln!(out, "    and {} more", self.asked_more)?;
        }
        if self.about_others > 0 {
            writeln!(out, "  {} rules before it are about other commands or channels", self.about_others)?;
        }
        if let Some(reply) = &self.reply {
            return writeln!(out, "  the host reads:\n    {reply}");
        }
        if !self.limits.is_empty() {
            writeln!(out, "  limits: {}", self.limits.join(", "))?;
        }
        match &self.worker {
            Some(worker) => {
                writeln!(out, "  done by the worker")?;
                worker.write(out)
            }
            None => writeln!(out, "  answered by frontend or broker, without a worker"),
        }
    }
}

/// Whether it was refused.
impl Explanation {
    /// Whether the request is refused.
    pub fn is_refused(&self) -> bool {
        self.decision == Outcome::Deny.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Look, literal, read};
    use compile::Source;

    const POLICY: &str = "version = 1\n\n[[rule]]\noutcome = \"deny\"\ngroups = [\"file.read\"]\npaths = [\"/var/log/secret/**\"]\n\n\
        [[rule]]\noutcome = \"allow\"\ncommands = [\"guest-file-open\"]\npaths = [\"/var/log/**\"]\nmodes = [\"r\"]\n[rule.limits]\nopen-files = 3\n\n\
        [[rule]]\noutcome = \"allow\"\ngroups = [\"query\"]\n";

    fn explained(text: &str, request: &str, frozen: bool) -> Explanation {
        let source = Source::File { name: "p.toml".to_owned(), text: text.to_owned() };
        let loaded = Loaded::compile(vec![source]).unwrap();
        let look = Look { path: &literal, uid: &|_| None };
        let case = Case { frozen, ..Case::new("qga", read(request).unwrap(), &look) };
        explain(&loaded, &case, jail::DEFAULT_UID_BASE)
    }

    #[test]
    fn what_is_refused_is_explained_condition_by_condition() {
        assert_eq!(
            explained(POLICY, "guest-file-open path=/var/log/x mode=w", false).to_string(),
            "guest-file-open mode=w path=/var/log/x\n  \
               on channel qga: refused, by p.toml, default\n  \
               what is opened is taken to be \"/var/log/x\"\n  \
               asked before, and not matching:\n    \
                 p.toml:8 (allow)\n      \
                   paths \"/var/log/**\": holds\n      \
                   modes \"r\": does not hold\n  \
               2 rules before it are about other commands or channels\n  \
               the host reads:\n    \
                 {\"error\": {\"class\": \"GenericError\", \"desc\": \"failed to open file '/var/log/x' (mode: 'w'): Permission denied\"}}\n"
        );
    }

    #[test]
    fn what_is_allowed_is_explained_with_its_rule_limits_and_worker() {
        let explanation = explained(POLICY, "guest-file-open path=/var/log/x", false);
        assert_eq!((explanation.decision, explanation.rule.as_str()), ("allow", "p.toml:8"));
        assert!(explanation.text.as_deref().is_some_and(|text| text.ends_with("open-files = 3")));
        assert_eq!(explanation.limits, ["open-files 3"]);
        let worker = explanation.worker.unwrap();
        assert_eq!(
            (worker.name, worker.capabilities.as_slice()),
            ("file", &["CAP_DAC_READ_SEARCH".to_owned()][..])
        );
    }

    #[test]
    fn a_frozen_agent_refuses_in_the_words_of_its_dialect() {
        let explanation = explained(POLICY, "guest-get-users", true);
        assert_eq!(
            (explanation.rule.as_str(), explanation.reply.as_deref()),
            (
                "frozen",
                Some(
                    "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command guest-get-users has been disabled: the command is not allowed\"}}"
                )
            )
        );
        let phoenix = explained(POLICY, "sysinfo", true).reply.unwrap();
        assert!(phoenix.starts_with("{\"error\": {\"bufb64\": \""), "{phoenix}");
        assert_eq!(explained(POLICY, "guest-fsfreeze-thaw", true).decision, "allow");
    }
}

//! The decision: a policy and a request in, [`Permitted`] or [`Denied`] out.
//!
//! Pure: no I/O, no clock, no state. Runs in the broker, which decides, and in every worker, which decides again
//! from its own sealed copy, so that a broker that has been taken over cannot go beyond the policy.
//!
//! [`Permitted`] has one constructor, [`authorize`]; nothing is done without one.
#![forbid(unsafe_code)]

mod conditions;
mod index;
mod pattern;
mod policy;
mod redaction;
mod roots;
mod sealed;
mod terms;
mod trace;

use std::sync::Arc;

pub use conditions::{Argument, Conditions, Facts, Kind, PowerMode, Program, asked_path, asked_user};
pub use pattern::{BadPattern, Network, Pattern};
pub use policy::{Origin, Outcome, Policy, Rule};
pub use redaction::{Member, Redaction};
pub use roots::{ROOTS, Root, roots};
pub use sealed::{Sealed, SealedError};
pub use terms::{Exceeded, Record, RunAs, Terms};
pub use trace::{Considered, consider};

use conditions::Subject;
use policy::{Decided, Known};
use proto::{Denied, Dialect, Group, Request, file};

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The channel's name.
    pub channel: &'a str,
    /// Whether the agent holds filesystems frozen. Then the policy has no say: see [`safe_while_frozen`].
    pub frozen: bool,
}

/// A request that the policy permits: the only thing that work is done for.
#[derive(Debug, PartialEq)]
#[must_use]
pub struct Permitted {
    request: Request,
    by: By,
}

impl Permitted {
    /// The request.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The request, to be sent on or carried out.
    pub fn into_request(self) -> Request {
        self.request
    }

    /// The rule that permits it.
    pub fn rule(&self) -> &Origin {
        &self.by.rule
    }

    /// What that rule says: [`Outcome::Allow`] or [`Outcome::Redact`].
    pub fn outcome(&self) -> Outcome {
        self.by.outcome
    }

    /// How it is to be done, if the rule says so.
    pub fn terms(&self) -> Option<&Arc<Terms>> {
        self.by.terms.as_ref()
    }

    /// The request, and by what it is permitted.
    pub fn into_parts(self) -> (Request, By) {
        (self.request, self.by)
    }
}

/// A request that the policy refuses.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    /// What the host reads.
    pub denied: Denied,
    /// The rule that refuses it.
    pub rule: Origin,
    /// What was asked, for the record.
    pub request: Request,
}

/// Decides about one request: the first rule that matches it says; if none does, it is refused.
///
/// What a path leads to and which number a user has is not known here: where the policy asks for it, it is permitted if it could be,
/// and the worker decides again with what it has found ([`decide`]), before it does anything.
///
/// # Errors
/// [`Refusal`] with what the host reads and the rule behind it.
pub fn authorize(policy: &Policy, asker: Asker<'_>, request: Request) -> Result<Permitted, Box<Refusal>> {
    match decide(policy, asker, &request, Facts::default()) {
        Ok(by) => Ok(Permitted { request, by }),
        Err((denied, rule)) => Err(Box::new(Refusal { denied, rule, request })),
    }
}

/// The rule that permits something.
#[derive(Debug, Clone, PartialEq)]
pub struct By {
    /// Where it is written.
    pub rule: Origin,
    /// What it says.
    pub outcome: Outcome,
    /// How it is to be done.
    pub terms: Option<Arc<Terms>>,
}

/// As [`authorize`], for who holds the request already and has found out more.
///
/// # Errors
/// What the host reads, and the rule.
pub fn decide(
    policy: &Policy,
    asker: Asker<'_>,
    request: &Request,
    facts: Facts<'_>,
) -> Result<By, (Denied, Origin)> {
    let command = request.command();
    if asker.frozen {
        let rule = Origin { place: "frozen".into(), line: 0 };
        return if safe_while_frozen(command) {
            Ok(By { rule, outcome: Outcome::Allow, terms: None })
        } else {
            Err((Denied::Frozen(command.name().to_owned()), rule))
        };
    }
    let subject = Subject::of(request, facts);
    let (origin, text) =
        match policy.decide(asker.channel, command, request.group(), Known::Request(&subject)) {
            Decided::By(Rule { outcome: Outcome::Deny, origin, text, .. }) => (origin, text.as_ref()),
            Decided::By(rule) => {
                return Ok(By {
                    rule: rule.origin.clone(),
                    outcome: rule.outcome,
                    terms: rule.terms.clone(),
                });
            }
            Decided::Default(origin) => (origin, None),
        };
    let denied = match text {
        Some(text) => Denied::Arguments(text.clone()),
        // Refusing one way of calling a command that has others is about the arguments.
        None if policy.serves(asker.channel, command) => Denied::Arguments(refused_arguments(request)),
        None => Denied::Command(command.name().to_owned()),
    };
    Err((denied, origin.clone()))
}

/// Worded like the system's own refusal where clients look for that.
fn refused_arguments(request: &Request) -> String {
    match request {
        Request::File(file::Request::Open(open)) => {
            let mode = open.mode.as_deref().unwrap_or("r");
            format!("failed to open file '{}' (mode: '{mode}'): Permission denied", open.path)
        }
        _ => {
            let (command, group) = (request.command().name(), request.group().name());
            format!("Command {command}: Permission denied: the policy does not allow this {group}")
        }
    }
}

/// Whether what a host may ask of any channel includes something of `group`.
///
/// Rights that no rule can grant are not even held: the worker for it cannot be started.
pub fn may_ever(policy: &Policy, group: Group) -> bool {
    policy.grants(group)
}

/// Whether `command` is served while filesystems are frozen, whatever the policy says: thawing must be possible in every
/// configuration, and nothing else may begin that could wait for a frozen filesystem.
///
/// qemu-ga's list since 9.1 (`qga/main.c`, `ga_freeze_allowlist`), and the same of Phoenix's.
pub fn safe_while_frozen(command: &proto::Command) -> bool {
    match command.dialect {
        Dialect::Qga => matches!(
            command.name(),
            "guest-ping"
                | "guest-info"
                | "guest-sync"
                | "guest-sync-delimited"
                | "guest-fsfreeze-status"
                | "guest-fsfreeze-thaw"
        ),
        Dialect::Phoenix => matches!(
            command.name(),
            "ping" | "get-commands" | "agent-shutdown" | "get-freeze-status" | "fs-unfreeze"
        ),
    }
}

/// Whether a rule's rate does not count calls of `command`, whatever the rule says: what tells whether the agent lives and in which
/// state it is, what thaws, and what only follows or ends something that was let through before. Clients poll these.
pub fn is_never_counted(command: &proto::Command) -> bool {
    safe_while_frozen(command)
        || matches!(command.name(), "guest-exec-status" | "guest-file-close" | "file-close")
}

/// The rule by which each call of `command` is to be recorded, though the frontend answers it by itself.
pub fn records_each<'a>(
    policy: &'a Policy,
    channel: &str,
    command: &'static proto::Command,
) -> Option<&'a Origin> {
    match policy.decide(channel, command, command.group, Known::Command) {
        Decided::By(Rule {
            outcome: Outcome::Allow | Outcome::Redact, origin, terms: Some(terms), ..
        }) if terms.record == Record::Each => Some(origin),
        _ => None,
    }
}

/// The commands of `dialect` that are served by any call at all; for `guest-info` and the frontend.
pub fn served<'a>(
    policy: &'a Policy,
    channel: &'a str,
    frozen: bool,
    dialect: Dialect,
) -> impl Iterator<Item = (&'static proto::Command, bool)> + 'a {
    proto::commands().filter(move |command| command.dialect == dialect).map(move |command| {
        let served = if frozen { safe_while_frozen(command) } else { policy.serves(channel, command) };
        (command, served)
    })
}

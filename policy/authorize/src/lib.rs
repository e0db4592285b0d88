//! The decision: a policy and a request in, [`Permitted`] or [`Denied`] out.
//!
//! Pure: no I/O, no clock, no state. Runs in the broker, which decides, and in every worker, which decides again
//! from its own sealed copy, so that a broker that has been taken over cannot go beyond the policy.
//!
//! [`Permitted`] has one constructor, [`authorize`]; nothing is done without one.
#![forbid(unsafe_code)]

mod policy;
mod sealed;

pub use policy::{Origin, Outcome, Policy, Rule};
pub use sealed::{Sealed, SealedError};

use proto::{Denied, Dialect, Group, Request};

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
    rule: Origin,
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
        &self.rule
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
/// # Errors
/// [`Refusal`] with what the host reads and the rule behind it.
pub fn authorize(policy: &Policy, asker: Asker<'_>, request: Request) -> Result<Permitted, Box<Refusal>> {
    let command = request.command();
    let refuse = |denied, rule, request| Err(Box::new(Refusal { denied, rule, request }));
    if asker.frozen {
        let rule = Origin { place: "frozen".to_owned(), line: 0 };
        return if safe_while_frozen(command) {
            Ok(Permitted { request, rule })
        } else {
            refuse(Denied::Frozen(command.name().to_owned()), rule, request)
        };
    }
    match policy.decide(asker.channel, command, request.group()) {
        (Outcome::Allow, rule) => Ok(Permitted { request, rule: rule.clone() }),
        // Refusing one way of calling a command that has others is about the arguments.
        (Outcome::Deny, rule) if policy.serves(asker.channel, command) => {
            let group = request.group().name();
            let text = format!(
                "Command {}: Permission denied: the policy does not allow {group} here",
                command.name()
            );
            refuse(Denied::Arguments(text), rule.clone(), request)
        }
        (Outcome::Deny, rule) => refuse(Denied::Command(command.name().to_owned()), rule.clone(), request),
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

//! `portreeve policy show`: the rules in effect, what becomes of each command, what the kernel lets each worker do.

use std::fmt;

use serde::Serialize;

use crate::Loaded;
use crate::verdicts::{Answer, Channels, verdicts};
use crate::words;
use crate::workers::{Worker, workers};

/// All that a policy means.
#[derive(Debug, Serialize)]
pub struct Show {
    /// What it is called.
    pub policy: String,
    /// The rules in the order in which they are asked.
    pub rules: Vec<RuleLine>,
    /// For each channel that a rule names, and all others.
    pub channels: Vec<OfChannel>,
    /// Channels that rules name and that are not looked at.
    pub channels_left_out: usize,
    /// The workers.
    pub workers: Vec<Worker>,
}

/// One rule.
#[derive(Debug, Serialize)]
pub struct RuleLine {
    /// `FILE:LINE`
    pub rule: String,
    /// allow, deny or redact.
    pub outcome: &'static str,
    /// What it says, in words.
    pub says: String,
}

/// What becomes of what comes in by a channel.
#[derive(Debug, Serialize)]
pub struct OfChannel {
    /// Its name; None: all that no rule names.
    pub channel: Option<String>,
    /// Each command's name, its dialect, and what becomes of it.
    pub commands: Vec<OfCommand>,
}

/// What becomes of one command.
#[derive(Debug, Serialize)]
pub struct OfCommand {
    /// Its name.
    pub command: &'static str,
    /// Its dialect.
    pub dialect: &'static str,
    /// allow, deny, redact, or depends: on the arguments.
    pub answer: Answer,
}

/// Looks at a policy whose processes have user ids from `uid_base` on.
pub fn show(loaded: &Loaded, uid_base: u32) -> Show {
    let policy = &loaded.policy;
    let rules = policy.rules().map(|rule| RuleLine {
        rule: rule.origin.to_string(),
        outcome: rule.outcome.name(),
        says: words::summary(rule),
    });
    let channels = Channels::of([policy]);
    let of_channel = |name: &str| -> Vec<OfCommand> {
        let of_command = |(command, answer): (&'static proto::Command, Answer)| OfCommand {
            command: command.name(),
            dialect: command.dialect.name(),
            answer,
        };
        verdicts(policy, name).into_iter().map(of_command).collect()
    };
    let mut shown: Vec<OfChannel> = channels
        .named
        .iter()
        .map(|name| OfChannel { channel: Some(name.clone()), commands: of_channel(name) })
        .collect();
    shown.push(OfChannel { channel: None, commands: of_channel(&channels.other()) });
    Show {
        policy: policy.name().to_owned(),
        rules: rules.collect(),
        channels: shown,
        channels_left_out: channels.left_out,
        workers: workers(policy, uid_base),
    }
}

impl fmt::Display for Show {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "policy {}\n\nrules, the first that matches decides:", self.policy)?;
        for RuleLine { rule, says, .. } in &self.rules {
            writeln!(out, "  {rule}: {says}")?;
        }
        writeln!(out, "  what no rule matches: deny")?;
        for OfChannel { channel, commands } in &self.channels {
            match channel {
                Some(name) => writeln!(out, "\ncommands on channel {name}:")?,
                None if self.channels.len() > 1 => writeln!(out, "\ncommands on any other channel:")?,
                None => writeln!(out, "\ncommands on every channel:")?,
            }
            for answer in [Answer::Allow, Answer::Redact, Answer::Depends, Answer::Deny] {
                let names: Vec<&str> =
                    commands.iter().filter(|one| one.answer == answer).map(|one| one.command).collect();
                if !names.is_empty() {
                    wrapped(out, answer.name(), &names)?;
                }
            }
        }
        if self.channels_left_out > 0 {
            writeln!(out, "\n{} more channels are named by rules and not shown.", self.channels_left_out)?;
        }
        writeln!(out, "\nworkers, and what the kernel lets them do:")?;
        self.workers.iter().try_for_each(|worker| worker.write(out))
    }
}

/// Names behind a heading, in lines of about 100 letters.
fn wrapped(out: &mut fmt::Formatter<'_>, heading: &str, names: &[&str]) -> fmt::Result {
    const WIDTH: usize = 100;
    let mut line = format!("  {heading:<9}");
    for name in names {
        if line.len().saturating_add(name.len()) > WIDTH {
            writeln!(out, "{line}")?;
            line = " ".repeat(11);
        }
        line.push(' ');
        line.push_str(name);
    }
    writeln!(out, "{line}")
}

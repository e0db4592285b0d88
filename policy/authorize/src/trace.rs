//! Why a request was decided as it was: which rules were asked, and what of each held.
//!
//! Runs in `portreeve policy` only. It asks rule after rule with the same conditions that [`decide`](crate::decide) asks, without the
//! index, so it takes as long as the policy is.

use proto::Request;

use crate::conditions::Subject;
use crate::{Asker, Facts, Outcome, Policy, Rule};

/// A rule that was asked.
#[derive(Debug)]
pub struct Considered<'a> {
    /// Which.
    pub rule: &'a Rule,
    /// Whether it is about this command.
    pub command: bool,
    /// Whether it is for this channel.
    pub channel: bool,
    /// Its conditions on the arguments, by their keys, and whether each holds. Empty if it is about something else.
    pub conditions: Vec<(&'static str, bool)>,
}

impl Considered<'_> {
    /// Whether all of it holds.
    pub fn matches(&self) -> bool {
        self.command && self.channel && self.conditions.iter().all(|(_, holds)| *holds)
    }
}

/// The rules that are asked about a request, in their order, up to the one that decides. The agent is not frozen.
pub fn consider<'a>(
    policy: &'a Policy,
    asker: Asker<'a>,
    request: &'a Request,
    facts: Facts<'a>,
) -> impl Iterator<Item = Considered<'a>> {
    let (_, layer, rules, _) = policy.parts();
    // A rule of the layer that allows leaves the decision to the rules.
    let passed = layer.iter().position(|rule| held(rule, asker, request, facts).matches());
    let asked = layer.iter().take(passed.map_or(layer.len(), |at| at.saturating_add(1)));
    let stopped = passed.and_then(|at| layer.get(at)).is_some_and(|rule| rule.outcome == Outcome::Deny);
    let rules = if stopped { &[] } else { rules };
    let mut decided = false;
    asked.map(move |rule| held(rule, asker, request, facts)).chain(
        rules.iter().map(move |rule| held(rule, asker, request, facts)).take_while(move |considered| {
            let before = decided;
            decided |= considered.matches();
            !before
        }),
    )
}

fn held<'a>(rule: &'a Rule, asker: Asker<'_>, request: &Request, facts: Facts<'_>) -> Considered<'a> {
    let command = rule.is_about(request.command(), request.group());
    let channel = rule.is_for(asker.channel);
    let conditions = if command && channel {
        let subject = Subject::of(request, facts);
        let holds = |one: crate::Conditions| one.hold(&subject, rule.outcome.side());
        rule.when.apart().into_iter().map(|(key, one)| (key, holds(one))).collect()
    } else {
        Vec::new()
    };
    Considered { rule, command, channel, conditions }
}

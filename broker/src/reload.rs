//! Another policy, between two requests.
//!
//! The spawner hands over what the policy was compiled to. It is in force from one moment on: for every request that is decided from
//! then on, for what frontends answer by themselves, and for every worker that is started. What was decided before is finished as it was
//! decided. A worker keeps the policy it was born with, so it is replaced: at once if it holds nothing, otherwise it goes on for the open
//! files and programs that it holds, as far as both policies permit, until they are closed.
//!
//! While something is frozen nothing changes: the policy comes into force when all is thawed.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use authorize::{Policy, Sealed};
use spawner::Verdict;

use crate::audit::about_policy;
use crate::{Broker, LIMIT, frontends};

/// Takes what the spawner offers, or records why there is nothing to take.
pub(crate) async fn take(broker: Rc<Broker>, sequence: u32, verdict: Verdict, form: OwnedFd) {
    let read = || {
        // The spawner has made the file and looked at its seals.
        let bytes = jail::sealed::contents(form.as_fd(), LIMIT).map_err(|error| error.to_string())?;
        Sealed::decode(&bytes).map_err(|error| error.to_string())
    };
    let refused = match verdict {
        Verdict::Compiled => match read() {
            Ok(sealed) if sealed.settings == broker.settings => {
                broker.freeze.thawed().await;
                put_in_force(&broker, sequence, sealed.policy);
                return;
            }
            Ok(_) => Err("its settings are not those of the start".to_owned()),
            Err(why) => Err(why),
        },
        Verdict::NotCompiled => read().map(|sealed| why_closed(&sealed.policy)),
        Verdict::Failed => Ok("it could not be compiled; the log has more".to_owned()),
        Verdict::NeedsRestart => {
            Ok("it permits programs, which would inherit the filter of this agent's start".to_owned())
        }
        Verdict::NotInstalled => Ok("it permits a worker that is not installed".to_owned()),
    };
    let why = refused.unwrap_or_else(|why| {
        tracing::error!("the new policy cannot be taken: {why}");
        why
    });
    if verdict == Verdict::Compiled {
        broker.control.reloaded(sequence, false);
    }
    let policy = broker.policy();
    broker.audit.note(
        "reload",
        &serde_json::json!({ "accepted": false, "policy": about_policy(&policy), "why": why }),
    );
}

/// Nothing in here waits, so there is no moment between the two policies.
fn put_in_force(broker: &Rc<Broker>, sequence: u32, policy: Policy) {
    let before = broker.policy();
    // One that some worker was born with is the same: going back and forth between two makes no third.
    let policy = if *before == policy { before } else { broker.workers.known(policy) };
    broker.policy.replace(policy.clone());
    // Before any START: what is started from now on is born with it.
    broker.control.reloaded(sequence, true);
    broker.workers.retire(&policy);
    frontends::welcome_again(broker);
    broker.reloaded.notify_waiters();
    tracing::info!("policy {} is in force", policy.name());
    broker.audit.note("reload", &serde_json::json!({ "accepted": true, "policy": about_policy(&policy) }));
}

/// What the compiler has put into the policy that serves nothing.
fn why_closed(policy: &Policy) -> String {
    policy.rules().next().map_or_else(String::new, |rule| rule.origin.place.to_string())
}

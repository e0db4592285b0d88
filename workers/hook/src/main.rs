//! The hook worker: runs the administrator's freeze hook.
//!
//! Runs as root and unconfined, since the hook inherits what it is: databases are told to flush by it. It is not
//! started unless a hook is configured and the policy permits freezing. It trusts its sealed settings, which name the hook, and the
//! hook's owner; the broker says no more than `freeze` or `thaw`. It never runs anything else, holds no filesystem, and is
//! not the one that freezes: a hook that hangs delays no thaw.
#![forbid(unsafe_code)]

mod hook;

use std::time::Duration;

use hook::Hook;
use jail::Role;
use proto::Failed;
use proto::fsfreeze::{Reply, Request};
use runtime::{Birth, give_up};

fn main() {
    let birth = Birth::of(Role::Hook);
    let settings = birth.settings();
    let limit = Duration::from_secs(settings.freeze.hook_limit_seconds.into());
    let hook = settings.freeze.hook.as_deref().and_then(|path| Hook::new(path, &settings.environment, limit));
    let hook = hook.unwrap_or_else(|| give_up(Role::Hook, &"the settings name no hook"));
    birth.serve(move |request, _| work(&hook, &request));
}

fn work(hook: &Hook, request: &Request) -> Result<Reply, Failed> {
    Ok(match request {
        Request::Freeze(_) => hook.run(c"freeze").map(|()| Reply::Freeze(0))?,
        Request::FreezeList(_) => hook.run(c"freeze").map(|()| Reply::FreezeList(0))?,
        Request::PhoenixFreeze(_) => hook.run(c"freeze").map(|()| Reply::PhoenixFreeze(true))?,
        Request::Thaw(_) => hook.run(c"thaw").map(|()| Reply::Thaw(0))?,
        Request::PhoenixThaw(_) => hook.run(c"thaw").map(|()| Reply::PhoenixThaw(true))?,
        Request::Status(_) | Request::PhoenixStatus(_) | Request::Trim(_) => {
            return Err(Failed::new(format!("{} has no hook", proto_name(request))));
        }
    })
}

fn proto_name(request: &Request) -> &'static str {
    request.command().name()
}

//! The power worker: shuts down, reboots, suspends.
#![forbid(unsafe_code)]

use jail::Role;
use proto::Failed;
use proto::power::{Reply, Request};
use runtime::Birth;

fn main() {
    Birth::of(Role::Power).serve(|request: Request, _| -> Result<Reply, Failed> {
        Err(Failed::new(format!("{} is not built", request.command().name())))
    })
}

//! The account worker: sets passwords and authorized keys.
#![forbid(unsafe_code)]

use jail::Role;
use proto::Failed;
use proto::account::{Reply, Request};
use runtime::Birth;

fn main() {
    Birth::of(Role::Account).serve(|request: Request, _| -> Result<Reply, Failed> {
        Err(Failed::new(format!("{} is not built", request.command().name())))
    })
}

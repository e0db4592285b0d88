//! The clock worker: sets the clock.
#![forbid(unsafe_code)]

use jail::Role;
use proto::Failed;
use proto::clock::{Reply, Request};
use runtime::Birth;

fn main() {
    Birth::of(Role::Clock).serve(|request: Request, _| -> Result<Reply, Failed> {
        Err(Failed::new(format!("{} is not built", request.command().name())))
    })
}

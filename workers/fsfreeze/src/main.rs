//! The fsfreeze worker: freezes, thaws and trims filesystems.
#![forbid(unsafe_code)]

use jail::Role;
use proto::Failed;
use proto::fsfreeze::{Reply, Request};
use runtime::Birth;

fn main() {
    Birth::of(Role::Fsfreeze).serve(|request: Request, _| -> Result<Reply, Failed> {
        Err(Failed::new(format!("{} is not built", request.command().name())))
    })
}

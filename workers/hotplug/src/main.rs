//! The hotplug worker: takes CPUs and memory blocks online and offline.
#![forbid(unsafe_code)]

use jail::Role;
use proto::Failed;
use proto::hotplug::{Reply, Request};
use runtime::Birth;

fn main() {
    Birth::of(Role::Hotplug).serve(|request: Request, _| -> Result<Reply, Failed> {
        Err(Failed::new(format!("{} is not built", request.command().name())))
    })
}

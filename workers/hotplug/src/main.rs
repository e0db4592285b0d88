//! The hotplug worker: takes CPUs and memory blocks online and offline.
//!
//! Runs in a process of its own that may write root's files in two trees of sysfs, which Landlock knows, and in nothing else. It
//! trusts the kernel's files and its sealed policy. Names are made of numbers alone: no text of the host's is part of a path.
#![forbid(unsafe_code)]

mod cpus;
mod memory;
mod tree;

use jail::Role;
use proto::Failed;
use proto::hotplug::{Reply, Request};
use runtime::Birth;
use tree::Tree;

fn main() {
    let tree = Tree::of_this_system();
    Birth::of(Role::Hotplug).serve(move |request, _| -> Result<Reply, Failed> {
        Ok(match request {
            Request::SetVcpus(set) => Reply::SetVcpus(cpus::set(&tree, &set.vcpus)?),
            Request::SetMemoryBlocks(set) => Reply::SetMemoryBlocks(memory::set(&tree, &set.mem_blks)),
        })
    });
}

//! The netadmin worker: changes addresses, links and routes. Phoenix's dialect only.
//!
//! Runs in a process of its own, in the host's network namespace, with CAP_NET_ADMIN and nothing else; it is not started
//! unless the policy permits a change. It trusts its sealed policy, by which every job is decided again. It never
//! does more than one change for a job, and none after an argument was found wrong.
//!
//! The runtime and the netlink socket are made before the jail is shut; the runtime only turns while a job is done.
#![forbid(unsafe_code)]

mod changes;
mod cidr;

use std::time::Duration;

use changes::Changes;
use jail::Role;
use proto::Failed;
use proto::netadmin::{Reply, Request};
use runtime::{Birth, give_up};
use tokio::runtime::{Builder, Runtime};

/// The kernel answers while it is asked; this is for an answer that the library cannot read and leaves out.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() {
    let birth = Birth::of(Role::NetAdmin);
    let (runtime, changes) = prepare().unwrap_or_else(|error| {
        give_up(Role::NetAdmin, &format_args!("cannot open a route netlink socket: {error}"))
    });
    birth.serve(move |request, _| {
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, work(&changes, request))
                .await
                .unwrap_or_else(|_| Err(Failed::rtnetlink("the kernel's answer did not come")))
        })
    });
}

fn prepare() -> std::io::Result<(Runtime, Changes)> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let changes = {
        let _context = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        runtime.spawn(connection);
        Changes::new(handle)
    };
    Ok((runtime, changes))
}

async fn work(changes: &Changes, request: Request) -> Result<Reply, Failed> {
    Ok(match request {
        Request::AddAddress(address) => Reply::AddAddress(changes.add_address(&address).await?),
        Request::DeleteAddress(address) => Reply::DeleteAddress(changes.delete_address(&address).await?),
        Request::LinkUp(link) => Reply::LinkUp(changes.set_link(&link, true).await?),
        Request::LinkDown(link) => Reply::LinkDown(changes.set_link(&link, false).await?),
        Request::AddRoute(route) => Reply::AddRoute(changes.add_route(&route).await?),
        Request::DeleteRoute(route) => Reply::DeleteRoute(changes.delete_route(&route).await?),
    })
}

//! The net worker: interfaces and routes, read only.
//!
//! Runs in a process of its own, without any capability, in the host's network namespace and an empty root. It trusts
//! the kernel's answers for content, not for form: they are read with bounds all the same. It never changes anything:
//! its netlink socket only ever sends dump requests, which need no right.
//!
//! Socket and route files are opened before the jail is shut; both belong to the network namespace from then on.
#![forbid(unsafe_code)]

mod address;
mod interfaces;
mod netlink;
mod routes;

use jail::Role;
use netlink::Netlink;
use proto::net::{Reply, Request};
use routes::RouteFiles;
use runtime::{Birth, give_up};

fn main() {
    let birth = Birth::of(Role::Net);
    let mut netlink = Netlink::open().unwrap_or_else(|errno| {
        give_up(Role::Net, &format_args!("cannot open a route netlink socket: {errno}"))
    });
    let files = RouteFiles::open();
    birth.serve(move |request, _| {
        Ok::<_, proto::Failed>(match request {
            Request::Interfaces(_) => Reply::Interfaces(interfaces::qga(&mut netlink)?),
            Request::Routes(_) => Reply::Routes(files.read()?),
            Request::PhoenixInterfaces(_) => Reply::PhoenixInterfaces(interfaces::phoenix(&mut netlink)?),
            Request::PhoenixRoutes(which) => {
                Reply::PhoenixRoutes(routes::phoenix(&mut netlink, which.family)?)
            }
        })
    });
}

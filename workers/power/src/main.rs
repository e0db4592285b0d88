//! The power worker: shuts down, reboots, suspends.
//!
//! Runs in a process of its own with CAP_KILL, which its filter cuts down to six signals for process 1; init's FIFO and the files
//! in `/sys/power` were opened before the jail was shut. It trusts its sealed settings and policy. It never calls reboot(2):
//! whoever goes down goes down in order, by init, or is told why that cannot be asked for.
#![forbid(unsafe_code)]

mod init;
mod sleep;

use init::{Init, Mode};
use jail::Role;
use proto::Failed;
use proto::agent::Nothing;
use proto::power::{Reply, Request};
use runtime::Birth;
use sleep::{Depth, Sleep};

fn main() {
    let birth = Birth::of(Role::Power);
    let init = Init::open(birth.settings().init);
    let sleep = Sleep::open();
    birth.serve(move |request, _| work(&init, &sleep, &request));
}

fn work(init: &Init, sleep: &Sleep, request: &Request) -> Result<Reply, Failed> {
    Ok(match request {
        Request::Shutdown(shutdown) => {
            init.ask(Mode::named(shutdown.mode.as_deref())?)?;
            Reply::Shutdown(Nothing {})
        }
        Request::SuspendDisk(_) => sleep.fall(Depth::Disk).map(|()| Reply::SuspendDisk(Nothing {}))?,
        Request::SuspendRam(_) => sleep.fall(Depth::Memory).map(|()| Reply::SuspendRam(Nothing {}))?,
        Request::SuspendHybrid(_) => sleep.fall(Depth::Both).map(|()| Reply::SuspendHybrid(Nothing {}))?,
    })
}

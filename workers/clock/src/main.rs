//! The clock worker: sets the system's clock and the hardware's.
//!
//! Runs in a process of its own with CAP_SYS_TIME; the one file it can open is the hardware clock's device. It trusts its sealed
//! policy and settings, which may limit how far one request moves the clock, and what `/etc/adjtime` said when it started
//! about the zone of the hardware clock. It never runs hwclock(8), which small guests do not have.
#![forbid(unsafe_code)]

mod hardware;

use std::time::Duration;

use hardware::{Hardware, Zone};
use jail::Role;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use proto::Failed;
use proto::agent::Nothing;
use proto::clock::{Reply, Request, SetTime};
use runtime::Birth;

const NANOSECONDS: i64 = 1_000_000_000;

fn main() {
    let birth = Birth::of(Role::Clock);
    let hardware = Hardware::new(Zone::of_this_system());
    let limit = birth.settings().clock_step_seconds;
    birth.serve(move |request, _| match request {
        Request::SetTime(SetTime { time }) => {
            set_time(&hardware, limit, time).map(|()| Reply::SetTime(Nothing {}))
        }
    });
}

/// Sets both clocks to `time`, nanoseconds since the epoch; without it, the system's from the hardware's.
fn set_time(hardware: &Hardware, limit: u32, time: Option<i64>) -> Result<(), Failed> {
    let Some(time) = time else {
        let seconds = hardware.read()?;
        return set_system(limit, seconds.saturating_mul(NANOSECONDS));
    };
    if time < 0 {
        // Before 1970; qemu-ga refuses 2070 and later as well, for no reason of the kernel's.
        return Err(Failed::new("Invalid time"));
    }
    set_system(limit, time)?;
    hardware.set(time)
}

fn set_system(limit: u32, time: i64) -> Result<(), Failed> {
    let failed = |errno: nix::errno::Errno| Failed::system("Failed to set time to guest", errno as i32);
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_err(failed)?;
    let now = now.tv_sec().saturating_mul(NANOSECONDS).saturating_add(now.tv_nsec());
    let step = Duration::from_nanos(time.abs_diff(now));
    if limit > 0 && step > Duration::from_secs(limit.into()) {
        return Err(Failed::new(format!(
            "Failed to set time to guest: the clock would move by {} s, and `max-step-seconds` permits {limit}",
            step.as_secs()
        )));
    }
    let (seconds, rest) = (time.div_euclid(NANOSECONDS), time.rem_euclid(NANOSECONDS));
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, rest)).map_err(failed)
}

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
    birth.serve(move |request, call| match request {
        Request::SetTime(SetTime { time }) => {
            let of_rule = call.terms.as_ref().and_then(|terms| terms.clock_step_seconds);
            set_time(&hardware, Most { configured: limit, of_rule }, time)
                .map(|()| Reply::SetTime(Nothing {}))
        }
    });
}

/// Seconds that one request may move the clock.
#[derive(Clone, Copy)]
struct Most {
    /// 0 for any.
    configured: u32,
    of_rule: Option<u32>,
}

impl Most {
    fn permits(self, step: Duration) -> Result<(), Failed> {
        let configured = Some(self.configured).filter(|seconds| *seconds > 0);
        for (most, said_by) in [
            (configured, "`max-step-seconds` of the configuration"),
            (self.of_rule, "`clock-step-seconds` of the policy"),
        ] {
            if let Some(most) = most.filter(|most| step > Duration::from_secs((*most).into())) {
                return Err(Failed::new(format!(
                    "Failed to set time to guest: the clock would move by {} s, and {said_by} permits {most}",
                    step.as_secs()
                )));
            }
        }
        Ok(())
    }
}

/// Sets both clocks to `time`, nanoseconds since the epoch; without it, the system's from the hardware's.
fn set_time(hardware: &Hardware, most: Most, time: Option<i64>) -> Result<(), Failed> {
    let Some(time) = time else {
        let seconds = hardware.read()?;
        return set_system(most, seconds.saturating_mul(NANOSECONDS));
    };
    if time < 0 {
        // Before 1970; qemu-ga refuses 2070 and later as well, for no reason of the kernel's.
        return Err(Failed::new("Invalid time"));
    }
    set_system(most, time)?;
    hardware.set(time)
}

fn set_system(most: Most, time: i64) -> Result<(), Failed> {
    let failed = |errno: nix::errno::Errno| Failed::system("Failed to set time to guest", errno as i32);
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_err(failed)?;
    let now = now.tv_sec().saturating_mul(NANOSECONDS).saturating_add(now.tv_nsec());
    let step = Duration::from_nanos(time.abs_diff(now));
    most.permits(step)?;
    let (seconds, rest) = (time.div_euclid(NANOSECONDS), time.rem_euclid(NANOSECONDS));
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, rest)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_moves_no_further_than_configuration_and_policy_both_permit() {
        let text = |configured, of_rule, seconds| {
            Most { configured, of_rule }.permits(Duration::from_secs(seconds)).err().map(|failed| failed.text)
        };
        assert_eq!(text(0, None, 1 << 40), None);
        assert_eq!(text(10, Some(20), 10), None);
        assert_eq!(
            text(10, Some(20), 11).as_deref(),
            Some(
                "Failed to set time to guest: the clock would move by 11 s, and `max-step-seconds` of the configuration permits 10"
            )
        );
        assert_eq!(
            text(0, Some(20), 21).as_deref(),
            Some(
                "Failed to set time to guest: the clock would move by 21 s, and `clock-step-seconds` of the policy permits 20"
            )
        );
        assert!(text(20, Some(10), 11).is_some());
    }

    #[test]
    fn half_a_second_too_far_is_too_far() {
        let most = Most { configured: 0, of_rule: Some(1) };
        assert!(
            most.permits(Duration::from_millis(1500)).is_err()
                && most.permits(Duration::from_secs(1)).is_ok()
        );
    }
}

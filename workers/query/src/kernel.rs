//! What system calls say without any file: the time, the host's name, the load. They do not fail.

use std::ffi::CStr;
use std::time::{SystemTime, UNIX_EPOCH};

use proto::query::{HostName, Load};

use crate::root::text;

/// UTC, with microsecond resolution as qemu-ga has it: the last three digits are 0.
pub(crate) fn nanoseconds_since_epoch() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX).saturating_mul(1000)
}

/// From uname(2), which has room for the 64 bytes that Linux permits; a 64-byte buffer for gethostname(2) has not.
pub(crate) fn host_name() -> HostName {
    HostName { host_name: string(rustix::system::uname().nodename()) }
}

/// As getloadavg(3) gives it.
pub(crate) fn load() -> Load {
    let (load1m, load5m, load15m) = averages(&rustix::system::sysinfo());
    Load { load1m, load5m, load15m }
}

/// Load averages over 1, 5 and 15 minutes; sysinfo(2) has them with 16 bits behind the point.
pub(crate) fn averages(info: &rustix::system::Sysinfo) -> (f64, f64, f64) {
    #[allow(clippy::cast_precision_loss, reason = "a load has far fewer than 53 bits")]
    let [one, five, fifteen] = info.loads.map(|load| load as f64 / 65536.0);
    (one, five, fifteen)
}

/// The kernel's text as ours.
pub(crate) fn string(value: &CStr) -> String {
    text(value.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_in_whole_microseconds() {
        let time = nanoseconds_since_epoch();
        assert_eq!(time % 1000, 0);
        assert!(time > 1_700_000_000_000_000_000, "{time}");
    }

    #[test]
    fn the_load_is_a_sixteenth_bit_fraction() {
        let Load { load1m, load5m, load15m } = load();
        for load in [load1m, load5m, load15m] {
            assert!(load >= 0.0 && (load * 65536.0).fract() == 0.0, "{load}");
        }
    }
}

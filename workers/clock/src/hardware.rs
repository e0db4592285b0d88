//! The hardware clock: a date and a time of day in UTC or, where `/etc/adjtime` says so, in local time.
//!
//! Runs in the clock worker. The device can be open only once in the whole system: it is opened for one command.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use jail::clock::{HardwareTime, read, set};
use proto::Failed;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tz::{TimeZone, UtcDateTime};

const DEVICE: &str = "/dev/rtc0";
/// hwclock(8) and others hold it for a moment.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
const NANOSECONDS: i64 = 1_000_000_000;

/// What the hardware clock shows.
pub(crate) enum Zone {
    Utc,
    Local(TimeZone),
}

impl Zone {
    /// From the third line of `/etc/adjtime`, adjtime_config(5), and `/etc/localtime`. Read before the jail is shut.
    pub(crate) fn of_this_system() -> Self {
        let adjtime = std::fs::read_to_string("/etc/adjtime").unwrap_or_default();
        if !is_local(&adjtime) {
            return Zone::Utc;
        }
        let zone = std::fs::read("/etc/localtime").ok().and_then(|data| TimeZone::from_tz_data(&data).ok());
        zone.map_or(Zone::Utc, Zone::Local)
    }

    /// Seconds that a clock of this zone is ahead of UTC at an instant.
    fn ahead(&self, seconds: i64) -> i64 {
        match self {
            Zone::Utc => 0,
            Zone::Local(zone) => zone.find_local_time_type(seconds).map_or(0, |kind| kind.ut_offset().into()),
        }
    }
}

fn is_local(adjtime: &str) -> bool {
    adjtime.lines().nth(2).is_some_and(|line| line.trim() == "LOCAL")
}

/// The clock of this machine.
pub(crate) struct Hardware {
    zone: Zone,
}

impl Hardware {
    pub(crate) fn new(zone: Zone) -> Self {
        Hardware { zone }
    }

    /// Seconds since the epoch.
    ///
    /// # Errors
    /// There is no hardware clock, or it shows no time.
    pub(crate) fn read(&self) -> Result<i64, Failed> {
        let failed = |errno: Option<i32>| {
            Failed::system("Failed to read the hardware clock", errno.unwrap_or_default())
        };
        let device = open().map_err(|errno| failed(Some(errno.raw_os_error())))?;
        let shown = read(device.as_fd()).map_err(|error| failed(error.raw_os_error()))?;
        seconds(&shown, &self.zone)
            .ok_or_else(|| Failed::new("Failed to read the hardware clock: it shows no date"))
    }

    /// Sets it to the second nearest to `time`, in nanoseconds since the epoch. A guest without one is no failure, nor is one that
    /// cannot show that year.
    ///
    /// # Errors
    /// It is there and refuses.
    pub(crate) fn set(&self, time: i64) -> Result<(), Failed> {
        let failed = |error: &io::Error| {
            let errno = error.raw_os_error().unwrap_or_default();
            Failed::system("the system's clock is set, but failed to set the hardware clock", errno)
        };
        let device = match open() {
            Ok(device) => device,
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(failed(&errno.into())),
        };
        let nearest = time.saturating_add(NANOSECONDS / 2).div_euclid(NANOSECONDS);
        let shown = fields(nearest.saturating_add(self.zone.ahead(nearest)))
            .ok_or_else(|| failed(&io::Error::from_raw_os_error(Errno::RANGE.raw_os_error())))?;
        match set(device.as_fd(), &shown) {
            // A date that this clock has no digits for: PCs' end with 2069. The system's is set, which is what was asked for.
            Err(error)
                if [Errno::INVAL, Errno::RANGE]
                    .map(|errno| Some(errno.raw_os_error()))
                    .contains(&error.raw_os_error()) =>
            {
                eprintln!("clock: the hardware clock cannot show the year {}", i64::from(shown.year) + 1900);
                Ok(())
            }
            result => result.map_err(|error| failed(&error)),
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let mut tries = 1;
    loop {
        match rustix::fs::openat(CWD, DEVICE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::BUSY) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// What a clock shows at so many seconds after the epoch, in its own zone.
fn fields(seconds: i64) -> Option<HardwareTime> {
    let date = UtcDateTime::from_timespec(seconds, 0).ok()?;
    Some(HardwareTime {
        second: date.second().into(),
        minute: date.minute().into(),
        hour: date.hour().into(),
        day: date.month_day().into(),
        month: i32::from(date.month()) - 1,
        year: date.year().checked_sub(1900)?,
        ..HardwareTime::default()
    })
}

/// The instant that a clock shows. In the hour that a local clock shows twice, the one by the offset of the other side counts.
fn seconds(shown: &HardwareTime, zone: &Zone) -> Option<i64> {
    let small = |number: i32| u8::try_from(number).ok();
    let local = UtcDateTime::new(
        shown.year.checked_add(1900)?,
        small(shown.month.checked_add(1)?)?,
        small(shown.day)?,
        small(shown.hour)?,
        small(shown.minute)?,
        small(shown.second)?,
        0,
    )
    .ok()?
    .unix_time();
    let guess = local.saturating_sub(zone.ahead(local));
    Some(local.saturating_sub(zone.ahead(guess)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(seconds: i64) -> [i32; 6] {
        let time = fields(seconds).unwrap();
        [time.year, time.month, time.day, time.hour, time.minute, time.second]
    }

    #[test]
    fn the_clock_shows_the_calendar_with_its_leap_years() {
        assert_eq!(shown(0), [70, 0, 1, 0, 0, 0]);
        assert_eq!(shown(951_782_400), [100, 1, 29, 0, 0, 0]);
        assert_eq!(shown(4_107_542_400), [200, 2, 1, 0, 0, 0]); // 2100 is no leap year
        assert_eq!(shown(3_313_526_399), [174, 11, 31, 23, 59, 59]); // beyond 2069
    }

    #[test]
    fn every_instant_of_two_centuries_reads_as_it_was_set() {
        for zone in [Zone::Utc, Zone::Local(TimeZone::fixed(-12_600).unwrap())] {
            for step in 0..50_000_i64 {
                let instant = step * 126_227 + 13;
                let time = fields(instant + zone.ahead(instant)).unwrap();
                let read = seconds(&time, &zone).unwrap();
                assert_eq!(read, instant);
            }
        }
    }

    #[test]
    fn a_clock_without_a_date_is_not_believed() {
        assert_eq!(seconds(&HardwareTime::default(), &Zone::Utc), None);
        let time = HardwareTime { day: 31, month: 1, year: 124, ..HardwareTime::default() };
        assert_eq!(seconds(&time, &Zone::Utc), None);
    }

    #[test]
    fn only_the_third_line_says_local() {
        assert!(is_local("0.0 0 0.0\n0\nLOCAL\n"));
        assert!(!is_local("0.0 0 0.0\n0\nUTC\n"));
        assert!(!is_local("LOCAL\n"));
        assert!(!is_local(""));
    }
}

//! The hardware clock's two commands of ioctl(2), for the clock worker alone; `rtc(4)`.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// include/uapi/linux/rtc.h, as in `policy/seccomp/clock.policy`.
const RTC_RD_TIME: libc::Ioctl = 0x8024_7009_u32 as libc::Ioctl;
const RTC_SET_TIME: libc::Ioctl = 0x4024_700a_u32 as libc::Ioctl;

/// `struct rtc_time`: what the clock shows. Fields as in `gmtime(3)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardwareTime {
    /// 0 to 59.
    pub second: libc::c_int,
    /// 0 to 59.
    pub minute: libc::c_int,
    /// 0 to 23.
    pub hour: libc::c_int,
    /// 1 to 31.
    pub day: libc::c_int,
    /// 0 to 11.
    pub month: libc::c_int,
    /// Since 1900.
    pub year: libc::c_int,
    /// Not used by the kernel when setting.
    pub week_day: libc::c_int,
    /// Not used by the kernel when setting.
    pub year_day: libc::c_int,
    /// Not used by the kernel when setting.
    pub daylight_saving: libc::c_int,
}

/// Reads the hardware clock.
///
/// # Errors
/// The errno of ioctl(2); EINVAL if the clock shows no time.
pub fn read(device: BorrowedFd<'_>) -> io::Result<HardwareTime> {
    let mut time = HardwareTime::default();
    // SAFETY: RTC_RD_TIME writes one rtc_time, which HardwareTime is; it is alive across the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RTC_RD_TIME, &raw mut time) })?;
    Ok(time)
}

/// Sets the hardware clock. Needs CAP_SYS_TIME.
///
/// # Errors
/// The errno of ioctl(2); EINVAL or ERANGE for a time that the clock cannot show.
pub fn set(device: BorrowedFd<'_>, time: &HardwareTime) -> io::Result<()> {
    // SAFETY: RTC_SET_TIME reads one rtc_time, which HardwareTime is; it is alive across the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RTC_SET_TIME, &raw const *time) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

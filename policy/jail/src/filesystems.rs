//! The three commands of ioctl(2) that freeze, thaw and trim, for the fsfreeze worker alone.
//!
//! They act on the whole filesystem that the descriptor lies on, need CAP_SYS_ADMIN, and any open descriptor will do
//! (`fs/ioctl.c`, `ioctl_fsfreeze`, `ioctl_fsthaw`, `ioctl_fstrim`).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// include/uapi/linux/fs.h, as in `policy/seccomp/fsfreeze.policy`.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;
const FITRIM: libc::Ioctl = 0xc018_5879_u32 as libc::Ioctl;

/// `struct fstrim_range`, include/uapi/linux/fs.h.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
    minimum: u64,
}

/// Writes out all that is dirty and stops every writer until the thaw.
///
/// # Errors
/// EBUSY: it is frozen already. EOPNOTSUPP: it cannot be. Others are I/O errors.
pub fn freeze(place: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FIFREEZE takes no argument; the 0 is not looked at.
    check(unsafe { libc::ioctl(place.as_raw_fd(), FIFREEZE, 0) })
}

/// Takes one freeze back.
///
/// # Errors
/// EINVAL: it is not frozen.
pub fn thaw(place: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FITHAW takes no argument; the 0 is not looked at.
    check(unsafe { libc::ioctl(place.as_raw_fd(), FITHAW, 0) })
}

/// Tells the device which blocks are unused, in free extents of at least `minimum` bytes.
///
/// Returns the bytes that were discarded and the smallest extent that was looked at, in bytes.
///
/// # Errors
/// EOPNOTSUPP or ENOTTY: filesystem or device cannot. Others are I/O errors.
pub fn trim(place: BorrowedFd<'_>, minimum: u64) -> io::Result<(u64, u64)> {
    let mut range = Range { start: 0, length: u64::MAX, minimum };
    // SAFETY: FITRIM reads and writes one fstrim_range, alive across the call.
    check(unsafe { libc::ioctl(place.as_raw_fd(), FITRIM, &raw mut range) })?;
    Ok((range.length, range.minimum))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! The descriptors a process was born with, and its end.
//!
//! The numbers are the contract between the spawner and every role (`docs/design.md`, "What a process is born with").
//! A number is taken once, so that two owners of one descriptor cannot come about.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit for each number that was taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Takes descriptor `number` as this process's own; it is closed when the result is dropped.
///
/// `number` is 0 to 63. The descriptor gets close-on-exec, so that no command started later inherits it.
///
/// # Errors
/// EBADF if it is not open, EBUSY if it was taken before, EINVAL for a number above 63.
pub fn take_fd(number: RawFd) -> io::Result<OwnedFd> {
    let bit = u32::try_from(number)
        .ok()
        .and_then(|shift| 1u64.checked_shl(shift))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: F_GETFD takes no third argument and only reads the flags of the number; any number may be asked about.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if TAKEN.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: F_SETFD takes an int, and only changes the flags of a number that was just found open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (F_GETFD succeeded) and nobody else owns it: the spawner put it there before this program
    // began, and the bit in TAKEN, set by this call alone, keeps a second caller out.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on.
///
/// For a process that is not started by the spawner, which has closed them: who started it may have left some open.
///
/// # Errors
/// The errno of `close_range(2)`: ENOSYS before Linux 5.9. EBUSY if one was taken before: it would be closed under its owner.
pub fn close_from(first: u32) -> io::Result<()> {
    if TAKEN.load(Ordering::SeqCst) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: close_range takes three numbers. None of the descriptors has an owner in this program: take_fd has given none away,
    // as was just asked, and callers have opened none, since this is for the start of main.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lists the open descriptors in ascending order.
///
/// # Errors
/// Those of reading `/proc/self/fd`: fails in a jail that has no `/proc`.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    // The listing holds the descriptor it was made with; it is closed by now.
    // SAFETY: F_GETFD takes no third argument and only reads flags; any number may be asked about.
    numbers.retain(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0);
    numbers.sort_unstable();
    Ok(numbers)
}

/// Ends the process at once with `code`: no destructors, no exit handlers, no buffered output.
///
/// For a process that may not go on: handlers and destructors could make calls that its filter answers with SIGSYS,
/// and the reason would be lost.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions; nothing of ours relies on destructors or exit handlers.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn a_descriptor_is_taken_once_and_then_busy() {
        // High, so that other tests of this process do not get the number.
        let number =
            nix::fcntl::fcntl(std::io::stderr(), nix::fcntl::FcntlArg::F_DUPFD(50)).expect("duplicates");
        let taken = take_fd(number).expect("it is open");
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(take_fd(number).expect_err("it is taken").raw_os_error(), Some(libc::EBUSY));
        let _ = taken.into_raw_fd();
    }

    #[test]
    fn what_is_not_open_cannot_be_taken() {
        assert_eq!(take_fd(63).expect_err("not open").raw_os_error(), Some(libc::EBADF));
        assert_eq!(take_fd(64).expect_err("too high").raw_os_error(), Some(libc::EINVAL));
        assert_eq!(take_fd(-1).expect_err("negative").raw_os_error(), Some(libc::EINVAL));
    }
}

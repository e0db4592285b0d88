//! Signals to process 1, for the power worker alone. By number: real-time signals have no names that agree between C libraries.

use std::io;

/// Sends `signal` to process 1. Needs CAP_KILL, or to be root.
///
/// # Errors
/// EPERM: no right to it. ESRCH does not happen: there always is a process 1.
pub fn signal(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill takes two numbers; 1 is never a process of ours.
    if unsafe { libc::kill(1, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

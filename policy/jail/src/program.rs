//! Where a program of the agent begins, without the start of std.
//!
//! Runs first in spawner, broker and frontend, which start one after the other while a host waits. std's start reads
//! `/proc/self/maps` with libc's scanf to find the end of the stack, for the text of one message; that is a tenth of what such a
//! process does until it serves. What else it does, the spawner has done for its children (descriptors 0 to 2 are open) or is done here.

use std::ffi::c_int;

/// Makes a function that returns an exit status the first one of a program.
///
/// Where libc hands `std::env::args` its words only through std's start, that is what is used.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        // SAFETY: libc looks for this name with this signature, and there is no other of the name: the crate is `no_main`.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn main(_: ::std::ffi::c_int, _: *const *const ::std::ffi::c_char) -> ::std::ffi::c_int {
            $crate::run($main)
        }

        #[cfg(not(target_env = "gnu"))]
        fn main() {
            $crate::run($main);
        }
    };
}

/// Runs `main` and ends the process with what it returns. For [`main!`](crate::main!) only.
#[doc(hidden)]
pub fn run(main: fn() -> c_int) -> ! {
    // As std does: a peer that has gone is an error of write(2), not the end.
    // SAFETY: SIG_IGN is no function of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    std::process::exit(main())
}

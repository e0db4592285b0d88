//! Real guests for tests: prepared once, booted in seconds, driven from outside.
//!
//! Runs in test processes, as root, on Debian 12. A guest is QEMU with software emulation, Debian's cloud kernel, and
//! busybox or systemd; the agents under test are in it, and everything that would harm the machine that runs the tests is
//! done in there. A test reads as a story:
//!
//! ```no_run
//! let mut guest = vm::Guest::with(vm::Options::default().disks()).unwrap();
//! guest.start_portreeve(&[]);
//! assert_eq!(guest.agent.call("guest-fsfreeze-freeze", ()).unwrap(), 4);
//! assert_eq!(guest.sh("cat /sys/class/rtc/rtc0/name").0, 0);
//! ```
#![forbid(unsafe_code)]

mod archive;
mod guest;
mod libvirt;
mod prepare;
mod systemd;
mod talk;
mod vsock;

pub use guest::{Guest, Options};
pub use libvirt::Domain;
pub use prepare::{Part, Prepared, prepare};
pub use systemd::Service;
pub use talk::{Agent, AgentError, Qmp, Shell};
pub use vsock::Vsock;

/// Whether guests can run here, and `parts` are there; if not, says so loudly, and fails in CI.
///
/// # Panics
/// In CI, where no story may be left out.
pub fn possible(parts: &[Part]) -> bool {
    if !tests::programs::is_root() {
        tests::programs::left_out("virtual machines are prepared by root");
        return false;
    }
    if let Some(why) = prepare::missing(parts) {
        tests::programs::left_out(&format!("no virtual machine: {why}"));
        return false;
    }
    true
}

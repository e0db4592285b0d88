//! The audit worker: hands records of the audit log to the kernel's audit.
//!
//! Runs in a process of its own with CAP_AUDIT_WRITE, in an empty root and an empty network, and only where the audit log has the sink
//! `kernel`. It trusts the kernel. What the broker sends it is data: compared with limits, and encoded as audit's own programs encode
//! what they do not trust, so that no record can pass for another or for two. It decides nothing, reads nothing, and keeps nothing.
//!
//! The kernel may hold it up, for as long as auditd does not keep up with its disk; nobody waits for that but this process.
#![forbid(unsafe_code)]

mod kernel;
mod text;

use jail::Role;
use kernel::Kernel;
use nix::sys::signal::{SigSet, Signal};
use runtime::{Birth, give_up};
use text::Text;

fn main() {
    let birth = Birth::of(Role::Audit);
    // As libaudit does. Whoever reads the record may want to know who says so; it is said by the kernel, in `pid` and `uid`, as well.
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let mut kernel = Kernel::open().unwrap_or_else(|errno| {
        give_up(Role::Audit, &format_args!("cannot open a socket to the kernel's audit: {errno}"))
    });
    stay_for_the_last_record();
    let connection = birth.enter(|| {});
    let mut text = Text::new(&program);
    connection.serve_records(|about, record| {
        for part in text.parts(about, record)? {
            if let Err(failed) = kernel.record(&part) {
                return Ok(Err(failed));
            }
        }
        Ok(Ok(()))
    });
    jail::exit_now(0)
}

/// The agent ends all its processes at the same time. The broker's last record may still be on its way: behind it comes the end of the
/// socket, which ends this process as well.
fn stay_for_the_last_record() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    // Without it the last record may be missing, which shows.
    let _ = set.thread_block();
}

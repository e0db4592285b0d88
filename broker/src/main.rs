//! `portreeve-broker`: takes what it was born with, shuts its jail, serves.
#![forbid(unsafe_code)]
#![cfg_attr(target_env = "gnu", no_main)]

use broker::{Audit, Birth, Descriptors, Numbers};
use jail::{Ground, Role};
use nix::sys::signal::{SigSet, Signal};

/// To the spawner.
const CONTROL: i32 = 3;
/// Settings and policy.
const SEALED: i32 = 4;
/// The audit log's file, if there is one.
const AUDIT: i32 = 5;
/// The state file, if there is one.
const STATE: i32 = 6;
/// The file that says whether something is frozen, if there is one.
const MARKER: i32 = 7;
/// The socket of a log daemon, if there is one.
const AUDIT_SOCKET: i32 = 8;
/// Where the audit log's chain stands.
const CHAIN: i32 = 9;

jail::main!(broker);

fn broker() -> i32 {
    jail::report_panics(Role::Broker);
    match serve() {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("broker: {why}");
            1
        }
    }
}

fn serve() -> Result<(), String> {
    // A unit's processes are all told to end at once. This one ends when the spawner closes its socket: until then it has a thaw
    // to see to, its hook, and a last record to write.
    let mut told = SigSet::empty();
    told.add(Signal::SIGTERM);
    told.thread_block().map_err(|error| format!("SIGTERM: {error}"))?;
    let ground = Ground::from_arguments(Role::Broker).map_err(|error| error.to_string())?;
    let control = jail::take_fd(CONTROL).map_err(|error| format!("control socket: {error}"))?;
    let sealed = jail::take_fd(SEALED).map_err(|error| format!("settings and policy: {error}"))?;
    let sealed = broker::read_sealed(&sealed)?;
    broker::log_to_stderr(sealed.settings.verbose);
    let audit = Descriptors {
        file: jail::take_fd(AUDIT).ok(),
        socket: jail::take_fd(AUDIT_SOCKET).ok(),
        chain: jail::take_fd(CHAIN).ok(),
    };
    let audit = Audit::new(&sealed.settings.audit, audit)?;
    let numbers = Numbers::new(jail::take_fd(STATE).ok());
    let marker = jail::take_fd(MARKER).ok();
    broker::run(Birth { sealed, control, audit, numbers, marker }, &ground)
}

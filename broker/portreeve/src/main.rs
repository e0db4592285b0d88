//! `portreeve`: the command people type, also under the names `qemu-ga` and `phoenix-ga`.
//!
//! Runs with the rights of its caller, usually root, and reads what root wrote: options, environment, configuration. To run the agent it
//! parses no policy (a confined child does; `portreeve policy` does so itself, for whoever types it) and nothing that comes from a host,
//! except for `portreeve call`, which is a client on the host's side and distrusts the guest, and `portreeve audit`, which distrusts the
//! logs that it reads. To run the agent it execs the spawner in its own place, so that the
//! process id stays; it never serves a request.
#![forbid(unsafe_code)]

mod activation;
mod audit;
mod auditor;
mod call;
mod configuration;
mod daemon;
mod doctor;
mod getopt;
mod key_file;
mod launch;
mod left_frozen;
mod marker;
mod phoenix_ga;
mod policy;
mod policy_tools;
mod qemu_ga;
mod recompile;
mod reload;
mod say;
mod state;
mod subcommands;
mod terminal;
mod trust;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    jail::report_panics_as("portreeve");
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.first().map(OsString::as_os_str).unwrap_or_else(|| OsStr::new("portreeve"));
    match Path::new(called).file_name().and_then(OsStr::to_str) {
        Some("qemu-ga") => qemu_ga::main(&arguments),
        Some("phoenix-ga") => phoenix_ga::main(&arguments),
        Some("portreeve-recompile") => recompile::main(&arguments),
        _ => subcommands::main(&arguments),
    }
}

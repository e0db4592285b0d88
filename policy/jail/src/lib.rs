//! Enters a sandbox: what a process may still do is decided here and nowhere else.
//!
//! Runs in every process of the agent, as the first thing in `main`, before one byte of a peer is read. It trusts
//! the process's own arguments and the descriptors it was born with (the spawner gave both), and nothing else.
//! It never gives a right back: each step is one way, and a step that fails ends the process.
//!
//! - [`roles`]: one row for each role says what it keeps. The sandbox, the prober's expectations and the
//!   documents come from the same rows.
//! - `policy/seccomp/*.policy`: the system calls of each role, a reason on every line; compiled into [`seccomp`] tables.
//! - [`enter`]: stage B, the order in which rights are given up.
//! - [`descriptors`], [`sealed`]: what a process is born with, and the sealed form of settings and policy.
//! - [`memory`]: large blocks go back to the system.
//! - [`main!`]: where a program begins.
//! - [`spawn`]: programs that workers start. [`filesystems`]: freezing and trimming.
//! - [`probe`]: the same sandbox with refusals as errors, for tests that try every system call.
//!
//! With `broker/spawner` this is the only crate that contains `unsafe`.

pub mod clock;
pub mod descriptors;
pub mod empty;
mod enter;
pub mod filesystems;
pub mod init;
mod landlock_rules;
pub mod memory;
mod panics;
pub mod probe;
mod program;
mod report;
mod role;
pub mod roles;
pub mod sealed;
pub mod seccomp;
pub mod spawn;

pub use descriptors::{close_from, exit_now, open_descriptors, take_fd};
pub use enter::{
    EnterError, Entered, FileRights, Ground, IN_EMPTY_NETWORK, Landlock, Need, Root, Step, User,
    WITH_EMPTY_ROOT, enter,
};
pub use panics::{report_panics, report_panics_as};
pub use program::run;
pub use role::{DEFAULT_UID_BASE, Role, UnknownRole};

//! What a rule that allows still asks of how a request is carried out.

use bincode::{Decode, Encode};

use crate::Redaction;

/// Limits and ways of doing it. `None` is no limit but the agent's own.
///
/// Whoever does the work keeps them, each in its place: the broker counts and times, the worker, which has found the same rule in its
/// own copy of the policy, limits what it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Terms {
    /// Bytes that one request may read or write.
    pub request_bytes: Option<u64>,
    /// Bytes that may be read from and written to one open file, together.
    pub handle_bytes: Option<u64>,
    /// Files that may be open by this rule at one time.
    pub open_files: Option<u32>,
    /// Requests that this rule lets through in a second, on average; ten times as many at once. See [`is_never_counted`](crate::is_never_counted).
    pub requests_per_second: Option<u32>,
    /// Seconds that a program may run; then it is killed with its process group, which ends with it in any case.
    pub run_seconds: Option<u32>,
    /// Bytes of each of its outputs that are kept, up to 16 MiB, which is also what is kept without this.
    pub output_bytes: Option<u64>,
    /// Who a program runs as.
    pub run_as: Option<RunAs>,
    /// Seconds that filesystems may stay frozen, if less than what is configured.
    pub freeze_seconds: Option<u32>,
    /// Seconds that one request may move the clock, if less than what is configured.
    pub clock_step_seconds: Option<u32>,
    /// What is left out of the reply.
    pub redaction: Redaction,
}

/// A user by number, without other groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct RunAs {
    /// Never 4294967295, which means "leave it".
    pub uid: u32,
    /// The same.
    pub gid: u32,
}

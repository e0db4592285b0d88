//! Shutdown, reboot and suspend. They answer only when they fail.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::NoArguments;
use crate::agent::Nothing;

commands! {
    privilege Power;
    /// Powers off, halts or reboots, in an orderly way.
    Power Qga "guest-shutdown" => Shutdown(Shutdown) -> Nothing, silent true;
    /// Suspends to disk.
    Power Qga "guest-suspend-disk" => SuspendDisk(NoArguments) -> Nothing, silent true;
    /// Suspends to memory.
    Power Qga "guest-suspend-ram" => SuspendRam(NoArguments) -> Nothing, silent true;
    /// Suspends to both.
    Power Qga "guest-suspend-hybrid" => SuspendHybrid(NoArguments) -> Nothing, silent true;
}

/// Arguments of `guest-shutdown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Shutdown {
    /// `powerdown` (if absent), `halt` or `reboot`; anything else is an error of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

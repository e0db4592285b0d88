//! Freezing, thawing and trimming filesystems. One worker, started before it is needed, holds CAP_SYS_ADMIN and
//! three commands of ioctl(2); the broker keeps the state and the deadline.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{NoArguments, Text};

commands! {
    privilege Fsfreeze;
    /// Whether the agent holds filesystems frozen; waits for a freeze or thaw under way.
    Agent Qga "guest-fsfreeze-status" => Status(NoArguments) -> Status;
    /// Freezes every filesystem that can be.
    Fsfreeze Qga "guest-fsfreeze-freeze" => Freeze(NoArguments) -> i64;
    /// Freezes those mounted at the given places.
    Fsfreeze Qga "guest-fsfreeze-freeze-list" => FreezeList(FreezeList) -> i64;
    /// Thaws all of them, whoever froze them.
    Fsfreeze Qga "guest-fsfreeze-thaw" => Thaw(NoArguments) -> i64;
    /// Tells the disks which blocks are unused.
    Fsfreeze Qga "guest-fstrim" => Trim(Trim) -> TrimReport;
    /// Freezes every filesystem that can be. The worker says whether there was any, the host is told `true`.
    Fsfreeze Phoenix "fs-freeze" => PhoenixFreeze(NoArguments) -> bool;
    /// Thaws all of them, whoever froze them.
    Fsfreeze Phoenix "fs-unfreeze" => PhoenixThaw(NoArguments) -> bool;
    /// Whether the agent holds filesystems frozen.
    Agent Phoenix "get-freeze-status" => PhoenixStatus(NoArguments) -> bool;
}

/// `guest-fsfreeze-status`: the agent's own state, not the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has frozen nothing.
    Thawed,
    /// It holds filesystems frozen.
    Frozen,
}

/// Arguments of `guest-fsfreeze-freeze-list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct FreezeList {
    /// Mount points, spelled as the kernel does; others are ignored. All, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoints: Option<Vec<Text>>,
}

/// Arguments of `guest-fstrim`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Trim {
    /// Smallest free extent to discard, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
}

/// What `guest-fstrim` did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct TrimReport {
    /// One entry for each mount, in the reverse order of mounting.
    pub paths: Vec<Trimmed>,
}

/// One mount of a [`TrimReport`]: either `error`, or the other two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Trimmed {
    /// Where it is mounted.
    pub path: String,
    /// Bytes that the kernel reported as discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trimmed: Option<i64>,
    /// The smallest extent that was looked at, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
    /// Why nothing was discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

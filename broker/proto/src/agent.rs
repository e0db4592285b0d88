//! About the agent itself. No worker: the frontend answers these in front from what the broker handed it,
//! except `agent-shutdown`, which is the broker's.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::NoArguments;

commands! {
    privilege Agent;
    /// Echoes a number behind the byte FF, so that a client can find its place in the stream.
    Agent Qga "guest-sync-delimited" => SyncDelimited(Sync) -> i64;
    /// Echoes a number.
    Agent Qga "guest-sync" => Sync(Sync) -> i64;
    /// Says that the agent lives.
    Agent Qga "guest-ping" => Ping(NoArguments) -> Nothing;
    /// Version and commands.
    Agent Qga "guest-info" => Info(NoArguments) -> Info;
    /// Where the audit log's chain stands.
    Audit Qga "guest-audit-head" => AuditHead(NoArguments) -> AuditHead, extension true;
    /// The version, as a string.
    Agent Phoenix "ping" => PhoenixPing(NoArguments) -> String;
    /// The names of all commands.
    Agent Phoenix "get-commands" => Commands(NoArguments) -> Vec<String>;
    /// Ends the agent (not the guest).
    Power Phoenix "agent-shutdown" => Shutdown(NoArguments) -> bool;
}

/// `{}`: done, and nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize)]
pub struct Nothing {}

/// Arguments of both syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Sync {
    /// Any number; it comes back.
    pub id: i64,
}

/// `guest-audit-head`: the last record of the log, for a witness outside of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct AuditHead {
    /// Its number.
    pub sequence: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub hash: String,
}

/// `guest-info`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Info {
    /// `<major>.<minor>.<micro>` of the level that is reproduced.
    pub version: String,
    /// Every command of the dialect, permitted or not.
    pub supported_commands: Vec<CommandInfo>,
}

/// One command in `guest-info`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommandInfo {
    /// Its name.
    pub name: String,
    /// Whether it is served now.
    pub enabled: bool,
    /// Whether it answers on success.
    pub success_response: bool,
}

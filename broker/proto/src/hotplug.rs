//! Taking CPUs and memory blocks online and offline.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

commands! {
    privilege Hotplug;
    /// Takes CPUs online and offline, one after the other.
    Hotplug Qga "guest-set-vcpus" => SetVcpus(SetVcpus) -> i64;
    /// Takes memory blocks online and offline, with a result for each.
    Hotplug Qga "guest-set-memory-blocks" => SetMemoryBlocks(SetMemoryBlocks) -> Vec<MemoryBlockResult>;
}

/// Arguments of `guest-set-vcpus`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct SetVcpus {
    /// What to do, in this order.
    pub vcpus: Vec<Vcpu>,
}

/// One CPU.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vcpu {
    /// Its number in sysfs.
    pub logical_id: i64,
    /// What it is to be.
    pub online: bool,
    /// Not looked at; clients send back what they were told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_offline: Option<bool>,
}

/// Arguments of `guest-set-memory-blocks`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SetMemoryBlocks {
    /// What to do, in this order.
    pub mem_blks: Vec<MemoryBlock>,
}

/// One memory block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryBlock {
    /// Its number in sysfs.
    pub phys_index: u64,
    /// What it is to be.
    pub online: bool,
    /// Not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_offline: Option<bool>,
}

/// What became of one block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryBlockResult {
    /// Its number in sysfs.
    pub phys_index: u64,
    /// How it went.
    pub response: MemoryBlockResponse,
    /// The Linux errno of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<i32>,
}

/// How it went with one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBlockResponse {
    /// It is what was asked for.
    Success,
    /// There is no such block.
    NotFound,
    /// It has no state that could be changed.
    OperationNotSupported,
    /// The kernel refused.
    OperationFailed,
}

//! What is left out of replies, so that they say less and still have their shape.

use bincode::{Decode, Encode};

use crate::Pattern;

/// Items and members to leave out of a reply. Empty lists leave everything in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Redaction {
    /// Interfaces that are not told of.
    pub interfaces: Vec<Pattern>,
    /// Filesystems that are not told of, by mount point.
    pub mountpoints: Vec<Pattern>,
    /// Users that are not told of.
    pub users: Vec<Pattern>,
    /// Disks that are not told of, by the name of their device.
    pub disks: Vec<Pattern>,
    /// Members that are left out, or blank where a client needs them.
    pub members: Vec<Member>,
}

/// A kind of information that can be left out wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Member {
    /// Serial numbers of disks.
    Serials,
    /// Hardware addresses of interfaces.
    HardwareAddresses,
    /// Addresses of interfaces.
    Addresses,
    /// Counters of interfaces.
    Statistics,
    /// Release and version of the kernel.
    Kernel,
    /// Sizes of filesystems.
    Sizes,
}

impl Member {
    /// Every one, as written in a policy.
    pub const ALL: [(&'static str, Member); 6] = [
        ("serials", Member::Serials),
        ("hardware-addresses", Member::HardwareAddresses),
        ("addresses", Member::Addresses),
        ("statistics", Member::Statistics),
        ("kernel", Member::Kernel),
        ("sizes", Member::Sizes),
    ];
}

impl Redaction {
    /// Whether everything is left in.
    pub fn is_empty(&self) -> bool {
        *self == Redaction::default()
    }
}

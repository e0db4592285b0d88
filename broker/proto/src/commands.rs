//! Rows that name commands become request, reply, decoder and table.
//!
//! Runs in every process; trusts nothing, holds no state.

use bincode::{Decode, Encode};

use crate::Privilege;

/// The two protocols that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Dialect {
    /// QEMU's guest agent protocol.
    Qga,
    /// Phoenix's guest agent protocol, 0.7.
    Phoenix,
}

impl Dialect {
    /// As written in configuration, policy and audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Dialect::Qga => "qga",
            Dialect::Phoenix => "phoenix",
        }
    }
}

/// What kind of right a command uses; the names that a policy can grant by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Group {
    /// Says something about the agent; has no effect.
    Agent,
    /// Reads facts of the guest.
    Query,
    /// Opens, reads, lists files.
    FileRead,
    /// Writes files, their modes and owners. `guest-file-open` is in here when its mode writes.
    FileWrite,
    /// Reads interfaces and routes.
    NetQuery,
    /// Changes the network.
    NetChange,
    /// Runs programs.
    Exec,
    /// Freezes, thaws and trims filesystems.
    Fsfreeze,
    /// Shuts down, reboots, suspends.
    Power,
    /// Sets the clock.
    Clock,
    /// Takes CPUs and memory online and offline.
    Hotplug,
    /// Sets passwords and authorized keys.
    Account,
    /// Reads where the audit log stands.
    Audit,
}

impl Group {
    /// Every group.
    pub const ALL: &[Group] = &[
        Group::Agent,
        Group::Query,
        Group::FileRead,
        Group::FileWrite,
        Group::NetQuery,
        Group::NetChange,
        Group::Exec,
        Group::Fsfreeze,
        Group::Power,
        Group::Clock,
        Group::Hotplug,
        Group::Account,
        Group::Audit,
    ];

    /// As written in a policy.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Agent => "agent",
            Group::Query => "query",
            Group::FileRead => "file.read",
            Group::FileWrite => "file.write",
            Group::NetQuery => "net.query",
            Group::NetChange => "net.change",
            Group::Exec => "exec",
            Group::Fsfreeze => "fsfreeze",
            Group::Power => "power",
            Group::Clock => "clock",
            Group::Hotplug => "hotplug",
            Group::Account => "account",
            Group::Audit => "audit",
        }
    }
}

impl Group {
    /// Whether it can change the guest, so that a use of it is recorded before it is made.
    pub const fn changes(self) -> bool {
        match self {
            Group::Agent | Group::Query | Group::FileRead | Group::NetQuery | Group::Audit => false,
            Group::FileWrite
            | Group::NetChange
            | Group::Exec
            | Group::Fsfreeze
            | Group::Power
            | Group::Clock
            | Group::Hotplug
            | Group::Account => true,
        }
    }
}

/// A member of a reply whose value is sent ahead of it in pieces, as raw bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// The member's name; its value on the wire is base64.
    pub member: &'static str,
    /// Whether it is there (as `""`) when no byte was sent.
    pub always: bool,
}

/// One row of the contract.
#[derive(Debug, PartialEq, Eq)]
pub struct Command {
    /// The name on the wire, then old names for the same.
    pub names: &'static [&'static str],
    /// The dialect it belongs to.
    pub dialect: Dialect,
    /// The right it needs.
    pub privilege: Privilege,
    /// What a policy grants it by.
    pub group: Group,
    /// Whether it says nothing on success: its client waits for the machine, not for an answer.
    pub silent: bool,
    /// Whether qemu-ga does not have it on Linux: unknown where nothing may differ, unless that was configured.
    pub extension: bool,
    /// Reply members that come in pieces, in this order.
    pub streams: &'static [Stream],
}

impl Command {
    /// The name on the wire.
    pub fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    /// The rights that calls of it can need: its own, and writing for what opens files.
    pub fn groups(&self) -> impl Iterator<Item = Group> + use<> {
        let opens = matches!(self.name(), "guest-file-open" | "file-open");
        [Some(self.group), opens.then_some(Group::FileWrite)].into_iter().flatten()
    }

    /// Its position in [`crate::commands`]: stable within one build, never stored.
    pub fn id(&'static self) -> CommandId {
        let position = crate::commands().position(|command| std::ptr::eq(command, self));
        CommandId(position.and_then(|position| u16::try_from(position).ok()).unwrap_or(u16::MAX))
    }
}

/// Identifies a command within one build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct CommandId(pub u16);

/// Declares the commands of one privilege: rows of
/// `Group dialect "name" | "old name" => Variant(Arguments) -> Reply, [silent true], [extension true], [streams ...], [payload field];`
macro_rules! commands {
    (
        privilege $privilege:ident;
        $(
            $(#[$doc:meta])*
            $group:ident $dialect:ident $($name:literal)|+ => $variant:ident($arguments:ty) -> $reply:ty
            $(, silent $silent:literal)?
            $(, extension $extension:literal)?
            $(, streams [$($member:literal $always:literal),+])?
            $(, payload $field:ident)?
            ;
        )+
    ) => {
        /// A call of one of this privilege's commands. Serialised, it is what the audit log may show of the arguments.
        #[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize)]
        #[serde(untagged)]
        pub enum Request { $($(#[$doc])* $variant($arguments)),+ }

        /// What the commands of this privilege return.
        #[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode, serde::Serialize)]
        #[serde(untagged)]
        pub enum Reply { $($(#[$doc])* $variant($reply)),+ }

        #[repr(usize)]
        enum Row { $($variant),+ }

        /// The rows of this privilege.
        pub static COMMANDS: &[$crate::Command] = &[$($crate::Command {
            names: &[$($name),+],
            dialect: $crate::Dialect::$dialect,
            privilege: $crate::Privilege::$privilege,
            group: $crate::Group::$group,
            silent: false $(|| $silent)?,
            extension: false $(|| $extension)?,
            streams: &[$($($crate::Stream { member: $member, always: $always }),+)?],
        }),+];

        impl Reply {
            /// The command that this is a reply of.
            pub fn command(&self) -> &'static $crate::Command {
                let row = match self { $(Reply::$variant(_) => Row::$variant as usize),+ };
                COMMANDS.get(row).expect("the enum and the table come from the same rows")
            }
        }

        impl Request {
            /// The command this is a call of.
            pub fn command(&self) -> &'static $crate::Command {
                let row = match self { $(Request::$variant(_) => Row::$variant as usize),+ };
                COMMANDS.get(row).expect("the enum and the table come from the same rows")
            }

            /// The bulk data that goes with the request, if its command takes any.
            pub fn payload(&self) -> Option<&$crate::Payload> {
                match self {
                    $($(Request::$variant(arguments) => Some(&arguments.$field),)?)+
                    #[allow(unreachable_patterns, reason = "a privilege may have a payload in every row")]
                    _ => None,
                }
            }

            /// As [`Self::payload`], to take the text out of it.
            pub fn payload_mut(&mut self) -> Option<&mut $crate::Payload> {
                match self {
                    $($(Request::$variant(arguments) => Some(&mut arguments.$field),)?)+
                    #[allow(unreachable_patterns, reason = "a privilege may have a payload in every row")]
                    _ => None,
                }
            }

            /// Decodes the arguments of `command`, which must be one of [`COMMANDS`].
            pub(crate) fn decode<'de, D: serde::Deserializer<'de>>(
                command: &'static $crate::Command,
                arguments: D,
            ) -> Result<Self, D::Error> {
                use serde::Deserialize;
                let row = COMMANDS.iter().position(|row| std::ptr::eq(row, command));
                $(if row == Some(Row::$variant as usize) {
                    return <$arguments>::deserialize(arguments).map(Request::$variant);
                })+
                Err(serde::de::Error::custom(format_args!("{} is not a command of this privilege", command.name())))
            }
        }
    };
}

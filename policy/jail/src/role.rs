//! The roles and the ids they run under. Used by every process; trusts nothing, opens nothing.

/// The first user id of ours when the configuration names no other.
///
/// systemd's list of reserved ids (`docs/UIDS-GIDS.md`, "Summary") leaves 1879048192 to 2147483647 free: above the
/// ranges for containers, below the ids that do not fit into 31 bits. No user has to exist under these numbers: they are
/// never looked up, own no file, and only keep the processes apart.
pub const DEFAULT_UID_BASE: u32 = 1_900_000_000;

/// Frontends get an id each, so that one channel's frontend cannot signal or trace another's.
const FIRST_FRONTEND: u32 = 100;

/// What a process of the agent is for. The number is what spawner messages carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Role {
    /// Decides, records, routes.
    Broker = 1,
    /// Turns bytes of one channel into typed requests and back.
    Frontend = 2,
    /// Reads what the system says about itself.
    Query = 3,
    /// Reads and writes files, as far as the policy says.
    File = 4,
    /// Reads interfaces and routes.
    Net = 5,
    /// Changes interfaces and routes.
    NetAdmin = 6,
    /// Runs commands of the host's choosing.
    Exec = 7,
    /// Turns policy text into its compiled form, once, at the start.
    Compile = 8,
    /// Freezes, thaws and trims filesystems.
    Fsfreeze = 9,
    /// Shuts down, reboots, suspends.
    Power = 10,
    /// Sets the system's clock and the hardware's.
    Clock = 11,
    /// Takes CPUs and memory blocks online and offline.
    Hotplug = 12,
    /// Sets passwords and the keys that may log in.
    Account = 13,
    /// Runs the administrator's freeze hook.
    Hook = 14,
    /// Reads and writes one user's authorized keys, as that user; a child of the account worker.
    Keys = 15,
    /// Hands records of the audit log to the kernel's audit.
    Audit = 16,
}

impl Role {
    /// Every role, in the order of its number.
    pub const ALL: [Self; 16] = [
        Self::Broker,
        Self::Frontend,
        Self::Query,
        Self::File,
        Self::Net,
        Self::NetAdmin,
        Self::Exec,
        Self::Compile,
        Self::Fsfreeze,
        Self::Power,
        Self::Clock,
        Self::Hotplug,
        Self::Account,
        Self::Hook,
        Self::Keys,
        Self::Audit,
    ];

    /// Returns the word that logs, file names and the policy folder use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Frontend => "frontend",
            Self::Query => "query",
            Self::File => "file",
            Self::Net => "net",
            Self::NetAdmin => "netadmin",
            Self::Exec => "exec",
            Self::Compile => "compile",
            Self::Fsfreeze => "fsfreeze",
            Self::Power => "power",
            Self::Clock => "clock",
            Self::Hotplug => "hotplug",
            Self::Account => "account",
            Self::Hook => "hook",
            Self::Keys => "keys",
            Self::Audit => "audit",
        }
    }

    /// Returns the file name of the role's program; for [`Role::Keys`], which is the account worker's once more, the name it
    /// is called by.
    #[must_use]
    pub const fn executable(self) -> &'static str {
        match self {
            Self::Broker => "portreeve-broker",
            Self::Frontend => "portreeve-frontend",
            Self::Query => "portreeve-query",
            Self::File => "portreeve-file",
            Self::Net => "portreeve-net",
            Self::NetAdmin => "portreeve-netadmin",
            Self::Exec => "portreeve-exec",
            Self::Compile => "portreeve-compile",
            Self::Fsfreeze => "portreeve-fsfreeze",
            Self::Power => "portreeve-power",
            Self::Clock => "portreeve-clock",
            Self::Hotplug => "portreeve-hotplug",
            Self::Account => "portreeve-account",
            Self::Hook => "portreeve-hook",
            Self::Keys => "portreeve-keys",
            Self::Audit => "portreeve-audit",
        }
    }

    /// Returns the user and group id of one process of the role.
    ///
    /// `base` is the first id of ours; `instance` counts from 0 and only tells frontends apart: a replacement of a
    /// worker does the same job under the same id. None if the sum does not fit, or for a role that stays
    /// root or becomes somebody else ([`Role::Keys`]).
    #[must_use]
    pub fn uid(self, base: u32, instance: u16) -> Option<u32> {
        match self {
            Self::Exec | Self::Account | Self::Hook | Self::Keys => None,
            Self::Frontend => base.checked_add(FIRST_FRONTEND)?.checked_add(u32::from(instance)),
            _ => base.checked_add(u32::from(self as u8)),
        }
    }

    /// Whether the broker may ask the spawner to start it.
    #[must_use]
    pub const fn is_worker(self) -> bool {
        !matches!(self, Self::Broker | Self::Frontend | Self::Compile | Self::Keys)
    }
}

/// A number that is no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not the number of a role")]
pub struct UnknownRole(pub u8);

impl TryFrom<u8> for Role {
    type Error = UnknownRole;

    fn try_from(number: u8) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| *role as u8 == number).ok_or(UnknownRole(number))
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_of_the_default_base_has_a_user_id_of_its_own_and_none_is_root() {
        let base = DEFAULT_UID_BASE;
        assert_eq!(Role::Broker.uid(base, 0), Some(1_900_000_001));
        assert_eq!(Role::Query.uid(base, 0), Some(1_900_000_003));
        assert_eq!(Role::Query.uid(base, 1), Some(1_900_000_003));
        assert_eq!(Role::Frontend.uid(base, 0), Some(1_900_000_100));
        assert_eq!(Role::Frontend.uid(base, 3), Some(1_900_000_103));
        assert_eq!(Role::Exec.uid(base, 0), None);
    }

    #[test]
    fn a_base_at_the_end_of_the_range_gives_no_id_instead_of_wrapping_to_root() {
        assert_eq!(Role::Compile.uid(u32::MAX - 7, 0), None);
        assert_eq!(Role::Frontend.uid(u32::MAX - 100, 1), None);
    }

    #[test]
    fn numbers_and_roles_are_one_to_one() {
        assert_eq!(Role::try_from(7), Ok(Role::Exec));
        assert_eq!(Role::try_from(0), Err(UnknownRole(0)));
        assert_eq!(Role::try_from(17), Err(UnknownRole(17)));
    }
}

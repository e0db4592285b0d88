//! What well-known clients send, and what they lose where a policy refuses a part of it.
//!
//! Read in the clients' own source; `policy/presets/replays` has their requests in full.

/// What a client cannot do without one of its commands.
pub(crate) struct Client {
    /// Whose it is, and what for.
    pub(crate) name: &'static str,
    /// All are needed.
    pub(crate) commands: &'static [&'static str],
    /// What happens if one is refused.
    pub(crate) loses: &'static str,
}

/// Who is looked at.
pub(crate) const CLIENTS: &[Client] = &[
    Client {
        name: "libvirt's virDomainGetGuestInfo",
        commands: &[
            "guest-get-users",
            "guest-get-osinfo",
            "guest-get-timezone",
            "guest-get-host-name",
            "guest-get-fsinfo",
            "guest-get-disks",
            "guest-network-get-interfaces",
        ],
        loses: "who asks for certain kinds of information, as KubeVirt and oVirt do, gets none of them when one is refused; leave out with `redact` instead",
    },
    Client {
        name: "KubeVirt's check of the agent",
        commands: &[
            "guest-ping",
            "guest-get-time",
            "guest-info",
            "guest-shutdown",
            "guest-network-get-interfaces",
            "guest-get-fsinfo",
            "guest-get-host-name",
            "guest-get-users",
            "guest-get-timezone",
            "guest-get-osinfo",
        ],
        loses: "it calls the agent unsupported, without a reason, unless all of these are enabled",
    },
    Client {
        name: "oVirt's polling",
        commands: &[
            "guest-info",
            "guest-get-osinfo",
            "guest-get-timezone",
            "guest-get-host-name",
            "guest-get-users",
            "guest-get-fsinfo",
            "guest-get-disks",
            "guest-network-get-interfaces",
            "guest-get-vcpus",
        ],
        loses: "after a refusal it leaves the guest alone for a minute, and shows no details",
    },
    Client {
        name: "Proxmox VE's freeze for backups and snapshots",
        commands: &["guest-ping", "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"],
        loses: "backups fail, or are made of a guest whose writers go on",
    },
    Client {
        name: "Ansible's connection libvirt_qemu",
        commands: &[
            "guest-info",
            "guest-exec",
            "guest-exec-status",
            "guest-file-open",
            "guest-file-read",
            "guest-file-write",
            "guest-file-close",
        ],
        loses: "it does not connect unless all of these are enabled",
    },
];

/// A command that clients ask for again and again, and the rate that none of them reaches.
pub(crate) struct Poller {
    /// The command.
    pub(crate) command: &'static str,
    /// Requests in a second that must be let through.
    pub(crate) rate: u32,
    /// Who asks so often.
    pub(crate) who: &'static str,
}

/// Rates that are looked at. Those of sync, ping, info, status and thaw are never limited.
pub(crate) const POLLERS: &[Poller] = &[
    Poller { command: "guest-exec-status", rate: 1000, who: "Ansible asks from every 0.2 ms on" },
    Poller { command: "guest-get-users", rate: 2, who: OVIRT },
    Poller { command: "guest-get-osinfo", rate: 2, who: OVIRT },
    Poller { command: "guest-get-timezone", rate: 2, who: OVIRT },
    Poller { command: "guest-get-host-name", rate: 2, who: OVIRT },
    Poller { command: "guest-get-fsinfo", rate: 2, who: OVIRT },
    Poller { command: "guest-get-disks", rate: 2, who: OVIRT },
    Poller { command: "guest-network-get-interfaces", rate: 2, who: OVIRT },
    Poller { command: "guest-get-vcpus", rate: 2, who: OVIRT },
];

const OVIRT: &str = "oVirt asks eight commands every 5 s while a machine starts";

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Dialect;

    #[test]
    fn every_command_of_a_client_is_one_that_there_is() {
        let all = CLIENTS
            .iter()
            .flat_map(|client| client.commands)
            .chain(POLLERS.iter().map(|poller| &poller.command));
        let unknown: Vec<&&str> = all.filter(|name| proto::find(Dialect::Qga, name).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

//! The role table: what each process keeps when it has entered its jail.
//!
//! Data only. Read by [`enter`](crate::enter), by the spawner (network namespace), and by tests that compare a
//! running process with its row. A right changes here or in `policy/seccomp`, and nowhere else.

use caps::Capability;

use crate::Role;
use crate::seccomp::Filter;

/// What a role keeps. Everything that is not named is given up.
#[derive(Debug)]
pub struct Row {
    /// Whose row it is.
    pub role: Role,
    /// Why the role has what it has.
    pub reason: &'static str,
    /// Capabilities kept: permitted = effective = bounding. For [`Role::File`] the most it can have;
    /// see [`FileRights`](crate::FileRights).
    pub capabilities: &'static [Capability],
    /// Whether it gives up root at all. [`Role::Exec`], [`Role::Account`] and [`Role::Hook`] do not.
    pub confined: bool,
    /// Which files it can name.
    pub root: RootView,
    /// Which network it is in.
    pub network: Network,
    /// Whether it gets a host name of its own, so that it cannot learn or change the system's.
    pub own_uts: bool,
    /// Which paths Landlock leaves open.
    pub landlock: LandlockPaths,
    /// Whether it must not start without Landlock unless the caller says otherwise.
    pub landlock_required: bool,
    /// Whether the kernel ends it when the spawner dies. Without that it has to see by itself that the broker has gone.
    pub dies_with_spawner: bool,
    /// Whether threads may exist before the filter; then the filter is put on all of them at once.
    pub threads: bool,
    /// Limits set before the ids change.
    pub limits: Limits,
    /// The system calls it may make. None: no filter.
    pub seccomp: Option<&'static Filter>,
}

/// Which files a role can name at all, before Landlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootView {
    /// The host's mounts, live: mounts that come later are seen.
    Host,
    /// An empty read-only tmpfs that holds nothing.
    Empty,
}

/// Which network namespace a role is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// One without any interface that is up. The spawner holds one for all; who was not put into it makes its own.
    Empty,
}

/// Which paths Landlock leaves open. Every right is handled in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LandlockPaths {
    /// No ruleset at all.
    Unrestricted,
    /// None.
    Nothing,
    /// These, for reading, and what the caller adds ([`Ground::readable`](crate::Ground::readable)).
    Read(&'static [&'static str]),
    /// What the policy names ([`Ground::roots`](crate::Ground::roots)).
    PolicyRoots,
    /// Folders anywhere can be opened and listed, files only at and below these, for reading.
    Folders(&'static [&'static str]),
    /// These devices, for reading and their own commands of ioctl(2).
    Devices(&'static [&'static str]),
    /// Files at and below these, for reading and writing; nothing is made or removed.
    Change(&'static [&'static str]),
    /// The home of the user who it becomes ([`User`](crate::User)): files are read, made, replaced and removed there, and
    /// directories made.
    Home,
}

/// Resource limits, soft and hard alike. None: left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open descriptors (`RLIMIT_NOFILE`).
    pub descriptors: Option<u64>,
    /// Size in bytes that a file may be written to (`RLIMIT_FSIZE`). Counts for memfds as well, not for pipes and sockets.
    pub file_size: Option<u64>,
    /// Private writable memory in bytes (`RLIMIT_DATA`).
    pub data: Option<u64>,
    /// Core files, message queues, real-time priority: none of them.
    pub nothing_else: bool,
}

const MIB: u64 = 1 << 20;

const fn limits(descriptors: u64, file_size: Option<u64>, data: u64) -> Limits {
    Limits { descriptors: Some(descriptors), file_size, data: Some(data), nothing_else: true }
}

/// What the query worker reads. Paths that do not exist are skipped.
///
/// `/var/run` is `/run` on most systems and open as a whole because utmp is replaced there while we run; under an id that
/// owns nothing this is what every user can read.
const QUERY_PATHS: &[&str] = &[
    "/proc",
    "/sys",
    "/etc",
    "/run/systemd/sessions",
    "/run/udev/data",
    "/run/utmp",
    "/var/run",
    "/usr/lib/os-release",
    "/usr/share/zoneinfo",
];

/// A process that gives nothing up, because the programs it starts must inherit nothing of ours.
const UNCONFINED: Row = Row {
    role: Role::Exec,
    reason: "",
    capabilities: &[],
    confined: false,
    root: RootView::Host,
    network: Network::Host,
    own_uts: false,
    landlock: LandlockPaths::Unrestricted,
    landlock_required: false,
    dies_with_spawner: true,
    threads: false,
    limits: Limits { descriptors: None, file_size: None, data: None, nothing_else: false },
    seccomp: None,
};

static ROWS: [Row; 16] = [
    Row {
        role: Role::Broker,
        reason: "decides and routes over descriptors it was born with; names no file, no address, no process",
        capabilities: &[],
        confined: true,
        root: RootView::Empty,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Nothing,
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        // Writes the audit log, the state file and the agent's log, which are regular files: a size limit of 0
        // would end it with SIGXFSZ. Sockets: 3 for each worker and frontend (socket, log pipe, spare), 16 channels,
        // and workers of earlier policies until what they hold is closed.
        limits: limits(192, None, 512 * MIB),
        seccomp: Some(&crate::seccomp::BROKER),
    },
    Row {
        role: Role::Frontend,
        reason: "reads what a hostile host sends: one socket to the broker, one channel, nothing else",
        capabilities: &[],
        confined: true,
        root: RootView::Empty,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Nothing,
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        // A request may have 64 MiB of tokens and an answer 64 MiB of base64, each with a copy in flight.
        limits: limits(24, Some(0), 1024 * MIB),
        seccomp: Some(&crate::seccomp::FRONTEND),
    },
    Row {
        role: Role::Query,
        reason: "reads proc, sys and a few files as an id that owns nothing; mounts and host name must be the live ones",
        capabilities: &[],
        confined: true,
        root: RootView::Host,
        network: Network::Empty,
        own_uts: false,
        landlock: LandlockPaths::Read(QUERY_PATHS),
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        limits: limits(64, Some(0), 256 * MIB),
        seccomp: Some(&crate::seccomp::QUERY),
    },
    Row {
        role: Role::File,
        reason: "does what root would do to files inside the policy's roots; mounts must be the live ones",
        capabilities: &[
            Capability::CAP_DAC_OVERRIDE,
            Capability::CAP_DAC_READ_SEARCH,
            Capability::CAP_FOWNER,
            Capability::CAP_CHOWN,
        ],
        confined: true,
        root: RootView::Host,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::PolicyRoots,
        landlock_required: true,
        // A file on a dead NFS server blocks its thread for ever; the others go on.
        dies_with_spawner: true,
        threads: true,
        limits: limits(4096, None, 512 * MIB),
        seccomp: Some(&crate::seccomp::FILE),
    },
    Row {
        role: Role::Net,
        reason: "dumps links, addresses and routes from a netlink socket opened before; dumps need no capability",
        capabilities: &[],
        confined: true,
        root: RootView::Empty,
        network: Network::Host,
        own_uts: true,
        landlock: LandlockPaths::Nothing,
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        limits: limits(16, Some(0), 128 * MIB),
        seccomp: Some(&crate::seccomp::NET),
    },
    Row {
        role: Role::NetAdmin,
        reason: "changes links, addresses and routes: netlink checks the sender's capability at each message",
        capabilities: &[Capability::CAP_NET_ADMIN],
        confined: true,
        root: RootView::Empty,
        network: Network::Host,
        own_uts: true,
        landlock: LandlockPaths::Nothing,
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        limits: limits(24, Some(0), 128 * MIB),
        seccomp: Some(&crate::seccomp::NETADMIN),
    },
    Row {
        role: Role::Exec,
        reason: "its commands must not inherit anything of ours: filters, no_new_privs, Landlock and limits would break \
                 sudo, modprobe and containers in the administrator's own scripts; not started unless the policy permits it",
        ..UNCONFINED
    },
    Row {
        role: Role::Compile,
        reason: "parses the policy text and writes the compiled form into a memfd",
        capabilities: &[],
        confined: true,
        root: RootView::Empty,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Nothing,
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        // No file size limit: it writes a memfd, for which the limit counts, and its log may be a regular file of any size.
        limits: limits(16, None, 256 * MIB),
        seccomp: Some(&crate::seccomp::COMPILE),
    },
    Row {
        role: Role::Fsfreeze,
        reason: "freezing needs CAP_SYS_ADMIN; mount points are opened as root would, to read nothing; when everybody else is \
                 gone it still thaws",
        capabilities: &[Capability::CAP_SYS_ADMIN, Capability::CAP_DAC_READ_SEARCH],
        confined: true,
        root: RootView::Host,
        network: Network::Empty,
        own_uts: true,
        // Mount points are folders, wherever they are; what carries a filesystem is told by sysfs.
        landlock: LandlockPaths::Folders(&["/sys"]),
        landlock_required: false,
        dies_with_spawner: false,
        threads: false,
        limits: limits(64, Some(0), 128 * MIB),
        seccomp: Some(&crate::seccomp::FSFREEZE),
    },
    Row {
        role: Role::Power,
        reason: "asks init by signal or through its FIFO, and suspends through files of sysfs; both were opened before",
        capabilities: &[Capability::CAP_KILL],
        confined: true,
        root: RootView::Empty,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Nothing,
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        limits: limits(16, Some(0), 128 * MIB),
        seccomp: Some(&crate::seccomp::POWER),
    },
    Row {
        role: Role::Clock,
        reason: "sets the system's clock and the hardware's, whose device only one process can have open at a time: it is \
                 opened for each command, as root's file",
        capabilities: &[Capability::CAP_SYS_TIME, Capability::CAP_DAC_READ_SEARCH],
        confined: true,
        root: RootView::Host,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Devices(&["/dev/rtc0"]),
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        limits: limits(16, Some(0), 128 * MIB),
        seccomp: Some(&crate::seccomp::CLOCK),
    },
    Row {
        role: Role::Hotplug,
        reason: "writes root's files in two trees of sysfs",
        capabilities: &[Capability::CAP_DAC_OVERRIDE],
        confined: true,
        root: RootView::Host,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Change(&["/sys/devices/system/cpu", "/sys/devices/system/memory"]),
        landlock_required: true,
        dies_with_spawner: true,
        threads: false,
        limits: limits(32, Some(0), 128 * MIB),
        seccomp: Some(&crate::seccomp::HOTPLUG),
    },
    Row {
        role: Role::Account,
        reason: "the distribution's own programs change passwords as root; keys are changed by a child with the user's own ids; \
                 not started unless the policy permits it",
        ..UNCONFINED
    },
    Row {
        role: Role::Hook,
        reason: "runs one program that the administrator named, as root; not started unless one is configured",
        ..UNCONFINED
    },
    Row {
        role: Role::Keys,
        reason: "works in one user's home with that user's ids and no capability: whatever a link there leads to, it can do no \
                 more than the user",
        capabilities: &[],
        confined: true,
        root: RootView::Host,
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Home,
        // The ids alone keep it from what is not the user's.
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        // One file of at most 1 MiB.
        limits: limits(16, Some(2 * MIB), 128 * MIB),
        seccomp: Some(&crate::seccomp::ACCOUNT),
    },
    Row {
        role: Role::Audit,
        reason: "hands records to the kernel's audit over a netlink socket opened before: the kernel asks for the right of who opened \
                 it and of who sends; not started unless the audit log goes there",
        capabilities: &[Capability::CAP_AUDIT_WRITE],
        confined: true,
        root: RootView::Empty,
        // Each network namespace has a socket of the kernel's audit (audit_net_init of kernel/audit.c).
        network: Network::Empty,
        own_uts: true,
        landlock: LandlockPaths::Nothing,
        landlock_required: false,
        dies_with_spawner: true,
        threads: false,
        limits: limits(16, Some(0), 128 * MIB),
        seccomp: Some(&crate::seccomp::AUDIT),
    },
];

/// Returns what `role` keeps.
#[must_use]
pub fn row(role: Role) -> &'static Row {
    // The order of ROWS is the order of Role::ALL; a test holds both together.
    let [
        broker,
        frontend,
        query,
        file,
        net,
        netadmin,
        exec,
        compile,
        fsfreeze,
        power,
        clock,
        hotplug,
        account,
        hook,
        keys,
        audit,
    ] = &ROWS;
    match role {
        Role::Broker => broker,
        Role::Frontend => frontend,
        Role::Query => query,
        Role::File => file,
        Role::Net => net,
        Role::NetAdmin => netadmin,
        Role::Exec => exec,
        Role::Compile => compile,
        Role::Fsfreeze => fsfreeze,
        Role::Power => power,
        Role::Clock => clock,
        Role::Hotplug => hotplug,
        Role::Account => account,
        Role::Hook => hook,
        Role::Keys => keys,
        Role::Audit => audit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_its_own_row() {
        assert_eq!(Role::ALL.map(|role| row(role).role), Role::ALL);
    }

    #[test]
    fn only_these_keep_a_capability() {
        let with: Vec<Role> =
            Role::ALL.into_iter().filter(|role| !row(*role).capabilities.is_empty()).collect();
        assert_eq!(
            with,
            [
                Role::File,
                Role::NetAdmin,
                Role::Fsfreeze,
                Role::Power,
                Role::Clock,
                Role::Hotplug,
                Role::Audit
            ]
        );
    }

    #[test]
    fn only_those_that_start_programs_are_unconfined_and_all_others_have_a_filter_and_landlock() {
        let without: Vec<Role> = Role::ALL
            .into_iter()
            .filter(|role| {
                let row = row(*role);
                !row.confined || row.seccomp.is_none() || row.landlock == LandlockPaths::Unrestricted
            })
            .collect();
        assert_eq!(without, [Role::Exec, Role::Account, Role::Hook]);
    }

    #[test]
    fn who_writes_regular_files_has_no_file_size_limit() {
        // RLIMIT_FSIZE 0 ends a writer of a regular file with SIGXFSZ, setrlimit(2).
        let unlimited: Vec<Role> =
            Role::ALL.into_iter().filter(|role| row(*role).limits.file_size.is_none()).collect();
        assert_eq!(
            unlimited,
            [Role::Broker, Role::File, Role::Exec, Role::Compile, Role::Account, Role::Hook]
        );
    }
}

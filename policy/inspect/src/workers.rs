//! What the kernel lets each worker do, and which workers cannot exist under a policy.

use authorize::Policy;
use jail::Role;
use jail::roles::{LandlockPaths, Network, RootView, row};
use proto::{Group, Privilege};
use serde::Serialize;

use crate::calls::Calls;
use crate::verdicts::possible;

/// One kind of worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// `file`, `net`, …
    pub name: &'static str,
    /// Whether it can be started at all.
    pub exists: bool,
    /// What has to be configured for that, beside the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only_with: Option<&'static str>,
    /// Its user id; None: root, or the user whose keys they are.
    pub uid: Option<u32>,
    /// What is as good as being root, in which case nothing below confines it.
    pub unconfined: bool,
    /// Linux capabilities.
    pub capabilities: Vec<String>,
    /// Which files it can name, and which network it is in.
    pub sees: String,
    /// Paths that Landlock leaves open.
    pub landlock: String,
    /// The list in `policy/seccomp`, and how many system calls are in it.
    pub seccomp: Option<(String, usize)>,
    /// Why it has what it has.
    pub reason: &'static str,
}

/// The role that does the work of a privilege; none for what frontend and broker answer by themselves.
pub(crate) fn role_of(privilege: Privilege) -> Option<Role> {
    Role::ALL.into_iter().find(|role| role.is_worker() && role.name() == privilege.name())
}

/// Every worker, in the order of its role.
pub(crate) fn workers(policy: &Policy, uid_base: u32) -> Vec<Worker> {
    let possible = possible(policy);
    Role::ALL
        .into_iter()
        .filter(|role| role.is_worker())
        .map(|role| worker(role, policy, possible, uid_base))
        .collect()
}

/// The worker of one role under a policy that allows these calls.
pub(crate) fn worker(role: Role, policy: &Policy, possible: Calls, uid_base: u32) -> Worker {
    let row = row(role);
    let may = |group: Group| possible.has(|_, known| known == group);
    let only_with = match role {
        Role::Hook => Some("a freeze hook"),
        Role::Audit => Some("the audit log's sink \"kernel\""),
        _ => None,
    };
    let exists = match role {
        // It is asked by fsfreeze.
        Role::Hook => may(Group::Fsfreeze),
        // No policy has a say in what is recorded where.
        Role::Audit => true,
        _ => possible.has(|command, group| {
            // What only says something about the agent is answered without a worker.
            group != Group::Agent && role_of(command.privilege) == Some(role)
        }),
    };
    // As the worker itself keeps them: what only reads needs no right to write.
    let is_kept = |capability: &caps::Capability| {
        role != Role::File || may(Group::FileWrite) || *capability == caps::Capability::CAP_DAC_READ_SEARCH
    };
    let root = match row.root {
        RootView::Host => "the host's files",
        RootView::Empty => "no files",
    };
    let network = match row.network {
        Network::Host => "the host's network",
        Network::Empty => "no network",
    };
    Worker {
        name: role.name(),
        exists,
        only_with,
        uid: role.uid(uid_base, 0),
        unconfined: !row.confined,
        capabilities: row.capabilities.iter().filter(|one| is_kept(one)).map(ToString::to_string).collect(),
        sees: format!("{root}, {network}"),
        landlock: landlock(row.landlock, policy),
        seccomp: row.seccomp.map(|filter| (filter.name.to_owned(), filter.calls)),
        reason: row.reason,
    }
}

fn landlock(paths: LandlockPaths, policy: &Policy) -> String {
    match paths {
        LandlockPaths::Unrestricted => "everything".to_owned(),
        LandlockPaths::Nothing => "nothing".to_owned(),
        LandlockPaths::Read(paths) => format!("read {}", paths.join(" ")),
        LandlockPaths::PolicyRoots => roots(policy),
        LandlockPaths::Folders(paths) => format!("open folders, read {}", paths.join(" ")),
        LandlockPaths::Devices(paths) => format!("devices {}", paths.join(" ")),
        LandlockPaths::Change(paths) => format!("read and write {}", paths.join(" ")),
        LandlockPaths::Home => "the user's home".to_owned(),
    }
}

/// The folders that the rules about files come to.
fn roots(policy: &Policy) -> String {
    let roots = authorize::roots(policy);
    let of = |is_open: fn(&authorize::Root) -> bool, what: &str| {
        let open = roots.iter().filter(|root| is_open(root));
        let paths: Vec<String> = open.map(|root| String::from_utf8_lossy(&root.path).into_owned()).collect();
        (!paths.is_empty()).then(|| format!("{what} {}", paths.join(" ")))
    };
    let all: Vec<String> =
        [of(|root| root.read, "read"), of(|root| root.write, "write")].into_iter().flatten().collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

impl Worker {
    /// Two to four lines.
    pub(crate) fn write(&self, out: &mut impl std::fmt::Write) -> std::fmt::Result {
        if !self.exists {
            return writeln!(out, "  {:<9} cannot exist: no rule allows what it does", self.name);
        }
        let only = self.only_with.map_or_else(String::new, |what| format!("only with {what}; "));
        if self.unconfined {
            writeln!(out, "  {:<9} {only}root, not confined: {}", self.name, self.reason)?;
            return Ok(());
        }
        let uid = self.uid.map_or("-".to_owned(), |uid| uid.to_string());
        let capabilities =
            if self.capabilities.is_empty() { "none".to_owned() } else { self.capabilities.join(" ") };
        writeln!(out, "  {:<9} {only}uid {uid}; capabilities: {capabilities}; {}", self.name, self.sees)?;
        let seccomp = match &self.seccomp {
            Some((list, calls)) => format!("{calls} of {list}.policy"),
            None => "all".to_owned(),
        };
        writeln!(out, "            Landlock: {}; system calls: {seccomp}", self.landlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Loaded;
    use compile::Source;

    fn of(preset: &str) -> Vec<Worker> {
        let loaded = Loaded::compile(vec![Source::Preset(preset.to_owned())]).unwrap();
        workers(&loaded.policy, jail::DEFAULT_UID_BASE)
    }

    #[test]
    fn workers_that_no_rule_needs_cannot_exist() {
        let existing: Vec<&str> =
            of("observe").iter().filter(|worker| worker.exists).map(|worker| worker.name).collect();
        assert_eq!(existing, ["query", "net", "audit"]);
        assert!(of("qemu-ga").iter().all(|worker| worker.exists));
    }

    #[test]
    fn a_file_worker_that_only_reads_keeps_only_the_right_to_read() {
        let of = |preset: &str| of(preset).into_iter().find(|worker| worker.name == "file").unwrap();
        assert_eq!(of("proxmox-file-read").capabilities, ["CAP_DAC_READ_SEARCH"]);
        assert_eq!(of("proxmox-file-read").landlock, "read /");
        assert_eq!(
            (of("qemu-ga").capabilities.len(), of("qemu-ga").landlock.as_str()),
            (4, "read /, write /")
        );
    }

    #[test]
    fn every_privilege_but_the_agents_own_has_a_worker() {
        let without: Vec<&str> =
            Privilege::ALL.iter().filter(|one| role_of(**one).is_none()).map(|one| one.name()).collect();
        assert_eq!(without, ["agent"]);
    }
}

//! What is missing, why, and what to do about it: the processes as they are against the role table.

use std::fs;

use jail::Role;
use jail::roles::{Network, RootView, row};

use super::process::{Process, names};

/// Something that should be there and is not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) missing: String,
    pub(super) next: &'static str,
}

const NOT_ROOT: &str = "start the agent as root (systemd does): only root can give each process a user id and namespaces of its own";
const BUG: &str =
    "a process that serves should not look so: restart the agent; if it stays, report it with this output";
const UNSEEN: &str = "look as root: sudo portreeve doctor";

/// What the processes of one agent lack; the first of them is the spawner.
pub(super) fn findings(processes: &[Process]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |missing: String, next| findings.push(Finding { missing, next });
    let root = processes.iter().find(|process| process.spawner).and_then(|process| process.uid) == Some(0);
    if !root {
        add("uid separation and namespaces: the agent was not started by root".to_owned(), NOT_ROOT);
    }
    for needed in [Role::Broker, Role::Frontend] {
        if !processes.iter().any(|process| process.role == Some(needed)) {
            add(
                format!("the {needed}: it has ended or not started yet"),
                "read the agent's log; the spawner starts it again by itself",
            );
        }
    }
    for process in processes {
        let Some(role) = process.role else { continue };
        let row = row(role);
        let who = format!("{role} ({})", process.pid);
        if !row.confined {
            continue;
        }
        if root && process.uid == Some(0) {
            add(format!("a user id of its own: {who} runs as root"), BUG);
        }
        if row.seccomp.is_some() && process.seccomp.is_some_and(|mode| mode != 2) {
            add(format!("a system call filter: {who} has none"), BUG);
        }
        if process.no_new_privileges == Some(false) {
            add(format!("no_new_privs: {who} could gain rights by exec"), BUG);
        }
        let kept = row.capabilities.iter().fold(0, |bits, capability| bits | capability.bitmask());
        let more = names(process.capabilities.unwrap_or_default() & !kept);
        if !more.is_empty() {
            add(format!("a bound on capabilities: {who} holds {}", more.join(", ")), BUG);
        }
        if let Some(own) = process.namespaces.as_ref().filter(|_| root) {
            if row.network == Network::Empty && !own.contains(&"net") {
                add(format!("an empty network: {who} is in the host's"), BUG);
            }
            if row.root == RootView::Empty && !own.contains(&"mnt") {
                add(format!("an empty root: {who} sees the host's files"), BUG);
            }
        }
        if root && process.namespaces.is_none() {
            add(format!("the sight of {who}'s namespaces"), UNSEEN);
        }
    }
    findings
}

/// What the kernel has.
pub(super) struct Kernel {
    /// None if that cannot be seen.
    pub(super) landlock: Option<bool>,
    /// Active security modules, comma separated.
    pub(super) modules: Option<String>,
}

impl Kernel {
    pub(super) fn look() -> Self {
        let modules = fs::read_to_string("/sys/kernel/security/lsm").ok().map(|list| list.trim().to_owned());
        let landlock = modules.as_ref().map(|list| list.split(',').any(|name| name == "landlock"));
        Kernel { landlock, modules }
    }

    pub(super) fn landlock_text(&self) -> &'static str {
        match self.landlock {
            Some(true) => "the kernel has it (/sys/kernel/security/lsm)",
            Some(false) => "this kernel does not run it",
            None => "unknown, /sys/kernel/security/lsm cannot be read",
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        if self.landlock != Some(false) {
            return Vec::new();
        }
        vec![Finding {
            missing: "Landlock: the kernel does not run it, so paths are not enforced below the file worker"
                .to_owned(),
            next: "boot with landlock in the lsm= list (Linux 5.13 or later, CONFIG_SECURITY_LANDLOCK)",
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::{Found, Namespaces};
    use super::*;

    /// This process, posing as `name`, with what the kernel would say of one in its jail.
    fn posing(name: &str, spawner: bool) -> Process {
        let found = Found { pid: std::process::id(), parent: 0, name: name.to_owned() };
        let mut process = Process::look(&found, spawner, &Namespaces::of(1));
        process.pid = 7;
        process.uid = Some(if spawner { 0 } else { 1_900_000_001 });
        process.capabilities = Some(0);
        process.seccomp = Some(2);
        process.no_new_privileges = Some(true);
        process.namespaces = Some(vec!["mnt", "net", "ipc", "uts"]);
        process
    }

    fn whole() -> Vec<Process> {
        vec![posing("spawner", true), posing("broker", false), posing("frontend", false)]
    }

    fn missing(processes: &[Process]) -> Vec<String> {
        findings(processes).into_iter().map(|finding| finding.missing).collect()
    }

    #[test]
    fn nothing_is_missing_from_a_whole_agent() {
        assert_eq!(missing(&whole()), Vec::<String>::new());
    }

    #[test]
    fn every_right_that_was_not_given_up_is_found() {
        let mut processes = whole();
        let mut query = posing("query", false);
        query.uid = Some(0);
        query.seccomp = Some(0);
        query.no_new_privileges = Some(false);
        query.capabilities = Some(1 << 21);
        query.namespaces = Some(vec!["ipc"]);
        processes.push(query);
        assert_eq!(
            missing(&processes),
            [
                "a user id of its own: query (7) runs as root",
                "a system call filter: query (7) has none",
                "no_new_privs: query (7) could gain rights by exec",
                "a bound on capabilities: query (7) holds sys_admin",
                "an empty network: query (7) is in the host's",
            ]
        );
    }

    #[test]
    fn a_capability_of_the_role_is_not_missing_anything() {
        let mut processes = whole();
        let mut netadmin = posing("netadmin", false);
        netadmin.capabilities = Some(1 << 12);
        processes.push(netadmin);
        assert_eq!(missing(&processes), Vec::<String>::new());
    }

    #[test]
    fn an_agent_of_an_ordinary_user_and_one_without_a_broker_are_not_whole() {
        let mut spawner = posing("spawner", true);
        spawner.uid = Some(1000);
        assert_eq!(
            missing(&[spawner, posing("frontend", false)]),
            [
                "uid separation and namespaces: the agent was not started by root",
                "the broker: it has ended or not started yet",
            ]
        );
    }

    #[test]
    fn a_kernel_without_landlock_is_reported_and_one_that_hides_it_is_not() {
        let findings = |landlock| Kernel { landlock, modules: None }.findings().len();
        assert_eq!((findings(Some(false)), findings(Some(true)), findings(None)), (1, 0, 0));
    }
}

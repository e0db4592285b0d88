//! One process, as `/proc` shows it (`proc(5)`).

use std::fs;
use std::io;

use caps::Capability;
use jail::Role;
use serde_json::{Value, json};

/// A process of an agent, before it is looked at closely.
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) parent: u32,
    /// The role, `spawner`, or what the process calls itself.
    pub(super) name: String,
}

/// What a process may do and takes.
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) role: Option<Role>,
    pub(super) spawner: bool,
    pub(super) uid: Option<u32>,
    /// Permitted and bounding alike would be most; permitted is what it can use.
    pub(super) capabilities: Option<u64>,
    /// 0 none, 1 strict, 2 filter.
    pub(super) seccomp: Option<u32>,
    pub(super) no_new_privileges: Option<bool>,
    /// Those that differ from init's; none if that cannot be seen.
    pub(super) namespaces: Option<Vec<&'static str>>,
    label: Option<String>,
    pss_kib: Option<u64>,
    rss_kib: Option<u64>,
    descriptors: Option<usize>,
}

/// Every process of this program's family.
pub(super) fn all() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end at any time: then it is not there.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let parent = field(&status, "PPid").and_then(|text| text.parse().ok()).unwrap_or_default();
        let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
        let file = executable.as_deref().and_then(|path| path.file_name()?.to_str());
        let file = file.map(|name| name.strip_suffix(" (deleted)").unwrap_or(name));
        let own_name = field(&status, "Name").unwrap_or_default();
        let name = name_of(file, own_name).unwrap_or_else(|| own_name.to_owned());
        found.push(Found { pid, parent, name });
    }
    Ok(found)
}

/// The role's name or `spawner`, by the executable, or where that cannot be seen by the 15 bytes of the process's name.
fn name_of(executable: Option<&str>, own_name: &str) -> Option<String> {
    let roles = Role::ALL.into_iter().map(|role| (role.executable(), role.name()));
    roles
        .chain([("portreeve-spawner", "spawner")])
        .find(|(program, _)| match executable {
            Some(executable) => executable == *program,
            None => program.get(..15.min(program.len())) == Some(own_name),
        })
        .map(|(_, name)| name.to_owned())
}

impl Process {
    /// Looks at one process; what may not be seen is none.
    pub(super) fn look(found: &Found, spawner: bool, init: &Namespaces) -> Self {
        let pid = found.pid;
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let status = read("status").unwrap_or_default();
        let memory = read("smaps_rollup").unwrap_or_default();
        let kib = |text: &str, name: &str| field(text, name)?.strip_suffix(" kB")?.trim().parse::<u64>().ok();
        let label = read("attr/current").map(|label| label.trim_end_matches(['\0', '\n']).to_owned());
        Process {
            pid,
            name: found.name.clone(),
            role: Role::ALL.into_iter().find(|role| role.name() == found.name),
            spawner,
            uid: field(&status, "Uid").and_then(|ids| ids.split_whitespace().next()?.parse().ok()),
            capabilities: field(&status, "CapPrm").and_then(|bits| u64::from_str_radix(bits, 16).ok()),
            seccomp: field(&status, "Seccomp").and_then(|mode| mode.parse().ok()),
            no_new_privileges: field(&status, "NoNewPrivs").map(|flag| flag == "1"),
            namespaces: Namespaces::of(pid).other_than(init),
            label: label.filter(|label| !label.is_empty()),
            pss_kib: kib(&memory, "Pss"),
            rss_kib: kib(&status, "VmRSS"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count),
        }
    }

    /// Names of the capabilities it can use.
    fn capability_names(&self) -> Option<Vec<String>> {
        self.capabilities.map(names)
    }

    pub(super) fn as_value(&self) -> Value {
        json!({
            "role": self.name,
            "pid": self.pid,
            "uid": self.uid,
            "capabilities": self.capability_names(),
            "seccomp": self.seccomp.map(seccomp_name),
            "no-new-privileges": self.no_new_privileges,
            "namespaces": self.namespaces,
            "label": self.label,
            "pss-kib": self.pss_kib,
            "rss-kib": self.rss_kib,
            "descriptors": self.descriptors,
        })
    }

    pub(super) fn columns(&self) -> [String; 11] {
        fn or_unknown<T: ToString>(value: Option<T>) -> String {
            value.map_or_else(|| "?".to_owned(), |value| value.to_string())
        }
        let list = |names: Vec<String>| match names.len() {
            0 => "none".to_owned(),
            // The spawner has them all.
            1..=6 => names.join(","),
            many => format!("{many} of them"),
        };
        let mib = |kib: u64| format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024);
        let namespaces =
            self.namespaces.as_ref().map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        [
            self.name.clone(),
            self.pid.to_string(),
            or_unknown(self.uid),
            or_unknown(self.capability_names().map(list)),
            or_unknown(self.seccomp.map(seccomp_name)),
            or_unknown(self.no_new_privileges.map(|set| if set { "yes" } else { "no" })),
            or_unknown(namespaces.map(list)),
            self.label.clone().unwrap_or_else(|| "none".to_owned()),
            or_unknown(self.pss_kib.map(mib)),
            or_unknown(self.rss_kib.map(mib)),
            or_unknown(self.descriptors),
        ]
    }
}

/// Names of the capabilities in a set, one bit each (linux/capability.h).
pub(super) fn names(bits: u64) -> Vec<String> {
    let has = |capability: &Capability| bits & capability.bitmask() != 0;
    let mut found: Vec<Capability> = caps::all().into_iter().filter(has).collect();
    found.sort_by_key(Capability::index);
    found.iter().map(|capability| capability.to_string().trim_start_matches("CAP_").to_lowercase()).collect()
}

fn seccomp_name(mode: u32) -> &'static str {
    match mode {
        0 => "none",
        1 => "strict",
        2 => "filter",
        _ => "unknown",
    }
}

/// A line `Name:\tvalue` of a status file.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The namespaces a process is in; none where that cannot be seen.
pub(super) struct Namespaces([(&'static str, Option<String>); 7]);

impl Namespaces {
    pub(super) fn of(pid: u32) -> Self {
        let link = |name: &'static str| {
            let target = fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
            (name, target.and_then(|target| Some(target.to_str()?.to_owned())))
        };
        Namespaces(["mnt", "net", "ipc", "uts", "pid", "user", "cgroup"].map(link))
    }

    /// Those of init, or our own where a container hides init's: the usual place for who starts agents.
    pub(super) fn of_init() -> Self {
        let init = Namespaces::of(1);
        if init.0.iter().any(|(_, link)| link.is_some()) { init } else { Namespaces::of(std::process::id()) }
    }

    /// Those that are not `init`'s. None if one of the two cannot be seen.
    fn other_than(&self, init: &Namespaces) -> Option<Vec<&'static str>> {
        let mut differing = Vec::new();
        for ((name, own), (_, inits)) in self.0.iter().zip(&init.0) {
            match (own, inits) {
                (Some(own), Some(inits)) if own != inits => differing.push(*name),
                (Some(_), Some(_)) => {}
                // A kernel built without that kind.
                (None, None) if self.0.iter().any(|(_, link)| link.is_some()) => {}
                _ => return None,
            }
        }
        Some(differing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_executable_or_by_fifteen_bytes_of_its_name() {
        let name = |executable, own| name_of(executable, own);
        assert_eq!(name(Some("portreeve-netadmin"), "x"), Some("netadmin".to_owned()));
        assert_eq!(name(Some("portreeve-spawner"), "qemu-ga"), Some("spawner".to_owned()));
        assert_eq!(name(None, "portreeve-front"), Some("frontend".to_owned()));
        assert_eq!(name(None, "portreeve-net"), Some("net".to_owned()));
        assert_eq!(name(Some("bash"), "portreeve-net"), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let found = Found { pid: std::process::id(), parent: 0, name: "query".to_owned() };
        let process = Process::look(&found, false, &Namespaces::of(std::process::id()));
        assert_eq!(process.uid, Some(nix::unistd::getuid().as_raw()));
        assert_eq!(process.namespaces, Some(Vec::new()));
        assert_eq!(process.role, Some(Role::Query));
        assert!(
            process.descriptors.is_some_and(|count| count > 2) && process.rss_kib.is_some_and(|kib| kib > 0)
        );
    }

    #[test]
    fn capabilities_have_names() {
        assert_eq!(names(1 << 12 | 1 << 1), ["dac_override", "net_admin"]);
        assert_eq!(names(0), Vec::<String>::new());
    }
}

//! What a process is and has, as the kernel tells it from outside, in lines that are the same on every machine.
//!
//! Runs in tests only. What is as in the process's spawner is said so instead of shown: it is the machine's, not ours.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Describes `pid`, which a spawner `spawner` has started from `folder`.
///
/// # Panics
/// If it has ended.
pub fn describe(pid: u32, spawner: u32, folder: &Path) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name}: {}", or_none(value)).expect("a string grows");
    };
    let [own, others] = [pid, spawner].map(|pid| read(pid, "status"));
    for name in ["Uid", "Gid", "Groups", "Umask", "Threads", "NoNewPrivs", "Seccomp", "Seccomp_filters"] {
        line(name, &field(&own, name));
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn", "SigCgt"] {
        let (value, of_spawner) = (field(&own, name), field(&others, name));
        // All capabilities that the machine gives us: how many there are depends on the kernel.
        // Signals 32 and 33 are glibc's own, and stay as whoever started the tests has left them.
        let value = if name.starts_with("Sig") { without_libc(&value) } else { value };
        let whole = name.starts_with("Cap") && value != "0000000000000000" && value == of_spawner;
        line(name, if whole { "as the spawner's" } else { &value });
    }
    let own_namespaces: Vec<&str> = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
        .into_iter()
        .filter(|name| {
            let [own, others] =
                [pid, spawner].map(|pid| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok());
            own != others
        })
        .collect();
    line("namespaces of its own", &own_namespaces.join(" "));
    line("working directory", &link(pid, "cwd", folder));
    let root = fs::read_dir(format!("/proc/{pid}/root/")).map_or(0, Iterator::count);
    line("root", if root == 0 { "empty" } else { "the host's" });
    // The kernel gives the files of one that may not be dumped to root, proc(5).
    let owner = fs::metadata(format!("/proc/{pid}/environ")).expect("it lives").uid();
    line("owner of /proc/PID/environ", &owner.to_string());
    let arguments = read(pid, "cmdline");
    line("arguments", &arguments.trim_end_matches('\0').replace('\0', " "));
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("root may read it").len();
    line("environment", &format!("{environment} bytes"));
    let stat = read(pid, "stat");
    let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)).unwrap_or_default();
    line("leads its session", if session == pid.to_string() { "yes" } else { "no" });
    let [own, others] = [pid, spawner].map(|pid| read(pid, "limits"));
    for (own, others) in own.lines().zip(others.lines()).skip(1) {
        if own != others {
            line("limit", &own.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    let mut descriptors: Vec<u32> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("root may read it")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    descriptors.sort_unstable();
    for number in descriptors {
        let flags = field(&read(pid, &format!("fdinfo/{number}")), "flags");
        let what = link(pid, &format!("fd/{number}"), folder);
        line(&format!("descriptor {number}"), &format!("{what} {}", flag_names(&flags)));
    }
    text
}

fn read(pid: u32, name: &str) -> String {
    let path = format!("/proc/{pid}/{name}");
    String::from_utf8_lossy(&fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))).into_owned()
}

fn field(text: &str, name: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn without_libc(mask: &str) -> String {
    format!("{:016x}", u64::from_str_radix(mask, 16).expect("a mask") & !(0b11 << 31))
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// Where a link leads, without numbers that differ from run to run.
fn link(pid: u32, name: &str, folder: &Path) -> String {
    let target = fs::read_link(format!("/proc/{pid}/{name}")).expect("it is open").display().to_string();
    match target.split_once(":[") {
        Some((kind @ ("pipe" | "socket"), _)) => kind.to_owned(),
        _ => target
            .replace(&folder.display().to_string(), "FOLDER")
            .replace(&format!("/proc/{pid}/"), "/proc/self/")
            .replace(" (deleted)", ""),
    }
}

/// open(2)'s flags as `/proc/PID/fdinfo` has them, octal.
fn flag_names(octal: &str) -> String {
    let flags = i32::from_str_radix(octal, 8).expect("a number");
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => "read",
        libc::O_WRONLY => "write",
        _ => "read and write",
    };
    let mut names = vec![access];
    for (flag, name) in [
        (libc::O_APPEND, "append"),
        (libc::O_NONBLOCK, "nonblock"),
        (libc::O_CLOEXEC, "cloexec"),
        (libc::O_PATH, "path"),
    ] {
        if flags & flag != 0 {
            names.push(name);
        }
    }
    names.join(", ")
}

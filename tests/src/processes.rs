//! What the kernel says of processes: wake-ups, memory, descriptors.

use std::path::PathBuf;

/// How often the process's threads have gone to sleep by themselves. One that is not woken does not count on.
pub fn sleeps(pid: u32) -> u64 {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    threads.flatten().map(|thread| number(&thread.path().join("status"), "voluntary_ctxt_switches:")).sum()
}

/// The most memory that the process ever had, in KiB.
pub fn peak_memory(pid: u32) -> u64 {
    number(&PathBuf::from(format!("/proc/{pid}/status")), "VmHWM:")
}

/// What the process's descriptors are, by the kernel's names for them.
pub fn descriptors(pid: u32) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let target = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
    folder.flatten().filter_map(target).map(|target| target.display().to_string()).collect()
}

fn number(status: &std::path::Path, name: &str) -> u64 {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    value.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

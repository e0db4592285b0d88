//! What an agent that was killed as a whole has left frozen, and this one could not start on.
//!
//! Runs in the command, before it opens anything for writing: on a frozen filesystem that waits for ever, and then nobody would be
//! left to thaw. Where nothing of ours lies on such a filesystem the agent starts frozen instead, and serves the thaw.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use runtime::mountinfo::{mounts, unescape};

use crate::marker;

/// Thaws everything if the marker in `directory` says that something is frozen, and one of the files lies where it could be. Returns
/// what to say in the log.
pub(crate) fn thaw_if_needed<'a>(
    directory: &'a Path,
    files: impl IntoIterator<Item = &'a Path>,
) -> Option<String> {
    if !marker::says_frozen(directory) {
        return None;
    }
    let file = files.into_iter().chain([directory]).find(|file| !is_in_memory(file))?;
    let count = thaw_all();
    marker::cut(directory);
    Some(format!(
        "an agent before this one was killed while filesystems were frozen; {} may be on one of them: {count} thawed",
        file.display()
    ))
}

/// Whether it lies, or will lie, where nothing is ever frozen; links are followed.
fn is_in_memory(file: &Path) -> bool {
    let found = file.canonicalize().ok();
    let folder = || match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    statfs(&found.unwrap_or_else(folder)).is_ok_and(|about| about.filesystem_type() == TMPFS_MAGIC)
}

/// In the order of mounting: what carries others comes before them, as their thaw writes to it.
fn thaw_all() -> usize {
    let list = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let on_devices = mounts(&list).filter(|mount| mount.device.major != 0 || mount.kind == b"btrfs");
    let points = on_devices.filter_map(|mount| String::from_utf8(unescape(mount.point).into_owned()).ok());
    points
        .filter(|point| {
            let Ok(opened) = File::open(point) else { return false };
            let mut thawed = false;
            while jail::filesystems::thaw(opened.as_fd()).is_ok() {
                thawed = true;
            }
            thawed
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_marker_or_with_all_of_ours_in_memory_nothing_is_thawed() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let log = memory.path().join("log");
        assert_eq!(thaw_if_needed(memory.path(), [Path::new("/etc/log")]), None);
        let boot_id = marker::boot_id().unwrap();
        std::fs::write(memory.path().join("portreeve.frozen"), format!("- frozen {boot_id}\n")).unwrap();
        assert_eq!(thaw_if_needed(memory.path(), [log.as_path(), Path::new("/dev/null")]), None);
        assert!(marker::says_frozen(memory.path()));
    }

    #[test]
    fn a_log_that_does_not_exist_yet_is_where_its_folder_is() {
        assert!(is_in_memory(Path::new("/dev/shm/none")));
        assert!(!is_in_memory(Path::new("/proc/none")));
        assert!(!is_in_memory(Path::new("/no/such/folder/none")));
    }
}

//! `portreeve.frozen`: whether an agent before this one left filesystems frozen.
//!
//! Lies beside the state file, usually on a tmpfs. It is opened here, written by the broker before the first filesystem is frozen
//! and after the last is thawed, and cut by the fsfreeze worker when it has thawed without a broker. What it says holds for
//! the boot it was written in. qemu-ga's own marker (`qga/main.c`, `qga.state.isfrozen`, whose existence is the message) is
//! understood and replaced, so that an agent can be exchanged while the guest is frozen.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

const NAME: &str = "portreeve.frozen";
const QEMU_GA: &str = "qga.state.isfrozen";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The marker, opened for reading and writing.
pub(crate) struct Marker {
    pub(crate) file: File,
    pub(crate) boot_id: String,
    /// Filesystems were frozen, in this boot.
    pub(crate) frozen: bool,
}

/// Opens the marker in `directory`, which exists.
///
/// # Errors
/// A text for the log: it cannot be opened or written.
pub(crate) fn open(directory: &Path) -> Result<Marker, String> {
    open_in(directory, &boot_id()?)
}

/// Names this boot of the kernel.
///
/// # Errors
/// A text for the log: there is no `/proc`.
pub(crate) fn boot_id() -> Result<String, String> {
    let boot_id = std::fs::read_to_string(BOOT_ID).map_err(|error| format!("{BOOT_ID}: {error}"))?;
    Ok(boot_id.trim().to_owned())
}

/// Whether the marker in `directory`, if there is one, is of this boot. Only reads: a frozen filesystem lets that be done.
pub(crate) fn says_frozen(directory: &Path) -> bool {
    let text = std::fs::read_to_string(directory.join(NAME)).unwrap_or_default();
    directory.join(QEMU_GA).symlink_metadata().is_ok()
        || boot_id().is_ok_and(|boot_id| is_frozen(&text, &boot_id))
}

/// All is thawed: what stays is whether the hook is still to be run, as the fsfreeze worker leaves it.
pub(crate) fn cut(directory: &Path) {
    if let Ok(file) =
        OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(directory.join(NAME))
    {
        let _ = file.set_len(1);
    }
    let _ = std::fs::remove_file(directory.join(QEMU_GA));
}

/// Past the word about the hook.
fn is_frozen(text: &str, boot_id: &str) -> bool {
    let mut words = text.split_ascii_whitespace().skip(1);
    words.next() == Some("frozen") && words.next() == Some(boot_id)
}

fn open_in(directory: &Path, boot_id: &str) -> Result<Marker, String> {
    let path = directory.join(NAME);
    let failed = |error: std::io::Error| format!("cannot open {}: {error}", path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .map_err(failed)?;
    let mut text = String::new();
    // Whatever is no text says nothing.
    let _ = (&file).take(128).read_to_string(&mut text);
    let of_qemu_ga = directory.join(QEMU_GA);
    let theirs = of_qemu_ga.symlink_metadata().is_ok();
    let ours = is_frozen(&text, boot_id);
    if theirs && !ours {
        file.set_len(0)
            .and_then(|()| file.write_all(format!("- frozen {boot_id}\n").as_bytes()))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    if theirs {
        // It would be believed by the next qemu-ga for ever. If it stays, so does the next thaw's chance to be asked for.
        let _ = std::fs::remove_file(&of_qemu_ga);
    }
    Ok(Marker { file, boot_id: boot_id.to_owned(), frozen: ours || theirs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(before: &str) -> bool {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME), before).unwrap();
        open_in(directory.path(), "b1").unwrap().frozen
    }

    #[test]
    fn a_marker_of_this_boot_is_believed_and_one_of_another_is_not() {
        assert!(opened("- frozen b1\n"));
        assert!(opened("h frozen b1\n"));
        assert!(!opened("- frozen b0\n"));
        assert!(!opened("h"));
        assert!(!opened(""));
    }

    #[test]
    fn the_marker_of_qemu_ga_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(QEMU_GA), "").unwrap();
        assert!(open_in(directory.path(), "b1").unwrap().frozen);
        assert!(!directory.path().join(QEMU_GA).exists());
        assert_eq!(std::fs::read_to_string(directory.path().join(NAME)).unwrap(), "- frozen b1\n");
        assert!(open_in(directory.path(), "b1").unwrap().frozen);
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join(NAME)).unwrap();
        assert!(open_in(directory.path(), "b1").is_err());
    }
}

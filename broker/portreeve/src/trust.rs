//! Who could change a file that decides what a host may do.
//!
//! Runs with the rights of the start, usually root's, before a text is read. What somebody else than root, or the user that the agent runs
//! as, could have written or could exchange is not in force: neither the file nor any folder on the way to it, by its own name and
//! behind links, may be theirs or writable by them. A folder with the sticky bit lets nobody exchange what is not his (`inode(7)`).

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf, absolute};

use nix::fcntl::OFlag;

/// Opens a file for reading that nobody else can change.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(crate) fn open(path: &Path) -> Result<File, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    // A FIFO in its place would be waited for.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(cannot)?;
    let about = file.metadata().map_err(cannot)?;
    if !about.is_file() {
        return Err("cannot be read: it is not a regular file".to_owned());
    }
    if is_anothers(&about) {
        return Err("belongs to another user than root: chown root".to_owned());
    }
    if about.mode() & 0o022 != 0 {
        return Err("can be written by others than its owner: chmod go-w".to_owned());
    }
    folders(path)?;
    Ok(file)
}

/// Looks at every folder on the way to `path`, which itself is not looked at.
///
/// # Errors
/// The first folder in which others could exchange what is there, and what to do.
pub(crate) fn folders(path: &Path) -> Result<(), String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let named = absolute(path).map_err(cannot)?;
    let behind_links = fs::canonicalize(path).map_err(cannot)?;
    let on_the_way: BTreeSet<PathBuf> =
        [named, behind_links].iter().flat_map(|path| path.ancestors().skip(1)).map(Path::to_owned).collect();
    on_the_way.iter().try_for_each(|path| folder(path))
}

/// Looks at one folder.
///
/// # Errors
/// Others could exchange what is in it.
pub(crate) fn folder(path: &Path) -> Result<(), String> {
    const STICKY: u32 = 0o1000;
    let about = fs::metadata(path).map_err(|error| format!("cannot be read: {}: {error}", path.display()))?;
    if is_anothers(&about) {
        return Err(format!(
            "could be exchanged: {0} belongs to another user than root: chown root {0}",
            path.display()
        ));
    }
    if about.mode() & 0o022 != 0 && about.mode() & STICKY == 0 {
        return Err(format!(
            "could be exchanged: {0} can be written by others than its owner: chmod go-w {0}",
            path.display()
        ));
    }
    Ok(())
}

fn is_anothers(about: &Metadata) -> bool {
    about.uid() != 0 && about.uid() != nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_is_as_safe_as_every_folder_on_the_way_to_it() {
        let top = tempfile::tempdir().unwrap();
        let (folder, other) = (top.path().join("a"), top.path().join("b"));
        let file = folder.join("p.toml");
        for path in [&folder, &other] {
            fs::create_dir(path).unwrap();
            mode(path, 0o755);
        }
        fs::write(&file, "").unwrap();
        mode(&file, 0o644);
        let link = other.join("p.toml");
        symlink(&file, &link).unwrap();
        assert!(open(&file).is_ok() && open(&link).is_ok());

        mode(&folder, 0o775);
        let why = format!(
            "could be exchanged: {0} can be written by others than its owner: chmod go-w {0}",
            folder.display()
        );
        assert_eq!(open(&file).unwrap_err(), why);
        assert_eq!(open(&link).unwrap_err(), why);
        mode(&folder, 0o1777);
        assert!(open(&file).is_ok());
        // The link could be exchanged, too.
        mode(&other, 0o777);
        assert!(open(&link).is_err());
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(open(&fifo).unwrap_err(), "cannot be read: it is not a regular file");
        assert_eq!(open(folder.path()).unwrap_err(), "cannot be read: it is not a regular file");
    }
}

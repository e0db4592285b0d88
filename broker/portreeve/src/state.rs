//! `qga.state`: where the numbers of open files go on after a restart.
//!
//! qemu-ga's key file (`qga/main.c`, `read_persistent_state`). The broker rewrites the number in place later, so what else
//! is in the file has to be gone by then. Unlike qemu-ga a directory that is missing is made and a damaged file is repaired.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::key_file::KeyFile;

/// qemu-ga's first handle (`qga/main.c`, QGA_DEFAULT_FD_COUNTER is 1000).
const FIRST: u64 = 1000;

/// Numbers of up to eleven digits are what the broker writes in place.
const LAST: u64 = 99_999_999_999;

/// Longest content that the broker's own covers.
const LONGEST: u64 = 32;

/// Opens the state file in `directory` for reading and writing, in a form that the broker can read and rewrite.
///
/// The second value says what was wrong with it, if anything.
///
/// # Errors
/// A text for the log, in qemu-ga's words: the directory cannot be made or the file not be opened or written.
pub(crate) fn open(directory: &Path) -> Result<(File, Option<String>), String> {
    let path = directory.join("qga.state");
    let failed = |what: &str, error: io::Error| format!("{what} {}: {error}", path.display());
    // mkdir(2) waits on a frozen filesystem even for what is there: `/var/run` is a link on the root.
    if !directory.is_dir() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(|error| format!("cannot make the state directory {}: {error}", directory.display()))?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .map_err(|error| failed("unable to create state file at path", error))?;
    let mut text = Vec::new();
    (&file)
        .take(64 * 1024)
        .read_to_end(&mut text)
        .map_err(|error| failed("error loading persistent state from path:", error))?;
    let (counter, warning) = match read(&text) {
        Ok(counter) => (counter, None),
        Err(why) => (FIRST, Some(format!("{}: {why}; handles begin at {FIRST} again", path.display()))),
    };
    let canonical = format!("[global]\nfd_counter={counter}\n");
    // What the broker wrote has leading zeros and reads as well.
    let fine = warning.is_none()
        && text.len() as u64 <= LONGEST
        && text.ends_with(b"\n")
        && text.starts_with(b"[global]\nfd_counter=");
    if !fine {
        file.rewind()
            .and_then(|()| file.write_all(canonical.as_bytes()))
            .and_then(|()| file.set_len(canonical.len() as u64))
            .map_err(|error| failed("failed to write persistent state to", error))?;
    }
    Ok((file, warning))
}

/// The next handle. An empty file and a missing key mean the first one.
fn read(text: &[u8]) -> Result<u64, String> {
    let counter = KeyFile::parse(text)?.text("global", "fd_counter")?;
    let Some((counter, _)) = counter else { return Ok(FIRST) };
    match counter.trim_end().parse::<u64>() {
        Ok(number) if (FIRST..=LAST).contains(&number) => Ok(number),
        _ => Err(format!("fd_counter \"{counter}\" is no handle number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the file says after it was opened, and the warning.
    fn opened(before: Option<&str>) -> (String, Option<String>) {
        let directory = tempfile::tempdir().unwrap();
        let statedir = directory.path().join("deep/er");
        if let Some(before) = before {
            std::fs::create_dir_all(&statedir).unwrap();
            std::fs::write(statedir.join("qga.state"), before).unwrap();
        }
        let (_, warning) = open(&statedir).unwrap();
        let after = std::fs::read_to_string(statedir.join("qga.state")).unwrap();
        (after, warning.map(|text| text.split_once("qga.state: ").unwrap().1.to_owned()))
    }

    #[test]
    fn a_missing_directory_is_made_and_the_file_begins_at_1000() {
        assert_eq!(opened(None), ("[global]\nfd_counter=1000\n".to_owned(), None));
    }

    #[test]
    fn a_number_that_is_there_stays() {
        let from_qemu_ga = "[global]\nfd_counter=1017\n";
        assert_eq!(opened(Some(from_qemu_ga)), (from_qemu_ga.to_owned(), None));
        let from_the_broker = "[global]\nfd_counter=00000001064\n";
        assert_eq!(opened(Some(from_the_broker)), (from_the_broker.to_owned(), None));
    }

    #[test]
    fn another_form_of_the_same_is_rewritten_so_that_it_can_be_changed_in_place() {
        let other =
            "# a comment that makes it longer than the broker's own form\n[global]\nfd_counter = 1234\nx=1\n";
        assert_eq!(opened(Some(other)), ("[global]\nfd_counter=1234\n".to_owned(), None));
    }

    #[test]
    fn garbage_is_repaired_with_a_warning() {
        let fresh = "[global]\nfd_counter=1000\n".to_owned();
        let number = |text: &str| {
            Some(format!("fd_counter \"{text}\" is no handle number; handles begin at 1000 again"))
        };
        assert_eq!(opened(Some("[global]\nfd_counter=-5\n")), (fresh.clone(), number("-5")));
        assert_eq!(opened(Some("[global]\nfd_counter=x\n")), (fresh.clone(), number("x")));
        let line = "Key file contains line “nonsense” which is not a key-value pair, group, or comment; handles begin at 1000 again";
        assert_eq!(opened(Some("nonsense\n")), (fresh, Some(line.to_owned())));
    }

    #[test]
    fn a_link_in_place_of_the_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join("qga.state")).unwrap();
        assert!(open(directory.path()).unwrap_err().starts_with("unable to create state file at path "));
    }
}

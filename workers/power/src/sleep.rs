//! Suspending, by the kernel's own files (`Documentation/admin-guide/pm/sleep-states.rst`).
//!
//! Runs in the power worker; the files are opened before the jail is shut. A write to `state` returns when the guest is awake
//! again: then nothing is answered, or what went wrong is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;

use proto::Failed;

const STATE: &str = "/sys/power/state";
const MODES: &str = "/sys/power/disk";

/// How deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    Memory,
    Disk,
    /// To disk, and then to memory.
    Both,
}

/// The two files, as far as the kernel has them.
pub(crate) struct Sleep {
    state: Option<File>,
    modes: Option<File>,
}

impl Sleep {
    pub(crate) fn open() -> Self {
        let open = |path| OpenOptions::new().read(true).write(true).open(path).ok();
        Sleep { state: open(STATE), modes: open(MODES) }
    }

    /// Suspends. Returns when the guest is awake again.
    ///
    /// # Errors
    /// qemu-ga's texts: the guest cannot do that, or the kernel refused. Whenever nothing was suspended.
    pub(crate) fn fall(&self, depth: Depth) -> Result<(), Failed> {
        let unsupported = || Failed::new("the requested suspend mode is not supported by the guest");
        let state = self.state.as_ref().ok_or_else(unsupported)?;
        let word = if depth == Depth::Memory { "mem" } else { "disk" };
        if !words(state).iter().any(|known| known == word) {
            return Err(unsupported());
        }
        if depth != Depth::Both {
            return write(state, word, STATE);
        }
        let modes = self.modes.as_ref().ok_or_else(unsupported)?;
        let before = words(modes);
        if !before.iter().any(|known| bare(known) == "suspend") {
            return Err(unsupported());
        }
        write(modes, "suspend", MODES)?;
        let result = write(state, word, STATE);
        if let Some(chosen) = before.iter().find(|known| known.starts_with('[')) {
            // The next suspend to disk is one of the administrator's choosing again.
            let _ = write(modes, bare(chosen), MODES);
        }
        result
    }
}

/// What the kernel can do; the one chosen stands in brackets.
fn words(file: &File) -> Vec<String> {
    let mut buffer = [0; 256];
    let length = file.read_at(&mut buffer, 0).unwrap_or_default();
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    text.split_whitespace().map(str::to_owned).collect()
}

fn bare(word: &str) -> &str {
    word.trim_start_matches('[').trim_end_matches(']')
}

fn write(file: &File, word: &str, path: &str) -> Result<(), Failed> {
    file.write_all_at(word.as_bytes(), 0).map_err(|error: io::Error| {
        Failed::system(
            format_args!("suspend: cannot write to '{path}'"),
            error.raw_os_error().unwrap_or_default(),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn file(text: &str) -> (File, File) {
        let directory = std::env::temp_dir().join(format!(
            "portreeve-sleep-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(text.len().to_string());
        std::fs::write(&path, text).unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let both = (open(), open());
        std::fs::remove_dir_all(&directory).unwrap();
        both
    }

    #[test]
    fn what_the_kernel_cannot_do_is_an_error_and_nothing_is_written() {
        let (state, mut look) = file("freeze mem\n");
        let sleep = Sleep { state: Some(state), modes: None };
        let text = "the requested suspend mode is not supported by the guest";
        assert_eq!(sleep.fall(Depth::Disk).unwrap_err().text, text);
        assert_eq!(sleep.fall(Depth::Both).unwrap_err().text, text);
        assert_eq!(Sleep { state: None, modes: None }.fall(Depth::Memory).unwrap_err().text, text);
        let mut content = String::new();
        look.read_to_string(&mut content).unwrap();
        assert_eq!(content, "freeze mem\n");
    }

    #[test]
    fn a_hybrid_suspend_leaves_the_administrators_mode_as_it_was() {
        let (state, mut look) = file("freeze mem disk\n");
        let (modes, mut chosen) = file("[platform] shutdown reboot suspend test_resume\n");
        Sleep { state: Some(state), modes: Some(modes) }.fall(Depth::Both).unwrap();
        let mut content = String::new();
        look.read_to_string(&mut content).unwrap();
        assert!(content.starts_with("disk"), "{content}");
        content.clear();
        chosen.read_to_string(&mut content).unwrap();
        assert!(content.starts_with("platform"), "{content}");
    }
}

//! The numbers of open files, which go on after a restart, so that a stale number never means another file.
//!
//! The state file is qemu-ga's key file with a number of fixed width, rewritten in place; numbers are reserved in
//! blocks, so that an open costs no write and a crash skips at most one block. Each block is on the disk before a number of
//! it is given: that holds over a power cut, too, and costs nothing where the file is on a tmpfs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

const FIRST: u64 = 1000;
const BLOCK: u64 = 64;
/// Fits ten digits and qemu-ga's 64-bit handles; reached after three centuries of ten opens a second.
const LAST: u64 = 99_999_999_999;

/// Hands out numbers for `guest-file-open`, and Phoenix's own for `file-open`.
pub struct Numbers {
    file: Option<File>,
    next: u64,
    reserved: u64,
    next_phoenix: u64,
}

impl Numbers {
    /// Continues after what the state file says; without one, begins at 1000 as qemu-ga does.
    pub fn new(state: Option<OwnedFd>) -> Self {
        let file = state.map(File::from);
        let next = file.as_ref().and_then(read).unwrap_or(FIRST);
        Numbers { file, next, reserved: next, next_phoenix: 1 }
    }

    /// The next number of QEMU's dialect.
    pub(crate) fn next_qga(&mut self) -> u64 {
        if self.next >= self.reserved {
            self.reserve();
        }
        let number = self.next;
        self.next += 1;
        number
    }

    /// The next number of Phoenix's dialect: from 1 in each process, as its clients know it.
    pub(crate) fn next_phoenix(&mut self) -> u64 {
        let number = self.next_phoenix;
        self.next_phoenix += 1;
        number
    }

    fn reserve(&mut self) {
        if self.next >= LAST {
            self.next = FIRST;
        }
        self.reserved = self.next + BLOCK;
        if let Some(file) = &self.file {
            let text = content(self.reserved);
            // Same length always: no truncation, nothing for another reader to see half.
            if let Err(error) = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.sync_data()) {
                tracing::warn!(
                    "cannot write the state file: {error}; numbers of open files may repeat after a restart"
                );
            }
        }
    }
}

/// What the state file says.
fn content(counter: u64) -> String {
    format!("[global]\nfd_counter={counter:011}\n")
}

fn read(file: &File) -> Option<u64> {
    let mut buffer = [0; 4096];
    let length = file.read_at(&mut buffer, 0).ok()?;
    let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("fd_counter"))?;
    let number = line.trim_start().strip_prefix('=')?.trim().parse::<u64>().ok()?;
    (FIRST..LAST).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn state(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn said(file: &File) -> String {
        let mut text = String::new();
        let mut copy = file.try_clone().unwrap();
        std::io::Seek::rewind(&mut copy).unwrap();
        std::io::Read::read_to_string(&mut copy, &mut text).unwrap();
        text
    }

    #[test]
    fn numbers_begin_at_1000_and_go_on_after_a_restart() {
        let file = state("[global]\nfd_counter=1000\n");
        let mut numbers = Numbers::new(Some(file.try_clone().unwrap().into()));
        assert_eq!((numbers.next_qga(), numbers.next_qga()), (1000, 1001));
        assert_eq!(said(&file), "[global]\nfd_counter=00000001064\n");
        let mut restarted = Numbers::new(Some(file.into()));
        assert_eq!(restarted.next_qga(), 1064);
    }

    #[test]
    fn a_block_of_numbers_costs_one_write() {
        let file = state("");
        let mut numbers = Numbers::new(Some(file.try_clone().unwrap().into()));
        for _ in 0..64 {
            numbers.next_qga();
        }
        assert_eq!(said(&file), "[global]\nfd_counter=00000001064\n");
        numbers.next_qga();
        assert_eq!(said(&file), "[global]\nfd_counter=00000001128\n");
    }

    #[test]
    fn a_damaged_state_file_means_the_beginning() {
        for text in
            ["", "nonsense", "[global]\nfd_counter=-5\n", "[global]\nfd_counter=99999999999999999999\n"]
        {
            assert_eq!(Numbers::new(Some(state(text).into())).next_qga(), 1000, "{text:?}");
        }
    }

    #[test]
    fn phoenix_counts_from_one() {
        let mut numbers = Numbers::new(None);
        assert_eq!((numbers.next_phoenix(), numbers.next_phoenix(), numbers.next_qga()), (1, 2, 1000));
    }
}

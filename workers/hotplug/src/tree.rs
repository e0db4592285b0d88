//! Files in sysfs, or in a folder that stands for it in tests.
//!
//! Runs in the hotplug worker.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};

/// Where sysfs is.
pub(crate) struct Tree(PathBuf);

impl Tree {
    pub(crate) fn of_this_system() -> Self {
        Tree("/".into())
    }

    #[cfg(test)]
    pub(crate) fn at(folder: &std::path::Path) -> Self {
        Tree(folder.to_owned())
    }

    /// Opens a folder; `path` is absolute.
    pub(crate) fn folder(&self, path: &str) -> Result<OwnedFd> {
        let place = self.0.join(path.trim_start_matches('/'));
        rustix::fs::openat(CWD, place, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())
    }
}

/// Opens a file in a folder for reading and writing.
pub(crate) fn file(folder: &OwnedFd, name: &str) -> Result<OwnedFd> {
    rustix::fs::openat(folder, name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Reads it from the beginning, as far as an attribute of sysfs goes.
pub(crate) fn content(file: &OwnedFd) -> Result<Vec<u8>> {
    let mut buffer = [0; 64];
    loop {
        match rustix::io::read(file, &mut buffer) {
            Ok(length) => return Ok(buffer.get(..length).unwrap_or_default().to_vec()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Writes a word: sysfs takes it whole or not at all, wherever the file stands.
pub(crate) fn store(file: &OwnedFd, word: &[u8]) -> Result<()> {
    loop {
        match rustix::io::write(file, word) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

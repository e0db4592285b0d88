//! An initramfs: cpio in the "newc" form (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Archives may follow one another; of files with the same name the last wins.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes entries; all belong to root.
pub(crate) struct Archive<W: Write> {
    out: W,
    number: u32,
    folders: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Archive { out, number: 1, folders: BTreeSet::new() }
    }

    /// A folder, with those above it.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above)?;
        }
        self.entry(path.as_bytes(), FOLDER, b"")
    }

    /// A file with this content and permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.above(path)?;
        self.entry(path.trim_matches('/').as_bytes(), FILE | mode, content)
    }

    /// A copy of a file of this machine, links followed.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, &fs::read(from)?)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.above(path)?;
        self.entry(path.trim_matches('/').as_bytes(), LINK, to.as_bytes())
    }

    /// Everything below a folder of this machine.
    pub(crate) fn tree(&mut self, path: &str, from: &Path) -> io::Result<()> {
        self.folder(path)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let name = format!("{path}/{}", String::from_utf8_lossy(entry.file_name().as_bytes()));
            if entry.file_type()?.is_dir() {
                self.tree(&name, &entry.path())?;
            } else {
                self.copy(&name, &entry.path())?;
            }
        }
        Ok(())
    }

    /// The end mark.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(b"TRAILER!!!", 0, b"")?;
        Ok(self.out)
    }

    fn above(&mut self, path: &str) -> io::Result<()> {
        path.trim_matches('/').rsplit_once('/').map_or(Ok(()), |(above, _)| self.folder(above))
    }

    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) -> io::Result<()> {
        let number = if mode == 0 { 0 } else { self.number };
        self.number += 1;
        write!(self.out, "070701{number:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, 1, 0)?;
        write!(self.out, "{:08x}{:08x}{:08x}{:08x}{:08x}", content.len(), 0, 0, 0, 0)?;
        write!(self.out, "{:08x}{:08x}", name.len() + 1, 0)?;
        self.out.write_all(name)?;
        self.out.write_all(b"\0")?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        let missing = length.next_multiple_of(4) - length;
        self.out.write_all(&vec![0; missing])
    }
}
